//! A build of a package of the worker's own, for an agent of its own on the loopback, whose result nobody sees: what builds
//! begin and end with is then in the guest's memory, and known to what translates for its processor.
//!
//! It is done before the machine is saved, so that copies find programs in the page cache, and once more in a copy that was
//! restored and waits for its task. A container is not saved, and waits for one task: there it is done once, and in short.
//! Nothing of it stays but that.

use std::fs;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use bbot_manifest::{BuildResult, Era, RunManifest, Source, Status, Task};
use bbot_tftp::udp::{self, Stop};
use bbot_tftp::{Limits, Root};
use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

use crate::build::{self, WORK};
use crate::channel::{Channel, Given};
use crate::isolation::Isolation;
use crate::options::Options;

/// The package.
const FILES: [(&str, &str); 2] = [
    ("Makefile", include_str!("rehearsal/Makefile")),
    ("program.c", include_str!("rehearsal/program.c")),
];

/// How long a rehearsal's commands may take.
const LONGEST: Duration = Duration::from_secs(5);

/// How long a packet to oneself may take.
const LOOPBACK: Duration = Duration::from_millis(500);

/// The name of the source archive.
const SOURCE: &str = "source.tar.gz";

/// The name of the result.
const RESULT: &str = "manifest";

/// The largest upload, in bytes.
const LARGEST: u64 = 1 << 20;

/// Commands whose surroundings are made ahead: those of most builds.
const COMMANDS: usize = 4;

/// The rehearsals of one build process.
#[derive(Debug)]
pub(crate) struct Rehearsals<'a> {
    options: &'a Options,
    isolation: Option<&'a Isolation>,
    /// Without the largest programs: they were read from the disk already, or would be for one build alone.
    in_short: bool,
}

impl<'a> Rehearsals<'a> {
    /// Without a separation nothing is rehearsed.
    pub(crate) fn new(options: &'a Options, isolation: Option<&'a Isolation>) -> Self {
        Self {
            options,
            isolation,
            in_short: !options.to_be_saved,
        }
    }

    /// Rehearses, and makes ready for the build. Whatever comes of it, the build is as without.
    pub(crate) fn next(&mut self) {
        let Some(isolation) = self.isolation else {
            return;
        };
        if let Err(error) = rehearse(self.options, isolation, self.in_short) {
            eprintln!("trace: no rehearsal: {error:#}");
        }
        self.in_short = true;
        if let Err(error) = isolation.make_ahead(COMMANDS) {
            eprintln!("trace: no network namespace ahead: {error}");
        }
    }
}

fn rehearse(options: &Options, isolation: &Isolation, in_short: bool) -> anyhow::Result<()> {
    let folder = options.build.join("rehearsal");
    clear(&folder)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = socket.local_addr()?;
    // A guest whose loopback is down is no reason to wait for long.
    let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    probe.set_read_timeout(Some(LOOPBACK))?;
    probe.send_to(b"?", probe.local_addr()?)?;
    probe.recv(&mut [0])?;

    fs::create_dir(&folder)?;
    let (given, source) = given(in_short)?;
    let root = Root::new()
        .get_bytes(SOURCE, source)
        .put_once(&[RESULT], &folder, LARGEST)
        .put_numbered("log.", &folder, LARGEST);
    let stop = Stop::new();
    let quiet = Options {
        verbose: 0,
        ..options.clone()
    };
    let outcome = thread::scope(|scope| {
        let serve = || udp::serve(socket, &root, &Limits::default(), &stop, &|_| ());
        let server = thread::Builder::new().spawn_scoped(scope, serve)?;
        let outcome = build::build(
            &quiet,
            &Channel::to_stand_in(address),
            &given,
            Ok(isolation),
            None,
            Some(Instant::now() + LONGEST),
        );
        stop.stop();
        if server.join().is_err() {
            bail!("the agent's stand-in failed");
        }
        outcome
    });
    let result = fs::read(folder.join(RESULT));
    clear(&folder)?;
    clear(&options.build.join(WORK))?;
    outcome?;
    let result = BuildResult::parse(&result?, RESULT)?;
    ensure!(
        result.status <= Status::Warning,
        "it ended as {}",
        result.status
    );
    Ok(())
}

fn clear(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What an agent gives out, and the source.
fn given(in_short: bool) -> anyhow::Result<(Given, Vec<u8>)> {
    let source = archive()?;
    let run = RunManifest {
        agent: "none".to_owned(),
        log_segments: Some(build::SEGMENT_FORMAT),
        source: Some(Source {
            name: SOURCE.to_owned(),
            sha256: hex::encode(Sha256::digest(&source)),
        }),
        save: None,
        fresh: None,
    };
    let mut task = Task::new("rehearsal", "1", "http://127.0.0.1/", "none", "none");
    // The compiler is the largest program of all: to run it again takes more than it gives.
    task.target_config = (!in_short).then(|| "COMPILE=yes".to_owned());
    let given = Given {
        run: Some(run.serialize()?.into_bytes()),
        task: task.serialize(Era::Later)?.into_bytes(),
    };
    Ok((given, source))
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
