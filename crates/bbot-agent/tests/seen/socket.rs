//! The status socket: what it answers, and to whom, and how little it takes to be
//! left in peace by those who mean harm.

use std::sync::Arc;
use std::time::Duration;

use bbot_agent::status::{
    Attachment, Client, ClientError, Command, Mode, Request, Run, Status, Suspended,
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::Agent;

/// No answer here takes longer.
const BOUND: Duration = Duration::from_secs(20);

/// Sends these bytes, closes its end, and reads until the server closes.
async fn say(agent: &Agent, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(agent.path()).await.unwrap();
    // The server may have closed before it has read all.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut text = Vec::new();
    let read = timeout(BOUND, stream.read_to_end(&mut text)).await;
    let _ = read.expect("the server goes on for ever");
    String::from_utf8(text).unwrap()
}

/// A client blocks; the server has to run meanwhile.
async fn with_client<T: Send + 'static>(
    agent: &Agent,
    act: impl FnOnce(&mut Client) -> T + Send + 'static,
) -> T {
    let place = agent.place.clone();
    let acting = tokio::task::spawn_blocking(move || act(&mut Client::connect(&place).unwrap()));
    timeout(BOUND, acting).await.unwrap().unwrap()
}

#[tokio::test]
async fn the_status_is_told_as_of_now() {
    let agent = Agent::start(Status {
        agent: "host-1".to_owned(),
        mode: Mode::Running,
        ..Status::default()
    });
    let status = with_client(&agent, |client| client.status().unwrap()).await;
    assert_eq!(status.agent, "host-1");
    assert!(status.uptime.0 >= 0.0 && status.uptime.0 < 20.0);
    agent.publish.send_modify(|status| {
        Arc::make_mut(status).agent = "host-2".to_owned();
    });
    // Two requests on one connection, by hand, as a person with socat would.
    let text = say(
        &agent,
        b"{\"command\":\"status\"}\n{\"command\":\"metrics\"}\n",
    )
    .await;
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["answer"], "status");
    assert_eq!(lines[0]["status"]["agent"], "host-2");
    assert!(
        lines[1]["text"]
            .as_str()
            .unwrap()
            .starts_with("# HELP bbot_agent_")
    );
}

#[tokio::test]
async fn each_command_reaches_the_driver_and_its_answer_the_person() {
    let mut agent = Agent::start(Status::default());
    let place = agent.place.clone();
    let person = tokio::task::spawn_blocking(move || {
        let mut client = Client::connect(&place).unwrap();
        let within = Some(30);
        client.tell(&Request::Drain { within }).unwrap();
        client.tell(&Request::Undrain).unwrap();
        let id = "7".to_owned();
        client.tell(&Request::SuspendedResume { id }).unwrap();
        let id = "8".to_owned();
        let refused = client.tell(&Request::SuspendedKill { id }).unwrap_err();
        (refused.to_string(), client.attach("9").unwrap())
    });
    let mut seen = Vec::new();
    for _ in 0..5 {
        let command = timeout(BOUND, agent.commands.recv())
            .await
            .unwrap()
            .unwrap();
        match command {
            Command::Drain { within, reply } => {
                seen.push(format!("drain {within:?}"));
                reply.send(Ok(())).unwrap();
            }
            Command::Resume { reply } => {
                seen.push("resume".to_owned());
                reply.send(Ok(())).unwrap();
            }
            Command::SuspendedResume { id, reply } => {
                seen.push(format!("go on {id}"));
                reply.send(Ok(())).unwrap();
            }
            Command::SuspendedKill { id, reply } => {
                seen.push(format!("kill {id}"));
                reply.send(Err("there is none".to_owned())).unwrap();
            }
            Command::Attach { id, reply } => {
                seen.push(format!("attach {id}"));
                let console = Some("/run/c".into());
                let reach = Attachment {
                    console,
                    ..Attachment::default()
                };
                reply.send(Ok(reach)).unwrap();
            }
        }
    }
    assert_eq!(
        seen,
        ["drain Some(30s)", "resume", "go on 7", "kill 8", "attach 9"]
    );
    let (refused, reach) = timeout(BOUND, person).await.unwrap().unwrap();
    assert_eq!(refused, "there is none");
    assert_eq!(reach.console, Some("/run/c".into()));
}

#[tokio::test]
async fn waiting_for_a_drain_ends_with_the_last_run_or_with_the_agent() {
    let running = || Status {
        mode: Mode::Draining { until: None },
        runs: vec![Run::default()],
        ..Status::default()
    };
    let agent = Agent::start(running());
    let place = agent.place.clone();
    let wait = move || {
        tokio::task::spawn_blocking(move || Client::connect(&place).unwrap().wait_drained())
    };
    let waiting = wait.clone()();
    agent.publish.send_modify(|status| {
        Arc::make_mut(status).runs.clear();
    });
    timeout(BOUND, waiting).await.unwrap().unwrap().unwrap();

    agent.publish.send(Arc::new(running())).unwrap();
    let waiting = wait.clone()();
    agent.publish.send_modify(|status| {
        Arc::make_mut(status).mode = Mode::Running;
    });
    let refused = timeout(BOUND, waiting).await.unwrap().unwrap().unwrap_err();
    assert!(
        refused.to_string().contains("it does not drain"),
        "{refused}"
    );

    agent.publish.send(Arc::new(running())).unwrap();
    // Connected before the agent ends, or it would be another story.
    let mut stream = UnixStream::connect(agent.path()).await.unwrap();
    stream
        .write_all(b"{\"command\":\"drained\"}\n")
        .await
        .unwrap();
    agent.serving.abort();
    let mut text = String::new();
    let read = timeout(BOUND, stream.read_to_string(&mut text)).await;
    // Closed, or reset where the request had not been read yet.
    assert!(read.unwrap().is_err() || text.is_empty(), "{text}");
}

#[tokio::test]
async fn an_agent_that_ends_says_so() {
    let mut agent = Agent::start(Status::default());
    agent.commands.close();
    let refused = with_client(&agent, |client| client.tell(&Request::Undrain)).await;
    assert!(matches!(refused, Err(ClientError::Refused(why)) if why == "the agent is ending"));
    let place = agent.place.clone();
    agent.serving.abort();
    let _ = (&mut agent.serving).await;
    assert!(!place.0.exists(), "the socket goes with its server");
    let nobody = Client::connect(&place).unwrap_err();
    assert!(matches!(nobody, ClientError::Connect { .. }), "{nobody}");
}

#[tokio::test]
async fn what_is_no_request_is_answered_and_harms_nobody() {
    let agent = Agent::start(Status::default());
    for bytes in [
        &b"\n"[..],
        b"status\n",
        b"{}\n",
        b"{\"command\":\"fly\"}\n",
        b"{\"command\":\"drain\",\"within\":-1}\n",
        b"{\"command\":\"drain\",\"within\":1e300}\n",
        b"\xff\xfe\x00\x01\n",
        b"GET / HTTP/1.1\r\n",
        b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[\n",
    ] {
        let text = say(&agent, bytes).await;
        assert!(
            text.starts_with("{\"answer\":\"error\""),
            "{bytes:?}: {text}"
        );
    }
    // Without a newline, to its end, and beyond.
    let text = say(&agent, &vec![b'['; 1 << 20]).await;
    assert!(
        text.is_empty() || text.contains("4096 bytes at most"),
        "{text}"
    );
    assert_eq!(say(&agent, b"").await, "");
    let nested = format!("{}\n", "[".repeat(4000));
    assert!(say(&agent, nested.as_bytes()).await.contains("error"));
    with_client(&agent, |client| client.status().unwrap()).await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_and_the_others_are_served() {
    let agent = Agent::start(Status::default());
    let mut held = Vec::new();
    for _ in 0..16 {
        let mut stream = BufReader::new(UnixStream::connect(agent.path()).await.unwrap());
        stream
            .write_all(b"{\"command\":\"status\"}\n")
            .await
            .unwrap();
        let mut line = String::new();
        timeout(BOUND, stream.read_line(&mut line))
            .await
            .unwrap()
            .unwrap();
        assert!(line.contains("\"answer\":\"status\""));
        held.push(stream);
    }
    let text = say(&agent, b"{\"command\":\"status\"}\n").await;
    assert!(text.contains("too many connections"), "{text}");
    drop(held);
    // They are gone as soon as the server has seen it.
    let begin = std::time::Instant::now();
    while say(&agent, b"{\"command\":\"status\"}\n")
        .await
        .contains("too many")
    {
        assert!(begin.elapsed() < BOUND);
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_says_nothing_or_takes_nothing_is_left() {
    let mut status = Status::default();
    for number in 0..20_000 {
        status.suspended.push(Suspended {
            id: number.to_string(),
            ..Suspended::default()
        });
    }
    let agent = Agent::start(status);
    // Asks for more than a socket's buffers hold and reads nothing of it.
    let mut deaf = UnixStream::connect(agent.path()).await.unwrap();
    deaf.write_all(b"{\"command\":\"status\"}\n").await.unwrap();
    let mut silent = UnixStream::connect(agent.path()).await.unwrap();
    let mut slow = UnixStream::connect(agent.path()).await.unwrap();
    slow.write_all(b"{\"comm").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    for stream in [&mut silent, &mut slow] {
        let mut text = Vec::new();
        let read = stream.read_to_end(&mut text).await.unwrap();
        assert_eq!(read, 0, "the server has closed");
    }
    let mut text = Vec::new();
    deaf.read_to_end(&mut text).await.unwrap();
    assert!(!text.ends_with(b"\n"), "cut off");
}
