//! Draining, stopping, and the exit.

use super::*;

fn at(seconds: u64) -> Event {
    Event::Drain {
        deadline: Time::from_secs(seconds),
    }
}

#[test]
fn an_idle_agent_ends_at_once() {
    let mut bench = Bench::new(config(1), &[usable("a")]);
    bench.answer(Answer::Nothing);
    bench.words();
    bench.event(at(100));
    assert_eq!(bench.words(), ["exit"]);
    bench.event(Event::Stop);
    bench.after(100);
    assert_eq!(bench.words(), [""; 0]);
    assert_eq!(bench.supervisor.next_deadline(), None);
}

#[test]
fn what_runs_may_go_on_until_the_deadline() {
    let machines = [usable("a"), usable("b")];
    let mut bench = Bench::new(config(2), &machines);
    bench.task("a");
    bench.task("b");
    bench.words();
    bench.event(at(100));
    assert_eq!(bench.words(), [""; 0]);
    bench.is_built("a");
    assert_eq!(bench.words(), [""; 0], "nothing is asked for");
    let run = bench.run("b").0;
    bench.tick();
    assert_eq!(
        (bench.now.as_secs(), bench.words()),
        (100, vec![format!("interrupt {run}")])
    );
    bench.after(1);
    assert_eq!(bench.words(), [""; 0], "once");
    bench.ends("b", Outcome::Interrupted);
    assert_eq!(bench.words(), ["exit"]);
    assert_eq!(bench.reports, ["no new work: the agent is about to end"]);
}

#[test]
fn the_second_signal_ends_what_runs() {
    let mut bench = Bench::new(config(1), &[usable("a")]);
    bench.task("a");
    bench.words();
    bench.event(at(100));
    bench.event(Event::Stop);
    let run = bench.run("a").0;
    assert_eq!(bench.words(), [format!("interrupt {run}")]);
    bench.event(Event::Undrain);
    bench.ends("a", Outcome::Interrupted);
    assert_eq!(bench.words(), ["exit"], "there is no way back from a stop");
}

#[test]
fn a_task_that_comes_too_late_is_given_back() {
    for end in [at(100), Event::Stop] {
        let mut bench = Bench::new(config(1), &[usable("a")]);
        bench.words();
        bench.event(end);
        assert_eq!(bench.words(), [""; 0], "the answer is waited for");
        bench.task("a");
        assert_eq!(
            bench.words(),
            ["give back: no new work: the agent is about to end", "exit"]
        );
    }
}

#[test]
fn a_controller_that_does_not_answer_holds_up_the_end_for_a_moment() {
    let mut bench = Bench::new(config(1), &[usable("a")]);
    bench.words();
    bench.event(at(100));
    bench.tick();
    assert_eq!(
        (bench.now.as_secs(), bench.words()),
        (5, vec!["cancel".to_owned()])
    );
    bench.answer(Answer::Failed("given up".to_owned()));
    assert_eq!(bench.words(), ["exit"]);
    assert_eq!(
        bench.reports.len(),
        1,
        "that is no trouble: {:?}",
        bench.reports
    );
}

#[test]
fn a_request_that_is_held_is_given_up_at_once() {
    let machines = [usable("a")];
    let mut bench = Bench::new(config(1), &machines);
    bench.answer_as(Kin::Ours, Answer::Nothing);
    bench.tick();
    bench.machines(&machines);
    bench.words();
    bench.event(at(100));
    assert_eq!(bench.words(), ["cancel"]);
    // The answer was on its way already.
    bench.task("a");
    assert_eq!(bench.words()[1], "exit");
}

#[test]
fn bootstraps_end_with_the_last_task() {
    let machines = [usable("a"), unready("b")];
    let mut bench = Bench::new(config(3), &machines);
    bench.task("a");
    bench.answer(Answer::Nothing);
    bench.words();
    bench.event(at(100));
    assert_eq!(bench.words(), [""; 0]);
    bench.is_built("a");
    let run = bench.run("b").0;
    assert_eq!(bench.words(), [format!("interrupt {run}")]);
    bench.bootstrap_ends("b", BootstrapOutcome::Interrupted);
    assert_eq!(bench.words(), ["exit"]);
}

#[test]
fn a_drain_can_be_taken_back() {
    let machines = [usable("a")];
    let mut bench = Bench::new(config(1), &machines);
    bench.task("a");
    bench.event(at(100));
    bench.event(Event::Undrain);
    bench.words();
    bench.after(200);
    assert_eq!(bench.words(), [""; 0], "the deadline is gone");
    bench.is_built("a");
    bench.machines(&machines);
    assert_eq!(bench.words(), ["enumerate", "ask c a"]);
    assert_eq!(bench.reports[1..], ["tasks are asked for again"]);
}

#[test]
fn a_task_that_waits_for_its_room_is_given_back() {
    let config = Config {
        controllers: controllers(&["low", "0100=urgent"]),
        ..config(1)
    };
    let machines = [usable("a")];
    let mut bench = Bench::new(config, &machines);
    bench.answer(Answer::Nothing);
    bench.task("a");
    bench.after(60);
    bench.machines(&machines);
    bench.task("a");
    assert!(bench.supervisor.waiting.is_some());
    bench.words();
    bench.event(at(100));
    assert_eq!(
        bench.words(),
        ["give back: no new work: the agent is about to end"]
    );
    bench.ends("a", Outcome::Interrupted);
    assert_eq!(bench.words(), ["exit"]);
}
