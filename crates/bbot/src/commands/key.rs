//! `bbot keygen` and `bbot fingerprint`: an agent's key.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, bail};
use bbot_agent::auth;
use clap::Args;

use super::Exit;

/// Make an agent's private key and print its fingerprint.
#[derive(Debug, Args)]
#[command(
    after_help = "A controller knows an agent by its public key, a .pem file in the folder of agents' keys."
)]
pub(crate) struct Keygen {
    /// The file to make, readable for its owner alone
    key: PathBuf,
    /// The size of the key
    #[arg(long, value_name = "NUM", default_value_t = 2048, value_parser = clap::value_parser!(u16).range(2048..=4096))]
    bits: u16,
    /// Write the public key to this file too
    #[arg(long, value_name = "FILE")]
    public: Option<PathBuf>,
}

pub(crate) fn keygen(options: &Keygen) -> Result<Exit> {
    if options.key.exists() {
        bail!(
            "there is a file {} already: it is left as it is, name another one",
            options.key.display()
        );
    }
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
