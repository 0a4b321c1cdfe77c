//! Signed requests of the agent's own end at the controller's own, over a real connection.

#![expect(clippy::unwrap_used, unreachable_pub, reason = "tests")]

mod support;

use std::{path::Path, sync::Arc, time::Duration};

use bbot_agent::{
    assignment::{self, Assignment, Terms},
    auth::{Signer, keygen_file, public_key},
    controller::{
        Acknowledged, Destination, Http, Link, Manner, Posted, Renewed, RequestKey, Url, task_url,
    },
    delivery::{Bounds, Delivery},
    spool::Spool,
};
use bbot_manifest::{BuildResult, Era, ResultRequest, Status, TaskRequest};
use support::Controller;

/// How long anything here may take.
const BOUND: Duration = Duration::from_secs(60);

/// Submits a package whose source is elsewhere.
async fn submit(controller: &Controller, data: &Path, name: &str) {
    let token = std::fs::read_to_string(data.join("token")).unwrap();
    let body = format!(
        r#"{{"name": "{name}", "version": "1", "source": {{"repository": {{"url": "https://r.example/1"}}}}}}"#
    );
    let sent = reqwest::Client::new()
        .post(format!("{}/api/v1/submissions", controller.url()))
        .bearer_auth(token.trim())
        .body(body)
        .send();
    assert_eq!(sent.await.unwrap().status().as_u16(), 201);
}

/// State and status of a build.
async fn build(controller: &Controller, id: u32) -> (String, String) {
    let url = format!("{}/api/v1/builds/{id}", controller.url());
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let build: serde_json::Value = serde_json::from_str(&text).unwrap();
    let text = |name: &str| build[name].as_str().unwrap_or_default().to_owned();
    (text("state"), text("status"))
}

/// The agent's end.
struct Agent {
    link: Arc<Http>,
    signer: Arc<Signer>,
    url: Url,
}

impl Agent {
    async fn takes(&self) -> Assignment {
        let request = TaskRequest::parse(
            format!(
                ": 1\nagent: desk\ntoolchain-name: t\ntoolchain-version: 0.17.0\nfingerprint: {}\n\
                 :\nid: 1\nname: m\nsummary: M\n",
                self.signer.fingerprint()
            )
            .as_bytes(),
            "request",
        );
        let manner = Manner {
            hold: Duration::from_secs(5),
            is_drained: false,
            key: Some(Arc::clone(&self.signer) as Arc<dyn RequestKey>),
        };
        let body = request.unwrap().serialize(Era::Y2017).unwrap();
        let answer = self.link.request_task(&self.url, body, manner).await;
        let terms = Terms {
            has_key: true,
            allowed_result_urls: &[],
        };
        let got = assignment::of_answer(&answer.unwrap(), &self.url, terms);
        got.unwrap().expect("there is a task")
    }

    async fn result(&self, of: &Assignment, status: Status) -> (Destination, ResultRequest) {
        let to = Destination {
            url: of.result_url.clone().unwrap(),
            kin: of.kin,
            key: of.key.clone(),
            log: Some(2),
        };
        let answer = self.signer.sign(of.challenge.as_ref().unwrap()).await;
        let request = ResultRequest {
            session: of.session.clone(),
            challenge: Some(answer.unwrap()),
            agent_checksum: None,
            result: BuildResult::new(&of.task.name, &of.task.version, status),
        };
        (to, request)
    }
}

#[test]
fn a_task_by_the_agents_own_requests_and_over_restarts_of_both_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (data, keys) = (dir.path().join("data"), dir.path().join("keys"));
    std::fs::create_dir(&keys).unwrap();
    let key = dir.path().join("agent.pem");
    keygen_file(&key, 2048).unwrap();
    std::fs::write(keys.join("agent.pem"), public_key(&key).unwrap()).unwrap();
    let start = |port| Controller::start(&data, port, |c| c.agent_keys = Some(keys.clone()));
    let controller = start(0);
    let port = controller.address.port();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let agent = Agent {
        link: Arc::new(Http::new(BOUND).unwrap()),
        signer: Arc::new(runtime.block_on(Signer::open(&key, None, &[])).unwrap()),
        url: task_url(&controller.url()).unwrap(),
    };
    let state = dir.path().join("state");
    runtime.block_on(async {
        submit(&controller, &data, "one").await;
        let task = agent.takes().await;
        let channel = task.session_terms().unwrap().channel;
        assert!(channel.key.is_some());
        for number in 1..=2 {
            let hold = Duration::from_millis(100) * (number - 1);
            let renewed = agent.link.renew_lease(&channel, number.into(), hold, BOUND);
            assert!(matches!(renewed.await, Renewed::Until(Some(_))));
        }
        let repeated = agent.link.renew_lease(&channel, 2, Duration::ZERO, BOUND);
        let repeated = repeated.await;
        assert!(
            matches!(&repeated, Renewed::Again(why) if why.contains("has come before")),
            "{repeated:?}"
        );
        let segment = b"update\nline\n".to_vec();
        let sent = agent.link.post_segment(&channel, 1, false, segment);
        assert_eq!(sent.await, Acknowledged::Taken);
        let (to, request) = agent.result(&task, Status::Success).await;
        let body = request.serialize(Era::Later).unwrap().into_bytes();
        // Twice: the answer may be lost. Without what it is signed with it is refused for good.
        for _ in 0..2 {
            let posted = agent.link.post_result(&to, body.clone()).await;
            assert_eq!(posted, Posted::Taken);
        }
        let unsigned = Destination { key: None, ..to };
        let refused = agent.link.post_result(&unsigned, body).await;
        assert!(
            matches!(&refused, Posted::Refused(why) if why.starts_with("403")),
            "{refused:?}"
        );
        // The end of its log comes after it.
        for (number, expected) in [(2, Some(Acknowledged::Taken)), (3, None)] {
            let segment = b"update\nend\n".to_vec();
            let sent = agent.link.post_segment(&channel, number, false, segment);
            let sent = sent.await;
            let is_over = matches!(sent, Acknowledged::Over(_));
            assert_eq!(expected.clone().unwrap_or(sent.clone()), sent);
            assert_eq!(is_over, expected.is_none());
        }
        let built = ("built".to_owned(), "success".to_owned());
        assert_eq!(build(&controller, 1).await, built);

        // The agent is killed over this one.
        submit(&controller, &data, "two").await;
        let task = agent.takes().await;
        let (to, request) = agent.result(&task, Status::Interrupt).await;
        let spool = Spool::open(&state).unwrap();
        let results = Delivery::start(spool, agent.link.clone(), Bounds::of_mib(1));
        results.hold(to, &request, Era::Later).await.unwrap();
        assert_eq!(build(&controller, 2).await.0, "building");
    });
    // Both come back.
    drop(controller);
    let controller = start(port);
    runtime.block_on(async {
        let spool = Spool::open(&state).unwrap();
        let results = Delivery::start(spool, agent.link.clone(), Bounds::of_mib(1));
        let given_back = async {
            let mut changes = results.changes();
            while results.status().taken == 0 {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(BOUND, given_back).await.unwrap();
        assert_eq!(build(&controller, 2).await.0, "queued");
        assert_eq!(agent.takes().await.task.name, "two");
    });
}
