//! A task's configuration as the build systems understand it: variables and options.

use bbot_manifest::{Task, quoting};

/// Variables by which compilers are chosen and told; every build system here knows them from its environment.
const TOOLS: [&str; 10] = [
    "CC",
    "CXX",
    "CPP",
    "CFLAGS",
    "CXXFLAGS",
    "CPPFLAGS",
    "LDFLAGS",
    "AR",
    "RANLIB",
    "PKG_CONFIG_PATH",
];

/// What `config`, `target-config` and `package-config` say.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Arguments {
    /// `NAME=value`, in their order.
    pub(crate) variables: Vec<(String, String)>,
    /// Words that begin with `-`, in their order.
    pub(crate) options: Vec<String>,
    /// What is neither: meant for a build system that is not here.
    pub(crate) others: Vec<String>,
}

impl Arguments {
    /// Takes the task's configuration apart; `more` comes after it.
    pub(crate) fn of(task: &Task, more: &[String]) -> Result<Self, String> {
        let mut words = Vec::new();
        for (field, list) in [
            ("target-config", &task.target_config),
            ("package-config", &task.package_config),
        ] {
            if let Some(list) = list {
                let split = quoting::split(list);
                words.extend(split.map_err(|error| format!("the task's {field}: {error}"))?);
            }
        }
        words.extend_from_slice(more);
        let mut arguments = Self::default();
        for word in words {
            match word.split_once('=') {
                _ if word.starts_with('-') => arguments.options.push(word),
                Some((name, value)) if is_variable(name) => {
                    arguments
                        .variables
                        .push((name.to_owned(), value.to_owned()));
                }
                _ => arguments.others.push(word),
            }
        }
        Ok(arguments)
    }

    /// The variables that choose compilers and their options.
    pub(crate) fn tools(&self) -> impl Iterator<Item = &(String, String)> {
        self.variables
            .iter()
            .filter(|(name, _)| TOOLS.contains(&name.as_str()))
    }

    /// All other variables.
    pub(crate) fn settings(&self) -> impl Iterator<Item = &(String, String)> {
        self.variables
            .iter()
            .filter(|(name, _)| !TOOLS.contains(&name.as_str()))
    }
}

/// Whether a shell or make would take it for a variable's name.
fn is_variable(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_sorted_by_what_they_are() {
        let mut task = Task::new("p", "1", "u", "m", "t");
        task.target_config = Some("CC=gcc 'CFLAGS=-O2 -g' --enable-x".to_owned());
        task.package_config = Some("config.cxx=g++ WITH_Y=1".to_owned());
        let arguments = Arguments::of(&task, &["-k".to_owned()]).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            arguments.variables,
            [
                pair("CC", "gcc"),
                pair("CFLAGS", "-O2 -g"),
                pair("WITH_Y", "1")
            ]
        );
        assert_eq!(arguments.options, ["--enable-x", "-k"]);
        assert_eq!(arguments.others, ["config.cxx=g++"]);
        assert_eq!(arguments.tools().count(), 2);
        assert_eq!(arguments.settings().count(), 1);
    }

    #[test]
    fn a_quote_that_does_not_end_is_an_error() {
        let mut task = Task::new("p", "1", "u", "m", "t");
        task.target_config = Some("'CC=gcc".to_owned());
        assert!(
            Arguments::of(&task, &[])
                .unwrap_err()
                .contains("target-config")
        );
    }
}
