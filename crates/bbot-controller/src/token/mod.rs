//! What lets somebody do something: the first token, which is in a file and lets do everything, tokens with a name and
//! scopes, and the browsers that have shown one.

mod named;
mod scope;
mod sign_ins;

pub(crate) use named::{Named, Shown};
pub use scope::{Scope, Scopes};
pub(crate) use sign_ins::{SIGNED_IN_SECONDS, SignIn, SignIns};

use std::fmt;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::auth::{random_hex, same_secret};

/// The name of the first token: whose turns in the queue are taken by what is asked for with it.
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
}
