//! What people have said about agents, and the keys that they have added.

use sha2::{Digest as _, Sha256};
use sqlx::Row as _;
use sqlx::any::AnyRow;

use super::tx::Sql;
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;

/// What people have said about an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Since when it gets no tasks, and why if that was said.
    pub drained: Option<(Millis, Option<String>)>,
    /// Since when it is let in without a key.
    pub approved: Option<Millis>,
}

/// A key that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedKey {
    /// Its fingerprint.
    pub fingerprint: String,
    /// The RSA public key, in PEM form.
    pub key: String,
    /// Whose it is, for people; may be empty.
    pub agent: String,
    /// Since when it is here.
    pub added: Millis,
}

/// Nothing is known of an agent about which nothing is said any more.
const TIDY: &str = "DELETE FROM agents WHERE name = $1 AND drained IS NULL AND approved IS NULL";

/// The number of PostgreSQL's lock of an agent: who hands a task to it holds it together with others, and who drains it holds it alone.
pub(super) fn lock(name: &str) -> i64 {
    let hash: [u8; 32] = Sha256::digest(name).into();
    let [a, b, c, d, e, f, g, h, ..] = hash;
    i64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// Requests by a key need not be signed, until one is again.
fn forget_signing(fingerprint: &str) -> Sql {
    Sql::new("DELETE FROM signing_keys WHERE fingerprint = $1").bind(fingerprint)
}

impl Store {
    /// Whether a person has drained an agent.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn is_drained(&self, agent: &str) -> Result<bool, StoreError> {
        let found: Option<i64> = sqlx::query_scalar(
            "SELECT drained FROM agents WHERE name = $1 AND drained IS NOT NULL",
        )
        .bind(agent.replace('\0', "\u{fffd}"))
        .fetch_optional(&self.pool)
        .await
        .doing("look whether an agent is drained")?;
        Ok(found.is_some())
    }

    /// What people have said about agents, by name.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn standings(&self) -> Result<Vec<Standing>, StoreError> {
        const DOING: &str = "read what is said about agents";
        let standing = |row: &AnyRow| {
            let time = |column| row.try_get::<Option<i64>, _>(column).doing(DOING);
            let because: Option<String> = row.try_get("drained_because").doing(DOING)?;
            Ok(Standing {
                name: row.try_get("name").doing(DOING)?,
                drained: time("drained")?.map(|since| (Millis(since), because)),
                approved: time("approved")?.map(Millis),
            })
        };
        sqlx::query("SELECT * FROM agents ORDER BY name")
            .fetch_all(&self.pool)
            .await
            .doing(DOING)?
            .iter()
            .map(standing)
            .collect()
    }

    /// Keys that were added, the oldest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn added_keys(&self) -> Result<Vec<AddedKey>, StoreError> {
        const DOING: &str = "read agents' keys";
        let key = |row: &AnyRow| {
            Ok(AddedKey {
                fingerprint: row.try_get("fingerprint").doing(DOING)?,
                key: row.try_get("key").doing(DOING)?,
                agent: row.try_get("agent").doing(DOING)?,
                added: Millis(row.try_get("added").doing(DOING)?),
            })
        };
        sqlx::query("SELECT * FROM agent_keys ORDER BY added, fingerprint")
            .fetch_all(&self.pool)
            .await
            .doing(DOING)?
            .iter()
            .map(key)
            .collect()
    }

    /// An agent gets no tasks from now on: none is handed out to it after this. Once more changes the reason alone.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn drain_agent(
        &self,
        name: &str,
        reason: Option<&str>,
        now: Millis,
    ) -> Result<(), StoreError> {
        let sql = Sql::new(
            "INSERT INTO agents (name, drained, drained_because) VALUES ($1, $2, $3) ON CONFLICT (name) DO UPDATE SET \
             drained = COALESCE(agents.drained, excluded.drained), drained_because = excluded.drained_because",
        );
        let sql = sql.bind(name).bind(now).bind(reason);
        let mut all = vec![sql];
        // Who hands tasks to it at this moment comes first: it has all of its tasks by then, or gets none.
        if self.is_shared() {
            let hold = "SELECT COUNT(pg_advisory_xact_lock($1)) AS held";
            all.insert(0, Sql::new(hold).bind(lock(name)));
        }
        self.say("drain an agent", all).await
    }

    /// An agent gets tasks again.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn resume_agent(&self, name: &str) -> Result<(), StoreError> {
        let sql = "UPDATE agents SET drained = NULL, drained_because = NULL WHERE name = $1";
        let all = vec![Sql::new(sql).bind(name), Sql::new(TIDY).bind(name)];
        self.say("have an agent take tasks again", all).await
    }

    /// An agent is let in without a key, by its name.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn approve_agent(&self, name: &str, now: Millis) -> Result<(), StoreError> {
        let sql = Sql::new(
            "INSERT INTO agents (name, approved) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET \
             approved = COALESCE(agents.approved, excluded.approved)",
        );
        let sql = sql.bind(name).bind(now);
        self.say("let an agent in", vec![sql]).await
    }

    /// Adds a key; one that is there already stays as it is. That its requests were signed is forgotten: a person says that it is
    /// let in as it comes.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn add_key(&self, key: &AddedKey) -> Result<(), StoreError> {
        let sql = Sql::new(
            "INSERT INTO agent_keys (fingerprint, key, agent, added) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (fingerprint) DO NOTHING",
        );
        let sql = sql
            .bind(key.fingerprint.as_str())
            .bind(key.key.as_str())
            .bind(key.agent.as_str())
            .bind(key.added);
        let all = vec![sql, forget_signing(&key.fingerprint)];
        self.say("add an agent's key", all).await
    }

    /// Whether requests by the key of this fingerprint were signed once.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn key_signs(&self, fingerprint: &str) -> Result<bool, StoreError> {
        let found = sqlx::query("SELECT 1 AS signs FROM signing_keys WHERE fingerprint = $1")
            .bind(fingerprint.replace('\0', "\u{fffd}"))
            .fetch_optional(&self.pool)
            .await
            .doing("read whether a key signs")?;
        Ok(found.is_some())
    }

    /// Requests by the key of this fingerprint are signed, and have to be from now on.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn remember_signing(&self, fingerprint: &str, now: Millis) -> Result<(), StoreError> {
        let sql = Sql::new(
            "INSERT INTO signing_keys (fingerprint, since) VALUES ($1, $2) ON CONFLICT (fingerprint) DO NOTHING",
        );
        let sql = sql.bind(fingerprint).bind(now);
        self.say("remember that a key signs", vec![sql]).await
    }

    /// Removes what was added or said so that an agent is let in: keys by their fingerprints, an approval by the agent's name.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn shut_out(&self, keys: &[String], agent: &str) -> Result<(), StoreError> {
        let key = |fingerprint: &String| {
            Sql::new("DELETE FROM agent_keys WHERE fingerprint = $1").bind(fingerprint.as_str())
        };
        let mut all: Vec<Sql> = keys.iter().map(key).collect();
        all.extend(keys.iter().map(|fingerprint| forget_signing(fingerprint)));
        all.extend([
            Sql::new("UPDATE agents SET approved = NULL WHERE name = $1").bind(agent),
            Sql::new(TIDY).bind(agent),
        ]);
        self.say("shut an agent out", all).await
    }

    async fn say(&self, doing: &'static str, all: Vec<Sql>) -> Result<(), StoreError> {
        self.write(doing, move |tx| {
            Box::pin(async move {
                for sql in all {
                    tx.run(sql).await?;
                }
                Ok(())
            })
        })
        .await
    }
}
