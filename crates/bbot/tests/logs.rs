//! The log of a build and its result on their way from the agent's own end to a real controller, over ends of both.

#![expect(clippy::unwrap_used, unreachable_pub, reason = "tests")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bbot_agent::assignment::{self, Assignment, Terms};
use bbot_agent::controller::{Destination, Http, Link as _, Manner, task_url};
use bbot_agent::delivery::{Bounds, Delivery, Handle};
use bbot_agent::session::Session;
use bbot_agent::spool::Spool;
use bbot_manifest::{BuildResult, Era, ResultRequest, Status, TaskRequest};
use support::Controller;

/// How long anything here may take.
const BOUND: Duration = Duration::from_secs(60);

/// Submits a package whose source is elsewhere, and takes its task.
async fn task(controller: &Controller, data: &Path, link: &Http) -> Assignment {
    let token = std::fs::read_to_string(data.join("token")).unwrap();
    let body = r#"{"name": "foo", "version": "1", "source": {"repository": {"url": "https://r.example/1"}}}"#;
    let sent = reqwest::Client::new()
        .post(format!("{}/api/v1/submissions", controller.url()))
        .bearer_auth(token.trim())
        .body(body)
        .send();
    assert_eq!(sent.await.unwrap().status().as_u16(), 201);
    let request = ": 1\nagent: desk\ntoolchain-name: t\ntoolchain-version: 0.17.0\n\
                   :\nid: 1\nname: m\nsummary: M\n";
    let request = TaskRequest::parse(request.as_bytes(), "request").unwrap();
    let url = task_url(&controller.url()).unwrap();
    let manner = Manner::from(Duration::from_secs(5));
    let body = request.serialize(Era::Y2017).unwrap();
    let answer = link.request_task(&url, body, manner).await.unwrap();
    let terms = Terms {
        has_key: false,
        allowed_result_urls: &[],
    };
    let got = assignment::of_answer(&answer, &url, terms).unwrap();
    got.expect("there is a task")
}

fn result_of(task: &Assignment) -> (Destination, ResultRequest) {
    let to = Destination {
        url: task.result_url.clone().unwrap(),
        kin: task.kin,
        key: task.key.clone(),
        log: None,
    };
    let request = ResultRequest {
        session: task.session.clone(),
        challenge: None,
        agent_checksum: None,
        result: BuildResult::new(&task.task.name, &task.task.version, Status::Success),
    };
    (to, request)
}

async fn get(controller: &Controller, path: &str) -> String {
    let url = format!("{}{path}", controller.url());
    reqwest::get(url).await.unwrap().text().await.unwrap()
}

/// Returns when this is so of what waits.
async fn until(results: &Handle, is_so: impl Fn(&bbot_agent::delivery::Status) -> bool) {
    let waits = async {
        while !is_so(&results.status()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let ended = tokio::time::timeout(BOUND, waits).await;
    assert!(ended.is_ok(), "{:?}", results.status());
}

struct Ends {
    _dir: tempfile::TempDir,
    data: PathBuf,
    state: PathBuf,
    link: Arc<Http>,
    runtime: tokio::runtime::Runtime,
}

impl Ends {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        Self {
            data: dir.path().join("data"),
            state: dir.path().join("state"),
            _dir: dir,
            link: Arc::new(Http::new(BOUND).unwrap()),
            runtime: runtime.unwrap(),
        }
    }

    fn controller(&self, port: u16) -> Controller {
        Controller::start(&self.data, port, |_| {})
    }

    /// The agent's results and logs, as they are on disk.
    fn results(&self) -> Handle {
        let spool = Spool::open(&self.state).unwrap();
        Delivery::start(spool, self.link.clone(), Bounds::of_mib(64))
    }

    /// A controller, its port, and a task of it.
    fn begin(&self) -> (Controller, u16, Assignment) {
        let controller = self.controller(0);
        let port = controller.address.port();
        let task = task(&controller, &self.data, &self.link);
        let task = self.runtime.block_on(task);
        (controller, port, task)
    }

    /// The agent's results and logs, with the log of a task whose first segment is at the controller.
    async fn with_log(&self, task: &Assignment) -> (Handle, Session) {
        let results = self.results();
        let session = results.session(task.session_terms().unwrap());
        session.push_log("update", b"one\n");
        until(&results, |status| status.segments == 0).await;
        (results, session)
    }

    fn logs(&self) -> usize {
        std::fs::read_dir(self.state.join("logs")).unwrap().count()
    }
}

#[test]
fn a_controller_that_was_away_has_the_whole_log_when_it_has_the_result() {
    let ends = Ends::new();
    let (controller, port, task) = ends.begin();
    ends.runtime.block_on(async {
        let (results, session) = ends.with_log(&task).await;
        drop(controller);
        session.push_log("update", b"two\n");
        session.push_log("update", b"three\n");
        let (to, request) = result_of(&task);
        let added = results.add(to, request, Era::Later, None, Some(session));
        added.await.unwrap();
        until(&results, |status| {
            (status.waiting, status.segments) == (1, 2)
        })
        .await;
    });
    // The agent has ended, and both come back.
    assert_eq!(ends.logs(), 1);
    ends.runtime.block_on(async {
        let results = ends.results();
        let status = results.status();
        assert_eq!((status.waiting, status.taken), (1, 0), "{status:?}");
        // It waits for the one that listens.
        let controller = std::thread::scope(|scope| {
            let started = scope.spawn(|| ends.controller(port));
            started.join().unwrap()
        });
        until(&results, |status| status.taken == 1).await;
        let log = get(&controller, "/api/v1/builds/1/log?raw=1").await;
        assert_eq!(log, "==== update ====\none\ntwo\nthree\n");
        assert!(
            get(&controller, "/api/v1/builds/1")
                .await
                .contains("\"built\"")
        );
        assert_eq!((ends.logs(), results.status().segments), (0, 0));
    });
}

#[test]
fn a_result_that_came_before_the_end_of_its_log_gets_it_from_the_next_agent() {
    let ends = Ends::new();
    let (controller, port, task) = ends.begin();
    ends.runtime.block_on(async {
        let (results, session) = ends.with_log(&task).await;
        // As where the controller takes results and no log: nothing of it is sent until the agent ends.
        drop(controller);
        session.push_log("update", b"two\n");
        drop(session);
        until(&results, |status| status.segments == 1).await;
    });
    let controller = ends.controller(port);
    ends.runtime.block_on(async {
        let (to, request) = result_of(&task);
        let to = Destination { log: Some(2), ..to };
        let body = request.serialize(Era::Later).unwrap().into_bytes();
        // Not over a connection from before.
        let link = Http::new(BOUND).unwrap();
        let posted = link.post_result(&to, body).await;
        assert_eq!(posted, bbot_agent::controller::Posted::Taken);
        let path = "/api/v1/builds/1/log?raw=1";
        let log = get(&controller, path).await;
        assert!(
            log.contains("the last piece of the log has not come yet"),
            "{log}"
        );
        assert_eq!(ends.logs(), 1);
        let results = ends.results();
        until(&results, |status| status.segments == 0).await;
        assert_eq!(get(&controller, path).await, "==== update ====\none\ntwo\n");
        assert_eq!(ends.logs(), 0);
    });
}
