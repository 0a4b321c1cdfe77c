//! An agent that a person has told to take no tasks: it is remembered over a restart, and controllers of ours are told, which
//! then show it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use super::{Agent, Context, ask};
use crate::controller::{Kin, Manner, RequestKey, Url, parse_url};
use crate::supervisor;

/// How often controllers are told: they show an agent as silent after two and a half minutes.
const EVERY: Duration = Duration::from_secs(60);

/// What says so on disk.
fn file(context: &Context) -> PathBuf {
    let options = &context.host.options;
    options
        .state_dir()
        .join(&options.toolchain_name)
        .join("drained")
}

fn keep(path: &Path, is_drained: bool) -> std::io::Result<()> {
    if is_drained {
        path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        std::fs::File::create(path)?.sync_all()
    } else {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Agent {
    /// Whether a person had drained the agent before it was started.
    pub(super) fn was_drained(&self) -> bool {
        file(&self.context).exists()
    }

    /// Remembers whether a person has drained the agent, and tells its controllers as long as that is so.
    pub(super) fn remember_drained(&mut self) {
        let is_drained = self.steering.drained.is_some();
        let path = file(&self.context);
        if let Err(e) = keep(&path, is_drained) {
            tracing::error!(
                "a restart will not know whether it is to take tasks: {}: {e}",
                path.display()
            );
        }
        self.steering.telling.abort_all();
        if is_drained {
            let controllers = self.supervisor.view().controllers;
            let ours = controllers
                .iter()
                .filter(|c| c.kin != supervisor::Kin::Stranger)
                .filter_map(|c| parse_url(&c.url).ok())
                .collect();
            let telling = tell(self.context.clone(), ours);
            self.steering.telling.spawn(telling);
        }
    }
}

/// Tells controllers of ours, by requests that offer no machine. One that turns out to be a stranger's is left alone.
async fn tell(context: Context, mut controllers: Vec<Url>) {
    loop {
        let mut ours = Vec::new();
        for url in controllers {
            let signer = context.keys.of(&url).cloned();
            let Ok(body) = ask::request(&context, signer.as_deref(), &[]) else {
                return;
            };
            let manner = Manner {
                is_drained: true,
                key: signer.map(|s| s as Arc<dyn RequestKey>),
                ..Manner::default()
            };
            let answer = context.link.request_task(&url, body, manner).await;
            // One that does not answer is told another time.
            if answer.map_or(true, |answer| answer.kin == Kin::Ours) {
                ours.push(url);
            }
        }
        controllers = ours;
        sleep(EVERY).await;
    }
}
