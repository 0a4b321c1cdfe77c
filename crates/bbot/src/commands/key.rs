//! `bbot keygen` and `bbot fingerprint`: an agent's key.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};
use bbot_agent::auth;
use clap::Args;

use super::Exit;

/// Make an agent's private key.
///
/// The file is readable for its owner alone; one that is there already is left alone. Prints the
/// fingerprint. A controller knows an agent by its public key, a .pem file in the folder of agents'
/// keys.
#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// The file to make
    key: PathBuf,
    /// The size of the key
    #[arg(long, default_value_t = 2048, value_parser = clap::value_parser!(u16).range(2048..=4096))]
    bits: u16,
    /// Write the public key to this file too
    #[arg(long, value_name = "FILE")]
    public: Option<PathBuf>,
}

pub(crate) fn keygen(options: &Keygen) -> Result<Exit> {
    let fingerprint = auth::keygen_file(&options.key, usize::from(options.bits))?;
    if let Some(public) = &options.public {
        fs::write(public, auth::public_key(&options.key)?)
            .with_context(|| format!("cannot write {}", public.display()))?;
    }
    println!("{fingerprint}");
    Ok(Exit::Done)
}

/// Print the fingerprint of an agent's private key: the SHA-256 of its public key.
#[derive(Debug, Args)]
pub(crate) struct Fingerprint {
    /// The private key's file (PEM)
    key: PathBuf,
}

pub(crate) fn fingerprint(options: &Fingerprint) -> Result<Exit> {
    println!("{}", auth::fingerprint(&options.key)?);
    Ok(Exit::Done)
}
