//! The command line of `bbot-controller`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

use crate::config::{Config, DEFAULT_PORT, EraChoice, KEEP_LOGS, Limits, Policy, TlsFiles};
use crate::login::Login;
use crate::objects::{Bucket, Where};
use crate::queue::rebuild::{Rule, Window};
use crate::source::git::Addresses;

/// Seconds of a day.
const DAY: u64 = 24 * 3600;

/// The controller of the build bot: keeps the queue of builds, hands tasks to agents, takes their results
/// and shows them on pages and as JSON.
///
/// Agents ask it at `http://HOST:PORT/`. Submit with `bbot submit`, look with a browser. Whatever changes
/// something needs a token; the first one is made at the first start.
///
/// `bbot-controller backup DIR` puts all that the controller keeps into a new directory, also while it runs; `restore DIR` puts a
/// back-up where a controller with the same options will find it. Both take the options that say where things are.
///
/// Exit codes: 0 stopped in order, 1 failed, 2 wrong usage. Environment: BBOT_LOG sets what is logged
/// (error, warn, info, debug).
#[derive(Debug, Parser)]
#[command(name = "bbot-controller", version, max_term_width = 100)]
pub struct Options {
    /// File with these options (TOML); the command line goes first
    #[arg(long, value_name = "FILE", env = "BBOT_CONTROLLER_CONFIG")]
    pub config: Option<PathBuf>,

    /// Print a configuration file with every option, its help and its default, and leave
    #[arg(long, exclusive = true)]
    pub print_config: bool,

    /// Address and port to listen on; port 0 takes a free one. Only this computer can reach the default
    #[arg(long, value_name = "ADDR:PORT", default_value_t = SocketAddr::from(([127, 0, 0, 1], DEFAULT_PORT)))]
    pub listen: SocketAddr,

    /// Directory of the database, the archives and the token; made where there is none
    #[arg(long, value_name = "DIR", env = "BBOT_CONTROLLER_DATA")]
    pub data: PathBuf,

    /// PostgreSQL (15 or newer) database that the queue and the results are in, as postgres://USER:PASSWORD@HOST/NAME;
    /// several controllers may share it. In the environment its password is not in the list of processes. At the start it is
    /// waited for, up to a minute
    /// [default: SQLite in --data]
    #[arg(long, value_name = "URL", env = "BBOT_CONTROLLER_DATABASE", hide_env_values = true,
          value_parser = crate::database_url::Parser)]
    pub database: Option<String>,

    /// Where logs and archives are kept: a directory, or s3://BUCKET/PREFIX of an S3-compatible service. Controllers that share
    /// a database share this, too [default: objects in --data]
    #[arg(long, value_name = "PLACE", env = "BBOT_CONTROLLER_OBJECTS", value_parser = place)]
    pub objects: Option<Where>,

    /// URL of the S3-compatible service [default: AWS_ENDPOINT_URL in the environment, else that of AWS]
    #[arg(long, value_name = "URL", requires = "objects")]
    pub objects_endpoint: Option<String>,

    /// Region of the bucket [default: AWS_REGION in the environment, else us-east-1]
    #[arg(long, value_name = "NAME", requires = "objects")]
    pub objects_region: Option<String>,

    /// File with the bucket's keys: aws_access_key_id = ... and aws_secret_access_key = ... [default: AWS_ACCESS_KEY_ID and
    /// AWS_SECRET_ACCESS_KEY in the environment, else what the host is given in its cloud]
    #[arg(long, value_name = "FILE", requires = "objects")]
    pub objects_credentials: Option<PathBuf>,

    /// How the log on standard error is written: text for people, or a JSON object on each line
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,

    /// Which machines build which configurations; read again when it changes [default: any machine,
    /// configuration `default`]
    #[arg(long, value_name = "FILE")]
    pub buildtab: Option<PathBuf>,

    /// Directory of agents' RSA public keys (*.pem): only agents with one of these keys get tasks, and they
    /// must prove it with their results [default: any agent]
    #[arg(long, value_name = "DIR")]
    pub agent_keys: Option<PathBuf>,

    /// An agent that is not known, by its key or else by its name, gets no tasks until a person lets it in
    /// (`bbot agent approve`, or on the page) [default: any agent, or with --agent-keys those alone]
    #[arg(long)]
    pub approve_agents: bool,

    /// Let agents have interactive builds whose name and login (as in `host ssh bbot@host`) this regular expression matches as a whole; can
    /// be repeated. People see the login with the build [default: there are no interactive builds]
    #[arg(long = "interactive-login", value_name = "REGEX", value_parser = Login::parse)]
    pub interactive_logins: Vec<Login>,

    /// Which wire agents are answered on: auto (by what each of them sends), 2017 or later
    #[arg(long, value_name = "ERA", default_value = "auto", value_parser = clap::value_parser!(EraChoice))]
    pub era: EraChoice,

    /// Seconds that an agent may take for a task in all before it is given to another one
    #[arg(long, value_name = "SECONDS", default_value_t = 10_800, value_parser = clap::value_parser!(u64).range(1..))]
    pub result_timeout: u64,

    /// Seconds after which a task is given to another agent when nothing was heard of the one that has it: of an
    /// agent that renews its lease (ours do, four times in this time)
    #[arg(long, value_name = "SECONDS", default_value_t = crate::queue::lease::LEASE.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub lease: u64,

    /// Seconds after which a build that was neither built nor found unchanged is queued by itself, to be built if something
    /// has changed (a soft rebuild); 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub soft_rebuild: u64,

    /// Part of the day, local time, with other SECONDS for --soft-rebuild [default for these: the length of that part, and
    /// what --soft-rebuild is longer than a day]; with --soft-rebuild 0 builds are queued within it alone
    #[arg(long, value_name = "HH:MM-HH:MM[/SECONDS]")]
    pub soft_rebuild_window: Option<Window>,

    /// Seconds after which a build is queued by itself to be built whatever has changed (a hard rebuild); 0: never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub hard_rebuild: u64,

    /// The same as --soft-rebuild-window for --hard-rebuild
    #[arg(long, value_name = "HH:MM-HH:MM[/SECONDS]")]
    pub hard_rebuild_window: Option<Window>,

    /// Days that raw logs, and results that are not the last of their build, are kept; 0 keeps them for ever. The
    /// last result of a build and its log always stay
    #[arg(long, value_name = "DAYS", default_value_t = KEEP_LOGS.as_secs() / DAY,
          value_parser = clap::value_parser!(u64).range(..=36_500))]
    pub keep_logs: u64,

    /// Days that a submission is kept whose builds are all done, with everything that came of it; 0 keeps it for ever. The newest
    /// of a package always stays, and each with a build that would be rebuilt by itself
    #[arg(long, value_name = "DAYS", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(..=36_500))]
    pub keep_submissions: u64,

    /// Certificate (PEM, with those between it and one that clients know): speak TLS; read again when it changes
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,

    /// URL that agents and browsers reach this controller by, when something stands before it
    #[arg(long, value_name = "URL")]
    pub external_url: Option<String>,

    /// Further host name (HOST or HOST:PORT) that requests may be addressed to; can be repeated
    #[arg(long = "name", value_name = "NAME")]
    pub names: Vec<String>,

    /// File with the token; made with mode 0600 where there is none [default: DIR/token]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Looking at builds, logs, agents and figures needs a token, too, with the scope `read`. Agents need none
    #[arg(long)]
    pub private: bool,

    /// Connections at once, those of agents that wait among them; further clients wait for one to end. Bounded by the
    /// number of files that the process may open
    #[arg(long, value_name = "NUMBER", default_value_t = Limits::default().connections,
          value_parser = connections)]
    pub connections: usize,

    /// Of a result fewer bytes than this are kept: the middle of the logs of a longer one, of up to 16 times as many, is left out
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().result)]
    pub result_limit: usize,

    /// Archives have at most this many bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().archive)]
    pub archive_limit: u64,

    /// Type of artifacts that agents may upload, such as bindist; can be repeated [default: none]
    #[arg(long = "artifacts", value_name = "TYPE", value_parser = artifact_type)]
    pub artifacts: Vec<String>,

    /// Artifacts have at most this many bytes
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().artifact)]
    pub artifact_limit: u64,

    /// A git commit has at most this many bytes, unpacked and as fetched
    #[arg(long, value_name = "BYTES", default_value_t = Limits::default().git)]
    pub git_limit: u64,

    /// Seconds that fetching a git commit may take
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().git_time.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..))]
    pub git_timeout: u64,

    /// Fetch sources from private and loopback addresses too
    #[arg(long)]
    pub allow_private_sources: bool,

    /// User that `git` runs as when the controller is root
    #[arg(long, value_name = "USER", default_value = "nobody")]
    pub source_user: String,

    /// What to do instead of running
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What the program does instead of running a controller.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum Command {
    /// Put all that the controller keeps into a directory that is not there yet; it may run meanwhile. A PostgreSQL database is
    /// dumped by pg_dump
    Backup {
        /// The directory
        directory: PathBuf,
    },
    /// Put a back-up where a controller with these options will find it; nothing is written over
    Restore {
        /// The back-up's directory
        directory: PathBuf,
    },
}

/// A command line in the order in which it is read: options come first there, and people begin with what they want.
#[must_use]
pub fn in_order(mut words: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let is_command = |word: &std::ffi::OsString| word == "backup" || word == "restore";
    let is_option = |word: &std::ffi::OsString| word.as_encoded_bytes().starts_with(b"-");
    if words.get(1).is_some_and(is_command) && words.get(2).is_some_and(|word| !is_option(word)) {
        words[1..].rotate_left(2);
    }
    words
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// A JSON object on each line: `timestamp`, `level`, `message`, and the message's fields.
    Json,
}

/// The options do not fit this computer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// The user for git is not known.
    #[error("there is no user {user}: name one that sources are fetched as with --source-user")]
    User {
        /// The name.
        user: String,
    },
}

impl Options {
    /// The configuration that these options ask for.
    ///
    /// # Errors
    /// The user for git does not exist, and the controller runs as root.
    pub fn into_config(self) -> Result<Config, OptionsError> {
        let source_user = if rustix::process::geteuid().is_root() {
            let ids = user_ids(&self.source_user).ok_or(OptionsError::User {
                user: self.source_user,
            })?;
            Some(ids).filter(|ids| ids.0 != 0)
        } else {
            None
        };
        let mut config = Config::new(self.data);
        config.bind = self.listen;
        config.database = self.database;
        config.buildtab = self.buildtab;
        config.agent_keys = self.agent_keys;
        config.approve_agents = self.approve_agents;
        config.logins = self.interactive_logins;
        config.era = self.era;
        config.result_timeout = Duration::from_secs(self.result_timeout);
        config.lease = Duration::from_secs(self.lease);
        let rule = |seconds: u64, window| Rule {
            timeout: Some(seconds).filter(|s| *s > 0).map(Duration::from_secs),
            window,
        };
        config.rebuilds = Policy {
            soft: rule(self.soft_rebuild, self.soft_rebuild_window),
            hard: rule(self.hard_rebuild, self.hard_rebuild_window),
        };
        let days = |days: u64| (days > 0).then(|| Duration::from_secs(days * DAY));
        config.keep_logs = days(self.keep_logs);
        config.keep_submissions = days(self.keep_submissions);
        config.tls = self
            .tls_cert
            .zip(self.tls_key)
            .map(|(certificate, key)| TlsFiles { certificate, key });
        config.external_url = self.external_url;
        config.names = self.names;
        config.objects = self.objects.map(|place| match place {
            Where::Bucket(bucket) => Where::Bucket(Bucket {
                endpoint: self.objects_endpoint,
                region: self.objects_region,
                credentials: self.objects_credentials,
                ..bucket
            }),
            directory @ Where::Directory(_) => directory,
        });
        config.artifacts = self.artifacts;
        config.token_file = self.token_file;
        config.private = self.private;
        config.limits = Limits {
            result: self.result_limit,
            archive: self.archive_limit,
            artifact: self.artifact_limit,
            git: self.git_limit,
            git_time: Duration::from_secs(self.git_timeout),
            connections: self.connections,
            // A quarter at most, and no more than were ever seen to be needed: agents must always get one.
            followers: Limits::default().followers.min(self.connections / 4).max(1),
            readers: Limits::default().readers.min(self.connections / 4).max(1),
            log_readers: Limits::default()
                .log_readers
                .min(self.connections / 4)
                .max(1),
            ..Limits::default()
        };
        config.source_addresses = if self.allow_private_sources {
            Addresses::All
        } else {
            Addresses::Public
        };
        config.source_user = source_user;
        Ok(config)
    }
}

/// A type of artifacts, which is a part of names and of URLs.
fn artifact_type(text: &str) -> Result<String, &'static str> {
    let good = text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.len() <= 32
        && text
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'));
    if good {
        Ok(text.to_owned())
    } else {
        Err("expected lower-case letters, digits and dashes, at most 32, beginning with a letter")
    }
}

/// A place for objects.
fn place(text: &str) -> Result<Where, &'static str> {
    if text.contains("://") {
        text.parse().map(Where::Bucket)
    } else if text.is_empty() {
        Err("it is empty")
    } else {
        Ok(Where::Directory(PathBuf::from(text)))
    }
}

fn connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 8..=1_000_000) => Ok(number),
        _ => Err("expected a number from 8 to 1000000".to_owned()),
    }
}

/// User and group id of a user: by name, or `UID:GID`.
fn user_ids(user: &str) -> Option<(u32, u32)> {
    if let Some((uid, gid)) = user.split_once(':') {
        return Some((uid.parse().ok()?, gid.parse().ok()?));
    }
    let user = nix::unistd::User::from_name(user).ok().flatten()?;
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Options::command().debug_assert();
        let options = Options::try_parse_from(["bbot-controller", "--data", "/d"]).unwrap();
        assert_eq!(options.listen.to_string(), "127.0.0.1:2268");
        assert!(options.listen.ip().is_loopback());
        let config = options.into_config().unwrap();
        assert_eq!(config.lease, Duration::from_secs(60));
        assert_eq!(config.keep_logs, Some(KEEP_LOGS));
        assert_eq!(config.keep_submissions, None);
        let never = [
            "bbot-controller",
            "--data",
            "/d",
            "--keep-logs",
            "0",
            "--keep-submissions",
            "2",
            "--lease",
            "2",
        ];
        let config = Options::try_parse_from(never)
            .unwrap()
            .into_config()
            .unwrap();
        assert_eq!(
            (config.lease, config.keep_logs, config.keep_submissions),
            (
                Duration::from_secs(2),
                None,
                Some(Duration::from_secs(2 * DAY))
            )
        );
    }

    #[test]
    fn commands() {
        let backup = Some(Command::Backup {
            directory: "/b".into(),
        });
        for (words, expected) in [
            (&["backup", "/b", "--data", "/d"][..], backup.clone()),
            (&["--data", "/d", "backup", "/b"], backup),
            (
                &["--data", "/d", "restore", "/b"],
                Some(Command::Restore {
                    directory: "/b".into(),
                }),
            ),
            (&["--data", "/d"], None),
        ] {
            let words = std::iter::once("bbot-controller").chain(words.iter().copied());
            let options = Options::try_parse_from(in_order(words.map(Into::into).collect()));
            let options = options.unwrap();
            assert_eq!((options.data, options.command), ("/d".into(), expected));
        }
        let nowhere = ["bbot-controller", "--data", "/d", "backup"];
        assert_eq!(Options::try_parse_from(nowhere).unwrap_err().exit_code(), 2);
    }

    #[test]
    fn wrong_usage() {
        for arguments in [
            &["--data"][..],
            &[],
            &["--data", "d", "--era", "2018"],
            &["--data", "d", "--listen", "here"],
            &["--data", "d", "--result-timeout", "0"],
            &["--data", "d", "--lease", "0"],
            &["--data", "d", "--lease", "1m"],
            &["--data", "d", "--soft-rebuild", "1d"],
            &["--data", "d", "--soft-rebuild-window", "22-6"],
            &["--data", "d", "--hard-rebuild-window", "06:00-06:00"],
            &["--data", "d", "--keep-logs", "-1"],
            &["--data", "d", "--connections", "0"],
            &["--data", "d", "--database", "mysql://h/n"],
            &["--data", "d", "--objects", "gs://bucket"],
            &["--data", "d", "--objects-region", "x"],
        ] {
            let arguments = std::iter::once("bbot-controller").chain(arguments.iter().copied());
            assert_eq!(
                Options::try_parse_from(arguments).unwrap_err().exit_code(),
                2
            );
        }
        for url in ["mysql://u:secret@h/n", "postgres://h/n?pasword=secret"] {
            let words = ["bbot-controller", "--data", "d", "--database", url];
            let told = Options::try_parse_from(words).unwrap_err().to_string();
            assert!(
                told.contains("--database") && !told.contains("secret"),
                "{told}"
            );
        }
    }

    #[test]
    fn users() {
        assert_eq!(user_ids("65534:65534"), Some((65534, 65534)));
        assert_eq!(user_ids("root"), Some((0, 0)));
        assert_eq!(user_ids("no-such-user-here"), None);
    }
}
