//! What is said at a controller about its agents: `bbot agent list`, `drain NAME`, `approve`, `refuse`.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::builds::local_time;
use crate::{
    api::{Api, ControllerOptions, agents::Agents},
    home::Home,
    table::Table,
};

/// List the agents of a controller, and those that wait to be let in.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerOptions,
}

/// Let an agent in that waits at a controller (its --approve-agents).
#[derive(Debug, Args)]
pub(crate) struct Approve {
    /// Its name, as `bbot agent list` shows it
    name: String,
    /// Its fingerprint, where several claim the name; compare it with `bbot fingerprint` on its host
    #[arg(long, value_name = "HEX")]
    fingerprint: Option<String>,
    /// Its public key, in PEM form, where it does not show it itself
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    #[command(flatten)]
    controller: ControllerOptions,
}

/// Let an agent in no more that was approved.
#[derive(Debug, Args)]
pub(crate) struct Refuse {
    /// Its name
    name: String,
    #[command(flatten)]
    controller: ControllerOptions,
}

pub(crate) async fn list(options: &List, home: &Home) -> Result<()> {
    let agents = Api::new(&options.controller, home)?.agents().await?;
    if options.json {
        println!("{}", serde_json::to_string_pretty(&agents)?);
        return Ok(());
    }
    print(&agents)
}

fn print(agents: &Agents) -> Result<()> {
    let mut table = Table::new(&["agent", "state", "builds", "heard of", "notes"]);
    for agent in &agents.agents {
        let mut notes = Vec::new();
        if let Some(drained) = &agent.drained {
            let why = drained.reason.as_deref().unwrap_or_default();
            let by = format!("drained at the {}", drained.by);
            notes.push(format!("{by} {why}").trim_end().to_string());
        }
        if let Some(ahead) = agent.clock_ahead {
            let side = if ahead < 0 { "behind" } else { "ahead" };
            notes.push(format!("its clock is {} s {side}", ahead.unsigned_abs()));
        }
        table.row([
            agent.name.clone(),
            agent.state.clone(),
            agent.builds.len().to_string(),
            agent
                .last_seen
                .as_deref()
                .map(local_time)
                .unwrap_or_default(),
            notes.join("; "),
        ]);
    }
    table.print()?;
    if !agents.pending.is_empty() {
        println!("\nwaiting to be let in");
        let mut table = Table::new(&["agent", "fingerprint", "address", "machines"]);
        for pending in &agents.pending {
            let key = pending.fingerprint.clone();
            table.row([
                pending.name.clone(),
                key.unwrap_or_else(|| "no key".to_string()),
                pending.address.clone().unwrap_or_default(),
                pending.machines.join(" "),
            ]);
        }
        table.print()?;
    }
    Ok(())
}

/// Has a controller hand an agent no more tasks, or hand them out again.
pub(crate) async fn drain(
    name: &str,
    resume: bool,
    reason: Option<&str>,
    controller: &ControllerOptions,
    home: &Home,
) -> Result<()> {
    let api = Api::new(controller, home)?;
    if resume {
        api.agent(name, "resume", &json!({})).await?;
        eprintln!("agent {name} gets tasks again");
    } else {
        api.agent(name, "drain", &json!({ "reason": reason }))
            .await?;
        eprintln!("agent {name} gets no more tasks; `bbot agent drain {name} --resume` ends that");
    }
    Ok(())
}

pub(crate) async fn approve(options: &Approve, home: &Home) -> Result<()> {
    let key = options.key.as_ref().map(|file| {
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
    });
    let body = json!({ "fingerprint": options.fingerprint, "key": key.transpose()? });
    let api = Api::new(&options.controller, home)?;
    api.agent(&options.name, "approve", &body).await?;
    eprintln!("agent {} is let in", options.name);
    Ok(())
}

pub(crate) async fn refuse(options: &Refuse, home: &Home) -> Result<()> {
    let api = Api::new(&options.controller, home)?;
    api.agent(&options.name, "refuse", &json!({})).await?;
    eprintln!("agent {} is let in no more", options.name);
    Ok(())
}
