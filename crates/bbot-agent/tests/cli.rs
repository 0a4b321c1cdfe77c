//! The real `bbot-agent`: its dumps, its fakes, its signals, its exit statuses, and
//! what it says over real HTTP to controllers of both eras.

#![expect(
    clippy::unwrap_used,
    reason = "what is not as it should be fails the test"
)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use bbot_manifest::{
    BootstrappedMachine, BuildResult, Era, ResultRequest, Status, Task, TaskRequest,
};
use scripted::{answer, serve, serve_at};
use tempfile::TempDir;

#[path = "../src/controller/scripted.rs"]
mod scripted;

/// No run here takes longer.
const BOUND: Duration = Duration::from_secs(60);

const HEADER: &str = ": 1\nid: a-1\nname: linux\nsummary: A Linux\n";
const TASK: &str = ": 1\nname: libfoo\nversion: 1.2\nrepository: http://r.example/1\ntrust: AB\nmachine: linux\n\
                    target: x86_64-linux-gnu\n";
const RESULT: &str = ": 1\nname: libfoo\nversion: 1.2\nstatus: success\nupdate-status: success\nupdate-log: \\\nbuilt\n\\\n";

struct Host {
    dir: TempDir,
}

impl Host {
    /// With one machine, `linux`, and folders of its own.
    fn new() -> Self {
        let host = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        host.machine(
            "linux",
            ": 1\nid: a-1\nname: linux\nsummary: A Linux\ntype: kvm\n",
        );
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn machine(&self, name: &str, manifest: &str) {
        let machine = self.path("machines/vol").join(name);
        let revision = machine.join(format!("{name}-1.1"));
        fs::create_dir_all(&revision).unwrap();
        fs::write(revision.join("manifest"), manifest).unwrap();
        fs::write(revision.join("disk.img"), "disk").unwrap();
        std::os::unix::fs::symlink(format!("{name}-1.1"), machine.join(format!("{name}-1")))
            .unwrap();
    }

    fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.path(name), text).unwrap();
        self.path(name).display().to_string()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bbot-agent"));
        for option in ["machines", "tftp", "state"] {
            command.arg(format!("--{option}")).arg(self.path(option));
        }
        command
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        finish(self.command(args).spawn().unwrap())
    }
}

/// Waits for the agent's end, but not for ever.
fn finish(mut child: Child) -> Output {
    let stdout = reader(child.stdout.take().unwrap());
    let stderr = reader(child.stderr.take().unwrap());
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > BOUND {
            let _ = child.kill();
            let _ = child.wait();
            panic!("still running: {}", text(&stderr.join().unwrap()));
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Output {
        status,
        stdout: stdout.join().unwrap(),
        stderr: stderr.join().unwrap(),
    }
}

fn reader(mut from: impl std::io::Read + Send + 'static) -> std::thread::JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn succeeds(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// That the agent failed with one sentence that says this.
fn fails(output: &Output, says: &[&str]) {
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for what in says {
        assert!(stderr.contains(what), "{what} is not in: {stderr}");
    }
    assert!(stderr.contains("error: "), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// Waits until a person who plays the machine sees the task.
fn appears(path: &Path) -> String {
    let begin = Instant::now();
    loop {
        if let Ok(text) = fs::read_to_string(path) {
            return text;
        }
        assert!(
            begin.elapsed() < BOUND,
            "{} does not appear",
            path.display()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

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
        &host.run(&["--instance-max", "4", "http://c"]),
        &["one machine at a time"],
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
fn dumped_machines_are_manifests_one_each() {
    let host = Host::new();
    host.machine(
        "windows",
        ": 1\nid: w-1\nname: windows\nsummary: A Windows\ntype: kvm\nmac: 02:00:00:00:00:01\n",
    );
    host.machine("bad", "rubbish");
    fs::create_dir_all(host.path("machines/vol/empty")).unwrap();
    let output = host.run(&[
        "--dump-machines",
        "--fake-bootstrap",
        "--fake-build",
        "--toolchain-id",
        "tid",
    ]);
    assert_eq!(
        succeeds(&output),
        format!("{HEADER}: 1\nid: w-1\nname: windows\nsummary: A Windows\n")
    );
    assert!(
        text(&output.stderr).contains("bad-1.1/manifest:1:"),
        "{}",
        text(&output.stderr)
    );

    let manifest = host.path("machines/vol/linux/linux-default/manifest");
    let machine = BootstrappedMachine::parse(&fs::read(manifest).unwrap(), "m").unwrap();
    assert_eq!(
        machine.machine.mac.unwrap().to_string(),
        "de:ad:be:ef:de:ad"
    );
    assert_eq!(machine.toolchain.id, "tid");
    assert!(machine.bootstrap.is_ours());

    // With a machine header there are no others.
    let header = host.file("header", HEADER);
    assert_eq!(
        succeeds(&host.run(&["--dump-machines", "--fake-machine", &header])),
        HEADER
    );
    // And without any, nothing is printed.
    fs::remove_dir_all(host.path("machines/vol")).unwrap();
    assert_eq!(
        succeeds(&host.run(&["--dump-machines", "--fake-bootstrap", "--fake-build"])),
        ""
    );
}

#[test]
fn an_unknown_toolchain_id_is_bogus() {
    let host = Host::new();
    succeeds(&host.run(&["--dump-machines", "--fake-bootstrap", "--fake-build"]));
    let manifest = host.path("machines/vol/linux/linux-default/manifest");
    let machine = BootstrappedMachine::parse(&fs::read(manifest).unwrap(), "m").unwrap();
    assert_eq!(machine.toolchain.id, "bogus");
}

#[test]
fn a_dumped_task_is_as_it_came() {
    let host = Host::new();
    let task = host.file("task", TASK);
    let args = [
        "--fake-bootstrap",
        "--fake-build",
        "--fake-request",
        &task,
        "--trust",
        "CD",
        "--dump-task",
    ];
    assert_eq!(succeeds(&host.run(&args)), TASK);

    // The seed's way with an unknown machine.
    let task = host.file("task", &TASK.replace("linux\ntarget", "windows\ntarget"));
    let args = [
        "--fake-bootstrap",
        "--fake-build",
        "--fake-request",
        &task,
        "--dump-task",
    ];
    let output = host.run(&args);
    assert_eq!(succeeds(&output), "");
    assert!(
        text(&output.stderr).contains("unknown machine windows"),
        "{}",
        text(&output.stderr)
    );
    // Without the dump it is an error.
    fails(&host.run(&args[..4]), &["unknown machine windows"]);
}

#[test]
fn a_fake_build_is_an_abort() {
    let host = Host::new();
    let task = host.file("task", TASK);
    let args = [
        "--fake-bootstrap",
        "--fake-build",
        "--fake-request",
        &task,
        "--dump-result",
    ];
    let result = succeeds(&host.run(&args));
    assert_eq!(result, ": 1\nname: libfoo\nversion: 1.2\nstatus: abort\n");
    // Once, and nothing is posted anywhere.
    let output = host.run(&args[..4]);
    assert_eq!(succeeds(&output), "");
    assert!(
        text(&output.stderr).contains("libfoo/1.2: abort"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_person_plays_the_machine() {
    let host = Host::new();
    let (header, task) = (host.file("header", HEADER), host.file("task", TASK));
    let args = [
        "--fake-machine",
        &header,
        "--fake-request",
        &task,
        "--dump-result",
        "--toolchain-name",
        "public-0.17.0",
        "--trust",
        "CD",
    ];
    let child = host.command(&args).spawn().unwrap();
    let base = host.path("tftp/build/public-0.17.0");
    let got = appears(&base.join("get/manifest"));
    assert_eq!(Task::parse(got.as_bytes(), "task").unwrap().trust, ["CD"]);
    // A writer that is slow: first a part, then the whole.
    fs::write(base.join("put/manifest"), &RESULT[..40]).unwrap();
    fs::write(base.join("put/manifest"), RESULT).unwrap();
    let printed = succeeds(&finish(child));
    assert_eq!(
        BuildResult::parse(printed.as_bytes(), "out").unwrap(),
        BuildResult::parse(RESULT.as_bytes(), "in").unwrap()
    );
    assert!(!base.exists(), "the folders are gone");
    assert!(
        !host.path("machines/vol/linux/linux-public-0.17.0").exists(),
        "no machine was touched"
    );
}

#[test]
fn signals_end_it_cleanly() {
    for (signal, code) in [
        (nix::sys::signal::SIGTERM, 0),
        (nix::sys::signal::SIGINT, 0),
        (nix::sys::signal::SIGHUP, 3),
    ] {
        let host = Host::new();
        let header = host.file("header", HEADER);
        let task = host.file("task", TASK);
        let child = host
            .command(&["--fake-machine", &header, "--fake-request", &task])
            .spawn()
            .unwrap();
        let base = host.path("tftp/build/default");
        appears(&base.join("get/manifest"));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
        let output = finish(child);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{signal}: {}",
            text(&output.stderr)
        );
        assert!(!base.exists(), "{signal}: the folders are gone");
    }
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

/// One task over real HTTP: request, challenge, result. The second task request is
/// how we know that the first result was taken.
fn one_task(era: Era) {
    let openssl = Command::new("openssl").arg("version").output().is_ok();
    if !openssl {
        let must = std::env::var("BBOT_REQUIRE").unwrap_or_default();
        assert!(
            !must.contains("openssl"),
            "openssl is not there although BBOT_REQUIRE lists it"
        );
        println!("skipped: no openssl");
        return;
    }
    let host = Host::new();
    let key = host.path("key.pem").display().to_string();
    let made = Command::new("openssl")
        .args(["genrsa", "-out", &key, "2048"])
        .output()
        .unwrap();
    assert!(made.status.success());
    let challenge = "fedcba9876543210".repeat(4);
    let body = |url: &str| {
        let task = match era {
            Era::Y2017 => TASK[4..].to_owned(),
            Era::Later => TASK[4..].replace("repository:", "repository-url:") + "host: false\n",
        };
        format!(
            ": 1\nsession: s/1\nchallenge: {challenge}\nresult-url: {url}?build-result\n:\n{task}"
        )
    };
    // The answers need the server's address, which it gets when it is made: the
    // result's URL is therefore an allowed other one.
    let (results, result_server) = serve(vec![answer("200 OK", "", "")]);
    let none = answer(
        "200 OK",
        "Content-Type: text/manifest;charset=utf-8\r\n",
        ": 1\nsession:\n",
    );
    let (tasks, task_server) = serve(vec![answer("200 OK", "", &body(&results)), none]);
    let mut args = vec![
        "--fake-bootstrap",
        "--fake-build",
        "--auth-key",
        &key,
        "--allow-result-url",
        &results,
    ];
    if era == Era::Later {
        args.extend(["--era", "later", "--auxiliary-ram", "4096"]);
    }
    args.push(&tasks);
    let mut child = host.command(&args).spawn().unwrap();
    let requests = task_server.join().unwrap();
    let result = result_server.join().unwrap().remove(0);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut stderr = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut stderr)
        .unwrap();

    assert_eq!(requests[0].line, "POST /?build-task HTTP/1.1");
    assert_eq!(requests[0].header("content-type"), Some("text/manifest"));
    let words = text(&requests[0].body);
    let request = TaskRequest::parse(words.as_bytes(), "request").unwrap();
    assert_eq!(request.machines.len(), 1);
    assert_eq!(words.contains("auxiliary-ram"), era == Era::Later);
    let der = Command::new("openssl")
        .args(["rsa", "-pubout", "-outform", "DER", "-in", &key])
        .output()
        .unwrap();
    let sum = Command::new("sh")
        .arg("-c")
        .arg(format!(
            "openssl rsa -pubout -outform DER -in '{key}' 2>/dev/null | openssl dgst -sha256 -r"
        ))
        .output()
        .unwrap();
    assert!(!der.stdout.is_empty());
    assert!(
        text(&sum.stdout).starts_with(&request.fingerprint.unwrap()),
        "{}",
        text(&sum.stdout)
    );

    assert_eq!(result.line, "POST /?build-result HTTP/1.1");
    let result = ResultRequest::parse(&result.body, "result").unwrap();
    assert_eq!(
        (result.session.as_str(), result.result.status),
        ("s/1", Status::Abort)
    );
    assert_eq!(result.agent_checksum.is_some(), era == Era::Later);
    // As the original's controllers verify it.
    let signature = host.path("signature");
    fs::write(&signature, result.challenge.unwrap()).unwrap();
    let verified = Command::new("openssl")
        .args(["pkeyutl", "-verifyrecover", "-inkey", &key, "-in"])
        .arg(&signature)
        .output()
        .unwrap();
    assert_eq!(text(&verified.stdout), challenge, "{stderr}");
    assert_eq!(
        fs::read_dir(host.path("state/default/results"))
            .unwrap()
            .count(),
        0,
        "{stderr}"
    );
}

#[test]
fn a_controller_of_2017_gets_its_result() {
    one_task(Era::Y2017);
}

#[test]
fn a_controller_of_today_gets_its_result() {
    one_task(Era::Later);
}

#[test]
fn a_task_is_given_back_when_the_agent_is_stopped() {
    let host = Host::new();
    let header = host.file("header", HEADER);
    let (results, result_server) = serve(vec![answer("200 OK", "", "")]);
    let task = format!(
        ": 1\nsession: s/1\nresult-url: {results}?build-result\n:\n{}",
        &TASK[4..]
    );
    let ours = "Bbot-Controller: 1\r\n";
    let (tasks, task_server) = serve(vec![answer("200 OK", ours, &task)]);
    let args = [
        "--fake-machine",
        &header,
        "--allow-result-url",
        &results,
        &tasks,
    ];
    let child = host.command(&args).spawn().unwrap();
    appears(&host.path("tftp/build/default/get/manifest"));
    task_server.join().unwrap();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
    let output = finish(child);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let posted = result_server.join().unwrap().remove(0);
    let posted = ResultRequest::parse(&posted.body, "result").unwrap();
    assert_eq!(
        (posted.session.as_str(), posted.result.status),
        ("s/1", Status::Interrupt)
    );
    for folder in ["held", "results"] {
        let left = fs::read_dir(host.path("state/default").join(folder)).unwrap();
        assert_eq!(left.count(), 0, "{folder}");
    }
}

/// A controller that takes the result only at the second try, after a restart of
/// the agent.
#[test]
fn a_result_outlives_the_agent() {
    let host = Host::new();
    let (results, result_server) = serve(vec![answer("503 Busy", "", "later")]);
    let task = format!(
        ": 1\nsession: s/1\nresult-url: {results}?build-result\n:\n{}",
        &TASK[4..]
    );
    let none = || answer("200 OK", "", ": 1\nsession:\n");
    let (tasks, task_server) = serve(vec![answer("200 OK", "", &task), none()]);
    let args = [
        "--fake-bootstrap",
        "--fake-build",
        "--allow-result-url",
        &results,
        &tasks,
    ];
    let mut child = host.command(&args).spawn().unwrap();
    // The second request: the first post is over.
    task_server.join().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let first = result_server.join().unwrap();
    assert_eq!(
        fs::read_dir(host.path("state/default/results"))
            .unwrap()
            .count(),
        1
    );
    let address = results.trim_start_matches("http://").trim_end_matches('/');
    let (_, result_server) = serve_at(address, vec![answer("200 OK", "", "")]);

    let (tasks, task_server) = serve(vec![none()]);
    let args = [
        "--fake-bootstrap",
        "--fake-build",
        "--allow-result-url",
        &results,
        &tasks,
    ];
    let mut child = host.command(&args).spawn().unwrap();
    task_server.join().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let posted = result_server.join().unwrap();
    assert_eq!(posted[0].body, first[0].body);
    assert_eq!(
        fs::read_dir(host.path("state/default/results"))
            .unwrap()
            .count(),
        0
    );
}
