//! Handing a task out over a connection that may be gone: what never left this computer is taken back at once.
//!
//! A lease that is lost on its way lapses within its time. But where it can be known that the agent cannot have got
//! it, nobody has to wait: the request was given up while the lease was written, or the connection ended before the
//! answer was taken for sending.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};

use super::App;

/// A task on its way to an agent; when this is dropped before it was delivered, the task is taken back.
#[derive(Debug)]
pub(super) struct HandOut {
    armed: Option<(Arc<App>, String)>,
}

impl HandOut {
    /// Begins to hand out the task of this session, before the lease is written.
    pub(super) fn begin(app: &Arc<App>, session: &str) -> Self {
        Self {
            armed: Some((Arc::clone(app), session.to_owned())),
        }
    }

    /// There is nothing to take back: it was delivered, or never handed out.
    pub(super) fn done(&mut self) {
        self.armed = None;
    }

    /// The answer that delivers the task.
    pub(super) fn body(self, text: String) -> Body {
        Body::new(Delivery {
            text: Some(Bytes::from(text)),
            hand_out: self,
        })
    }
}

impl Drop for HandOut {
    fn drop(&mut self) {
        let Some((app, session)) = self.armed.take() else {
            return;
        };
        // Without a runtime the process ends, and the lease lapses after the next start.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        runtime.spawn(async move {
            match app.store.take_back(&session).await {
                Ok(Some(build)) => {
                    tracing::info!(
                        build.id,
                        "the agent that build {} was for is gone before it was told: queued again",
                        build.id
                    );
                    app.wake_agents();
                }
                Ok(None) => {}
                Err(e) => tracing::error!("cannot take a task back, so it lapses: {e}"),
            }
        });
    }
}

/// The answer's text, with what takes it back when nobody asks for it.
struct Delivery {
    text: Option<Bytes>,
    hand_out: HandOut,
}

impl hyper::body::Body for Delivery {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let text = self.text.take();
        // From here on it may have arrived.
        self.hand_out.done();
        Poll::Ready(text.map(|t| Ok(Frame::data(t))))
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.as_ref().map_or(0, |t| t.len() as u64))
    }
}
