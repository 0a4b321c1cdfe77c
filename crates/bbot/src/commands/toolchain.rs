//! `bbot toolchain`: what machines are bootstrapped with.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use bbot_agent::toolchain;
use clap::{Args, Subcommand};

use super::Exit;
use crate::{PLACES, home::Home, table::Table};

/// The script of bootstrap protocol 1 that comes with bbot.
const BOOTSTRAP: &str = include_str!("../../../../toolchain/bootstrap");

/// The name of the toolchain that `bbot build` and `bbot up` use.
pub(crate) const DEFAULT: &str = "default";

/// Manage toolchains: what a machine is bootstrapped with.
#[derive(Debug, Subcommand)]
pub(crate) enum Toolchain {
    List(List),
    Add(Add),
    Id(Id),
    Remove(Remove),
}

/// List toolchains.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    tftp: TftpRoot,
}

/// Add a toolchain, or switch its name to other contents; machines are then bootstrapped again.
#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The toolchain's name
    #[arg(default_value = DEFAULT)]
    name: String,
    /// The folder with its files, `bootstrap` among them [default: the worker and the script that
    /// come with this bbot]
    folder: Option<PathBuf>,
    /// The static worker to add without a FOLDER, when it is not the one beside this program
    #[arg(
        long,
        env = "BBOT_WORKER",
        value_name = "FILE",
        help_heading = PLACES
    )]
    worker: Option<PathBuf>,
    #[command(flatten)]
    tftp: TftpRoot,
}

/// Print a toolchain's id: the checksum of its contents.
#[derive(Debug, Args)]
pub(crate) struct Id {
    /// The name of a toolchain, or a folder
    #[arg(default_value = DEFAULT)]
    toolchain: String,
    #[command(flatten)]
    tftp: TftpRoot,
}

/// Remove a toolchain; machines that were bootstrapped with it stay until their agent cleans up.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The toolchain's name
    name: String,
    #[command(flatten)]
    tftp: TftpRoot,
}

/// Where toolchains are kept.
#[derive(Debug, Args)]
pub(crate) struct TftpRoot {
    /// The agent's TFTP folder; toolchains are below it [default: tftp in --home]
    #[arg(long, value_name = "DIR", help_heading = PLACES)]
    tftp: Option<PathBuf>,
}

impl TftpRoot {
    fn path(&self, home: &Home) -> PathBuf {
        self.tftp.clone().unwrap_or_else(|| home.tftp())
    }
}

pub(crate) fn run(command: Toolchain, home: &Home) -> Result<Exit> {
    match command {
        Toolchain::List(options) => list(&options, home),
        Toolchain::Add(options) => {
            let tftp = options.tftp.path(home);
            let id = match &options.folder {
                Some(folder) => toolchain::add(&tftp, &options.name, folder)?,
                None => add_own(&tftp, &options.name, options.worker.as_deref())?,
            };
            println!("{id}");
            Ok(Exit::Done)
        }
        Toolchain::Id(options) => {
            let path = Path::new(&options.toolchain);
            let id = if path.is_dir() {
                toolchain::id(path)?
            } else {
                let known = toolchain::resolve(&options.tftp.path(home), &options.toolchain)?;
                match known.id {
                    Some(id) => id,
                    None => toolchain::id(&known.path)?,
                }
            };
            println!("{id}");
            Ok(Exit::Done)
        }
        Toolchain::Remove(options) => {
            toolchain::remove(&options.tftp.path(home), &options.name)?;
            eprintln!("toolchain {} is removed", options.name);
            Ok(Exit::Done)
        }
    }
}

fn list(options: &List, home: &Home) -> Result<Exit> {
    let tftp = options.tftp.path(home);
    let toolchains = toolchain::list(&tftp)?;
    if options.json {
        let list: Vec<_> = toolchains
            .iter()
            .map(|t| serde_json::json!({ "name": t.name, "id": t.id, "path": t.path }))
            .collect();
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(Exit::Done);
    }
    if toolchains.is_empty() {
        eprintln!(
            "no toolchains below {}: add one with `bbot toolchain add`",
            tftp.display()
        );
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&["name", "id", "folder"]);
    for toolchain in toolchains {
        let id = toolchain
            .id
            .map_or_else(|| "(not managed)".to_string(), |id| id[..12].to_string());
        table.row([toolchain.name, id, toolchain.path.display().to_string()]);
    }
    table.print()?;
    Ok(Exit::Done)
}

/// Makes sure that the toolchain `name` is the one that comes with this bbot; returns its id.
pub(crate) fn add_own(tftp: &Path, name: &str, worker: Option<&Path>) -> Result<String> {
    let worker = match worker {
        Some(worker) if !is_static(worker)? => bail!(
            "{} is not a static program, and a machine has none of this host's libraries: build one with `cargo xtask worker`",
            worker.display()
        ),
        Some(worker) => worker.to_path_buf(),
        None => own_worker()?,
    };
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    let copy = folder.path().join("bbot-worker");
    fs::copy(&worker, &copy)
        .with_context(|| format!("cannot copy the worker {}", worker.display()))?;
    let script = folder.path().join("bootstrap");
    fs::write(&script, BOOTSTRAP).context("cannot write a temporary file")?;
    for file in [&copy, &script] {
        fs::set_permissions(file, fs::Permissions::from_mode(0o755))
            .context("cannot change a temporary file")?;
    }
    Ok(toolchain::add(tftp, name, folder.path())?)
}

/// The static worker that was installed with this program: beside it, or in `../lib/bbot`.
fn own_worker() -> Result<PathBuf> {
    let program = env::current_exe().context("cannot tell where this program is")?;
    let beside = program.with_file_name("bbot-worker");
    let library = program
        .parent()
        .and_then(Path::parent)
        .map(|p| p.join("lib/bbot/bbot-worker"));
    for candidate in [Some(beside.clone()), library].into_iter().flatten() {
        if candidate.is_file() && is_static(&candidate)? {
            return Ok(candidate);
        }
    }
    bail!(
        "there is no static bbot-worker beside {}: build one with `cargo xtask worker` and name it with --worker or BBOT_WORKER",
        program.display()
    )
}

/// Has this ELF program no interpreter? A guest has none of the host's libraries.
fn is_static(program: &Path) -> Result<bool> {
    let bytes = fs::read(program)
        .with_context(|| format!("cannot read the worker {}", program.display()))?;
    Ok(is_static_elf(&bytes))
}

/// True for a 64-bit little-endian ELF file without a `PT_INTERP` segment.
fn is_static_elf(bytes: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let u16_at = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let parse = || -> Option<bool> {
        if bytes.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let table =
            usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
        let (size, count) = (usize::from(u16_at(54)?), usize::from(u16_at(56)?));
        for index in 0..count {
            let at = table.checked_add(index.checked_mul(size)?)?;
            let kind = u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?);
            if kind == PT_INTERP {
                return Some(false);
            }
        }
        Some(true)
    };
    parse().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_and_a_text_are_no_static_programs() {
        let own = fs::read(env::current_exe().unwrap()).unwrap();
        assert!(!is_static_elf(&own), "tests are linked dynamically");
        assert!(!is_static_elf(b"#!/bin/sh\n"));
        assert!(!is_static_elf(b"\x7fELF\x02\x01"));
    }
}
