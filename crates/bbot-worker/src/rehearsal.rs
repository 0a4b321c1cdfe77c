//! A build of a package of the worker's own, whose result nobody sees: what builds begin with is then in the guest's memory,
//! and known to what translates for its processor.
//!
//! It is done before the machine is saved, so that copies find programs in the page cache, and once more in a copy that was
//! restored and waits for its task. Nothing of it stays but that.

use std::fs;
use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use bbot_manifest::{Status, Task};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use crate::build::{self, Job, WORK};
use crate::isolation::Isolation;
use crate::options::Options;
use crate::segments::Stream;
use crate::source::Origin;

/// The package.
const FILES: [(&str, &str); 2] = [
    ("Makefile", include_str!("rehearsal/Makefile")),
    ("program.c", include_str!("rehearsal/program.c")),
];

/// How long a rehearsal's commands may take.
const LONGEST: Duration = Duration::from_secs(5);

/// Commands whose surroundings are made ahead: those of most builds.
const COMMANDS: usize = 4;

/// The rehearsals of one build process.
#[derive(Debug)]
pub(crate) struct Rehearsals<'a> {
    options: &'a Options,
    isolation: Option<&'a Isolation>,
    /// Programs were read from the disk already.
    again: bool,
}

impl<'a> Rehearsals<'a> {
    /// Without a separation nothing is rehearsed.
    pub(crate) fn new(options: &'a Options, isolation: Option<&'a Isolation>) -> Self {
        Self {
            options,
            isolation,
            again: false,
        }
    }

    /// Rehearses, and makes ready for the build. Whatever comes of it, the build is as without.
    pub(crate) fn next(&mut self) {
        let Some(isolation) = self.isolation else {
            return;
        };
        if let Err(error) = rehearse(self.options, isolation, self.again) {
            eprintln!("trace: no rehearsal: {error}");
        }
        self.again = true;
        if let Err(error) = isolation.make_ahead(COMMANDS) {
            eprintln!("trace: no network namespace ahead: {error}");
        }
    }
}

fn rehearse(options: &Options, isolation: &Isolation, again: bool) -> io::Result<()> {
    let archive = archive()?;
    let sha256 = hex::encode(Sha256::digest(&archive));
    let mut task = Task::new("rehearsal", "1", "none", "none", "none");
    // The compiler is the largest program of all: to run it again takes more than it gives.
    task.target_config = (!again).then(|| "COMPILE=yes".to_owned());
    let results = build::perform(&Job {
        options,
        task: &task,
        source: Some(Origin::Here(&archive, &sha256)),
        isolation: Ok(isolation),
        stream: &Stream::nowhere(),
        until: Some(Instant::now() + LONGEST),
    });
    if let Some(last) = results.last()
        && last.status > Status::Warning
    {
        // A machine may have no make.
        eprintln!("trace: rehearsal: {} {}", last.name, last.status);
    }
    fs::remove_dir_all(options.build.join(WORK))
}

/// The package as the agent would hand it out.
fn archive() -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, text) in FILES {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        archive.append_data(&mut header, format!("rehearsal-1/{name}"), text.as_bytes())?;
    }
    let mut gzip = archive.into_inner()?;
    gzip.flush()?;
    gzip.finish()
}
