//! What the URL of a request for a task asks for.

use bbot_manifest::InteractiveMode;

use crate::http::problem::Problem;
use crate::queue::lane::SERVICE;
use crate::source::requested_repository;

/// Repositories that a request may be for.
const REPOSITORIES: usize = 16;

/// Types of services that a request may be for.
const SERVICES: usize = 16;

/// What the URL's parameters ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::http) struct Wanted {
    /// Only packages of these repositories, by their canonical names; empty is any.
    pub(super) repositories: Vec<String>,
    /// The agent's say about interactive builds, made narrower.
    pub(in crate::http) interactive: Option<InteractiveMode>,
    /// Only packages of services of these types, the empty one for those of none; empty is any.
    pub(in crate::http) services: Vec<String>,
}

impl Wanted {
    /// Reads the URL's parameters, without the function.
    pub(super) fn parse(parameters: &[(String, String)]) -> Result<Self, Problem> {
        let mut wanted = Self::default();
        for (name, value) in parameters {
            match name.as_str() {
                "r" | "repository" if value.is_empty() => {
                    return Err(Problem::bad("empty repository name"));
                }
                "r" | "repository" => wanted.repositories.push(requested_repository(value)),
                "interactive" => {
                    wanted.interactive = Some(match value.as_str() {
                        "false" => InteractiveMode::False,
                        "true" => InteractiveMode::True,
                        "both" => InteractiveMode::Both,
                        _ => {
                            return Err(Problem::bad(
                                "invalid interactive mode: expected false, true or both",
                            ));
                        }
                    });
                }
                "t" | "tenant_service_type" if value.len() > SERVICE => {
                    return Err(Problem::bad(format!(
                        "{name} is of {} bytes: the type of a service has at most {SERVICE}",
                        value.len()
                    )));
                }
                "t" | "tenant_service_type" => wanted.services.push(value.clone()),
                other => return Err(Problem::bad(format!("unknown parameter {other:?}"))),
            }
        }
        // Each is looked for by itself, in each configuration.
        wanted.repositories.sort_unstable();
        wanted.repositories.dedup();
        if wanted.repositories.len() > REPOSITORIES {
            return Err(Problem::bad(format!(
                "more than {REPOSITORIES} repositories are asked for"
            )));
        }
        wanted.services.sort_unstable();
        wanted.services.dedup();
        if wanted.services.len() > SERVICES {
            return Err(Problem::bad(format!(
                "more than {SERVICES} types of services are asked for"
            )));
        }
        Ok(wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> Vec<(String, String)> {
        crate::http::params::parse(text)
    }

    #[test]
    fn parameters() {
        for (text, expected) in [
            ("", Ok(0)),
            ("r=pkg%3Acppget.org%2Fstable&repository=x", Ok(2)),
            ("interactive=both&t=&t=github", Ok(0)),
            (
                "interactive=yes",
                Err("invalid interactive mode: expected false, true or both"),
            ),
            ("r=b&r=a&r=b&r=a", Ok(2)),
            ("foo=1", Err("unknown parameter \"foo\"")),
            ("r=", Err("empty repository name")),
            (
                "t=github&t=0123456789012345678901234567890123456789012345678901234567890123",
                Ok(0),
            ),
            (
                "t=github&t=01234567890123456789012345678901234567890123456789012345678901234",
                Err("t is of 65 bytes: the type of a service has at most 64"),
            ),
        ] {
            match (Wanted::parse(&pairs(text)), expected) {
                (Ok(w), Ok(n)) => assert_eq!(w.repositories.len(), n, "{text}"),
                (Err(p), Err(what)) => assert_eq!(
                    (p.status, p.sentence.as_str()),
                    (axum::http::StatusCode::BAD_REQUEST, what)
                ),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    #[test]
    fn few_repositories_are_looked_for() {
        let many = |number| {
            let each = (0..number).map(|n| format!("r=a{n}&"));
            Wanted::parse(&pairs(each.collect::<String>().trim_end_matches('&')))
        };
        assert_eq!(many(16).unwrap().repositories.len(), 16);
        let problem = many(17).unwrap_err();
        assert_eq!(problem.sentence, "more than 16 repositories are asked for");
        let services = (0..17).map(|n| format!("t={n}&")).collect::<String>();
        let problem = Wanted::parse(&pairs(services.trim_end_matches('&'))).unwrap_err();
        assert_eq!(
            problem.sentence,
            "more than 16 types of services are asked for"
        );
    }
}
