//! A machine's place on a bridge, as one guard.

use std::fmt::Write as _;
use std::fs::DirBuilder;
use std::io;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::rules::{self, Mapping};
use super::server::{self, Datagrams, Net};
use super::{Bridge, InterfaceName, command, host, sweep, tap};
use crate::durable;
use crate::mac::Mac;
use crate::machine::{Error, Tftp};
use crate::owner::{Instance, LockedRecord, OwnerError, Sync, remove_record, write_record};
use crate::wire::flood::Bound;
use crate::wire::thread::WireThread;

/// Where the owner records of taps and rules are: one place for all agents of a host, since the
/// network is one too. Gone with the boot, as what they are about.
pub const RECORDS: &str = "/run/bbot/bridge";

/// The most taps at once.
const MAX_TAPS: u16 = 4096;

/// What the machine's card is to be.
#[derive(Debug)]
pub enum GuestEnd {
    /// Whatever a tap is handed to: QEMU.
    Tap,
    /// `eth0` in this network namespace, down. The tap is then one end of a pair, which goes with
    /// that namespace.
    In(OwnedFd),
}

/// A tap on a bridge with its rules and its port, and the owner record of both. Dropping it takes
/// all of it away; what cannot be taken away stays with its record, for the next [`sweep()`].
///
/// [`sweep()`]: super::sweep
#[derive(Debug)]
pub struct Attached {
    name: InterfaceName,
    /// The name of the rules' tables, and the alias of the tap.
    table: String,
    is_loaded: bool,
    tap: Option<OwnedFd>,
    /// The tap is one end of a pair, and may be there.
    is_pair: bool,
    socket: Option<UdpSocket>,
    net: Net,
    record: Option<LockedRecord>,
}

impl Attached {
    /// Puts a machine on a bridge. `guest` is the address of its `card`. The record is made below
    /// `records`, normally [`RECORDS`]. Blocks for some ten milliseconds.
    ///
    /// # Errors
    ///
    /// When any of it cannot be made; nothing is left then.
    pub fn new(
        bridge: Bridge,
        machine: &str,
        guest: Mac,
        card: &GuestEnd,
        records: &Path,
    ) -> Result<Self, Error> {
        let on = format!("machine {machine} on bridge {}", bridge.name);
        let trying = |what: String| {
            let on = on.clone();
            move |source| Error::Io {
                what: format!("{what} for {on}"),
                source,
            }
        };
        let net = host::net_of(bridge.name)
            .map_err(trying("find the address".to_owned()))?
            .ok_or_else(|| Error::Unsupported {
                machine: machine.to_owned(),
                what: format!(
                    "bridge {} is not there or has no IPv4 address to serve at",
                    bridge.name
                ),
            })?;
        let (number, mut attached) = Self::claim(machine, net, records)
            .map_err(trying("find a name of a tap".to_owned()))?;
        let socket = server::bind(bridge.name, net.address, bridge.port)
            .map_err(trying("find a UDP port for TFTP".to_owned()))?;
        let port = socket
            .local_addr()
            .map_err(trying("find a UDP port for TFTP".to_owned()))?
            .port();
        attached.socket = Some(socket);

        let name = attached.name;
        let host = host_address(guest);
        let mapping = Mapping {
            table: attached.table.clone(),
            tap: name,
            number,
            guest,
            host,
            address: net.address,
            port,
        };
        // Whatever becomes of it, there may be something to unload.
        attached.is_loaded = true;
        command::run("nft", &["-f", "-"], &rules::load(&mapping)).map_err(trying(
            "map 196.254.111.222 by nftables (the kernel needs nf_tables with the families bridge \
             and ip)"
                .to_owned(),
        ))?;
        let mut batch = match host::address_to_keep(bridge.name)
            .map_err(trying("find the bridge's ports".to_owned()))?
        {
            Some(mac) => format!("link set dev {} address {mac}\n", bridge.name),
            None => String::new(),
        };
        match card {
            GuestEnd::Tap => {
                let tap = tap::make(name).map_err(trying(format!("make tap {name}")))?;
                attached.tap = Some(tap);
            }
            GuestEnd::In(namespace) => {
                attached.is_pair = true;
                // The path is for ip, which is another process.
                let _ = writeln!(
                    batch,
                    "link add name {name} type veth peer name eth0 address {guest} \
                     netns /proc/{}/fd/{}",
                    std::process::id(),
                    namespace.as_raw_fd()
                );
            }
        }
        let _ = write!(
            batch,
            "link set dev {name} alias {} address {host} addrgenmode none\n\
             link set dev {name} master {}\n\
             link set dev {name} type bridge_slave isolated on\n\
             link set dev {name} up\n",
            attached.table, bridge.name
        );
        command::run("ip", &["-batch", "-"], &batch)
            .map_err(trying(format!("put tap {name} on its bridge")))?;
        Ok(attached)
    }

    /// A tap's name with its record, and nothing under it yet.
    fn claim(machine: &str, net: Net, records: &Path) -> io::Result<(u16, Self)> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(records)
            .map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", records.display()))
            })?;
        let instance = Instance::new(&format!("agent with machine {machine}"))
            .map_err(|error| in_words(&error))?;
        for number in 0..MAX_TAPS {
            let name: InterfaceName = format!("bbot{number}").parse().map_err(io::Error::other)?;
            // Somebody else's, perhaps: its name is taken.
            if nix::net::if_::if_nametoindex(name.as_str()).is_ok() {
                continue;
            }
            let table = format!("bbot-{}", durable::random_hex()?);
            let more = sweep::more(&table)?;
            let path = records.join(name.as_str());
            if let Some(record) =
                write_record(&instance, &path, &more, Sync::No).map_err(|error| in_words(&error))?
            {
                let attached = Self {
                    name,
                    table,
                    is_loaded: false,
                    tap: None,
                    is_pair: false,
                    socket: None,
                    net,
                    record: Some(record),
                };
                return Ok((number, attached));
            }
        }
        Err(io::Error::other(format!(
            "all {MAX_TAPS} are taken; see {}",
            records.display()
        )))
    }

    /// The tap's name.
    pub fn tap_name(&self) -> InterfaceName {
        self.name
    }

    /// The UDP port at which the machine is served, until [`Attached::serve`].
    pub fn port(&self) -> Option<u16> {
        Some(self.socket.as_ref()?.local_addr().ok()?.port())
    }

    /// The tap, for QEMU. None: it was taken already, or there is a pair instead.
    pub fn take_tap(&mut self) -> Option<OwnedFd> {
        self.tap.take()
    }

    /// Starts the machine's TFTP server.
    ///
    /// # Errors
    ///
    /// When it was started already, or its thread cannot be made.
    pub fn serve(&mut self, tftp: &Tftp) -> io::Result<WireThread> {
        let socket = self
            .socket
            .take()
            .ok_or_else(|| io::Error::other("the server runs already"))?;
        let datagrams = Datagrams::new(tftp.root.clone(), tftp.limits.clone(), socket, self.net);
        WireThread::serve(datagrams, Bound::default())
    }

    fn dismantle(&mut self) -> io::Result<()> {
        // It goes with its last descriptor.
        self.tap = None;
        self.socket = None;
        let Some(record) = self.record.take() else {
            return Ok(());
        };
        if self.is_pair {
            // It goes with the namespace too, but a moment later.
            sweep::delete_tap(self.name, &self.table)?;
        }
        if self.is_loaded {
            command::run("nft", &["-f", "-"], &rules::unload(&self.table))?;
        }
        remove_record(&record.path).map_err(|error| in_words(&error))
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let name = self.name;
        if let Err(error) = self.dismantle() {
            tracing::warn!(tap = %name, "unable to take away what tap {name} had: {error}; left for the next sweep");
        }
    }
}

/// Puts a machine on a bridge and serves it there. On a thread of its own, since it waits for
/// programs.
///
/// # Errors
///
/// Those of [`Attached::new`] and [`Attached::serve`].
pub(crate) async fn attach(
    bridge: Bridge,
    name: &str,
    mac: Mac,
    card: GuestEnd,
    tftp: Tftp,
) -> Result<(Attached, WireThread), Error> {
    let failed = |source| Error::Io {
        what: format!("put machine {name} on bridge {}", bridge.name),
        source,
    };
    let machine = name.to_owned();
    let attaching = move || {
        let mut attached = Attached::new(bridge, &machine, mac, &card, Path::new(RECORDS))?;
        let thread = attached.serve(&tftp).map_err(|source| Error::Io {
            what: format!("serve machine {machine} on bridge {}", bridge.name),
            source,
        })?;
        Ok((attached, thread))
    };
    // Who gives up waiting drops what it makes, and so undoes it.
    let attached = tokio::task::spawn_blocking(attaching).await;
    attached.map_err(io::Error::other).map_err(failed)?
}

/// The tap's own hardware address: high, so that a bridge that takes its lowest port's does not
/// take this one; one without other ports is told to keep what it has.
fn host_address(guest: Mac) -> Mac {
    let mut octets = guest.0;
    octets[0] = 0xfe;
    if octets == guest.0 {
        octets[5] ^= 1;
    }
    Mac(octets)
}

/// The error with its cause.
pub(super) fn in_words(error: &OwnerError) -> io::Error {
    let error: &dyn std::error::Error = error;
    let cause = error.source().map(|cause| format!(": {cause}"));
    io::Error::other(format!("{error}{}", cause.unwrap_or_default()))
}

/// The record of a tap below `records`.
pub(super) fn record_of(records: &Path, name: &str) -> PathBuf {
    records.join(format!(".{name}.owner"))
}
