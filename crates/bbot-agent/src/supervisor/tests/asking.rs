//! Who is asked, when, and for how long the request may be held.

use super::*;

fn holds(bench: &mut Bench) -> Vec<u64> {
    let asks = bench.take().into_iter().filter_map(|action| match action {
        Action::Ask { hold, .. } => Some(hold.as_secs()),
        _ => None,
    });
    asks.collect()
}

#[test]
fn a_task_is_run_and_the_next_one_asked_for() {
    let machines = [usable("a"), usable("b")];
    let mut bench = Bench::new(config(1), &machines);
    assert_eq!(bench.words(), ["ask c a,b"]);
    bench.task("b");
    assert_eq!(bench.words(), ["task b"]);
    assert_eq!(bench.supervisor.next_deadline(), None, "the slot is taken");
    bench.is_built("b");
    assert_eq!(bench.words(), ["enumerate"]);
    bench.machines(&machines);
    assert_eq!(bench.words(), ["ask c a,b"]);
}

#[test]
fn while_a_slot_is_free_the_next_task_is_asked_for() {
    let machines = [usable("a")];
    let mut bench = Bench::new(config(2), &machines);
    bench.task("a");
    assert_eq!(
        bench.words(),
        ["ask c a", "task a", "ask c a"],
        "a clone of it"
    );
    bench.task("a");
    assert_eq!(bench.words(), ["task a"]);
    assert_eq!(bench.supervisor.view().slots_used, 2);
}

#[test]
fn one_request_is_on_its_way_at_a_time() {
    let machines = [usable("a")];
    let config = Config {
        controllers: controllers(&["c", "d"]),
        ..config(4)
    };
    let mut bench = Bench::new(config, &machines);
    assert_eq!(bench.take().len(), 1);
    bench.after(30);
    bench.event(Event::Resources(HostState::Ok));
    assert_eq!(bench.words(), [""; 0]);
    bench.answer(Answer::Nothing);
    bench.machines(&machines);
    let words = bench.words();
    assert!(words[1] == "ask c a" || words[1] == "ask d a", "{words:?}");
}

#[test]
fn with_nothing_to_do_it_pauses() {
    let machines = [usable("a")];
    let two = Config {
        controllers: controllers(&["c", "d"]),
        ..config(1)
    };
    let mut bench = Bench::new(two, &machines);
    bench.nobody_has_a_task(&machines);
    let asked = bench.words();
    assert_eq!(asked.len(), 2, "each once: {asked:?}");
    bench.tick();
    assert_eq!(
        (bench.now.as_secs(), bench.words()),
        (60, vec!["enumerate".to_owned()])
    );
}

#[test]
fn without_machines_it_looks_again_soon() {
    let mut bench = Bench::new(config(1), &[]);
    assert_eq!(bench.reports, ["no build machines"]);
    for n in 1..4 {
        bench.tick();
        assert_eq!(bench.now.as_secs(), n * 5);
        bench.machines(&[]);
        assert_eq!(bench.words(), ["enumerate"]);
    }
    bench.tick();
    bench.machines(&[usable("a")]);
    assert_eq!(bench.words(), ["enumerate", "ask c a"]);
    assert_eq!(
        bench.reports,
        ["no build machines", "tasks are asked for again"]
    );
}

#[test]
fn a_single_controller_of_ours_holds_the_request() {
    let machines = [usable("a"), usable("b")];
    let mut bench = Bench::new(config(2), &machines);
    // Not known yet whose it is.
    assert_eq!(holds(&mut bench), [0]);
    bench.answer_as(Kin::Ours, Answer::Nothing);
    bench.tick();
    assert_eq!(bench.now.as_secs(), 1);
    bench.machines(&machines);
    assert_eq!(holds(&mut bench), [20]);
    bench.answer_as(Kin::Ours, Answer::Nothing);
    bench.tick();
    // A machine that must be bootstrapped cannot be offered: that may change soon.
    let machines = [usable("a"), unready("b")];
    bench.machines(&machines);
    assert_eq!(holds(&mut bench), [2]);
    let two = Config {
        controllers: controllers(&["c", "d"]),
        ..config(2)
    };
    bench.event(Event::Reload(two));
    bench.answer_as(Kin::Ours, Answer::Nothing);
    bench.machines(&machines);
    assert_eq!(holds(&mut bench), [0], "the other one waits for its turn");
}

#[test]
fn where_others_wait_an_answer_is_not_waited_for_long() {
    let machines = [usable("a")];
    for (urls, kin, expected) in [
        (&["c"][..], Kin::Stranger, None),
        (&["c"], Kin::Ours, None),
        (&["c", "d"], Kin::Stranger, Some(30)),
        (&["c", "d"], Kin::Ours, Some(30)),
        (&["0002=c", "0001=d", "e"], Kin::Ours, Some(30)),
    ] {
        let config = Config {
            controllers: controllers(urls),
            ..config(1)
        };
        let mut bench = Bench::new(config, &machines);
        // The first time it is not known whose it is.
        bench.answer_as(kin, Answer::Nothing);
        while bench.supervisor.ask.is_none() {
            bench.tick();
            bench.machines(&machines);
        }
        let asks = bench.take().into_iter().filter_map(|action| match action {
            Action::Ask { within, .. } => Some(within.map(|within| within.as_secs())),
            _ => None,
        });
        let asks: Vec<_> = asks.collect();
        assert!(
            asks.len() >= 2 && asks.iter().all(|a| *a == expected),
            "{urls:?}: {asks:?}"
        );
    }
}

#[test]
fn what_can_be_offered_anew_is_offered_at_once() {
    let mut bench = Bench::new(config(3), &[usable("a"), unready("b")]);
    assert_eq!(bench.words(), ["bootstrap b", "ask c a"]);
    bench.nobody_has_a_task(&[usable("a")]);
    bench.bootstrap_ends("b", BootstrapOutcome::Done);
    bench.machines(&[usable("a"), usable("b")]);
    assert_eq!(bench.words(), ["enumerate", "ask c a,b"]);
    // While it is asked, a run ends: the answer is of a state that is over.
    bench.task("a");
    bench.task("a");
    bench.words();
    let ask = bench.ask();
    bench.is_built("a");
    assert_eq!(bench.words(), [""; 0]);
    let (answer, kin) = (Answer::Nothing, None);
    bench.event(Event::Answered { ask, answer, kin });
    bench.machines(&[usable("a"), usable("b")]);
    assert_eq!(bench.words(), ["enumerate", "ask c a,b"]);
}

#[test]
fn a_machine_that_may_run_once_is_offered_once() {
    let once = |name: &str| MachineView {
        exclusive: true,
        ..usable(name)
    };
    let machines = [once("a"), usable("b")];
    let mut bench = Bench::new(config(4), &machines);
    bench.task("a");
    bench.task("b");
    assert_eq!(
        bench.words(),
        ["ask c a,b", "task a", "ask c b", "task b", "ask c b"]
    );
    bench.is_built("a");
    bench.answer(Answer::Nothing);
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "ask c a,b"]);
}

#[test]
fn a_new_configuration_is_taken_over_while_tasks_run() {
    let machines = [usable("a")];
    let mut bench = Bench::new(config(2), &machines);
    bench.task("a");
    bench.words();
    let new = Config {
        controllers: controllers(&["d"]),
        ..config(1)
    };
    bench.event(Event::Reload(new));
    // The one that was asked is not among the controllers any more; its task is not lost.
    bench.task("a");
    assert_eq!(
        bench.words(),
        ["give back: there is no room for machine a any more"]
    );
    bench.is_built("a");
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "ask d a"]);
}

#[test]
fn nothing_runs_while_the_host_is_short() {
    let machines = [usable("a"), unready("b")];
    let mut bench = Bench::new(config(3), &machines);
    assert_eq!(bench.words(), ["bootstrap b", "ask c a"]);
    bench.task("a");
    bench.words();
    bench.event(Event::Resources(HostState::Low(
        "the disk is full".to_owned(),
    )));
    bench.task("a");
    assert_eq!(bench.words(), ["give back: no new work: the disk is full"]);
    bench.bootstrap_ends("b", BootstrapOutcome::Interrupted);
    bench.after(1000);
    assert_eq!(bench.words(), [""; 0]);
    assert_eq!(bench.reports, ["no new work: the disk is full"]);
    bench.event(Event::Resources(HostState::Ok));
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "bootstrap b", "ask c a"]);
    assert_eq!(bench.reports[1..], ["tasks are asked for again"]);
}

#[test]
fn machines_that_are_watched_are_looked_at_when_they_change() {
    let machines = [usable("a")];
    let mut bench = Bench::new(config(2), &machines);
    bench.event(Event::Watched(true));
    assert_eq!(bench.words(), ["ask c a"]);
    // Not between tasks,
    for _ in 0..3 {
        bench.task("a");
        bench.is_built("a");
        let words = bench.words();
        assert!(words.contains(&"ask c a".to_owned()), "{words:?}");
        assert!(!words.contains(&"enumerate".to_owned()), "{words:?}");
    }
    // but when something has changed, also while a controller takes its time;
    bench.event(Event::MachinesChanged);
    assert_eq!(bench.words(), ["enumerate"]);
    bench.machines(&[usable("a"), unready("b")]);
    assert_eq!(bench.words(), ["bootstrap b"]);
    let run = bench.run("b");
    let outcome = BootstrapOutcome::Done;
    bench.event(Event::BootstrapEnded { run, outcome });
    assert_eq!(bench.words(), ["enumerate"]);
    // once more when it has changed meanwhile;
    bench.event(Event::MachinesChanged);
    assert_eq!(bench.words(), [""; 0]);
    bench.machines(&[usable("a"), unready("b")]);
    assert_eq!(bench.words(), ["enumerate"]);
    bench.machines(&[usable("a"), usable("b")]);
    // and now and then all the same.
    bench.answer(Answer::Nothing);
    assert_eq!(bench.words(), ["ask c a,b"]);
    bench.answer(Answer::Nothing);
    bench.now += Duration::from_secs(61);
    bench.event(Event::Tick);
    assert_eq!(bench.words(), ["enumerate"]);
}
