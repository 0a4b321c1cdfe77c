//! Tries a kernel under KVM.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{MemfdFlags, memfd_create};
use tokio::time::Instant;

use super::Accelerator;
use crate::machine::Error;
use crate::qemu::process::{self, Credentials, Process};
use crate::qemu::{Qemu, command};

/// How long a kernel may take to come up. Where KVM works it takes about one.
const BOOT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long QEMU may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the console is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How much of the console is looked through.
const MAX_CONSOLE: usize = 256 * 1024;

/// What a kernel says that has initialised all it has and looks for its root:
/// it has none and panics. A kernel with an initial RAM disk built in starts it.
const SIGNS: [&str; 3] = ["Unable to mount root", "Freeing unused kernel", "Run /init"];

/// What came of a trial.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// The kernel came up.
    Boots {
        /// After how long.
        seconds: f64,
    },
    /// It did not, and QEMU noticed nothing.
    Silent {
        /// How long was waited.
        seconds: f64,
    },
    /// QEMU failed.
    Fails {
        /// What it said.
        detail: String,
    },
}

fn failed(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// A file in memory, for what a program says.
fn memory(name: &str) -> Result<File, Error> {
    memfd_create(name, MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|error| failed("make a file in memory")(error.into()))
}

/// What was written to a file in memory so far. The writer shares the file's
/// position, so that is left alone.
fn read(file: &File) -> String {
    let mut bytes = vec![0; MAX_CONSOLE];
    let mut length = 0;
    // What cannot be read shows no sign.
    while let Ok(more @ 1..) = file.read_at(&mut bytes[length..], length as u64) {
        length += more;
    }
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// QEMU's version, as it tells it.
pub(super) async fn version(qemu: &Qemu) -> Result<String, Error> {
    let what = || format!("ask {} for its version", qemu.program().to_string_lossy());
    let output = memory("version")?;
    let mut process = Process::start(process::Spec {
        program: qemu.program().to_owned(),
        arguments: vec!["--version".into()],
        directory: "/".into(),
        inherited: Vec::new(),
        credentials: None,
        stdout: Some(output.try_clone().map_err(failed(what()))?),
    })
    .await
    .map_err(failed(what()))?;
    match tokio::time::timeout(VERSION_TIMEOUT, process.ended()).await {
        Ok(status) => {
            status.map_err(failed(what()))?;
        }
        Err(_) => {
            let late = std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in 10 s");
            return Err(failed(what())(late));
        }
    }
    Ok(read(&output).lines().next().unwrap_or_default().to_owned())
}

/// Boots a kernel under KVM, as machines are: the same user, the same sandbox.
pub(super) async fn boot(
    qemu: &Qemu,
    kernel: &Path,
    credentials: Option<Credentials>,
) -> Result<Verdict, Error> {
    try_with(qemu, kernel, credentials, Accelerator::Kvm, BOOT_TIMEOUT).await
}

async fn try_with(
    qemu: &Qemu,
    kernel: &Path,
    credentials: Option<Credentials>,
    accelerator: Accelerator,
    timeout: Duration,
) -> Result<Verdict, Error> {
    let what = || format!("try {} with {accelerator}", kernel.display());
    // A copy that any user may read, whatever the file's own mode.
    let mut image = memory("kernel")?;
    std::io::copy(&mut File::open(kernel).map_err(failed(what()))?, &mut image)
        .map_err(failed(what()))?;
    rustix::fs::fchmod(&image, rustix::fs::Mode::from_raw_mode(0o444))
        .map_err(|error| failed(what())(error.into()))?;
    let console = memory("console")?;
    let mut process = Process::start(process::Spec {
        program: qemu.program().to_owned(),
        arguments: arguments(image.as_raw_fd(), accelerator),
        directory: "/".into(),
        inherited: vec![OwnedFd::from(image)],
        credentials,
        stdout: Some(console.try_clone().map_err(failed(what()))?),
    })
    .await
    .map_err(failed(what()))?;

    let began = Instant::now();
    let came_up = || {
        let said = read(&console);
        SIGNS.iter().any(|sign| said.contains(sign))
    };
    loop {
        let ended = tokio::time::timeout(LOOK, process.ended()).await;
        let seconds = began.elapsed().as_secs_f64();
        if came_up() {
            return Ok(Verdict::Boots { seconds });
        }
        if let Ok(status) = ended {
            let how = process::describe(status.map_err(failed(what()))?);
            return Ok(Verdict::Fails {
                detail: match process.stderr() {
                    said if said.is_empty() => format!("QEMU: {how}"),
                    said => format!("QEMU: {how}: {said}"),
                },
            });
        }
        if began.elapsed() >= timeout {
            return Ok(Verdict::Silent { seconds });
        }
    }
}

fn arguments(kernel: i32, accelerator: Accelerator) -> Vec<OsString> {
    let accelerator_name = accelerator.to_string();
    let kernel = format!("/proc/self/fd/{kernel}");
    [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-sandbox",
        command::SANDBOX,
        "-machine",
        "q35",
        "-accel",
        &accelerator_name,
        "-cpu",
        command::cpu_model(accelerator),
        "-m",
        "size=256m",
        "-serial",
        "stdio",
        "-no-reboot",
        "-kernel",
        &kernel,
        "-append",
        // The console from the first moment on; after the panic there is nothing
        // to wait for.
        "console=ttyS0 earlyprintk=serial,ttyS0,115200 panic=-1",
    ]
    .map(OsString::from)
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_fails_is_quoted() {
        // Any program that refuses these arguments stands for a QEMU that fails.
        let verdict = try_with(
            &Qemu::with_program("/bin/ls"),
            Path::new("/proc/self/cmdline"),
            None,
            Accelerator::Kvm,
            Duration::from_secs(20),
        )
        .await
        .unwrap();
        let Verdict::Fails { detail } = verdict else {
            panic!("{verdict:?}")
        };
        assert!(detail.starts_with("QEMU: exit status"), "{detail}");
    }

    #[tokio::test]
    async fn a_guest_that_hangs_is_waited_for_so_long() {
        // Any program that goes on for ever stands for a guest that hangs; it
        // ends with the trial.
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("qemu");
        std::fs::write(&program, "#!/bin/sh\nexec sleep 60\n").unwrap();
        std::fs::set_permissions(
            &program,
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let verdict = try_with(
            &Qemu::with_program(&program),
            Path::new("/proc/self/cmdline"),
            None,
            Accelerator::Kvm,
            Duration::from_millis(300),
        )
        .await
        .unwrap();
        assert!(
            matches!(verdict, Verdict::Silent { seconds } if seconds < 30.0),
            "{verdict:?}"
        );
    }
}
