//! Builds the worker as it goes into machines: static, since a guest's libraries are unknown, and small.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use crate::workspace;

/// The worker has to be smaller than this, in bytes: every machine fetches it, block by block.
const LARGEST: u64 = 3_000_000;

/// Builds the worker, checks it, prints its path on standard output.
pub(crate) fn run() -> anyhow::Result<()> {
    let workspace = workspace::root()?;
    let triple = workspace::host_triple()?;
    // With --target the flag is for the worker alone; without, programs of the build itself could not be linked.
    let flags = workspace::flags_variable(&triple);
    let status = Command::new(workspace::cargo())
        .args([
            "build",
            "--profile",
            "worker",
            "-p",
            "bbot-worker",
            "--target",
            &triple,
        ])
        .current_dir(workspace)
        .env(flags, "-C target-feature=+crt-static")
        // It would take the place of the target's own flags.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the worker does not build ({status})");

    let worker = built(&triple)?;
    check(&worker)?;
    println!("{}", worker.display());
    Ok(())
}

/// The worker that is used where one is needed: `BBOT_WORKER`, else where it is built.
pub(crate) fn path() -> anyhow::Result<PathBuf> {
    match std::env::var_os("BBOT_WORKER") {
        Some(path) => Ok(path.into()),
        None => built(&workspace::host_triple()?),
    }
}

fn built(triple: &str) -> anyhow::Result<PathBuf> {
    Ok(workspace::target()?.join(triple).join("worker/bbot-worker"))
}

fn check(worker: &Path) -> anyhow::Result<()> {
    let program = fs::read(worker).with_context(|| format!("cannot read {}", worker.display()))?;
    let size = program.len() as u64;
    ensure!(
        size < LARGEST,
        "{} has {size} bytes; at most {LARGEST} are allowed",
        worker.display()
    );
    match needs_interpreter(&program) {
        Some(false) => Ok(()),
        Some(true) => bail!(
            "{} is not static: it asks for a dynamic linker",
            worker.display()
        ),
        None => bail!("{} is not a 64-bit ELF program", worker.display()),
    }
}

/// Whether a 64-bit little-endian ELF program has a program header `PT_INTERP` (ELF specification); `None` when it is
/// no such program.
fn needs_interpreter(program: &[u8]) -> Option<bool> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| {
        let bytes = program.get(at..at.checked_add(size)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |number, byte| number << 8 | u64::from(*byte)),
        )
    };
    if !program.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
    for index in 0..count {
        let header = usize::try_from(table.checked_add(index * size)?).ok()?;
        if number(header, 4)? == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_others() {
        // This test is one itself.
        let me = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert_eq!(needs_interpreter(&me), Some(true));
        assert_eq!(needs_interpreter(b"#!/bin/sh\n"), None);
        assert_eq!(needs_interpreter(b"\x7fELF\x02\x01"), None);
    }
}
