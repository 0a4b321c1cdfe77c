//! What is wrong with one concerns that one alone.

use super::*;

fn broken(name: &str) -> MachineView {
    MachineView {
        state: MachineState::Bad {
            problem: "its manifest has no name".to_owned(),
        },
        ..usable(name)
    }
}

#[test]
fn a_bad_machine_is_told_once_and_when_it_is_mended() {
    let mut bench = Bench::new(config(1), &[usable("a"), broken("b")]);
    assert_eq!(bench.words(), ["ask c a"]);
    bench.answer(Answer::Nothing);
    bench.after(60);
    bench.machines(&[usable("a"), broken("b")]);
    assert_eq!(bench.reports, ["machine b: its manifest has no name"]);
    bench.answer(Answer::Nothing);
    bench.after(60);
    bench.machines(&[usable("a"), usable("b")]);
    assert_eq!(
        bench.words(),
        ["enumerate", "ask c a", "enumerate", "ask c a,b"]
    );
    assert_eq!(bench.reports[1..], ["machine b: in order again"]);
}

#[test]
fn a_machine_that_fails_is_left_alone_and_the_others_go_on() {
    let machines = [usable("a"), unready("b")];
    let mut bench = Bench::new(config(2), &machines);
    let mut pauses = Vec::new();
    for _ in 0..8 {
        assert!(bench.supervisor.runs.is_bootstrapping("b"));
        bench.words();
        bench.bootstrap_ends("b", BootstrapOutcome::Failed("no sign of life".to_owned()));
        let failed = bench.now;
        while !bench.supervisor.runs.is_bootstrapping("b") {
            bench.nobody_has_a_task(&machines);
            if !bench.supervisor.runs.is_bootstrapping("b") {
                bench.tick();
            }
        }
        assert!(bench.words().iter().any(|w| w == "ask c a"));
        pauses.push((bench.now - failed).as_secs());
    }
    assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
    assert_eq!(
        bench.reports[0],
        "machine b: left alone for 60 s: no sign of life"
    );
    // Another revision is another try.
    bench.bootstrap_ends("b", BootstrapOutcome::Failed("no sign of life".to_owned()));
    let new = MachineView {
        identity: "2".to_owned(),
        ..unready("b")
    };
    bench.nobody_has_a_task(&[usable("a"), new]);
    assert!(bench.supervisor.runs.is_bootstrapping("b"));
}

#[test]
fn a_machine_that_cannot_run_tasks_is_not_offered_for_a_while() {
    let machines = [usable("a"), usable("b")];
    let mut bench = Bench::new(config(1), &machines);
    bench.task("b");
    bench.ends("b", Outcome::MachineFailed);
    bench.machines(&machines);
    assert_eq!(
        bench.words(),
        ["ask c a,b", "task b", "enumerate", "ask c a"]
    );
    bench.answer(Answer::Nothing);
    bench.after(60);
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "ask c a,b"]);
    // A task that is done proves that the machine is well; one that fails by itself proves nothing.
    bench.task("b");
    bench.ends("b", Outcome::Done(Status::Abnormal));
    assert_eq!(bench.supervisor.view().machines[1].failures, 1);
    bench.machines(&machines);
    bench.task("b");
    bench.ends("b", Outcome::Done(Status::Error));
    assert_eq!(bench.supervisor.view().machines[1].failures, 0);
}

#[test]
fn a_copy_of_the_old_revision_proves_nothing_of_the_new_one() {
    let mut bench = Bench::new(config(3), &[usable("b")]);
    bench.task("b");
    bench.answer(Answer::Nothing);
    bench.after(60);
    bench.machines(&[unready("b")]);
    let bootstrap = bench.supervisor.runs.bootstraps().next().unwrap().0;
    bench.after(10);
    let outcome = BootstrapOutcome::Failed("no sign of life".to_owned());
    bench.event(Event::BootstrapEnded {
        run: bootstrap,
        outcome,
    });
    bench.machines(&[unready("b")]);
    bench.is_built("b");
    bench.machines(&[unready("b")]);
    assert!(!bench.supervisor.runs.is_bootstrapping("b"));
}

#[test]
fn the_operator_may_ask_for_another_try() {
    let mut bench = Bench::new(config(1), &[unready("b")]);
    bench.bootstrap_ends("b", BootstrapOutcome::Failed("x".to_owned()));
    bench.machines(&[unready("b")]);
    assert_eq!(bench.words(), ["bootstrap b", "enumerate"]);
    assert_eq!(bench.reports[1..], ["no build machine can be used now"]);
    bench.event(Event::Reload(config(1)));
    bench.machines(&[unready("b")]);
    assert_eq!(bench.words(), ["enumerate", "bootstrap b"]);
}

#[test]
fn a_controller_that_misbehaves_is_left_alone_and_the_others_go_on() {
    let machines = [usable("a")];
    for (answer, told, times) in [
        (
            Answer::Refused("rubbish".to_owned()),
            "controller bad: rubbish",
            8..=60,
        ),
        (
            Answer::Failed("no route".to_owned()),
            "controller bad: no route",
            240..=380,
        ),
        (
            Answer::Task {
                machine: "windows".to_owned(),
            },
            "controller bad: a task for machine windows, which was not offered",
            8..=60,
        ),
    ] {
        let config = Config {
            controllers: controllers(&["0001=bad", "good"]),
            idle_pause: Some(Duration::from_secs(10)),
            ..config(1)
        };
        let mut bench = Bench::new(config, &machines);
        let mut asked = [0, 0];
        while bench.now.as_secs() < 6 * 3600 {
            if bench.supervisor.is_enumerating {
                bench.machines(&machines);
            } else if let Some(ask) = &bench.supervisor.ask {
                if ask.controller == "bad" {
                    asked[0] += 1;
                    bench.answer(answer.clone());
                } else {
                    asked[1] += 1;
                    bench.answer(Answer::Nothing);
                }
            } else {
                bench.tick();
            }
        }
        assert!(times.contains(&asked[0]), "{asked:?} {answer:?}");
        assert!(asked[1] > 2000, "{asked:?}");
        assert_eq!(bench.reports.len(), 1, "{:?}", bench.reports);
        assert!(bench.reports[0].starts_with(told), "{:?}", bench.reports);
        let given_back = bench
            .words()
            .iter()
            .filter(|w| w.starts_with("give back"))
            .count();
        let is_task = matches!(answer, Answer::Task { .. });
        assert_eq!(given_back, if is_task { asked[0] } else { 0 });
    }
}

#[test]
fn a_controller_that_answers_again_is_told_of() {
    let machines = [usable("a")];
    let mut bench = Bench::new(config(1), &machines);
    bench.answer(Answer::Failed("down".to_owned()));
    bench.tick();
    bench.machines(&machines);
    bench.answer(Answer::Nothing);
    assert_eq!(bench.reports.len(), 2);
    assert_eq!(bench.reports[1], "controller c answers again");
}

#[test]
fn a_controller_whose_sources_cannot_be_fetched_gives_the_others_their_turn() {
    let machines = [usable("a")];
    let mut bench = Bench::new(config(1), &machines);
    let mut pauses = Vec::new();
    for _ in 0..4 {
        while bench.supervisor.ask.is_none() {
            if bench.supervisor.is_enumerating {
                bench.machines(&machines);
            } else {
                bench.tick();
            }
        }
        bench.task("a");
        bench.ends("a", Outcome::LinkFailed { passing: false });
        pauses.push(bench.supervisor.view().controllers[0].next - bench.now);
    }
    assert!(
        pauses.is_sorted() && pauses[3] > pauses[0] * 4,
        "{pauses:?}"
    );
}

#[test]
fn what_was_not_the_builds_fault_goes_back_where_that_is_understood() {
    let outcomes = [
        Outcome::Interrupted,
        Outcome::HostFailed,
        Outcome::LinkFailed { passing: true },
        Outcome::LinkFailed { passing: false },
        Outcome::MachineFailed,
        Outcome::RoomFilled,
        Outcome::Done(Status::Abort),
        Outcome::Done(Status::Abnormal),
    ];
    for (kin, knows_interrupt, expected) in [
        (
            Kin::Ours,
            true,
            [true, true, true, false, true, true, false, false],
        ),
        (
            Kin::Stranger,
            true,
            [true, true, true, false, false, false, false, false],
        ),
        (Kin::Stranger, false, [false; 8]),
    ] {
        let back = outcomes.map(|outcome| outcome.gives_back(kin, knows_interrupt));
        assert_eq!(back, expected, "{kin:?} {knows_interrupt}");
    }
}

#[test]
fn a_host_at_fault_takes_no_more_tasks_for_a_while() {
    let machines = [usable("a")];
    let mut bench = Bench::new(config(1), &machines);
    bench.task("a");
    bench.ends("a", Outcome::HostFailed);
    assert_eq!(bench.words(), ["ask c a", "task a"]);
    assert_eq!(
        bench.reports,
        [
            "the host failed a task: no work is taken for 60 s",
            "no new work: the host failed a task"
        ]
    );
    bench.tick();
    assert_eq!(bench.now.as_secs(), 60);
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "ask c a"]);
}

/// It has its room back; but where machine after machine finds none, free space is not the whole truth.
#[test]
fn a_host_whose_room_is_back_takes_the_next_task_unless_it_is_filled_again_and_again() {
    let machines = [usable("a")];
    let mut bench = Bench::new(config(1), &machines);
    let fill = |bench: &mut Bench, outcome| {
        bench.task("a");
        bench.ends("a", outcome);
        bench.machines(&machines);
        bench.supervisor.ask.is_some()
    };
    for _ in 0..5 {
        assert!(fill(&mut bench, Outcome::RoomFilled));
    }
    assert!(fill(&mut bench, Outcome::Done(Status::Error)));
    for _ in 0..5 {
        assert!(fill(&mut bench, Outcome::RoomFilled));
    }
    assert!(bench.reports.is_empty(), "{:?}", bench.reports);
    bench.task("a");
    bench.ends("a", Outcome::RoomFilled);
    assert_eq!(
        bench.reports[0],
        "the host failed a task: no work is taken for 60 s"
    );
}

#[test]
fn a_bootstrap_that_was_overtaken_is_tried_again_after_a_moment() {
    let machines = [unready("b")];
    let mut bench = Bench::new(config(1), &machines);
    bench.bootstrap_ends("b", BootstrapOutcome::Interrupted);
    bench.machines(&machines);
    assert_eq!(bench.words(), ["bootstrap b", "enumerate"]);
    bench.nobody_has_a_task(&machines);
    while !bench.supervisor.runs.is_bootstrapping("b") {
        bench.tick();
        bench.nobody_has_a_task(&machines);
    }
    assert_eq!(bench.now.as_secs(), 5);
}
