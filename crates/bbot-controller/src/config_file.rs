//! The configuration file: what the command line can say, in TOML.
//!
//! A key is the name of an option without its dashes. What the command line or the environment says goes first. There is one list
//! of options, the command line's, and one check of their values: whatever is added there is known here.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, Command, CommandFactory as _, FromArgMatches as _};
use serde::Deserialize as _;
use toml::Spanned;

use crate::options::Options;

/// Options that a file cannot hold.
const NOT_HERE: [&str; 4] = ["config", "print-config", "help", "version"];

/// The largest file that is read, in bytes.
const LARGEST: u64 = 1 << 20;

/// The longest line of a comment, in characters.
const WIDTH: usize = 100;

/// The configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// It could not be read.
    #[error("cannot read the configuration file {path}")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// It is no TOML, or a key or value in it is wrong.
    #[error("{path}:{line}:{column}: {what}")]
    Wrong {
        /// The file.
        path: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong.
        what: String,
    },
}

/// The options, from the command line and from the file that it names, if it names one.
///
/// Wrong usage ends the process, as clap has it.
///
/// # Errors
/// The file cannot be read, or says something wrong.
pub fn options(
    arguments: impl IntoIterator<Item = OsString> + Clone,
) -> Result<Options, FileError> {
    let command = Options::command();
    // Only to find the file and what need not be looked for in it: mistakes are told in the end.
    let first = command
        .clone()
        .ignore_errors(true)
        .try_get_matches_from(arguments.clone());
    let mut words: Vec<OsString> = arguments.into_iter().collect();
    if let Ok(first) = first
        && let Some(path) = first.get_one::<PathBuf>("config")
    {
        let is_given = |arg: &Arg| {
            matches!(
                first.value_source(arg.get_id().as_str()),
                Some(ValueSource::CommandLine | ValueSource::EnvVariable)
            )
        };
        let more = read(path, &command, is_given)?;
        let at = words.len().min(1);
        words.splice(at..at, more.into_iter().map(OsString::from));
    }
    let matches = command.get_matches_from(words);
    Ok(Options::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
}

/// The words that a command line would have in the place of the file.
fn read(
    path: &Path,
    command: &Command,
    is_given: impl Fn(&Arg) -> bool,
) -> Result<Vec<String>, FileError> {
    let text = read_text(path).map_err(|source| FileError::Read {
        path: path.display().to_string(),
        source,
    })?;
    let wrong = |at: usize, what: String| {
        let (line, column) = position(&text, at);
        FileError::Wrong {
            path: path.display().to_string(),
            line,
            column,
            what,
        }
    };
    let entries = entries(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        wrong(at, error.message().to_owned())
    })?;
    // Each value by itself, so that what is wrong can be told with its place.
    let lone = command.clone().mut_args(|arg| {
        arg.required(false)
            .requires(clap::builder::Resettable::Reset)
    });
    let mut words = Vec::new();
    for (key, value) in entries {
        let name = key.get_ref().as_str();
        let arg = option(command, name).ok_or_else(|| {
            let what = format!(
                "there is no option {name:?}; bbot-controller --print-config prints all of them"
            );
            wrong(key.span().start, what)
        })?;
        let at = value.span().start;
        let said = words_of(arg, name, value.get_ref()).map_err(|what| wrong(at, what))?;
        let alone = std::iter::once("bbot-controller").chain(said.iter().map(String::as_str));
        if let Err(error) = lone.clone().try_get_matches_from(alone) {
            let what = error.to_string();
            let what = what.lines().next().unwrap_or_default();
            return Err(wrong(
                at,
                what.strip_prefix("error: ").unwrap_or(what).to_owned(),
            ));
        }
        if !is_given(arg) {
            words.extend(said);
        }
    }
    Ok(words)
}

fn read_text(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    if file.take(LARGEST + 1).read_to_string(&mut text)? as u64 > LARGEST {
        return Err(io::Error::other(format!(
            "it has more than {LARGEST} bytes"
        )));
    }
    Ok(text)
}

type Entries = Vec<(Spanned<String>, Spanned<toml::Value>)>;

/// Keys and values in the order of the file.
fn entries(text: &str) -> Result<Entries, toml::de::Error> {
    let table: std::collections::HashMap<Spanned<String>, Spanned<toml::Value>> =
        std::collections::HashMap::deserialize(toml::Deserializer::parse(text)?)?;
    let mut entries: Entries = table.into_iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    Ok(entries)
}

fn option<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(name) && !NOT_HERE.contains(&name))
}

/// What a command line would say; an error is a sentence.
fn words_of(arg: &Arg, name: &str, value: &toml::Value) -> Result<Vec<String>, String> {
    let word = |value: &toml::Value| match value {
        toml::Value::String(text) => Some(format!("--{name}={text}")),
        toml::Value::Integer(number) => Some(format!("--{name}={number}")),
        _ => None,
    };
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, toml::Value::Boolean(true)) => Ok(vec![format!("--{name}")]),
        (ArgAction::SetTrue, toml::Value::Boolean(false)) => Ok(Vec::new()),
        (ArgAction::SetTrue, _) => Err(format!("{name} is true or false")),
        (ArgAction::Append, toml::Value::Array(values)) => {
            let words: Option<Vec<String>> = values.iter().map(word).collect();
            words.ok_or_else(|| format!("{name} is a list of texts"))
        }
        (_, value) => match word(value) {
            Some(word) => Ok(vec![word]),
            None => Err(format!("{name} is a text or a number")),
        },
    }
}

/// Line and column of a byte.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .map_or(0, |rest| rest.chars().count());
    (line, column + 1)
}

/// A configuration file that changes nothing and says what could be changed: every option with its help and default.
#[must_use]
pub fn documented() -> String {
    let mut text = "# The configuration of bbot-controller (--config FILE). What the command line or the\n# environment says goes first. A line without # counts; those with it show the defaults.\n"
        .to_owned();
    for arg in Options::command().get_arguments() {
        let Some(name) = arg.get_long().filter(|name| !NOT_HERE.contains(name)) else {
            continue;
        };
        text.push('\n');
        let help = arg
            .get_long_help()
            .or(arg.get_help())
            .map(ToString::to_string);
        comment(&mut text, &help.unwrap_or_default());
        let defaults: Vec<String> = arg
            .get_default_values()
            .iter()
            .map(|value| shown(&value.to_string_lossy()))
            .collect();
        let value = match (arg.get_action(), defaults.first()) {
            (ArgAction::SetTrue, _) => "false".to_owned(),
            (ArgAction::Append, _) => "[]".to_owned(),
            (_, Some(default)) => default.clone(),
            (_, None) => "\"\"".to_owned(),
        };
        let _ = writeln!(text, "#{name} = {value}");
    }
    text
}

/// Adds it as a comment, in lines of a length that can be read.
fn comment(to: &mut String, text: &str) {
    let mut length = WIDTH;
    for word in text.split_whitespace() {
        if length + 1 + word.chars().count() > WIDTH {
            to.push_str(if length == WIDTH { "#" } else { "\n#" });
            length = 1;
        }
        to.push(' ');
        to.push_str(word);
        length += 1 + word.chars().count();
    }
    to.push('\n');
}

/// A value in TOML.
fn shown(value: &str) -> String {
    match value.parse::<i64>() {
        Ok(number) => number.to_string(),
        Err(_) => toml::Value::String(value.to_owned()).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str, arguments: &[&str]) -> Result<Options, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, text).unwrap();
        let mut words: Vec<OsString> = vec!["bbot-controller".into(), "--config".into()];
        words.push(file.clone().into());
        words.extend(arguments.iter().map(OsString::from));
        options(words).map_err(|error| {
            error
                .to_string()
                .replace(&file.display().to_string(), "FILE")
        })
    }

    #[test]
    fn the_command_line_goes_first_and_the_file_second() {
        let text = "data = \"/d\"\nlease = 30\nname = [\"a\", \"b\"]\nallow-private-sources = true\nera = \"2017\"\n";
        let options = with(text, &[]).unwrap();
        assert_eq!((options.data, options.lease), (PathBuf::from("/d"), 30));
        assert_eq!(options.names, ["a", "b"]);
        assert!(options.allow_private_sources);
        let options = with(text, &["--lease", "20", "--name", "c", "--data=/e"]).unwrap();
        assert_eq!((options.data, options.lease), (PathBuf::from("/e"), 20));
        assert_eq!(options.names, ["c"]);
    }

    #[test]
    fn options_that_need_each_other_may_both_be_there() {
        let text = "data = \"/d\"\ntls-cert = \"c\"\ntls-key = \"k\"\n";
        let options = with(text, &[]).unwrap();
        assert_eq!(options.tls_cert, Some(PathBuf::from("c")));
        assert_eq!(options.tls_key, Some(PathBuf::from("k")));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (text, expected) in [
            (
                "data = \"/d\"\n lese = 1\n",
                "FILE:2:2: there is no option \"lese\"",
            ),
            (
                "data = \"/d\"\nlease = 0\n",
                "FILE:2:9: invalid value '0' for '--lease <SECONDS>'",
            ),
            ("lease = [1]\n", "FILE:1:9: lease is a text or a number"),
            ("lease = true\n", "FILE:1:9: lease is a text or a number"),
            (
                "allow-private-sources = 1\n",
                "FILE:1:25: allow-private-sources is true or false",
            ),
            ("name = [[]]\n", "FILE:1:8: name is a list of texts"),
            ("lease = 1\nlease = 2\n", "FILE:2:1: "),
            ("lease =\n", "FILE:1:8: "),
            ("config = \"x\"\n", "FILE:1:1: there is no option"),
            ("help = true\n", "FILE:1:1: there is no option"),
        ] {
            let error = with(text, &["--data", "/d"]).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }

    #[test]
    fn the_documented_file_has_every_option_with_its_default() {
        let text = documented();
        let plain = with(&text, &["--data", "/d"]).unwrap();
        let mut uncommented = String::new();
        for line in text.lines() {
            // Those without a default have no value that could be given.
            if let Some(line) = line.strip_prefix('#').filter(|l| !l.starts_with(' '))
                && !line.ends_with("\"\"")
            {
                uncommented.push_str(line);
                uncommented.push('\n');
            }
        }
        assert!(
            uncommented.contains("listen = \"127.0.0.1:2268\"\n"),
            "{uncommented}"
        );
        let said = with(&uncommented, &["--data", "/d"]).unwrap();
        let strip = |options: Options| {
            format!(
                "{:?}",
                Options {
                    config: None,
                    ..options
                }
            )
        };
        assert_eq!(strip(said), strip(plain));
        for arg in Options::command().get_arguments() {
            let Some(name) = arg.get_long().filter(|name| !NOT_HERE.contains(name)) else {
                continue;
            };
            assert!(text.contains(&format!("\n#{name} = ")), "{name}");
        }
    }
}
