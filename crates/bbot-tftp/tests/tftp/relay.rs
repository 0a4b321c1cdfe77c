//! A relay that loses, doubles and reorders datagrams between real programs, by a seed.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::support::Random;

/// How bad the relay is, in percent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Badness {
    pub(crate) seed: u64,
    pub(crate) loss: u64,
    pub(crate) duplication: u64,
    pub(crate) reordering: u64,
}

/// A running relay.
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    lost: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    pub(crate) fn start(server: SocketAddr, badness: Badness) -> Self {
        let listener = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, lost) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let work = Work {
            listener,
            server,
            badness,
            random: Random::new(badness.seed),
            flows: Vec::new(),
            held: None,
            lost: Arc::clone(&lost),
        };
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || work.run(&stop)
        });
        Self {
            address,
            lost,
            stop,
            thread: Some(thread),
        }
    }

    /// How many datagrams were lost on purpose.
    pub(crate) fn lost(&self) -> u64 {
        self.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The sockets of one client: `up` faces the server, `down` is the port that the client takes for
/// the server's port of the transfer.
struct Flow {
    client: SocketAddr,
    up: UdpSocket,
    down: UdpSocket,
    server: SocketAddr,
}

#[derive(Clone, Copy)]
enum Way {
    /// To the server's port of requests, whatever came before; what belongs to a transfer goes on to that one's.
    Request(usize),
    Up(usize),
    Down(usize),
}

struct Work {
    listener: UdpSocket,
    server: SocketAddr,
    badness: Badness,
    random: Random,
    flows: Vec<Flow>,
    /// A datagram that the next one overtakes.
    held: Option<(Way, Vec<u8>)>,
    lost: Arc<AtomicU64>,
}

impl Work {
    fn run(mut self, stop: &AtomicBool) {
        let mut buffer = vec![0; 65536];
        while !stop.load(Ordering::SeqCst) {
            let sockets = std::iter::once(&self.listener)
                .chain(self.flows.iter().flat_map(|flow| [&flow.up, &flow.down]));
            let mut polled: Vec<_> = sockets
                .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
                .collect();
            let timeout = Timespec {
                tv_sec: 0,
                tv_nsec: 5_000_000,
            };
            let ready = poll(&mut polled, Some(&timeout)).unwrap();
            let ready_at: Vec<usize> = (0..polled.len())
                .filter(|&i| polled[i].revents().contains(PollFlags::IN))
                .collect();
            drop(polled);
            if ready == 0 {
                self.release();
            }
            for index in ready_at {
                self.receive(index, &mut buffer);
            }
        }
    }

    fn receive(&mut self, index: usize, buffer: &mut [u8]) {
        let socket = match index.checked_sub(1) {
            None => &self.listener,
            Some(index) if index % 2 == 0 => &self.flows[index / 2].up,
            Some(index) => &self.flows[index / 2].down,
        };
        // A peer that has gone shows as an error here; there is nobody to tell.
        let Ok((length, from)) = socket.recv_from(buffer) else {
            return;
        };
        let datagram = buffer[..length].to_vec();
        match index.checked_sub(1) {
            None => {
                let flow = self.flow_of(from);
                self.pass(Way::Request(flow), datagram);
            }
            Some(index) if index % 2 == 0 => {
                self.flows[index / 2].server = from;
                self.pass(Way::Down(index / 2), datagram);
            }
            Some(index) => self.pass(Way::Up(index / 2), datagram),
        }
    }

    fn flow_of(&mut self, client: SocketAddr) -> usize {
        if let Some(index) = self.flows.iter().position(|flow| flow.client == client) {
            return index;
        }
        let bind = || UdpSocket::bind("127.0.0.1:0").unwrap();
        self.flows.push(Flow {
            client,
            up: bind(),
            down: bind(),
            server: self.server,
        });
        self.flows.len() - 1
    }

    fn pass(&mut self, way: Way, datagram: Vec<u8>) {
        if self.random.chance(self.badness.loss) {
            self.lost.fetch_add(1, Ordering::SeqCst);
            return;
        }
        if self.random.chance(self.badness.reordering) && self.held.is_none() {
            self.held = Some((way, datagram));
            return;
        }
        self.send(way, &datagram);
        if self.random.chance(self.badness.duplication) {
            self.send(way, &datagram);
        }
        self.release();
    }

    fn release(&mut self) {
        if let Some((way, datagram)) = self.held.take() {
            self.send(way, &datagram);
        }
    }

    fn send(&self, way: Way, datagram: &[u8]) {
        let _ = match way {
            Way::Request(flow) => self.flows[flow].up.send_to(datagram, self.server),
            Way::Up(flow) => self.flows[flow]
                .up
                .send_to(datagram, self.flows[flow].server),
            Way::Down(flow) => self.flows[flow]
                .down
                .send_to(datagram, self.flows[flow].client),
        };
    }
}
