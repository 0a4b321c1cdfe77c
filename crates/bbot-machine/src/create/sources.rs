//! Where packages come from: the host's own apt sources, when they serve the wanted release.
//!
//! Many hosts reach Debian only by a mirror or a proxy of their own; what works for the host's apt works for the
//! machine. Without such sources mmdebstrap takes its own default mirror.

/// Entries of apt's source files that serve `suite`, its updates or its security fixes, one text per format.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sources {
    /// For a file `*.list`.
    pub(super) one_line: String,
    /// For a file `*.sources`.
    pub(super) deb822: String,
}

impl Sources {
    pub(super) fn is_empty(&self) -> bool {
        self.one_line.is_empty() && self.deb822.is_empty()
    }

    /// Takes what serves `suite` out of a `sources.list` or `*.list`.
    pub(super) fn add_one_line(&mut self, text: &str, suite: &str) {
        for line in text.lines() {
            let line = line.trim();
            let Some(rest) = line.strip_prefix("deb ").or(line.strip_prefix("deb\t")) else {
                continue;
            };
            let (options, rest) = match rest.trim_start().strip_prefix('[') {
                Some(rest) => rest.split_once(']').unwrap_or(("", rest)),
                None => ("", rest),
            };
            let mut words = rest.split_whitespace();
            let (_uri, named) = (words.next(), words.next().unwrap_or_default());
            let is_debians = options.split_whitespace().all(|option| {
                option
                    .split_once('=')
                    .is_none_or(|(k, v)| k != "signed-by" || is_debian_key(v))
            });
            if serves(named, suite) && words.any(|component| component == "main") && is_debians {
                self.one_line.push_str(line);
                self.one_line.push('\n');
            }
        }
    }

    /// Takes the stanzas that serve `suite` out of a `*.sources`.
    pub(super) fn add_deb822(&mut self, text: &str, suite: &str) {
        let mut stanza = String::new();
        for line in text.lines().chain([""]) {
            if line.starts_with('#') {
                continue;
            }
            if !line.trim().is_empty() {
                stanza.push_str(line);
                stanza.push('\n');
                continue;
            }
            if stanza_serves(&stanza, suite) {
                self.deb822.push_str(&stanza);
                self.deb822.push('\n');
            }
            stanza.clear();
        }
    }
}

fn stanza_serves(stanza: &str, suite: &str) -> bool {
    let field = |name: &str| {
        stanza.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    };
    let has = |name: &str, word: &str| {
        field(name).is_some_and(|value| value.split_whitespace().any(|w| w == word))
    };
    let mut suites = field("Suites")
        .unwrap_or_default()
        .split_whitespace()
        .peekable();
    has("Types", "deb")
        && has("Components", "main")
        && suites.peek().is_some()
        && suites.all(|named| serves(named, suite))
        && field("Enabled").is_none_or(|value| !value.eq_ignore_ascii_case("no"))
        && field("Signed-By").is_none_or(|key| key.is_empty() || is_debian_key(key))
}

/// Others publish for Debian's releases under the same suite names; they sign with keys of their own.
fn is_debian_key(path: &str) -> bool {
    path.contains("debian-archive")
}

fn serves(named: &str, suite: &str) -> bool {
    named
        .strip_prefix(suite)
        .is_some_and(|rest| ["", "-updates", "-security", "/updates"].contains(&rest))
}

/// Options of the host's apt that decide whether a download works at all, as lines for apt's configuration: proxies,
/// certificates, retries, and what hosts with a frozen mirror switch off. `dump` is what `apt-config dump` prints.
pub(super) fn host_options(dump: &str) -> Vec<String> {
    dump.lines()
        .filter(|line| {
            let Some((key, value)) = line.split_once(' ') else {
                return false;
            };
            let key = key.to_ascii_lowercase();
            let wanted = key.starts_with("acquire::")
                && (key.contains("proxy")
                    || key.starts_with("acquire::check-")
                    || key.starts_with("acquire::https::cainfo")
                    || key == "acquire::retries"
                    || key.starts_with("acquire::forceipv"));
            wanted && value != "\"\";"
        })
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_of_the_release_are_taken_and_others_left() {
        let mut sources = Sources::default();
        sources.add_deb822(
            "# comment\nTypes: deb\n# inside\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n\
             Types: deb\nURIs: https://other.example\nSuites: nodistro\nComponents: main\n\n\
             Types: deb\nURIs: https://third.example\nSuites: bookworm\nComponents: main\nSigned-By: /usr/share/keyrings/third.gpg\n\n\
             Types: deb-src\nURIs: http://mirror.example/debian\nSuites: bookworm\nComponents: main\n\n\
             Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: bookworm\nComponents: main\n",
            "bookworm",
        );
        assert_eq!(
            sources.deb822,
            "Types: deb\nURIs: http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\nSigned-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        );
        assert!(sources.one_line.is_empty());
    }

    #[test]
    fn lines_of_the_release_are_taken_and_others_left() {
        let mut sources = Sources::default();
        sources.add_one_line(
            "deb http://mirror.example/debian bookworm main contrib\n\
             deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://mirror.example/s bookworm-security main\n\
             deb [signed-by=/k/x.gpg] http://x.example bookworm main\n\
             deb http://docker.example/debian bookworm stable\n\
             deb http://mirror.example/debian trixie main\n\
             deb-src http://mirror.example/debian bookworm main\n# deb http://no.example bookworm main\n",
            "bookworm",
        );
        assert_eq!(
            sources.one_line,
            "deb http://mirror.example/debian bookworm main contrib\n\
             deb [arch=amd64 signed-by=/k/debian-archive-keyring.gpg] http://mirror.example/s bookworm-security main\n"
        );
    }

    #[test]
    fn proxies_and_checks_are_passed_on() {
        let dump = "APT \"\";\nAcquire \"\";\nAcquire::http::Proxy \"http://proxy.example:3128\";\nAcquire::https \"\";\nAcquire::Languages \"none\";\nAcquire::Check-Valid-Until \"false\";\n";
        assert_eq!(
            host_options(dump),
            [
                "Acquire::http::Proxy \"http://proxy.example:3128\"",
                "Acquire::Check-Valid-Until \"false\""
            ]
        );
    }
}
