//! What holds whatever happens.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// What happens next, in terms of what there is.
#[derive(Debug, Clone)]
enum Step {
    Wait(u16),
    Enumerated(Vec<MachineView>),
    Answer(u8, u8),
    End(u8, u8),
    Resources(bool),
    Watched(bool),
    Changed,
    Drain(u8),
    Undrain,
    Stop,
    Reload(u8, u8),
}

fn machine() -> impl Strategy<Value = MachineView> {
    ("[a-e]", "[12]", 0_u64..3000, any::<bool>(), 0_u8..4).prop_map(
        |(name, identity, ram, exclusive, state)| MachineView {
            name,
            identity,
            ram_minimum: (ram > 500).then_some(ram),
            exclusive,
            state: match state {
                0 => MachineState::Bad {
                    problem: "x".to_owned(),
                },
                1 => MachineState::MustBootstrap {
                    why: "x".to_owned(),
                },
                _ => MachineState::Usable,
            },
            ..usable("")
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0_u16..400).prop_map(Step::Wait),
        6 => proptest::collection::vec(machine(), 0..6).prop_map(Step::Enumerated),
        12 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Step::Answer(a, b)),
        8 => (any::<u8>(), any::<u8>()).prop_map(|(a, b)| Step::End(a, b)),
        1 => any::<bool>().prop_map(Step::Resources),
        1 => any::<bool>().prop_map(Step::Watched),
        1 => Just(Step::Changed),
        1 => (0_u8..200).prop_map(Step::Drain),
        2 => Just(Step::Undrain),
        1 => prop_oneof![9 => Just(Step::Undrain), 1 => Just(Step::Stop)],
        1 => (0_u8..4, 0_u8..4).prop_map(|(a, b)| Step::Reload(a, b)),
    ]
}

fn variant(slots: u8, urls: u8) -> Config {
    let urls: &[&str] = match urls {
        0 => &["c"],
        1 => &["c", "d", "0010=e"],
        2 => &["0001=c", "0100=d", "11000=e"],
        _ => &["0100=c", "1100=d"],
    };
    Config {
        controllers: controllers(urls),
        cpu_budget: (slots % 2 == 1).then_some(3),
        ram_budget: (slots >= 2).then_some(4000),
        ..config(u32::from(slots))
    }
}

/// What a driver knows.
#[derive(Debug, Default)]
struct World {
    ask: Option<(AskId, Vec<String>)>,
    /// Tasks that have come and are neither started nor given back.
    answered: BTreeSet<AskId>,
    /// Machine, processors, memory, task, interrupted.
    runs: BTreeMap<RunId, (String, u32, u64, bool, bool)>,
    is_enumerating: bool,
    is_draining: bool,
    is_low: bool,
    has_exited: bool,
    machines: Vec<MachineView>,
}

impl World {
    fn take(&mut self, action: Action, config: &Config) -> Result<(), TestCaseError> {
        prop_assert!(!self.has_exited, "nothing after the exit: {action:?}");
        match action {
            Action::Enumerate => {
                prop_assert!(!self.is_enumerating);
                self.is_enumerating = true;
            }
            Action::Ask {
                ask,
                machines,
                controller,
                ..
            } => {
                prop_assert!(self.ask.is_none(), "one at a time");
                prop_assert!(!self.is_draining && !self.is_low && !machines.is_empty());
                prop_assert!(config.controllers.iter().any(|c| c.url == controller));
                for name in &machines {
                    let known = self.machines.iter().rfind(|m| m.name == *name);
                    prop_assert_eq!(&known.unwrap().state, &MachineState::Usable);
                }
                self.ask = Some((ask, machines));
            }
            Action::CancelAsk { ask } => {
                prop_assert!(self.ask.as_ref().is_some_and(|(id, _)| *id == ask));
            }
            Action::StartTask {
                run,
                ask,
                machine,
                cpus,
                ram_kib,
            } => {
                prop_assert!(self.answered.remove(&ask), "a task that came");
                prop_assert!(!self.is_draining && !self.is_low);
                self.runs.insert(run, (machine, cpus, ram_kib, true, false));
            }
            Action::GiveBack { ask, .. } => {
                prop_assert!(self.answered.remove(&ask), "a task that came");
            }
            Action::StartBootstrap {
                run,
                machine,
                cpus,
                ram_kib,
            } => {
                prop_assert!(!self.is_draining && !self.is_low);
                let twice = self.runs.values().any(|r| !r.3 && r.0 == machine);
                prop_assert!(!twice);
                self.runs
                    .insert(run, (machine, cpus, ram_kib, false, false));
            }
            Action::Interrupt { run, .. } => {
                let known = self.runs.get_mut(&run).expect("it runs");
                prop_assert!(!known.4, "once");
                known.4 = true;
            }
            Action::Exit => {
                prop_assert!(self.is_draining && self.runs.is_empty());
                prop_assert!(self.ask.is_none() && self.answered.is_empty());
                self.has_exited = true;
            }
            Action::Report(_) => {}
        }
        Ok(())
    }

    fn check(
        &self,
        before: &Self,
        config: &Config,
        supervisor: &Supervisor,
    ) -> Result<(), TestCaseError> {
        // What ran already when the limits were lowered goes on.
        let is_more = self.runs.keys().any(|run| !before.runs.contains_key(run));
        if is_more {
            let cpus: u32 = self.runs.values().map(|r| r.1).sum();
            let ram: u64 = self.runs.values().map(|r| r.2).sum();
            prop_assert!(config.slots == 0 || self.runs.len() <= config.slots as usize);
            prop_assert!(config.cpu_budget.is_none_or(|most| cpus <= most));
            prop_assert!(config.ram_budget.is_none_or(|most| ram <= most));
            for machine in self.machines.iter().filter(|m| m.exclusive) {
                let started = self
                    .runs
                    .iter()
                    .any(|(id, r)| r.0 == machine.name && !before.runs.contains_key(id));
                let last = self.machines.iter().rfind(|m| m.name == machine.name) == Some(machine);
                let count = self.runs.values().filter(|r| r.0 == machine.name).count();
                prop_assert!(!started || !last || count == 1);
            }
        }
        prop_assert!(supervisor.actions.is_empty());
        let waiting = usize::from(supervisor.waiting.is_some());
        prop_assert_eq!(self.answered.len(), waiting, "no task is forgotten");
        let known: Vec<RunId> = supervisor.runs.iter().map(|(id, _)| id).collect();
        prop_assert_eq!(known, self.runs.keys().copied().collect::<Vec<_>>());
        prop_assert!(
            supervisor
                .next_deadline()
                .is_none_or(|at| at > supervisor.now)
        );
        let view = supervisor.view();
        prop_assert_eq!(view.slots_used as usize, self.runs.len());
        Ok(())
    }
}

fn event(step: Step, world: &mut World, config: &mut Config, now: &mut Time) -> Option<Event> {
    Some(match step {
        Step::Wait(seconds) => {
            *now += Duration::from_secs(seconds.into());
            Event::Tick
        }
        Step::Watched(is_watched) => Event::Watched(is_watched),
        Step::Changed => Event::MachinesChanged,
        Step::Enumerated(machines) => {
            // Also when nobody asked: a driver may look by itself.
            world.is_enumerating = false;
            world.machines.clone_from(&machines);
            Event::Enumerated(machines)
        }
        Step::Answer(what, which) => {
            let (ask, machines) = world.ask.take()?;
            let answer = match what % 8 {
                0 => Answer::Nothing,
                1 => Answer::Refused("rubbish".to_owned()),
                2 => Answer::Failed("down".to_owned()),
                3 if which < 20 => Answer::Task {
                    machine: "unknown".to_owned(),
                },
                _ => Answer::Task {
                    machine: machines[which as usize % machines.len()].clone(),
                },
            };
            if let Answer::Task { .. } = answer {
                world.answered.insert(ask);
            }
            let kin = if what > 127 { Kin::Ours } else { Kin::Stranger };
            let kin = Some(kin);
            Event::Answered { ask, answer, kin }
        }
        Step::End(which, how) => {
            let count = world.runs.len();
            let run = *world.runs.keys().nth(which as usize % count.max(1))?;
            let (.., is_task, was_interrupted) = world.runs.remove(&run)?;
            match (is_task, was_interrupted) {
                (true, true) => Event::RunEnded {
                    run,
                    outcome: Outcome::Interrupted,
                },
                (true, false) => Event::RunEnded {
                    run,
                    outcome: match how % 8 {
                        0 => Outcome::MachineFailed,
                        1 => Outcome::LinkFailed { passing: how > 128 },
                        2 if how > 200 => Outcome::HostFailed,
                        2 if how > 150 => Outcome::RoomFilled,
                        n => Outcome::Done(Status::ALL[n as usize % 7]),
                    },
                },
                (false, _) => Event::BootstrapEnded {
                    run,
                    outcome: match how % 3 {
                        0 => BootstrapOutcome::Failed("x".to_owned()),
                        1 => BootstrapOutcome::Done,
                        _ => BootstrapOutcome::Interrupted,
                    },
                },
            }
        }
        Step::Resources(is_low) => {
            world.is_low = is_low;
            Event::Resources(if is_low {
                HostState::Low("disk".to_owned())
            } else {
                HostState::Ok
            })
        }
        Step::Drain(within) => {
            world.is_draining = true;
            Event::Drain {
                deadline: *now + Duration::from_secs(within.into()),
            }
        }
        Step::Undrain => Event::Undrain,
        Step::Stop => {
            world.is_draining = true;
            Event::Stop
        }
        Step::Reload(slots, urls) => {
            *config = variant(slots, urls);
            Event::Reload(config.clone())
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 4000, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_whatever_happens(
        slots in 0_u8..4,
        urls in 0_u8..4,
        seed in any::<u64>(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut config = variant(slots, urls);
        let mut supervisor = Supervisor::new(config.clone(), seed);
        let mut world = World::default();
        let mut now = Time::ZERO;
        supervisor.handle(Event::Tick, now);
        let mut steps = steps.into_iter();
        loop {
            let before = World { runs: world.runs.clone(), ..World::default() };
            while let Some(action) = supervisor.poll_action() {
                world.take(action, &config)?;
            }
            world.check(&before, &config, &supervisor)?;
            let Some(step) = steps.next() else { break };
            let Some(event) = event(step, &mut world, &mut config, &mut now) else { continue };
            supervisor.handle(event, now);
            world.is_draining = supervisor.mode != Mode::Running;
        }

        // Then everything ends: within the deadline, with nothing left.
        let ends = [Step::Drain(10), Step::Answer(4, 200), Step::Wait(400)];
        let rest = std::iter::repeat_n(Step::End(0, 3), world.runs.len() + 1);
        for step in ends.into_iter().chain(rest).chain([Step::Answer(0, 0)]) {
            if let Some(event) = event(step, &mut world, &mut config, &mut now) {
                supervisor.handle(event, now);
            }
            while let Some(action) = supervisor.poll_action() {
                world.take(action, &config)?;
            }
        }
        prop_assert!(world.has_exited, "{supervisor:?}");
    }
}

proptest! {
    // Each case is a whole day.
    #![proptest_config(ProptestConfig {
        cases: ProptestConfig::default().cases.div_ceil(4),
        ..ProptestConfig::default()
    })]

    /// Machines that must be bootstrapped, each again as soon as it was, and tasks without end: both advance.
    #[test]
    fn neither_builds_nor_bootstraps_starve(
        slots in 0_u32..4,
        large in 0_u64..4000,
        build_takes in 60_u64..4000,
        bootstrap_takes in 60_u64..4000,
        seed in any::<u64>(),
    ) {
        let config = Config { ram_budget: Some(4000), ..config(slots) };
        let big = MachineView { ram_minimum: Some(large), ..unready("b") };
        let machines = [usable("a"), big, unready("c")];
        let mut supervisor = Supervisor::new(config, seed);
        let mut now = Time::ZERO;
        let mut due: Vec<(Time, Event)> = vec![(now, Event::Tick)];
        let mut done = BTreeMap::from([("a", 0), ("b", 0), ("c", 0)]);
        let mut steps = 0;
        while now < Time::from_secs(24 * 3600) {
            steps += 1;
            prop_assert!(steps < 50_000, "it spins");
            due.sort_by_key(|(at, _)| *at);
            match (due.first().map(|(at, _)| *at), supervisor.next_deadline()) {
                (Some(at), tick) if tick.is_none_or(|t| at <= t) => {
                    now = at;
                    let (_, event) = due.remove(0);
                    supervisor.handle(event, now);
                }
                (_, Some(tick)) => {
                    now = tick;
                    supervisor.handle(Event::Tick, now);
                }
                (_, None) => prop_assert!(false, "nothing will ever happen"),
            }
            while let Some(action) = supervisor.poll_action() {
                match action {
                    Action::Enumerate => due.push((now, Event::Enumerated(machines.to_vec()))),
                    Action::Ask { ask, machines, .. } => {
                        let answer = Answer::Task { machine: machines[0].clone() };
                        due.push((now, Event::Answered { ask, answer, kin: Some(Kin::Ours) }));
                    }
                    Action::StartTask { run, .. } => {
                        *done.get_mut("a").unwrap() += 1;
                        let outcome = Outcome::Done(Status::Success);
                        let at = now + Duration::from_secs(build_takes);
                        due.push((at, Event::RunEnded { run, outcome }));
                    }
                    Action::StartBootstrap { run, machine, .. } => {
                        *done.get_mut(machine.as_str()).unwrap() += 1;
                        let outcome = BootstrapOutcome::Done;
                        let at = now + Duration::from_secs(bootstrap_takes);
                        due.push((at, Event::BootstrapEnded { run, outcome }));
                    }
                    _ => {}
                }
            }
        }
        prop_assert!(done.values().all(|n| *n >= 6), "{done:?}");
    }
}
