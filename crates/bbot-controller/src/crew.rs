//! What people have said about agents, as it is in the store: who is drained, who is let in. In memory, so that a request for a
//! task does not ask the store; read anew when something was said, here or at another controller.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use rsa::RsaPublicKey;

use crate::auth;
use crate::store::{AddedKey, Standing, Store, StoreError};

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Crew(RwLock<Arc<Said>>);

/// What was said, as one whole.
#[derive(Debug, Default)]
pub(crate) struct Said {
    standings: HashMap<String, Standing>,
    keys: HashMap<String, (AddedKey, RsaPublicKey)>,
}

impl Said {
    /// What was said about an agent.
    pub(crate) fn of(&self, agent: &str) -> Option<&Standing> {
        self.standings.get(agent)
    }

    /// Whether an agent gets no tasks for now.
    pub(crate) fn is_drained(&self, agent: &str) -> bool {
        self.of(agent).is_some_and(|said| said.drained.is_some())
    }

    /// Whether an agent is let in without a key.
    pub(crate) fn is_approved(&self, agent: &str) -> bool {
        self.of(agent).is_some_and(|said| said.approved.is_some())
    }

    /// The key of this fingerprint that was added.
    pub(crate) fn key(&self, fingerprint: &str) -> Option<&RsaPublicKey> {
        self.keys.get(fingerprint).map(|(_, key)| key)
    }

    /// About whom something was said.
    pub(crate) fn standings(&self) -> impl Iterator<Item = &Standing> {
        self.standings.values()
    }

    /// Keys that were added.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &AddedKey> {
        self.keys.values().map(|(added, _)| added)
    }
}

impl Crew {
    /// What was said, as it is now.
    pub(crate) fn said(&self) -> Arc<Said> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads it anew.
    pub(crate) async fn read(&self, store: &Store) -> Result<(), StoreError> {
        let standings = store.standings().await?;
        let keys = store.added_keys().await?;
        let read = Said {
            standings: standings.into_iter().map(|s| (s.name.clone(), s)).collect(),
            keys: keys
                .into_iter()
                .filter_map(|added| {
                    // It was looked at when it was added.
                    let key = auth::public_key(&added.key).ok()?;
                    Some((added.fingerprint.clone(), (added, key)))
                })
                .collect(),
        };
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(read);
        Ok(())
    }
}
