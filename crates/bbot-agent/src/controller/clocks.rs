//! Whether controllers have the same time as this host: each that has not is told of once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use reqwest::header::DATE;
use reqwest::{Response, Url};

/// Clocks that are farther apart than this, in seconds, are told of: what is between is on the way.
const BOUND: u64 = 10;

/// The controllers whose clocks are off.
#[derive(Debug, Default)]
pub(super) struct Clocks {
    /// By how much, as was told.
    off: Mutex<HashMap<String, i64>>,
    /// By how much, for those whose time is followed: they have refused ours.
    followed: Mutex<HashMap<String, i64>>,
}

impl Clocks {
    /// Compares the time of an answer with ours.
    pub(super) fn compare(&self, url: &Url, response: &Response) {
        let Some(ahead) = said(response) else {
            return;
        };
        let controller = url.origin().ascii_serialization();
        if let Some(word) = self.news(&controller, ahead) {
            tracing::warn!("{word}");
        }
    }

    /// Takes the time of an answer for what is signed from now on; whether that is another than was taken before. Only what
    /// is said within a session follows a controller's time.
    pub(super) fn follow(&self, url: &Url, response: &Response) -> bool {
        said(response).is_some_and(|ahead| self.follows(url, ahead))
    }

    fn follows(&self, url: &Url, ahead: i64) -> bool {
        let controller = url.origin().ascii_serialization();
        let mut followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = followed.insert(controller, ahead).unwrap_or(0);
        before.abs_diff(ahead) > BOUND
    }

    /// By how many seconds the clock of a controller is ahead of ours, where its time is followed.
    pub(super) fn ahead(&self, url: &Url) -> i64 {
        let followed = self.followed.lock().unwrap_or_else(PoisonError::into_inner);
        let controller = url.origin().ascii_serialization();
        followed.get(&controller).copied().unwrap_or(0)
    }

    /// What is to be told of a controller whose clock is so far ahead of ours, in seconds.
    fn news(&self, controller: &str, ahead: i64) -> Option<String> {
        let mut off = self.off.lock().unwrap_or_else(PoisonError::into_inner);
        if ahead.unsigned_abs() <= BOUND {
            let was = off.remove(controller)?;
            return Some(format!(
                "the clock of {controller} was {}; now it is right",
                text(was)
            ));
        }
        let is_news = off.insert(controller.to_owned(), ahead).is_none();
        is_news.then(|| {
            format!(
                "the clock of {controller} is {}: one of them is wrong",
                text(ahead)
            )
        })
    }
}

/// By how many seconds an answer says that the controller's clock is ahead of ours.
fn said(response: &Response) -> Option<i64> {
    let date = response.headers().get(DATE)?.to_str().ok()?;
    let theirs = httpdate::parse_http_date(date).ok()?;
    Some(ahead(theirs, SystemTime::now()))
}

fn ahead(theirs: SystemTime, ours: SystemTime) -> i64 {
    match theirs.duration_since(ours) {
        Ok(ahead) => i64::try_from(ahead.as_secs()).unwrap_or(i64::MAX),
        Err(behind) => -i64::try_from(behind.duration().as_secs()).unwrap_or(i64::MAX),
    }
}

fn text(ahead: i64) -> String {
    let side = if ahead < 0 { "behind" } else { "ahead of" };
    format!("{} s {side} ours", ahead.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_clock_that_is_off_is_told_of_once() {
        let clocks = Clocks::default();
        for (ahead, expected) in [
            (0, None),
            (10, None),
            (-10, None),
            (
                90,
                Some("the clock of c is 90 s ahead of ours: one of them is wrong"),
            ),
            (91, None),
            (-3600, None),
            (
                3,
                Some("the clock of c was 3600 s behind ours; now it is right"),
            ),
            (3, None),
            (
                -11,
                Some("the clock of c is 11 s behind ours: one of them is wrong"),
            ),
        ] {
            assert_eq!(clocks.news("c", ahead).as_deref(), expected, "{ahead}");
        }
        assert!(clocks.news("d", 60).is_some(), "each by itself");
    }

    #[test]
    fn a_time_is_followed_until_there_is_another() {
        let clocks = Clocks::default();
        let url = |text: &str| text.parse::<Url>().unwrap();
        let (here, there) = (url("http://c.example/s/1"), url("http://d.example/"));
        assert_eq!(clocks.ahead(&here), 0);
        // It is refused for something else.
        assert!(!clocks.follows(&here, 3));
        assert!(clocks.follows(&here, 600));
        assert!(!clocks.follows(&here, 601), "once more would not help");
        assert_eq!((clocks.ahead(&here), clocks.ahead(&there)), (601, 0));
        // The clock was set right.
        assert!(clocks.follows(&here, 0));
        assert_eq!(clocks.ahead(&here), 0);
    }

    #[test]
    fn how_far() {
        let ours = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        for seconds in [0_u64, 1, 999] {
            let span = Duration::from_secs(seconds);
            let signed = i64::try_from(seconds).unwrap();
            assert_eq!(ahead(ours + span, ours), signed);
            assert_eq!(ahead(ours - span, ours), -signed);
        }
    }
}
