//! The long logs of a result become objects before the result is kept, so that it is acknowledged only when all of it is durable.

use std::collections::HashMap;
use std::sync::Arc;

use bbot_manifest::OperationResult;

use super::App;
use super::problem::Problem;
use crate::objects::log::{INLINE, ends, pack};
use crate::objects::{Kind, Object};
use crate::store::{Naming, NewLog, NewOperation};

/// Whether a log that is an object already is put once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Share {
    /// What is there is named.
    Yes,
    /// It was removed just when it was to be named.
    No,
}

/// Whether the log is too long for its row.
pub(super) fn is_long(log: &str) -> bool {
    log.len() > INLINE
}

/// Operations as they are kept, with all their logs in rows.
pub(super) fn in_rows(operations: &[OperationResult]) -> Vec<NewOperation> {
    let in_row = |o: &OperationResult| NewOperation {
        name: o.name.clone(),
        status: o.status,
        log: NewLog::Whole(o.log.clone()),
    };
    operations.iter().map(in_row).collect()
}

/// Operations as they are kept, with those of their logs that are long as objects, which are durable then.
pub(super) async fn as_objects(
    app: &App,
    operations: &Arc<[OperationResult]>,
    share: Share,
) -> Result<Vec<NewOperation>, Problem> {
    let mut kept = Vec::with_capacity(operations.len());
    // What this result has put already is not in the store yet.
    let mut put_now = HashMap::new();
    for (index, operation) in operations.iter().enumerate() {
        kept.push(NewOperation {
            name: operation.name.clone(),
            status: operation.status,
            log: if is_long(&operation.log) {
                let (object, naming) = put(app, operations, index, share, &mut put_now).await?;
                let (head, tail) = ends(&operation.log);
                NewLog::Kept {
                    object,
                    naming,
                    head: head.to_owned(),
                    tail: tail.to_owned(),
                }
            } else {
                NewLog::Whole(operation.log.clone())
            },
        });
    }
    Ok(kept)
}

async fn put(
    app: &App,
    operations: &Arc<[OperationResult]>,
    index: usize,
    share: Share,
    put_now: &mut HashMap<String, Object>,
) -> Result<(Object, Naming), Problem> {
    let operations = Arc::clone(operations);
    // Megabytes of text: not where other requests wait for their turn.
    let packed = tokio::task::spawn_blocking(move || pack(&operations[index].log))
        .await
        .map_err(|e| Problem::internal("pack a log", &e))?
        .map_err(|e| Problem::internal("pack a log", &e))?;
    if let Some(object) = put_now.get(&packed.sha256) {
        return Ok((object.clone(), Naming::Put));
    }
    if share == Share::Yes
        && let Some(known) = app.store.whole_object(Kind::Log, &packed.sha256).await?
        && app.objects.exists(&known).await?
    {
        return Ok((known, Naming::Shared));
    }
    let object = packed.put(&app.objects).await?;
    put_now.insert(object.sha256.clone(), object.clone());
    Ok((object, Naming::Put))
}
