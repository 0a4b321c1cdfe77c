//! The end of what is said into a pipe: a program's complaints, a guest's console.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

/// A reader needs little.
const STACK: usize = 128 * 1024;

/// The end of what was said so far.
#[derive(Debug)]
pub(super) struct Words {
    tail: Arc<Mutex<VecDeque<u8>>>,
    /// Tells when the pipe has ended.
    over: Option<oneshot::Receiver<()>>,
}

impl Words {
    /// Reads the pipe to its end and keeps the last `limit` bytes. On a thread,
    /// since the speaker must never wait for a busy agent.
    ///
    /// # Errors
    ///
    /// When the thread cannot be made.
    pub(super) fn keep(
        mut pipe: impl Read + Send + 'static,
        limit: usize,
        name: &str,
    ) -> io::Result<Self> {
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&tail);
        let (over_in, over) = oneshot::channel();
        std::thread::Builder::new()
            .name(name.to_owned())
            .stack_size(STACK)
            .spawn(move || {
                let mut chunk = [0; 4096];
                loop {
                    match pipe.read(&mut chunk) {
                        Ok(length @ 1..) => add(&kept, &chunk[..length], limit),
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Ok(0) | Err(_) => break,
                    }
                }
                // Nobody waits: the process was dropped.
                let _ = over_in.send(());
            })?;
        Ok(Self {
            tail,
            over: Some(over),
        })
    }

    /// Waits until all was said. Cancel safe, and answers again when asked again.
    pub(super) async fn over(&mut self) {
        if let Some(over) = self.over.as_mut() {
            // An error: the thread is gone, and with it the pipe.
            let _ = over.await;
            self.over = None;
        }
    }

    /// What was said last, fit to be shown: see [`bbot_manifest::log_text`].
    pub(super) fn text(&self) -> String {
        let bytes: Vec<u8> = {
            let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.iter().copied().collect()
        };
        bbot_manifest::log_text(&bytes).replace("\r\n", "\n")
    }
}

fn add(tail: &Mutex<VecDeque<u8>>, chunk: &[u8], limit: usize) {
    let mut tail = tail.lock().unwrap_or_else(PoisonError::into_inner);
    tail.extend(chunk);
    let excess = tail.len().saturating_sub(limit);
    tail.drain(..excess);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_end_is_kept_and_fit_to_be_shown() {
        let mut said = vec![b'x'; 1 << 20];
        said.extend_from_slice(b"\x1b[31mred\x1b[0m\x1b]0;title\x07\r\n\xff\0last");
        let mut words = Words::keep(io::Cursor::new(said), 1000, "words").unwrap();
        words.over().await;
        words.over().await;
        let text = words.text();
        assert!(text.ends_with("xred?\n??last"), "{text:?}");
        assert!(text.len() <= 1000, "{}", text.len());
    }
}
