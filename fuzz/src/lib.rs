//! What the fuzz targets share: reading an input as a sequence of steps, and a folder in memory.

use std::time::{Duration, Instant};

/// An input that is read from its front; it never ends, but gives zeros once it has.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// The whole input.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether all has been read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// Two bytes, the greater first.
    pub fn number(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// As many bytes as the next one says, or what is left.
    pub fn short(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte());
        self.take(length)
    }

    /// As many bytes as the next two say, or what is left.
    pub fn long(&mut self) -> &'a [u8] {
        let length = usize::from(self.number());
        self.take(length)
    }

    /// What is left.
    #[must_use]
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A folder of its own for this run, in memory where the host has a place for that: uploads are flushed to the disk.
///
/// # Panics
/// When there is no room for one.
#[must_use]
pub fn folder() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    }
    .expect("there is a place for temporary files")
}

/// A clock that only the input moves.
#[derive(Debug, Clone, Copy)]
pub struct Clock(pub Instant);

impl Clock {
    /// Begins now.
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "a clock that starts is no default"
    )]
    pub fn new() -> Self {
        Self(Instant::now())
    }

    /// Goes on by this many tenths of a second.
    pub fn pass(&mut self, tenths: u16) {
        self.0 += Duration::from_millis(100) * u32::from(tenths);
    }
}
