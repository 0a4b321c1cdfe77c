//! A database that goes silent, as when its host fails or the network is cut: its connections stay open, and nothing comes from
//! them any more.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bbot_controller::clock::SystemClock;

use crate::cluster::Cluster;
use crate::support::{Controller, agent, curl, field, request, result};

/// Longer than the controller waits for an answer, and shorter than the system takes to give a connection up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between the controller and its database: what was connected before the moment of silence gets nothing through any more.
struct Relay {
    directory: tempfile::TempDir,
    silence: Arc<std::sync::Mutex<Arc<AtomicBool>>>,
}

impl Relay {
    fn start(database: PathBuf) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join(".s.PGSQL.5432")).unwrap();
        let silence = Arc::new(std::sync::Mutex::new(Arc::new(AtomicBool::new(false))));
        let current = Arc::clone(&silence);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), UnixStream::connect(&database).unwrap());
                let is_silent = Arc::clone(&current.lock().unwrap());
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let is_silent = Arc::clone(&is_silent);
                    std::thread::spawn(move || pass(from, to, &is_silent));
                }
            }
        });
        Self { directory, silence }
    }

    /// All connections that are there go silent; later ones are good.
    fn fall_silent(&self) {
        let mut current = self.silence.lock().unwrap();
        current.store(true, Ordering::SeqCst);
        *current = Arc::new(AtomicBool::new(false));
    }
}

fn pass(mut from: UnixStream, mut to: UnixStream, is_silent: &AtomicBool) {
    let mut buffer = [0; 65536];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if is_silent.load(Ordering::SeqCst) {
            // Open until the test ends.
            std::thread::park_timeout(2 * PATIENCE);
            return;
        }
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

fn start(dir: &Path, url: &str) -> Controller {
    Controller::start(dir, |config| {
        config.database = Some(url.to_owned());
        config.clock = Arc::new(SystemClock::start());
    })
}

#[test]
fn a_database_that_goes_silent_is_told_and_heals_by_itself() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    let (database, own) = url.split_once("?host=").unwrap();
    let relay = Relay::start(Path::new(own).join(".s.PGSQL.5432"));
    let relayed = format!("{database}?host={}", relay.directory.path().display());
    let dir = tempfile::tempdir().unwrap();
    let controller = start(dir.path(), &relayed);
    let source = serde_json::json!({ "repository": { "url": "https://pkg.x.org/1/a" } });
    let build = controller.submit_source("foo", "1", &source).remove(0);
    controller.submit_source("bar", "1", &source);
    let ours = ["Bbot-Agent: 1"];
    let asked = request("0.17.0");
    let task = agent(&controller.url("/?build-task"), &ours, asked.as_bytes());
    let session = field(&task.text(), "session");
    assert!(!session.is_empty());
    // All connections of the pool are in use when it happens.
    let list = controller.url("/api/v1/builds");
    let ask_all = || {
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..40)
                .map(|_| scope.spawn(|| curl(&["--max-time", "90", &list], b"")))
                .collect();
            all.into_iter()
                .map(|one| one.join().unwrap())
                .collect::<Vec<_>>()
        })
    };
    assert!(ask_all().iter().all(|answer| answer.status == 200));
    relay.fall_silent();
    let begun = Instant::now();
    // The connection that hands out leads nowhere, too, and another takes its place.
    let other = request("0.17.0").replace("agent: ", "agent: other-");
    let handed = std::iter::repeat_with(|| {
        let task = agent(&controller.url("/?build-task"), &ours, other.as_bytes());
        (task.status == 200).then(|| field(&task.text(), "session"))
    })
    .take_while(|_| begun.elapsed() < PATIENCE)
    .flatten()
    .next();
    assert!(
        handed.is_some_and(|session| !session.is_empty()),
        "after {:?}",
        begun.elapsed()
    );
    for answer in ask_all() {
        match answer.status {
            200 => {}
            503 => assert_eq!(answer.header("retry-after"), Some("10")),
            other => panic!("{other}: {}", answer.text()),
        }
    }
    // Nothing that was held by those is kept from others, and no agent is: what it brings is taken.
    let brought = result(&session, "foo", "1", "success");
    let accepted = std::iter::repeat_with(|| {
        agent(&controller.url("/?build-result"), &ours, brought.as_bytes()).status
    })
    .inspect(|_| std::thread::sleep(Duration::from_millis(200)))
    .take_while(|_| begun.elapsed() < PATIENCE)
    .any(|status| status == 200);
    assert!(accepted, "after {:?}", begun.elapsed());
    assert_eq!(controller.build(&build)["status"], "success");
    assert!(ask_all().iter().all(|answer| answer.status == 200));
}
