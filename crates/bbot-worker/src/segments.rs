//! The raw log on its way to the agent while the build runs: numbered, acknowledged segments (`docs/protocol.md`,
//! section 5), sent by a thread of their own, so that a slow agent never slows a build.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bbot_tftp::client::Reason;

use crate::channel::{self, Channel};

/// The most log that a segment holds, in bytes.
const SEGMENT: usize = 65_536;

/// How long a byte may wait for others to share its segment.
const GATHER: Duration = Duration::from_millis(200);

/// What may wait to be sent, in bytes. What comes on top is left out, with a mark: the build goes on, and the result has
/// the log in any case.
const BACKLOG: usize = 32 << 20;

/// How long segments are tried without one being acknowledged, until the agent is taken to want no more.
const GIVE_UP: Duration = Duration::from_secs(60);

/// Pause before a segment is sent again that the agent cannot take for now.
const AGAIN: Duration = Duration::from_secs(1);

/// How long the end of a build waits for its last segments.
const FLUSH: Duration = Duration::from_secs(20);

/// Bytes that belong to one operation, not yet sent.
#[derive(Debug)]
struct Pending {
    operation: &'static str,
    bytes: Vec<u8>,
    since: Instant,
}

#[derive(Debug, Default)]
struct Queue {
    pending: std::collections::VecDeque<Pending>,
    size: usize,
    left_out: u64,
    /// What these bytes belong to.
    left_out_of: &'static str,
    /// Nothing more will come.
    closed: bool,
    /// The agent wants no segments.
    given_up: bool,
    /// The last segment has been acknowledged, or given up.
    done: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

impl Shared {
    /// A thread that panicked here leaves a queue that is still a queue.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The near end of the stream.
#[derive(Debug)]
pub(crate) struct Stream {
    shared: Arc<Shared>,
    sender: Option<JoinHandle<()>>,
}

impl Stream {
    /// A stream to an agent that takes segments.
    pub(crate) fn to(channel: Channel) -> Self {
        let shared = Arc::new(Shared::default());
        let far = Arc::clone(&shared);
        let sender = thread::Builder::new()
            .name("segments".to_owned())
            .spawn(move || send_all(&far, |number, body| put(&channel, number, body)));
        match sender {
            Ok(sender) => Self {
                shared,
                sender: Some(sender),
            },
            Err(error) => {
                eprintln!("warning: no live log: {error}");
                Self::nowhere()
            }
        }
    }

    /// A stream for an agent that takes no segments.
    pub(crate) fn nowhere() -> Self {
        let shared = Shared::default();
        shared.lock().given_up = true;
        Self {
            shared: Arc::new(shared),
            sender: None,
        }
    }

    /// Adds to the log of an operation. Never waits for the agent.
    pub(crate) fn push(&self, operation: &'static str, bytes: &[u8]) {
        let mut queue = self.shared.lock();
        if queue.given_up {
            return;
        }
        // The mark below may take a little more than there is room.
        let room = BACKLOG.saturating_sub(queue.size);
        if room < bytes.len() {
            if queue.left_out_of != operation {
                mark(&mut queue);
                queue.left_out_of = operation;
            }
            queue.left_out += bytes.len() as u64;
            return;
        }
        mark(&mut queue);
        let was_empty = queue.pending.is_empty();
        append(&mut queue, operation, bytes);
        // A sender that waits for time to pass need not be woken by each line.
        let wake = was_empty || queue.pending.front().is_some_and(is_full);
        drop(queue);
        if wake {
            self.shared.changed.notify_all();
        }
    }

    /// Ends the stream and waits until all is sent, or for a bounded time.
    pub(crate) fn close(mut self) {
        {
            let mut queue = self.shared.lock();
            // The end of the log may be what is missing.
            if !queue.given_up {
                mark(&mut queue);
            }
            queue.closed = true;
        }
        self.shared.changed.notify_all();
        let Some(sender) = self.sender.take() else {
            return;
        };
        let deadline = Instant::now() + FLUSH;
        let mut queue = self.shared.lock();
        while !queue.done {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                eprintln!("warning: the live log ends early: the agent does not acknowledge it");
                return;
            }
            let waited = self.shared.changed.wait_timeout(queue, left);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(queue);
        let _ = sender.join();
    }
}

/// Says how much is left out where it is.
fn mark(queue: &mut Queue) {
    if queue.left_out > 0 {
        let mark = format!(
            "\n... {} bytes came too fast to be sent ...\n",
            queue.left_out
        );
        queue.left_out = 0;
        append(queue, queue.left_out_of, mark.as_bytes());
    }
}

/// Appends to the last segment of the same operation that has room, and begins others as needed.
fn append(queue: &mut Queue, operation: &'static str, mut bytes: &[u8]) {
    queue.size += bytes.len();
    if let Some(last) = queue.pending.back_mut()
        && last.operation == operation
    {
        let now = bytes.len().min(SEGMENT - last.bytes.len());
        last.bytes.extend_from_slice(&bytes[..now]);
        bytes = &bytes[now..];
    }
    for piece in bytes.chunks(SEGMENT) {
        queue.pending.push_back(Pending {
            operation,
            bytes: piece.to_vec(),
            since: Instant::now(),
        });
    }
}

/// What came of sending a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    Acknowledged,
    /// No answer: it may have arrived or not. Or the agent cannot take it for now.
    Unknown,
    Refused,
}

fn put(channel: &Channel, number: u64, body: &[u8]) -> Sent {
    match channel.put_segment(number, body) {
        Ok(()) => Sent::Acknowledged,
        Err(error) => {
            eprintln!("trace: {error}");
            match &error.reason {
                Reason::Peer { .. } if channel::passes(&error) => {
                    thread::sleep(AGAIN);
                    Sent::Unknown
                }
                Reason::Peer { .. } => Sent::Refused,
                _ => Sent::Unknown,
            }
        }
    }
}

fn send_all(shared: &Shared, mut send: impl FnMut(u64, &[u8]) -> Sent) {
    let mut number = 1;
    while let Some(segment) = next(shared) {
        let mut body = Vec::with_capacity(segment.operation.len() + 1 + segment.bytes.len());
        body.extend_from_slice(segment.operation.as_bytes());
        body.push(b'\n');
        body.extend_from_slice(&segment.bytes);
        let deadline = Instant::now() + GIVE_UP;
        let sent = loop {
            match send(number, &body) {
                Sent::Unknown if Instant::now() < deadline => {}
                sent => break sent,
            }
        };
        if sent != Sent::Acknowledged {
            eprintln!("warning: no live log: the agent takes no segment {number}");
            break;
        }
        number += 1;
    }
    let mut queue = shared.lock();
    queue.given_up = true;
    queue.pending.clear();
    queue.done = true;
    drop(queue);
    shared.changed.notify_all();
}

fn is_full(segment: &Pending) -> bool {
    segment.bytes.len() == SEGMENT
}

/// Waits for a segment that is full, or old enough, or the last. One that the next operation follows waits as well: to send
/// it would take from that operation's first command.
fn next(shared: &Shared) -> Option<Pending> {
    let mut queue = shared.lock();
    loop {
        let wait = match queue.pending.front() {
            None if queue.closed => return None,
            None => Duration::MAX,
            Some(first) if queue.closed || is_full(first) => Duration::ZERO,
            Some(first) => GATHER.saturating_sub(first.since.elapsed()),
        };
        if wait.is_zero() {
            let segment = queue.pending.pop_front()?;
            queue.size -= segment.bytes.len();
            return Some(segment);
        }
        queue = if wait == Duration::MAX {
            shared
                .changed
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner)
        } else {
            let waited = shared.changed.wait_timeout(queue, wait);
            waited.unwrap_or_else(PoisonError::into_inner).0
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Closes a queue with these pushes in it and collects what would be sent.
    fn sent(
        pushes: &[(&'static str, &[u8])],
        mut answer: impl FnMut(u64) -> Sent,
    ) -> Vec<(u64, Vec<u8>)> {
        let shared = Arc::new(Shared::default());
        let stream = Stream {
            shared: Arc::clone(&shared),
            sender: None,
        };
        for (operation, bytes) in pushes {
            stream.push(operation, bytes);
        }
        shared.lock().closed = true;
        let mut all = Vec::new();
        send_all(&shared, |number, body| {
            all.push((number, body.to_vec()));
            answer(number)
        });
        all
    }

    #[test]
    fn segments_are_numbered_bounded_and_of_one_operation() {
        let large = vec![b'x'; SEGMENT + 10];
        let all = sent(
            &[
                ("configure", b"a"),
                ("configure", b"b\n"),
                ("update", &large),
                ("update", b"c"),
            ],
            |_| Sent::Acknowledged,
        );
        let bodies: Vec<(u64, usize)> = all
            .iter()
            .map(|(number, body)| (*number, body.len()))
            .collect();
        assert_eq!(all[0].1, b"configure\nab\n");
        assert_eq!(
            bodies[1..],
            [(2, "update\n".len() + SEGMENT), (3, "update\n".len() + 11)]
        );
        assert!(all[2].1.ends_with(b"xc"));
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again_under_its_number() {
        let mut lost = true;
        let all = sent(&[("update", b"a"), ("test", b"b")], |_| {
            if std::mem::take(&mut lost) {
                Sent::Unknown
            } else {
                Sent::Acknowledged
            }
        });
        let numbers: Vec<u64> = all.iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [1, 1, 2]);
    }

    #[test]
    fn a_refusal_ends_the_stream() {
        let all = sent(&[("update", b"a"), ("test", b"b")], |_| Sent::Refused);
        assert_eq!(all.len(), 1);
    }

    #[test]
    fn too_much_is_left_out_with_a_mark() {
        let half = vec![b'x'; BACKLOG / 2 + 1];
        let stream = Stream {
            shared: Arc::new(Shared::default()),
            sender: None,
        };
        stream.push("update", &half);
        stream.push("update", &half);
        stream.push("update", b"end");
        let mut queue = stream.shared.lock();
        let all: Vec<u8> = queue
            .pending
            .drain(..)
            .flat_map(|pending| pending.bytes)
            .collect();
        let tail = format!(
            "\n... {} bytes came too fast to be sent ...\nend",
            half.len()
        );
        assert!(all.ends_with(tail.as_bytes()));
        assert_eq!(all.len(), half.len() + tail.len());
    }

    #[test]
    fn what_is_left_out_at_the_end_of_an_operation_or_of_all_is_told() {
        let half = vec![b'x'; BACKLOG / 2 + 1];
        let stream = Stream {
            shared: Arc::new(Shared::default()),
            sender: None,
        };
        let shared = Arc::clone(&stream.shared);
        stream.push("update", &half);
        stream.push("update", &half);
        stream.push("test", &half);
        stream.close();
        let queue = shared.lock();
        let ends: Vec<(&str, String)> = queue
            .pending
            .iter()
            .map(|p| (p.operation, String::from_utf8_lossy(&p.bytes).into_owned()))
            .collect();
        let told = format!("... {} bytes came too fast to be sent ...\n", half.len());
        let [.., (first, update), (second, test)] = ends.as_slice() else {
            panic!("{} pieces", ends.len());
        };
        assert_eq!((*first, *second), ("update", "test"));
        assert!(update.ends_with(&told) && test.ends_with(&told));
    }

    /// The mark comes on top of what exactly fills the queue; what follows is left out again, and nothing overflows.
    #[test]
    fn a_mark_in_a_full_queue_does_not_open_it() {
        let stream = Stream {
            shared: Arc::new(Shared::default()),
            sender: None,
        };
        let piece = vec![b'x'; SEGMENT];
        for _ in 0..=BACKLOG / SEGMENT {
            stream.push("update", &piece);
        }
        {
            let mut queue = stream.shared.lock();
            assert_eq!((queue.size, queue.left_out), (BACKLOG, SEGMENT as u64));
            let sent = queue.pending.pop_front().unwrap();
            queue.size -= sent.bytes.len();
        }
        for _ in 0..10 {
            stream.push("update", &piece);
        }
        let queue = stream.shared.lock();
        assert!(queue.size < BACKLOG + 100, "{}", queue.size);
        assert_eq!(queue.left_out, 9 * SEGMENT as u64);
    }

    #[test]
    fn a_segment_is_sent_soon_without_being_full() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let shared = Arc::new(Shared::default());
        let far = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            send_all(&far, |_, body| {
                sender.send((Instant::now(), body.to_vec())).unwrap();
                Sent::Acknowledged
            });
        });
        let stream = Stream {
            shared,
            sender: Some(thread),
        };
        let start = Instant::now();
        stream.push("update", b"one line\n");
        let (at, body) = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(body, b"update\none line\n");
        assert!(at - start >= GATHER / 2);
        stream.close();
    }
}
