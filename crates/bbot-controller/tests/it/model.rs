//! Any order of events: the store does what the simplest model of the queue does.

use std::collections::BTreeMap;

use bbot_controller::clock::Millis;
use bbot_controller::queue::State;
use bbot_controller::queue::outcome::{Facts, INTERRUPTS, Identity, Proof, Verdict, decide};
use bbot_controller::source::{Repository, Source};
use bbot_controller::store::{NewLease, NewResult, NewSubmission, Store};
use bbot_manifest::Status;
use proptest::prelude::*;

/// How long a lease lasts in the model.
const LEASE: i64 = 10;

#[derive(Debug, Clone)]
enum Event {
    Submit,
    /// An agent asks for a task.
    Ask,
    /// The result of one of the sessions so far, whatever became of it.
    Result {
        session: usize,
        status: Status,
    },
    Rebuild {
        build: usize,
    },
    Pass {
        time: i64,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let status = proptest::sample::select(vec![
        Status::Success,
        Status::Error,
        Status::Abnormal,
        Status::Interrupt,
    ]);
    prop_oneof![
        1 => Just(Event::Submit),
        3 => Just(Event::Ask),
        3 => (0_usize..8, status).prop_map(|(session, status)| Event::Result { session, status }),
        2 => (0_usize..4).prop_map(|build| Event::Rebuild { build }),
        2 => (1_i64..12).prop_map(|time| Event::Pass { time }),
    ]
}

#[derive(Debug, Clone, PartialEq)]
struct Model {
    state: State,
    place: usize,
    session: Option<usize>,
    until: i64,
    again: bool,
    results: i64,
    status: Option<Status>,
    interrupts: u32,
}

async fn run(events: Vec<Event>) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("s.sqlite")).await.unwrap();
    let source = Source::Repository(Repository {
        url: "https://x.org/1/a".into(),
        kind: None,
        trust: vec![],
    });
    let configurations = [("c".to_owned(), "t".to_owned())];
    let mut model: BTreeMap<i64, Model> = BTreeMap::new();
    // The build of each session, and whether its result was taken.
    let mut sessions: Vec<(i64, bool)> = Vec::new();
    let (mut now, mut places) = (0_i64, 0_usize);

    for event in events {
        match event {
            Event::Submit => {
                let new = NewSubmission {
                    name: "p",
                    version: "1",
                    source: &source,
                    configurations: &configurations,
                };
                let id = store.submit(new, Millis(now)).await.unwrap().1[0].id;
                places += 1;
                let fresh = Model {
                    state: State::Queued,
                    place: places,
                    session: None,
                    until: 0,
                    again: false,
                    results: 0,
                    status: None,
                    interrupts: 0,
                };
                assert!(
                    model.insert(id, fresh).is_none(),
                    "ids are never used again"
                );
            }
            Event::Ask => {
                let expected = model
                    .iter()
                    .filter(|(_, m)| m.state == State::Queued)
                    .min_by_key(|(_, m)| m.place)
                    .map(|(id, _)| *id);
                let found = store
                    .oldest_queued("c", "t", None)
                    .await
                    .unwrap()
                    .map(|(_, id)| id);
                assert_eq!(found, expected, "the oldest first");
                let Some(id) = found else { continue };
                let session = format!("s{}", sessions.len());
                let lease = NewLease {
                    build: id,
                    session: &session,
                    until: Millis(now + LEASE),
                    agent: "a",
                    fingerprint: None,
                    challenge: None,
                    machine: "m",
                    machine_summary: "M",
                    toolchain_name: "d",
                    toolchain_version: "1",
                };
                assert!(store.lease(&lease, Millis(now)).await.unwrap().is_some());
                assert!(
                    store.lease(&lease, Millis(now)).await.unwrap().is_none(),
                    "never twice"
                );
                let m = model.get_mut(&id).unwrap();
                (m.state, m.session, m.until, m.again) =
                    (State::Building, Some(sessions.len()), now + LEASE, false);
                sessions.push((id, false));
            }
            Event::Result { session, status } => {
                let name = format!("s{session}");
                let result = NewResult {
                    status,
                    operations: Vec::new(),
                };
                let take = store.take_result(&name, &result, Millis(now), |facts| {
                    decide(Facts {
                        session: facts.state,
                        proof: Proof::Good,
                        identity: Identity::Same,
                        status,
                        again: facts.again,
                        interrupts: facts.build.interrupts,
                    })
                });
                let verdict = take.await.unwrap();
                let Some((id, taken)) = sessions.get_mut(session) else {
                    assert_eq!(verdict, None);
                    continue;
                };
                let m = model.get_mut(id).unwrap();
                if *taken {
                    assert_eq!(verdict, Some(Verdict::Repeat));
                } else if m.session != Some(session) {
                    assert!(matches!(verdict, Some(Verdict::Drop(_))), "{verdict:?}");
                } else if status == Status::Interrupt && !m.again && m.interrupts + 1 == INTERRUPTS
                {
                    assert_eq!(verdict, Some(Verdict::GiveUp));
                    *taken = true;
                    (m.results, m.status) = (m.results + 1, Some(Status::Abort));
                    (m.state, m.session, m.interrupts) = (State::Built, None, 0);
                } else if status == Status::Interrupt {
                    assert_eq!(verdict, Some(Verdict::Requeue));
                    m.interrupts += 1;
                    (m.state, m.session, m.again) = (State::Queued, None, false);
                } else {
                    *taken = true;
                    (m.results, m.status, m.session) = (m.results + 1, Some(status), None);
                    m.state = if m.again { State::Queued } else { State::Built };
                    if m.again {
                        places += 1;
                        m.place = places;
                    }
                    (m.again, m.interrupts) = (false, 0);
                    assert_eq!(verdict, Some(Verdict::Keep(m.state)));
                }
            }
            Event::Rebuild { build } => {
                let id = i64::try_from(build).unwrap() + 1;
                let done = store.rebuild(id, None, Millis(now)).await.unwrap();
                let Some(m) = model.get_mut(&id) else {
                    assert_eq!(done, None);
                    continue;
                };
                m.interrupts = 0;
                if m.state == State::Built {
                    places += 1;
                    (m.state, m.place) = (State::Queued, places);
                } else if m.session.is_some() {
                    m.again = true;
                }
            }
            Event::Pass { time } => {
                now += time;
                store.requeue_lapsed(Millis(now)).await.unwrap();
                for m in model
                    .values_mut()
                    .filter(|m| m.state == State::Building && m.until <= now)
                {
                    m.state = State::Queued;
                }
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
                    build.interrupts
                ),
                (m.state, session, m.again, m.results, m.status, m.interrupts),
                "build {id}"
            );
        }
    }
    store.close().await;
}

/// Rare in any order of events: a task that is given back again and again, and a rebuild in between.
#[tokio::test]
async fn a_task_that_is_given_back_for_ever_ends() {
    let interrupts = |from: usize, count: usize| {
        (from..from + count).flat_map(|session| {
            let status = Status::Interrupt;
            [Event::Ask, Event::Result { session, status }]
        })
    };
    let mut events = vec![Event::Submit];
    events.extend(interrupts(0, 5));
    // Built: the same result once more, and a rebuild, which is given back as often.
    let status = Status::Interrupt;
    events.push(Event::Result { session: 4, status });
    events.push(Event::Rebuild { build: 0 });
    events.extend(interrupts(5, 4));
    // Somebody wants it all the same.
    events.push(Event::Rebuild { build: 0 });
    events.extend(interrupts(9, 5));
    run(events).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_store_is_the_model(events in proptest::collection::vec(event(), 1..40)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(events));
    }
}
