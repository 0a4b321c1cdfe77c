//! Handing a task out over a connection that may be gone: what never left this computer is taken back at once.
//!
//! A lease that is lost on its way lapses within its time. But where it can be known that the agent cannot have got
//! it, nobody has to wait: the request was given up while the lease was written, or the connection ended before the
//! answer was taken for sending.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};

use super::App;
use crate::clock::Millis;
use crate::figures::CameBack;

/// What was given up while it was written has been written after so long.
const LEASE_ON_ITS_WAY: Duration = Duration::from_secs(2);

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
        // The lease may have been written without anybody having been told.
        app.lapses.expect(Millis(0));
        runtime.spawn(async move {
            let mut taken = app.store.take_back(&session).await;
            if app.store.is_shared() && matches!(taken, Ok(None)) {
                // The lease itself may still be on its way: operations there are not in one line.
                tokio::time::sleep(LEASE_ON_ITS_WAY).await;
                taken = app.store.take_back(&session).await;
            }
            match taken {
                Ok(Some(build)) => {
                    app.figures.came_back(CameBack::NotTold);
                    tracing::info!(
                        build.id,
                        "the agent that build {} was for is gone before it was told: queued again",
                        build.id
                    );
                    app.waits(&build, None);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buildtab::Buildtab;
    use crate::config::Config;
    use crate::objects::Objects;
    use crate::package::Particulars;
    use crate::package::plan::Plan;
    use crate::queue::State;
    use crate::queue::order::Priority;
    use crate::source::{Repository, Source};
    use crate::store::{Instead, NewLease, NewSubmission, Store};
    use crate::token::Token;
    use crate::watched::Watched;
    use http_body_util::BodyExt as _;
    use hyper::body::Body as _;

    async fn app(dir: &std::path::Path) -> Arc<App> {
        let config = Config::new(dir.to_owned());
        let store = Store::open(&dir.join("s.sqlite")).await.unwrap();
        let token = Token::open(&dir.join("token")).unwrap();
        let objects = Objects::in_directory(&dir.join("objects")).unwrap();
        let address = config.bind;
        let shutdown = tokio_util::sync::CancellationToken::new();
        Arc::new(App::new(
            config,
            None,
            address,
            store,
            objects,
            Watched::fixed(Buildtab::default()),
            None,
            token,
            shutdown,
        ))
    }

    async fn hand_out(app: &Arc<App>, build: i64, session: &str) -> HandOut {
        let hand_out = HandOut::begin(app, session);
        let lease = NewLease {
            build,
            instead: Instead::None,
            session,
            path: session,
            until: Millis(i64::MAX),
            renews: true,
            latest: Millis(i64::MAX),
            agent: "a",
            fingerprint: None,
            challenge: None,
            machine: "m",
            machine_summary: "M",
            auxiliaries: &[],
            login: None,
            toolchain_name: "t",
            toolchain_version: "1",
            makings: None,
            signing: None,
        };
        assert!(app.store.lease(&lease, Millis(0)).await.unwrap().is_some());
        hand_out
    }

    #[tokio::test]
    async fn what_was_not_delivered_is_queued_again_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let app = app(dir.path()).await;
        let source = Source::Repository(Repository {
            url: "https://x.org/1/a".into(),
            kind: None,
            trust: vec![],
        });
        let new = NewSubmission {
            name: "p",
            version: "1",
            source: &source,
            asker: &app.asker("me"),
            priority: Priority::default(),
            particulars: &Particulars::default(),
            service: None,
            breakpoint: None,
            plan: &Plan::of(&[("default", "x86_64-linux-gnu")]),
        };
        let build = app.store.submit(new, Millis(0)).await.unwrap().builds[0].id;
        // The request was given up while the lease was written; the answer was never asked for.
        for (session, answered) in [("s1", false), ("s2", true)] {
            let able = crate::dispatch::abilities::Abilities::plain(&[0]);
            let mut waiter = app.desk().waiters.wait(&able);
            let task = hand_out(&app, build, session).await;
            if answered {
                drop(task.body("text".into()));
            } else {
                drop(task);
            }
            waiter.woken().await;
            waiter.done();
            let build = app.store.build(build).await.unwrap().unwrap();
            assert_eq!((build.state, build.lapses), (State::Queued, 0));
        }
        // It may have arrived: it stays where it is.
        let body = hand_out(&app, build, "s3").await.body("text".into());
        assert_eq!(body.size_hint().exact(), Some(4));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "text");
        // One that is taken back all the same is refused: its agent has shown that it is there.
        app.store
            .renew(
                "s3",
                std::time::Duration::from_secs(1),
                Millis(0),
                Millis(0),
            )
            .await
            .unwrap();
        let mut late = HandOut::begin(&app, "s3");
        drop(HandOut::begin(&app, "s3"));
        late.done();
        drop(late);
        assert!(app.store.take_back("s3").await.unwrap().is_none());
        let build = app.store.build(build).await.unwrap().unwrap();
        assert_eq!(build.state, State::Building);
    }
}
