//! What the digits of a priority do.

use super::*;

fn bench(slots: u32, arguments: &[&str], machines: &[MachineView]) -> Bench {
    let config = Config {
        controllers: controllers(arguments),
        idle_pause: Some(Duration::from_secs(10)),
        ..config(slots)
    };
    Bench::new(config, machines)
}

/// The controllers are asked again, at the end of their pauses.
fn next_round(bench: &mut Bench, machines: &[MachineView]) -> Vec<String> {
    bench.nobody_has_a_task(machines);
    bench.words();
    bench.after(10);
    bench.nobody_has_a_task(machines);
    let mut words = bench.words();
    words.retain(|w| w != "enumerate");
    words
}

/// Nobody but this one has a task, for that machine.
fn task_from(bench: &mut Bench, url: &str, machine: &str, machines: &[MachineView]) {
    for _ in 0..20 {
        match &bench.supervisor.ask {
            Some(ask) if ask.controller == url => return bench.task(machine),
            Some(_) => bench.answer(Answer::Nothing),
            None if bench.supervisor.is_enumerating => bench.machines(machines),
            None => bench.after(10),
        }
    }
    panic!("{url} is not asked");
}

#[test]
fn the_higher_is_asked_first() {
    let machines = [usable("a")];
    let mut bench = bench(2, &["low", "0002=high", "0001=middle"], &machines);
    bench.nobody_has_a_task(&machines);
    assert_eq!(bench.words(), ["ask high a", "ask middle a", "ask low a"]);
    task_from(&mut bench, "low", "a", &machines);
    assert_eq!(
        next_round(&mut bench, &machines),
        ["ask high a", "ask middle a", "ask low a"],
        "A task of a low one holds nobody back"
    );
}

#[test]
fn a_b_task_holds_those_below_back_as_long_as_it_runs() {
    let machines = [usable("a"), usable("b")];
    let mut bench = bench(3, &["0009=low", "0010=high", "0011=higher"], &machines);
    task_from(&mut bench, "high", "a", &machines);
    assert_eq!(
        next_round(&mut bench, &machines),
        ["ask higher a,b", "ask high a,b"]
    );
    task_from(&mut bench, "higher", "b", &machines);
    bench.is_built("a");
    bench.nobody_has_a_task(&machines);
    assert_eq!(
        next_round(&mut bench, &machines),
        ["ask higher a,b", "ask high a,b"]
    );
    bench.is_built("b");
    bench.nobody_has_a_task(&machines);
    assert_eq!(next_round(&mut bench, &machines).len(), 3);
}

#[test]
fn a_c_task_interrupts_one_below_it_where_there_is_no_slot() {
    let machines = [usable("a"), usable("b"), usable("x")];
    let mut bench = bench(2, &["0000=low", "0001=lower", "0100=urgent"], &machines);
    task_from(&mut bench, "lower", "a", &machines);
    bench.now += Duration::from_secs(1);
    task_from(&mut bench, "low", "b", &machines);
    // No slot is free: only the urgent one is asked.
    assert_eq!(next_round(&mut bench, &machines), ["ask urgent a,b,x"]);
    let victim = bench.run("b").0;
    task_from(&mut bench, "urgent", "x", &machines);
    let mut words = bench.words();
    words.retain(|w| !w.starts_with("ask") && w != "enumerate");
    assert_eq!(
        words,
        [format!("interrupt {victim}")],
        "the least important"
    );
    bench.after(100);
    assert_eq!(bench.words(), [""; 0], "nobody is asked meanwhile");
    bench.ends("b", Outcome::Interrupted);
    assert_eq!(bench.words()[0], "task x");
    // Another one interrupts the other one, but none of its own kind.
    bench.nobody_has_a_task(&machines);
    task_from(&mut bench, "urgent", "x", &machines);
    bench.ends("a", Outcome::Interrupted);
    assert_eq!(bench.supervisor.view().runs.len(), 2);
    bench.nobody_has_a_task(&machines);
    assert_eq!(next_round(&mut bench, &machines), [""; 0]);
}

#[test]
fn a_c_task_with_room_interrupts_nobody() {
    let machines = [usable("a"), usable("b")];
    let mut bench = bench(2, &["low", "0100=urgent"], &machines);
    task_from(&mut bench, "low", "a", &machines);
    bench.words();
    task_from(&mut bench, "urgent", "b", &machines);
    assert!(bench.words().contains(&"task b".to_owned()));
    assert_eq!(bench.supervisor.view().runs.len(), 2);
}

#[test]
fn a_c_task_takes_a_machine_that_may_run_once() {
    let machines = [
        MachineView {
            exclusive: true,
            ..usable("a")
        },
        usable("b"),
    ];
    let mut bench = bench(3, &["low", "0001=lower", "0100=urgent"], &machines);
    task_from(&mut bench, "lower", "a", &machines);
    task_from(&mut bench, "low", "b", &machines);
    let victim = bench.run("a").0;
    task_from(&mut bench, "urgent", "a", &machines);
    let words = bench.words();
    assert!(words.contains(&format!("interrupt {victim}")), "{words:?}");
    bench.ends("a", Outcome::Interrupted);
    assert!(bench.words().contains(&"task a".to_owned()));
}

#[test]
fn a_d_task_has_the_host_for_itself_and_with_f_all_its_processors() {
    let machines = [usable("a"), usable("b"), unready("c")];
    for (argument, cpus) in [("1000=top", 1), ("11000=top", 8)] {
        let mut bench = bench(6, &["low", "0999=high", argument], &machines);
        task_from(&mut bench, "high", "a", &machines);
        let high = bench.run("a");
        let bootstrap = bench.run("c");
        task_from(&mut bench, "top", "b", &machines);
        let mut words = bench.words();
        words.retain(|w| w.starts_with("interrupt") || w.starts_with("task b"));
        let interrupted: Vec<String> = [bootstrap, high]
            .iter()
            .map(|r| format!("interrupt {}", r.0))
            .collect();
        assert_eq!(words, interrupted);
        bench.ends("a", Outcome::Interrupted);
        bench.bootstrap_ends("c", BootstrapOutcome::Interrupted);
        let started = bench.take().into_iter().find_map(|action| match action {
            Action::StartTask { machine, cpus, .. } => Some((machine, cpus)),
            _ => None,
        });
        assert_eq!(started, Some(("b".to_owned(), cpus)));
    }
}

#[test]
fn a_boosted_task_stays_within_the_budget() {
    let machines = [usable("a"), usable("b")];
    let config = Config {
        controllers: controllers(&["11000=top"]),
        cpu_budget: Some(6),
        ..config(3)
    };
    let mut bench = Bench::new(config, &machines);
    bench.task("a");
    assert_eq!(bench.supervisor.view().cpus_used, 6);
    assert_eq!(
        bench.words(),
        ["ask top a,b", "task a"],
        "nothing is left to offer"
    );
}

#[test]
fn equal_ones_are_asked_in_random_order() {
    let machines = [usable("a")];
    let first = |seed| {
        let config = Config {
            controllers: controllers(&["c", "d", "e"]),
            ..config(1)
        };
        let mut supervisor = Supervisor::new(config, seed);
        supervisor.handle(Event::Enumerated(machines.to_vec()), Time::ZERO);
        supervisor.ask.map(|ask| ask.controller)
    };
    let seen: std::collections::BTreeSet<_> = (0..50).map(first).collect();
    assert_eq!(seen.len(), 3);
    assert_eq!(first(3), first(3));
}
