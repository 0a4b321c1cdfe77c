//! Tasks and results over real HTTP, with controllers of both eras.

use std::fs;
use std::io::Read as _;
use std::process::Command;

use bbot_manifest::{Era, ResultRequest, Status, TaskRequest};

use crate::scripted::{answer, serve, serve_at};
use crate::support::*;

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
