//! The command line.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use lexopt::{Arg, Parser, ValueExt};

pub(crate) const HELP: &str = "\
Usage: bbot-worker --bootstrap [options]
       bbot-worker --startup [options]
       bbot-worker [options] [<config-arg>...]

Builds a package inside a build machine. Without a mode it performs the task in
the build directory, or asks the agent for one.

  --bootstrap            print the bootstrap manifest and exit
  --startup              get the task from the agent, prepare the environment,
                         build, and see to it that a result is uploaded
  --build <dir>          where to build; the current directory by default
  --environments <dir>   where environment scripts are; the home directory by
                         default. A task's environment names one of them, else
                         the one called 'default' is used if it is there
  --env-script <path>    the environment script that has been run (startup
                         passes it to build, which then keeps the environment)
  --env-target <target>  the target that it has been run for
  --ahead                wait for the task on standard input (startup passes it
                         to a build that it starts before there is a task)
  --to-be-saved          the machine is saved before that (the same)
  --tftp-host <addr[:port]>
                         the agent; 196.254.111.222 and port 69 by default
  --verbose <level>      0 to 6, 1 by default
  --help, --version

Exit code: 0 on success (whatever the result's status is), 2 when the build ended
abnormally and this has been reported already, 1 on other errors.
";

/// The agent as every machine sees it.
const AGENT: IpAddr = IpAddr::V4(Ipv4Addr::new(196, 254, 111, 222));

/// TFTP's port (RFC 1350).
const PORT: u16 = 69;

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Bootstrap,
    Startup,
    Build,
}

/// The options, defaults filled in.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) mode: Mode,
    pub(crate) verbose: u8,
    pub(crate) build: PathBuf,
    pub(crate) environments: PathBuf,
    pub(crate) env_script: Option<PathBuf>,
    pub(crate) env_target: Option<String>,
    /// The task comes later, from startup.
    pub(crate) ahead: bool,
    /// The machine is saved before that.
    pub(crate) to_be_saved: bool,
    pub(crate) agent: SocketAddr,
    /// More configuration, from an environment script.
    pub(crate) arguments: Vec<String>,
}

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Parsed {
    Run(Options),
    Help,
    Version,
}

/// Reads the command line, the program's name first.
pub(crate) fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Parsed, lexopt::Error> {
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty());
    let mut options = Options {
        mode: Mode::Build,
        verbose: 1,
        build: PathBuf::from("."),
        environments: PathBuf::from(home.unwrap_or_else(|| "/root".into())),
        env_script: None,
        env_target: None,
        ahead: false,
        to_be_saved: false,
        agent: SocketAddr::new(AGENT, PORT),
        arguments: Vec::new(),
    };
    let mut mode = None;
    let mut parser = Parser::from_iter(arguments);
    while let Some(argument) = parser.next()? {
        let chosen = match argument {
            Arg::Long("bootstrap") => Mode::Bootstrap,
            Arg::Long("startup") => Mode::Startup,
            Arg::Long("build") => {
                options.build = parser.value()?.into();
                continue;
            }
            Arg::Long("environments") => {
                options.environments = parser.value()?.into();
                continue;
            }
            Arg::Long("env-script") => {
                options.env_script = Some(parser.value()?.into());
                continue;
            }
            Arg::Long("env-target") => {
                options.env_target = Some(parser.value()?.string()?);
                continue;
            }
            Arg::Long("ahead") => {
                options.ahead = true;
                continue;
            }
            Arg::Long("to-be-saved") => {
                options.to_be_saved = true;
                continue;
            }
            Arg::Long("tftp-host") => {
                options.agent = parser.value()?.parse_with(parse_agent)?;
                continue;
            }
            Arg::Long("verbose") => {
                options.verbose = parser.value()?.parse_with(|text| match text.parse() {
                    Ok(level @ 0..=6) => Ok(level),
                    _ => Err("a number from 0 to 6 is expected"),
                })?;
                continue;
            }
            Arg::Long("help") | Arg::Short('h') => return Ok(Parsed::Help),
            Arg::Long("version") | Arg::Short('V') => return Ok(Parsed::Version),
            Arg::Value(value) => {
                options.arguments.push(value.string()?);
                continue;
            }
            other => return Err(other.unexpected()),
        };
        if mode.replace(chosen).is_some_and(|before| before != chosen) {
            return Err("--bootstrap and --startup exclude each other".into());
        }
    }
    if let Some(mode) = mode {
        options.mode = mode;
        if !options.arguments.is_empty() {
            return Err(format!("unexpected argument {:?}", options.arguments[0]).into());
        }
    }
    Ok(Parsed::Run(options))
}

/// `ADDR`, `ADDR:PORT` or `[ADDR]:PORT`. Names are not resolved: a machine has no name server.
fn parse_agent(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse::<SocketAddr>()
        .or_else(|_| {
            text.parse()
                .map(|address: IpAddr| SocketAddr::new(address, PORT))
        })
        .map_err(|_| "an address (numbers, not a name) with an optional port is expected")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Options, String> {
        let all = ["bbot-worker"].iter().chain(arguments).map(OsString::from);
        match parse(all) {
            Ok(Parsed::Run(options)) => Ok(options),
            Ok(other) => Err(format!("{other:?}")),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn defaults_are_those_of_the_original() {
        let options = run(&[]).unwrap();
        assert_eq!(options.mode, Mode::Build);
        assert_eq!(options.agent.to_string(), "196.254.111.222:69");
        assert_eq!(options.verbose, 1);
    }

    #[test]
    fn the_agent_is_an_address_with_an_optional_port() {
        let agent =
            |text: &str| run(&["--tftp-host", text]).map(|options| options.agent.to_string());
        assert_eq!(agent("10.0.2.2").unwrap(), "10.0.2.2:69");
        assert_eq!(agent("10.0.2.2:6969").unwrap(), "10.0.2.2:6969");
        assert_eq!(agent("[::1]:70").unwrap(), "[::1]:70");
        assert!(
            agent("agent.example")
                .unwrap_err()
                .contains("numbers, not a name")
        );
    }

    #[test]
    fn wrong_use_is_refused() {
        assert!(run(&["--startup", "--bootstrap"]).is_err());
        assert!(run(&["--startup", "extra"]).unwrap_err().contains("extra"));
        assert!(run(&["--verbose", "7"]).is_err());
        assert!(run(&["--unknown"]).is_err());
        assert_eq!(run(&["CC=clang"]).unwrap().arguments, ["CC=clang"]);
    }
}
