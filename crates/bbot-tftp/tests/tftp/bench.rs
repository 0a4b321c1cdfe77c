//! A server, its clock, and a peer that sends packet by packet.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use bbot_tftp::packet::{self, ErrorCode, Packet};
use bbot_tftp::{Event, Limits, REQUEST_PORT, Root, Server};

/// A server, its clock, and a peer by hand.
pub(crate) struct Bench {
    pub(crate) server: Server,
    pub(crate) now: Instant,
    pub(crate) peer: SocketAddr,
}

impl Bench {
    pub(crate) fn new(root: Root) -> Self {
        Self::with(root, Limits::default())
    }

    pub(crate) fn with(root: Root, limits: Limits) -> Self {
        let peer = "192.0.2.2:4000".parse().unwrap();
        Self {
            server: Server::new(root, limits),
            now: Instant::now(),
            peer,
        }
    }

    /// What the server sends in answer: its port and the packet.
    pub(crate) fn send(&mut self, port: u16, packet: &[u8]) -> Vec<(u16, Vec<u8>)> {
        self.server.handle(self.peer, port, packet, self.now);
        self.sent()
    }

    pub(crate) fn sent(&mut self) -> Vec<(u16, Vec<u8>)> {
        std::iter::from_fn(|| self.server.poll_outgoing())
            .map(|out| (out.local_port, out.payload))
            .collect()
    }

    /// Sends a packet that has one answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, port: u16, packet: &[u8]) -> (u16, Vec<u8>) {
        let mut sent = self.send(port, packet);
        assert_eq!(sent.len(), 1, "one answer, not {sent:?}");
        sent.remove(0)
    }

    /// Lets the time pass until the server has something to do.
    pub(crate) fn wait(&mut self) -> Vec<(u16, Vec<u8>)> {
        let due = self
            .server
            .next_deadline()
            .expect("the server waits for something");
        self.now = self.now.max(due);
        self.server.tick(self.now);
        self.sent()
    }

    pub(crate) fn pass(&mut self, time: Duration) -> Vec<(u16, Vec<u8>)> {
        self.now += time;
        self.server.tick(self.now);
        self.sent()
    }

    pub(crate) fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.server.poll_event()).collect()
    }

    /// A whole upload in blocks of 512; the last answer.
    pub(crate) fn upload(&mut self, name: &str, bytes: &[u8]) -> Vec<u8> {
        let (port, mut answer) = self.ask(REQUEST_PORT, &packet::write_request(name, &[]));
        for (index, block) in blocks(bytes).into_iter().enumerate() {
            if !matches!(Packet::decode(&answer), Ok(Packet::Ack { .. })) {
                break;
            }
            answer = self
                .ask(port, &data(u16::try_from(index + 1).unwrap(), &block))
                .1;
        }
        answer
    }

    /// A whole download in blocks of 512.
    pub(crate) fn download(&mut self, request: &[u8]) -> Result<Vec<u8>, ErrorCode> {
        let (port, mut answer) = self.ask(REQUEST_PORT, request);
        let mut bytes = Vec::new();
        loop {
            match Packet::decode(&answer).unwrap() {
                Packet::Data { block, data } => {
                    bytes.extend_from_slice(data);
                    let last = data.len() < 512;
                    let mut sent = self.send(port, &packet::ack(block));
                    if last {
                        assert!(sent.is_empty(), "nothing after the last ACK");
                        return Ok(bytes);
                    }
                    answer = sent.remove(0).1;
                }
                Packet::Error { code, .. } => return Err(code),
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(crate) fn blocks(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut blocks: Vec<_> = bytes.chunks(512).map(<[u8]>::to_vec).collect();
    if bytes.len().is_multiple_of(512) {
        blocks.push(Vec::new());
    }
    blocks
}

pub(crate) fn data(block: u16, bytes: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 4];
    packet::data_header(&mut packet, block);
    packet.extend_from_slice(bytes);
    packet
}

pub(crate) fn request(
    operation: u8,
    name: &[u8],
    mode: &[u8],
    options: &[(&str, &str)],
) -> Vec<u8> {
    let mut packet = vec![0, operation];
    packet.extend_from_slice(name);
    packet.push(0);
    packet.extend_from_slice(mode);
    packet.push(0);
    for (name, value) in options {
        packet.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    packet
}

#[track_caller]
pub(crate) fn error_code(packet: &[u8]) -> ErrorCode {
    match Packet::decode(packet) {
        Ok(Packet::Error { code, .. }) => code,
        other => panic!("no error: {other:?}"),
    }
}

pub(crate) fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
