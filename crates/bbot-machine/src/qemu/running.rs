//! One running machine in QEMU.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use tokio::time::Instant;

use super::events;
use super::internet::{self, Internet};
use super::memory::{self, Saving};
use super::process::{self, Process};
use super::qmp::{self, Qmp};
use super::words::Words;
use super::{Sockets, trying};
use crate::accel::Accelerator;
use crate::bridge::Attached;
use crate::mac::Mac;
use crate::machine::{
    BoxFuture, Error, Exit, ExitCause, MAX_RESETS, Machine, MachineEvent, ShutdownOutcome, Tftp,
};
use crate::warm::{Base, Waiting};
use crate::wire::thread::{End, WireThread};

/// How long QEMU may take to answer; it answers at once unless the host is
/// swamped or a disk hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// The power button is pressed again after so long: a guest that was still
/// booting has not heard it.
const BUTTON_AGAIN: Duration = Duration::from_secs(5);
/// How long QEMU may take to end when it is told to; then it is killed.
const QUIT_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a killed process may take to go.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether the guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Suspended,
    Panicked,
    /// Halted by QEMU: the host has no room for what it writes.
    DiskFull,
}

/// What a started machine is made of.
pub(super) struct Parts {
    pub(super) name: String,
    pub(super) directory: PathBuf,
    pub(super) mac: Mac,
    pub(super) accelerator: Accelerator,
    pub(super) keeps_disk: bool,
    pub(super) process: Process,
    pub(super) qmp: Qmp,
    pub(super) events: events::Receiver,
    pub(super) wire: WireThread,
    pub(super) again: Option<OwnedFd>,
    pub(super) bridge: Option<Attached>,
    pub(super) internet: Option<Internet>,
    pub(super) sockets: Sockets,
    pub(super) words: Words,
    pub(super) saving: Option<Saving>,
}

/// A machine in QEMU. Dropping it kills QEMU and ends the wire's thread.
#[derive(Debug)]
pub(super) struct QemuMachine {
    name: String,
    directory: PathBuf,
    mac: Mac,
    accelerator: Accelerator,
    keeps_disk: bool,
    state: State,
    // Dropped in this order: QEMU first, then what served it.
    process: Process,
    qmp: Qmp,
    events: events::Receiver,
    events_over: bool,
    wire: WireThread,
    wire_over: bool,
    /// What a restored guest can be served over once more.
    again: Option<OwnedFd>,
    /// After the wire, whose port it has mapped.
    _bridge: Option<Attached>,
    internet: Option<Internet>,
    /// Its end was told.
    internet_over: bool,
    sockets: Sockets,
    words: Words,
    /// It can be saved.
    saving: Option<Saving>,
    /// How often the guest has restarted itself.
    resets: u32,
    /// That the host is full was told, and the guest halted since.
    disk_full_told: bool,
    /// Events that came while something else was waited for.
    backlog: VecDeque<MachineEvent>,
    /// The guest powered off, says QEMU.
    powered_off: bool,
    /// We are ending it.
    forced: bool,
    /// We are ending it since its wire has failed, and how that did.
    cut_off: Option<String>,
    exit: Option<Exit>,
    exit_told: bool,
}

impl QemuMachine {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            name: parts.name,
            directory: parts.directory,
            mac: parts.mac,
            accelerator: parts.accelerator,
            keeps_disk: parts.keeps_disk,
            state: State::Running,
            process: parts.process,
            qmp: parts.qmp,
            events: parts.events,
            events_over: false,
            wire: parts.wire,
            wire_over: false,
            again: parts.again,
            _bridge: parts.bridge,
            internet: parts.internet,
            internet_over: false,
            sockets: parts.sockets,
            words: parts.words,
            saving: parts.saving,
            resets: 0,
            disk_full_told: false,
            backlog: VecDeque::new(),
            powered_off: false,
            forced: false,
            cut_off: None,
            exit: None,
            exit_told: false,
        }
    }

    async fn execute(&mut self, command: &str, timeout: Duration) -> Result<(), Error> {
        match self.qmp.execute(command, None, timeout).await {
            Ok(_) => Ok(()),
            Err(qmp::QmpError::Closed) => Err(self.ended_error()),
            Err(qmp::QmpError::Timeout) => Err(Error::NoAnswer {
                machine: self.name.clone(),
                command: command.to_owned(),
                timeout,
            }),
            Err(error) => Err(Error::Refused {
                machine: self.name.clone(),
                command: command.to_owned(),
                reason: error.to_string(),
            }),
        }
    }

    fn ended_error(&self) -> Error {
        Error::Ended {
            machine: self.name.clone(),
        }
    }

    fn require_running(&self) -> Result<(), Error> {
        match self.exit {
            None => Ok(()),
            Some(_) => Err(self.ended_error()),
        }
    }

    /// Takes note of what QEMU tells. None: nothing the agent cares for.
    fn note(&mut self, event: &qmp::Event) -> Option<MachineEvent> {
        tracing::debug!(machine = self.name, "QEMU: {} {}", event.name, event.data);
        let by_guest = event.data.get("guest").and_then(serde_json::Value::as_bool);
        match event.name.as_str() {
            "SHUTDOWN" if by_guest == Some(true) => {
                self.powered_off = true;
                Some(MachineEvent::PoweringOff)
            }
            "RESET" if by_guest == Some(true) => {
                let before = self.resets;
                self.resets = self.resets.saturating_add(event.times);
                if before < MAX_RESETS && self.resets >= MAX_RESETS {
                    Some(MachineEvent::RebootLoop)
                } else if before < MAX_RESETS {
                    Some(MachineEvent::Reset)
                } else {
                    // Told; whoever lets it go on need not hear of each.
                    None
                }
            }
            // QEMU halts a guest whose disk has no room on the host
            // (`werror=enospc`); other errors are the guest's to deal with.
            "BLOCK_IO_ERROR" if event.data["action"] == "stop" && !self.disk_full_told => {
                // Other writes that were under way fail as well; that is the
                // same halt, until the guest goes on.
                self.disk_full_told = true;
                self.state = State::DiskFull;
                Some(MachineEvent::DiskFull {
                    detail: disk_error(&event.data),
                })
            }
            "RESUME" => {
                self.disk_full_told = false;
                None
            }
            "GUEST_PANICKED" => {
                self.state = State::Panicked;
                Some(MachineEvent::Panicked)
            }
            _ => None,
        }
    }

    /// QEMU has ended: finds out why.
    async fn settle(&mut self, status: Result<ExitStatus, std::io::Error>) {
        // What it said last is still in the socket; its end is there as well.
        while !self.events_over {
            let last = tokio::time::timeout(Duration::from_secs(1), self.events.recv()).await;
            match last {
                Ok(Some(event)) => {
                    if let Some(event) = self.note(&event) {
                        self.backlog.push_back(event);
                    }
                }
                Ok(None) | Err(_) => self.events_over = true,
            }
        }
        self.wire.finish();
        let cause = if self.forced {
            ExitCause::Forced
        } else if self.powered_off && status.as_ref().is_ok_and(ExitStatus::success) {
            ExitCause::PoweredOff
        } else {
            ExitCause::Crashed
        };
        let how = match status {
            Ok(status) => process::describe(status),
            Err(error) => format!("unknown status ({error})"),
        };
        let detail = match self.process.stderr() {
            said if said.is_empty() => format!("QEMU: {how}"),
            said => format!("QEMU: {how}: {said}"),
        };
        let detail = match &self.cut_off {
            Some(why) => format!("its wire failed: {why}; {detail}"),
            None => detail,
        };
        self.exit = Some(Exit { cause, detail });
    }

    /// The wire has ended before its time: nobody would hear of the guest any more, so
    /// QEMU is ended, and that is told.
    fn cut_off(&mut self) {
        self.wire_over = true;
        if self.process.has_ended() {
            // Then it is no wonder, and that is told.
            return;
        }
        let why = self.wire.failure();
        tracing::error!(machine = self.name, "its wire failed: {why}");
        self.cut_off = Some(why);
        if let Err(error) = self.process.kill() {
            tracing::error!("unable to kill process {}: {error}", self.process.id());
        }
    }

    /// Waits for QEMU's end for so long. Cancel safe. None: it still runs.
    async fn wait_until(&mut self, deadline: Instant) -> Option<&Exit> {
        if self.exit.is_none() {
            let ended = tokio::time::timeout_at(deadline, self.process.ended()).await;
            self.settle(ended.ok()?).await;
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
            tokio::select! {
                biased;
                event = self.wire.next(), if !self.wire_over => match event {
                    Some(event) => return event.into(),
                    None => self.cut_off(),
                },
                event = self.events.recv(), if !self.events_over => match event {
                    Some(event) => if let Some(event) = self.note(&event) {
                        return event;
                    },
                    None => self.events_over = true,
                },
                status = self.process.ended() => self.settle(status).await,
                detail = internet::lost(self.internet.as_mut()), if !self.internet_over => {
                    self.internet_over = true;
                    return MachineEvent::InternetLost { detail };
                }
            }
        }
    }

    async fn press_button(&mut self, timeout: Duration) -> Result<ShutdownOutcome, Error> {
        let deadline = Instant::now() + timeout;
        if matches!(self.state, State::Suspended | State::DiskFull) && self.exit.is_none() {
            // A guest that does not run hears no button.
            self.execute("cont", ANSWER_TIMEOUT).await?;
            self.state = State::Running;
        }
        loop {
            if self.exit.is_none() {
                match self
                    .execute("system_powerdown", ANSWER_TIMEOUT.min(timeout))
                    .await
                {
                    // QEMU may be busy, or ending: the wait below tells.
                    Ok(()) | Err(Error::NoAnswer { .. } | Error::Ended { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            let again = deadline.min(Instant::now() + BUTTON_AGAIN);
            if let Some(exit) = self.wait_until(again).await {
                return Ok(ShutdownOutcome::of(exit));
            }
            if Instant::now() >= deadline {
                return Ok(ShutdownOutcome::TimedOut);
            }
        }
    }

    async fn serve_again(&mut self, tftp: Tftp, waiting: Waiting) -> Result<(), Error> {
        self.require_running()?;
        let Some(socket) = self.again.take() else {
            return Err(Error::Unrestored {
                why: "it was not restored, or goes on already".to_owned(),
            });
        };
        // What the guest has sent before is taken by who served it before.
        self.wire.finish();
        while self.wire.next().await.is_some() {}
        self.backlog.clear();
        self.wire = tftp
            .serve_on(End::Socket(socket), Some((self.mac, &waiting)))
            .map_err(trying(format!("serve the wire of machine {}", self.name)))?;
        self.execute("cont", ANSWER_TIMEOUT).await?;
        self.state = State::Running;
        Ok(())
    }

    async fn save_and_end(&mut self, waiting: Waiting) -> Result<Base, Error> {
        self.require_running()?;
        let Some(saving) = self.saving.take() else {
            return Err(Error::Unsaved {
                why: "it was not started to be saved".to_owned(),
            });
        };
        self.execute("stop", ANSWER_TIMEOUT).await?;
        self.state = State::Suspended;
        let mut others = Vec::new();
        let (qmp, events) = (&mut self.qmp, &mut self.events);
        let saved = memory::save(saving, waiting, qmp, events, &mut others).await;
        for event in others {
            if let Some(event) = self.note(&event) {
                self.backlog.push_back(event);
            }
        }
        // Whatever became of it: nothing more may change on the disk.
        self.end().await?;
        // QEMU had the memory mapped until now.
        saved?.into_base()
    }

    async fn end(&mut self) -> Result<(), Error> {
        if self.exit.is_some() {
            return Ok(());
        }
        // It may have ended by itself meanwhile: then that is how it ended.
        self.forced = !self.process.has_ended();
        if self.forced && self.keeps_disk {
            // Lets QEMU write out what it holds. Whether it heard is seen by its end.
            let _ = self.execute("quit", QUIT_TIMEOUT).await;
            if self
                .wait_until(Instant::now() + QUIT_TIMEOUT)
                .await
                .is_some()
            {
                return Ok(());
            }
        }
        let killed = format!("kill machine {} (process {})", self.name, self.process.id());
        self.process.kill().map_err(trying(killed.clone()))?;
        if self
            .wait_until(Instant::now() + KILL_TIMEOUT)
            .await
            .is_some()
        {
            Ok(())
        } else {
            let still_there = std::io::Error::new(
                std::io::ErrorKind::TimedOut,
                "it does not end though killed",
            );
            Err(trying(killed)(still_there))
        }
    }
}

impl Machine for QemuMachine {
    fn mac(&self) -> Mac {
        self.mac
    }

    fn next_event(&mut self) -> BoxFuture<'_, MachineEvent> {
        Box::pin(self.next())
    }

    fn shutdown(&mut self, timeout: Duration) -> BoxFuture<'_, Result<ShutdownOutcome, Error>> {
        Box::pin(self.press_button(timeout))
    }

    fn force_down(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.end())
    }

    fn suspend(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.require_running()?;
            self.execute("stop", ANSWER_TIMEOUT).await?;
            if self.state == State::Running {
                self.state = State::Suspended;
            }
            Ok(())
        })
    }

    fn resume(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.require_running()?;
            self.execute("cont", ANSWER_TIMEOUT).await?;
            self.state = State::Running;
            Ok(())
        })
    }

    fn save(&mut self, waiting: Waiting) -> BoxFuture<'_, Result<Base, Error>> {
        Box::pin(self.save_and_end(waiting))
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
                let status = self.process.ended().await;
                self.settle(status).await;
            }
        })
    }

    fn info(&self) -> String {
        let state = match (&self.exit, self.state) {
            (Some(exit), _) => exit.to_string(),
            (None, State::Running) => "running".to_owned(),
            (None, State::Suspended) => "suspended".to_owned(),
            (None, State::Panicked) => "halted after a panic of its kernel".to_owned(),
            (None, State::DiskFull) => "halted, since its disk has no room on the host".to_owned(),
        };
        let console = self.sockets.console();
        let screen = self.sockets.screen();
        format!(
            "machine {} ({}): {state}\n\
             process {}, in {}\n\
             console: socat -,raw,echo=0,escape=0x1d UNIX-CONNECT:{} (Ctrl-] leaves)\n\
             screen:  socat TCP-LISTEN:5900,bind=127.0.0.1 UNIX-CONNECT:{}, then VNC to 127.0.0.1:5900",
            self.name,
            self.accelerator,
            self.process.id(),
            self.directory.display(),
            console.display(),
            screen.display(),
        )
    }

    fn process(&self) -> Option<u32> {
        self.exit.is_none().then(|| self.process.id())
    }

    fn console(&self) -> Option<PathBuf> {
        Some(self.sockets.console())
    }

    fn screen(&self) -> Option<PathBuf> {
        Some(self.sockets.screen())
    }

    fn last_words(&self) -> String {
        self.words.text()
    }
}

/// What QEMU says of a disk that failed, for people.
fn disk_error(data: &serde_json::Value) -> String {
    let word = |name: &str| data.get(name).and_then(serde_json::Value::as_str);
    let device = word("device")
        .filter(|name| !name.is_empty())
        .or_else(|| word("node-name"))
        .unwrap_or("its disk");
    let reason = word("reason").unwrap_or("no room on the host");
    format!("{device}: {reason}")
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        self.wire.counters().tell(&self.name);
    }
}
