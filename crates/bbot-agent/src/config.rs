//! The options, from the command line and from the file of `--config`, which can be
//! read again while the agent runs.
//!
//! ```text
//! # the file: one option a line, without the dashes
//! instance-max 4
//! ram = 2097152
//! systemd-daemon
//! controller 0001=https://ci.example.org
//! ```
//!
//! What is given on the command line goes before what is in the file, for an option
//! that can be repeated too: then the file's are not taken at all.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgAction, CommandFactory as _, FromArgMatches as _};

use crate::options::Options;

/// The largest file of options.
const LIMIT: u64 = 1024 * 1024;

/// The word for a controller, which has no option of its own.
const CONTROLLER: &str = "controller";

/// Why there are no options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The command line: what is wrong, or what was asked for (`--help`).
    #[error("{}", .0.to_string().trim_end().trim_start_matches("error: "))]
    CommandLine(clap::Error),
    /// The file cannot be read.
    #[error("unable to read the options in {}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A line of the file.
    #[error("{}:{line}: {what}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        what: String,
    },
}

/// The options, and where they are from.
#[derive(Debug, Clone)]
pub struct Configuration {
    options: Options,
    /// The command line. None: it never changes.
    arguments: Option<Vec<OsString>>,
}

impl Configuration {
    /// Of a command line, whose first word is the program's name.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ConfigError> {
        let arguments: Vec<OsString> = arguments.into_iter().collect();
        Ok(Self {
            options: read(&arguments)?,
            arguments: Some(arguments),
        })
    }

    /// Options that never change.
    pub fn fixed(options: Options) -> Self {
        Self {
            options,
            arguments: None,
        }
    }

    /// The options as they were read last.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The options as they are now. What is here stays as it was.
    ///
    /// # Errors
    ///
    /// [`ConfigError`].
    pub fn read_again(&self) -> Result<Options, ConfigError> {
        match &self.arguments {
            Some(arguments) => read(arguments),
            None => Ok(self.options.clone()),
        }
    }
}

fn read(arguments: &[OsString]) -> Result<Options, ConfigError> {
    let matches = Options::command()
        .try_get_matches_from(arguments)
        .map_err(ConfigError::CommandLine)?;
    let options = Options::from_arg_matches(&matches).map_err(ConfigError::CommandLine)?;
    let Some(path) = &options.config else {
        return Ok(options);
    };
    let text = read_file(path).map_err(|why| ConfigError::File {
        path: path.clone(),
        why,
    })?;
    let is_given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let mut all: Vec<OsString> = arguments.first().cloned().into_iter().collect();
    for (index, line) in text.lines().enumerate() {
        let wrong = |what: String| ConfigError::Line {
            path: path.clone(),
            line: index + 1,
            what,
        };
        if let Some((id, words)) = words_of(line).map_err(wrong)?
            && !is_given(&id)
        {
            all.extend(words);
        }
    }
    all.extend(arguments.iter().skip(1).cloned());
    Options::command()
        .try_get_matches_from(all)
        .and_then(|matches| Options::from_arg_matches(&matches))
        .map_err(ConfigError::CommandLine)
}

fn read_file(path: &Path) -> Result<String, String> {
    let length = fs::metadata(path).map_err(|e| e.to_string())?.len();
    if length > LIMIT {
        return Err(format!("it is longer than {LIMIT} bytes"));
    }
    fs::read_to_string(path).map_err(|e| e.to_string())
}

/// What a line says as words of a command line, and which option it is about. None: it
/// says nothing.
fn words_of(line: &str) -> Result<Option<(String, Vec<OsString>)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let end = line
        .find(|c: char| c.is_whitespace() || c == '=')
        .unwrap_or(line.len());
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let value = rest.strip_prefix('=').unwrap_or(rest).trim();
    let value = (!value.is_empty()).then_some(value);
    let command = Options::command();
    if name == CONTROLLER {
        let url = value.ok_or("controller needs a URL")?;
        // Whatever it begins with, it is no option.
        if url.starts_with('-') {
            return Err(format!("{url} is no URL"));
        }
        return Ok(Some(("controllers".to_owned(), vec![url.into()])));
    }
    if name.starts_with('-') {
        return Err(format!(
            "options are given without dashes here: {}",
            name.trim_start_matches('-')
        ));
    }
    if matches!(name, "config" | "help" | "version") {
        return Err(format!("{name} has no meaning here"));
    }
    let known = command
        .get_arguments()
        .find(|argument| argument.get_long() == Some(name));
    let Some(argument) = known else {
        return Err(format!("there is no option {name}"));
    };
    let id = argument.get_id().to_string();
    let takes_value = !matches!(argument.get_action(), ArgAction::SetTrue);
    let word = match (takes_value, value) {
        (true, Some(value)) => format!("--{name}={value}"),
        (true, None) => return Err(format!("{name} needs a value")),
        (false, None) => format!("--{name}"),
        (false, Some(value)) => {
            return Err(format!("{name} takes no value, but has {value}"));
        }
    };
    // Here, where the line is known.
    let alone = [OsString::from("bbot-agent"), OsString::from(&word)];
    if let Err(e) = Options::command().try_get_matches_from(alone) {
        let text = e.to_string();
        let first = text.lines().next().unwrap_or_default();
        return Err(first.trim_start_matches("error: ").to_owned());
    }
    Ok(Some((id, vec![word.into()])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, arguments: &[&str]) -> Result<Options, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.conf");
        fs::write(&path, text).unwrap();
        let mut all = vec![OsString::from("bbot-agent"), "--config".into(), path.into()];
        all.extend(arguments.iter().map(OsString::from));
        Configuration::read(all).map(|configuration| configuration.options)
    }

    #[test]
    fn a_file_says_what_the_command_line_would() {
        let text = "# the slots\n\ninstance-max 4\n  ram = 2097152  \ncpu=2\nsystemd-daemon\n\
                    trust AB\ntrust CD\ncontroller 0001=https://c.example/?x=1\ncontroller = http://d\n\
                    openssl-option -engine\nopenssl openssl\n";
        let options = with(text, &[]).unwrap();
        assert_eq!((options.instance_max, options.cpu), (4, 2));
        assert_eq!(options.ram, 2_097_152);
        assert!(options.systemd_daemon);
        assert_eq!(options.trust, ["AB", "CD"]);
        assert_eq!(
            options.controllers,
            ["0001=https://c.example/?x=1", "http://d"]
        );
        assert_eq!(options.openssl_option, ["-engine"]);
    }

    #[test]
    fn the_command_line_goes_before_the_file() {
        let text = "cpu 2\ntrust AB\ncontroller http://c\ninstance-max 3\n";
        let options = with(text, &["--cpu", "5", "--trust", "EF", "http://d"]).unwrap();
        assert_eq!((options.cpu, options.instance_max), (5, 3));
        assert_eq!(options.trust, ["EF"]);
        assert_eq!(options.controllers, ["http://d"]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, place, says) in [
            ("cpu 1\nno-such 1\n", ":2: ", "no option no-such"),
            ("--cpu 1\n", ":1: ", "without dashes"),
            ("\n\ncpu many\n", ":3: ", "invalid value 'many'"),
            ("cpu\n", ":1: ", "needs a value"),
            ("fake-build yes\n", ":1: ", "takes no value"),
            ("config other\n", ":1: ", "no meaning"),
            ("controller\n", ":1: ", "needs a URL"),
            ("controller --help\n", ":1: ", "no URL"),
        ] {
            let error = with(text, &[]).unwrap_err().to_string();
            assert!(error.contains(place) && error.contains(says), "{error}");
            assert!(error.contains("agent.conf"), "{error}");
        }
        let arguments = ["bbot-agent", "--config", "/no/such/file"].map(OsString::from);
        let error = Configuration::read(arguments).unwrap_err().to_string();
        assert!(error.contains("/no/such/file"), "{error}");
        let arguments = ["bbot-agent", "--cpu", "0"].map(OsString::from);
        assert!(matches!(
            Configuration::read(arguments),
            Err(ConfigError::CommandLine(_))
        ));
    }

    #[test]
    fn a_file_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.conf");
        fs::write(&path, "cpu 2\n").unwrap();
        let arguments = [
            OsString::from("bbot-agent"),
            "--config".into(),
            path.clone().into(),
        ];
        let configuration = Configuration::read(arguments).unwrap();
        fs::write(&path, "cpu 3\n").unwrap();
        assert_eq!(configuration.options().cpu, 2);
        assert_eq!(configuration.read_again().unwrap().cpu, 3);
        fs::write(&path, "cpu 0\n").unwrap();
        assert!(configuration.read_again().is_err());
        let fixed = Configuration::fixed(configuration.options().clone());
        assert_eq!(fixed.read_again().unwrap().cpu, 2);
    }
}
