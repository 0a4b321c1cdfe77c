//! Agents that people drain, resume and let in.

use std::path::Path;
use std::time::{Duration, Instant};

use bbot_controller::clock::Millis;
use bbot_controller::store::NewLease;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::sessions::{OURS, Task};
use crate::signing::{Agent, now};
use crate::store::{lease, on_both, submit};
use crate::support::{Answer, Controller, agent, field, has, request};

fn say(controller: &Controller, name: &str, what: &str, body: &Value) -> Answer {
    let path = format!("/api/v1/agents/{name}/{what}");
    controller.send("POST", &path, body.to_string().as_bytes())
}

fn listed(controller: &Controller, name: &str) -> Value {
    let all = controller.get("/api/v1/agents").json();
    let found = all["agents"].as_array().unwrap().iter();
    found
        .clone()
        .find(|a| a["name"] == name)
        .cloned()
        .unwrap_or_default()
}

fn pending(controller: &Controller) -> Vec<Value> {
    controller.get("/api/v1/agents").json()["pending"]
        .as_array()
        .unwrap()
        .clone()
}

fn gets(controller: &Controller, headers: &[&str], text: &str) -> bool {
    let answer = controller.agent("/?build-task", &[OURS, headers].concat(), text);
    assert_eq!(answer.status, 200, "{}", answer.text());
    !field(&answer.text(), "session").is_empty()
}

/// A request that is held; its session, if it got one, and when.
fn held(controller: &Controller, seconds: u32) -> std::thread::JoinHandle<(String, Instant)> {
    let url = controller.url("/?build-task");
    controller.held(move || {
        let wait = format!("Bbot-Wait: {seconds}");
        let answer = agent(&url, &[OURS[0], &wait], request("0.17.0").as_bytes());
        (field(&answer.text(), "session"), Instant::now())
    })
}

#[test]
fn a_drained_agent_gets_nothing_more_until_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.submit("foo", "1");
    let has_it = Task::take(&controller);
    let waits = held(&controller, 4);
    let drained = say(&controller, "bot", "drain", &json!({"reason": "new disks"}));
    assert_eq!(drained.status, 200, "{}", drained.text());
    // Neither the request that waits gets anything, nor a new one; what it has it may finish.
    let id = controller.submit("foo", "2").remove(0);
    assert_eq!(waits.join().unwrap().0, "");
    assert!(!gets(&controller, &[], &request("0.17.0")));
    assert!(!gets(&controller, &[], &request("0.7.0")));
    assert_eq!(has_it.renew().status, 204);
    assert_eq!(has_it.result(&controller, "success"), 200);
    let agent = listed(&controller, "bot");
    assert_eq!(agent["drained"]["by"], "controller");
    assert_eq!(agent["drained"]["reason"], "new disks");
    let page = controller.get("/agents").text();
    assert!(
        page.contains("drained") && page.contains("new disks"),
        "{page}"
    );
    // Another agent does not mind.
    let other = request("0.17.0").replace("agent: bot", "agent: other");
    assert!(gets(&controller, &[], &other));

    // It stays so over a restart, and once more is no error.
    drop(controller);
    let controller = Controller::start(dir.path(), |_| {});
    assert_eq!(say(&controller, "bot", "drain", &json!({})).status, 200);
    assert_eq!(controller.build(&id)["state"], "building");
    let next = controller.submit("foo", "3").remove(0);
    assert!(!gets(&controller, &[], &request("0.17.0")));
    assert_eq!(listed(&controller, "bot")["drained"]["by"], "controller");

    // One that waits has the task the moment it is resumed.
    let waits = held(&controller, 30);
    let begun = Instant::now();
    assert_eq!(say(&controller, "bot", "resume", &json!({})).status, 200);
    let (session, at) = waits.join().unwrap();
    assert!(!session.is_empty() && at.duration_since(begun) < Duration::from_secs(8));
    assert_eq!(controller.build(&next)["state"], "building");
    assert_eq!(listed(&controller, "bot")["drained"], Value::Null);
    assert_eq!(say(&controller, "bot", "resume", &json!({})).status, 200);
    // One that nobody has heard of yet.
    assert_eq!(say(&controller, "ghost", "drain", &json!({})).status, 200);
    assert_eq!(listed(&controller, "ghost")["state"], "silent");
}

#[test]
fn an_agent_says_that_it_is_drained_and_what_time_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |_| {});
    controller.submit("foo", "1");
    // The controller's clock stands at 2026-09-21 14:13:20.
    let late = ["Bbot-Drained: 1", "Date: Mon, 21 Sep 2026 14:14:50 GMT"];
    assert!(!gets(&controller, &late, &request("0.17.0")));
    let agent = listed(&controller, "bot");
    assert_eq!(
        agent["drained"],
        json!({"by": "agent", "since": null, "reason": null})
    );
    assert_eq!(agent["clock_ahead"], 90);
    let page = controller.get("/agents").text();
    assert!(page.contains("90 s ahead of ours"), "{page}");
    for (date, ahead) in [
        ("Date: Mon, 21 Sep 2026 14:13:12 GMT", Value::Null),
        ("Date: Mon, 21 Sep 2026 13:13:20 GMT", json!(-3600)),
        ("Date: yesterday", Value::Null),
        (
            "Date: Fri, 31 Dec 9999 23:59:59 GMT",
            json!(251_612_301_999_i64),
        ),
    ] {
        gets(&controller, &["Bbot-Drained: 1", date], &request("0.17.0"));
        let found = listed(&controller, "bot")["clock_ahead"].clone();
        assert_eq!(found.is_null(), ahead.is_null(), "{date}: {found}");
        if ahead == json!(-3600) {
            assert_eq!(found, ahead);
        }
    }
    // It takes tasks again as soon as it says so.
    assert!(gets(&controller, &[], &request("0.17.0")));
    assert_eq!(listed(&controller, "bot")["drained"], Value::Null);
}

fn start(dir: &Path, approve: bool) -> Controller {
    Controller::start(&dir.join("data"), |c| c.approve_agents = approve)
}

#[test]
fn an_unknown_agent_waits_until_it_is_let_in() {
    if !has("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let bot = Agent::new(dir.path(), &keys, "bot");
    let fingerprint = bot.fingerprint.clone();
    let controller = start(dir.path(), true);
    controller.submit("foo", "1");
    let with_key = bot.text();
    let nameless = request("0.17.0").replace("agent: bot", "agent: plain");
    for text in [&with_key, &nameless] {
        assert!(!gets(&controller, &[], text));
    }
    let waits = pending(&controller);
    assert_eq!(waits.len(), 2);
    assert_eq!(
        (&waits[0]["name"], &waits[0]["fingerprint"]),
        (&json!("bot"), &json!(fingerprint))
    );
    assert_eq!(waits[0]["address"], "127.0.0.1");
    assert_eq!(waits[0]["machines"], json!(["linux_debian_12-gcc_13.1"]));
    assert_eq!(
        (&waits[1]["name"], &waits[1]["fingerprint"]),
        (&json!("plain"), &Value::Null)
    );
    let page = controller.get("/agents").text();
    assert!(page.contains(&fingerprint[..16]), "{page}");

    // By its key, which is not known from its fingerprint alone.
    let pem = bot.pem.clone();
    let without = say(&controller, "bot", "approve", &json!({}));
    assert_eq!(without.status, 409, "{}", without.text());
    let wrong = json!({"key": pem, "fingerprint": "0".repeat(64)});
    assert_eq!(say(&controller, "bot", "approve", &wrong).status, 400);
    assert!(!gets(&controller, &[], &with_key));
    let done = say(&controller, "bot", "approve", &json!({"key": pem}));
    assert_eq!(done.status, 200, "{}", done.text());
    // It has to prove that the key is its own.
    let task = bot.takes(&controller, "1");
    assert_eq!(task.challenge.len(), 64);
    let unproved = crate::support::result(&task.session, "foo", "1", "success");
    let unproved = controller.agent("/?build-result", OURS, &unproved);
    assert_eq!(unproved.status, 403);
    let good = bot.result(&task);
    let good = good.by_session(&controller, &task.key, "1", now(&controller));
    assert_eq!(good.send(&controller).status, 200);

    // By its name, for one without a key; over a restart, and without a challenge.
    assert_eq!(say(&controller, "plain", "approve", &json!({})).status, 200);
    assert!(pending(&controller).is_empty());
    drop(controller);
    let controller = start(dir.path(), true);
    controller.submit("foo", "2");
    let task = Task::of(controller.agent("/?build-task", OURS, &nameless));
    assert_eq!(field(&task.answer.text(), "challenge"), "");
    let text = crate::support::result(&task.session, "foo", "2", "success");
    assert_eq!(controller.agent("/?build-result", OURS, &text).status, 200);
    // A name that was let in without a key does not stand for a key.
    controller.submit("foo", "3");
    let claims = with_key
        .replace("agent: bot", "agent: plain")
        .replace(&fingerprint, &"ab".repeat(32));
    assert!(!gets(&controller, &[], &claims));
    bot.takes(&controller, "2");

    // And out again.
    controller.submit("foo", "4");
    assert_eq!(say(&controller, "bot", "refuse", &json!({})).status, 200);
    assert_eq!(say(&controller, "plain", "refuse", &json!({})).status, 200);
    assert_eq!(say(&controller, "plain", "refuse", &json!({})).status, 404);
    for text in [&with_key, &nameless] {
        assert!(!gets(&controller, &[], text));
    }
    assert_eq!(
        say(&controller, "nobody", "approve", &json!({})).status,
        404
    );
}

/// An agent of ours shows its key: a person needs only say yes.
#[test]
fn an_agent_that_shows_its_key_is_let_in_by_a_word() {
    if !has("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let bot = Agent::new(dir.path(), &keys, "bot");
    let controller = start(dir.path(), true);
    controller.submit("foo", "1");
    let (text, base64) = (bot.text(), &bot.public);
    // One that is not of this fingerprint is no key of his.
    let forged = format!("Bbot-Key: {}", base64.replacen('A', "B", 1));
    assert!(!gets(&controller, &[&forged], &text));
    assert_eq!(pending(&controller)[0]["key_known"], false);
    let shown = format!("Bbot-Key: {base64}");
    assert!(!gets(&controller, &[&shown], &text));
    assert_eq!(pending(&controller)[0]["key_known"], true);
    assert_eq!(say(&controller, "bot", "approve", &json!({})).status, 200);
    bot.takes(&controller, "1");
    // Two who claim one name are told apart by their keys.
    for n in ["1", "2"] {
        let text = text.replace(&bot.fingerprint, &n.repeat(64));
        assert!(!gets(&controller, &[], &text));
    }
    let answer = say(&controller, "bot", "approve", &json!({}));
    assert_eq!(answer.status, 409);
    assert!(
        answer.text().contains("2 agents claim the name bot"),
        "{}",
        answer.text()
    );
}

#[test]
fn keys_are_added_while_it_runs_and_an_open_door_has_none() {
    if !has("openssl") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (keys, added) = (dir.path().join("keys"), dir.path().join("added"));
    std::fs::create_dir(&keys).unwrap();
    std::fs::create_dir(&added).unwrap();
    let late = Agent::new(dir.path(), &added, "late");
    let controller = Controller::start(&dir.path().join("data"), |c| {
        c.agent_keys = Some(keys.clone());
    });
    controller.submit("foo", "1");
    assert_eq!(
        controller.agent("/?build-task", OURS, &late.text()).status,
        401
    );
    let pem = &late.pem;
    assert_eq!(
        say(&controller, "bot", "approve", &json!({"key": pem})).status,
        200
    );
    late.takes(&controller, "1");
    drop(controller);

    let controller = Controller::start(&dir.path().join("open"), |_| {});
    let answer = say(&controller, "bot", "approve", &json!({"key": pem}));
    assert_eq!(answer.status, 409);
    assert!(
        answer.text().contains("any agent gets tasks here"),
        "{}",
        answer.text()
    );
}

#[test]
fn what_is_said_at_one_controller_counts_at_the_other() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let start = |dir: &Path| {
        Controller::start(dir, |c| {
            c.database = Some(url.clone());
            c.clock = std::sync::Arc::new(bbot_controller::clock::SystemClock::start());
        })
    };
    let (first, second) = (start(a.path()), start(b.path()));
    assert_eq!(say(&first, "bot", "drain", &json!({})).status, 200);
    let begun = Instant::now();
    while listed(&second, "bot")["drained"].is_null() {
        assert!(begun.elapsed() < Duration::from_secs(8));
        std::thread::sleep(Duration::from_millis(50));
    }
    let source = json!({ "repository": { "url": "https://example.org/1/foo" } });
    first.submit_source("foo", "1", &source);
    assert!(!gets(&second, &[], &request("0.17.0")));
    let waits = held(&second, 30);
    assert_eq!(say(&first, "bot", "resume", &json!({})).status, 200);
    assert!(!waits.join().unwrap().0.is_empty());
}

/// However it comes between: what is handed out to an agent that is being drained is handed out before that is answered.
#[test]
fn nothing_is_handed_out_once_it_is_said_that_an_agent_is_drained() {
    on_both(async |place| {
        let store = place.open().await;
        for round in 0..40 {
            let agent = format!("bot-{round}");
            let mut builds = Vec::new();
            for _ in 0..6 {
                builds.push(submit(&store, "p", 0).await);
            }
            let mut tasks = tokio::task::JoinSet::new();
            for (n, build) in builds.into_iter().enumerate() {
                let (store, agent) = (store.clone(), agent.clone());
                tasks.spawn(async move {
                    let session = format!("{agent}-{n}");
                    let new = NewLease {
                        agent: &agent,
                        ..lease(build, &session, i64::MAX)
                    };
                    for _ in 0..n * 3 {
                        tokio::task::yield_now().await;
                    }
                    store.lease(&new, Millis(1)).await.unwrap().is_some()
                });
            }
            tokio::task::yield_now().await;
            store.drain_agent(&agent, None, Millis(2)).await.unwrap();
            let building = async || {
                let all = store.building(1000).await.unwrap();
                all.iter()
                    .filter(|b| b.agent.as_ref() == Some(&agent))
                    .count()
            };
            let told = building().await;
            let given = tasks.join_all().await.into_iter().filter(|given| *given);
            assert_eq!(given.count(), told, "{agent}");
            assert_eq!(building().await, told, "{agent}");
            assert!(store.is_drained(&agent).await.unwrap());
        }
        store.close().await;
    });
}

/// Page by page, however many agents there are; whoever says something about one is answered with that one.
#[test]
fn the_list_of_agents_comes_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(dir.path(), |c| c.approve_agents = true);
    // Of all kinds: one that asked and waits, and some that were only spoken of.
    assert!(!gets(&controller, &[], &request("0.17.0")));
    for n in 0..210 {
        let answer = say(&controller, &format!("a-{n:03}"), "drain", &json!({}));
        let agent = answer.json();
        assert_eq!(agent["name"], format!("a-{n:03}"));
        assert_eq!(
            (&agent["state"], &agent["drained"]["by"]),
            (&"silent".into(), &"controller".into())
        );
    }
    let mut names = Vec::new();
    let mut query = String::new();
    let mut pages = 0;
    loop {
        let page = controller
            .get(&format!("/api/v1/agents?limit=50{query}"))
            .json();
        let agents = page["agents"].as_array().unwrap();
        assert!(agents.len() <= 50);
        let waiting = page["pending"].as_array().unwrap().len();
        assert_eq!(waiting, usize::from(pages == 0));
        names.extend(
            agents
                .iter()
                .map(|a| a["name"].as_str().unwrap().to_owned()),
        );
        pages += 1;
        match page["next"].as_str() {
            Some(next) => query = format!("&after={next}"),
            None => break,
        }
    }
    let mut expected: Vec<String> = (0..210).map(|n| format!("a-{n:03}")).collect();
    expected.push("bot".to_owned());
    assert_eq!((names, pages), (expected, 5));
    assert_eq!(controller.get("/api/v1/agents?limit=0").status, 400);
    assert_eq!(controller.get("/api/v1/agents?before=x").status, 400);
    // The page for people.
    let page = controller.get("/agents").text();
    assert_eq!(page.matches("<strong>a-").count(), 200);
    let more = "/agents?after=a-199";
    assert!(page.contains(more), "{page}");
    let page = controller.get(more).text();
    assert!(page.contains("a-209") && !page.contains("a-199<"), "{page}");
}
