//! QEMU's events on their way to the agent.
//!
//! A guest causes some of them as often as it likes (a restart each time), and a
//! monitor that is not read would hold QEMU up. So all are read, equal ones that
//! wait become one with a count, and of each name only a few different ones wait:
//! a guest that restarts for ever cannot push out that it powered off.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::Notify;

/// Different events of one name that may wait.
const MAX_PER_NAME: usize = 8;

/// Something QEMU tells unasked.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its name, `SHUTDOWN` for example.
    pub name: String,
    /// What comes with it; null when nothing does.
    pub data: Value,
    /// How often it has come since the last of it was taken, at least 1.
    pub times: u32,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Event>,
    is_over: bool,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where events go in. Dropping it ends the stream.
#[derive(Debug)]
pub struct Sender(Arc<Shared>);

/// Where events come out.
#[derive(Debug)]
pub struct Receiver(Arc<Shared>);

/// A queue of events.
pub fn channel() -> (Sender, Receiver) {
    let shared = Arc::new(Shared::default());
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl Sender {
    /// Adds an event; never waits.
    pub fn send(&self, event: Event) {
        let mut queue = self.0.lock();
        let mut of_name = 0;
        for waiting in &mut queue.waiting {
            if waiting.name == event.name {
                if waiting.data == event.data {
                    waiting.times = waiting.times.saturating_add(event.times);
                    return;
                }
                of_name += 1;
            }
        }
        if of_name >= MAX_PER_NAME {
            tracing::debug!("dropped QEMU's event {}: too many wait", event.name);
            return;
        }
        queue.waiting.push_back(event);
        drop(queue);
        self.0.changed.notify_one();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.lock().is_over = true;
        self.0.changed.notify_one();
    }
}

impl Receiver {
    /// The next event. None: the stream has ended. Cancel safe.
    pub async fn recv(&mut self) -> Option<Event> {
        loop {
            {
                let mut queue = self.0.lock();
                if let Some(event) = queue.waiting.pop_front() {
                    return Some(event);
                }
                if queue.is_over {
                    return None;
                }
            }
            self.0.changed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(name: &str, data: Value) -> Event {
        Event {
            name: name.to_owned(),
            data,
            times: 1,
        }
    }

    #[tokio::test]
    async fn a_flood_of_one_event_pushes_out_no_other() {
        let (sender, mut receiver) = channel();
        for _ in 0..100_000 {
            sender.send(event("RESET", json!({"guest": true})));
        }
        for number in 0..1000 {
            sender.send(event("BLOCK_IO_ERROR", json!({ "number": number })));
        }
        sender.send(event("SHUTDOWN", json!({"guest": true})));
        drop(sender);
        let mut got = Vec::new();
        while let Some(event) = receiver.recv().await {
            got.push((event.name, event.times));
        }
        assert_eq!(got.first(), Some(&("RESET".to_owned(), 100_000)));
        assert_eq!(got.last(), Some(&("SHUTDOWN".to_owned(), 1)));
        assert_eq!(got.len(), 2 + MAX_PER_NAME);
    }

    #[tokio::test]
    async fn who_waits_is_woken_by_an_event_and_by_the_end() {
        let (sender, mut receiver) = channel();
        let waiting = tokio::spawn(async move {
            let first = receiver.recv().await;
            (first, receiver.recv().await, receiver.recv().await)
        });
        tokio::task::yield_now().await;
        sender.send(event("STOP", Value::Null));
        tokio::task::yield_now().await;
        drop(sender);
        let (first, second, third) = waiting.await.unwrap();
        assert_eq!(first, Some(event("STOP", Value::Null)));
        assert_eq!((second, third), (None, None));
    }
}
