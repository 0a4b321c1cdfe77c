//! Seeing and steering an agent: the status socket, the metrics, the host that runs
//! out, each for real.

#![expect(
    clippy::unwrap_used,
    reason = "what is not as it should be fails the test"
)]

mod clock;
mod exposition;
mod host;
mod metrics;
mod socket;
mod units;

use std::path::PathBuf;
use std::sync::Arc;

use bbot_agent::status::{Bound, Command, Place, Server, Status};
use tempfile::TempDir;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A server whose driver is the test.
struct Agent {
    _folder: TempDir,
    place: Place,
    server: Server,
    publish: watch::Sender<Arc<Status>>,
    commands: mpsc::Receiver<Command>,
    serving: JoinHandle<()>,
}

impl Agent {
    fn start(status: Status) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Place(folder.path().join("agent.sock"));
        let (publish, status) = watch::channel(Arc::new(status));
        let (sender, commands) = mpsc::channel(4);
        let server = Server {
            status,
            commands: sender,
            start: Instant::now(),
        };
        let serving = tokio::spawn(server.clone().serve(Bound::new(&place).unwrap()));
        Self {
            _folder: folder,
            place,
            server,
            publish,
            commands,
            serving,
        }
    }

    fn path(&self) -> PathBuf {
        self.place.0.clone()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
