//! One running container.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::console::Console;
use super::launch::{Launch, Started};
use super::network::Last;
use crate::bridge::Attached;
use crate::mac::Mac;
use crate::machine::{
    BoxFuture, Error, Exit, ExitCause, MAX_RESETS, Machine, MachineEvent, ShutdownOutcome, Tftp,
};
use crate::qemu::internet::{self, Internet};
use crate::qemu::process;
use crate::warm::Waiting;
use crate::wire::thread::{End, WireEvent, WireThread};

/// nspawn's exit status when the container has asked for a restart.
const RESTART: i32 = 133;
/// The first program is asked again after so long: one that was still starting has not heard it.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// How long a killed container may take to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);
/// How much of the console's end explains a container's end.
const LAST_LINES: usize = 3;

/// What a started machine is made of.
pub(super) struct Parts {
    pub(super) mac: Mac,
    pub(super) launch: Launch,
    pub(super) started: Started,
    pub(super) wire: WireThread,
    /// Our end of the wire's card once more. None: it is on a bridge.
    pub(super) card: Option<Last>,
    pub(super) bridge: Option<Attached>,
    pub(super) internet: Option<Internet>,
    pub(super) console: Console,
}

/// How a container is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspended {
    No,
    /// By the freezer of control groups.
    Frozen,
    /// By a signal to each of its processes.
    Stopped,
}

/// Whether events of the wire are taken, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listen {
    ToWire,
    No,
}

enum Happened {
    /// None: the wire's thread has ended.
    OnWire(Option<WireEvent>),
    Ended(std::io::Result<ExitStatus>),
    Restarted(Result<Started, Error>),
    /// How the way to the internet has ended.
    InternetLost(String),
}

/// A container. Dropping it kills it.
pub(super) struct NspawnMachine {
    mac: Mac,
    started: Started,
    /// The start after a restart, while it goes on.
    restart: Option<BoxFuture<'static, Result<Started, Error>>>,
    restarts: u32,
    suspended: Suspended,
    wire: WireThread,
    wire_over: bool,
    /// After the wire: our end of its card, also for who serves it from its task on.
    card: Option<Last>,
    /// It was let go on with a task.
    has_task: bool,
    /// After the wire, whose port it has mapped.
    _bridge: Option<Attached>,
    internet: Option<Internet>,
    /// Its end was told.
    internet_over: bool,
    console: Console,
    // After the process, which is in its groups.
    launch: Arc<Launch>,
    /// Events that came while something else was waited for.
    backlog: VecDeque<MachineEvent>,
    /// We are ending it.
    forced: bool,
    /// We are ending it since its wire has failed, and how that did.
    cut_off: Option<String>,
    exit: Option<Exit>,
    exit_told: bool,
}

impl std::fmt::Debug for NspawnMachine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NspawnMachine")
            .field("name", &self.launch.name)
            .field("started", &self.started)
            .field("suspended", &self.suspended)
            .field("exit", &self.exit)
            .finish_non_exhaustive()
    }
}

impl NspawnMachine {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            mac: parts.mac,
            started: parts.started,
            restart: None,
            restarts: 0,
            suspended: Suspended::No,
            wire: parts.wire,
            card: parts.card,
            has_task: false,
            wire_over: false,
            _bridge: parts.bridge,
            internet: parts.internet,
            internet_over: false,
            console: parts.console,
            launch: Arc::new(parts.launch),
            backlog: VecDeque::new(),
            forced: false,
            cut_off: None,
            exit: None,
            exit_told: false,
        }
    }

    fn name(&self) -> &str {
        &self.launch.name
    }

    fn ended_error(&self) -> Error {
        Error::Ended {
            machine: self.name().to_owned(),
        }
    }

    /// Waits for whatever happens next: to the container or, if asked to, on its wire. What is
    /// told of it goes to the backlog. Cancel safe.
    async fn step(&mut self, listen: Listen) {
        if self.exit.is_some() {
            return;
        }
        let listens = listen == Listen::ToWire && !self.wire_over;
        let Self {
            started,
            restart,
            wire,
            internet,
            internet_over,
            ..
        } = self;
        let process = async {
            match restart {
                Some(restart) => Happened::Restarted(restart.await),
                None => Happened::Ended(started.process.ended().await),
            }
        };
        let happened = tokio::select! {
            biased;
            event = wire.next(), if listens => Happened::OnWire(event),
            happened = process => happened,
            detail = internet::lost(internet.as_mut()), if !*internet_over => {
                Happened::InternetLost(detail)
            }
        };
        match happened {
            Happened::OnWire(Some(event)) => self.backlog.push_back(event.into()),
            Happened::OnWire(None) => self.cut_off(),
            Happened::Ended(status) => self.ended(status),
            Happened::InternetLost(detail) => {
                self.internet_over = true;
                self.backlog
                    .push_back(MachineEvent::InternetLost { detail });
            }
            Happened::Restarted(restarted) => {
                self.restart = None;
                match restarted {
                    Ok(started) => self.started = started,
                    Err(Error::NotStarted { detail, .. }) => {
                        self.settle(ExitCause::Crashed, &format!("it did not restart: {detail}"));
                    }
                    Err(error) => {
                        self.settle(ExitCause::Crashed, &format!("it did not restart: {error}"));
                    }
                }
            }
        }
    }

    /// The wire has ended before its time: nobody would hear of the container any more,
    /// so it is ended, and that is told.
    fn cut_off(&mut self) {
        self.wire_over = true;
        if self.restart.is_none() && self.started.process.has_ended() {
            // Then it is no wonder, and that is told.
            return;
        }
        let why = self.wire.failure();
        tracing::error!(machine = self.name(), "its wire failed: {why}");
        self.cut_off = Some(why);
        if self.restart.take().is_some() {
            self.settle(ExitCause::Crashed, "nspawn: ended while it restarted");
        } else if let Err(error) = self.started.process.kill() {
            tracing::error!(
                "unable to kill process {}: {error}",
                self.started.process.id()
            );
        }
    }

    /// The process has ended: finds out why.
    fn ended(&mut self, status: Result<ExitStatus, std::io::Error>) {
        let code = status.as_ref().ok().and_then(ExitStatus::code);
        if !self.forced && self.cut_off.is_none() && code == Some(RESTART) {
            self.restarts = self.restarts.saturating_add(1);
            let launch = Arc::clone(&self.launch);
            self.restart = Some(Box::pin(async move { launch.start().await }));
            match self.restarts.cmp(&MAX_RESETS) {
                Ordering::Less => self.backlog.push_back(MachineEvent::Reset),
                Ordering::Equal => self.backlog.push_back(MachineEvent::RebootLoop),
                // Told; whoever lets it go on need not hear of each.
                Ordering::Greater => {}
            }
            return;
        }
        let how = match &status {
            Ok(status) => process::describe(*status),
            Err(error) => format!("unknown status ({error})"),
        };
        let detail = match self.started.process.stderr() {
            said if said.is_empty() => format!("nspawn: {how}"),
            said => format!("nspawn: {how}: {said}"),
        };
        let cause = if self.forced {
            ExitCause::Forced
        } else if status.is_ok_and(|status| status.success()) {
            self.backlog.push_back(MachineEvent::PoweringOff);
            ExitCause::PoweredOff
        } else {
            ExitCause::Crashed
        };
        self.settle(cause, &detail);
    }

    fn settle(&mut self, cause: ExitCause, detail: &str) {
        self.wire.finish();
        let mut detail = match &self.cut_off {
            Some(why) => format!("its wire failed: {why}; {detail}"),
            None => detail.to_owned(),
        };
        if cause == ExitCause::Crashed {
            let last = self.console.last_lines(LAST_LINES);
            if !last.is_empty() {
                detail = format!("{detail}; its console ends with: {last}");
            }
        }
        self.exit = Some(Exit { cause, detail });
    }

    /// Waits for the end until then. Cancel safe. None: it still runs.
    async fn wait_until(&mut self, deadline: Instant) -> Option<&Exit> {
        while self.exit.is_none() {
            let step = self.step(Listen::No);
            tokio::time::timeout_at(deadline, step).await.ok()?;
        }
        self.exit.as_ref()
    }

    async fn next(&mut self) -> MachineEvent {
        loop {
            if let Some(event) = self.backlog.pop_front() {
                return event;
            }
            if let Some(exit) = &self.exit {
                if self.exit_told {
                    return std::future::pending().await;
                }
                // All that the guest had sent counts, and comes first.
                if !self.wire_over {
                    if let Some(event) = self.wire.next().await {
                        return event.into();
                    }
                    self.wire_over = true;
                }
                self.exit_told = true;
                return MachineEvent::Exited(exit.clone());
            }
            self.step(Listen::ToWire).await;
        }
    }

    async fn ask_to_power_off(&mut self, timeout: Duration) -> Result<ShutdownOutcome, Error> {
        let deadline = Instant::now() + timeout;
        if self.exit.is_none() {
            // One that does not run hears nothing.
            self.let_run().await?;
        }
        loop {
            if self.exit.is_none()
                && let Some(leader) = &self.started.leader
            {
                let what = format!("ask machine {} to power off", self.name());
                leader
                    .ask_to_power_off()
                    .map_err(|source| Error::Io { what, source })?;
            }
            let again = deadline.min(Instant::now() + ASK_AGAIN);
            if let Some(exit) = self.wait_until(again).await {
                return Ok(ShutdownOutcome::of(exit));
            }
            if Instant::now() >= deadline {
                return Ok(ShutdownOutcome::TimedOut);
            }
        }
    }

    async fn end(&mut self) -> Result<(), Error> {
        if self.exit.is_some() {
            return Ok(());
        }
        // One that is being started again ends with its future.
        if self.restart.take().is_some() {
            self.forced = true;
            self.settle(ExitCause::Forced, "nspawn: ended while it restarted");
            return Ok(());
        }
        // It may have ended by itself meanwhile: then that is how it ended.
        self.forced = !self.started.process.has_ended();
        let killed = format!(
            "kill machine {} (process {})",
            self.name(),
            self.started.process.id()
        );
        let failed = |source| Error::Io {
            what: killed.clone(),
            source,
        };
        // The first process of all that it has started: the kernel ends them with it.
        self.started.process.kill().map_err(failed)?;
        if self
            .wait_until(Instant::now() + KILL_TIMEOUT)
            .await
            .is_some()
        {
            Ok(())
        } else {
            Err(failed(std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "it does not end though killed",
            )))
        }
    }

    async fn stop(&mut self) -> Result<(), Error> {
        // One that is between two lives can be stopped in the next.
        while self.restart.is_some() {
            self.step(Listen::No).await;
        }
        if self.exit.is_some() || self.started.process.has_ended() {
            return Err(self.ended_error());
        }
        let what = format!("suspend machine {}", self.name());
        let failed = |source| Error::Io { what, source };
        match self.launch.groups.freeze(true).await {
            Some(Ok(())) => self.suspended = Suspended::Frozen,
            Some(Err(error)) => {
                // Half frozen is of no use to anybody.
                let _ = self.launch.groups.freeze(false).await;
                return Err(failed(error));
            }
            None => {
                let leader = self.started.leader.as_ref();
                let leader = leader.ok_or_else(|| self.ended_error())?;
                leader.stop_all(true).map_err(failed)?;
                self.suspended = Suspended::Stopped;
            }
        }
        Ok(())
    }

    async fn let_run(&mut self) -> Result<(), Error> {
        let what = format!("resume machine {}", self.name());
        let failed = |source| Error::Io { what, source };
        match self.suspended {
            Suspended::No => {}
            Suspended::Frozen => {
                if let Some(thawed) = self.launch.groups.freeze(false).await {
                    thawed.map_err(failed)?;
                }
            }
            Suspended::Stopped => {
                if let Some(leader) = &self.started.leader {
                    leader.stop_all(false).map_err(failed)?;
                }
            }
        }
        self.suspended = Suspended::No;
        Ok(())
    }

    async fn serve_again(&mut self, tftp: Tftp, waiting: Waiting) -> Result<(), Error> {
        if self.exit.is_some() || self.restart.is_some() || self.started.process.has_ended() {
            return Err(self.ended_error());
        }
        let what = format!("serve the wire of machine {}", self.name());
        let failed = |source| Error::Io {
            what: what.clone(),
            source,
        };
        let Some(card) = self.card.as_ref().filter(|_| !self.has_task) else {
            return Err(Error::Unrestored {
                why: "its card is on a bridge, or it goes on already".to_owned(),
            });
        };
        let card = card.another().map_err(&failed)?;
        self.has_task = true;
        // What the container has sent before is taken by who served it before.
        self.wire.finish();
        while self.wire.next().await.is_some() {}
        self.backlog.clear();
        self.wire = tftp
            .serve_on(End::Tap(card), Some((self.mac, &waiting)))
            .map_err(&failed)?;
        self.let_run().await
    }
}

impl Machine for NspawnMachine {
    fn mac(&self) -> Mac {
        self.mac
    }

    fn next_event(&mut self) -> BoxFuture<'_, MachineEvent> {
        Box::pin(self.next())
    }

    fn shutdown(&mut self, timeout: Duration) -> BoxFuture<'_, Result<ShutdownOutcome, Error>> {
        Box::pin(self.ask_to_power_off(timeout))
    }

    fn force_down(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.end())
    }

    fn suspend(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.stop())
    }

    fn resume(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            if self.exit.is_some() {
                return Err(self.ended_error());
            }
            self.let_run().await
        })
    }

    fn go_on(&mut self, tftp: Tftp, waiting: Waiting) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.serve_again(tftp, waiting))
    }

    fn wait(&mut self) -> BoxFuture<'_, Exit> {
        Box::pin(async move {
            loop {
                if let Some(exit) = &self.exit {
                    return exit.clone();
                }
                // Other events stay where they are; the wire's wait for room.
                self.step(Listen::No).await;
            }
        })
    }

    fn process(&self) -> Option<u32> {
        self.exit.is_none().then(|| self.started.process.id())
    }

    fn console(&self) -> Option<PathBuf> {
        Some(self.launch.folder.path().join(super::CONSOLE))
    }

    fn last_words(&self) -> String {
        self.console.last_words()
    }

    fn info(&self) -> String {
        let state = match (&self.exit, self.suspended) {
            (Some(exit), _) => exit.to_string(),
            (None, Suspended::No) => "running".to_owned(),
            (None, Suspended::Frozen) => "suspended".to_owned(),
            (None, Suspended::Stopped) => "suspended (its processes are stopped)".to_owned(),
        };
        let console = self.launch.folder.path().join(super::CONSOLE);
        let mut text = format!(
            "machine {} (nspawn): {state}\n\
             process {}, in {}\n\
             console: socat -u UNIX-CONNECT:{} - (Ctrl-C leaves)",
            self.name(),
            self.started.process.id(),
            self.launch.directory.display(),
            console.display(),
        );
        if let Some(shell) = self.shell() {
            text.push_str(&format!("\nshell:   {}", shell.join(" ")));
        }
        text
    }

    fn shell(&self) -> Option<Vec<String>> {
        let leader = self.started.leader.as_ref()?;
        let command = format!("nsenter --target {} --all --root --wd sh", leader.pid);
        let words = command.split(' ').map(str::to_owned).collect();
        self.exit.is_none().then_some(words)
    }
}

impl Drop for NspawnMachine {
    fn drop(&mut self) {
        self.wire.counters().tell(self.name());
    }
}
