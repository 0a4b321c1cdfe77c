//! Back-ups: made while a controller is at work, and put back elsewhere; everything is there then, and nothing half.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bbot_controller::clock::Millis;
use bbot_controller::objects::{Kind, Object};
use sha2::{Digest as _, Sha256};

use crate::cluster::Cluster;
use crate::process::{PROGRAM, Running};
use crate::store::Place;
use crate::support::{agent, archive, curl, field, request};

fn run(words: &[&str], data: &Path, url: Option<&str>) -> Output {
    let mut command = Command::new(PROGRAM);
    command
        .args(words)
        .arg("--data")
        .arg(data)
        .env("BBOT_LOG", "warn");
    if let Some(url) = url {
        command.env("BBOT_CONTROLLER_DATABASE", url);
    }
    command.output().unwrap()
}

fn start(data: &Path, url: Option<&str>) -> Running {
    Running::start(data, |command| {
        if let Some(url) = url {
            command.env("BBOT_CONTROLLER_DATABASE", url);
        }
    })
}

/// One package of a kind: what it is called, its archive, and its log, by its number.
fn package(number: usize) -> (String, Vec<u8>, String) {
    let name = format!("p{number}");
    let source = archive(&[("README", &name)]);
    let log = format!("{name}: a line of a long log\n").repeat(4000);
    (name, source, log)
}

/// Submits a package and brings the result of what is next; whether both were acknowledged.
fn build(url: &str, token: &str, number: usize) -> bool {
    let (name, source, _) = package(number);
    let authorization = format!("Authorization: Bearer {token}");
    let sha256 = hex::encode(Sha256::digest(&source));
    let send = |method: &str, path: &str, body: &[u8]| {
        let url = format!("{url}{path}");
        curl(
            &[
                "-X",
                method,
                "-H",
                &authorization,
                "--data-binary",
                "@-",
                &url,
            ],
            body,
        )
        .status
    };
    assert!(send("PUT", &format!("/api/v1/archives/{sha256}"), &source) < 300);
    let submission =
        serde_json::json!({ "name": name, "version": "1", "source": { "archive": sha256 } });
    assert_eq!(
        send(
            "POST",
            "/api/v1/submissions",
            submission.to_string().as_bytes()
        ),
        201
    );
    let task = agent(
        &format!("{url}/?build-task"),
        &["Bbot-Agent: 1"],
        request("0.17.0").as_bytes(),
    );
    let session = field(&task.text(), "session");
    // One that waited in the back-up goes first.
    let name = field(&task.text(), "name");
    let (_, _, log) = package(name[1..].parse().unwrap());
    let result = format!(
        ": 1\nsession: {session}\n:\nname: {name}\nversion: 1\nstatus: success\nupdate-status: success\nupdate-log: \\\n{log}\n\\\n"
    );
    agent(
        &format!("{url}/?build-result"),
        &["Bbot-Agent: 1"],
        result.as_bytes(),
    )
    .status
        == 200
}

/// All builds of a controller: each is as it should be. The names of those that are built.
fn look(url: &str) -> Vec<String> {
    let list = curl(&[&format!("{url}/api/v1/builds?limit=500")], b"").json();
    let mut built = Vec::new();
    for found in list["builds"].as_array().unwrap() {
        let name = found["package"].as_str().unwrap().to_owned();
        let (_, source, log) = package(name[1..].parse().unwrap());
        let sha256 = hex::encode(Sha256::digest(&source));
        let got = curl(&[&format!("{url}/archives/{sha256}.tar.gz")], b"");
        assert_eq!((got.status, got.body == source), (200, true), "{name}");
        if found["state"] == "built" {
            let id = found["id"].as_str().unwrap();
            let got = curl(&[&format!("{url}/api/v1/builds/{id}/log/update")], b"");
            assert_eq!(
                (got.status, got.body == log.as_bytes()),
                (200, true),
                "{name}"
            );
            built.push(name);
        }
    }
    built
}

fn backed_up_under_load(url: Option<&str>, other: Option<&str>) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data directory? 50%");
    let running = start(&data, url);
    let token = std::fs::read_to_string(data.join("token"))
        .unwrap()
        .trim()
        .to_owned();
    for number in 0..5 {
        assert!(build(&running.url, &token, number));
    }
    let stop = Arc::new(AtomicBool::new(false));
    let last = Arc::new(Mutex::new(4));
    let load = {
        let (url, token, stop, last) = (
            running.url.clone(),
            token.clone(),
            Arc::clone(&stop),
            Arc::clone(&last),
        );
        std::thread::spawn(move || {
            for number in 5.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                assert!(build(&url, &token, number));
                *last.lock().unwrap() = number;
            }
        })
    };
    let to = dir.path().join("back-up");
    // One is made while the load goes on, after it has begun.
    while *last.lock().unwrap() < 6 {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let before = *last.lock().unwrap();
    let made = run(&["backup", to.to_str().unwrap()], &data, url);
    assert!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    stop.store(true, Ordering::SeqCst);
    load.join().unwrap();
    let again = run(&["backup", to.to_str().unwrap()], &data, url);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"));
    running.kill();

    let elsewhere = dir.path().join("elsewhere");
    // Half a back-up is none.
    let half = dir.path().join("half");
    std::fs::create_dir(&half).unwrap();
    let none = run(&["restore", half.to_str().unwrap()], &elsewhere, other);
    assert!(String::from_utf8_lossy(&none.stderr).contains("is no whole back-up"));
    let restored = run(&["restore", to.to_str().unwrap()], &elsewhere, other);
    assert!(
        restored.status.success(),
        "{}",
        String::from_utf8_lossy(&restored.stderr)
    );
    // Nothing is written over.
    let over = run(&["restore", to.to_str().unwrap()], &elsewhere, other);
    assert_eq!(over.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&over.stderr).contains("already"));

    let running = start(&elsewhere, other);
    let built = look(&running.url);
    // What was acknowledged before it was begun is there; what came meanwhile may be.
    for number in 0..=before {
        assert!(
            built.contains(&format!("p{number}")),
            "{number} of {built:?}"
        );
    }
    let same = std::fs::read_to_string(elsewhere.join("token")).unwrap();
    assert_eq!(same.trim(), token);
    assert!(build(&running.url, &token, 1000), "it goes on");
    running.kill();
}

#[test]
fn a_store_is_backed_up_under_load_and_restored() {
    backed_up_under_load(None, None);
}

/// What a database has left that was removed would be taken for a part of the one that is restored.
#[test]
fn nothing_is_restored_beside_what_is_left_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    start(&data, None).kill();
    let to = dir.path().join("back-up");
    assert!(
        run(&["backup", to.to_str().unwrap()], &data, None)
            .status
            .success()
    );
    let elsewhere = dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    let left = elsewhere.join("controller.sqlite-wal");
    std::fs::write(&left, "x").unwrap();
    let refused = run(&["restore", to.to_str().unwrap()], &elsewhere, None);
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        told.contains("controller.sqlite-wal is there already"),
        "{told}"
    );
    std::fs::remove_file(left).unwrap();
    let restored = run(&["restore", to.to_str().unwrap()], &elsewhere, None);
    assert!(restored.status.success());
}

#[test]
fn a_postgresql_store_is_backed_up_under_load_and_restored() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    backed_up_under_load(Some(&cluster.database()), Some(&cluster.database()));
}

#[test]
fn a_back_up_of_the_other_kind_is_told() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let nothing = run(
        &["backup", dir.path().join("b").to_str().unwrap()],
        &dir.path().join("none"),
        None,
    );
    assert_eq!(nothing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nothing.stderr).contains("there is no"));
    start(&dir.path().join("data"), None).kill();
    let to = dir.path().join("back-up");
    assert!(
        run(
            &["backup", to.to_str().unwrap()],
            &dir.path().join("data"),
            None
        )
        .status
        .success()
    );
    let other = run(
        &["restore", to.to_str().unwrap()],
        &dir.path().join("new"),
        Some(&cluster.database()),
    );
    assert_eq!(other.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&other.stderr).contains("leave --database out"));
}

/// An object that is put anew, elsewhere, while a database is dumped: what is listed is what the dump names.
#[test]
fn objects_are_listed_as_the_dump_has_them() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = Place::Postgres(cluster.database()).open().await;
        let object = |place: &str| Object {
            kind: Kind::Log,
            sha256: "a".repeat(64),
            bytes: 1,
            stored: 1,
            place: place.to_owned(),
        };
        store
            .keep_object(&object("logs/1"), Millis(0))
            .await
            .unwrap();
        let mut snapshot = store.snapshot().await.unwrap();
        assert!(!snapshot.id().is_empty());
        store
            .keep_object(&object("logs/2"), Millis(0))
            .await
            .unwrap();
        let first = (String::new(), String::new());
        let then = snapshot.objects_after(&first, 10).await.unwrap();
        let now = store.objects_after(&first, 10).await.unwrap();
        assert_eq!(
            (then, now),
            (vec![object("logs/1")], vec![object("logs/2")])
        );
        drop(snapshot);
        store.close().await;
    });
}
