//! Finds out a package's name and version from what its sources say.
//!
//! In this order: the command line, a `manifest` file with `name` and `version`, `AC_INIT` of
//! `configure.ac`, `project()` of `CMakeLists.txt`, the name of the directory or archive
//! (`zlib-1.2.13`, `zlib_1.2.13.orig.tar.gz`). A package without any version gets the time of its
//! submission as one, so that two submissions can be told apart.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};
use bbot_manifest::PackageVersion;

use super::Given;

/// Name and version of a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Identity {
    /// `NAME-VERSION`, the top folder of a source archive.
    pub(crate) fn directory_name(&self) -> String {
        format!("{}-{}", self.name, self.version)
    }
}

/// What one source says; either part may be missing.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Found {
    name: Option<String>,
    version: Option<String>,
}

/// The files that may tell a package's identity, in the order in which they are asked.
pub(crate) const TELLING: [&str; 3] = ["manifest", "configure.ac", "CMakeLists.txt"];

/// The identity of the package in a directory.
pub(crate) fn of_directory(directory: &Path, given: &Given) -> Result<Identity> {
    let texts = TELLING.map(|name| fs::read_to_string(directory.join(name)).unwrap_or_default());
    of_texts(&texts, &base_name(directory), given)
}

/// The identity of the package in an archive with this name, whose [`TELLING`] files have these texts.
pub(crate) fn of_archive(
    archive: &Path,
    texts: &[String; TELLING.len()],
    given: &Given,
) -> Result<Identity> {
    let mut base = base_name(archive);
    for suffix in [
        ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".tar", ".orig",
    ] {
        if let Some(stem) = base.strip_suffix(suffix) {
            base = stem.to_string();
        }
    }
    of_texts(texts, &base, given)
}

fn of_texts(
    [manifest, autoconf, cmake]: &[String; TELLING.len()],
    base: &str,
    given: &Given,
) -> Result<Identity> {
    let found = [
        of_manifest(manifest),
        of_autoconf(autoconf),
        of_cmake(cmake),
        of_name(base),
    ];
    decide(given, &found, base)
}

fn base_name(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn decide(given: &Given, found: &[Found], base: &str) -> Result<Identity> {
    let name = given
        .name
        .clone()
        .or_else(|| found.iter().find_map(|f| f.name.clone()))
        .unwrap_or_else(|| base.to_string());
    let name = match &given.name {
        Some(name) => name.clone(),
        None => name
            .chars()
            .map(|c| if is_name_character(c) { c } else { '-' })
            .collect(),
    };
    if name.is_empty()
        || !name.chars().all(is_name_character)
        || !name.chars().any(char::is_alphanumeric)
    {
        bail!(
            "'{name}' cannot be the name of a package: give one with --name (letters, digits, '+', '-', '_', '.')"
        );
    }
    let version = match &given.version {
        Some(version) => {
            PackageVersion::parse(version)
                .with_context(|| format!("'{version}' is not a package version"))?;
            version.clone()
        }
        None => found
            .iter()
            .filter_map(|f| f.version.as_deref())
            .find_map(usable_version)
            .unwrap_or_else(version_of_now),
    };
    Ok(Identity { name, version })
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '_' | '.')
}

/// `text` as a version of the package grammar, with what the grammar does not know made a dot.
fn usable_version(text: &str) -> Option<String> {
    if PackageVersion::parse(text).is_ok_and(|v| v.to_string() != "0") {
        return Some(text.to_string());
    }
    let dotted: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '.' })
        .collect();
    let parts: Vec<&str> = dotted.split('.').filter(|part| !part.is_empty()).collect();
    let version = parts.join(".");
    (version.starts_with(|c: char| c.is_ascii_digit())
        && PackageVersion::parse(&version).is_ok_and(|v| v.to_string() != "0"))
    .then_some(version)
}

fn version_of_now() -> String {
    jiff::Timestamp::now().strftime("%Y%m%d.%H%M%S").to_string()
}

/// A `manifest` file in our own format, as packages of the original's toolchain have it.
fn of_manifest(text: &str) -> Found {
    let Ok(list) = bbot_manifest::parse(text.as_bytes()) else {
        return Found::default();
    };
    let Some(first) = list.first() else {
        return Found::default();
    };
    let value = |name: &str| {
        first
            .pairs
            .iter()
            .find(|p| p.name == name && !p.value.is_empty())
            .map(|p| p.value.clone())
    };
    Found {
        name: value("name"),
        version: value("version"),
    }
}

/// `AC_INIT([name], [version], ...)`.
fn of_autoconf(text: &str) -> Found {
    let Some(arguments) = call(text, "AC_INIT") else {
        return Found::default();
    };
    let mut arguments = arguments
        .split(',')
        .map(|a| a.trim().trim_matches(['[', ']', '"']).trim());
    let literal = |a: Option<&str>| {
        a.filter(|a| !a.is_empty() && !a.contains(['$', '(', '[']))
            .map(ToString::to_string)
    };
    Found {
        name: literal(arguments.next()).map(|n| n.replace(' ', "-")),
        version: literal(arguments.next()),
    }
}

/// `project(name ... VERSION version ...)`.
fn of_cmake(text: &str) -> Found {
    let Some(arguments) = call(text, "project") else {
        return Found::default();
    };
    let words: Vec<&str> = arguments
        .split_whitespace()
        .map(|w| w.trim_matches('"'))
        .collect();
    let literal = |w: &&str| !w.is_empty() && !w.contains('$');
    let version = words
        .iter()
        .position(|w| *w == "VERSION")
        .and_then(|at| words.get(at + 1).copied());
    Found {
        name: words
            .first()
            .copied()
            .filter(literal)
            .map(ToString::to_string),
        version: version.filter(literal).map(ToString::to_string),
    }
}

/// The text between the parentheses of the first call of `function` that starts a line.
fn call<'a>(text: &'a str, function: &str) -> Option<&'a str> {
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let start = line.trim_start();
        let matches = start
            .get(..function.len())
            .is_some_and(|w| w.eq_ignore_ascii_case(function))
            && start[function.len()..].trim_start().starts_with('(');
        if matches {
            let open = offset + line.find('(')? + 1;
            let close = open + text[open..].find(')')?;
            return Some(&text[open..close]);
        }
        offset += line.len();
    }
    None
}

/// `zlib-1.2.13`, `zlib_1.2.13`: the part after the last separator that a digit follows is the version.
fn of_name(base: &str) -> Found {
    let split = base
        .char_indices()
        .rev()
        .find(|&(at, c)| {
            at > 0
                && matches!(c, '-' | '_')
                && base[at + 1..].starts_with(|next: char| next.is_ascii_digit())
        })
        .map(|(at, _)| at);
    match split {
        Some(at) => Found {
            name: Some(base[..at].to_string()),
            version: Some(base[at + 1..].to_string()),
        },
        None => Found {
            name: Some(base.to_string()),
            version: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, version: &str) -> Found {
        let some = |s: &str| (!s.is_empty()).then(|| s.to_string());
        Found {
            name: some(name),
            version: some(version),
        }
    }

    #[test]
    fn names_tell_versions() {
        for (base, name, version) in [
            ("zlib-1.2.13", "zlib", "1.2.13"),
            ("zlib-1.2.13.dfsg", "zlib", "1.2.13.dfsg"),
            ("zlib_1.2.13.dfsg", "zlib", "1.2.13.dfsg"),
            ("gtk-2-theme-0.9-rc1", "gtk-2-theme", "0.9-rc1"),
            ("hello", "hello", ""),
            ("x86-64", "x86", "64"),
        ] {
            assert_eq!(of_name(base), found(name, version), "{base}");
        }
    }

    #[test]
    fn build_systems_tell_versions() {
        assert_eq!(
            of_autoconf("dnl x\nAC_INIT([tool], [2.1], [a@b])\n"),
            found("tool", "2.1")
        );
        assert_eq!(
            of_autoconf("AC_INIT(tool, m4_esyscmd([x]))"),
            found("tool", "")
        );
        assert_eq!(
            of_cmake("cmake_minimum_required(VERSION 3.5)\nproject(zlib C)\nset(VERSION \"1.3\")"),
            found("zlib", "")
        );
        assert_eq!(
            of_cmake("PROJECT (\n  \"fmt\" VERSION 9.1.0\n LANGUAGES CXX)"),
            found("fmt", "9.1.0")
        );
        assert_eq!(of_cmake("project(${NAME} VERSION ${V})"), Found::default());
        assert_eq!(
            of_manifest(": 1\nname: hello\nversion: 1.0.0\n"),
            found("hello", "1.0.0")
        );
        assert_eq!(of_manifest("{\"name\": 1}"), Found::default());
    }

    #[test]
    fn the_command_line_wins_and_is_checked() {
        let given = Given {
            name: Some("other".into()),
            version: Some("3".into()),
        };
        let identity = decide(&given, &[found("x", "1")], "x").unwrap();
        assert_eq!(
            identity,
            Identity {
                name: "other".into(),
                version: "3".into()
            }
        );
        let bad = Given {
            name: Some("a b".into()),
            version: None,
        };
        assert!(decide(&bad, &[found("x", "1")], "x").is_err());
        let bad = Given {
            name: None,
            version: Some("1..2".into()),
        };
        assert!(decide(&bad, &[found("x", "1")], "x").is_err());
    }

    #[test]
    fn what_is_not_a_version_is_mended_or_replaced() {
        assert_eq!(usable_version("1.2~rc1").as_deref(), Some("1.2.rc1"));
        assert_eq!(usable_version("v..").as_deref(), None);
        assert_eq!(usable_version("0"), None);
        let identity = decide(&Given::default(), &[found("my package", "")], "x").unwrap();
        assert_eq!(identity.name, "my-package");
        assert!(
            PackageVersion::parse(&identity.version).is_ok(),
            "{}",
            identity.version
        );
    }
}
