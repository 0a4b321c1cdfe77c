//! Any order of events: the store does what the simplest model of the queue does.

mod parts;

use std::collections::BTreeMap;

use bbot_controller::clock::Millis;
use bbot_controller::package::Particulars;
use bbot_controller::package::plan::Plan;
use bbot_controller::queue::lane::Lane;
use bbot_controller::queue::lease::{Lapse, Renewal, Tries};
use bbot_controller::queue::order::{Class, Priority};
use bbot_controller::queue::outcome::{
    Dropped, Facts, Identity, Machine, Proof, Skip, Verdict, decide,
};
use bbot_controller::queue::{self, State};
use bbot_controller::source::{Repository, Source};
use bbot_controller::store::{Instead, NewLease, NewResult, NewSubmission, Store, Waiting};
use bbot_manifest::Status;
use proptest::prelude::*;

use crate::cluster::Cluster;
use crate::store::{Place, asker, on_both};

use parts::{
    ASK, BEAT, End, Event, LANES, LATEST, LEASE, Model, REBUILD, SUBMIT, Session, Turns, cancel,
    end_lapsed, enqueue, event, turn,
};

async fn run(store: Store, events: Vec<Event>) {
    let source = Source::Repository(Repository {
        url: "https://x.org/1/a".into(),
        kind: None,
        trust: vec![],
    });
    let mut model: BTreeMap<i64, Model> = BTreeMap::new();
    let mut sessions: Vec<Session> = Vec::new();
    let (mut now, mut seen, mut turns) = (0_i64, 0_i64, Turns::new());

    for event in events {
        match event {
            Event::Submit {
                who,
                package,
                version,
                priority,
                lane,
            } => {
                let mut plan = Plan::of(&[("c", "t")]);
                plan.builds[0].lane = Lane::parse(LANES[lane]).unwrap();
                let (priority, version) = (Priority::new(priority).unwrap(), version.to_string());
                let new = NewSubmission {
                    name: package,
                    version: &version,
                    source: &source,
                    asker: &asker(who),
                    priority,
                    particulars: &Particulars::default(),
                    service: None,
                    breakpoint: None,
                    plan: &plan,
                };
                let submitted = store.submit(new, Millis(now)).await.unwrap();
                let id = submitted.builds[0].id;
                let class = Class::of_submission(LANES[lane].contains("interactive"));
                let place = turn(&mut turns, who, class, priority, now);
                let fresh = Model {
                    package,
                    version,
                    lane,
                    state: State::Queued,
                    place,
                    class,
                    priority,
                    submitter: who,
                    queued: now,
                    again_place: None,
                    session: None,
                    until: 0,
                    again: false,
                    results: 0,
                    status: None,
                    interrupts: 0,
                    lapses: 0,
                };
                assert!(
                    model.insert(id, fresh).is_none(),
                    "ids are never used again"
                );
                let before: Vec<i64> = model.values().map(|m| m.place).collect();
                enqueue(&mut model, id, who, class, place, now);
                let moved = model.iter().zip(before);
                let moved =
                    moved.filter(|((other, m), before)| **other != id && m.place != *before);
                assert_eq!(submitted.exchanged, moved.count() > 0);
                assert_eq!(submitted.builds[0].place, model[&id].place);
            }
            Event::Ask { lanes } => {
                let expected = model
                    .iter()
                    .filter(|(_, m)| m.state == State::Queued && lanes.contains(&m.lane))
                    .min_by_key(|(id, m)| (m.place, **id))
                    .map(|(id, _)| *id);
                let wanted: Vec<Waiting<'_>> = lanes
                    .iter()
                    .map(|lane| Waiting {
                        configuration: "c",
                        target: "t",
                        lane: LANES[*lane],
                        repository: None,
                    })
                    .collect();
                let found = store.first(&wanted).await.unwrap();
                if let Some(found) = &found {
                    assert_eq!(lanes[found.index], model[&found.build].lane);
                }
                let found = found.map(|found| found.build);
                assert_eq!(found, expected, "the lowest place of these lanes first");
                let Some(id) = found else { continue };
                let session = format!("s{}", sessions.len());
                let lease = NewLease {
                    build: id,
                    instead: Instead::None,
                    session: &session,
                    path: &format!("p{}", sessions.len()),
                    until: Millis(now + LEASE),
                    renews: true,
                    latest: Millis(now + LATEST),
                    agent: "a",
                    fingerprint: None,
                    challenge: None,
                    machine: "m",
                    machine_summary: "M",
                    auxiliaries: &[],
                    login: None,
                    toolchain_name: "d",
                    toolchain_version: "1",
                    makings: None,
                    signing: None,
                };
                assert!(store.lease(&lease, Millis(now)).await.unwrap().is_some());
                assert!(
                    store.lease(&lease, Millis(now)).await.unwrap().is_none(),
                    "never twice"
                );
                let m = model.get_mut(&id).unwrap();
                if m.again {
                    end_lapsed(&mut sessions, id);
                }
                (m.state, m.session, m.until, m.again) =
                    (State::Building, Some(sessions.len()), now + LEASE, false);
                sessions.push(Session {
                    build: id,
                    end: End::Open,
                    confirmed: false,
                    latest: now + LATEST,
                });
            }
            Event::Renew { session } => {
                let (renewal, _) = store
                    .renew(
                        &format!("p{session}"),
                        std::time::Duration::from_millis(LEASE.unsigned_abs()),
                        Millis(now),
                        Millis(now),
                    )
                    .await
                    .unwrap();
                let Some(s) = sessions.get_mut(session) else {
                    assert_eq!(renewal, Renewal::Unknown);
                    continue;
                };
                let m = model.get_mut(&s.build).unwrap();
                let until = (now + LEASE).min(s.latest);
                if m.session != Some(session) || s.latest <= now {
                    assert_eq!(renewal, Renewal::Over);
                } else if m.state == State::Queued {
                    assert_eq!(renewal, Renewal::Revive);
                    m.lapses = m.lapses.saturating_sub(1);
                    (m.state, m.until) = (State::Building, until);
                    (s.end, s.confirmed) = (End::Open, true);
                } else {
                    assert_eq!(renewal, Renewal::Renew);
                    (m.until, s.confirmed) = (until, true);
                }
            }
            Event::TakeBack { session } => {
                let taken = store.take_back(&format!("s{session}")).await.unwrap();
                let Some(s) = sessions.get_mut(session) else {
                    assert_eq!(taken, None);
                    continue;
                };
                let m = model.get_mut(&s.build).unwrap();
                let expected =
                    m.session == Some(session) && m.state == State::Building && !s.confirmed;
                assert_eq!(taken.is_some(), expected);
                if expected {
                    (m.state, m.session, s.end) = (State::Queued, None, End::Lapsed);
                }
            }
            Event::Restart { time } => {
                let building = |m: &&mut Model| m.state == State::Building;
                store.beat(Millis(now)).await.unwrap();
                if model.values_mut().any(|m| building(&m)) {
                    seen = now;
                }
                now += time;
                let lease = std::time::Duration::from_millis(LEASE.unsigned_abs());
                let held = store.restart_leases(Millis(now), lease).await.unwrap();
                let away = (now - seen - BEAT).max(0);
                let mut count = 0;
                for m in model.values_mut().filter(building) {
                    m.until = m.until.max((m.until + away).min(now + LEASE));
                    count += usize::from(away > 0);
                }
                assert_eq!(held, count);
                seen = now;
            }
            Event::Result { session, status } => {
                let name = format!("s{session}");
                let result = NewResult {
                    status,
                    operations: Vec::new(),
                    checksums: None,
                    log_last: None,
                };
                let take = store.take_result(&name, result, Millis(now), move |facts| {
                    decide(Facts {
                        session: facts.state,
                        proof: Proof::Good,
                        identity: Identity::Same,
                        status,
                        skip: Skip::NotOffered,
                        again: facts.again,
                        tries: Tries::of(&facts.build.lane),
                        machine: Machine::Unmentioned,
                        interrupts: facts.build.interrupts,
                        lapses: facts.build.lapses,
                    })
                });
                let verdict = take.await.unwrap().map(|t| t.verdict);
                let Some(&Session { build: id, end, .. }) = sessions.get(session) else {
                    assert_eq!(verdict, None);
                    continue;
                };
                let m = model.get_mut(&id).unwrap();
                let held = m.session == Some(session) && m.state == State::Building;
                let interrupt = status == Status::Interrupt;
                match end {
                    End::Answered => assert_eq!(verdict, Some(Verdict::Repeat)),
                    End::GivenBack | End::Cancelled if interrupt => {
                        assert_eq!(verdict, Some(Verdict::Repeat));
                    }
                    End::Cancelled => {
                        assert_eq!(verdict, Some(Verdict::Drop(Dropped::Cancelled)));
                    }
                    End::GivenBack | End::Over => {
                        assert!(matches!(verdict, Some(Verdict::Drop(_))), "{verdict:?}");
                    }
                    End::Open | End::Lapsed if interrupt && !held => {
                        assert_eq!(verdict, Some(Verdict::Release));
                        sessions[session].end = End::GivenBack;
                        if m.session == Some(session) {
                            if m.again {
                                end_lapsed(&mut sessions, id);
                            }
                            (m.session, m.again) = (None, false);
                        }
                    }
                    End::Open | End::Lapsed if interrupt && !m.is_given_up() => {
                        assert_eq!(verdict, Some(Verdict::Requeue));
                        sessions[session].end = End::GivenBack;
                        m.interrupts += 1;
                        if m.again {
                            end_lapsed(&mut sessions, id);
                        }
                        m.come_back();
                        (m.session, m.again) = (None, false);
                    }
                    End::Open | End::Lapsed => {
                        for s in sessions
                            .iter_mut()
                            .filter(|s| s.build == id && matches!(s.end, End::Open | End::Lapsed))
                        {
                            s.end = End::Over;
                        }
                        sessions[session].end = End::Answered;
                        let kept = if interrupt { Status::Abort } else { status };
                        (m.results, m.status, m.session) = (m.results + 1, Some(kept), None);
                        m.state = if m.again { State::Queued } else { State::Built };
                        let state = m.state;
                        (m.again, m.interrupts, m.lapses) = (false, 0, 0);
                        if state == State::Queued {
                            m.queued = now;
                            let (place, who) = m.again_place.unwrap();
                            enqueue(&mut model, id, who, Class::Forced, place, now);
                        }
                        assert_eq!(
                            verdict,
                            Some(if interrupt {
                                Verdict::GiveUp
                            } else {
                                Verdict::Keep(state)
                            })
                        );
                        let late = store
                            .attempt(id, model[&id].results)
                            .await
                            .unwrap()
                            .unwrap()
                            .late;
                        assert_eq!(late, !held);
                    }
                }
            }
            Event::Rebuild { who, build } => {
                let id = i64::try_from(build).unwrap() + 1;
                let asker = asker(who);
                let done = store.rebuild(id, &asker, None, Millis(now)).await.unwrap();
                let Some(m) = model.get_mut(&id) else {
                    assert_eq!(done, None);
                    continue;
                };
                (m.interrupts, m.lapses) = (0, 0);
                let mut force = || turn(&mut turns, who, Class::Forced, m.priority, now);
                let place = match m.state {
                    State::Built | State::Cancelled => Some(force()),
                    State::Queued if m.class != Class::Forced => {
                        Some(force()).filter(|place| *place < m.place)
                    }
                    State::Queued | State::Building => None,
                };
                if m.state.is_over() {
                    (m.state, m.queued) = (State::Queued, now);
                } else if m.session.is_some() && !m.again {
                    (m.again, m.again_place) = (true, Some((force(), who)));
                } else if m.session.is_none() {
                    end_lapsed(&mut sessions, id);
                }
                if let Some(place) = place {
                    enqueue(&mut model, id, who, Class::Forced, place, now);
                }
            }
            Event::Cancel { build } => {
                let id = i64::try_from(build).unwrap() + 1;
                let done = store
                    .cancel(id, Some("why"), asker("me").share, Millis(now))
                    .await
                    .unwrap();
                let done = done.map(|(cancel, before)| (cancel, before.state));
                let expected = model.get(&id).map(|m| (queue::cancel(m.state), m.state));
                assert_eq!(done, expected);
                cancel(&mut model, &mut sessions, &mut turns, id, now);
            }
            Event::CancelSubmission { build } => {
                let id = i64::try_from(build).unwrap() + 1;
                let done = store
                    .cancel_submission(id, None, asker("me").share, Millis(now))
                    .await;
                let done: Vec<i64> = done.unwrap().iter().map(|b| b.id).collect();
                let left = model.get(&id).is_some_and(|m| !m.state.is_over());
                assert_eq!(done, if left { vec![id] } else { vec![] });
                cancel(&mut model, &mut sessions, &mut turns, id, now);
            }
            Event::Pass { time } => {
                now += time;
                let lapsed = store
                    .requeue_lapsed(Millis(now), Millis(now))
                    .await
                    .unwrap();
                let expected = model
                    .iter_mut()
                    .filter(|(_, m)| m.state == State::Building && m.until <= now);
                let mut count = 0;
                for (id, m) in expected {
                    count += 1;
                    let (_, lapse) = lapsed.iter().find(|(b, _)| b.id == *id).unwrap();
                    if m.is_given_up() {
                        assert_eq!(*lapse, Lapse::GiveUp);
                        for s in sessions
                            .iter_mut()
                            .filter(|s| s.build == *id && matches!(s.end, End::Open | End::Lapsed))
                        {
                            s.end = End::Over;
                        }
                        (m.results, m.status) = (m.results + 1, Some(Status::Abort));
                        (m.state, m.session) = (State::Built, None);
                        (m.interrupts, m.lapses) = (0, 0);
                    } else {
                        assert_eq!(*lapse, Lapse::Requeue);
                        m.come_back();
                        m.lapses += 1;
                        if let Some(session) = m.session {
                            sessions[session].end = End::Lapsed;
                        }
                    }
                }
                assert_eq!(lapsed.len(), count);
                let next = model.values().filter(|m| m.state == State::Building);
                let next = next.map(|m| Millis(m.until)).min();
                assert_eq!(store.next_lapse().await.unwrap(), next);
            }
        }
        for (id, m) in &model {
            let build = store.build(*id).await.unwrap().unwrap();
            let session = m.session.map(|s| format!("s{s}"));
            assert_eq!(
                (
                    build.state,
                    build.session,
                    build.again,
                    build.attempt,
                    build.status,
                    (build.interrupts, build.lapses),
                    (build.place, build.class, build.submitter.as_str())
                ),
                (
                    m.state,
                    session,
                    m.again,
                    m.results,
                    m.status,
                    (m.interrupts, m.lapses),
                    (m.place, m.class, m.submitter)
                ),
                "build {id}"
            );
        }
    }
    store.close().await;
}

/// Rare in any order of events: a task that is given back again and again, and a rebuild in between.
#[test]
fn a_task_that_is_given_back_for_ever_ends() {
    let interrupts = |from: usize, count: usize| {
        (from..from + count).flat_map(|session| {
            let status = Status::Interrupt;
            [ASK, Event::Result { session, status }]
        })
    };
    let mut events = vec![SUBMIT];
    events.extend(interrupts(0, 5));
    // Built: the same result once more, and a rebuild, which is given back as often.
    let status = Status::Interrupt;
    events.push(Event::Result { session: 4, status });
    events.push(REBUILD);
    events.extend(interrupts(5, 4));
    // Somebody wants it all the same.
    events.push(REBUILD);
    events.extend(interrupts(9, 5));
    on_both(async |place| run(place.open().await, events.clone()).await);
}

/// The same for agents that are never heard of again, with a late result in between.
#[test]
fn a_task_that_ends_every_agent_ends() {
    let lapse = || [ASK, Event::Pass { time: LEASE }];
    let mut events = vec![SUBMIT];
    events.extend((0..5).flat_map(|_| lapse()));
    let status = Status::Success;
    events.extend((0..5).map(|session| Event::Result { session, status }));
    events.push(REBUILD);
    events.extend((0..2).flat_map(|_| lapse()));
    events.push(ASK);
    // The first of the three lives after all, and brings its result while the third builds.
    events.push(Event::Renew { session: 5 });
    events.push(Event::Result { session: 5, status });
    events.push(Event::Renew { session: 7 });
    events.push(Event::Result { session: 7, status });
    on_both(async |place| run(place.open().await, events.clone()).await);
}

/// One that stops for a person ends when its agent gives it back or is gone, and begins anew for who asks.
#[test]
fn an_interactive_build_is_tried_once() {
    let status = Status::Interrupt;
    let submit = Event::Submit {
        who: "me",
        package: "p",
        version: 1,
        priority: 0,
        lane: 2,
    };
    let events = vec![
        submit,
        Event::Ask { lanes: &[0, 1] },
        ASK,
        Event::Result { session: 0, status },
        ASK,
        REBUILD,
        Event::Ask { lanes: &[2] },
        Event::Pass { time: LEASE },
        Event::Renew { session: 1 },
        REBUILD,
        ASK,
        // Asked for meanwhile: once more.
        REBUILD,
        Event::Result { session: 2, status },
        ASK,
        Event::TakeBack { session: 3 },
        ASK,
    ];
    on_both(async |place| run(place.open().await, events.clone()).await);
}

/// Any order of events, so many times, over new stores.
fn any_order(cases: u32, place: impl Fn() -> Place) {
    let config = ProptestConfig {
        cases,
        max_shrink_iters: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let events = proptest::collection::vec(event(), 1..40);
    let found = proptest::test_runner::TestRunner::new(config).run(&events, |events| {
        let place = place();
        runtime.block_on(async { run(place.open().await, events).await });
        Ok(())
    });
    if let Err(e) = found {
        panic!("{e}");
    }
}

#[test]
fn the_store_is_the_model() {
    any_order(64, Place::file);
}

#[test]
fn the_store_is_the_model_on_postgresql_too() {
    if let Some(cluster) = Cluster::start() {
        any_order(32, || Place::Postgres(cluster.database()));
    }
}
