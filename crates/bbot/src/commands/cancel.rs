//! `bbot cancel`: has the controller take builds out of its queue, and their agents stop.

use anyhow::Result;
use clap::Args;

use super::Exit;
use crate::{
    api::{Api, Build, ControllerOptions},
    home::Home,
};

/// Cancel builds that wait or run.
#[derive(Debug, Args)]
#[command(
    after_help = "What waits leaves the queue; the agent of what runs stops its machine at once. `bbot rebuild` queues a build \
        that was cancelled. To cancel once more is no error; what is built cannot be cancelled."
)]
pub(crate) struct Cancel {
    /// The builds' ids, as `bbot builds` lists them
    #[arg(value_name = "BUILD", required_unless_present = "submission")]
    ids: Vec<String>,
    /// All builds of this submission that are not done
    #[arg(long, short, value_name = "ID", conflicts_with = "ids")]
    submission: Option<String>,
    /// Why, for the record
    #[arg(long, short, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    controller: ControllerOptions,
}

pub(crate) async fn run(options: Cancel, home: &Home) -> Result<Exit> {
    let api = Api::new(&options.controller, home)?;
    let reason = options.reason.as_deref();
    if let Some(id) = &options.submission {
        let submission = api.cancel_submission(id, reason).await?;
        let cancelled = |build: &&Build| submission.cancelled.contains(&build.id);
        submission.builds.iter().filter(cancelled).for_each(say);
        if submission.cancelled.is_empty() {
            eprintln!("no build of submission {id} waits or runs");
        }
        return Ok(Exit::Done);
    }
    let mut exit = Exit::Done;
    for id in &options.ids {
        match api.cancel(id, reason).await {
            Ok(build) => say(&build),
            // The others are to be cancelled all the same.
            Err(error) => {
                eprintln!("bbot: error: {error:#}");
                exit = Exit::Failed;
            }
        }
    }
    Ok(exit)
}

fn say(build: &Build) {
    eprintln!(
        "build {} of {}/{} for {} is {}",
        build.id, build.package, build.version, build.configuration, build.state
    );
}
