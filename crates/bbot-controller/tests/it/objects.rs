//! Logs and archives as objects: in a directory and in a bucket, shared, lost, damaged, removed, and from before there were some.

use std::path::Path;
use std::time::{Duration, SystemTime};

use bbot_controller::clock::Millis;
use bbot_controller::objects::log::{ends, pack};
use bbot_controller::objects::{Kind, Objects, Where};
use bbot_controller::package::Particulars;
use bbot_controller::package::plan::Plan;
use bbot_controller::queue::State;
use bbot_controller::queue::order::Priority;
use bbot_controller::queue::outcome::Verdict;
use bbot_controller::source::Source;
use bbot_controller::store::{
    LogText, Naming, NewLog, NewOperation, NewResult, NewSubmission, Store, StoreError,
};
use bbot_controller::upkeep::{GRACE, sweep};
use bbot_manifest::Status;
use sha2::{Digest as _, Sha256};
use sqlx::Connection as _;

use crate::bucket::Service;
use crate::cluster::Cluster;
use crate::store::{Place, asker, lease, on_both};
use crate::support::{Controller, archive as source_archive, gzip};

/// A log of about so many bytes, like real ones: lines that differ a little.
pub(crate) fn long_log(bytes: usize, mark: &str) -> String {
    let lines = (0..bytes / 64).map(|n| {
        format!(
            "{mark}: [{n:>7}] c++ -O2 -c src/component-{:<5}.cxx -o x.o\n",
            n % 997
        )
    });
    lines.collect()
}

pub(crate) fn bring(controller: &Controller, name: &str, log: &str) -> String {
    let id = controller.submit(name, "1").remove(0);
    bring_next(controller, name, log);
    id
}

/// Takes the next task, which is of this package, and brings a result with two long logs.
pub(crate) fn bring_next(controller: &Controller, name: &str, log: &str) {
    let session = controller.take();
    let text = format!(
        ": 1\nsession: {session}\n:\nname: {name}\nversion: 1\nstatus: error\nconfigure-status: success\n\
         update-status: error\ntest-status: success\nconfigure-log: short\nupdate-log: \\\n{log}\n\\\ntest-log: \\\n{log}\n\\\n"
    );
    let answer = controller.agent("/?build-result", &["Bbot-Agent: 1"], &text);
    assert_eq!(answer.status, 200, "{}", answer.text());
}

pub(crate) fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|e| e.unwrap().path()).collect()
}

/// Puts an archive and brings a result of 20 MB; everything is read as it came.
fn everything_comes_back(controller: &Controller) {
    let log = long_log(10 << 20, "first");
    let id = bring(controller, "a", &log);
    let got = controller.get(&format!("/api/v1/builds/{id}/log/update"));
    assert_eq!(got.status, 200);
    assert!(got.body == format!("{log}\n").as_bytes() || got.body == log.as_bytes());
    let all = controller.get(&format!("/builds/{id}/log")).text();
    let expected =
        format!("==== configure ====\nshort\n==== update ====\n{log}==== test ====\n{log}");
    assert!(all.replace("\n\n", "\n") == expected, "{}", all.len());
    let page = controller.get(&format!("/builds/{id}"));
    assert_eq!(page.status, 200);
    assert!(page.body.len() < 200_000);
    assert!(page.text().contains("the middle is left out here"));
    let build = controller.build(&id);
    assert_eq!(build["operations"][1]["log_bytes"], log.len());
    let archive = controller.archive();
    let got = controller.get(&format!("/archives/{archive}.tar.gz"));
    assert_eq!(got.body, source_archive(&[("README", "")]));
}

#[test]
fn in_a_directory_once_each_and_small_ones_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    everything_comes_back(&controller);
    let logs = dir.path().join("objects/logs");
    // Two operations and two builds with the same log.
    bring(&controller, "b", &long_log(10 << 20, "first"));
    let found = files(&logs);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].metadata().unwrap().len() < 2 << 20,
        "it is compressed"
    );
    bring(&controller, "c", "short");
    assert_eq!(files(&logs).len(), 1);
    assert_eq!(files(&dir.path().join("objects/archives")).len(), 1);
    // What nobody waits for is not kept.
    let stranger = format!(
        ": 1\nsession: {}\n:\nname: a\nversion: 1\nstatus: error\nupdate-status: error\nupdate-log: \\\n{}\n\\\n",
        "0".repeat(64),
        long_log(100_000, "stranger")
    );
    assert_eq!(
        controller.agent("/?build-result", &[], &stranger).status,
        200
    );
    assert_eq!(files(&logs).len(), 1);
}

#[test]
fn in_a_bucket() {
    let Some(service) = Service::start() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let place = service.place(&dir.path().join("keys"));
    let data = dir.path().join("data");
    let start = || Controller::start(&data, |c| c.objects = Some(place.clone()));
    let controller = start();
    everything_comes_back(&controller);
    // An archive in pieces.
    let mut large = gzip(b"");
    large.extend((0..20_000_000_u32).flat_map(|n| {
        n.wrapping_mul(2_654_435_761)
            .to_le_bytes()
            .into_iter()
            .take(1)
    }));
    let sha256 = hex::encode(Sha256::digest(&large));
    let path = format!("/api/v1/archives/{sha256}");
    assert_eq!(controller.send("PUT", &path, &large).status, 201);
    assert_eq!(controller.send("PUT", &path, &large).status, 200);
    assert!(controller.get(&format!("/archives/{sha256}.tar.gz")).body == large);
    let wrong = format!("/api/v1/archives/{}", "0".repeat(64));
    assert_eq!(controller.send("PUT", &wrong, &large).status, 400);
    let mut names = service.names();
    // Whose they are, once that has been looked at.
    names.retain(|name| name != "bbot/store-id");
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(
        names
            .iter()
            .all(|name| name.starts_with("bbot/archives/") || name.starts_with("bbot/logs/"))
    );
    assert!(!data.join("objects").exists());
    // One that is large when it is packed, too.
    let mut state = 1_u64;
    let noise: String = std::iter::repeat_with(|| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        format!("{state:016x}\n")
    })
    .take(300_000)
    .collect();
    let id = bring(&controller, "noise", &noise);
    let got = controller.get(&format!("/api/v1/builds/{id}/log/test"));
    assert!(
        got.status == 200 && got.body == noise.as_bytes(),
        "{}",
        got.body.len()
    );
    drop(controller);
    // Another controller over the same store and bucket finds all of it.
    let controller = start();
    assert!(controller.get(&format!("/archives/{sha256}.tar.gz")).body == large);
    assert_eq!(controller.get("/builds/1/log/update").status, 200);
}

/// What needs no object goes on while the service is away; what does is told to come again.
#[test]
fn a_service_that_is_away_is_told() {
    let Some(service) = Service::start() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let place = service.place(&dir.path().join("keys"));
    let controller = Controller::start(&dir.path().join("data"), |c| c.objects = Some(place));
    let id = controller.submit("a", "1").remove(0);
    drop(service);
    let session = controller.take();
    let text = format!(
        ": 1\nsession: {session}\n:\nname: a\nversion: 1\nstatus: error\nupdate-status: error\nupdate-log: \\\n{}\n\\\n",
        long_log(100_000, "x")
    );
    let away = controller.agent("/?build-result", &["Bbot-Agent: 1"], &text);
    assert_eq!((away.status, away.header("retry-after")), (503, Some("10")));
    assert_eq!(controller.build(&id)["state"], "building");
    let short = format!(
        ": 1\nsession: {session}\n:\nname: a\nversion: 1\nstatus: error\nupdate-status: error\nupdate-log: short\n"
    );
    assert_eq!(
        controller
            .agent("/?build-result", &["Bbot-Agent: 1"], &short)
            .status,
        200
    );
    assert_eq!(controller.build(&id)["status"], "error");
}

fn log_of(store_text: &LogText) -> &bbot_controller::objects::Object {
    match store_text {
        LogText::Kept {
            object: Some(object),
            ..
        } => object,
        other => panic!("no object: {other:?}"),
    }
}

/// A build's next task and its result, with this log as an object; put once more where it was removed meanwhile.
async fn keep(store: &Store, objects: &Objects, build: i64, session: &str, log: &str) {
    let new = lease(build, session, i64::MAX);
    // A build that somebody else's transaction holds is passed over.
    while store.lease(&new, Millis(1)).await.unwrap().is_none() {
        tokio::task::yield_now().await;
    }
    let mut share = true;
    loop {
        let packed = pack(log).unwrap();
        let known = store.object(Kind::Log, &packed.sha256).await.unwrap();
        let (object, naming) = match known {
            Some(known) if share && objects.exists(&known).await.unwrap() => {
                (known, Naming::Shared)
            }
            _ => (packed.put(objects).await.unwrap(), Naming::Put),
        };
        let (head, tail) = ends(log);
        let operation = NewOperation {
            name: "update".into(),
            status: Status::Success,
            log: NewLog::Kept {
                object,
                naming,
                head: head.into(),
                tail: tail.into(),
            },
        };
        let result = NewResult {
            status: Status::Success,
            operations: vec![operation],
            checksums: None,
            log_last: None,
        };
        match store
            .take_result(session, result, Millis(2), |_| Verdict::Keep(State::Built))
            .await
        {
            Err(StoreError::NoObject { .. }) => share = false,
            taken => {
                taken.unwrap().unwrap();
                return;
            }
        }
    }
}

async fn try_submit(store: &Store, source: &Source) -> Result<i64, StoreError> {
    let new = NewSubmission {
        name: "a",
        version: "1",
        source,
        asker: &asker("me"),
        priority: Priority::default(),
        particulars: &Particulars::default(),
        service: None,
        breakpoint: None,
        plan: &Plan::of(&[("c", "t")]),
    };
    Ok(store.submit(new, Millis(1)).await?.builds[0].id)
}

async fn submit(store: &Store, source: &Source) -> i64 {
    try_submit(store, source).await.unwrap()
}

fn repository() -> Source {
    serde_json::from_str(r#"{"repository": {"url": "https://x.org/1/a"}}"#).unwrap()
}

const DAY: i64 = 24 * 3_600_000;

#[test]
fn what_nothing_names_goes_a_day_later() {
    on_both(async |place| {
        let store = place.open().await;
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::in_directory(dir.path()).unwrap();
        let logs = dir.path().join("logs");
        let build = submit(&store, &repository()).await;
        keep(&store, &objects, build, "s1", &long_log(100_000, "one")).await;
        store
            .rebuild(build, &asker("me"), None, Millis(3))
            .await
            .unwrap();
        keep(&store, &objects, build, "s2", &long_log(100_000, "two")).await;
        // Somebody put one and never came to name it.
        let stray = pack("stray").unwrap().put(&objects).await.unwrap();
        let now = SystemTime::now();
        let sweep = async |days: i64, wall| {
            sweep(&store, &objects, Millis(days * DAY), wall)
                .await
                .unwrap()
        };
        assert_eq!(sweep(10, now).await, 0, "all is named or new");
        assert_eq!(sweep(10, now + GRACE + Duration::from_secs(60)).await, 1);
        assert!(!objects.exists(&stray).await.unwrap());
        // The first result goes; what it named a day after that was noticed.
        assert_eq!(store.prune_attempts(Millis(i64::MAX)).await.unwrap(), 1);
        assert_eq!(sweep(20, now).await, 0);
        assert_eq!(files(&logs).len(), 2);
        assert_eq!(sweep(20, now).await, 0);
        assert_eq!(sweep(22, now).await, 1);
        assert_eq!(files(&logs).len(), 1);
        let left = store.logs(build, 2, None).await.unwrap();
        assert!(objects.exists(log_of(&left[0].text)).await.unwrap());
        // One that is named again in time stays.
        store
            .rebuild(build, &asker("me"), None, Millis(3))
            .await
            .unwrap();
        keep(&store, &objects, build, "s3", &long_log(100_000, "three")).await;
        store.prune_attempts(Millis(i64::MAX)).await.unwrap();
        assert_eq!(sweep(30, now).await, 0);
        store
            .rebuild(build, &asker("me"), None, Millis(3))
            .await
            .unwrap();
        keep(&store, &objects, build, "s4", &long_log(100_000, "two")).await;
        assert_eq!(sweep(40, now).await, 0);
        assert_eq!(files(&logs).len(), 2);
        store.close().await;
    });
}

/// A store that has come to the wrong objects (empty, mistyped, a copy to try something) leaves them alone.
#[test]
fn only_their_own_store_removes_objects() {
    on_both(async |place| {
        let store = place.open().await;
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::in_directory(dir.path()).unwrap();
        let owner = dir.path().join("store-id");
        let later = SystemTime::now() + GRACE + Duration::from_secs(60);
        let sweep = async || {
            sweep(&store, &objects, Millis(10 * DAY), later)
                .await
                .unwrap()
        };
        let stray = pack("stray").unwrap().put(&objects).await.unwrap();
        std::fs::write(&owner, "another").unwrap();
        assert_eq!(sweep().await, 0);
        assert!(objects.exists(&stray).await.unwrap());
        std::fs::remove_file(&owner).unwrap();
        assert_eq!(sweep().await, 1);
        let own = store.identity().await.unwrap();
        assert_eq!(std::fs::read_to_string(&owner).unwrap(), own);
        // What comes of a back-up is another store.
        store.forget_identity().await.unwrap();
        assert_ne!(store.identity().await.unwrap(), own);
        pack("stray").unwrap().put(&objects).await.unwrap();
        assert_eq!(sweep().await, 0);
        store.close().await;
    });
}

/// Whoever removes what nothing names never removes what somebody is just naming, of however many controllers.
#[test]
fn nothing_that_is_named_is_ever_removed() {
    on_both(async |place| {
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::in_directory(dir.path()).unwrap();
        let first = place.open().await;
        // SQLite is one controller's.
        let second = match place {
            Place::Sqlite(_) => first.clone(),
            Place::Postgres(_) => place.open().await,
        };
        let mut builds = Vec::new();
        for _ in 0..4 {
            builds.push(submit(&first, &repository()).await);
        }
        let mut writers = tokio::task::JoinSet::new();
        for (number, build) in builds.clone().into_iter().enumerate() {
            let store = if number % 2 == 0 {
                first.clone()
            } else {
                second.clone()
            };
            let objects = objects.clone();
            writers.spawn(async move {
                for round in 0..40 {
                    let log = long_log(40_000, &((number * 5 + round * 3) % 8).to_string());
                    keep(&store, &objects, build, &format!("s{number}-{round}"), &log).await;
                    store.prune_attempts(Millis(i64::MAX)).await.unwrap();
                    let logs = store
                        .logs(build, i64::try_from(round).unwrap() + 1, None)
                        .await
                        .unwrap();
                    assert!(
                        objects.exists(log_of(&logs[0].text)).await.unwrap(),
                        "{number} {round}"
                    );
                    if round < 39 {
                        store
                            .rebuild(build, &asker("me"), None, Millis(3))
                            .await
                            .unwrap();
                    }
                }
            });
        }
        let mut removed = 0;
        let mut days = 10;
        // What is unnamed goes at once; files alone are left for their day.
        while !writers.is_empty() {
            removed += sweep(&second, &objects, Millis(days * DAY), SystemTime::now())
                .await
                .unwrap();
            days += 2;
            while let Some(ended) = writers.try_join_next() {
                ended.unwrap();
            }
            tokio::task::yield_now().await;
        }
        assert!(removed > 0, "nothing was ever in danger");
        for build in builds {
            let logs = first.logs(build, 40, None).await.unwrap();
            let object = log_of(&logs[0].text);
            assert!(objects.exists(object).await.unwrap());
        }
        first.close().await;
        second.close().await;
    });
}

#[test]
fn an_archive_that_was_removed_is_not_submitted() {
    on_both(async |place| {
        let store = place.open().await;
        let dir = tempfile::tempdir().unwrap();
        let objects = Objects::in_directory(dir.path()).unwrap();
        let sha256 = hex::encode(Sha256::digest(b"x"));
        let source = Source::Archive(sha256.clone());
        let object = objects
            .put(Kind::Archive, &sha256, 1, b"x"[..].into())
            .await
            .unwrap();
        store.keep_object(&object, Millis(0)).await.unwrap();
        assert_eq!(
            sweep(&store, &objects, Millis(DAY / 2), SystemTime::now())
                .await
                .unwrap(),
            0
        );
        // Asked for again, it has another day.
        store
            .keep_known(Kind::Archive, &sha256, Millis(DAY / 2))
            .await
            .unwrap();
        assert_eq!(
            sweep(&store, &objects, Millis(DAY + 10), SystemTime::now())
                .await
                .unwrap(),
            0
        );
        submit(&store, &source).await;
        assert_eq!(
            sweep(&store, &objects, Millis(9 * DAY), SystemTime::now())
                .await
                .unwrap(),
            0
        );
        let other = Source::Archive("0".repeat(64));
        assert!(matches!(
            try_submit(&store, &other).await,
            Err(StoreError::NoObject { .. })
        ));
        store.close().await;
    });
}

/// A store as it was before there were objects, by its own migrations.
async fn before_objects(url: &str) -> sqlx::AnyConnection {
    sqlx::any::install_default_drivers();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let old = tempfile::tempdir().unwrap();
    let mut folders = vec![from.clone()];
    if url.starts_with("postgres") {
        folders.push(from.join("postgres"));
    }
    for path in folders.iter().flat_map(|folder| files(folder)) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_file() && name.as_str() < "0007" {
            std::fs::copy(&path, old.path().join(name)).unwrap();
        }
    }
    let mut connection = sqlx::AnyConnection::connect(url).await.unwrap();
    let migrator = sqlx::migrate::Migrator::new(old.path().to_owned());
    migrator.await.unwrap().run(&mut connection).await.unwrap();
    connection
}

#[test]
fn what_is_from_before_there_were_objects_moves_by_itself() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let long = long_log(300_000, "old");
    let archive = gzip(b"an old archive");
    let sha256 = hex::encode(Sha256::digest(&archive));
    let check = |data: &Path, url: &str, database: Option<String>| {
        runtime.block_on(async {
            let mut old = before_objects(url).await;
            let git = format!(r#"{{"git":{{"url":"https://x.org/a","commit":"0","archive":"{sha256}"}}}}"#);
            let plain = format!(r#"{{"archive":"{sha256}"}}"#);
            let repository = r#"{"repository":{"url":"https://x.org/1/a"}}"#;
            for (id, source) in (1_i64..).zip([git.as_str(), &plain, repository]) {
                sqlx::query("INSERT INTO submissions (id, name, version, source, submitted) VALUES ($1, 'a', '1', $2, 0)")
                    .bind(id).bind(source).execute(&mut old).await.unwrap();
            }
            sqlx::query(
                "INSERT INTO builds (id, submission, package, version, configuration, target, repository, state, position, \
                 again, queued, started, finished, attempt, status, operations) VALUES (1, 1, 'a', '1', 'default', \
                 'x86_64-linux-gnu', '', 'built', 1, 0, 0, 5, 9, 1, 'success', '[]')",
            ).execute(&mut old).await.unwrap();
            sqlx::query("INSERT INTO attempts (build, number, status, operations, session, finished) VALUES (1, 1, 'success', '[]', 's', 9)")
                .execute(&mut old).await.unwrap();
            for (position, name, log) in [(0_i64, "configure", "short\n"), (1, "update", &long), (2, "test", &long)] {
                sqlx::query("INSERT INTO logs (build, attempt, position, operation, log) VALUES (1, 1, $1, $2, $3)")
                    .bind(position).bind(name).bind(log).execute(&mut old).await.unwrap();
            }
            old.close().await.unwrap();
        });
        std::fs::create_dir_all(data.join("archives")).unwrap();
        std::fs::write(data.join(format!("archives/{sha256}.tar.gz")), &archive).unwrap();
        let controller = Controller::start(data, |c| c.database = database);
        let logs = data.join("objects/logs");
        let begun = std::time::Instant::now();
        while files(&logs).len() != 1 || data.join("archives").exists() {
            assert!(begun.elapsed() < Duration::from_secs(60), "it moves");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(controller.get("/builds/1/log/update").body == long.as_bytes());
        assert!(controller.get("/builds/1/log/test").body == long.as_bytes());
        assert_eq!(controller.get("/builds/1/log/configure").text(), "short\n");
        assert_eq!(
            controller.get(&format!("/archives/{sha256}.tar.gz")).body,
            archive
        );
        drop(controller);
        let named: Vec<Option<String>> = runtime.block_on(async {
            let mut store = sqlx::AnyConnection::connect(url).await.unwrap();
            let left: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM logs WHERE bytes IS NULL OR length(log) > 40000",
            )
            .fetch_one(&mut store)
            .await
            .unwrap();
            assert!(left <= 1, "the last may be on its way");
            sqlx::query_scalar("SELECT archive FROM submissions ORDER BY id")
                .fetch_all(&mut store)
                .await
                .unwrap()
        });
        assert_eq!(named, [Some(sha256.clone()), Some(sha256.clone()), None]);
    };
    let dir = tempfile::tempdir().unwrap();
    let file = format!(
        "sqlite://{}?mode=rwc",
        dir.path().join("controller.sqlite").display()
    );
    check(dir.path(), &file, None);
    if let Some(cluster) = Cluster::start() {
        let (dir, url) = (tempfile::tempdir().unwrap(), cluster.database());
        check(dir.path(), &url, Some(url.clone()));
    }
}

/// Controllers that share a database and an object store find each other's archives and logs.
#[test]
fn what_was_put_at_one_controller_is_had_at_another() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let url = cluster.database();
    let start = |name: &str| {
        Controller::start(&dir.path().join(name), |c| {
            c.database = Some(url.clone());
            c.objects = Some(Where::Directory(dir.path().join("shared")));
        })
    };
    let (one, two) = (start("one"), start("two"));
    let archive = one.archive();
    assert_eq!(two.get(&format!("/archives/{archive}.tar.gz")).status, 200);
    let source = serde_json::json!({ "archive": archive });
    let id = two.submit_source("a", "1", &source).remove(0);
    let log = long_log(100_000, "x");
    bring_next(&one, "a", &log);
    assert_eq!(two.get(&format!("/builds/{id}/log/update")).status, 200);
}
