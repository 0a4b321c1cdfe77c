//! A relay between TFTP clients and a server that loses datagrams by a seed, for the benchmark.
//!
//! Each transfer has a port of the server's own (RFC 1350 section 4): the relay gives each client
//! a pair of sockets, and learns that port from the server's first answer.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;

const USAGE: &str =
    "usage: relay --listen ADDRESS:PORT --server ADDRESS:PORT [--loss PERCENT] [--seed NUMBER]";

/// Clients that are remembered; the oldest gives way to a new one.
const FLOWS: usize = 16;
/// Datagrams that are taken from one socket before the others have their turn.
const TURN: usize = 64;
/// What the sockets may hold: nothing is to be lost but by the seed.
const BUFFER: usize = 4 << 20;

struct Arguments {
    listen: SocketAddr,
    server: SocketAddr,
    /// Lost of a million.
    loss: u64,
    seed: u64,
}

fn arguments() -> Result<Arguments, lexopt::Error> {
    use lexopt::prelude::*;
    let (mut listen, mut server, mut percent, mut seed) = (None, None, 0.0f64, 1);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("listen") => listen = Some(parser.value()?.parse()?),
            Long("server") => server = Some(parser.value()?.parse()?),
            Long("loss") => percent = parser.value()?.parse()?,
            Long("seed") => seed = parser.value()?.parse()?,
            Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    if !(0.0..=100.0).contains(&percent) {
        return Err("--loss is a percentage".into());
    }
    Ok(Arguments {
        listen: listen.ok_or("--listen is missing")?,
        server: server.ok_or("--server is missing")?,
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "within 0 and a million"
        )]
        loss: (percent * 10_000.0).round() as u64,
        seed,
    })
}

/// xorshift64*: the same seed loses the same datagrams, as far as they come in the same order.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11) % bound
    }
}

/// The sockets of one client: `up` faces the server, `down` is the port that the client takes for
/// the server's port of the transfer.
struct Flow {
    client: SocketAddr,
    server: SocketAddr,
    up: UdpSocket,
    down: UdpSocket,
}

struct Relay {
    listener: UdpSocket,
    server: SocketAddr,
    loss: u64,
    random: Random,
    flows: VecDeque<Flow>,
    buffer: Vec<u8>,
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    sockopt::set_socket_recv_buffer_size(&socket, BUFFER)?;
    Ok(socket)
}

fn port_of(ip: IpAddr) -> io::Result<UdpSocket> {
    bind(SocketAddr::new(ip, 0))
}

impl Relay {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let flows = self.flows.iter().flat_map(|flow| [&flow.up, &flow.down]);
            let mut polled: Vec<_> = std::iter::once(&self.listener)
                .chain(flows)
                .map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN))
                .collect();
            poll(&mut polled, None)?;
            let ready: Vec<usize> = (0..polled.len())
                .filter(|&index| !polled[index].revents().is_empty())
                .collect();
            drop(polled);
            // Requests come last: they may move the flows.
            for index in ready.into_iter().rev() {
                match index.checked_sub(1) {
                    Some(index) => self.pass(index / 2, index % 2 == 0),
                    None => self.take_requests()?,
                }
            }
        }
    }

    fn pass(&mut self, flow: usize, from_server: bool) {
        let flow = &mut self.flows[flow];
        for _ in 0..TURN {
            let (from, to) = if from_server {
                (&flow.up, &flow.down)
            } else {
                (&flow.down, &flow.up)
            };
            // Whether there is no more, or a peer has closed its port: there is nobody to tell.
            let Ok((length, peer)) = from.recv_from(&mut self.buffer) else {
                return;
            };
            let target = if from_server {
                flow.server = peer;
                flow.client
            } else {
                flow.server
            };
            if self.random.below(1_000_000) >= self.loss {
                // One that cannot be sent is lost, too.
                let _ = to.send_to(&self.buffer[..length], target);
            }
        }
    }

    fn take_requests(&mut self) -> io::Result<()> {
        while let Ok((length, client)) = self.listener.recv_from(&mut self.buffer) {
            if !self.flows.iter().any(|flow| flow.client == client) {
                if self.flows.len() == FLOWS {
                    self.flows.pop_front();
                }
                let (up, down) = (
                    port_of(self.server.ip())?,
                    port_of(self.listener.local_addr()?.ip())?,
                );
                self.flows.push_back(Flow {
                    client,
                    server: self.server,
                    up,
                    down,
                });
            }
            let flow = self.flows.iter().find(|flow| flow.client == client);
            if let Some(flow) = flow
                && self.random.below(1_000_000) >= self.loss
            {
                let _ = flow.up.send_to(&self.buffer[..length], self.server);
            }
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("relay: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let listener = match bind(arguments.listen) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!("relay: cannot listen on {}: {error}", arguments.listen);
            return ExitCode::FAILURE;
        }
    };
    match listener.local_addr() {
        Ok(address) => println!("listening on {address}"),
        Err(error) => eprintln!("relay: {error}"),
    }
    let mut relay = Relay {
        listener,
        server: arguments.server,
        loss: arguments.loss,
        random: Random::new(arguments.seed),
        flows: VecDeque::new(),
        buffer: vec![0; 65536],
    };
    match relay.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay: {error}");
            ExitCode::FAILURE
        }
    }
}
