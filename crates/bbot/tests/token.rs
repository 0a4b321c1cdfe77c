//! `bbot token` over a real controller.

#![expect(clippy::unwrap_used, unreachable_pub, reason = "tests")]

mod support;

use std::path::Path;
use std::process::{Command, Output};

use support::Controller;

fn bbot(url: &str, token: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bbot"))
        .args(arguments)
        .args(["--controller", url, "--token-file"])
        .arg(token)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn tokens_are_made_listed_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(&dir.path().join("data"), 0, |config| config.private = true);
    let url = controller.url();
    let first = dir.path().join("data/token");

    let made = bbot(
        &url,
        &first,
        &["token", "create", "reader", "--scope", "read"],
    );
    assert!(made.status.success(), "{}", said(&made));
    let token = String::from_utf8(made.stdout).unwrap();
    assert!(
        token.starts_with("bbot_") && token.trim().len() == 86,
        "{token}"
    );
    let reader = dir.path().join("reader");
    std::fs::write(&reader, &token).unwrap();

    // It reads what strangers may not, and no more.
    let builds = bbot(&url, &reader, &["builds"]);
    assert!(builds.status.success(), "{}", said(&builds));
    let none = bbot(&url, &dir.path().join("none"), &["builds"]);
    assert!(said(&none).contains("needs a token"), "{}", said(&none));
    let list = bbot(&url, &reader, &["token", "list"]);
    assert!(
        said(&list).contains("needs the scope admin"),
        "{}",
        said(&list)
    );

    let list = bbot(&url, &first, &["token", "list"]);
    let table = String::from_utf8(list.stdout).unwrap();
    assert!(
        table.contains("reader") && table.contains("read"),
        "{table}"
    );
    assert!(!table.contains(&token.trim()[30..]), "{table}");
    let twice = bbot(&url, &first, &["token", "create", "reader", "-s", "read"]);
    assert!(said(&twice).contains("revoke it first"), "{}", said(&twice));
    let revoked = bbot(&url, &first, &["token", "revoke", "reader"]);
    assert!(revoked.status.success(), "{}", said(&revoked));
    let builds = bbot(&url, &reader, &["builds"]);
    assert_eq!(builds.status.code(), Some(1));
    assert!(
        said(&builds).contains("does not take our token"),
        "{}",
        said(&builds)
    );
}
