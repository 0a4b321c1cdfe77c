//! Real clients and our server with a bad relay between them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::relay::{Badness, Relay};
use crate::server::{Ours, impatient, quick};
use crate::support::{Random, assert_same, content, have, run};
use bbot_tftp::client::{self, Options};

/// Runs a command through a bad relay, GET and PUT.
fn through(
    program: &str,
    badness: Badness,
    length: usize,
    get: impl Fn(&Path, SocketAddr) -> Command,
    put: impl Fn(&Path, SocketAddr) -> Command,
) {
    if !have(program) {
        return;
    }
    let (served, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = Ours::of_folder(served.path(), impatient());
    let relay = Relay::start(server.address, badness);
    let bytes = content(length, badness.seed);
    fs::write(served.path().join("down"), &bytes).unwrap();
    fs::write(own.path().join("up"), &bytes).unwrap();
    let output = run(&mut get(own.path(), relay.address));
    assert!(output.status.success(), "{program} {badness:?}: {output:?}");
    let what = format!("{program} {badness:?}: {output:?}");
    let got = fs::read(own.path().join("down")).expect(&what);
    assert_same(&got, &bytes, &what);
    let output = run(&mut put(own.path(), relay.address));
    assert!(output.status.success(), "{program} {badness:?}: {output:?}");
    let what = format!("{program} {badness:?}: {output:?}");
    let got = fs::read(served.path().join("up")).expect(&what);
    assert_same(&got, &bytes, &what);
    assert!(relay.lost() > 0, "nothing was lost: {badness:?}");
}

const BAD: Badness = Badness {
    seed: 11,
    loss: 3,
    duplication: 3,
    reordering: 3,
};

#[test]
fn curl_through_losses() {
    let curl = |folder: &Path, words: &[&str], url: String| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--max-time", "90"])
            .args(words)
            .arg(url)
            .current_dir(folder);
        curl
    };
    through(
        "curl",
        BAD,
        20_000,
        |folder, server| curl(folder, &["-o", "down"], format!("tftp://{server}/down")),
        |folder, server| curl(folder, &["-T", "up"], format!("tftp://{server}/up")),
    );
}

#[test]
fn atftp_through_losses() {
    for window in [1, 8] {
        let atftp = |folder: &Path, server: SocketAddr, way: &str, name: &str| {
            let mut atftp = Command::new("atftp");
            let window = format!("windowsize {window}");
            atftp.args([
                "--option",
                "blksize 1428",
                "--option",
                "timeout 1",
                "--option",
                &window,
            ]);
            atftp.args([
                way,
                "-r",
                name,
                "-l",
                name,
                &server.ip().to_string(),
                &server.port().to_string(),
            ]);
            atftp.current_dir(folder);
            atftp
        };
        through(
            "atftp",
            BAD,
            100_000,
            |folder, server| atftp(folder, server, "-g", "down"),
            |folder, server| atftp(folder, server, "-p", "up"),
        );
    }
}

#[test]
fn tftp_hpa_through_losses() {
    let tftp = |folder: &Path, server: SocketAddr, words: &[&str]| {
        let mut tftp = Command::new("tftp");
        tftp.args([
            "-m",
            "binary",
            &server.ip().to_string(),
            &server.port().to_string(),
            "-c",
        ]);
        tftp.args(words).current_dir(folder);
        tftp
    };
    through(
        "tftp",
        BAD,
        20_000,
        |folder, server| tftp(folder, server, &["get", "down"]),
        |folder, server| tftp(folder, server, &["put", "up"]),
    );
}

#[test]
fn our_client_through_losses() {
    let folder = tempfile::tempdir().unwrap();
    let server = Ours::of_folder(folder.path(), impatient());
    for seed in 1..=12 {
        let mut random = Random::new(seed);
        let badness = Badness {
            seed,
            loss: random.below(12),
            duplication: random.below(12),
            reordering: random.below(12),
        };
        let relay = Relay::start(server.address, badness);
        let window = [1, 4, 16][usize::try_from(random.below(3)).unwrap()];
        let options = Options {
            window,
            retransmit: quick(),
            dally: Duration::from_millis(100),
            ..Options::default()
        };
        let bytes = content(usize::try_from(random.below(300_000)).unwrap(), seed);
        let what = format!("{badness:?} window {window}");
        let size = Some(bytes.len() as u64);
        client::put(relay.address, "file", &mut bytes.as_slice(), size, &options).expect(&what);
        assert_same(
            &fs::read(folder.path().join("file")).unwrap(),
            &bytes,
            &what,
        );
        let mut got = Vec::new();
        client::get(relay.address, "file", &mut got, &options).expect(&what);
        assert_same(&got, &bytes, &what);
    }
}
