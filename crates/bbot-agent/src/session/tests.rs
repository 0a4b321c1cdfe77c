use std::fs;

use super::*;
use crate::controller::fake::FakeLink;
use crate::controller::{Acknowledged, task_url};

struct World {
    dir: tempfile::TempDir,
    link: Arc<FakeLink>,
}

impl World {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            link: Arc::new(FakeLink::default()),
        }
    }

    fn folder(&self) -> PathBuf {
        self.dir.path().join("logs/one")
    }

    fn start(&self, renew: u64) -> Session {
        let terms = Terms {
            channel: Channel {
                url: parse_url("http://c.example/s/1").unwrap(),
                key: None,
            },
            renew: Some(Duration::from_secs(renew)),
            name: "libfoo/1.2 on linux".to_owned(),
        };
        Session::start(terms, self.folder(), self.link.clone())
    }

    fn segments(&self, answers: impl IntoIterator<Item = Acknowledged>) {
        self.link.segments.lock().unwrap().extend(answers);
    }

    /// What was posted: number, and whether it says that something is missing.
    fn sent(&self) -> Vec<(u64, bool)> {
        let log = self.link.log.lock().unwrap();
        log.iter()
            .map(|(number, skips, _)| (*number, *skips))
            .collect()
    }

    fn renewals(&self) -> usize {
        self.link.renewals.lock().unwrap().len()
    }
}

fn again() -> Acknowledged {
    Acknowledged::Again("503".to_owned())
}

async fn seconds(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

#[test]
fn a_session_url_is_the_controllers_own() {
    let controller = task_url("https://c.example/x").unwrap();
    let of = |text| url_of(Some(text), &controller).map(|u| u.to_string());
    assert_eq!(url_of(None, &controller), None);
    assert_eq!(
        of("https://c.example/s/1").as_deref(),
        Some("https://c.example/s/1")
    );
    for wrong in [
        "http://c.example/s/1",
        "https://c.example:8443/s/1",
        "https://evil.example/s/1",
        "https://c.example@evil.example/s/1",
        "https://c.example/s?x",
        "/s/1",
        "",
        "\u{1b}[31m",
    ] {
        assert_eq!(of(wrong), None, "{wrong}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_lease_is_renewed_at_once_and_then_as_the_controller_says() {
    let world = World::new();
    let begin = Instant::now();
    world.link.leases.lock().unwrap().extend([
        Renewed::Until(Some(Duration::from_secs(20))),
        Renewed::Again("503".to_owned()),
        Renewed::Again("503".to_owned()),
        Renewed::Until(None),
    ]);
    let session = world.start(5);
    seconds(65).await;
    let renewals = world.link.renewals.lock().unwrap().clone();
    let seconds_of = |(at, hold): &(Instant, Duration)| ((*at - begin).as_secs(), hold.as_secs());
    let at: Vec<(u64, u64)> = renewals.iter().map(seconds_of).collect();
    // The first is answered at once, and the next may be held for as long as there is until the
    // one after it. What fails is tried again sooner.
    let expected = [
        (0, 0),
        (0, 20),
        (10, 0),
        (20, 0),
        (20, 20),
        (40, 20),
        (60, 20),
    ];
    assert_eq!(at, expected);
    assert_eq!(session.is_over(), None);
    drop(session);
    seconds(100).await;
    assert_eq!(world.renewals(), expected.len());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_over_is_told_to_who_waits_and_drops_its_log() {
    let world = World::new();
    world.link.leases.lock().unwrap().extend([
        Renewed::Until(Some(Duration::from_secs(10))),
        Renewed::Until(None),
        Renewed::Over("410 Gone: given away".to_owned()),
    ]);
    world.segments(std::iter::repeat_n(again(), 20));
    let session = world.start(10);
    session.push_log("update", b"one");
    let begin = Instant::now();
    session.cancelled().await;
    assert_eq!(begin.elapsed(), Duration::from_secs(10));
    assert_eq!(session.is_over(), Some("410 Gone: given away"));
    session.drained().await;
    session.push_log("update", b"two");
    let sent = world.sent().len();
    seconds(100).await;
    assert_eq!((world.renewals(), world.sent().len()), (3, sent));
    assert!(!world.folder().exists());
}

#[tokio::test(start_paused = true)]
async fn a_segment_may_bring_the_news_too() {
    let world = World::new();
    world.segments([Acknowledged::Over("410 Gone".to_owned())]);
    let session = world.start(10);
    session.push_log("update", b"one");
    session.cancelled().await;
    assert_eq!(session.is_over(), Some("410 Gone"));
}

#[tokio::test(start_paused = true)]
async fn segments_go_in_order_again_and_again_until_they_are_taken() {
    let world = World::new();
    world.segments([again(), again(), Acknowledged::Taken, again()]);
    let session = world.start(10);
    let upload = world.dir.path().join("log.7");
    fs::write(&upload, "update\none\n").unwrap();
    session.take(&upload, 11);
    assert!(!upload.exists());
    session.push_log("test", b"two\n");
    assert_eq!(session.waiting(), (2, 11 + 9));
    session.drained().await;
    assert_eq!(
        *world.link.log.lock().unwrap(),
        [
            (1, false, "update\none\n".to_owned()),
            (1, false, "update\none\n".to_owned()),
            (1, false, "update\none\n".to_owned()),
            (2, false, "test\ntwo\n".to_owned()),
            (2, false, "test\ntwo\n".to_owned()),
        ]
    );
    assert_eq!(session.waiting(), (0, 0));
    assert_eq!(fs::read_dir(world.folder()).unwrap().count(), 1, "the URL");
    drop(session);
    assert!(!world.folder().exists());
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_lacks_segments_gets_what_there_is() {
    let world = World::new();
    world.segments([
        Acknowledged::Taken,
        // It has lost the first one, which is not here any more.
        Acknowledged::Gap(1),
        // Says so for ever: that must not become a hot loop.
        Acknowledged::Gap(1),
        Acknowledged::Gap(1),
        Acknowledged::Taken,
    ]);
    let session = world.start(10);
    for _ in 0..3 {
        session.push_log("update", b"x");
    }
    let begin = Instant::now();
    session.drained().await;
    let skipping = [
        (1, false),
        (2, false),
        (2, true),
        (2, true),
        (2, true),
        (3, false),
    ];
    assert_eq!(world.sent(), skipping);
    assert!(begin.elapsed() >= Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_says_now_this_now_that_does_not_make_it_spin() {
    let world = World::new();
    let now_this_now_that = [Acknowledged::Gap(1), Acknowledged::Gap(3)];
    world.segments([Acknowledged::Taken, Acknowledged::Taken]);
    world.segments(now_this_now_that.into_iter().cycle().take(10_000));
    let session = world.start(10);
    for _ in 0..3 {
        session.push_log("update", b"x");
    }
    seconds(60).await;
    let again = world.sent().len() - 2;
    assert!((3..=8).contains(&again), "{again} times in a minute");
}

#[tokio::test(start_paused = true)]
async fn a_refused_segment_ends_the_log_and_not_the_session() {
    let world = World::new();
    world.segments([Acknowledged::Refused("400 Bad Request".to_owned())]);
    let session = world.start(10);
    session.push_log("update", b"x");
    session.drained().await;
    session.push_log("update", b"y");
    seconds(25).await;
    assert_eq!((world.sent().len(), session.is_over()), (1, None));
    assert_eq!(world.renewals(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_segment_is_not_sent() {
    let world = World::new();
    let session = world.start(10);
    session.push_log("", b"x");
    session.push_log("a\nb", b"x");
    session.push_log("a\u{1}b", b"x");
    session.push_log(&"x".repeat(129), b"x");
    session.push_log("update", b"");
    // A long piece is sent as several.
    session.push_log("update", &vec![b'x'; segments::MOST + 1]);
    session.drained().await;
    let log = world.link.log.lock().unwrap();
    let lengths: Vec<usize> = log.iter().map(|(_, _, text)| text.len()).collect();
    assert_eq!(lengths, [segments::MOST + 7, 8]);
}

#[tokio::test(start_paused = true)]
async fn a_damaged_segment_is_a_gap() {
    let world = World::new();
    let session = world.start(10);
    for _ in 0..3 {
        session.push_log("update", b"x");
    }
    fs::write(world.folder().join("2"), "").unwrap();
    session.drained().await;
    assert_eq!(world.sent(), [(1, false), (3, true)]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_not_held_up_by_a_controller_that_takes_nothing() {
    let world = World::new();
    world.segments(std::iter::repeat_n(again(), 1000));
    let session = world.start(10);
    let begin = Instant::now();
    for _ in 0..2000 {
        session.push_log("update", &[b'x'; 60 * 1024]);
    }
    assert_eq!(begin.elapsed(), Duration::ZERO);
    let (count, bytes) = session.waiting();
    assert!(
        bytes <= log::LIMIT && bytes > log::LIMIT / 2,
        "{count}: {bytes}"
    );
    assert_eq!(
        fs::read_dir(world.folder()).unwrap().count(),
        count + 1,
        "what is dropped is gone from the disk too"
    );
}

/// Until nothing of it is to be sent any more.
async fn recover(dir: &std::path::Path, world: &World) {
    if let Some(log) = Log::recover(dir, world.link.clone()) {
        while !log.is_done() {
            seconds(1).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_agent_left_is_sent_or_dropped() {
    let world = World::new();
    let session = world.start(10);
    for _ in 0..3 {
        session.push_log("update", b"x");
    }
    // As if it ended here: nothing is sent, and nothing is removed.
    session.log().unwrap().leave();
    drop(session);
    seconds(100).await;
    assert_eq!(world.sent(), []);
    let dir = world.folder();
    world.segments([again(), Acknowledged::Taken, Acknowledged::Gap(3)]);
    recover(&dir, &world).await;
    assert_eq!(
        world.sent(),
        [(1, false), (1, false), (2, false), (3, false)]
    );
    assert!(!dir.exists());

    for (file, content) in [("session", "damaged"), ("1", "update\nx")] {
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(file), content).unwrap();
        recover(&dir, &world).await;
        assert!(!dir.exists());
    }
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("session"), "bbot-session 1 http://c.example/s/1\n").unwrap();
    fs::write(dir.join("4"), "update\nx").unwrap();
    world.segments([Acknowledged::Over("410 Gone".to_owned())]);
    recover(&dir, &world).await;
    assert!(!dir.exists());
}

#[tokio::test(start_paused = true)]
async fn a_log_outlives_its_session_until_the_controller_has_it() {
    let world = World::new();
    let away = || Acknowledged::Silence("connection refused".to_owned());
    world.segments(std::iter::repeat_with(away).take(10_000));
    let session = world.start(10);
    session.push_log("update", b"x");
    let log = session.log().unwrap().clone();
    drop(session);
    // Away for days: nothing is given up.
    seconds(3 * 24 * 3600).await;
    assert_eq!((log.waiting(), log.is_done()), ((1, 8), false));
    world.link.segments.lock().unwrap().clear();
    let sent = world.sent().len();
    // When it is heard of, it is not waited for any longer.
    log.heard();
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert_eq!(world.sent().len(), sent + 1);
    assert!(log.is_done() && !world.folder().exists());
}

#[tokio::test(start_paused = true)]
async fn a_log_that_is_refused_with_answers_for_a_day_is_given_up() {
    let world = World::new();
    world.segments(std::iter::repeat_with(again).take(10_000));
    let session = world.start(10);
    session.push_log("update", b"x");
    let log = session.log().unwrap().clone();
    drop(session);
    let begin = Instant::now();
    log.gone_first().await;
    let waited = begin.elapsed();
    assert!(waited >= patience::RESULT_WAITS, "{waited:?}");
    assert!(waited < patience::RESULT_WAITS * 2, "{waited:?}");
    assert_eq!((log.waiting(), log.is_done()), ((1, 8), false));
    log.drained().await;
    let waited = begin.elapsed();
    assert!(waited >= patience::GIVEN_UP, "{waited:?}");
    assert!(log.is_done() && !world.folder().exists());
}

/// Requests for a segment come to nothing, and all others are answered.
#[tokio::test(start_paused = true)]
async fn a_controller_that_answers_all_but_segments_is_not_away() {
    let world = World::new();
    let away = || Acknowledged::Silence("no answer".to_owned());
    world.segments(std::iter::repeat_with(away).take(10_000));
    let session = world.start(10);
    session.push_log("update", b"x");
    let log = session.log().unwrap().clone();
    let begin = Instant::now();
    log.gone_first().await;
    let waited = begin.elapsed();
    assert!(waited >= patience::RESULT_WAITS, "{waited:?}");
    assert!(waited < patience::RESULT_WAITS * 2, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_ends_with_the_result_does_not_end_its_log() {
    let world = World::new();
    world.segments(std::iter::repeat_with(again).take(4));
    let over = Renewed::Over("410 Gone".to_owned());
    let first = Renewed::Until(None);
    world.link.leases.lock().unwrap().extend([first, over]);
    let session = world.start(1);
    session.push_log("update", b"x");
    session.log().unwrap().complete();
    session.drained().await;
    assert_eq!((session.is_over(), world.sent().len()), (None, 5));
}

#[tokio::test(start_paused = true)]
async fn a_controller_without_sessions_costs_nothing() {
    let session = Session::none();
    session.push_log("update", b"x");
    session.drained().await;
    assert_eq!((session.waiting(), session.is_over()), ((0, 0), None));
    let wait = tokio::time::timeout(Duration::from_secs(9999), session.cancelled());
    assert!(wait.await.is_err());
}
