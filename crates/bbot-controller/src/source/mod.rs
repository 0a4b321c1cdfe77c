//! Where a package's source is, and how the controller gets at it.

pub mod archives;
pub mod git;
mod pack;
pub mod peek;
mod reach;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The source of a submission, in the JSON form of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Source {
    /// An archive that was put here before: its SHA-256.
    Archive(String),
    /// A commit that the controller fetches.
    Git(Git),
    /// A repository that the worker of the original reads by itself.
    Repository(Repository),
}

/// A commit in a git repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Git {
    /// Where the repository is; https only.
    pub url: String,
    /// The commit, in full.
    pub commit: String,
    /// The archive that the controller made of it; not part of a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(read_only)]
    pub archive: Option<String>,
}

/// A package repository of the original.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Repository {
    /// Where it is.
    pub url: String,
    /// `pkg`, `git` or `dir`; absent: guessed from the URL by the worker.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Fingerprints of the certificates to trust.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub trust: Vec<String>,
}

impl Source {
    /// The archive that a task of it names, if it has one.
    #[must_use]
    pub fn archive(&self) -> Option<&str> {
        match self {
            Self::Archive(sha256) => Some(sha256),
            Self::Git(git) => git.archive.as_deref(),
            Self::Repository(_) => None,
        }
    }

    /// The name that an agent's `repository` parameter is compared with; empty where there is none.
    #[must_use]
    pub fn canonical_repository(&self) -> String {
        match self {
            Self::Repository(repository) => canonical_name(&repository.url),
            Self::Archive(_) | Self::Git(_) => String::new(),
        }
    }
}

/// The canonical name of a repository, as the original forms it from its URL: host without `www.`, `pkg.`
/// or `bpkg.`, then the path without what leads to the version component (`/1/`) and that component.
#[must_use]
pub fn canonical_name(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let rest = rest.split(['#', '?']).next().unwrap_or_default();
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.to_ascii_lowercase();
    let host = ["www.", "pkg.", "bpkg."]
        .iter()
        .find_map(|p| host.strip_prefix(p))
        .unwrap_or(&host);
    let components: Vec<&str> = path.split('/').filter(|c| !c.is_empty()).collect();
    let after = components
        .iter()
        .position(|c| c.bytes().all(|b| b.is_ascii_digit()))
        .map_or(0, |i| i + 1);
    let mut name = host.to_owned();
    for component in &components[after..] {
        name.push('/');
        name.push_str(component.strip_suffix(".git").unwrap_or(component));
    }
    name
}

/// The canonical name in the form that is stored: a later agent says `pkg:` (or another type) before it.
#[must_use]
pub fn requested_repository(parameter: &str) -> String {
    let name = ["pkg:", "git:", "dir:"]
        .iter()
        .find_map(|p| parameter.strip_prefix(p))
        .unwrap_or(parameter);
    if name.contains("://") {
        canonical_name(name)
    } else {
        name.to_owned()
    }
}

/// Whether the text is a SHA-256 in lower-case hex.
#[must_use]
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_forms() {
        for (json, source) in [
            (r#"{"archive":"ab"}"#, Source::Archive("ab".into())),
            (
                r#"{"git":{"url":"https://x.org/y.git","commit":"00"}}"#,
                Source::Git(Git {
                    url: "https://x.org/y.git".into(),
                    commit: "00".into(),
                    archive: None,
                }),
            ),
            (
                r#"{"repository":{"url":"https://x.org/1/a","type":"pkg","trust":["AB:CD"]}}"#,
                Source::Repository(Repository {
                    url: "https://x.org/1/a".into(),
                    kind: Some("pkg".into()),
                    trust: vec!["AB:CD".into()],
                }),
            ),
        ] {
            assert_eq!(serde_json::from_str::<Source>(json).unwrap(), source);
            assert_eq!(serde_json::to_string(&source).unwrap(), json);
        }
        for bad in [
            r#"{"svn":{}}"#,
            r#"{"archive":1}"#,
            r#"{"git":{"url":"x"}}"#,
            r#"{"archive":"a","git":{}}"#,
            "{}",
        ] {
            assert!(serde_json::from_str::<Source>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn canonical_names() {
        for (url, name) in [
            ("https://pkg.cppget.org/1/stable", "cppget.org/stable"),
            ("https://pkg.example.org/foo/1/alpha/", "example.org/alpha"),
            ("https://github.com/a/b.git#master", "github.com/a/b"),
            ("https://www.Example.org", "example.org"),
        ] {
            assert_eq!(canonical_name(url), name);
            assert_eq!(requested_repository(&format!("pkg:{name}")), name);
            assert_eq!(requested_repository(url), name);
        }
    }

    #[test]
    fn hashes() {
        assert!(is_sha256(&"0a".repeat(32)));
        assert!(!is_sha256(&"0A".repeat(32)));
        assert!(!is_sha256(&"0a".repeat(31)));
        assert!(!is_sha256("../../etc/passwd"));
    }
}
