//! Requests of agents of ours are signed: what is not, or is somebody else's, or comes once more, is worth nothing.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bbot_controller::Config;
use bbot_controller::clock::{Millis, SystemClock};
use bbot_controller::queue::State;
use bbot_controller::queue::lease::Renewal;
use bbot_controller::store::{AddedKey, NewLease, SessionSigning, StoreError};
use bbot_signature::{Ephemeral, PublicKey, SESSION_KEY, SessionKey, body_digest};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::cluster::Cluster;
use crate::signing::{Agent, Sent, Task, now};
use crate::store::{lease, on_both, submit};
use crate::support::{Answer, Controller, agent, archive, curl, field, has, result};

/// A controller that knows one agent's key.
struct World {
    controller: Controller,
    agent: Agent,
    dir: tempfile::TempDir,
}

impl World {
    fn start(change: impl FnOnce(&mut Config)) -> Option<Self> {
        if !has("openssl") {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let keys = dir.path().join("keys");
        std::fs::create_dir(&keys).unwrap();
        let agent = Agent::new(dir.path(), &keys, "bot");
        let controller = controller(dir.path(), change);
        Some(Self {
            controller,
            agent,
            dir,
        })
    }

    /// The same one after a restart, at the same time and address.
    fn restarted(self) -> Self {
        let Self {
            controller,
            agent,
            dir,
        } = self;
        let (address, now) = (controller.address, now(&controller));
        drop(controller);
        let controller = self::controller(dir.path(), |c| c.bind = address);
        controller
            .clock
            .advance_seconds(now - self::now(&controller));
        Self {
            controller,
            agent,
            dir,
        }
    }
}

fn controller(dir: &Path, change: impl FnOnce(&mut Config)) -> Controller {
    Controller::start(&dir.join("data"), |c| {
        c.agent_keys = Some(dir.join("keys"));
        c.artifacts = vec!["bindist".to_owned()];
        change(c);
    })
}

#[track_caller]
fn refused(answer: &Answer, status: u16, why: &str) {
    assert_eq!(answer.status, status, "{}", answer.text());
    assert!(answer.text().contains(why), "{}", answer.text());
}

fn state(controller: &Controller, id: &str) -> String {
    controller.build(id)["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_task_is_done_by_signed_requests_alone() {
    let Some(mut world) = World::start(|_| {}) else {
        return;
    };
    let id = world.controller.submit("foo", "1").remove(0);
    let task = world.agent.takes(&world.controller, "1");
    let controller = &world.controller;
    assert_eq!(task.renewal(controller, 1).send(controller).status, 204);
    let now = now(controller);
    let signed = |sent: Sent, nonce: &str| sent.by_session(controller, &task.key, nonce, now);
    let segment = signed(task.post("log/1", "update\nx"), "2").send(controller);
    assert_eq!(
        (segment.status, segment.header("bbot-log-next")),
        (204, Some("2"))
    );
    // An artifact in pieces: what there is of it, the first, the last.
    let sha256 = hex::encode(Sha256::digest(b"artifact"));
    let place = format!("{}/artifacts/bindist/{sha256}", task.path);
    let piece = |offset: usize, bytes: &[u8]| {
        let sent = Sent::new("PUT", &place, bytes)
            .with("bbot-artifact-length", "8")
            .with("bbot-artifact-offset", &offset.to_string())
            .with("bbot-artifact-name", "a.tar");
        signed(sent, &format!("at {offset}"))
            .send(controller)
            .status
    };
    assert_eq!(piece(0, b"arti"), 202);
    let there = signed(Sent::new("HEAD", &place, ""), "h").send(controller);
    assert_eq!(there.header("bbot-artifact-next"), Some("4"));
    assert_eq!(piece(4, b"fact"), 201);

    // The controller is restarted: the session's key is as it was.
    let result = world.agent.result(&task);
    world = world.restarted();
    let controller = &world.controller;
    assert_eq!(task.renewal(controller, 2).send(controller).status, 204);
    let brought = result.clone().by_session(controller, &task.key, "3", now);
    assert_eq!(brought.send(controller).status, 200);
    assert_eq!(state(controller, &id), "built");
    // The answer was lost: it comes once more, signed anew, and as it was.
    let again = result.by_session(controller, &task.key, "4", now);
    assert_eq!(again.send(controller).status, 200);
    assert_eq!(brought.send(controller).status, 200);
    let build = controller.build(&id);
    assert_eq!(build["attempts"].as_array().unwrap().len(), 1);
    assert_eq!(build["artifacts"][0]["name"], "a.tar");
    assert_eq!(task.renewal(controller, 3).send(controller).status, 410);
}

#[test]
fn what_is_not_signed_or_by_another_is_refused() {
    let Some(world) = World::start(|_| {}) else {
        return;
    };
    let (controller, bot) = (&world.controller, &world.agent);
    let id = controller.submit("foo", "1").remove(0);
    controller.submit("foo", "2");
    // Requests for a task.
    let (good, own) = bot.asks(controller, "1");
    let other = Agent::new(world.dir.path(), &world.dir.path().join("keys"), "other");
    controller.clock.advance_seconds(2);
    let authority = controller.address.to_string();
    let forged = other.sign(good.clone(), &authority, "2", now(controller));
    refused(&forged.send(controller), 401, "by another key");
    let mut swapped = good.clone();
    swapped.body = String::from_utf8(swapped.body)
        .unwrap()
        .replace("agent: bot", "agent: bat")
        .into_bytes();
    refused(&swapped.send(controller), 401, "the body is not the one");
    let drained = good.clone().with("bbot-drained", "1");
    refused(
        &drained.send(controller),
        401,
        "does not cover \"bbot-drained\"",
    );
    let keyless = good.clone().without(SESSION_KEY);
    refused(&keyless.send(controller), 401, "which the request has not");
    let mut elsewhere = good.clone();
    elsewhere.path = "/?build-task&r=x".to_owned();
    refused(
        &elsewhere.send(controller),
        401,
        "is not one of this request",
    );
    // As a controller passes it on that it was meant for.
    let (meant, _) = bot.asks_at("evil.example", "3", now(controller));
    refused(&meant.send(controller), 401, "is not one of this request");
    let plain = bot.sign(bot.unsigned(), &authority, "4", now(controller));
    refused(&plain.send(controller), 401, "Bbot-Session-Key");
    assert_eq!(state(controller, &id), "queued");

    let task = Task::of(&good.send(controller), own);
    let second = bot.takes(controller, "5");
    // From then on: an agent from before there were signatures goes on until it is a newer one.
    refused(&bot.unsigned().send(controller), 401, "were signed before");
    // The session's.
    let sha256 = hex::encode(Sha256::digest(b"artifact"));
    let piece = |name: &str| {
        Sent::new(
            "PUT",
            &format!("{}/artifacts/bindist/{name}", task.path),
            "art",
        )
        .with("bbot-artifact-length", "8")
        .with("bbot-artifact-offset", "0")
    };
    let requests = [
        task.post("lease", ""),
        task.post("log/1", "update\nx"),
        piece(&sha256),
        Sent::new("HEAD", &piece(&sha256).path, ""),
        bot.result(&task),
    ];
    for sent in &requests {
        let is_head = sent.method == "HEAD";
        let status = |sent: Sent, expected: u16, why: &str| {
            let answer = sent.send(controller);
            assert_eq!(answer.status, expected, "{sent:?}: {}", answer.text());
            assert!(is_head || answer.text().contains(why), "{}", answer.text());
        };
        status(sent.clone(), 403, "are signed, and this one is not");
        let now = now(controller);
        let sign = |sent: &Sent, at: i64| sent.clone().by_session(controller, &task.key, "9", at);
        let by_other = sent.clone().by_session(controller, &second.key, "9", now);
        status(by_other, 401, "is not one of this request");
        for (ahead, clock) in [(-600, "10 min behind"), (600, "10 min ahead of")] {
            status(sign(sent, now + ahead), 401, clock);
        }
        if !is_head {
            let mut swapped = sign(sent, now);
            swapped.body.push(b'\n');
            status(swapped, 401, "the body is not the one");
        }
        let mut moved = sign(sent, now);
        moved.path = if moved.path.starts_with(&task.path) {
            moved.path.replace(&task.path, &second.path)
        } else {
            moved.path + "&x"
        };
        assert!(
            matches!(moved.send(controller).status, 400 | 401),
            "{moved:?}"
        );
    }
    // Nothing of it has left anything.
    let there = Sent::new("HEAD", &piece(&sha256).path, "");
    let there = there.by_session(controller, &task.key, "10", now(controller));
    let there = there.send(controller);
    assert_eq!(there.header("bbot-artifact-next"), Some("0"));
    let first = task.post("log/1", "update\ny");
    let first = first.by_session(controller, &task.key, "11", now(controller));
    assert_eq!(first.send(controller).header("bbot-log-next"), Some("2"));
    // Without the mark of ours it is answered as a stranger's, and does nothing.
    let unmarked = bot.result(&task).without("bbot-agent").send(controller);
    assert_eq!((unmarked.status, unmarked.body.len()), (200, 0));
    let form = format!("session={}", task.session);
    let url = controller.url("/?upload=bindist");
    let sum = format!("sha256sum={sha256}");
    let form = [
        "-H",
        "Bbot-Agent: 1",
        "--form",
        &form,
        "--form",
        &sum,
        "--form",
        "archive=@-",
        &url,
    ];
    refused(&curl(&form, b"artifact"), 403, "in pieces");
    assert_eq!(state(controller, &id), "building");
    let build = controller.build(&id);
    assert_eq!(build["artifacts"].as_array().map(Vec::len), Some(0));
}

#[test]
fn what_was_captured_serves_nobody() {
    let Some(mut world) = World::start(|_| {}) else {
        return;
    };
    world.controller.submit("foo", "1");
    let (asks, own) = world.agent.asks(&world.controller, "1");
    let controller = &world.controller;
    let task = Task::of(&asks.send(controller), own);
    controller.submit("foo", "2");
    refused(&asks.send(controller), 401, "has come before");
    // Another nonce would be another request.
    let second = world.agent.takes(controller, "2");
    assert_ne!(second.session, task.session);

    let renewal = task.renewal(controller, 7);
    assert_eq!(renewal.send(controller).status, 204);
    refused(
        &renewal.send(controller),
        401,
        "has come before: the last was number 7",
    );
    refused(
        &task.renewal(controller, 6).send(controller),
        401,
        "has come before",
    );
    for nonce in ["0", "-1", "x", "9223372036854775808"] {
        let wrong = task.post("lease", "");
        let wrong = wrong.by_session(controller, &task.key, nonce, now(controller));
        refused(&wrong.send(controller), 401, "from 1 on");
    }
    // A segment is taken once, whoever sends it how often.
    let segment = task.post("log/1", "update\nx");
    let segment = segment.by_session(controller, &task.key, "r", now(controller));
    for _ in 0..2 {
        let answer = segment.send(controller);
        assert_eq!(
            (answer.status, answer.header("bbot-log-next")),
            (204, Some("2"))
        );
    }

    // After a restart that has forgotten what came it is the same.
    world = world.restarted();
    let controller = &world.controller;
    let third = controller.submit("foo", "3").remove(0);
    refused(
        &asks.send(controller),
        401,
        "has been answered with a task before",
    );
    refused(&renewal.send(controller), 401, "has come before");
    assert_eq!(state(controller, &third), "queued");
    // And later all of it is too old.
    controller.clock.advance_seconds(301);
    for sent in [&asks, &renewal, &segment] {
        refused(
            &sent.send(controller),
            401,
            "the agent's clock is 5 min behind",
        );
    }
    assert_eq!(task.renewal(controller, 8).send(controller).status, 204);
}

#[test]
fn a_clock_that_is_wrong_is_named() {
    let Some(world) = World::start(|_| {}) else {
        return;
    };
    let (controller, bot) = (&world.controller, &world.agent);
    let id = controller.submit("foo", "1").remove(0);
    let authority = controller.address.to_string();
    let asks = |ahead: i64, nonce: &str| {
        let (sent, own) = bot.asks_at(&authority, nonce, now(controller) + ahead);
        (sent.send(controller), own)
    };
    refused(
        &asks(-430, "1").0,
        401,
        "the agent's clock is 7 min behind this controller's: it says 2026-09-21T14:06:10Z, and here it is \
         2026-09-21T14:13:20Z",
    );
    refused(&asks(86_400, "2").0, 401, "24 h ahead of this controller's");
    assert_eq!(state(controller, &id), "queued");
    let (answer, own) = asks(299, "3");
    let task = Task::of(&answer, own);
    assert_eq!(task.renewal(controller, 1).send(controller).status, 204);
}

#[test]
fn a_key_that_has_signed_once_signs_always() {
    let Some(mut world) = World::start(|_| {}) else {
        return;
    };
    let asks_plain = |world: &World| {
        let text = world.agent.text();
        world.controller.agent("/?build-task", &[], &text)
    };
    // One of the original with a key is let in as ever, and one of ours from before there were signatures.
    for (version, mark) in [("1", &[][..]), ("1.1", &["Bbot-Agent: 1"])] {
        world.controller.submit("foo", version);
        let text = world.agent.text();
        let answer = world.controller.agent("/?build-task", mark, &text);
        assert_eq!(field(&answer.text(), "challenge").len(), 64);
        assert_eq!(answer.header(SESSION_KEY), None);
    }
    world.controller.submit("foo", "2");
    world.agent.takes(&world.controller, "1");
    world.controller.submit("foo", "3");
    refused(
        &asks_plain(&world),
        401,
        "were signed before, and this one is not",
    );
    // It is remembered, here and elsewhere.
    world = world.restarted();
    refused(&asks_plain(&world), 401, "were signed before");
    // A person can say that it is another program now.
    let let_in = |world: &World| {
        let body = json!({ "key": world.agent.pem }).to_string();
        let path = "/api/v1/agents/bot/approve";
        assert_eq!(
            world.controller.send("POST", path, body.as_bytes()).status,
            200
        );
    };
    let_in(&world);
    assert!(!field(&asks_plain(&world).text(), "session").is_empty());
    // Until it signs again.
    world.controller.submit("foo", "4");
    world.agent.takes(&world.controller, "2");
    refused(&asks_plain(&world), 401, "were signed before");
    let refuse = "/api/v1/agents/bot/refuse";
    assert_eq!(world.controller.send("POST", refuse, b"").status, 200);
    assert_eq!(asks_plain(&world).status, 200);
}

#[test]
fn one_that_waits_to_be_let_in_has_signed_already() {
    let Some(world) = World::start(|c| {
        c.agent_keys = None;
        c.approve_agents = true;
    }) else {
        return;
    };
    let (controller, bot) = (&world.controller, &world.agent);
    controller.submit("foo", "1");
    let held = |sent: Sent| {
        let url = controller.url(&sent.path);
        controller.held(move || sent.send_to(&url))
    };
    let own = Ephemeral::new().unwrap();
    let asks = bot
        .unsigned()
        .with("bbot-wait", "30")
        .with("bbot-key", &bot.public)
        .with(SESSION_KEY, &own.public());
    let (signed, unsigned) = (
        bot.sign(
            asks.clone(),
            &controller.address.to_string(),
            "1",
            now(controller),
        ),
        asks.without(SESSION_KEY),
    );
    // It is by the key that it shows, or by none.
    let forged = signed
        .clone()
        .with("bbot-key", &bot.public.replace('A', "B"));
    assert_eq!(
        field(
            &forged.without("bbot-wait").send(controller).text(),
            "session"
        ),
        ""
    );
    let (first, second) = (held(unsigned), held(signed));
    let answer = controller.send("POST", "/api/v1/agents/bot/approve", b"");
    assert_eq!(answer.status, 200, "{}", answer.text());
    refused(&first.join().unwrap(), 401, "is not signed");
    let task = Task::of(&second.join().unwrap(), own);
    assert_eq!(task.renewal(controller, 1).send(controller).status, 204);
}

/// A key that the package of a build names is as good as one of the operator's.
#[test]
fn a_custom_bot_that_has_signed_once_signs_always() {
    let Some(world) = World::start(|_| {}) else {
        return;
    };
    let controller = &world.controller;
    let theirs = world.dir.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    let bot = Agent::new(world.dir.path(), &theirs, "custom");
    let submit = || {
        let text = format!(": 1\nname: foo\nversion: 1\nbuild-bot:\\\n{}\\\n", bot.pem);
        let archive = controller.put(&archive(&[("foo-1/manifest", &text)]));
        controller.submit_source("foo", "1", &json!({ "archive": archive }));
    };
    submit();
    let own = Ephemeral::new().unwrap();
    let asks = bot
        .unsigned()
        .with("bbot-key", &bot.public)
        .with(SESSION_KEY, &own.public());
    let asks = bot.sign(asks, &controller.address.to_string(), "1", now(controller));
    let mut swapped = asks.clone();
    swapped.body.push(b'\n');
    refused(&swapped.send(controller), 401, "the body is not the one");
    let task = Task::of(&asks.send(controller), own);
    assert_eq!(task.renewal(controller, 1).send(controller).status, 204);
    submit();
    refused(&asks.send(controller), 401, "has come before");
    for mark in [&[][..], &["Bbot-Agent: 1"]] {
        let answer = controller.agent("/?build-task", mark, &bot.text());
        refused(&answer, 401, "were signed before");
    }
}

/// A proxy that leaves out the path which the controller's URL has outside.
#[test]
fn behind_a_proxy_the_name_outside_is_what_is_signed() {
    let Some(world) = World::start(|c| {
        c.external_url = Some("https://builds.example.org/bbot".to_owned());
    }) else {
        return;
    };
    let (controller, bot) = (&world.controller, &world.agent);
    controller.submit("foo", "1");
    let own = Ephemeral::new().unwrap();
    let mut outside = bot.unsigned().with(SESSION_KEY, &own.public());
    outside.path = "/bbot/?build-task".to_owned();
    let outside = bot.sign(outside, "builds.example.org", "1", now(controller));
    let url = controller.url("/?build-task");
    // By another name it is another request.
    refused(&outside.send_to(&url), 401, "is not one of this request");
    let through = outside.with("host", "builds.example.org").send_to(&url);
    let task = Task::of(&through, own);
    let session = through.header("bbot-session-url").unwrap();
    assert_eq!(
        session,
        format!("https://builds.example.org/bbot{}", task.path)
    );
    // A URL without a slash at its end, before a proxy that makes one of nothing; and with the port that https has anyway.
    controller.submit("foo", "2");
    let own = Ephemeral::new().unwrap();
    let mut bare = bot.unsigned().with(SESSION_KEY, &own.public());
    bare.path = "/bbot?build-task".to_owned();
    let bare = bot.sign(bare, "builds.example.org", "2", now(controller));
    let through = bare.with("host", "builds.example.org").send_to(&url);
    assert_eq!(Task::of(&through, own).path.len(), task.path.len());
}

#[test]
fn where_any_agent_gets_tasks_nothing_is_signed() {
    let Some(world) = World::start(|c| c.agent_keys = None) else {
        return;
    };
    let (controller, bot) = (&world.controller, &world.agent);
    controller.submit("foo", "1");
    // Even at a time that is wrong.
    let (sent, _) = bot.asks_at("evil.example", "1", 0);
    let answer = sent.send(controller);
    assert_eq!(answer.header(SESSION_KEY), None);
    let task = crate::sessions::Task::of(answer);
    assert_eq!(task.renew().status, 204);
    assert_eq!(task.result(controller, "success"), 200);
}

/// What one controller has answered with a task is worth nothing at another one over the same database.
#[test]
fn another_controller_knows_what_was_answered() {
    if !has("openssl") {
        return;
    }
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let bot = Agent::new(dir.path(), &keys, "bot");
    let url = cluster.database();
    let start = |name: &str| {
        Controller::start(&dir.path().join(name), |c| {
            c.agent_keys = Some(keys.clone());
            c.database = Some(url.clone());
            c.clock = Arc::new(SystemClock::start());
            c.names = vec!["farm:80".to_owned()];
        })
    };
    let (first, second) = (start("a"), start("b"));
    let source = json!({ "repository": { "url": "https://example.org/1/foo" } });
    let ids: Vec<String> = ["1", "2"]
        .map(|version| first.submit_source("foo", version, &source).remove(0))
        .into();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let now = i64::try_from(now.as_secs()).unwrap();
    // By a name that both have.
    let (asks, own) = bot.asks_at("farm", "1", now);
    let asks = asks.with("host", "farm:80");
    let task = Task::of(&asks.send(&first), own);
    refused(
        &asks.send(&second),
        401,
        "has been answered with a task before",
    );
    let mut states: Vec<String> = ids.iter().map(|id| state(&second, id)).collect();
    states.sort_unstable();
    assert_eq!(states, ["building", "queued"]);
    // A renewal that one has taken the other takes no more.
    let renewal = task
        .post("lease", "")
        .by_session(&second, &task.key, "1", now);
    assert_eq!(renewal.send(&second).status, 204);
    let renewal = task
        .post("lease", "")
        .by_session(&first, &task.key, "1", now);
    refused(&renewal.send(&first), 401, "has come before");
    // What the key's requests have to be is known to both.
    let plain = agent(&second.url("/?build-task"), &[], bot.text().as_bytes());
    refused(&plain, 401, "were signed before");
}

/// A result of which the logs are cut is signed as it was sent.
#[test]
fn a_long_result_is_signed_whole() {
    let Some(world) = World::start(|c| c.limits.result = 100_000) else {
        return;
    };
    let (controller, bot) = (&world.controller, &world.agent);
    let id = controller.submit("foo", "1").remove(0);
    let task = bot.takes(controller, "1");
    let short = String::from_utf8(bot.result(&task).body).unwrap();
    assert!(
        short.ends_with(&result("", "foo", "1", "success").split_off(": 1\nsession: \n:\n".len()))
    );
    let long = format!(
        "{}update-status: success\nupdate-log: \\\n{}\n\\\n",
        short,
        "x".repeat(400_000)
    );
    let sent = Sent::new("POST", "/?build-result", long);
    assert_ne!(body_digest(&sent.body), body_digest(short.as_bytes()));
    let mut swapped = sent
        .clone()
        .by_session(controller, &task.key, "1", now(controller));
    let last = swapped.body.len() - 10;
    swapped.body[last] = b'y';
    refused(&swapped.send(controller), 401, "the body is not the one");
    assert_eq!(state(controller, &id), "building");
    let sent = sent.by_session(controller, &task.key, "2", now(controller));
    assert_eq!(sent.send(controller).status, 200);
    assert_eq!(state(controller, &id), "built");
}

#[test]
fn the_store_keeps_keys_and_takes_each_number_once() {
    on_both(async |place| {
        let store = place.open().await;
        let build = submit(&store, "a", 0).await;
        let other = submit(&store, "a", 0).await;
        let key = SessionKey::parse(&"0f".repeat(32)).unwrap();
        let part = PublicKey::parse(&Ephemeral::new().unwrap().public()).unwrap();
        let signed = |build, session| NewLease {
            signing: Some(SessionSigning {
                key: &key,
                agent: &part,
            }),
            ..lease(build, session, 1000)
        };
        let given = store.lease(&signed(build, "s1"), Millis(0)).await.unwrap();
        assert!(given.is_some());
        let again = store.lease(&signed(other, "s2"), Millis(0)).await;
        assert!(matches!(again, Err(StoreError::UsedKey)), "{again:?}");
        let free = store.build(other).await.unwrap().unwrap();
        assert_eq!(free.state, State::Queued);

        let renew = async |check: Result<Option<i64>, &'static str>| {
            let renewed = store.renew_if("s1", Duration::from_secs(1), Millis(5), Millis(5), {
                move |_| check
            });
            renewed.await.unwrap().map(|(renewal, _)| renewal)
        };
        assert_eq!(renew(Ok(Some(7))).await, Ok(Renewal::Renew));
        assert_eq!(renew(Err("no")).await, Err("no"));
        store.close().await;
        let store = place.open().await;
        let facts = store.session("s1").await.unwrap().unwrap();
        assert_eq!((facts.key, facts.renewal), (Some(key.clone()), 7));

        // Who signs, until a person says otherwise.
        let added = AddedKey {
            fingerprint: "f".to_owned(),
            key: "k".to_owned(),
            agent: "a".to_owned(),
            added: Millis(0),
        };
        store.add_key(&added).await.unwrap();
        for forget in ["add", "refuse"] {
            assert!(!store.key_signs("f").await.unwrap());
            for _ in 0..2 {
                store.remember_signing("f", Millis(1)).await.unwrap();
            }
            assert!(store.key_signs("f").await.unwrap());
            assert!(!store.key_signs("g").await.unwrap());
            match forget {
                "add" => store.add_key(&added).await.unwrap(),
                _ => store.shut_out(&["f".to_owned()], "a").await.unwrap(),
            }
        }
        assert!(!store.key_signs("f").await.unwrap());
        store.close().await;
    });
}
