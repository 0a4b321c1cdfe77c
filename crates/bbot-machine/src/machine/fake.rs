//! A scripted machine for tests: plays events, records what is asked of it.
//!
//! ```no_run
//! # use std::time::Duration;
//! use bbot_machine::machine::fake::{Fake, Script, Step};
//! use bbot_machine::machine::{Exit, ExitCause, MachineEvent};
//!
//! let fake = Fake::new();
//! fake.add(Script {
//!     steps: vec![
//!         Step::After(Duration::from_secs(3), MachineEvent::Reset),
//!         Step::Silence,
//!     ],
//!     ..Script::default()
//! });
//! // Hand `fake.clone()` to the code under test as its `Hypervisor`, then:
//! assert!(fake.calls().is_empty());
//! ```

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::ThreadId;
use std::time::Duration;

use tokio::time::Instant;

use super::{
    BoxFuture, Error, Exit, ExitCause, Hypervisor, Machine, MachineEvent, Memory, ShutdownOutcome,
    StartSpec, Tftp,
};
use crate::mac::Mac;
use crate::warm::{Base, Waiting};

/// One step of a script.
#[derive(Debug)]
pub enum Step {
    /// This happens at once.
    Now(MachineEvent),
    /// This happens so long after the step before it. Needs tokio's time.
    After(Duration, MachineEvent),
    /// Runs when it is reached, with what the machine was started with: play the
    /// guest here (put an upload where the agent looks for it).
    Do(Action),
    /// Nothing happens any more, until the machine is ended.
    Silence,
}

/// What a [`Step::Do`] does.
pub struct Action(pub Box<dyn FnMut(&StartSpec) + Send>);

impl std::fmt::Debug for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Action")
    }
}

/// What one machine does when it is started.
#[derive(Debug, Default)]
pub struct Script {
    /// Why it does not even start.
    pub start_error: Option<Error>,
    /// What happens, in order; silence after the last.
    pub steps: Vec<Step>,
    /// How it answers the power button.
    pub button: Button,
    /// How long it takes to end when it is forced down. Needs tokio's time.
    pub ends_after: Duration,
    /// What it says on its console.
    pub last_words: String,
}

/// How a scripted machine answers the power button.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Button {
    /// It powers off at once.
    #[default]
    Obeys,
    /// It goes on.
    Ignores,
    /// Its process is killed over it.
    Crashes,
}

/// What was asked of a machine. The number says which: 0 is the first started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// It was started, or its start was tried.
    Start(usize),
    /// The power button, with this time-out.
    Shutdown(usize, Duration),
    /// It was forced down.
    ForceDown(usize),
    /// It was suspended.
    Suspend(usize),
    /// It was resumed.
    Resume(usize),
    /// It was saved.
    Save(usize),
    /// It was let go on with another root.
    GoOn(usize),
    /// It was waited for.
    Wait(usize),
    /// It was dropped.
    Drop(usize),
}

#[derive(Debug, Default)]
struct State {
    scripts: VecDeque<Script>,
    started: Vec<StartSpec>,
    calls: Vec<Call>,
    /// On which thread each machine was dropped.
    drops: Vec<ThreadId>,
}

/// A hypervisor whose machines play scripts. Clones share one record.
#[derive(Debug, Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

impl Fake {
    /// One without scripts: every machine is silent and obeys the power button.
    pub fn new() -> Self {
        Self::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock must not hide its message
        // behind a second panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the script of the next machine that has none.
    pub fn add(&self, script: Script) {
        self.state().scripts.push_back(script);
    }

    /// What was asked so far, in order.
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// What the machines were started with, in order.
    pub fn started(&self) -> Vec<StartSpec> {
        self.state().started.clone()
    }

    /// On which threads machines were dropped, in order.
    pub fn drops(&self) -> Vec<ThreadId> {
        self.state().drops.clone()
    }

    fn record(&self, call: Call) {
        self.state().calls.push(call);
    }
}

impl Hypervisor for Fake {
    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        Box::pin(async move {
            let (number, script) = {
                let mut state = self.state();
                let number = state.started.len();
                state.started.push(spec.clone());
                state.calls.push(Call::Start(number));
                (number, state.scripts.pop_front().unwrap_or_default())
            };
            if let Some(error) = script.start_error {
                return Err(error);
            }
            let mac = spec.mac.unwrap_or(Mac([0x02, 0xfa, 0xce, 0, 0, 1]));
            Ok(Box::new(FakeMachine {
                fake: self.clone(),
                number,
                mac,
                spec,
                steps: script.steps.into(),
                button: script.button,
                ends_after: script.ends_after,
                last_words: script.last_words,
                since: Instant::now(),
                ended: None,
                told: false,
            }) as Box<dyn Machine>)
        })
    }
}

#[derive(Debug)]
struct FakeMachine {
    fake: Fake,
    number: usize,
    mac: Mac,
    spec: StartSpec,
    steps: VecDeque<Step>,
    button: Button,
    ends_after: Duration,
    last_words: String,
    since: Instant,
    ended: Option<Exit>,
    told: bool,
}

impl FakeMachine {
    fn end(&mut self, cause: ExitCause) {
        self.ended.get_or_insert(Exit {
            cause,
            detail: String::new(),
        });
    }

    fn require_running(&self) -> Result<(), Error> {
        match self.ended {
            None => Ok(()),
            Some(_) => Err(Error::Ended {
                machine: self.spec.manifest.header.name.clone(),
            }),
        }
    }

    async fn step(&mut self) -> MachineEvent {
        loop {
            if let Some(exit) = &self.ended {
                if self.told {
                    return std::future::pending().await;
                }
                self.told = true;
                return MachineEvent::Exited(exit.clone());
            }
            // A step is taken off only once it is over: that keeps this cancel safe.
            let after = match self.steps.front() {
                None | Some(Step::Silence) => return std::future::pending().await,
                Some(Step::After(after, _)) => Some(*after),
                Some(Step::Now(_) | Step::Do(_)) => None,
            };
            if let Some(after) = after {
                tokio::time::sleep_until(self.since + after).await;
                self.since = Instant::now();
            }
            match self.steps.pop_front() {
                Some(Step::Now(event) | Step::After(_, event)) => {
                    if let MachineEvent::Exited(exit) = &event {
                        self.ended = Some(exit.clone());
                        continue;
                    }
                    return event;
                }
                Some(Step::Do(mut action)) => (action.0)(&self.spec),
                Some(Step::Silence) | None => {}
            }
        }
    }
}

impl Machine for FakeMachine {
    fn mac(&self) -> Mac {
        self.mac
    }

    fn last_words(&self) -> String {
        self.last_words.clone()
    }

    fn next_event(&mut self) -> BoxFuture<'_, MachineEvent> {
        Box::pin(self.step())
    }

    fn shutdown(&mut self, timeout: Duration) -> BoxFuture<'_, Result<ShutdownOutcome, Error>> {
        Box::pin(async move {
            self.fake.record(Call::Shutdown(self.number, timeout));
            if self.ended.is_none() {
                match self.button {
                    Button::Obeys => self.end(ExitCause::PoweredOff),
                    Button::Crashes => self.end(ExitCause::Crashed),
                    Button::Ignores => tokio::time::sleep(timeout).await,
                }
            }
            Ok(match &self.ended {
                Some(exit) => ShutdownOutcome::of(exit),
                None => ShutdownOutcome::TimedOut,
            })
        })
    }

    fn force_down(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.fake.record(Call::ForceDown(self.number));
            if !self.ends_after.is_zero() {
                tokio::time::sleep(self.ends_after).await;
            }
            self.end(ExitCause::Forced);
            Ok(())
        })
    }

    fn suspend(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.fake.record(Call::Suspend(self.number));
            self.require_running()
        })
    }

    fn save(&mut self, waiting: Waiting) -> BoxFuture<'_, Result<Base, Error>> {
        Box::pin(async move {
            self.fake.record(Call::Save(self.number));
            self.require_running()?;
            let unsaved = |why: String| Error::Unsaved { why };
            if !matches!(self.spec.memory, Memory::ToBeSaved) {
                return Err(unsaved("it was not started to be saved".to_owned()));
            }
            self.end(ExitCause::Forced);
            Base::scripted(self.spec.cpus, self.spec.ram_kib, waiting)
                .map_err(|error| unsaved(error.to_string()))
        })
    }

    fn go_on(&mut self, tftp: Tftp, _: Waiting) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.fake.record(Call::GoOn(self.number));
            self.spec.tftp = tftp;
            self.require_running()
        })
    }

    fn resume(&mut self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            self.fake.record(Call::Resume(self.number));
            self.require_running()
        })
    }

    fn wait(&mut self) -> BoxFuture<'_, Exit> {
        Box::pin(async move {
            self.fake.record(Call::Wait(self.number));
            loop {
                if let Some(exit) = &self.ended {
                    return exit.clone();
                }
                // Whoever waits has no interest in what happens before the end.
                self.step().await;
                self.told = false;
            }
        })
    }

    fn info(&self) -> String {
        format!("machine {} (scripted)", self.spec.manifest.header.name)
    }
}

impl Drop for FakeMachine {
    fn drop(&mut self) {
        self.fake.record(Call::Drop(self.number));
        let mut state = self.fake.state();
        state.drops.push(std::thread::current().id());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accel::Accelerator;
    use crate::machine::{Disk, Network};

    fn spec() -> StartSpec {
        let manifest = bbot_manifest::MachineManifest::parse(
            b": 1\nid: a-1\nname: a\nsummary: A\ntype: kvm\n",
            "manifest",
        );
        StartSpec {
            directory: "/nowhere".into(),
            manifest: manifest.unwrap(),
            mac: None,
            cpus: 1,
            ram_kib: 1024,
            network: Network::None,
            accelerator: Accelerator::Tcg,
            disk: Disk::ThrowAway,
            memory: Memory::Booted,
            tftp: Tftp {
                root: bbot_tftp::Root::new(),
                limits: bbot_tftp::Limits::wire(),
            },
            run_dir: "/nowhere".into(),
            user: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_script_is_played_and_recorded() {
        let fake = Fake::new();
        fake.add(Script {
            steps: vec![
                Step::After(Duration::from_secs(30), MachineEvent::Reset),
                Step::Now(MachineEvent::Panicked),
            ],
            button: Button::Ignores,
            ..Script::default()
        });
        fake.add(Script {
            start_error: Some(Error::NoDisk {
                directory: "/nowhere".into(),
            }),
            ..Script::default()
        });
        let mut machine = fake.start(spec()).await.unwrap();
        assert!(matches!(
            fake.start(spec()).await,
            Err(Error::NoDisk { .. })
        ));

        // Cancelled waits lose no event.
        let began = Instant::now();
        let early = tokio::time::timeout(Duration::from_secs(20), machine.next_event()).await;
        assert!(early.is_err(), "{early:?}");
        assert_eq!(machine.next_event().await, MachineEvent::Reset);
        assert_eq!(began.elapsed().as_secs(), 30);
        assert_eq!(machine.next_event().await, MachineEvent::Panicked);
        let timeout = Duration::from_secs(7);
        assert_eq!(
            machine.shutdown(timeout).await.unwrap(),
            ShutdownOutcome::TimedOut
        );
        machine.force_down().await.unwrap();
        assert!(matches!(machine.suspend().await, Err(Error::Ended { .. })));
        let exit = machine.wait().await;
        assert_eq!(exit.cause, ExitCause::Forced);
        assert_eq!(machine.next_event().await, MachineEvent::Exited(exit));
        drop(machine);
        assert_eq!(
            fake.calls(),
            [
                Call::Start(0),
                Call::Start(1),
                Call::Shutdown(0, timeout),
                Call::ForceDown(0),
                Call::Suspend(0),
                Call::Wait(0),
                Call::Drop(0),
            ]
        );
    }
}
