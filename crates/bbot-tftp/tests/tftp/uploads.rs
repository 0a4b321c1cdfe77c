//! How files come in: whole or not at all, once, within their limits.

use std::fs;
use std::time::Duration;

use crate::bench::{Bench, data, entries, error_code, request};
use bbot_tftp::packet::{self, ErrorCode};
use bbot_tftp::{Event, REQUEST_PORT, Root};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn the_last_ack_comes_after_the_file_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench =
        Bench::new(Root::new().put_once(&["manifest", "result.manifest"], folder.path(), 2000));
    let (port, answer) = bench.ask(REQUEST_PORT, &packet::write_request("manifest", &[]));
    assert_eq!(answer, packet::ack(0));
    bench.ask(port, &data(1, &[7; 512]));
    let there = entries(folder.path());
    assert!(
        there.len() == 1 && there[0].starts_with('.'),
        "not under its name yet: {there:?}"
    );
    // Nobody can fetch what is on its way.
    assert_eq!(bench.ask(port, &data(2, b"end")).1, packet::ack(2));
    assert_eq!(entries(folder.path()), ["manifest"]);
    assert_eq!(fs::read(folder.path().join("manifest")).unwrap().len(), 515);
    // The ACK was lost.
    for _ in 0..3 {
        bench.pass(Duration::from_secs(3));
        assert_eq!(bench.ask(port, &data(2, b"end")).1, packet::ack(2));
    }
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.server.sessions(), 0);
    assert_eq!(bench.events().len(), 2);
    // The first is the result, under whatever name the second comes.
    for name in ["manifest", "result.manifest"] {
        assert_eq!(
            error_code(&bench.upload(name, b"again")),
            ErrorCode::FileExists
        );
    }
    assert_eq!(entries(folder.path()), ["manifest"]);
}

#[test]
fn of_two_uploads_at_once_the_first_whole_one_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench =
        Bench::new(Root::new().put_once(&["manifest", "result.manifest"], folder.path(), 2000));
    let (first, _) = bench.ask(REQUEST_PORT, &packet::write_request("manifest", &[]));
    bench.peer.set_port(4001);
    let (second, _) = bench.ask(REQUEST_PORT, &packet::write_request("result.manifest", &[]));
    assert_eq!(bench.ask(second, &data(1, b"second")).1, packet::ack(1));
    bench.peer.set_port(4000);
    assert_eq!(
        error_code(&bench.ask(first, &data(1, b"first")).1),
        ErrorCode::FileExists
    );
    assert_eq!(entries(folder.path()), ["result.manifest"]);
    let events = bench.events();
    assert_eq!(
        events
            .iter()
            .filter(|event| matches!(event, Event::Uploaded { .. }))
            .count(),
        1
    );
}

#[test]
fn log_segments() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(Root::new().put_numbered("log.", folder.path(), 1000));
    assert_eq!(bench.upload("log.1", b"one"), packet::ack(1));
    assert_eq!(bench.upload("log.20", b"twenty"), packet::ack(1));
    // There already: acknowledged and dropped.
    bench.peer.set_port(4001);
    assert_eq!(bench.upload("log.1", b"ONE"), packet::ack(1));
    assert_eq!(fs::read(folder.path().join("log.1")).unwrap(), b"one");
    for name in [
        "log.",
        "log.0",
        "log.01",
        "log.1x",
        "log.-1",
        "log",
        "log.12345678901",
        "LOG.2",
        "log.\u{663}",
    ] {
        assert_eq!(
            error_code(&bench.upload(name, b"x")),
            ErrorCode::AccessViolation,
            "{name}"
        );
    }
    assert_eq!(entries(folder.path()), ["log.1", "log.20"]);
    let uploads = bench
        .events()
        .into_iter()
        .filter(|event| matches!(event, Event::Uploaded { .. }));
    assert_eq!(uploads.count(), 2);
}

/// Found by the fuzzer: the second was told as if it had its name.
#[test]
fn of_two_segments_of_one_name_at_once_the_first_whole_one_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(Root::new().put_numbered("log.", folder.path(), 1000));
    let (first, _) = bench.ask(REQUEST_PORT, &packet::write_request("log.1", &[]));
    bench.peer.set_port(4001);
    let (second, _) = bench.ask(REQUEST_PORT, &packet::write_request("log.1", &[]));
    assert_eq!(bench.ask(second, &data(1, b"second")).1, packet::ack(1));
    bench.peer.set_port(4000);
    assert_eq!(bench.ask(first, &data(1, b"first")).1, packet::ack(1));
    assert_eq!(fs::read(folder.path().join("log.1")).unwrap(), b"second");
    let events = bench.events().into_iter();
    let told: Vec<u64> = events
        .filter_map(|event| match event {
            Event::Uploaded { bytes, .. } => Some(bytes),
            _ => None,
        })
        .collect();
    assert_eq!(told, [6]);
}

/// Whoever numbers on and on does not fill the disk of a server whose owner is busy.
#[test]
fn of_numbered_files_so_many_may_wait() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(Root::new().put_numbered("log.", folder.path(), 1000));
    fs::write(folder.path().join("manifest"), b"another rule's").unwrap();
    for number in 1..1024 {
        fs::write(folder.path().join(format!("log.{number}")), b"x").unwrap();
    }
    assert_eq!(bench.upload("log.1024", b"last"), packet::ack(1));
    let refused = bench.upload("log.1025", b"x");
    assert_eq!(error_code(&refused), ErrorCode::DiskFull);
    // One that is there already is acknowledged all the same.
    bench.peer.set_port(4001);
    assert_eq!(bench.upload("log.7", b"again"), packet::ack(1));
    // Room comes with the first that is passed on.
    fs::remove_file(folder.path().join("log.1")).unwrap();
    assert_eq!(bench.upload("log.1025", b"x"), packet::ack(1));
}

#[test]
fn limits_hold_whatever_tsize_says() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(Root::new().put_any(folder.path(), 1024));
    assert_eq!(bench.upload("exact", &[1; 1024]), packet::ack(3));
    assert_eq!(
        error_code(&bench.upload("more", &[1; 1025])),
        ErrorCode::DiskFull
    );
    // A size that the file does not have is neither believed nor reserved.
    for size in ["9000000000000", "1"] {
        let asked = request(2, b"lie", b"octet", &[("tsize", size)]);
        let (port, answer) = bench.ask(REQUEST_PORT, &asked);
        assert_eq!(
            answer,
            packet::option_ack(&[("tsize", size.parse().unwrap())])
        );
        bench.ask(port, &data(1, &[2; 512]));
        bench.ask(port, &data(2, &[2; 100]));
        assert_eq!(fs::metadata(folder.path().join("lie")).unwrap().len(), 612);
    }
    assert_eq!(entries(folder.path()), ["exact", "lie"]);
}

#[test]
fn nothing_is_left_of_a_broken_upload() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(Root::new().put_any(folder.path(), 10_000));
    let (port, _) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[]));
    bench.ask(port, &data(1, &[0; 512]));
    assert_eq!(entries(folder.path()).len(), 1);
    // A block larger than agreed.
    assert_eq!(
        error_code(&bench.ask(port, &data(2, &[0; 513])).1),
        ErrorCode::IllegalOperation
    );
    assert!(entries(folder.path()).is_empty());
    // A client that falls silent.
    let (port, _) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[]));
    bench.ask(port, &data(1, &[0; 512]));
    while bench.server.sessions() > 0 {
        bench.wait();
    }
    assert!(entries(folder.path()).is_empty());
    // A server that goes.
    let (port, _) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[]));
    bench.ask(port, &data(1, &[0; 512]));
    drop(bench);
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn a_folder_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone");
    let mut bench = Bench::new(Root::new().get_folder(&gone).put_any(&gone, 100));
    assert_eq!(
        bench.download(&packet::read_request("x", &[])),
        Err(ErrorCode::AccessViolation)
    );
    assert_eq!(
        error_code(&bench.upload("x", b"")),
        ErrorCode::AccessViolation
    );
    // The peer is told no path of the host; the log is.
    let (_, answer) = bench.ask(REQUEST_PORT, &packet::read_request("x", &[]));
    assert!(!String::from_utf8_lossy(&answer).contains("gone"));
    let told = bench.events().into_iter().any(|event| match event {
        Event::Failed { reason, .. } => reason.to_string().contains("gone"),
        _ => false,
    });
    assert!(told);
}

/// What the host lacks for a while is no refusal for good: the code says so, the peer hears the
/// system's words and no path, and the event says whose error it is.
#[test]
fn what_the_host_lacks_for_now_may_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut bench = Bench::new(Root::new().get_folder(folder.path()).put_once(
        &["up"],
        folder.path(),
        10_000,
    ));
    fs::write(folder.path().join("down"), b"x").unwrap();
    let limit = getrlimit(Resource::Nofile);
    // Not one handle more for this process: each test has its own.
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: Some(0),
            ..limit
        },
    )
    .unwrap();
    let (_, put) = bench.ask(REQUEST_PORT, &packet::write_request("up", &[]));
    let (_, get) = bench.ask(REQUEST_PORT, &packet::read_request("down", &[]));
    setrlimit(Resource::Nofile, limit).unwrap();
    for answer in [put, get] {
        assert_eq!(error_code(&answer), ErrorCode::Undefined);
        let text = String::from_utf8_lossy(&answer).into_owned();
        assert!(text.contains("try later (Too many open files"), "{text}");
        assert!(!text.contains(folder.path().to_str().unwrap()), "{text}");
    }
    let failed: Vec<bool> = bench
        .events()
        .iter()
        .filter_map(|event| match event {
            Event::Failed { reason, .. } => Some(reason.is_of_host()),
            _ => None,
        })
        .collect();
    assert_eq!(failed, [true, true]);
    assert_eq!(bench.upload("up", b"whole"), packet::ack(1));
    // Its own fault is the peer's.
    bench.peer.set_port(4002);
    let again = bench.upload("up", b"again");
    assert_eq!(error_code(&again), ErrorCode::FileExists);
    assert!(
        matches!(bench.events().last(), Some(Event::Failed { reason, .. }) if !reason.is_of_host())
    );
}

/// A volume that is full, and has room again.
#[test]
fn an_upload_to_a_full_disk_may_be_tried_again() {
    if !testkit::root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let full = testkit::Mount::new(&["-t", "tmpfs", "-o", "size=64k", "tmpfs"], folder.path());
    let mut bench = Bench::new(Root::new().put_once(&["up"], folder.path(), 1 << 20));
    fs::write(folder.path().join(".filler"), vec![0; 64 << 10]).unwrap();
    let refused = bench.upload("up", b"small");
    assert_eq!(error_code(&refused), ErrorCode::Undefined);
    assert_eq!(entries(folder.path()), [".filler"]);
    fs::remove_file(folder.path().join(".filler")).unwrap();
    bench.peer.set_port(4001);
    assert_eq!(bench.upload("up", b"small"), packet::ack(1));
    assert_eq!(fs::read(folder.path().join("up")).unwrap(), b"small");
    drop(full);
}
