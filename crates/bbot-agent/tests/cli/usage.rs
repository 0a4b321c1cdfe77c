//! What a person at a terminal or the journal reads.

use std::fs;
use std::io::{BufRead as _, BufReader};

use crate::support::*;

#[test]
fn help_and_version() {
    let host = Host::new();
    let help = succeeds(&host.run(&["--help"]));
    for option in [
        "--toolchain-name",
        "--toolchain-num",
        "--toolchain-ver",
        "--toolchain-id",
        "--cpu",
        "--ram",
        "--machines",
        "--tftp",
        "--tftp-port",
        "--bootstrap-timeout",
        "--bootstrap-retries",
        "--build-timeout",
        "--build-retries",
        "--request-timeout",
        "--auth-key",
        "--trust",
        "--openssl",
        "--openssl-option",
        "--dump-machines",
        "--dump-task",
        "--dump-result",
        "--fake-bootstrap",
        "--fake-build",
        "--fake-machine",
        "--fake-request",
        "--systemd-daemon",
        "--verbose",
        "--help",
        "--version",
        "--build-startup",
        "--bootstrap-startup",
        "--instance-max",
        "--host-cpu",
        "--host-ram",
        "--suspend-max",
        "--drain-timeout",
        "--config",
    ] {
        assert!(help.contains(option), "{option}");
    }
    let version = succeeds(&host.run(&["--version"]));
    assert!(
        version.starts_with(&format!(
            "bbot-agent {}\nlibbbot ",
            env!("CARGO_PKG_VERSION")
        )),
        "{version}"
    );
}

#[test]
fn wrong_usage_is_a_failure() {
    let host = Host::new();
    fails(
        &host.run(&[]),
        &["controller url expected", "info: run bbot-agent --help"],
    );
    fails(&host.run(&["--no-such-option"]), &["--no-such-option"]);
    fails(&host.run(&["--cpu", "many", "http://c"]), &["--cpu"]);
    fails(
        &host.run(&["--instance-max", "0", "http://c"]),
        &["--instance-max"],
    );
    fails(&host.run(&["1=http://c"]), &["four or five digits"]);
    let config = host.file("agent.conf", "cpu 2\nno-such-option 3\n");
    fails(
        &host.run(&["--config", &config, "http://c"]),
        &["agent.conf:2: ", "no-such-option"],
    );
    fails(
        &host.run(&["--fake-bootstrap", "--fake-build", "ftp://c"]),
        &["ftp://c", "http"],
    );
}

#[test]
fn what_the_operator_must_mend_is_one_sentence() {
    let host = Host::new();
    let fakes = ["--fake-bootstrap", "--fake-build", "http://127.0.0.1:1"];
    let with = |more: &[&str]| host.run(&[more, &fakes].concat());
    let key = host.file("key.pem", "not a key");
    fails(&with(&["--auth-key", &key]), &["key.pem", "bbot keygen"]);
    fails(&with(&["--auth-key", "/no/such/key"]), &["/no/such/key"]);
    let file = host.file("file", "");
    fails(&with(&["--state", &file]), &["--state", "file"]);
    fails(
        &with(&["--machines", "/no/such/machines"]),
        &["/no/such/machines", "--machines", "bbot machine create"],
    );
    fails(
        &with(&["--auth-key", &file, "--openssl", "/no/such/openssl"]),
        &["/no/such/openssl", &file],
    );
    fails(
        &host.run(&["--accel", "tcg", "--tftp", &file, "http://127.0.0.1:1"]),
        &["--tftp", "writable"],
    );
    let bad = host.file("header", ": 1\nid: x\n");
    fails(
        &host.run(&["--dump-machines", "--fake-machine", &bad]),
        &["header:", "error: "],
    );
    let bad = host.file("task", ": 1\nname: x\n");
    fails(
        &host.run(&["--fake-bootstrap", "--fake-build", "--fake-request", &bad]),
        &["task:"],
    );
    let task = host.file("task", TASK);
    fails(
        &host.run(&[
            "--tftp",
            &file,
            "--fake-machine",
            &host.file("header", HEADER),
            "--fake-request",
            &task,
        ]),
        &["--tftp"],
    );
}

#[test]
fn without_qemu_or_toolchain_nothing_can_be_bootstrapped() {
    let host = Host::new();
    let args = ["--accel", "tcg", "--dump-machines"];
    let none = host.run(&args);
    assert_eq!(succeeds(&none), "");
    let said = text(&none.stderr);
    assert!(
        said.contains("no toolchain default") && said.contains("bbot toolchain add"),
        "{said}"
    );

    let toolchain = host.path("tftp/toolchains/default");
    fs::create_dir_all(&toolchain).unwrap();
    fs::write(toolchain.join("bootstrap"), "").unwrap();
    let child = host
        .command(&args)
        .env("PATH", "/nonexistent")
        .spawn()
        .unwrap();
    fails(
        &finish(child),
        &["qemu-system-x86_64 is not installed", "install the package"],
    );
}

#[test]
fn a_daemon_says_who_it_is_line_by_line() {
    let host = Host::new();
    let args = [
        "--systemd-daemon",
        "--fake-bootstrap",
        "--fake-build",
        "--toolchain-num",
        "7",
        "http://127.0.0.1:1",
    ];
    let mut child = host.command(&args).spawn().unwrap();
    let mut lines = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        lines.push(line.unwrap());
        if lines.last().unwrap().contains("unable to request task") {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(
        lines[0],
        format!("<6>info: bbot agent {}", env!("CARGO_PKG_VERSION"))
    );
    for expected in [
        "<6>info: toolchain name default",
        "<6>info: toolchain num  7",
        "<6>info: RAM(kB)        1048576",
        "<6>info: controller url http://127.0.0.1:1",
    ] {
        assert!(
            lines.iter().any(|l| l == expected),
            "{expected}: {lines:#?}"
        );
    }
    assert!(lines.iter().all(|l| l.starts_with('<')), "{lines:#?}");
    assert!(
        lines.last().unwrap().starts_with("<3>error: "),
        "{lines:#?}"
    );
    // An error of the last resort is critical.
    let stderr = text(&host.run(&["--systemd-daemon"]).stderr);
    assert!(
        stderr.starts_with("<2>error: controller url expected\n<2>info: "),
        "{stderr}"
    );
}
