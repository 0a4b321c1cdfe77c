//! What can go wrong with the store, and which of it passes by itself.

use std::sync::Arc;

/// The store could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It could not be opened.
    #[error(
        "cannot open the store {path}; put a good copy in its place, or give another directory with --data"
    )]
    Open {
        /// Its file.
        path: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// The database could not be reached.
    #[error("cannot use the database {place}: start it, or mend --database")]
    Connect {
        /// Where it is, without the password.
        place: String,
        /// Why not.
        source: sqlx::Error,
    },
    /// The database is of a version that is too old.
    #[error("the database {place} is of PostgreSQL {version}, and 15 or newer is needed")]
    Old {
        /// Where it is, without the password.
        place: String,
        /// Its version.
        version: i64,
    },
    /// Its tables could not be brought to this version's form.
    #[error("cannot bring the store {path} up to date")]
    Migrate {
        /// Its file.
        path: String,
        /// Why not.
        source: sqlx::migrate::MigrateError,
    },
    /// A statement failed.
    #[error("store: cannot {doing}")]
    Statement {
        /// What it was for.
        doing: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// What was written together could not be kept.
    #[error("store: cannot keep what was written")]
    NotKept {
        /// Why not: the same for all who had a part in it.
        source: Arc<StoreError>,
    },
    /// It does not write any more: the controller ends.
    #[error("store: cannot {doing}: it is closed")]
    Closed {
        /// What was asked for.
        doing: &'static str,
    },
    /// A row was to name an object that is not known any more.
    #[error("store: there is no {kind} {sha256}")]
    NoObject {
        /// What it is.
        kind: &'static str,
        /// Its hash.
        sha256: String,
    },
    /// The agent's part in the key of a session has served for another one.
    #[error("the request has been answered with a task before: ask again with another session key")]
    UsedKey,
    /// It holds something that this program never writes.
    #[error("store: build {build} has a bad {column}: {value:?}")]
    Damaged {
        /// The build.
        build: i64,
        /// The column.
        column: &'static str,
        /// What is there.
        value: String,
    },
}

impl StoreError {
    /// Whether it passes when somebody makes room on the disk, or the database is there again: whoever asks
    /// later may get what he wants.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Statement { source, .. } => is_passing(source),
            // Its own part was good.
            Self::NotKept { .. } | Self::Closed { .. } => true,
            Self::Open { .. }
            | Self::Connect { .. }
            | Self::Old { .. }
            | Self::Migrate { .. }
            | Self::NoObject { .. }
            | Self::UsedKey
            | Self::Damaged { .. } => false,
        }
    }

    /// Whether somebody else had what was needed, so that others need not fail with it.
    #[must_use]
    pub(super) fn is_contended(&self) -> bool {
        let code = match self {
            Self::Statement { source, .. } => source.as_database_error().and_then(|e| e.code()),
            _ => None,
        };
        code.is_some_and(|code| code == "55P03" || (code.len() == 5 && code.starts_with("40")))
    }

    /// Whether it is that a database could not be reached that may be there soon.
    #[must_use]
    pub fn is_away(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if is_passing(source))
    }
}

/// Whether it says that a connection is there no more.
pub(super) fn is_lost(error: &sqlx::Error) -> bool {
    match error.as_database_error() {
        // The server ends, or has ended this connection.
        Some(e) => e.code().is_some_and(|code| {
            code.starts_with("08") || code.starts_with("57P") || code == "25P03"
        }),
        None => true,
    }
}

fn is_passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(e) => e.code().is_some_and(|code| is_passing_code(&code)),
        _ => false,
    }
}

/// SQLite's codes are numbers whose lowest byte is the kind; PostgreSQL's have five characters, of which the first two
/// are the class.
fn is_passing_code(code: &str) -> bool {
    if code.len() == 5 {
        // A lost connection, no room, taken back for the sake of another transaction.
        return matches!(code.get(..2), Some("08" | "53" | "40"))
            // The server ends, or begins; it only reads; it took too long, or what somebody else holds is not free.
            || matches!(code, "57P01" | "57P02" | "57P03" | "25006" | "57014" | "55P03" | "25P03");
    }
    let Ok(code) = code.parse::<u32>() else {
        return false;
    };
    // BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN, PROTOCOL.
    matches!(code & 0xff, 5 | 6 | 8 | 10 | 13 | 14 | 15)
}

/// Gives a statement's error the words for what it was for.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, StoreError>;
}

impl<T> Doing<T> for Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Statement { doing, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes() {
        for (code, expected) in [
            // FULL; IOERR_WRITE; BUSY_SNAPSHOT.
            ("13", true),
            ("778", true),
            ("517", true),
            // CONSTRAINT_UNIQUE; CORRUPT; no number.
            ("2067", false),
            ("11", false),
            ("x", false),
            // PostgreSQL: disk full; the server ends; a deadlock; took too long, waited too long; unique_violation.
            ("57014", true),
            ("55P03", true),
            ("53100", true),
            ("57P01", true),
            ("40P01", true),
            ("23505", false),
        ] {
            assert_eq!(is_passing_code(code), expected, "{code}");
        }
        let full = StoreError::Statement {
            doing: "write",
            source: sqlx::Error::Io(std::io::ErrorKind::StorageFull.into()),
        };
        assert!(full.is_passing());
        assert!(StoreError::Closed { doing: "write" }.is_passing());
    }
}
