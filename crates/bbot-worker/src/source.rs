//! The package's sources: fetched from the agent, checked, unpacked.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bbot_manifest::Source;
use sha2::{Digest, Sha256};

use crate::channel::Channel;
use crate::isolation::Isolation;
use crate::unpack::{self, Bounds};

/// The largest archive, in bytes: what fits several times on a machine's disk.
const ARCHIVE_LIMIT: u64 = 2 << 30;

/// Fetches the archive into `work`, checks its hash and unpacks it; the source's root, which belongs to the build's user.
pub(crate) fn prepare(
    channel: &Channel,
    source: &Source,
    work: &Path,
    isolation: &Isolation,
) -> anyhow::Result<PathBuf> {
    let archive = work.join("source.tar.gz");
    channel
        .get_file(&source.name, &archive, ARCHIVE_LIMIT)
        .context("cannot fetch the source archive")?;
    let found = sha256(&archive).context("cannot read the source archive")?;
    if found != source.sha256 {
        bail!(
            "the source archive is not the one that was submitted: its SHA-256 is {found}, not {}",
            source.sha256
        );
    }
    let to = work.join("source");
    crate::command::own_directory(&to, isolation)
        .context("cannot make a directory for the sources")?;
    unpack::unpack(&archive, &to, &isolation.user, Bounds::default())?;
    let _ = fs::remove_file(&archive);
    Ok(unpack::root(&to)?)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex::encode(hash.finalize())),
            Ok(length) => hash.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
