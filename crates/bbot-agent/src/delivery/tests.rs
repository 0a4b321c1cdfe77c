use std::fs;
use std::path::Path;

use anyhow::Result;
use bbot_manifest::{BuildResult, Era, Status as BuildStatus};

use super::*;
use crate::controller::fake::FakeLink;
use crate::controller::{Kin, Posted, Url, parse_url};

mod logs;

const A: &str = "http://a.example";
const B: &str = "http://b.example";

struct World {
    dir: tempfile::TempDir,
    link: Arc<FakeLink>,
    handle: Option<Handle>,
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            dir: tempfile::tempdir().unwrap(),
            link: Arc::new(FakeLink::default()),
            handle: None,
        };
        world.restart();
        world
    }

    /// As after `kill -9`: what is on disk stays as it is.
    fn restart(&mut self) {
        self.restart_with(Bounds::of_mib(1024));
    }

    fn restart_with(&mut self, bounds: Bounds) {
        self.handle = None;
        let spool = Spool::open(self.dir.path()).unwrap();
        self.handle = Some(Delivery::start(spool, self.link.clone(), bounds));
    }

    fn handle(&self) -> &Handle {
        self.handle.as_ref().unwrap()
    }

    async fn hold(&self, origin: &str, session: &str) -> Held {
        let request = request(session, BuildStatus::Interrupt);
        let to = to(origin, Kin::Ours);
        let held = self.handle().hold(to, &request, Era::Later);
        held.await.unwrap()
    }

    async fn add(&self, origin: &str, session: &str) {
        self.add_for(origin, session, None, None).await.unwrap();
    }

    async fn add_for(
        &self,
        origin: &str,
        name: &str,
        held: Option<Held>,
        session: Option<Session>,
    ) -> Result<()> {
        let request = request(name, BuildStatus::Success);
        let (to, era) = (to(origin, Kin::Ours), Era::Y2017);
        let handle = self.handle();
        handle.add(to, request, era, held, session).await
    }

    /// Session and status of what was posted.
    fn posted(&self) -> Vec<(String, BuildStatus)> {
        let bodies = self.link.bodies();
        let of = |body: &String| {
            let request = ResultRequest::parse(body.as_bytes(), "posted").unwrap();
            (request.session, request.result.status)
        };
        bodies.iter().map(of).collect()
    }

    fn sessions(&self) -> Vec<String> {
        self.posted()
            .into_iter()
            .map(|(session, _)| session)
            .collect()
    }

    fn files(&self, folder: &str) -> usize {
        count(&self.dir.path().join(folder))
    }

    /// Until nothing can be done but to wait.
    async fn settle(&self) {
        self.handle().settle(Duration::from_secs(3600)).await;
    }
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

fn url(origin: &str) -> Url {
    parse_url(&format!("{origin}/?build-result")).unwrap()
}

fn to(origin: &str, kin: Kin) -> Destination {
    Destination {
        url: url(origin),
        kin,
        key: None,
        log: None,
    }
}

fn request(session: &str, status: BuildStatus) -> ResultRequest {
    ResultRequest {
        session: session.to_owned(),
        challenge: None,
        agent_checksum: None,
        result: BuildResult::new("libfoo", "1.2", status),
    }
}

fn busy() -> Posted {
    Posted::Again("503 Service Unavailable".to_owned())
}

fn away() -> Posted {
    Posted::Unreachable("connection refused".to_owned())
}

/// What waits, without what there was.
fn waits(world: &World) -> Status {
    Status {
        taken: 0,
        failed: 0,
        ..world.handle().status()
    }
}

/// Less than any pause, and until nothing is to be done meanwhile.
async fn moment() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}

async fn seconds(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn results_are_taken_in_order() {
    let world = World::new();
    for session in ["s/1", "s/2", "s/3"] {
        world.add(A, session).await;
    }
    world.settle().await;
    assert_eq!(world.sessions(), ["s/1", "s/2", "s/3"]);
    assert_eq!((world.files("results"), world.files("refused")), (0, 0));
    let status = world.handle().status();
    assert_eq!((status.taken, status.failed), (3, 0));
    assert_eq!(waits(&world), Status::default());
}

#[tokio::test(start_paused = true)]
async fn a_result_is_on_disk_before_it_is_posted_and_survives_the_agent() {
    let mut world = World::new();
    world.link.hangs.lock().unwrap().push(A.to_owned());
    world.add(A, "s/1").await;
    assert_eq!(world.files("results"), 1);
    moment().await;
    assert_eq!(world.sessions(), ["s/1"]);
    world.link.hangs.lock().unwrap().clear();
    world.link.answer(A, away());
    world.restart();
    moment().await;
    assert_eq!((world.sessions().len(), world.files("results")), (2, 1));
    let status = world.handle().status();
    assert_eq!(status.waiting, 1);
    assert!(status.next_try.is_some() && status.oldest.is_some() && status.bytes > 0);
    assert_eq!(
        status.controllers[A].error.as_deref(),
        Some("connection refused")
    );
    world.settle().await;
    assert_eq!((world.sessions().len(), world.files("results")), (3, 0));
    assert_eq!(waits(&world), Status::default());
}

#[tokio::test(start_paused = true)]
async fn a_controller_that_drops_packets_holds_up_nobody_else() {
    let world = World::new();
    world.link.hangs.lock().unwrap().push(A.to_owned());
    let begin = Instant::now();
    for (origin, session) in [(A, "s/1"), (B, "s/2"), (A, "s/3"), (B, "s/4")] {
        world.add(origin, session).await;
    }
    seconds(1).await;
    // Each controller is told in order; whose first result goes first is open.
    let mut sessions = world.sessions();
    let of_b: Vec<String> = sessions.iter().filter(|s| *s != "s/1").cloned().collect();
    assert_eq!(of_b, ["s/2", "s/4"]);
    sessions.sort();
    assert_eq!(sessions, ["s/1", "s/2", "s/4"]);
    assert_eq!((begin.elapsed().as_secs(), world.files("results")), (1, 2));
    // Nor the end of the agent for longer than it is given.
    world.handle().settle(Duration::from_secs(5)).await;
    assert_eq!(begin.elapsed().as_secs(), 6);
}

#[tokio::test(start_paused = true)]
async fn pauses_grow_and_end_when_the_controller_answers_something_else() {
    let world = World::new();
    for _ in 0..10 {
        world.link.answer(A, away());
    }
    world.add(A, "s/1").await;
    seconds(20).await;
    let tries = world.sessions().len();
    assert!((4..=6).contains(&tries), "{tries}");
    world.link.posts.lock().unwrap().clear();
    world.handle().reached(&url(A));
    moment().await;
    world.handle().settle(Duration::from_secs(1)).await;
    assert_eq!(
        (world.sessions().len(), world.files("results")),
        (tries + 1, 0)
    );
}

#[tokio::test(start_paused = true)]
async fn one_poisonous_result_does_not_block_the_rest() {
    let world = World::new();
    for _ in 0..plan::STEP_BEHIND {
        world.link.answer(A, busy());
    }
    world.add(A, "poison").await;
    world.add(A, "s/2").await;
    seconds(10).await;
    let sessions = world.sessions();
    assert_eq!(sessions[..3], ["poison"; 3]);
    assert!(sessions[3..].contains(&"s/2".to_owned()), "{sessions:?}");
    seconds(60).await;
    assert_eq!((world.files("results"), world.files("refused")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_kept_for_a_person() {
    let world = World::new();
    world
        .link
        .answer(A, Posted::Refused("400 Bad Request".to_owned()));
    world.add(A, "s/1").await;
    world.settle().await;
    seconds(3600).await;
    assert_eq!(world.sessions(), ["s/1"]);
    assert_eq!((world.files("results"), world.files("refused")), (0, 1));
    assert_eq!(world.handle().status().refused, 1);
}

#[tokio::test(start_paused = true)]
async fn a_strangers_result_is_given_up_after_three_hours_and_ours_is_not() {
    for (kin, is_kept) in [(Kin::Stranger, false), (Kin::Ours, true)] {
        let world = World::new();
        for _ in 0..1000 {
            world.link.answer(A, busy());
        }
        let request = request("s/1", BuildStatus::Success);
        let added = world
            .handle()
            .add(to(A, kin), request, Era::Y2017, None, None);
        added.await.unwrap();
        seconds(4 * 3600).await;
        assert_eq!(world.files("results"), usize::from(is_kept), "{kin:?}");
        assert_eq!(world.files("refused"), usize::from(!is_kept), "{kin:?}");
        let tries = world.sessions().len();
        assert!((20..400).contains(&tries), "{tries}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_that_was_away_for_days_gets_its_result_after_a_restart_too() {
    let mut world = World::new();
    for _ in 0..10_000 {
        world.link.answer(A, away());
    }
    let request = request("s/1", BuildStatus::Success);
    let added = world
        .handle()
        .add(to(A, Kin::Stranger), request, Era::Y2017, None, None);
    added.await.unwrap();
    seconds(2 * 24 * 3600).await;
    assert_eq!((world.files("results"), world.files("refused")), (1, 0));
    world.handle = None;
    // Written two days ago, by the wall clock: time stands still here.
    let results = world.dir.path().join("results");
    let file = fs::read_dir(&results).unwrap().next().unwrap().unwrap();
    fs::rename(
        file.path(),
        results.join("00000001003000-1-00000000.result"),
    )
    .unwrap();
    world.restart();
    seconds(60).await;
    world.link.posts.lock().unwrap().clear();
    world.link.answer(A, busy());
    seconds(3600).await;
    assert_eq!((world.files("results"), world.files("refused")), (0, 0));
    assert_eq!(world.handle().status().taken, 1);
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_too_large_is_cut_until_it_fits() {
    let world = World::new();
    world.link.answer(A, Posted::TooLarge);
    world.link.answer(A, busy());
    let mut request = request("s/1", BuildStatus::Success);
    let mut operation = bbot_manifest::BuildResult::parse(
        b": 1\nname: x\nversion: 1\nstatus: success\nupdate-status: success\nupdate-log: x\n",
        "x",
    )
    .unwrap()
    .operations
    .remove(0);
    operation.log = (0..20_000).map(|n| format!("line {n}\n")).collect();
    request.result.operations.push(operation);
    let added = world
        .handle()
        .add(to(A, Kin::Ours), request, Era::Y2017, None, None);
    added.await.unwrap();
    seconds(5).await;
    let lengths: Vec<usize> = world.link.bodies().iter().map(String::len).collect();
    assert_eq!(lengths.len(), 3);
    // The second try begins with what was cut.
    assert!(lengths[1] <= lengths[0] / 2 && lengths[2] == lengths[1]);
    assert_eq!(world.files("results"), 0);
    // One that cannot be cut: ours would take it, so somebody between does not.
    for (kin, refused) in [(Kin::Ours, 0), (Kin::Stranger, 1)] {
        world.link.answer(A, Posted::TooLarge);
        let small = self::request("small", BuildStatus::Success);
        let added = world
            .handle()
            .add(to(A, kin), small, Era::Y2017, None, None);
        added.await.unwrap();
        seconds(5).await;
        let left = (world.files("results"), world.files("refused"));
        assert_eq!(left, (0, refused), "{kin:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_file_is_set_aside_and_blocks_nobody() {
    let mut world = World::new();
    world.link.hangs.lock().unwrap().push(A.to_owned());
    for session in ["s/1", "s/2", "s/3"] {
        world.add(A, session).await;
    }
    seconds(1).await;
    world.handle = None;
    let results = world.dir.path().join("results");
    let mut paths: Vec<_> = fs::read_dir(&results)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    paths.sort_unstable();
    // Half of it is gone; a hole; and another program's.
    let whole = fs::read(&paths[0]).unwrap();
    fs::write(&paths[0], &whole[..whole.len() - 3]).unwrap();
    fs::write(&paths[1], vec![0; whole.len()]).unwrap();
    fs::write(results.join("x.result"), "x").unwrap();
    fs::create_dir(results.join("folder.result")).unwrap();
    world.link.hangs.lock().unwrap().clear();
    world.link.results.lock().unwrap().clear();
    world.restart();
    world.settle().await;
    assert_eq!(world.sessions(), ["s/3"]);
    assert_eq!(world.handle().status().refused, 4);
    assert_eq!(world.files("results"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_damaged_while_it_waits_is_set_aside() {
    let world = World::new();
    world.link.answer(A, away());
    world.add(A, "s/1").await;
    moment().await;
    for entry in fs::read_dir(world.dir.path().join("results")).unwrap() {
        fs::write(entry.unwrap().path(), "").unwrap();
    }
    world.add(A, "s/2").await;
    world.settle().await;
    assert_eq!(world.sessions().last().unwrap(), "s/2");
    assert_eq!((world.files("results"), world.files("refused")), (0, 1));
}

/// No file handle left, a disk that fails for a moment: neither costs a result.
#[tokio::test(start_paused = true)]
async fn a_result_that_cannot_be_read_for_now_is_sent_later() {
    let mut world = World::new();
    world.link.answer(A, away());
    world.add(A, "s/1").await;
    moment().await;
    let results = world.dir.path().join("results");
    let path = fs::read_dir(&results)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let away = world.dir.path().join("away");
    let hide = || {
        fs::rename(&path, &away).unwrap();
        std::os::unix::fs::symlink(&path, &path).unwrap();
    };
    let show = || {
        fs::remove_file(&path).unwrap();
        fs::rename(&away, &path).unwrap();
    };
    hide();
    seconds(30).await;
    let status = world.handle().status();
    assert_eq!((status.waiting, status.refused), (1, 0));
    assert!(status.failed > 1, "{status:?}");
    // The same when an agent starts.
    world.restart();
    world.settle().await;
    assert_eq!((world.sessions().len(), world.files("refused")), (1, 0));
    show();
    world.restart();
    world.settle().await;
    assert_eq!(world.sessions(), ["s/1", "s/1"]);
    assert_eq!(world.handle().status().taken, 1);
    assert_eq!((world.files("results"), world.files("refused")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn what_is_held_is_posted_only_when_its_task_is_given_up() {
    let world = World::new();
    let done = world.hold(A, "s/1").await;
    let lost = world.hold(A, "s/2").await;
    let over = world.hold(A, "s/3").await;
    world.hold(A, "s/4").await;
    assert_eq!((world.files("held"), world.handle().status().held), (4, 4));
    world.add_for(A, "s/1", Some(done), None).await.unwrap();
    world.handle().give_back(lost).await;
    world.handle().release(over).await;
    world.settle().await;
    assert_eq!(
        world.posted(),
        [
            ("s/1".to_owned(), BuildStatus::Success),
            ("s/2".to_owned(), BuildStatus::Interrupt)
        ]
    );
    assert_eq!((world.files("held"), world.handle().status().held), (1, 1));
    world.handle().give_back_all().await;
    world.settle().await;
    assert_eq!(world.sessions().last().unwrap(), "s/4");
    assert_eq!((world.files("held"), waits(&world)), (0, Status::default()));
}

#[tokio::test(start_paused = true)]
async fn the_tasks_of_an_agent_that_was_killed_are_given_back() {
    let mut world = World::new();
    world.hold(A, "s/1").await;
    world.hold(B, "s/2").await;
    world.restart();
    world.settle().await;
    let mut sessions = world.sessions();
    sessions.sort_unstable();
    assert_eq!(sessions, ["s/1", "s/2"]);
    assert_eq!((world.files("held"), world.files("results")), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_result_is_there_is_not_given_back() {
    let mut world = World::new();
    world.link.hangs.lock().unwrap().push(A.to_owned());
    // Killed between the two: the result is written, and what was held still there.
    world.hold(A, "s/1").await;
    world.hold(A, "s/2").await;
    world.add(A, "s/1").await;
    world.handle = None;
    world.link.hangs.lock().unwrap().clear();
    world.link.results.lock().unwrap().clear();
    // The result steps behind, and must not be overtaken by its own interrupt.
    for _ in 0..plan::STEP_BEHIND {
        world.link.answer(A, busy());
    }
    world.restart();
    seconds(120).await;
    let posted: HashSet<_> = world.posted().into_iter().collect();
    let expected = [
        ("s/1".to_owned(), BuildStatus::Success),
        ("s/2".to_owned(), BuildStatus::Interrupt),
    ];
    assert_eq!(posted, HashSet::from(expected));
}

#[tokio::test(start_paused = true)]
async fn a_full_spool_asks_for_no_more_tasks_and_loses_nothing() {
    let mut world = World::new();
    world.restart_with(Bounds {
        bytes: 400,
        results: 100,
        memory: 0,
    });
    for _ in 0..1000 {
        world.link.answer(A, away());
    }
    let mut changes = world.handle().changes();
    world.add(A, "s/0").await;
    assert_eq!(world.handle().status().full, None);
    assert!(changes.has_changed().unwrap());
    changes.borrow_and_update();
    for n in 1..10 {
        world.add(A, &format!("s/{n}")).await;
    }
    world.handle().until_full_is(true).await;
    let full = world.handle().status().full.unwrap();
    assert!(full.contains("--spool-max"), "{full}");
    assert_eq!(world.files("results"), 10);
    world.link.posts.lock().unwrap().clear();
    moment().await;
    world.settle().await;
    // Whoever waits for that is told.
    world.handle().until_full_is(false).await;
    assert_eq!(world.handle().status().full, None);

    world.restart_with(Bounds {
        bytes: 1 << 30,
        results: 2,
        memory: 0,
    });
    world.link.answer(A, away());
    world.add(A, "s/1").await;
    world.add(A, "s/2").await;
    assert!(world.handle().status().full.unwrap().contains("too many"));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_the_disk_does_not_take_is_posted_all_the_same() {
    let world = World::new();
    let held = world.hold(A, "s/1").await;
    let results = world.dir.path().join("results");
    fs::remove_dir(&results).unwrap();
    world.link.answer(A, busy());
    world.add_for(A, "s/1", Some(held), None).await.unwrap();
    moment().await;
    let status = world.handle().status();
    assert_eq!((status.waiting, status.unkept), (1, 1));
    assert!(status.full.unwrap().contains("the disk"));
    // Should the agent be killed now, the task is given back.
    assert_eq!(world.files("held"), 1);
    seconds(5).await;
    assert_eq!(world.sessions(), ["s/1", "s/1"]);
    assert_eq!((world.files("held"), waits(&world)), (0, Status::default()));
}

#[tokio::test(start_paused = true)]
async fn a_result_goes_to_the_disk_when_the_disk_takes_it_again() {
    let mut world = World::new();
    let held = world.hold(A, "s/1").await;
    let results = world.dir.path().join("results");
    fs::remove_dir(&results).unwrap();
    for _ in 0..100 {
        world.link.answer(A, busy());
    }
    world.add_for(A, "s/1", Some(held), None).await.unwrap();
    moment().await;
    fs::create_dir(&results).unwrap();
    seconds(3).await;
    assert_eq!((world.files("results"), world.files("held")), (1, 0));
    assert_eq!(world.handle().status().unkept, 0);
    world.link.posts.lock().unwrap().clear();
    world.restart();
    world.settle().await;
    assert_eq!(world.files("results"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_given_back_although_the_disk_takes_nothing() {
    let mut world = World::new();
    let lost = world.hold(A, "s/1").await;
    world.hold(A, "s/2").await;
    world.hold(B, "s/3").await;
    let results = world.dir.path().join("results");
    fs::remove_dir(&results).unwrap();
    world.link.answer(A, away());
    world.handle().give_back(lost).await;
    moment().await;
    // Should the agent be killed now, the next one gives it back.
    assert_eq!((world.files("held"), world.handle().status().held), (3, 3));
    assert!(world.handle().status().full.is_some());
    world.handle().give_back_all().await;
    world.settle().await;
    let mut sessions = world.sessions();
    sessions.sort_unstable();
    assert_eq!(sessions, ["s/1", "s/1", "s/2", "s/3"]);
    assert_eq!((world.files("held"), waits(&world)), (0, Status::default()));
    world.restart();
    world.settle().await;
    assert_eq!(world.sessions().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_has_room_nowhere_is_given_back() {
    let mut world = World::new();
    world.restart_with(Bounds {
        memory: 300,
        ..Bounds::of_mib(1)
    });
    let results = world.dir.path().join("results");
    fs::remove_dir(&results).unwrap();
    world.link.hangs.lock().unwrap().push(A.to_owned());
    world.link.hangs.lock().unwrap().push(B.to_owned());
    let mut lost = Vec::new();
    for n in 0..5 {
        let session = format!("s/{n}");
        let held = world.hold(B, &session).await;
        if let Err(e) = world.add_for(A, &session, Some(held), None).await {
            lost.push((n, format!("{e:#}")));
        }
    }
    assert!(!lost.is_empty() && lost.len() < 5, "{lost:?}");
    let (_, why) = &lost[0];
    assert!(why.contains("no room in memory"), "{why}");
    // Until somebody takes them they stay held: the next agent gives them back.
    assert_eq!(world.files("held"), 5);
    world.link.results.lock().unwrap().clear();
    fs::create_dir(&results).unwrap();
    world.link.hangs.lock().unwrap().clear();
    world.restart();
    world.settle().await;
    let posted = world.posted();
    let given_back = posted.iter().filter(|(_, s)| *s == BuildStatus::Interrupt);
    assert_eq!((given_back.count(), world.files("held")), (5, 0));
}

#[tokio::test(start_paused = true)]
async fn another_way_to_the_controllers_is_used_from_now_on() {
    let world = World::new();
    let other = Arc::new(FakeLink::default());
    world.handle().set_link(other.clone());
    world.add(A, "s/1").await;
    world.settle().await;
    assert_eq!((world.sessions().len(), other.bodies().len()), (0, 1));
}
