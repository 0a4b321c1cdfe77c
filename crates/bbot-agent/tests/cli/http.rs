//! Tasks and results over real HTTP, with controllers of both eras.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Command;
use std::time::{Duration, Instant};

use bbot_manifest::{Era, ResultRequest, Status, TaskRequest};

use crate::scripted::{answer, serve, serve_at};
use crate::support::*;

/// Until nothing is in this folder any more: results go while the agent does other things.
fn empties(folder: &std::path::Path) {
    let begin = std::time::Instant::now();
    while fs::read_dir(folder).unwrap().count() > 0 {
        assert!(begin.elapsed() < BOUND, "{} stays", folder.display());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

/// One task over real HTTP: request, challenge, result. The second task request is
/// how we know that the first result was taken.
fn one_task(era: Era) {
    if !testkit::program("openssl", "openssl") {
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
    empties(&host.path("state/default/results"));
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
}

#[test]
fn a_controller_of_2017_gets_its_result() {
    one_task(Era::Y2017);
}

#[test]
fn a_controller_of_today_gets_its_result() {
    one_task(Era::Later);
}

/// The agent while a person plays the machine of a task of ours, told to end by these
/// signals; what it then posts, and how long it took.
fn ended_by(signals: &[nix::sys::signal::Signal], more: &[&str]) -> (ResultRequest, Duration) {
    let host = Host::new();
    let header = host.file("header", HEADER);
    let ours = "Bbot-Controller: 1\r\n";
    let (results, result_server) = serve(vec![answer("200 OK", ours, "")]);
    let task = format!(
        ": 1\nsession: s/1\nresult-url: {results}?build-result\n:\n{}",
        &TASK[4..]
    );
    let (tasks, task_server) = serve(vec![answer("200 OK", ours, &task)]);
    let mut args = vec!["--fake-machine", &header, "--allow-result-url", &results];
    args.extend(more);
    args.push(&tasks);
    let mut child = host.command(&args).spawn().unwrap();
    let said = BufReader::new(child.stderr.take().unwrap());
    let (told, hears) = std::sync::mpsc::channel();
    let log = std::thread::spawn(move || {
        let lines = said.lines().map_while(Result::ok);
        for line in lines {
            // Whoever waits may have heard enough.
            let _ = told.send(line);
        }
    });
    appears(&host.path("tftp/build/default/get/manifest"));
    task_server.join().unwrap();
    let begin = Instant::now();
    for (number, signal) in signals.iter().enumerate() {
        if number > 0 {
            // The one before has been heard: two at once would be one.
            let heard = |line: &String| line.contains("no new tasks");
            hears.iter().find(heard).unwrap();
        }
        send(&child, *signal);
    }
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        assert!(begin.elapsed() < BOUND, "still running");
        std::thread::sleep(Duration::from_millis(10));
    };
    let took = begin.elapsed();
    assert_eq!(status.code(), Some(0));
    log.join().unwrap();
    let posted = result_server.join().unwrap().remove(0);
    for folder in ["held", "results"] {
        let left = fs::read_dir(host.path("state/default").join(folder)).unwrap();
        assert_eq!(left.count(), 0, "{folder}");
    }
    assert!(!host.path("tftp/build/default").exists());
    let posted = ResultRequest::parse(&posted.body, "result").unwrap();
    assert_eq!(posted.session, "s/1");
    (posted, took)
}

#[test]
fn a_task_is_given_back_when_the_agent_is_stopped() {
    use nix::sys::signal::{SIGINT, SIGTERM};
    // At once, at once by the second, and when its time is over.
    for (signals, more, least) in [
        (&[SIGINT][..], &[][..], 0),
        (&[SIGTERM, SIGTERM], &[], 0),
        (&[SIGTERM, SIGINT], &[], 0),
        (&[SIGTERM], &["--drain-timeout", "2"], 2),
    ] {
        let (posted, took) = ended_by(signals, more);
        assert_eq!(posted.result.status, Status::Interrupt, "{signals:?}");
        let range = Duration::from_secs(least)..Duration::from_secs(least + 15);
        assert!(range.contains(&took), "{signals:?}: {took:?}");
    }
}

/// Another process holds the lock of the sources, so that the thread that looks for one waits
/// for ever.
#[test]
fn a_thread_that_is_stuck_does_not_keep_the_process() {
    use std::os::unix::fs::MetadataExt as _;
    if !testkit::program("qemu-system-x86_64", "qemu") {
        return;
    }
    let host = Host::new();
    fs::create_dir_all(host.path("state/sources")).unwrap();
    let gate = fs::File::create(host.path("state/sources/.lock")).unwrap();
    gate.lock().unwrap();
    // The task names its controller's address.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap().to_string();
    drop(free);
    let archive = format!("http://{address}/archives/{}.tar.gz", "0".repeat(64));
    let task = format!(
        ": 1\nsession: s/1\nresult-url: http://{address}/?build-result\n:\n{}",
        TASK[4..].replace("http://r.example/1", &archive)
    );
    let (tasks, server) = serve_at(&address, vec![answer("200 OK", "", &task)]);
    let args = ["--fake-bootstrap", "--accel", "tcg", &tasks];
    let child = host.command(&args).spawn().unwrap();
    server.join().unwrap();
    let inode = gate.metadata().unwrap().ino();
    let begin = Instant::now();
    let waits = |line: &str| line.contains("->") && line.contains(&format!(":{inode} "));
    while !fs::read_to_string("/proc/locks")
        .unwrap()
        .lines()
        .any(waits)
    {
        assert!(begin.elapsed() < BOUND, "it does not wait for the lock");
        std::thread::sleep(Duration::from_millis(10));
    }
    let begin = Instant::now();
    send(&child, nix::sys::signal::SIGINT);
    succeeds(&finish(child));
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(15), "{took:?}");
}

/// SIGHUP over a running task: another controller is asked from then on, the task goes
/// on to its result; a file that cannot be read changes nothing.
#[test]
fn a_reload_loses_no_task() {
    let host = Host::new();
    let header = host.file("header", HEADER);
    let (results, result_server) = serve(vec![answer("200 OK", "", "")]);
    let task = format!(
        ": 1\nsession: s/1\nresult-url: {results}?build-result\n:\n{}",
        &TASK[4..]
    );
    let (first, first_server) = serve(vec![answer("200 OK", "", &task)]);
    let none = || answer("200 OK", "", ": 1\nsession:\n");
    let (second, second_server) = serve(vec![none()]);
    let config = host.file("agent.conf", &format!("controller {first}\n"));
    let args = [
        "--fake-machine",
        &header,
        "--allow-result-url",
        &results,
        "--config",
        &config,
    ];
    let mut child = host.command(&args).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut hear = |what: &str| {
        let heard = said
            .by_ref()
            .map_while(Result::ok)
            .find(|line| line.contains(what));
        assert!(heard.is_some(), "{what}");
    };
    appears(&host.path("tftp/build/default/get/manifest"));
    first_server.join().unwrap();

    host.file("agent.conf", "controller\n");
    send(&child, nix::sys::signal::SIGHUP);
    hear("agent.conf:1: controller needs a URL");
    host.file("agent.conf", &format!("controller {second}\n"));
    send(&child, nix::sys::signal::SIGHUP);
    hear("the configuration was read again");
    // A writer that makes it whole at once.
    host.file("result", RESULT);
    fs::rename(
        host.path("result"),
        host.path("tftp/build/default/put/manifest"),
    )
    .unwrap();
    let posted = result_server.join().unwrap().remove(0);
    let posted = ResultRequest::parse(&posted.body, "result").unwrap();
    assert_eq!(posted.result.status, Status::Success);
    // And then the new one is asked.
    second_server.join().unwrap();
    send(&child, nix::sys::signal::SIGTERM);
    hear("no new tasks");
    assert_eq!(child.wait().unwrap().code(), Some(0));
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
    task_server.join().unwrap();
    let first = result_server.join().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
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
    let posted = result_server.join().unwrap();
    empties(&host.path("state/default/results"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(posted[0].body, first[0].body);
}
