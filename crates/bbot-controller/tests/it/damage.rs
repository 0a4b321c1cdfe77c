//! Objects that are lost or damaged, and what mends them; long logs that many read at once.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::time::Duration;

use crate::objects::{bring, bring_next, files, long_log};
use crate::support::{Controller, archive as source_archive};

#[test]
fn what_is_lost_or_damaged_is_told_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let log = long_log(200_000, "x");
    let id = bring(&controller, "a", &log);
    let object = files(&dir.path().join("objects/logs")).remove(0);
    let good = std::fs::read(&object).unwrap();
    let one = format!("/api/v1/builds/{id}/log/update");
    let told = |what: &str| {
        let answer = controller.get(&one);
        assert_eq!(answer.status, 410, "{what}");
        assert!(
            answer.json()["error"]
                .as_str()
                .unwrap()
                .contains("this is lost")
        );
        let all = controller.get(&format!("/api/v1/builds/{id}/log"));
        assert_eq!(all.status, 200);
        assert!(
            all.text()
                .starts_with("==== configure ====\nshort\n==== update ====\n==== this is lost")
        );
        assert_eq!(controller.get(&format!("/builds/{id}")).status, 200);
        assert_eq!(
            controller.get(&format!("/builds/{id}/log/update")).status,
            410
        );
    };
    let mut damaged = good.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(&object, &damaged).unwrap();
    told("a changed bit");
    std::fs::write(&object, &good[..good.len() - 1]).unwrap();
    told("cut off");
    std::fs::write(&object, "").unwrap();
    told("empty");
    std::fs::remove_file(&object).unwrap();
    told("gone");
    // The next result with the same log mends it.
    let rebuilt = controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
    assert_eq!(rebuilt.status, 200);
    bring_next(&controller, "a", &log);
    assert_eq!(controller.get(&one).status, 200);
    assert_eq!(controller.get(&format!("{one}?attempt=1")).status, 200);

    let archive = controller.archive();
    std::fs::remove_file(files(&dir.path().join("objects/archives")).remove(0)).unwrap();
    let lost = controller.get(&format!("/archives/{archive}.tar.gz"));
    assert_eq!(lost.status, 410);
    controller.submit("a", "2");
    assert_eq!(
        controller
            .get(&format!("/archives/{archive}.tar.gz"))
            .status,
        200
    );
}

/// Damage that changes no size is seen by who reads it, and then mended by who puts the same.
#[test]
fn what_was_found_to_be_damaged_is_put_anew() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    let damage = |kind: &str| {
        let object = files(&dir.path().join("objects").join(kind)).remove(0);
        let mut bytes = std::fs::read(&object).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&object, &bytes).unwrap();
    };
    let log = long_log(200_000, "x");
    let id = bring(&controller, "a", &log);
    let one = format!("/api/v1/builds/{id}/log/update");
    damage("logs");
    assert_eq!(controller.get(&one).status, 410);
    let rebuilt = controller.send("POST", &format!("/api/v1/builds/{id}/rebuild"), b"");
    assert_eq!(rebuilt.status, 200);
    bring_next(&controller, "a", &log);
    for attempt in [1, 2] {
        let got = controller.get(&format!("{one}?attempt={attempt}"));
        assert_eq!(got.status, 200, "{attempt}");
    }

    let archive = controller.archive();
    damage("archives");
    let path = format!("/archives/{archive}.tar.gz");
    let good = source_archive(&[("README", "")]);
    let broken = controller.get(&path);
    assert!(broken.body.len() < good.len(), "it breaks off");
    // It is noted beside the answer.
    let begun = std::time::Instant::now();
    let put = format!("/api/v1/archives/{archive}");
    while controller.send("PUT", &put, &good).status != 201 {
        assert!(begun.elapsed() < Duration::from_secs(20), "it is mended");
    }
    assert_eq!(controller.get(&path).body, good);
    assert_eq!(controller.send("PUT", &put, &good).status, 200);
}

/// Each that reads a long log takes some memory: so many at once, and one that takes nothing for long is no reader.
#[test]
fn so_many_read_long_logs_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |config| {
        config.limits.log_readers = 1;
        config.limits.slow_reader = Duration::from_secs(3);
    });
    let id = bring(&controller, "a", &long_log(30 << 20, "x"));
    let path = format!("/api/v1/builds/{id}/log/update");
    let mut slow = std::net::TcpStream::connect(controller.address).unwrap();
    write!(
        slow,
        "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n",
        controller.address
    )
    .unwrap();
    let mut slow = BufReader::new(slow);
    let mut line = String::new();
    slow.read_line(&mut line).unwrap();
    assert_eq!(line, "HTTP/1.1 200 OK\r\n");
    let other = controller.get(&path);
    assert_eq!(
        (other.status, other.header("retry-after")),
        (503, Some("10"))
    );
    assert!(
        other.text().contains("1 clients read long logs already"),
        "{}",
        other.text()
    );
    // What is short is for all.
    assert_eq!(
        controller
            .get(&format!("/api/v1/builds/{id}/log/configure"))
            .status,
        200
    );
    let begun = std::time::Instant::now();
    while controller.get(&path).status != 200 {
        assert!(begun.elapsed() < Duration::from_secs(30), "it is cut off");
        std::thread::sleep(Duration::from_millis(100));
    }
    let mut rest = Vec::new();
    let _ = slow.read_to_end(&mut rest);
    assert!(rest.len() < 30 << 20, "{}", rest.len());
    assert_eq!(controller.get(&path).status, 200);
}
