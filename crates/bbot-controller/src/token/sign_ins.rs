//! The browsers that have shown a token.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};

use crate::auth::random_hex;
use crate::clock::Millis;

/// How long a browser stays signed in, in seconds.
pub(crate) const SIGNED_IN_SECONDS: u64 = 12 * 60 * 60;

/// Most browsers that are signed in at once; the one whose time ends first makes room.
const SIGNED_IN_LIMIT: usize = 256;

/// The browsers that have shown a token. They have a secret of their own each, in a cookie, and one
/// more that is only in the forms they were given. A restart signs everybody out.
#[derive(Debug, Default)]
pub(crate) struct SignIns(Mutex<HashMap<String, SignIn>>);

/// One of them.
#[derive(Clone)]
pub(crate) struct SignIn {
    /// What a form must carry.
    pub(crate) form: String,
    /// Which token it has shown: the id of one with a name; none: the first one.
    pub(crate) token: Option<String>,
    until: Millis,
}

impl fmt::Debug for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignIn(until {})", self.until)
    }
}

impl SignIns {
    /// Signs a browser in that has shown this token; the value of its cookie.
    pub(crate) fn add(&self, token: Option<String>, now: Millis) -> io::Result<String> {
        let (cookie, form) = (random_hex::<32>()?, random_hex::<32>()?);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, s| s.until > now);
        if all.len() >= SIGNED_IN_LIMIT
            && let Some(first) = all
                .iter()
                .min_by_key(|(_, s)| s.until)
                .map(|(c, _)| c.clone())
        {
            all.remove(&first);
        }
        all.insert(
            cookie.clone(),
            SignIn {
                form,
                token,
                until: now.plus_seconds(SIGNED_IN_SECONDS),
            },
        );
        Ok(cookie)
    }

    /// The browser of this cookie, if it is signed in.
    pub(crate) fn get(&self, cookie: &str, now: Millis) -> Option<SignIn> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(cookie).filter(|s| s.until > now).cloned()
    }

    /// Signs a browser out.
    pub(crate) fn remove(&self, cookie: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(cookie);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_ins_end() {
        let all = SignIns::default();
        let cookie = all.add(None, Millis(0)).unwrap();
        assert!(all.get(&cookie, Millis(1)).is_some());
        assert!(all.get("", Millis(1)).is_none());
        assert!(
            all.get(&cookie, Millis(0).plus_seconds(SIGNED_IN_SECONDS))
                .is_none()
        );
        all.remove(&cookie);
        assert!(all.get(&cookie, Millis(1)).is_none());
        for _ in 0..=SIGNED_IN_LIMIT {
            all.add(None, Millis(5)).unwrap();
        }
        assert_eq!(all.0.lock().unwrap().len(), SIGNED_IN_LIMIT);
    }
}
