//! What people say about agents: who is drained, who is let in.

use std::sync::Arc;

use axum::http::StatusCode;

use super::problem::Problem;
use super::{App, to_the_end};
use crate::auth;
use crate::store::{AddedKey, StoreError};

/// Longest name of an agent, in bytes: more than a host's name has.
const NAME: usize = 255;

fn check_name(name: &str) -> Result<(), Problem> {
    let is_one = !name.is_empty() && name.len() <= NAME && !name.contains(char::is_control);
    is_one.then_some(()).ok_or_else(|| {
        Problem::bad(format!(
            "an agent's name has 1 to {NAME} bytes and no control characters"
        ))
    })
}

/// Keeps what is said, and tells all whom it concerns.
async fn say<F>(app: &Arc<App>, keep: impl FnOnce(Arc<App>) -> F) -> Result<(), Problem>
where
    F: Future<Output = Result<(), StoreError>> + Send + 'static,
{
    let kept = keep(Arc::clone(app));
    let app = Arc::clone(app);
    let said = to_the_end(async move {
        kept.await?;
        // Whoever has said it sees what each has by then.
        app.building.forget();
        app.said().await
    });
    Ok(said.await??)
}

/// An agent gets no tasks from now on. One that was never heard of may be drained ahead.
pub(super) async fn drain(app: &Arc<App>, name: &str, reason: Option<&str>) -> Result<(), Problem> {
    check_name(name)?;
    let (agent, reason) = (name.to_owned(), reason.map(str::to_owned));
    say(app, async move |app: Arc<App>| {
        let drained = app.store.drain_agent(&agent, reason.as_deref(), app.now());
        drained.await
    })
    .await?;
    tracing::info!("agent {name} is drained: it gets no tasks");
    Ok(())
}

/// An agent gets tasks again.
pub(super) async fn resume(app: &Arc<App>, name: &str) -> Result<(), Problem> {
    check_name(name)?;
    let agent = name.to_owned();
    say(app, async move |app: Arc<App>| {
        app.store.resume_agent(&agent).await
    })
    .await?;
    tracing::info!("agent {name} gets tasks again");
    Ok(())
}

/// An agent is let in. Where several claim its name, `fingerprint` says which; `key` is given where it is not known.
pub(super) async fn approve(
    app: &Arc<App>,
    name: &str,
    fingerprint: Option<&str>,
    key: Option<&str>,
) -> Result<(), Problem> {
    check_name(name)?;
    if !app.has_door() {
        return Err(conflict(
            "any agent gets tasks here: start the controller with --approve-agents or --agent-keys to have it otherwise",
        ));
    }
    let key = match key {
        Some(key) => Some(given_key(key, fingerprint)?),
        None => waiting_key(app, name, fingerprint)?,
    };
    let agent = name.to_owned();
    match key {
        Some((fingerprint, key)) => {
            let added = AddedKey {
                fingerprint: fingerprint.clone(),
                key,
                agent,
                added: app.now(),
            };
            say(app, async move |app: Arc<App>| {
                app.store.add_key(&added).await
            })
            .await?;
            app.pending.done(name, Some(&fingerprint));
            tracing::info!(fingerprint, "agent {name} is let in by its key");
        }
        None if app.wants_keys() => {
            return Err(conflict(
                "this controller wants agents with a key (--agent-keys): give the key",
            ));
        }
        None => {
            say(app, async move |app: Arc<App>| {
                app.store.approve_agent(&agent, app.now()).await
            })
            .await?;
            app.pending.done(name, None);
            tracing::info!("agent {name} is let in by its name: it has no key");
        }
    }
    Ok(())
}

fn conflict(sentence: impl Into<String>) -> Problem {
    Problem::new(StatusCode::CONFLICT, sentence)
}

/// A key that a person gives, with its fingerprint, and as text that holds nothing else.
fn given_key(key: &str, fingerprint: Option<&str>) -> Result<(String, String), Problem> {
    let read = auth::public_key(key).map_err(|e| Problem::bad(format!("the key: {e}")))?;
    let of_it = auth::fingerprint(&read);
    if fingerprint.is_some_and(|f| f != of_it) {
        return Err(Problem::bad(format!("the key's fingerprint is {of_it}")));
    }
    Ok((of_it, key.trim().to_owned()))
}

/// The key of the one that waits under this name; `None` when it has none.
fn waiting_key(
    app: &App,
    name: &str,
    fingerprint: Option<&str>,
) -> Result<Option<(String, String)>, Problem> {
    let mut waiting = app.pending.of(name);
    if let Some(fingerprint) = fingerprint {
        waiting.retain(|p| p.fingerprint.as_deref() == Some(fingerprint));
    }
    let one = match &waiting[..] {
        [] => {
            return Err(Problem::not_found(match fingerprint {
                Some(f) => format!("agent {name} with the key {f} that waits to be let in"),
                None => format!("agent {name} that waits to be let in"),
            }));
        }
        [one] => one,
        _ => {
            return Err(conflict(format!(
                "{} agents claim the name {name}: say which by its fingerprint",
                waiting.len()
            )));
        }
    };
    match (&one.fingerprint, &one.key) {
        (None, _) => Ok(None),
        (Some(fingerprint), Some(key)) => Ok(Some((fingerprint.clone(), key.clone()))),
        (Some(fingerprint), None) => Err(conflict(format!(
            "agent {name} says only the fingerprint of its key, {fingerprint}: give the key, too"
        ))),
    }
}

/// An agent is let in no more, as far as that was said here: a key in a file is removed with the file.
pub(super) async fn refuse(app: &Arc<App>, name: &str) -> Result<(), Problem> {
    check_name(name)?;
    let said = app.crew.said();
    let keys: Vec<String> = said
        .keys()
        .filter(|k| k.agent == name)
        .map(|k| k.fingerprint.clone())
        .collect();
    if keys.is_empty() && !said.is_approved(name) {
        return Err(Problem::not_found(format_args!(
            "agent {name} that was let in"
        )));
    }
    let agent = name.to_owned();
    say(app, async move |app: Arc<App>| {
        app.store.shut_out(&keys, &agent).await
    })
    .await?;
    tracing::info!("agent {name} is let in no more");
    Ok(())
}
