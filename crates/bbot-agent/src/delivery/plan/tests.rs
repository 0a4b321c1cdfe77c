use proptest::prelude::*;

use super::*;

const A: &str = "http://a.example";
const B: &str = "http://b.example";

fn secs(seconds: u64) -> Time {
    Duration::from_secs(seconds)
}

fn entry(origin: &str, kin: Kin) -> Entry {
    Entry {
        origin: origin.to_owned(),
        kin,
        age: Duration::ZERO,
        gate: None,
    }
}

fn plan(origins: &[&str]) -> Plan {
    let mut plan = Plan::new(1);
    for (number, origin) in origins.iter().enumerate() {
        plan.add(Id(number as u64), entry(origin, Kin::Ours), secs(0));
    }
    plan
}

/// Everything that is to be posted at this time, with this verdict for each.
fn round(plan: &mut Plan, now: Time, verdict: impl Fn(u64) -> Verdict) -> Vec<u64> {
    let mut posted = Vec::new();
    while let Some(id) = plan.next(now) {
        posted.push(id.0);
        plan.posted(id, verdict(id.0), now);
    }
    posted
}

#[test]
fn results_go_in_order_and_one_at_a_time_to_each_controller() {
    let mut plan = plan(&[A, A, B, B]);
    assert_eq!(plan.next(secs(0)), Some(Id(0)));
    assert_eq!(plan.next(secs(0)), Some(Id(2)));
    assert_eq!((plan.next(secs(0)), plan.deadline()), (None, None));
    assert_eq!(plan.posted(Id(2), Verdict::Taken, secs(1)), Fate::Forget);
    assert_eq!(plan.deadline(), Some(secs(0)));
    assert_eq!(plan.next(secs(1)), Some(Id(3)));
    assert_eq!(
        plan.posted(Id(3), Verdict::Refused, secs(1)),
        Fate::SetAside
    );
    assert_eq!(plan.posted(Id(0), Verdict::Taken, secs(1)), Fate::Forget);
    assert_eq!(round(&mut plan, secs(1), |_| Verdict::Taken), [1]);
    assert!(plan.is_empty() && plan.is_idle(secs(1)) && plan.ways().is_empty());
}

#[test]
fn a_controller_that_drops_packets_holds_up_nobody_else() {
    let mut plan = plan(&[A, B, B, B]);
    // Its request hangs.
    assert_eq!(plan.next(secs(0)), Some(Id(0)));
    assert_eq!(round(&mut plan, secs(0), |_| Verdict::Taken), [1, 2, 3]);
    plan.posted(Id(0), Verdict::Unreachable, secs(300));
    plan.add(Id(9), entry(B, Kin::Ours), secs(300));
    assert_eq!(round(&mut plan, secs(300), |_| Verdict::Taken), [9]);
}

#[test]
fn a_controller_that_is_away_is_left_alone_longer_and_longer_and_the_order_stays() {
    for (kin, longest) in [(Kin::Ours, 15), (Kin::Stranger, 60)] {
        let mut plan = Plan::new(3);
        plan.add(Id(1), entry(A, kin), secs(0));
        plan.add(Id(2), entry(A, kin), secs(0));
        let mut now = secs(0);
        for failures in 1..20_u32 {
            assert_eq!(round(&mut plan, now, |_| Verdict::Unreachable), [1]);
            let next = plan.deadline().unwrap();
            let pause = (next - now).as_secs_f64();
            let full = 2_f64
                .powi(i32::try_from(failures).unwrap() - 1)
                .min(f64::from(longest));
            assert!(
                (full * 0.8..=full * 1.2).contains(&pause),
                "{failures}: {pause}"
            );
            assert_eq!(plan.next(next - Duration::from_millis(1)), None);
            assert_eq!(plan.ways()[0].failures, failures);
            now = next;
        }
        // It answers a request for a task: no need to wait.
        round(&mut plan, now, |_| Verdict::Unreachable);
        plan.reached(B);
        assert_eq!(plan.next(now), None);
        plan.reached(A);
        assert_eq!(round(&mut plan, now, |_| Verdict::Taken), [1, 2]);
    }
}

#[test]
fn one_poisonous_result_does_not_block_the_rest() {
    let mut plan = plan(&[A, A, A]);
    let poison = |id| {
        if id == 0 {
            Verdict::Busy
        } else {
            Verdict::Taken
        }
    };
    for _ in 1..STEP_BEHIND {
        let now = plan.deadline().unwrap();
        assert_eq!(round(&mut plan, now, poison), [0]);
    }
    let now = plan.deadline().unwrap();
    assert_eq!(round(&mut plan, now, poison), [0, 1, 2]);
    assert_eq!(plan.ways()[0].behind, 1);
    // One that comes later does not wait for it either, whatever its pause is by now.
    for id in 10..20 {
        let now = plan.deadline().unwrap();
        assert_eq!(round(&mut plan, now, poison), [0]);
        plan.add(Id(id), entry(A, Kin::Ours), now);
        assert_eq!(round(&mut plan, now, poison), [id]);
    }
    let now = plan.deadline().unwrap();
    assert_eq!(round(&mut plan, now, |_| Verdict::Taken), [0]);
}

#[test]
fn one_behind_is_not_starved_by_what_is_fresh() {
    let mut plan = plan(&[A]);
    for _ in 0..STEP_BEHIND {
        let now = plan.deadline().unwrap();
        round(&mut plan, now, |_| Verdict::Busy);
    }
    let due = plan.deadline().unwrap();
    // More is added than can be posted, all of it after this one was due.
    for id in 1..100 {
        plan.add(Id(id), entry(A, Kin::Ours), due + secs(1));
    }
    assert_eq!(plan.next(due + secs(2)), Some(Id(0)));
}

#[test]
fn a_controller_that_was_busy_gets_everything_soon_when_it_is_well() {
    let mut plan = plan(&[A; 5]);
    let mut now = secs(0);
    while now < secs(3600) {
        round(&mut plan, now, |_| Verdict::Busy);
        now = plan.deadline().unwrap();
    }
    assert_eq!(plan.ways()[0].behind, 5);
    let first = round(&mut plan, now, |_| Verdict::Taken);
    assert_eq!(first.len(), 5, "one was taken, so the others go at once");
}

#[test]
fn a_busy_controller_is_not_flooded() {
    let mut plan = plan(&[A; 200]);
    let (mut now, mut posts) = (secs(0), 0);
    while now < secs(3600) {
        posts += round(&mut plan, now, |_| Verdict::Busy).len();
        now = plan.deadline().unwrap();
    }
    // Three tries each, and then one a minute of all together.
    assert!(posts < 200 * 3 + 100, "{posts}");
}

/// Until this time each post ends so; whether a result is still there.
fn goes_on(plan: &mut Plan, now: &mut Time, until: Time, verdict: Verdict) -> bool {
    while *now < until {
        *now = match plan.deadline() {
            Some(at) => at.max(*now),
            None => return false,
        };
        round(plan, *now, |_| verdict);
    }
    !plan.is_empty()
}

#[test]
fn a_stranger_may_refuse_for_three_hours_and_ours_for_ever() {
    let hours = |hours: u64| secs(hours * 3600);
    for (kin, stays) in [(Kin::Stranger, false), (Kin::Ours, true)] {
        let mut plan = Plan::new(1);
        // One of an earlier life: however old, it is not given up for that.
        let old = Entry {
            age: PATIENCE * 9,
            ..entry(A, kin)
        };
        plan.add(Id(1), old, secs(0));
        let mut now = secs(0);
        assert!(goes_on(&mut plan, &mut now, hours(2), Verdict::Busy));
        let left = goes_on(&mut plan, &mut now, hours(4), Verdict::Busy);
        assert_eq!(left, stays, "{kin:?}");
    }
}

#[test]
fn time_in_which_a_stranger_cannot_be_reached_does_not_count() {
    let hours = |hours: u64| secs(hours * 3600);
    for silent in [Verdict::Unreachable, Verdict::Unsent] {
        let mut plan = Plan::new(1);
        plan.add(Id(1), entry(A, Kin::Stranger), secs(0));
        let mut now = secs(0);
        assert!(goes_on(&mut plan, &mut now, hours(100), silent));
    }
    // It comes and goes, and answers for most of an hour each time: the fourth is one too many.
    let mut plan = Plan::new(1);
    plan.add(Id(1), entry(A, Kin::Stranger), secs(0));
    let mut now = secs(0);
    for day in 1..=3 {
        let noon = hours(day * 24 + 12);
        let night = noon + secs(50 * 60);
        assert!(goes_on(&mut plan, &mut now, noon, Verdict::Unreachable));
        assert!(goes_on(&mut plan, &mut now, night, Verdict::Busy), "{day}");
    }
    assert!(!goes_on(&mut plan, &mut now, hours(200), Verdict::Busy));
    assert!(now < hours(3 * 24 + 15), "{now:?}");
}

#[test]
fn a_result_waits_for_what_goes_first_but_not_for_ever() {
    let mut plan = Plan::new(1);
    let gated = Entry {
        gate: Some(secs(10)),
        ..entry(A, Kin::Ours)
    };
    plan.add(Id(1), gated.clone(), secs(0));
    plan.add(Id(2), gated, secs(0));
    plan.add(Id(3), entry(A, Kin::Ours), secs(0));
    assert!(!plan.is_idle(secs(1)));
    assert_eq!(round(&mut plan, secs(1), |_| Verdict::Taken), [3]);
    assert_eq!(plan.deadline(), Some(secs(10)));
    plan.open(Id(2));
    assert_eq!(round(&mut plan, secs(2), |_| Verdict::Taken), [2]);
    assert!(!plan.is_idle(secs(2)));
    assert_eq!(round(&mut plan, secs(10), |_| Verdict::Taken), [1]);
}

#[test]
fn at_the_end_everything_is_tried_once_more() {
    let mut plan = plan(&[A, B]);
    round(&mut plan, secs(0), |_| Verdict::Unreachable);
    assert!(plan.is_idle(secs(0)));
    let soon = Duration::from_millis(40);
    plan.hurry(soon);
    assert!(plan.is_idle(soon), "they have just been tried");
    let now = Duration::from_millis(60);
    assert_eq!(plan.next(now), None);
    plan.hurry(now);
    assert!(!plan.is_idle(now));
    assert_eq!(round(&mut plan, now, |_| Verdict::Busy), [0, 1]);
    assert!(plan.is_idle(now));
}

#[test]
fn what_is_not_known_harms_nothing() {
    let mut plan = plan(&[A]);
    assert_eq!(plan.posted(Id(7), Verdict::Busy, secs(0)), Fate::Forget);
    plan.open(Id(7));
    // The same once more is the same.
    plan.add(Id(0), entry(B, Kin::Ours), secs(0));
    assert_eq!((plan.len(), plan.ways().len()), (1, 1));
}

#[derive(Debug, Clone)]
enum Move {
    Add {
        origin: u8,
        ours: bool,
        gate: Option<u64>,
    },
    Wait(u64),
    End {
        which: usize,
        verdict: u8,
    },
    Open(u64),
    Reached(u8),
    Hurry,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let one = prop_oneof![
        3 => (0..3_u8, any::<bool>(), prop::option::of(0..40_u64))
            .prop_map(|(origin, ours, gate)| Move::Add { origin, ours, gate }),
        3 => (0..100_u64).prop_map(Move::Wait),
        6 => (any::<usize>(), 0..5_u8).prop_map(|(which, verdict)| Move::End { which, verdict }),
        1 => (0..30_u64).prop_map(Move::Open),
        1 => (0..3_u8).prop_map(Move::Reached),
        1 => Just(Move::Hurry),
    ];
    prop::collection::vec(one, 1..200)
}

proptest! {
    /// Whatever happens: one post at a time for each origin, nothing is forgotten before it
    /// is taken, refused or given up, the deadline is never later than what is due, and when
    /// the controllers are well in the end everything is taken.
    #[test]
    fn nothing_is_lost_and_nothing_is_stuck(moves in moves()) {
        let mut plan = Plan::new(7);
        let mut now = secs(0);
        let mut waiting: BTreeMap<Id, String> = BTreeMap::new();
        let mut flying: Vec<Id> = Vec::new();
        let mut last = 0;
        for step in moves {
            match step {
                Move::Add { origin, ours, gate } => {
                    last += 1;
                    let origin = format!("http://{origin}");
                    let kin = if ours { Kin::Ours } else { Kin::Stranger };
                    let gate = gate.map(|g| now + secs(g));
                    plan.add(Id(last), Entry { gate, ..entry(&origin, kin) }, now);
                    waiting.insert(Id(last), origin);
                }
                Move::Wait(seconds) => now += secs(seconds),
                Move::End { which, verdict } if !flying.is_empty() => {
                    let id = flying.remove(which % flying.len());
                    let verdict = [
                        Verdict::Taken,
                        Verdict::Refused,
                        Verdict::Busy,
                        Verdict::Unreachable,
                        Verdict::Unsent,
                    ][usize::from(verdict)];
                    match plan.posted(id, verdict, now) {
                        Fate::Again { at } => prop_assert!(at > now),
                        Fate::GivenUp { after } => {
                            prop_assert!(after > PATIENCE && verdict == Verdict::Busy);
                            waiting.remove(&id);
                        }
                        Fate::Forget | Fate::SetAside => {
                            prop_assert!(matches!(verdict, Verdict::Taken | Verdict::Refused));
                            waiting.remove(&id);
                        }
                    }
                }
                Move::End { .. } => {}
                Move::Open(id) => plan.open(Id(id)),
                Move::Reached(origin) => plan.reached(&format!("http://{origin}")),
                Move::Hurry => plan.hurry(now),
            }
            let deadline = plan.deadline();
            let mut is_first = true;
            while let Some(id) = plan.next(now) {
                if std::mem::take(&mut is_first) {
                    prop_assert!(deadline.is_some_and(|at| at <= now));
                }
                let origin = &waiting[&id];
                prop_assert!(flying.iter().all(|other| waiting[other] != *origin));
                flying.push(id);
            }
            prop_assert!(plan.deadline().is_none_or(|at| at > now));
            prop_assert_eq!(plan.len(), waiting.len());
        }
        for id in flying {
            plan.posted(id, Verdict::Taken, now);
            waiting.remove(&id);
        }
        for _ in 0..waiting.len() * 2 {
            let Some(at) = plan.deadline() else { break };
            now = now.max(at);
            for id in round(&mut plan, now, |_| Verdict::Taken) {
                waiting.remove(&Id(id));
            }
        }
        prop_assert!(waiting.is_empty() && plan.is_empty());
    }
}
