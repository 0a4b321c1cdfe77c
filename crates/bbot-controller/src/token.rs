//! The token that lets somebody change something, and the browsers that have shown it.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::auth::{random_hex, same_secret};
use crate::clock::Millis;

/// Whose turns in the queue are taken by what is asked for with the token.
pub(crate) const SUBMITTER: &str = "token";

/// The token's file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// It could not be made or read.
    #[error("cannot use the token file {path}")]
    Io {
        /// The file.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// Others may read it.
    #[error("others may read the token file {path} (mode {mode:03o}): chmod 600 {path}")]
    Mode {
        /// The file.
        path: String,
        /// Its mode.
        mode: u32,
    },
    /// What is in it is no token.
    #[error(
        "the token file {path} holds no token of at least {MINIMUM} characters; remove it and a new one is made"
    )]
    Empty {
        /// The file.
        path: String,
    },
}

/// A token of an operator's own choice has at least as many characters.
const MINIMUM: usize = 16;

/// The secret.
pub(crate) struct Token(String);

/// Never shows it.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// Reads the token, or makes one at the first start.
    pub(crate) fn open(path: &Path) -> Result<Self, TokenError> {
        let shown = || path.display().to_string();
        let io = |source| TokenError::Io {
            path: shown(),
            source,
        };
        match std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
        {
            Ok(mut file) => {
                let token = random_hex::<32>().map_err(io)?;
                writeln!(file, "{token}")
                    .and_then(|()| file.sync_all())
                    .map_err(io)?;
                Ok(Self(token))
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                let mode = std::fs::metadata(path).map_err(io)?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(TokenError::Mode {
                        path: shown(),
                        mode,
                    });
                }
                let text = std::fs::read_to_string(path).map_err(io)?;
                let token = text.trim();
                if token.len() < MINIMUM {
                    return Err(TokenError::Empty { path: shown() });
                }
                Ok(Self(token.to_owned()))
            }
            Err(e) => Err(io(e)),
        }
    }

    /// Whether this is it.
    pub(crate) fn is(&self, shown: &str) -> bool {
        same_secret(&self.0, shown)
    }
}

/// How long a browser stays signed in, in seconds.
pub(crate) const SIGNED_IN_SECONDS: u64 = 12 * 60 * 60;

/// Most browsers that are signed in at once; the one whose time ends first makes room.
const SIGNED_IN_LIMIT: usize = 256;

/// The browsers that have shown the token. They have a secret of their own each, in a cookie, and one
/// more that is only in the forms they were given. A restart signs everybody out.
#[derive(Debug, Default)]
pub(crate) struct SignIns(Mutex<HashMap<String, SignIn>>);

/// One of them.
#[derive(Clone)]
pub(crate) struct SignIn {
    /// What a form must carry.
    pub(crate) form: String,
    until: Millis,
}

impl fmt::Debug for SignIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignIn(until {})", self.until)
    }
}

impl SignIns {
    /// Signs a browser in; the value of its cookie.
    pub(crate) fn add(&self, now: Millis) -> io::Result<String> {
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
    fn made_once_with_mode_600() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        Token::open(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(
            std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let token = Token::open(&path).unwrap();
        assert!(token.is(text.trim()));
        assert!(!token.is(""));
        assert!(!format!("{token:?}").contains(text.trim()));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(
            Token::open(&path)
                .unwrap_err()
                .to_string()
                .contains("chmod 600")
        );
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "\n").unwrap();
        assert!(matches!(Token::open(&path), Err(TokenError::Empty { .. })));
        assert!(matches!(
            Token::open(&dir.path().join("no/token")),
            Err(TokenError::Io { .. })
        ));
    }

    #[test]
    fn sign_ins_end() {
        let all = SignIns::default();
        let cookie = all.add(Millis(0)).unwrap();
        assert!(all.get(&cookie, Millis(1)).is_some());
        assert!(all.get("", Millis(1)).is_none());
        assert!(
            all.get(&cookie, Millis(0).plus_seconds(SIGNED_IN_SECONDS))
                .is_none()
        );
        all.remove(&cookie);
        assert!(all.get(&cookie, Millis(1)).is_none());
        for _ in 0..=SIGNED_IN_LIMIT {
            all.add(Millis(5)).unwrap();
        }
        assert_eq!(all.0.lock().unwrap().len(), SIGNED_IN_LIMIT);
    }
}
