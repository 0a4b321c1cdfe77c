//! What is done beside requests, once in a while: what is old is removed, objects that nothing names go, and what is from before
//! there were objects becomes some.

use std::time::{Duration, SystemTime};

use futures_util::StreamExt as _;

use crate::clock::Millis;
use crate::objects::log::pack;
use crate::objects::{Kind, Object, ObjectError, Objects};
use crate::source::archives::ArchiveError;
use crate::store::{Naming, OldLog, Store, StoreError};

/// An object that nothing names stays for so long: who has put it may be about to name it, who has found it too, and a back-up of
/// what named it is under way. Clocks of services differ from ours by less.
pub const GRACE: Duration = Duration::from_secs(24 * 3600);

/// So many rows are looked at, so many objects found, at once.
const AT_ONCE: i64 = 500;

/// What cannot be done now is tried again at the next time.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpkeepError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object store.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// Archives.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A log cannot be compressed, or a file not be removed.
    #[error("cannot look after files")]
    Io(#[from] std::io::Error),
}

/// Removes the objects that nothing has named for [`GRACE`], if they are this store's; how many. `now`: the controller's time, `wall`: that of the files.
///
/// # Errors
/// The stores cannot be used; what was removed is gone.
pub async fn sweep(
    store: &Store,
    objects: &Objects,
    now: Millis,
    wall: SystemTime,
) -> Result<usize, UpkeepError> {
    if !objects.belong_to(&store.identity().await?).await? {
        tracing::warn!(
            "the object store {} belongs to another store than {}: nothing is removed there (when that store is gone for good, remove the object store-id)",
            objects.name(),
            store.place()
        );
        return Ok(0);
    }
    let before = Millis(now.0.saturating_sub(Millis(0).plus(GRACE).0));
    let mut removed = forget_unnamed(store, objects, before).await?;
    let mut after = (String::new(), String::new());
    while let Some(last) = store.note_unnamed(&after, AT_ONCE, now).await? {
        after = last;
    }
    // What was put by somebody who then did not come to name it, or was replaced.
    let written = wall.checked_sub(GRACE).unwrap_or(SystemTime::UNIX_EPOCH);
    for kind in Kind::ALL {
        let limit = usize::try_from(AT_ONCE).unwrap_or(1);
        let mut places = std::pin::pin!(objects.written_before(kind, written, limit));
        while let Some(found) = places.next().await {
            let found = found?;
            let known = store.known_places(&found).await?;
            for place in found.iter().filter(|place| !known.contains(*place)) {
                objects.remove(place).await?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}

async fn forget_unnamed(
    store: &Store,
    objects: &Objects,
    before: Millis,
) -> Result<usize, UpkeepError> {
    let mut removed = 0;
    loop {
        let unnamed = store.unnamed_since(before, AT_ONCE).await?;
        if unnamed.is_empty() {
            return Ok(removed);
        }
        for object in unnamed {
            if store.forget_object(&object, before).await? {
                // Killed in between, it is found by its place at the next time.
                objects.remove(&object.place).await?;
                removed += 1;
            }
        }
    }
}

/// So many rows are written at once: whoever writes meanwhile waits for a few milliseconds.
const STEP: usize = 16;

/// Makes objects of the long logs that are in rows; how many.
///
/// # Errors
/// The stores cannot be used; what was moved stays so.
pub async fn move_logs(store: &Store, objects: &Objects) -> Result<usize, UpkeepError> {
    let mut moved = 0;
    let mut after = (0, 0, 0);
    loop {
        let found = store.old_logs(after, AT_ONCE).await?;
        let Some((last, _)) = found.last() else {
            return Ok(moved);
        };
        after = *last;
        let (short, long): (Vec<_>, Vec<_>) = found.into_iter().partition(|(_, short)| *short);
        let short: Vec<_> = short.into_iter().map(|(key, _)| key).collect();
        for some in short.chunks(STEP) {
            store.keep_short_logs(some.to_vec()).await?;
        }
        for (key, _) in long {
            while let Some(old) = store.old_log(key).await? {
                moved += usize::from(move_log(store, objects, old).await?);
            }
        }
    }
}

/// Makes an object of a log; whether it is one now.
async fn move_log(store: &Store, objects: &Objects, old: OldLog) -> Result<bool, UpkeepError> {
    let text = old.text.clone();
    let packed = tokio::task::spawn_blocking(move || pack(&text))
        .await
        .map_err(std::io::Error::other)
        .flatten()?;
    let known = store.whole_object(Kind::Log, &packed.sha256).await?;
    let (object, naming): (Object, Naming) = match known {
        Some(known) if objects.exists(&known).await? => (known, Naming::Shared),
        _ => (packed.put(objects).await?, Naming::Put),
    };
    match store.move_log(old, object, naming).await {
        // It was removed just now: it is put the next time round.
        Err(StoreError::NoObject { .. }) => Ok(false),
        moving => Ok(moving.map(|()| true)?),
    }
}
