//! Controllers for the tests of delivery and sessions: each question is answered by a
//! function, and what was asked is kept.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use bbot_machine::machine::BoxFuture;
use tokio::time::Instant;

use super::{
    Acknowledged, Channel, Destination, Kin, Link, LinkError, Manner, Posted, Renewed, TaskAnswer,
    Url,
};

/// What was posted: when, where, what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    pub(crate) url: String,
    /// How long the log is said to be.
    pub(crate) log: Option<u64>,
    pub(crate) body: Vec<u8>,
}

type Script<T> = Mutex<VecDeque<T>>;

/// Controllers whose answers are played in order; when there are none left they say yes.
#[derive(Debug, Default)]
pub(crate) struct FakeLink {
    /// Per origin.
    pub(crate) posts: Mutex<Vec<(String, Posted)>>,
    /// Origins whose requests hang.
    pub(crate) hangs: Mutex<Vec<String>>,
    pub(crate) segments: Script<Acknowledged>,
    pub(crate) leases: Script<Renewed>,
    pub(crate) results: Mutex<Vec<Seen>>,
    pub(crate) log: Mutex<Vec<(u64, bool, String)>>,
    /// When, and for how long they may be held.
    pub(crate) renewals: Mutex<Vec<(Instant, Duration)>>,
}

impl FakeLink {
    /// The next result for this origin is answered so.
    pub(crate) fn answer(&self, origin: &str, posted: Posted) {
        self.posts.lock().unwrap().push((origin.to_owned(), posted));
    }

    /// The first lines of the results' bodies, as they came.
    pub(crate) fn bodies(&self) -> Vec<String> {
        let results = self.results.lock().unwrap();
        let text = |seen: &Seen| String::from_utf8_lossy(&seen.body).into_owned();
        results.iter().map(text).collect()
    }

    fn posted(&self, url: &Url) -> Posted {
        let origin = url.origin().ascii_serialization();
        let mut posts = self.posts.lock().unwrap();
        match posts.iter().position(|(o, _)| *o == origin) {
            Some(at) => posts.remove(at).1,
            None => Posted::Taken,
        }
    }
}

impl Link for FakeLink {
    fn request_task<'a>(
        &'a self,
        _: &'a Url,
        _: String,
        _: Manner,
    ) -> BoxFuture<'a, Result<TaskAnswer, LinkError>> {
        unreachable!("no task is asked for")
    }

    fn post_result<'a>(&'a self, to: &'a Destination, body: Vec<u8>) -> BoxFuture<'a, Posted> {
        Box::pin(async move {
            let url = &to.url;
            self.results.lock().unwrap().push(Seen {
                at: Instant::now(),
                url: url.to_string(),
                log: to.log,
                body,
            });
            let origin = url.origin().ascii_serialization();
            if self.hangs.lock().unwrap().contains(&origin) {
                std::future::pending::<()>().await;
            }
            // The others may go on meanwhile.
            tokio::task::yield_now().await;
            self.posted(url)
        })
    }

    fn renew_lease<'a>(
        &'a self,
        _: &'a Channel,
        _: u64,
        hold: Duration,
        _: Duration,
    ) -> BoxFuture<'a, Renewed> {
        self.renewals.lock().unwrap().push((Instant::now(), hold));
        let answer = self.leases.lock().unwrap().pop_front();
        Box::pin(async { answer.unwrap_or(Renewed::Until(None)) })
    }

    fn post_segment<'a>(
        &'a self,
        _: &'a Channel,
        number: u64,
        skips: bool,
        body: Vec<u8>,
    ) -> BoxFuture<'a, Acknowledged> {
        let text = String::from_utf8_lossy(&body).into_owned();
        self.log.lock().unwrap().push((number, skips, text));
        let answer = self.segments.lock().unwrap().pop_front();
        Box::pin(async { answer.unwrap_or(Acknowledged::Taken) })
    }

    fn fetch<'a>(
        &'a self,
        _: &'a Url,
        _: Kin,
        _: &'a str,
        _: &'a Path,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        unreachable!("nothing is fetched")
    }
}
