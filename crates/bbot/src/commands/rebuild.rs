//! `bbot rebuild`: has the controller build something once more.

use anyhow::Result;
use clap::Args;

use super::Exit;
use crate::{
    api::{Api, ControllerOptions},
    home::Home,
};

/// Build once more, whatever the last result was.
#[derive(Debug, Args)]
pub(crate) struct Rebuild {
    /// The build's id, as `bbot builds` lists it
    id: String,
    /// Why, for the record
    #[arg(long, short, value_name = "TEXT")]
    reason: Option<String>,
    #[command(flatten)]
    controller: ControllerOptions,
}

pub(crate) async fn run(options: Rebuild, home: &Home) -> Result<Exit> {
    let api = Api::new(&options.controller, home)?;
    let build = api.rebuild(&options.id, options.reason.as_deref()).await?;
    eprintln!(
        "build {} of {}/{} for {} is {}",
        build.id, build.package, build.version, build.configuration, build.state
    );
    Ok(Exit::Done)
}
