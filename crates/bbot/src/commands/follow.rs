//! Following the log of a build until it is built: what `bbot log --follow` and `bbot submit --follow` do.

use std::{
    io::{IsTerminal, Write},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use super::log;
use crate::{
    api::{Api, Build, FollowError, Following, events::Event},
    progress::Progress,
};

/// The first pause before a lost connection is tried again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A controller that is not back after so long is given up. A restart takes seconds, an update minutes.
const PATIENCE: Duration = Duration::from_secs(600);

/// Prints the log of a build as it grows, on standard output, until it is built or cancelled; the build then.
pub(crate) async fn follow(api: &Api, id: &str, operation: Option<&str>) -> Result<Build> {
    let mut printer = Printer::new(operation.is_none());
    printer.say("waiting for the controller");
    let mut from: Option<String> = None;
    let mut pause = FIRST_PAUSE;
    let mut lost: Option<Instant> = None;
    loop {
        let broken = match api.follow(id, operation, from.as_deref()).await {
            Ok(mut following) => {
                lost = None;
                match watch(&mut following, &mut printer, &mut from, &mut pause).await? {
                    Watched::Over => break,
                    Watched::Broken(error) => error,
                }
            }
            Err(FollowError::Final(error)) => return Err(error),
            // Nothing was there to begin with: that is no restart.
            Err(FollowError::Again(error)) if lost.is_none() && from.is_none() => {
                return Err(error);
            }
            Err(FollowError::Again(error)) => error,
        };
        let since = *lost.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE {
            return Err(broken).with_context(|| {
                format!(
                    "the connection to the controller is lost for {} minutes: go on later with `bbot log {id} --follow`",
                    PATIENCE.as_secs() / 60
                )
            });
        }
        printer.say("the connection to the controller is lost: trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
        // From here on a refused connection is a restart, also when nothing had been printed yet.
        from.get_or_insert_with(|| "0.0".to_string());
    }
    printer.finish()?;
    let build = api.build(id).await?;
    // Nothing came while it was built: its agent sends no log, or it was built before.
    if !printer.printed && !build.is_cancelled() {
        match api.log(id, operation).await {
            Ok(text) => log::print(&text)?,
            Err(error) if operation.is_some() => return Err(error),
            Err(error) => bail!("the build is done, but its log cannot be read: {error:#}"),
        }
    }
    Ok(build)
}

enum Watched {
    Over,
    Broken(anyhow::Error),
}

/// Prints what comes, until the end of the build or of the connection.
async fn watch(
    following: &mut Following,
    printer: &mut Printer,
    from: &mut Option<String>,
    pause: &mut Duration,
) -> Result<Watched> {
    loop {
        let event = match following.next().await {
            Ok(event) => event,
            Err(error) => return Ok(Watched::Broken(error)),
        };
        *pause = FIRST_PAUSE;
        match event {
            Event::State {
                state,
                agent,
                machine,
            } => printer.state(&state, agent.as_deref(), machine.as_deref()),
            Event::Log {
                id,
                operation,
                bytes,
            } => {
                printer.log(&operation, &bytes)?;
                *from = Some(id);
            }
            Event::Gap {
                id,
                left_out,
                missing,
            } => {
                printer.gap(left_out, missing)?;
                *from = Some(id);
            }
            Event::End => return Ok(Watched::Over),
        }
    }
}

/// The log on standard output, and a word on what is waited for on standard error until it begins.
struct Printer {
    /// Whether each operation's log is under a line with its name.
    headings: bool,
    spinner: Option<Progress>,
    operation: String,
    /// Text up to the next newline.
    pending: Vec<u8>,
    printed: bool,
    /// Whether it has been with an agent.
    begun: bool,
}

impl Printer {
    fn new(headings: bool) -> Printer {
        Printer {
            headings,
            spinner: None,
            operation: String::new(),
            pending: Vec::new(),
            printed: false,
            begun: false,
        }
    }

    /// Says what is waited for, where somebody looks.
    fn say(&mut self, text: &str) {
        match &self.spinner {
            Some(spinner) => spinner.set(text),
            None => {
                self.spinner = Some(Progress::start(text, !std::io::stderr().is_terminal()));
            }
        }
    }

    fn state(&mut self, state: &str, agent: Option<&str>, machine: Option<&str>) {
        let plain = |text: &str| bbot_manifest::log_text(text.as_bytes());
        match state {
            "building" => {
                self.begun = true;
                let agent = agent.map(plain).unwrap_or_default();
                let machine = machine.map(plain).unwrap_or_default();
                self.say(&format!("{agent} builds it on {machine}"));
            }
            "queued" if self.begun => {
                self.say("it is queued again: its agent was stopped or is not heard of");
            }
            "queued" => self.say("waiting for an agent"),
            _ => {}
        }
    }

    fn log(&mut self, operation: &str, bytes: &[u8]) -> Result<()> {
        self.spinner = None;
        if operation != self.operation {
            self.print(true)?;
            self.operation = operation.to_string();
            if self.headings {
                let operation = bbot_manifest::log_text(operation.as_bytes());
                write(&format!("==== {operation} ====\n"))?;
            }
        }
        self.printed = true;
        self.pending.extend_from_slice(bytes);
        self.print(false)
    }

    fn gap(&mut self, left_out: u64, missing: u64) -> Result<()> {
        self.print(true)?;
        let what = match left_out {
            0 => format!("{missing} pieces of the log are missing"),
            _ => format!("{left_out} bytes are left out here"),
        };
        write(&format!("==== ... {what} ... ====\n"))
    }

    /// Prints what is complete: whole lines, so that neither a character nor an escape sequence is cut in two. A
    /// guest's bytes never reach the terminal as they are.
    fn print(&mut self, all: bool) -> Result<()> {
        let end = match (all, self.pending.iter().rposition(|&b| b == b'\n')) {
            (true, _) => self.pending.len(),
            (false, Some(newline)) => newline + 1,
            // Something without lines: better in pieces than never.
            (false, None) if self.pending.len() > 64 * 1024 => self.pending.len(),
            (false, None) => return Ok(()),
        };
        if end == 0 {
            return Ok(());
        }
        let mut text = bbot_manifest::log_text(&self.pending[..end]);
        self.pending.drain(..end);
        if all && !text.ends_with('\n') {
            text.push('\n');
        }
        write(&text)
    }

    fn finish(&mut self) -> Result<()> {
        self.spinner = None;
        self.print(true)
    }
}

fn write(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write the log")
}
