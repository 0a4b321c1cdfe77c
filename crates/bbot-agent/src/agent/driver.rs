//! The loop: what happens becomes events for the supervisor, its actions become
//! futures.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use bbot_manifest::MachineKind;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::ask::{Answered, Question};
use super::work::{self, BootstrapEnded, BootstrapRun, Pledge, Shown, TaskEnded, TaskRun};
use super::{Agent, steer};
use crate::control::{Signal, Signals};
use crate::controller;
use crate::inventory::{self, Machine, RETRY_PAUSE, Scan, State};
use crate::run::{Left, Share};
use crate::status::RunKind;
use crate::supervisor::{
    Action, Answer, AskId, BootstrapOutcome, Event, IdleReason, MachineState, MachineView, Outcome,
    Report, RunId, Time,
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
    Measure,
}

/// What a job has come to.
#[derive(Debug)]
pub(super) enum Happened {
    Looked(Result<Scan>),
    Answered(Answered),
    TaskEnded(Box<TaskEnded>),
    BootstrapEnded(Box<BootstrapEnded>),
    GaveBack,
    Measured(Box<crate::resources::Facts>),
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
            self.show();
            self.step(signals).await?;
        }
    }

    /// Waits for the next thing that happens.
    pub(super) async fn step(&mut self, signals: &mut Signals) -> Result<()> {
        self.steering.progress();
        let wake = self.wake();
        let changed = Arc::clone(&self.changed);
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
                } => self.ask(ask, &controller, &machines, hold)?,
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
        Ok(false)
    }

    fn spawn(&mut self, job: Job, work: impl Future<Output = Happened> + Send + 'static) {
        let handle = self.jobs.spawn(work);
        self.names.insert(handle.id(), job);
    }

    /// Looks at the machines.
    fn look(&mut self) {
        let host = Arc::clone(&self.context.host);
        if let Some(file) = host.options.fake_machine.clone() {
            let work = async move {
                Happened::Looked(inventory::fake_machine(&host, &file).map(|machine| Scan {
                    machines: vec![inventory::Seen {
                        name: machine.dir.name.clone(),
                        state: State::Usable(Box::new(machine)),
                    }],
                    problems: Vec::new(),
                }))
            };
            return self.spawn(Job::Look, work);
        }
        let work = async move {
            let looks = Arc::clone(&host);
            let look = move || {
                inventory::remove_forsaken(&looks);
                inventory::scan(&looks)
            };
            Happened::Looked(host.blocking.run(look).await)
        };
        self.spawn(Job::Look, work);
    }

    fn looked(&mut self, scan: Result<Scan>) -> Result<()> {
        let mut scan = match scan {
            Ok(scan) => scan,
            // The operator is there.
            Err(e) if !self.has_looked => return Err(e),
            Err(e) => Scan {
                machines: Vec::new(),
                problems: vec![format!("{e:#}")],
            },
        };
        self.has_looked = true;
        if self.inventory.note(&mut scan) {
            self.look_again = Some(Instant::now() + RETRY_PAUSE);
        }
        let views = scan
            .machines
            .iter()
            .filter_map(|seen| view(seen, |kind| self.is_exclusive(kind)));
        let views = views.collect();
        let machines = scan.machines.into_iter();
        self.machines = machines.map(|seen| (seen.name, seen.state)).collect();
        let machines = &self.machines;
        self.seen.machines_are(|name| machines.contains_key(name));
        self.tell(Event::Enumerated(views));
        Ok(())
    }

    /// Whether copies of one machine of this kind must not run at once.
    fn is_exclusive(&self, kind: MachineKind) -> bool {
        let options = &self.context.host.options;
        // One person plays the one machine.
        options.fake_machine.is_some() || options.machine_network().of(kind).is_exclusive()
    }

    fn ask(
        &mut self,
        ask: AskId,
        controller: &str,
        machines: &[String],
        hold: Duration,
    ) -> Result<()> {
        let usable = machines.iter().filter_map(|name| self.usable(name));
        let cancel = CancellationToken::new();
        let question = Question {
            ask,
            url: controller::parse_url(controller)?,
            hold,
            machines: usable.cloned().collect(),
            allowed_result_urls: Arc::clone(&self.allowed_result_urls),
            cancel: cancel.clone(),
        };
        let asking = Asking {
            controller: controller.to_owned(),
            cancel,
            since: Instant::now(),
            is_held: !hold.is_zero(),
        };
        self.asks.insert(ask, asking);
        let context = self.context.clone();
        let work = async move { Happened::Answered(question.ask(context).await) };
        self.spawn(Job::Ask(ask), work);
        Ok(())
    }

    fn usable(&self, name: &str) -> Option<&Machine> {
        match self.machines.get(name) {
            Some(State::Usable(machine)) => Some(machine),
            _ => None,
        }
    }

    fn answered(&mut self, answered: Answered) {
        let Answered {
            ask,
            answer,
            kin,
            given,
        } = answered;
        let now = self.now();
        self.seen.answered(self.asks.remove(&ask), &answer, now);
        if let Some(given) = given {
            self.given.insert(ask, *given);
        }
        self.tell(Event::Answered { ask, answer, kin });
    }

    fn start_task(&mut self, run: RunId, ask: AskId, machine: &str, share: Share) -> Result<()> {
        let Some(given) = self.given.remove(&ask) else {
            bail!("{run} has no task ({ask})");
        };
        let offered = given.machine.clone();
        let Some(machine) = offered.or_else(|| self.usable(machine).cloned()) else {
            bail!("{run} has no machine {machine}");
        };
        if self.context.host.options.dump_task {
            let task = work::task_of_dump(&given)?;
            self.print(&task)?;
            self.tell(Event::RunEnded {
                run,
                outcome: Outcome::Interrupted,
            });
            return Ok(());
        }
        self.make_room(share);
        let assignment = &given.assignment;
        let what = RunKind::Task {
            name: assignment.task.name.clone(),
            version: assignment.task.version.clone(),
            session: assignment.session.clone(),
            controller: given.from.clone(),
        };
        let span = tracing::info_span!(
            "task",
            session = %assignment.session,
            machine = %machine.dir.name,
            run = run.0,
        );
        let (stop, shown, pledge) = self.begin_run(run, what, &machine.dir.name, share);
        let task = TaskRun {
            context: self.context.clone(),
            run,
            given,
            machine,
            share,
            stop,
            shown,
            pledge,
        };
        let work = async move { Happened::TaskEnded(Box::new(task.perform().await)) };
        self.spawn(Job::Task(run), work.instrument(span));
        Ok(())
    }

    fn start_bootstrap(&mut self, run: RunId, machine: &str, share: Share) {
        let Some(State::MustBootstrap(plan)) = self.machines.get(machine) else {
            // Overtaken by another look.
            return self.tell(Event::BootstrapEnded {
                run,
                outcome: BootstrapOutcome::Interrupted,
            });
        };
        let plan = (**plan).clone();
        self.make_room(share);
        let span = tracing::info_span!("bootstrap", machine = %machine, run = run.0);
        let (stop, shown, _) = self.begin_run(run, RunKind::Bootstrap, machine, share);
        let bootstrap = BootstrapRun {
            context: self.context.clone(),
            run,
            plan,
            share,
            stop,
            shown,
        };
        let work = async move { Happened::BootstrapEnded(Box::new(bootstrap.perform().await)) };
        self.spawn(Job::Bootstrap(run), work.instrument(span));
    }

    fn begin_run(
        &mut self,
        run: RunId,
        what: RunKind,
        machine: &str,
        share: Share,
    ) -> (CancellationToken, Shown, Pledge) {
        let (stop, shown, pledge) = (
            CancellationToken::new(),
            Shown::new(Arc::clone(&self.changed)),
            Pledge::default(),
        );
        let begun = Run {
            what,
            machine: machine.to_owned(),
            share,
            since: Instant::now(),
            stop: stop.clone(),
            shown: shown.clone(),
            pledge: pledge.clone(),
        };
        self.runs.insert(run, begun);
        (stop, shown, pledge)
    }

    /// Suspended machines have what memory the runs leave them: the oldest goes when
    /// it is needed.
    fn make_room(&mut self, one_more: Share) {
        let used = self.runs.values().map(|run| run.share.ram_kib);
        let used = used.fold(one_more.ram_kib, u64::saturating_add);
        let budget = self.context.host.options.ram_budget();
        self.suspended.shrink_to(budget.saturating_sub(used));
    }

    fn keep(&mut self, left: Option<Left>) {
        if let Some(left) = left {
            self.seen.counters.suspensions += 1;
            let bounds = self.suspended_bounds();
            self.suspended.add(left, bounds);
            self.make_room(Share {
                cpus: 0,
                ram_kib: 0,
            });
        }
    }

    fn give_back(&mut self, ask: AskId, why: String) {
        let Some(given) = self.given.remove(&ask) else {
            return;
        };
        self.seen.counters.given_back += 1;
        if self.context.host.options.dump_task {
            // The seed ends so, and says nothing on standard output.
            tracing::error!("{why}");
            self.is_done = true;
            return;
        }
        let context = self.context.clone();
        let work = async move {
            work::give_back(context, given, why).await;
            Happened::GaveBack
        };
        self.spawn(Job::GiveBack, work);
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
            Happened::Measured(facts) => self.measured(*facts),
        }
        Ok(())
    }

    /// A job has panicked: what it was for has failed, and the agent goes on.
    fn panicked(&mut self, job: Option<Job>) -> Result<()> {
        let why = "a fault of the agent".to_owned();
        match job {
            Some(Job::Look) => return self.looked(Err(anyhow::anyhow!(why))),
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
        let is_busy = !self.runs.is_empty();
        let now = self.now();
        let observed = self.steering.measured(facts, now, is_busy);
        for news in observed.news {
            steer::tell_news(&news);
        }
        if observed.relief.is_some()
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

/// What the supervisor is told of a machine. None: there is nothing to be done with it.
fn view(seen: &inventory::Seen, is_exclusive: impl Fn(MachineKind) -> bool) -> Option<MachineView> {
    let (header, toolchain, kind, state) = match &seen.state {
        State::Usable(machine) => (
            machine.header(),
            Some(machine.manifest.toolchain.id.as_str()),
            machine.manifest.machine.kind,
            MachineState::Usable,
        ),
        State::MustBootstrap(plan) => (
            &plan.manifest.header,
            plan.toolchain_id.as_deref(),
            plan.manifest.kind,
            MachineState::MustBootstrap {
                why: plan.why.to_string(),
            },
        ),
        State::Bad(problem) => {
            return Some(MachineView {
                name: seen.name.clone(),
                identity: String::new(),
                ram_minimum: None,
                ram_maximum: None,
                state: MachineState::Bad {
                    problem: problem.clone(),
                },
                // It does not run at all.
                exclusive: false,
                kind: String::new(),
            });
        }
        State::Changing(_) | State::Passed => return None,
    };
    Some(MachineView {
        name: seen.name.clone(),
        identity: format!("{} {}", header.id, toolchain.unwrap_or_default()),
        ram_minimum: header.ram_minimum,
        ram_maximum: header.ram_maximum,
        state,
        exclusive: is_exclusive(kind),
        kind: kind.to_string(),
    })
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
