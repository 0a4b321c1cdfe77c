//! A controller within the process of a test.

use std::net::SocketAddr;
use std::path::Path;
use std::thread::JoinHandle;

use bbot_controller::Config;
use tokio_util::sync::CancellationToken;

/// A controller; it ends when this is dropped.
pub struct Controller {
    /// Where it listens.
    pub address: SocketAddr,
    shutdown: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Controller {
    /// One with its data there, on this port of the loopback (0: any), and with what `set` changes.
    pub fn start(data: &Path, port: u16, set: impl FnOnce(&mut Config)) -> Self {
        let (sender, bound) = tokio::sync::oneshot::channel();
        let mut config = Config::new(data.to_owned());
        config.bind = SocketAddr::from(([127, 0, 0, 1], port));
        config.bound = Some(sender);
        set(&mut config);
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(bbot_controller::run(config, stop))
                .unwrap();
        });
        let address = bound.blocking_recv().unwrap();
        Self {
            address,
            shutdown,
            thread: Some(thread),
        }
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
