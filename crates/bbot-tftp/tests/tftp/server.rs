//! Servers that run while a test does: ours in a thread, tftpd-hpa as a process.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bbot_tftp::client::{self, Options};
use bbot_tftp::udp::{self, Stop};
use bbot_tftp::{Event, Limits, Retransmit, Root};

/// Our server on a port of its own.
pub(crate) struct Ours {
    pub(crate) address: SocketAddr,
    pub(crate) events: Receiver<Event>,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Ours {
    pub(crate) fn start(root: Root, limits: Limits) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let stop = Stop::new();
        let (sender, events) = mpsc::channel();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let tell = |event| drop(sender.send(event));
                udp::serve(socket, &root, &limits, &stop, &tell).unwrap();
            }
        });
        Self {
            address,
            events,
            stop,
            thread: Some(thread),
        }
    }

    /// Reads and writes whatever is in a folder.
    pub(crate) fn of_folder(folder: &Path, limits: Limits) -> Self {
        Self::start(
            Root::new().get_folder(folder).put_any(folder, 1 << 30),
            limits,
        )
    }

    /// Waits for the end of a transfer.
    #[track_caller]
    pub(crate) fn outcome(&self) -> Event {
        loop {
            let event = self
                .events
                .recv_timeout(Duration::from_secs(30))
                .expect("a transfer ends");
            if !matches!(event, Event::Requested { .. }) {
                return event;
            }
        }
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            if !std::thread::panicking() {
                ended.unwrap();
            }
        }
    }
}

/// Limits that do not wait long for what was lost on purpose.
pub(crate) fn impatient() -> Limits {
    Limits {
        retransmit: quick(),
        ..Limits::default()
    }
}

pub(crate) fn quick() -> Retransmit {
    Retransmit {
        shortest: Duration::from_millis(10),
        first: Duration::from_millis(40),
        longest: Duration::from_secs(8),
        retries: 10,
    }
}

/// tftpd-hpa on a port of its own, with a folder as its root.
pub(crate) struct TftpdHpa {
    pub(crate) address: SocketAddr,
    child: Child,
}

impl TftpdHpa {
    pub(crate) fn start(folder: &Path) -> Self {
        std::fs::write(folder.join("ready"), "ready").unwrap();
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let child = Command::new("in.tftpd")
            .args(["-L", "--user", "root", "--secure", "--create", "--address"])
            .arg(address.to_string())
            .arg(folder)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let server = Self { address, child };
        let options = Options {
            retransmit: Retransmit {
                shortest: Duration::from_millis(20),
                first: Duration::from_millis(20),
                longest: Duration::from_millis(20),
                retries: 1000,
            },
            deadline: Some(Instant::now() + Duration::from_secs(10)),
            ..Options::default()
        };
        client::get(address, "ready", &mut Vec::new(), &options).expect("tftpd-hpa comes up");
        server
    }
}

impl Drop for TftpdHpa {
    fn drop(&mut self) {
        // It serves in children, which wait for a while after their transfers.
        for child in children(self.child.id()) {
            let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn children(parent: u32) -> Vec<rustix::process::Pid> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let pids = names.filter_map(|name| name.parse::<i32>().ok());
    pids.filter(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // After the name in parentheses: the state, then the parent.
        let parent_of = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1));
        parent_of == Some(parent.to_string().as_str())
    })
    .filter_map(rustix::process::Pid::from_raw)
    .collect()
}
