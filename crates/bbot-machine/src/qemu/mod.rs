//! Machines in QEMU.
//!
//! ```text
//!   options, command   what QEMU is told, pure
//!   files              what it is handed: descriptors, so that it needs no rights on folders
//!   process            how it is started, with few rights, and that it ends with the agent
//!   qmp, events        how it is spoken to while it runs, and what it tells
//!   words              what its guest says on the console, kept in part
//!   running            one running machine
//!   memory             its memory as a file: to be saved, or restored
//!   internet           its second card, by way of passt
//! ```

pub mod command;
pub mod events;
mod files;
pub mod internet;
mod memory;
pub mod options;
pub mod process;
pub mod qmp;
mod running;
mod words;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bbot_manifest::MachineKind;

use crate::bridge::{self, GuestEnd};
use crate::mac::{self, Mac};
use crate::machine::{
    BoxFuture, Disk, Error, Hypervisor, LAST_WORDS, Machine, Memory, Network, StartSpec,
};
use crate::socket_folder::SocketFolder;
use crate::wire::thread::{End, WireThread};

use command::{CardEnd, CommandLine, Plan, SecondCard};
use files::Handed;
use internet::Internet;
use process::{Credentials, Process};
use qmp::Qmp;
use running::{Parts, QemuMachine};
use words::Words;

/// How long QEMU may take to say its first word.
const GREETING_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts machines in QEMU.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: OsString,
}

impl Default for Qemu {
    fn default() -> Self {
        Self::new()
    }
}

impl Qemu {
    /// The QEMU that is found in PATH, for x86-64 guests.
    pub fn new() -> Self {
        Self::with_program("qemu-system-x86_64")
    }

    /// A QEMU of the caller's choice: a path, or a name that is looked for in PATH.
    pub fn with_program(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
        }
    }

    /// The program.
    pub fn program(&self) -> &OsStr {
        &self.program
    }

    /// That the program is there.
    ///
    /// # Errors
    ///
    /// [`Error::NotInstalled`].
    pub fn require_installed(&self) -> Result<(), Error> {
        if process::is_installed(&self.program) {
            Ok(())
        } else {
            Err(Error::NotInstalled {
                program: self.program.to_string_lossy().into_owned(),
                package: "qemu-system-x86",
            })
        }
    }
}

impl Hypervisor for Qemu {
    fn start(&self, spec: StartSpec) -> BoxFuture<'_, Result<Box<dyn Machine>, Error>> {
        Box::pin(async move {
            let machine = start(self, spec).await?;
            Ok(Box::new(machine) as Box<dyn Machine>)
        })
    }
}

/// Adds what was tried to a system error.
fn trying(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

async fn start(qemu: &Qemu, spec: StartSpec) -> Result<QemuMachine, Error> {
    let name = spec.manifest.header.name.clone();
    let unsupported = |what: String| Error::Unsupported {
        machine: name.clone(),
        what,
    };
    if spec.manifest.kind != MachineKind::Kvm {
        return Err(unsupported(format!(
            "its type is {}, and QEMU runs machines of type kvm only",
            spec.manifest.kind
        )));
    }
    if spec.cpus == 0 || spec.ram_kib == 0 {
        return Err(unsupported(
            "it needs at least one CPU and some RAM".to_owned(),
        ));
    }
    qemu.require_installed()?;
    let options = spec
        .manifest
        .option_list()
        .map_err(|error| unsupported(format!("its options cannot be read: {error}")))?;
    let mac = choose_mac(&spec)?;
    let credentials = Credentials::find(spec.user.as_deref())
        .map_err(trying("run QEMU without the rights of root"))?;

    crate::machine::require_disk(&spec.manifest, &spec.directory)?;
    let mut inherited: Vec<OwnedFd> = Vec::new();
    let boot = files::direct_boot(&spec.directory, credentials.is_some(), &mut inherited)?;

    let sockets = Sockets::create(&spec.run_dir, credentials.as_ref())?;
    let sockets_fd = hand(&mut inherited, sockets.open()?);

    let memory = memory::open(&spec, &mut inherited)?;
    let (wire_thread, card, bridge, again) = if let Network::Bridge(bridge) = spec.network {
        let (mut attached, thread) =
            bridge::attach(bridge, &name, mac, GuestEnd::Tap, spec.tftp.clone()).await?;
        let tap = attached
            .take_tap()
            .ok_or_else(|| io::Error::other("its tap is gone"))
            .map_err(trying(format!(
                "put machine {name} on bridge {}",
                bridge.name
            )))?;
        (
            thread,
            CardEnd::Tap(hand(&mut inherited, tap)),
            Some(attached),
            None,
        )
    } else {
        let (thread, socket, again) = own_wire(&name, &spec, mac)?;
        let card = CardEnd::Wire(hand(&mut inherited, socket));
        (thread, card, None, again)
    };

    let (our_qmp, its_qmp) =
        UnixStream::pair().map_err(trying(format!("make the control socket of machine {name}")))?;
    let qmp = hand(&mut inherited, OwnedFd::from(its_qmp));

    let (said, says) =
        std::io::pipe().map_err(trying(format!("keep the console of machine {name}")))?;
    let console_log = hand(&mut inherited, OwnedFd::from(says));
    let words = Words::keep(said, LAST_WORDS, "console")
        .map_err(trying(format!("keep the console of machine {name}")))?;

    let (internet, second) = match spec.network {
        Network::None | Network::Bridge(_) => (None, None),
        Network::User => {
            let (internet, fd) = Internet::start(&name, credentials.as_ref()).await?;
            let fd = hand(&mut inherited, fd);
            (
                Some(internet),
                Some(SecondCard {
                    fd,
                    mac: second_mac(mac),
                }),
            )
        }
    };

    let (built, traits) = {
        let sockets_name = format!("/proc/self/fd/{sockets_fd}");
        let has_file = |file: &str| files::is_machine_file(&spec.directory, file);
        let plan = Plan {
            name: &name,
            options: options.as_deref(),
            has_file: &has_file,
            mac,
            cpus: spec.cpus,
            ram_kib: spec.ram_kib,
            accelerator: spec.accelerator,
            disk: spec.disk,
            boot: boot.as_ref(),
            card,
            qmp,
            sockets: &sockets_name,
            console_log,
            second,
            memory: memory.as_ref().map(|memory| memory.file),
        };
        let traits = memory.as_ref().map(|_| memory::traits(&plan));
        (command::build(&plan), traits.transpose())
    };
    let CommandLine {
        mut arguments,
        files,
    } = built.map_err(|error| unsupported(error.to_string()))?;
    let traits = traits.map_err(|error| unsupported(error.to_string()))?;
    if let (Memory::Restored(base), Some(traits)) = (&spec.memory, &traits) {
        memory::require_same(base.manifest(), traits)?;
    }
    for (index, file) in files.iter().enumerate() {
        let mut disk = files::open_disk(&spec.directory.join(file))?;
        if memory.is_some() {
            // The first is the one to write; another would keep a lock of its own.
            disk.truncate(1);
        }
        for Handed { fd, .. } in disk {
            let fd = hand(&mut inherited, fd);
            arguments.extend(["-add-fd".to_owned(), format!("fd={fd},set={}", index + 1)]);
        }
    }

    tracing::debug!(
        machine = name,
        "{} {}",
        qemu.program.to_string_lossy(),
        arguments.join(" ")
    );
    let mut process = Process::start(process::Spec {
        program: qemu.program.clone(),
        arguments: arguments.into_iter().map(OsString::from).collect(),
        directory: spec.directory.clone(),
        inherited,
        credentials,
        stdout: None,
    })
    .await
    .map_err(trying(format!(
        "start {} for machine {name}",
        qemu.program.to_string_lossy()
    )))?;

    let (mut qmp, mut events) = greet(&name, our_qmp, &mut process).await?;
    let state = memory.as_ref().and_then(|memory| memory.file.state);
    if let (Memory::Restored(base), Some(state)) = (&spec.memory, state) {
        memory::restore(base, state, &mut qmp, &mut events, &process).await?;
    }
    Ok(QemuMachine::new(Parts {
        name,
        directory: spec.directory,
        mac,
        accelerator: spec.accelerator,
        keeps_disk: spec.disk == Disk::Kept,
        process,
        qmp,
        events,
        wire: wire_thread,
        again,
        bridge,
        internet,
        sockets,
        words,
        saving: memory
            .zip(traits)
            .and_then(|(memory, traits)| memory.into_saving(traits)),
    }))
}

/// A wire that ends in the agent; gives the guest's end of it too, and, of a restored guest, what it
/// can be served over once more.
fn own_wire(
    name: &str,
    spec: &StartSpec,
    mac: Mac,
) -> Result<(WireThread, OwnedFd, Option<OwnedFd>), Error> {
    let heard = match &spec.memory {
        Memory::Restored(base) => Some((mac, base.waiting())),
        Memory::Booted | Memory::ToBeSaved => None,
    };
    let make = || {
        let (ours, its) = crate::wire::thread::socket_pair()?;
        let again = heard.map(|_| ours.try_clone()).transpose()?;
        Ok((ours, its, again))
    };
    let (ours, its, again) = make().map_err(trying(format!("make the wire of machine {name}")))?;
    let thread = spec
        .tftp
        .serve_on(End::Socket(ours), heard)
        .map_err(trying(format!("serve the wire of machine {name}")))?;
    Ok((thread, its, again))
}

/// Keeps a descriptor for the child and gives its number.
fn hand(inherited: &mut Vec<OwnedFd>, fd: OwnedFd) -> i32 {
    let number = fd.as_raw_fd();
    inherited.push(fd);
    number
}

/// Waits until QEMU runs the guest.
async fn greet(
    name: &str,
    stream: UnixStream,
    process: &mut Process,
) -> Result<(Qmp, events::Receiver), Error> {
    let stream = stream
        .set_nonblocking(true)
        .and_then(|()| tokio::net::UnixStream::from_std(stream))
        .map_err(trying(format!("speak to machine {name}")))?;
    let detail = match Qmp::connect(stream, GREETING_TIMEOUT).await {
        Ok(connected) => return Ok(connected),
        Err(qmp::QmpError::Timeout) => {
            return Err(Error::NoAnswer {
                machine: name.to_owned(),
                command: "the start of its control protocol".to_owned(),
                timeout: GREETING_TIMEOUT,
            });
        }
        Err(qmp::QmpError::Closed) => {
            // QEMU is ending: it says why on standard error.
            let ended = tokio::time::timeout(GREETING_TIMEOUT, process.ended()).await;
            let how = match ended {
                Ok(Ok(status)) => process::describe(status),
                _ => "it closed its control socket".to_owned(),
            };
            match process.stderr() {
                said if said.is_empty() => format!("QEMU: {how}"),
                said => format!("QEMU: {how}: {said}"),
            }
        }
        Err(error) => format!("its control socket: {error}"),
    };
    Err(Error::NotStarted {
        machine: name.to_owned(),
        detail,
    })
}

pub(crate) fn choose_mac(spec: &StartSpec) -> Result<Mac, Error> {
    let mac = match (spec.mac, spec.manifest.mac) {
        (Some(mac), _) => mac,
        (None, Some(mac)) => mac,
        (None, None) => mac::generate().map_err(trying("make up a MAC address"))?,
    };
    // The lowest bit of the first octet marks a group's address.
    if mac.0[0] & 1 == 0 {
        Ok(mac)
    } else {
        Err(Error::Unsupported {
            machine: spec.manifest.header.name.clone(),
            what: format!("its MAC address {mac} is a group's: a card's first octet is even"),
        })
    }
}

/// The second card's address: another one, and the same at each start.
pub(crate) fn second_mac(first: Mac) -> Mac {
    let mut octets = first.0;
    // Locally administered, whatever the first one is.
    octets[0] |= 0x02;
    octets[5] ^= 0x01;
    octets[4] ^= 0x80;
    Mac(octets)
}

/// The private folder of console and screen. Only the agent comes through the run's folder; QEMU
/// gets this one itself as a descriptor.
#[derive(Debug)]
struct Sockets(SocketFolder);

impl Sockets {
    fn create(run_dir: &Path, credentials: Option<&Credentials>) -> Result<Self, Error> {
        let names = [command::CONSOLE_SOCKET, command::SCREEN_SOCKET];
        let folder = SocketFolder::create(run_dir, "qemu", &names)?;
        if let Some(credentials) = credentials {
            folder.give_to(credentials.uid, credentials.gid)?;
        }
        Ok(Self(folder))
    }

    fn open(&self) -> Result<OwnedFd, Error> {
        use rustix::fs::{Mode, OFlags};
        let path = self.0.path();
        rustix::fs::open(
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|error| trying(format!("open {}", path.display()))(error.into()))
    }

    fn console(&self) -> PathBuf {
        self.0.path().join(command::CONSOLE_SOCKET)
    }

    fn screen(&self) -> PathBuf {
        self.0.path().join(command::SCREEN_SOCKET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_card_has_an_address_of_its_own() {
        for first in [Mac([2, 0, 0, 0, 0, 0]), Mac([0x52, 0x54, 0, 1, 2, 3])] {
            let second = second_mac(first);
            assert_ne!(second, first);
            assert_eq!(second.0[0] & 0b11, 0b10);
            assert_eq!(second, second_mac(first));
        }
    }
}
