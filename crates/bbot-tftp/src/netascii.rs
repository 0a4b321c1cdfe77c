//! Netascii for GET: LF becomes CR LF, CR becomes CR NUL (RFC 764 by way of RFC 1350).

use std::io::{self, Read};

/// A reader that turns a host's text into netascii.
#[derive(Debug)]
pub(crate) struct Netascii<R> {
    inner: R,
    input: Box<[u8]>,
    position: usize,
    filled: usize,
    /// The second half of a pair, when it did not fit.
    pending: Option<u8>,
}

impl<R: Read> Netascii<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self {
            inner,
            input: vec![0; 16 * 1024].into(),
            position: 0,
            filled: 0,
            pending: None,
        }
    }
}

impl<R: Read> Read for Netascii<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut written = 0;
        while written < out.len() {
            if let Some(byte) = self.pending.take() {
                out[written] = byte;
                written += 1;
                continue;
            }
            if self.position == self.filled {
                if written > 0 {
                    break;
                }
                self.filled = self.inner.read(&mut self.input)?;
                self.position = 0;
                if self.filled == 0 {
                    break;
                }
            }
            let byte = self.input[self.position];
            self.position += 1;
            let (first, second) = match byte {
                b'\n' => (b'\r', Some(b'\n')),
                b'\r' => (b'\r', Some(0)),
                other => (other, None),
            };
            out[written] = first;
            written += 1;
            self.pending = second;
        }
        Ok(written)
    }
}
