//! What actions begin: looks at the machines, requests, tasks, bootstraps; and what
//! follows when they have ended.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use bbot_manifest::MachineKind;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::Agent;
use super::answers::{self, Pledge};
use super::ask::{Answered, Question};
use super::driver::{Asking, Happened, Job, Run};
use super::saving::SavingRun;
use super::work::{self, BootstrapRun, Shown, TaskRun};
use crate::controller;
use crate::inventory::{self, Machine, RETRY_PAUSE, Scan, State};
use crate::run::{Left, Share};
use crate::status::RunKind;
use crate::supervisor::{
    AskId, BootstrapOutcome, Event, MachineState, MachineView, Outcome, RunId,
};
use crate::suspended::Departing;
use crate::warm::Warmth;

/// What a look at the machines has come to.
#[derive(Debug)]
pub(super) struct Looked {
    scan: Result<Scan>,
    /// Whether changes are told from now on.
    watched: io::Result<bool>,
}

impl From<Result<Scan>> for Looked {
    /// Nothing is watched.
    fn from(scan: Result<Scan>) -> Self {
        Self {
            scan,
            watched: Ok(false),
        }
    }
}

impl Agent {
    /// Looks at the machines.
    pub(super) fn look(&mut self) {
        let host = Arc::clone(&self.context.host);
        if let Some(file) = host.options.fake_machine.clone() {
            let work = async move {
                let scan = inventory::fake_machine(&host, &file).map(|machine| Scan {
                    machines: vec![inventory::Seen {
                        name: machine.dir.name.clone(),
                        state: State::Usable(Box::new(machine)),
                    }],
                    problems: Vec::new(),
                });
                Happened::Looked(scan.into())
            };
            return self.spawn(Job::Look, work);
        }
        let watch = self.watch.clone();
        let work = async move {
            let looks = Arc::clone(&host);
            let look = move || {
                // First, so that nothing happens between the look and the watch.
                let watched = watch.map(|watch| watch.follow(&looks.options, &looks.toolchain));
                inventory::remove_forsaken(&looks);
                Looked {
                    scan: inventory::scan(&looks),
                    watched: watched.transpose().map(|watched| watched.is_some()),
                }
            };
            Happened::Looked(host.blocking.run(look).await)
        };
        self.spawn(Job::Look, work);
    }

    pub(super) fn looked(&mut self, looked: Looked) -> Result<()> {
        let is_watched = match looked.watched {
            Ok(is_watched) => is_watched,
            Err(e) => {
                if self.watch.take().is_some() {
                    tracing::warn!(
                        "unable to watch the machines: {e} (fs.inotify.max_user_watches may be \
                         raised); they are looked at before each task"
                    );
                }
                false
            }
        };
        self.tell(Event::Watched(is_watched));
        let mut scan = match looked.scan {
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
        self.stock.retain(|name| machines.contains_key(name));
        self.tell(Event::Enumerated(views));
        Ok(())
    }

    /// Whether copies of one machine of this kind must not run at once.
    fn is_exclusive(&self, kind: MachineKind) -> bool {
        let options = &self.context.host.options;
        // One person plays the one machine.
        options.fake_machine.is_some() || options.machine_network().of(kind).is_exclusive()
    }

    pub(super) fn ask(
        &mut self,
        ask: AskId,
        controller: &str,
        machines: &[String],
        hold: Duration,
        within: Option<Duration>,
    ) -> Result<()> {
        let usable = machines.iter().filter_map(|name| self.usable(name));
        let cancel = CancellationToken::new();
        let question = Question {
            ask,
            url: controller::parse_url(controller)?,
            hold,
            within,
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

    pub(super) fn usable(&self, name: &str) -> Option<&Machine> {
        match self.machines.get(name) {
            Some(State::Usable(machine)) => Some(machine),
            _ => None,
        }
    }

    pub(super) fn answered(&mut self, answered: Answered) {
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

    pub(super) fn start_task(
        &mut self,
        run: RunId,
        ask: AskId,
        machine: &str,
        share: Share,
    ) -> Result<()> {
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
        let exclusive = self.is_exclusive(machine.manifest.machine.kind);
        let departing = self.make_room(share, exclusive.then_some(&machine.dir.name));
        let ready = self.stock.take(&machine, share);
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
        let pledge = given.pledge.clone();
        let (stop, shown) = self.begin_run(run, what, &machine.dir.name, share, pledge);
        let task = TaskRun {
            context: self.context.clone(),
            run,
            given,
            machine,
            ready,
            share,
            stop,
            shown,
            departing,
        };
        let work = async move { Happened::TaskEnded(Box::new(task.perform().await)) };
        self.spawn(Job::Task(run), work.instrument(span));
        Ok(())
    }

    pub(super) fn start_bootstrap(&mut self, run: RunId, machine: &str, share: Share) {
        let plan = match self.machines.get(machine) {
            Some(State::MustBootstrap(plan)) => (**plan).clone(),
            Some(State::Usable(machine)) if machine.warmth == Warmth::Cold => {
                let machine = (**machine).clone();
                return self.start_saving(run, machine, share);
            }
            // Overtaken by another look.
            _ => {
                return self.tell(Event::BootstrapEnded {
                    run,
                    outcome: BootstrapOutcome::Interrupted,
                });
            }
        };
        let exclusive = self.is_exclusive(plan.manifest.kind);
        let departing = self.make_room(share, exclusive.then_some(&plan.dir.name));
        let span = tracing::info_span!("bootstrap", machine = %machine, run = run.0);
        let nothing = Pledge::default();
        let (stop, shown) = self.begin_run(run, RunKind::Bootstrap, machine, share, nothing);
        let bootstrap = BootstrapRun {
            context: self.context.clone(),
            run,
            plan,
            share,
            stop,
            shown,
            departing,
        };
        let work = async move { Happened::BootstrapEnded(Box::new(bootstrap.perform().await)) };
        self.spawn(Job::Bootstrap(run), work.instrument(span));
    }

    fn start_saving(&mut self, run: RunId, machine: Machine, share: Share) {
        let name = machine.dir.name.clone();
        let departing = self.make_room(share, None);
        let span = tracing::info_span!("saving", machine = %name, run = run.0);
        let nothing = Pledge::default();
        let (stop, shown) = self.begin_run(run, RunKind::Saving, &name, share, nothing);
        let saving = SavingRun {
            context: self.context.clone(),
            run,
            machine,
            share,
            stop,
            shown,
            departing,
        };
        let work = async move { Happened::BootstrapEnded(Box::new(saving.perform().await)) };
        self.spawn(Job::Bootstrap(run), work.instrument(span));
    }

    fn begin_run(
        &mut self,
        run: RunId,
        what: RunKind,
        machine: &str,
        share: Share,
        pledge: Pledge,
    ) -> (CancellationToken, Shown) {
        let (stop, shown) = (
            CancellationToken::new(),
            Shown::new(Arc::clone(&self.changed)),
        );
        let begun = Run {
            what,
            machine: machine.to_owned(),
            share,
            since: Instant::now(),
            stop: stop.clone(),
            shown: shown.clone(),
            pledge,
        };
        self.runs.insert(run, begun);
        (stop, shown)
    }

    /// Suspended machines have what memory the runs leave them: the oldest goes when
    /// it is needed. So does that of a machine that may run once at a time, which two of
    /// would have one address. Whoever begins a run waits for those that go.
    fn make_room(&mut self, one_more: Share, only: Option<&String>) -> Departing {
        if let Some(machine) = only {
            self.suspended.give_way(machine);
        }
        let used = self.runs.values().map(|run| run.share.ram_kib);
        let used = used.fold(one_more.ram_kib, u64::saturating_add);
        let budget = self.context.host.options.ram_budget();
        self.suspended.shrink_to(budget.saturating_sub(used));
        self.suspended.departing()
    }

    pub(super) fn keep(&mut self, left: Option<Left>) {
        if let Some(left) = left {
            self.seen.counters.suspensions += 1;
            let bounds = self.suspended_bounds();
            self.suspended.add(left, bounds);
            let nothing = Share {
                cpus: 0,
                ram_kib: 0,
            };
            self.make_room(nothing, None);
        }
    }

    pub(super) fn give_back(&mut self, ask: AskId, why: String) {
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
            answers::give_back(context, given, why).await;
            Happened::GaveBack
        };
        self.spawn(Job::GiveBack, work);
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
                cold: false,
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
        cold: matches!(&seen.state, State::Usable(machine) if machine.warmth == Warmth::Cold),
    })
}
