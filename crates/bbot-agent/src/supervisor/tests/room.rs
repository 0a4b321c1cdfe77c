//! Slots, budgets, and who gets what is left: builds or bootstraps.

use super::*;

fn large(name: &str, ram: u64) -> MachineView {
    MachineView {
        ram_minimum: Some(ram),
        ..usable(name)
    }
}

#[test]
fn budgets_bound_what_is_offered() {
    let config = Config {
        cpu_budget: Some(3),
        ram_budget: Some(4000),
        ..config(0)
    };
    let machines = [usable("a"), large("b", 3000), large("c", 4001)];
    let mut bench = Bench::new(config, &machines);
    assert_eq!(bench.words(), ["ask c a,b"]);
    assert_eq!(bench.reports.len(), 1);
    assert!(
        bench.reports[0].contains("machine c: it needs 4001 KiB"),
        "{:?}",
        bench.reports
    );
    bench.task("b");
    assert_eq!(bench.words(), ["task b", "ask c a"]);
    bench.task("a");
    assert_eq!(bench.words(), ["task a"], "no memory is left");
}

#[test]
fn a_task_whose_room_is_gone_is_given_back() {
    let config = Config {
        ram_budget: Some(1000),
        ..config(0)
    };
    let mut bench = Bench::new(config.clone(), &[usable("a")]);
    bench.words();
    bench.event(Event::Reload(Config {
        ram_budget: Some(999),
        ..config
    }));
    bench.task("a");
    assert_eq!(
        bench.words(),
        [
            "give back: there is no room for machine a any more",
            "enumerate"
        ]
    );
}

#[test]
fn bootstraps_leave_builds_a_slot() {
    let machines = [usable("a"), unready("b"), unready("c"), unready("d")];
    let mut bench = Bench::new(config(3), &machines);
    assert_eq!(bench.words(), ["bootstrap b", "bootstrap c", "ask c a"]);
    bench.task("a");
    assert_eq!(bench.words(), ["task a"]);
    bench.bootstrap_ends("b", BootstrapOutcome::Done);
    let machines = [usable("a"), usable("b"), unready("c"), unready("d")];
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "bootstrap d"]);
    bench.is_built("a");
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "ask c a,b"]);
}

#[test]
fn with_nothing_usable_bootstraps_take_every_slot() {
    let machines = [unready("b"), unready("c"), unready("d")];
    let mut bench = Bench::new(config(2), &machines);
    assert_eq!(bench.words(), ["bootstrap b", "bootstrap c"]);
}

#[test]
fn with_one_slot_they_take_turns() {
    let machines = [usable("a"), unready("b"), unready("c"), unready("d")];
    let mut bench = Bench::new(config(1), &machines);
    assert_eq!(bench.words(), ["bootstrap b"]);
    bench.bootstrap_ends("b", BootstrapOutcome::Failed("no sign of life".to_owned()));
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "ask c a"]);
    bench.task("a");
    bench.is_built("a");
    bench.machines(&machines);
    assert_eq!(bench.words(), ["task a", "enumerate", "bootstrap c"]);
    bench.bootstrap_ends("c", BootstrapOutcome::Failed("no sign of life".to_owned()));
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "ask c a"]);
    // Nobody has a task: the next one need not wait for one.
    bench.answer(Answer::Nothing);
    assert_eq!(bench.words(), ["bootstrap d"]);
}

#[test]
fn a_machine_is_bootstrapped_once_at_a_time_and_not_offered() {
    let machines = [usable("a"), unready("b")];
    let mut bench = Bench::new(config(5), &machines);
    assert_eq!(bench.words(), ["bootstrap b", "ask c a"]);
    for _ in 0..5 {
        bench.answer(Answer::Nothing);
        bench.after(60);
        bench.machines(&machines);
        assert_eq!(bench.words(), ["enumerate", "ask c a"]);
    }
}

#[test]
fn a_bootstrap_that_ended_while_a_task_is_asked_for_is_not_done_twice() {
    let mut bench = Bench::new(config(3), &[usable("a"), unready("b")]);
    assert_eq!(bench.words(), ["bootstrap b", "ask c a"]);
    bench.bootstrap_ends("b", BootstrapOutcome::Done);
    bench.after(5);
    assert_eq!(bench.words(), [""; 0]);
    bench.answer(Answer::Nothing);
    bench.machines(&[usable("a"), usable("b")]);
    assert_eq!(bench.words(), ["enumerate", "ask c a,b"]);
}

#[test]
fn room_that_is_offered_is_kept_until_the_answer() {
    let config = Config {
        ram_budget: Some(4000),
        ..config(0)
    };
    let machines = [usable("a"), large("big", 3500), unready("x")];
    let mut bench = Bench::new(config, &machines);
    assert_eq!(bench.words(), ["bootstrap x", "ask c a"]);
    let failed = BootstrapOutcome::Failed("no sign of life".to_owned());
    bench.bootstrap_ends("x", failed);
    bench.answer(Answer::Nothing);
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "ask c a,big"]);
    // It could be tried again, and `a` would still fit beside it, but not what was offered.
    bench.after(100);
    assert_eq!(bench.words(), [""; 0]);
    bench.task("big");
    assert_eq!(bench.words()[0], "task big");
}

#[test]
fn where_nothing_fits_new_machines_are_looked_for() {
    let config = Config {
        ram_budget: Some(4000),
        ..config(1)
    };
    let mut bench = Bench::new(config, &[large("big", 5000)]);
    bench.tick();
    assert_eq!(
        (bench.now.as_secs(), bench.words()),
        (5, vec!["enumerate".to_owned()])
    );
    bench.machines(&[large("big", 5000), usable("a")]);
    assert_eq!(bench.words(), ["ask c a"]);
}

#[test]
fn a_large_machine_to_bootstrap_does_not_wait_for_ever() {
    let config = Config {
        ram_budget: Some(4000),
        ..config(0)
    };
    let big = MachineView {
        ram_minimum: Some(4000),
        ..unready("big")
    };
    let machines = [usable("a"), big];
    let mut bench = Bench::new(config, &machines);
    assert_eq!(bench.words(), ["bootstrap big"], "at first there is room");
    bench.bootstrap_ends("big", BootstrapOutcome::Interrupted);
    bench.machines(&machines);
    for _ in 0..3 {
        bench.task("a");
    }
    // A stream of small tasks that never leaves the host empty ...
    let mut waited = Duration::ZERO;
    while !bench.supervisor.runs.is_bootstrapping("big") {
        let before = bench.now;
        bench.after(30);
        if bench.supervisor.runs.tasks().next().is_some() {
            bench.is_built("a");
        }
        for _ in 0..8 {
            if bench.supervisor.is_enumerating {
                bench.machines(&machines);
            }
            if bench.supervisor.ask.is_some() && bench.supervisor.runs.iter().count() < 3 {
                bench.task("a");
            }
        }
        waited += bench.now - before;
        assert!(waited < Duration::from_secs(30 * 60), "it starves");
    }
    assert!(waited > machines::BOOTSTRAP_PATIENCE);
}

#[test]
fn a_large_machine_gets_its_chance_to_build() {
    let config = Config {
        ram_budget: Some(4000),
        ..config(0)
    };
    let machines = [usable("a"), large("big", 4000)];
    let mut bench = Bench::new(config, &machines);
    let mut offered = Duration::ZERO;
    bench.task("a");
    bench.task("a");
    for _ in 0..400 {
        bench.after(30);
        if bench.supervisor.runs.tasks().next().is_some() {
            bench.is_built("a");
        }
        for _ in 0..8 {
            if bench.supervisor.is_enumerating {
                bench.machines(&machines);
            }
            let ask = bench.supervisor.ask.as_ref();
            if ask.is_some_and(|ask| ask.machines.contains(&"big".to_owned()))
                && bench.now.as_secs() > 60
            {
                offered = bench.now;
            }
            if ask.is_some() && bench.supervisor.runs.iter().count() < 2 {
                bench.task("a");
            }
        }
    }
    assert!(offered > machines::TASK_PATIENCE, "{offered:?}");
}
