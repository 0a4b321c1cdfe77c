//! The loop: what happens becomes events for the supervisor, its actions become
//! futures.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::answers::Pledge;
use super::ask::Answered;
use super::begin::Looked;
use super::work::{BootstrapEnded, Shown, TaskEnded};
use super::{Agent, steer};
use crate::control::{Signal, Signals};
use crate::prepared::{Prepared, Unprepared};
use crate::resources::Level;
use crate::run::Share;
use crate::status::RunKind;
use crate::supervisor::{
    Action, Answer, AskId, BootstrapOutcome, Event, IdleReason, Outcome, Report, RunId, Time,
};

/// When the agent ends, what waits is sent and tasks are given back within this time;
/// if that fails, at the next start.
const LAST_SENDS: Duration = Duration::from_secs(5);

/// When the agent ends, suspended machines and copies are gone within this time; if
/// not, the next start removes them.
const LAST_CLEANING: Duration = Duration::from_secs(60);

/// A request on its way.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) controller: String,
    pub(super) cancel: CancellationToken,
    pub(super) since: Instant,
    pub(super) is_held: bool,
}

/// A machine that runs.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) what: RunKind,
    pub(super) machine: String,
    pub(super) share: Share,
    pub(super) since: Instant,
    pub(super) stop: CancellationToken,
    pub(super) shown: Shown,
    pub(super) pledge: Pledge,
}

/// What a job is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Job {
    Look,
    Ask(AskId),
    Task(RunId),
    Bootstrap(RunId),
    GiveBack,
    Prepare,
    Measure,
    Sweep,
}

/// What a job has come to.
#[derive(Debug)]
pub(super) enum Happened {
    Looked(Looked),
    Answered(Answered),
    TaskEnded(Box<TaskEnded>),
    BootstrapEnded(Box<BootstrapEnded>),
    GaveBack,
    Prepared(Box<Result<Prepared, Unprepared>>),
    Measured(Box<crate::resources::Facts>),
    Swept,
}

impl Agent {
    pub(super) fn now(&self) -> Time {
        self.begin.elapsed()
    }

    pub(super) fn tell(&mut self, event: Event) {
        let now = self.now();
        self.supervisor.handle(event, now);
    }

    /// The loop. Ends when the agent was told to, and all has ended; or with what the
    /// operator must mend.
    pub(super) async fn drive(&mut self, signals: &mut Signals) -> Result<()> {
        self.tell(Event::Tick);
        self.measure();
        let mut is_ready = false;
        loop {
            if self.act()? {
                return Ok(());
            }
            if !is_ready && self.has_looked {
                is_ready = true;
                self.steering.ready();
            }
            if self.steering.is_overdue(Instant::now()) {
                tracing::warn!("not all that runs has ended in time; the next start sees to it");
                return Ok(());
            }
            self.show();
            self.step(signals).await?;
        }
    }

    /// Waits for the next thing that happens.
    pub(super) async fn step(&mut self, signals: &mut Signals) -> Result<()> {
        self.steering.progress();
        let wake = self.wake();
        let changed = Arc::clone(&self.changed);
        let watch = self.watch.clone();
        let (results, is_full) = (self.context.results.clone(), self.steering.is_full);
        tokio::select! {
            biased;
            signal = signals.next() => self.signal(signal).await,
            Some(done) = self.jobs.join_next_with_id() => self.joined(done),
            () = self.suspended.ended() => Ok(()),
            command = self.steering.next_command() => {
                self.command(command);
                Ok(())
            }
            () = changed.notified() => Ok(()),
            () = async {
                match &watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            } => {
                self.tell(Event::MachinesChanged);
                Ok(())
            }
            () = async {
                match &results {
                    Some(results) => results.until_full_is(!is_full).await,
                    None => std::future::pending().await,
                }
            } => {
                self.tell_host_state();
                Ok(())
            }
            () = async {
                match wake {
                    Some(wake) => sleep_until(wake).await,
                    None => std::future::pending().await,
                }
            } => {
                self.tick();
                Ok(())
            }
        }
    }

    /// When something is due next.
    pub(super) fn wake(&self) -> Option<Instant> {
        let deadline = self.supervisor.next_deadline();
        [
            deadline.and_then(|at| self.begin.checked_add(at)),
            self.look_again,
            self.steering.due(),
            self.sweeping.due(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.look_again.is_some_and(|at| at <= now) {
            self.look_again = None;
            self.look();
        }
        if self.steering.is_measuring_due(now) {
            self.measure();
        }
        self.stop_drained(now);
        self.sweep(now);
        self.tell(Event::Tick);
    }

    async fn signal(&mut self, signal: Signal) -> Result<()> {
        match signal {
            Signal::Drain => {
                let within = self.context.host.options.drain_timeout();
                tracing::info!(
                    "no new tasks; what runs may finish within {} s",
                    within.as_secs()
                );
                self.steering.stopping(within + LAST_SENDS + LAST_CLEANING);
                let deadline = self.now().saturating_add(within);
                self.tell(Event::Drain { deadline });
            }
            Signal::Stop => {
                tracing::info!("agent stopped");
                self.steering.stopping(LAST_SENDS + LAST_CLEANING);
                self.tell(Event::Stop);
            }
            Signal::Reload => self.reload().await,
        }
        Ok(())
    }

    /// Does what the supervisor has decided. Tells whether all has ended.
    pub(super) fn act(&mut self) -> Result<bool> {
        while let Some(action) = self.supervisor.poll_action() {
            match action {
                Action::Exit => return Ok(true),
                Action::Enumerate => self.look(),
                Action::Ask {
                    ask,
                    controller,
                    machines,
                    hold,
                    within,
                } => self.ask(ask, &controller, &machines, hold, within)?,
                Action::CancelAsk { ask } => {
                    if let Some(asking) = self.asks.get(&ask) {
                        asking.cancel.cancel();
                    }
                }
                Action::StartTask {
                    run,
                    ask,
                    machine,
                    cpus,
                    ram_kib,
                } => self.start_task(run, ask, &machine, Share { cpus, ram_kib })?,
                Action::GiveBack { ask, why } => self.give_back(ask, why),
                Action::StartBootstrap {
                    run,
                    machine,
                    cpus,
                    ram_kib,
                } => self.start_bootstrap(run, &machine, Share { cpus, ram_kib }),
                Action::Interrupt { run, why } => {
                    if let Some(run) = self.runs.get(&run) {
                        tracing::info!("machine {} is interrupted: {why}", run.machine);
                        run.stop.cancel();
                    }
                }
                Action::Report(report) => tell_people(&report, &self.context.host),
            }
            if self.is_done {
                self.tell(Event::Stop);
            }
        }
        self.prepare();
        Ok(false)
    }

    pub(super) fn spawn(
        &mut self,
        job: Job,
        work: impl Future<Output = Happened> + Send + 'static,
    ) {
        let handle = self.jobs.spawn(work);
        self.names.insert(handle.id(), job);
    }

    /// Something has ended.
    pub(super) fn joined(
        &mut self,
        done: Result<(tokio::task::Id, Happened), JoinError>,
    ) -> Result<()> {
        let happened = match done {
            Ok((id, happened)) => {
                self.names.remove(&id);
                happened
            }
            Err(e) => {
                let job = self.names.remove(&e.id());
                tracing::error!("a fault of this program, in {job:?}: {e}");
                return self.panicked(job);
            }
        };
        match happened {
            Happened::Looked(scan) => self.looked(scan)?,
            Happened::Answered(answered) => self.answered(answered),
            Happened::TaskEnded(ended) => {
                let run = self.runs.remove(&ended.run);
                self.seen.task_ended(run, &ended);
                self.keep(ended.keep);
                if let Some(of) = ended.unready {
                    self.stock.failed(of);
                }
                if self.context.host.bases.has_news() {
                    self.tell(Event::MachinesChanged);
                }
                if let Some(text) = ended.dump {
                    self.print(&text)?;
                }
                // Its result may have been one too many for the spool.
                self.tell_host_state();
                self.tell(Event::RunEnded {
                    run: ended.run,
                    outcome: ended.outcome,
                });
                if self.is_done {
                    self.tell(Event::Stop);
                }
            }
            Happened::BootstrapEnded(ended) => {
                let run = self.runs.remove(&ended.run);
                self.seen.bootstrap_ended(run, &ended.outcome);
                self.keep(ended.keep);
                self.tell(Event::BootstrapEnded {
                    run: ended.run,
                    outcome: ended.outcome,
                });
            }
            Happened::GaveBack => {}
            Happened::Prepared(prepared) => self.stock.prepared(*prepared),
            Happened::Measured(facts) => self.measured(*facts),
            Happened::Swept => self.sweeping.ended(Instant::now()),
        }
        Ok(())
    }

    /// A job has panicked: what it was for has failed, and the agent goes on.
    fn panicked(&mut self, job: Option<Job>) -> Result<()> {
        let why = "a fault of the agent".to_owned();
        match job {
            Some(Job::Look) => return self.looked(Err(anyhow::anyhow!(why)).into()),
            Some(Job::Ask(ask)) => self.answered(Answered {
                ask,
                answer: Answer::Failed(why),
                kin: None,
                given: None,
            }),
            Some(Job::Task(run)) => {
                let pledge = self.runs.remove(&run).map(|run| run.pledge);
                if let (Some(pledge), Some(results)) = (pledge, self.context.results.clone()) {
                    let work = async move {
                        pledge.redeem(&results).await;
                        Happened::GaveBack
                    };
                    self.spawn(Job::GiveBack, work);
                }
                self.tell(Event::RunEnded {
                    run,
                    outcome: Outcome::MachineFailed,
                });
            }
            Some(Job::Bootstrap(run)) => {
                self.runs.remove(&run);
                self.tell(Event::BootstrapEnded {
                    run,
                    outcome: BootstrapOutcome::Failed(why),
                });
            }
            Some(Job::Measure) => self.steering.measured_nothing(),
            Some(Job::Sweep) => self.sweeping.ended(Instant::now()),
            Some(Job::Prepare) => self.stock.prepared(Err(Unprepared::Never(why))),
            Some(Job::GiveBack) | None => {}
        }
        Ok(())
    }

    /// The end: machines, copies and folders go, and what waits is sent, within bounds.
    pub(super) async fn wind_up(mut self) {
        self.steering.stopping(LAST_SENDS + LAST_CLEANING);
        // Whatever still runs is dropped, and killed so.
        let mut gives_back = Vec::new();
        for (id, job) in std::mem::take(&mut self.names) {
            if job == Job::GiveBack {
                gives_back.push(id);
            }
        }
        let send = async {
            while !gives_back.is_empty() {
                match self.jobs.join_next_with_id().await {
                    Some(Ok((id, _))) => gives_back.retain(|other| *other != id),
                    Some(Err(e)) => gives_back.retain(|other| *other != e.id()),
                    None => break,
                }
            }
        };
        // Each is bounded by itself.
        let _ = timeout(LAST_SENDS, send).await;
        self.jobs.shutdown().await;
        self.stock.clear();
        self.suspended.kill_all();
        if let Some(results) = &self.context.results {
            results.give_back_all().await;
            results.settle(LAST_SENDS).await;
        }
        let clean = async {
            while !self.suspended.is_empty() {
                self.suspended.ended().await;
            }
            self.context.host.blocking.idle().await;
        };
        if timeout(LAST_CLEANING, clean).await.is_err() {
            tracing::warn!("not all machines are gone; the next start removes them");
        }
    }

    pub(super) fn measure(&mut self) {
        if let Some(probe) = self.steering.begin_measuring() {
            let host = Arc::clone(&self.context.host);
            let work = async move {
                let facts = host.blocking.run(move || probe.facts()).await;
                Happened::Measured(Box::new(facts))
            };
            self.spawn(Job::Measure, work);
        }
    }

    pub(super) fn measured(&mut self, facts: crate::resources::Facts) {
        let is_busy = !self.runs.is_empty() || !self.suspended.is_empty();
        let now = self.now();
        let was_well = self.steering.watch.level() == Level::Ok;
        let observed = self.steering.measured(facts, now, is_busy);
        if was_well && self.steering.watch.level() > Level::Ok {
            self.sweeping.soon(Instant::now());
            self.sweep(Instant::now());
        }
        for news in observed.news {
            steer::tell_news(&news);
        }
        // What nobody works in goes first, and before the host idles for long.
        let short = self.steering.watch.reasons().into_iter().next();
        let relieved = short.is_some_and(|short| {
            let why = format!("since the host runs short: {short}");
            self.stock.relieve() || self.suspended.relieve(&why)
        });
        if observed.relief.is_some()
            && !relieved
            && let Some((_, newest)) = self
                .runs
                .iter()
                .rev()
                .find(|(_, run)| !run.stop.is_cancelled())
        {
            tracing::error!(
                "machine {} is interrupted, since the host runs out",
                newest.machine
            );
            newest.stop.cancel();
        }
        self.tell_host_state();
    }
}

fn tell_people(report: &Report, host: &crate::host::Host) {
    match report {
        Report::MachineBackedOff { .. }
        | Report::MachineProblem { .. }
        | Report::ControllerTrouble { .. }
        | Report::HostTrouble { .. } => tracing::error!("{report}"),
        Report::Idle {
            why: why @ (IdleReason::NoMachines | IdleReason::NothingUsable),
        } => tracing::warn!("{why} for toolchain {}", host.toolchain),
        Report::Idle {
            why: IdleReason::Draining,
        }
        | Report::Working => tracing::debug!("{report}"),
        Report::Idle { .. } => tracing::warn!("{report}"),
        Report::MachineMended { .. } | Report::ControllerAnswers { .. } => {
            tracing::info!("{report}");
        }
    }
}
