//! The way to the internet for a machine's second card.
//!
//! QEMU's own user-mode network is not used: it lets the guest reach every
//! service on the host's loopback (at 10.0.2.2, and by packets to 127.0.0.1), and
//! nothing turns that off. Instead `passt`, a program for just this, makes the
//! guest's connections, without rights and without a tap. Every frame from the
//! guest passes through the agent on its way there, and what is for the host
//! itself ends here, whatever passt would make of it:
//!
//! ```text
//!   guest -> QEMU -> [allowed?] -> passt -> the host's sockets
//!         <-      <-            <-
//! ```

use std::ffi::OsString;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::process::{self, Credentials, Process};
use super::trying;
use crate::machine::Error;
use crate::wire::flood::{Bound, Bucket};
use crate::wire::thread::End;
use crate::wire::{dhcp, ethernet, ipv4, udp};

/// The guest's address, its router and the network's size, as in QEMU's
/// user-mode network, which images know.
const GUEST: &str = "10.0.2.15";
const ROUTER: &str = "10.0.2.2";
const PREFIX: &str = "24";
/// The router's hardware address; passt would show the host's.
const ROUTER_MAC: &str = "02:62:62:6f:74:01";

/// Where the host's name servers are written: the second is what a resolver of
/// systemd's on the loopback asks itself.
const RESOLVERS: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
/// How many name servers the guest is told of.
const MAX_RESOLVERS: usize = 3;

/// How old what is known of the host's addresses may be.
const ADDRESSES_AGE: Duration = Duration::from_secs(2);
/// What a guest may send: 75 MB/s in full frames, and a part of one processor.
const BOUND: Bound = Bound {
    rate: 50_000,
    burst: 500_000,
};

/// Bytes from passt that may wait to be taken apart into frames.
const BUFFER: usize = 65_536;

/// The second card's way out. Dropping it ends it.
#[derive(Debug)]
pub struct Internet {
    /// Ends with its socket, and is killed at the latest when this is dropped.
    passt: Process,
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Internet {
    /// Starts passt and the relay; gives the descriptor of the card's net device.
    ///
    /// # Errors
    ///
    /// When passt is not installed or cannot be started.
    pub async fn start(
        machine: &str,
        credentials: Option<&Credentials>,
    ) -> Result<(Self, OwnedFd), Error> {
        let (ours, card) = crate::wire::thread::socket_pair().map_err(trying(format!(
            "make the internet card of machine {machine}"
        )))?;
        let internet = Self::start_over(machine, credentials, End::Socket(ours)).await?;
        Ok((internet, card))
    }

    /// The same for a card whose other end the caller has made.
    ///
    /// # Errors
    ///
    /// When passt is not installed or cannot be started.
    pub async fn start_over(
        machine: &str,
        credentials: Option<&Credentials>,
        card: End,
    ) -> Result<Self, Error> {
        if !process::is_installed("passt".as_ref()) {
            return Err(Error::NotInstalled {
                program: "passt".to_owned(),
                package: "passt",
            });
        }
        let failed = || trying(format!("make the internet card of machine {machine}"));
        let host = host_addresses().map_err(failed())?;
        let resolvers = RESOLVERS
            .iter()
            .map(|path| name_servers(&std::fs::read_to_string(path).unwrap_or_default(), &host))
            .find(|found| !found.is_empty())
            .unwrap_or_default();
        if resolvers.is_empty() {
            tracing::warn!(
                machine,
                "machine {machine} gets no name server: {} names none that is not on this host",
                RESOLVERS[0]
            );
        }
        let (outside, its_end) = UnixStream::pair().map_err(failed())?;
        outside.set_nonblocking(true).map_err(failed())?;
        let its_end = OwnedFd::from(its_end);
        let passt = Process::start(process::Spec {
            program: "passt".into(),
            arguments: arguments(its_end.as_raw_fd(), &resolvers, credentials)
                .into_iter()
                .map(OsString::from)
                .collect(),
            directory: "/".into(),
            inherited: vec![its_end],
            // It gives up the rights of root by itself, once it has used them to
            // lock itself in.
            credentials: None,
            stdout: None,
        })
        .await
        .map_err(trying(format!("start passt for machine {machine}")))?;
        let (stop, stopped) = UnixStream::pair().map_err(failed())?;
        let mut relay = Relay {
            card,
            outside,
            stopped,
            host: HostAddresses::new(host_addresses, host, Instant::now()),
            bucket: Bucket::new(BOUND, Instant::now()),
        };
        let thread = std::thread::Builder::new()
            .name("internet".to_owned())
            .spawn(move || {
                if let Err(error) = relay.run() {
                    tracing::error!("a machine's way to the internet failed: {error}");
                }
            })
            .map_err(failed())?;
        let internet = Self {
            passt,
            stop: Some(stop),
            thread: Some(thread),
        };
        Ok(internet)
    }
}

impl Internet {
    /// Waits until passt has ended, which nobody asked it to; tells how. Cancel
    /// safe, and answers again when asked again.
    pub async fn ended(&mut self) -> String {
        let how = match self.passt.ended().await {
            Ok(status) => process::describe(status),
            Err(error) => format!("unknown status ({error})"),
        };
        match self.passt.stderr() {
            said if said.is_empty() => format!("passt: {how}"),
            said => format!("passt: {how}: {said}"),
        }
    }

    /// The number of passt's process.
    pub fn process(&self) -> u32 {
        self.passt.id()
    }
}

/// The end of the way to the internet; never, when there is none.
pub(crate) async fn lost(internet: Option<&mut Internet>) -> String {
    match internet {
        Some(internet) => internet.ended().await,
        None => std::future::pending().await,
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the relay of a machine's internet card panicked");
        }
    }
}

fn arguments(
    socket: i32,
    resolvers: &[Ipv4Addr],
    credentials: Option<&Credentials>,
) -> Vec<String> {
    let mut arguments: Vec<String> = [
        "--foreground",
        "--quiet",
        "--stderr",
        "--ipv4-only",
        // The router is not the host's loopback, and no port of the host leads in.
        "--no-map-gw",
        "--tcp-ports",
        "none",
        "--udp-ports",
        "none",
        "--mtu",
        "1500",
        "--address",
        GUEST,
        "--netmask",
        PREFIX,
        "--gateway",
        ROUTER,
        "--mac-addr",
        ROUTER_MAC,
        "--fd",
    ]
    .map(str::to_owned)
    .into();
    arguments.push(socket.to_string());
    if resolvers.is_empty() {
        // Not those of the host's own accord.
        arguments.extend(["--dns".to_owned(), "none".to_owned()]);
    }
    for resolver in resolvers {
        arguments.extend(["--dns".to_owned(), resolver.to_string()]);
    }
    if let Some(credentials) = credentials {
        arguments.push("--runas".to_owned());
        arguments.push(format!("{}:{}", credentials.uid, credentials.gid));
    }
    arguments
}

/// The name servers of a `resolv.conf` that a guest can ask: those that are not
/// on the host itself.
fn name_servers(text: &str, host: &[Ipv4Addr]) -> Vec<Ipv4Addr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<Ipv4Addr>().ok())
        .filter(|address| is_outside(*address, host))
        .take(MAX_RESOLVERS)
        .collect()
}

/// The host's addresses, read again when they are old: a host gets and loses some
/// while it runs.
struct HostAddresses<R> {
    read: R,
    known: Vec<Ipv4Addr>,
    at: Instant,
}

impl<R: FnMut() -> io::Result<Vec<Ipv4Addr>>> HostAddresses<R> {
    fn new(read: R, known: Vec<Ipv4Addr>, at: Instant) -> Self {
        Self { read, known, at }
    }

    /// What they are, at most [`ADDRESSES_AGE`] ago.
    fn now(&mut self, now: Instant) -> &[Ipv4Addr] {
        if now.saturating_duration_since(self.at) >= ADDRESSES_AGE {
            self.at = now;
            match (self.read)() {
                Ok(addresses) => self.known = addresses,
                Err(error) => tracing::warn!("unable to read the host's addresses: {error}"),
            }
        }
        &self.known
    }
}

/// The host's own addresses.
fn host_addresses() -> io::Result<Vec<Ipv4Addr>> {
    Ok(getifaddrs()?
        .filter_map(|interface| Some(interface.address?.as_sockaddr_in()?.ip()))
        .collect())
}

/// Whether a guest's frame may leave the host. Not allowed is what would end on
/// the host itself or next to it: loopback, "this network", link-local addresses
/// (clouds keep secrets at 169.254.169.254), the host's own, and groups.
pub fn is_allowed(frame: &[u8], host: &[Ipv4Addr]) -> bool {
    let Some(frame) = ethernet::parse(frame) else {
        return false;
    };
    match frame.kind {
        ethernet::ARP => true,
        ethernet::IPV4 => ipv4::parse(frame.payload).is_some_and(|packet| {
            let to = packet.destination;
            if to.is_broadcast() {
                // How the card gets its address.
                return packet.protocol == ipv4::UDP
                    && udp::parse(&packet)
                        .is_some_and(|datagram| datagram.destination == dhcp::SERVER_PORT);
            }
            is_outside(to, host)
        }),
        _ => false,
    }
}

/// Whether an address is another host's, and one alone.
fn is_outside(address: Ipv4Addr, host: &[Ipv4Addr]) -> bool {
    !(address.is_loopback()
        || address.octets()[0] == 0
        || address.is_link_local()
        || address.is_multicast()
        || address.octets()[0] >= 240
        || host.contains(&address))
}

/// Carries frames between QEMU (a datagram each) and passt (a stream, each frame
/// behind its length in four bytes). The two ways do not wait for each other.
struct Relay {
    card: End,
    outside: UnixStream,
    stopped: UnixStream,
    host: HostAddresses<fn() -> io::Result<Vec<Ipv4Addr>>>,
    bucket: Bucket,
}

impl Relay {
    fn run(&mut self) -> io::Result<()> {
        // What waits to be written; reading that way goes on once it is.
        let mut out: Vec<u8> = Vec::new();
        let mut stream: Vec<u8> = Vec::new();
        let mut blocked = false;
        let mut buffer = vec![0; BUFFER];
        // Until then nothing is taken from a guest that floods.
        let mut paused: Option<Instant> = None;
        let mut told_flood = false;
        loop {
            let pause = paused.and_then(|until| until.checked_duration_since(Instant::now()));
            if pause.is_none() {
                paused = None;
            }
            let timeout = pause.and_then(|pause| Timespec::try_from(pause).ok());
            let card_flags = flags(out.is_empty() && paused.is_none(), blocked);
            let outside_flags = flags(!blocked, !out.is_empty());
            let mut fds = [
                PollFd::new(&self.card, card_flags),
                PollFd::new(&self.outside, outside_flags),
                PollFd::new(&self.stopped, PollFlags::IN),
            ];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            }
            let [card, outside, stopped] = fds.map(|fd| fd.revents());
            if !stopped.is_empty() {
                return Ok(());
            }
            if outside.intersects(PollFlags::HUP | PollFlags::ERR)
                && !outside.contains(PollFlags::IN)
            {
                return Err(io::Error::other("passt has ended"));
            }
            if card.contains(PollFlags::IN)
                && out.is_empty()
                && paused.is_none()
                && let Some(length) = self.card.receive(&mut buffer[..])?
            {
                let now = Instant::now();
                paused = self.bucket.spend(1, now);
                if paused.is_some() && !told_flood {
                    told_flood = true;
                    tracing::warn!("a guest floods its internet card, and is slowed down");
                }
                let frame = &buffer[..length];
                if is_allowed(frame, self.host.now(now)) {
                    // An Ethernet frame: far below 4 GiB.
                    out.extend_from_slice(&u32::try_from(length).unwrap_or(0).to_be_bytes());
                    out.extend_from_slice(frame);
                }
            }
            if !out.is_empty() {
                match rustix::net::send(
                    &self.outside,
                    &out,
                    SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
                ) {
                    Ok(length) => {
                        out.drain(..length);
                    }
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if outside.contains(PollFlags::IN) && !blocked {
                match rustix::net::recv(&self.outside, &mut buffer[..], RecvFlags::DONTWAIT) {
                    Ok((0, _)) => return Err(io::Error::other("passt has ended")),
                    Ok((length, _)) => stream.extend_from_slice(&buffer[..length]),
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            blocked = !self.deliver(&mut stream)?;
        }
    }

    /// Gives the whole frames of the stream to QEMU. False: there is no room yet.
    fn deliver(&self, stream: &mut Vec<u8>) -> io::Result<bool> {
        let mut start = 0;
        let mut room = true;
        while let Some(length) = stream[start..].first_chunk::<4>() {
            let length = u32::from_be_bytes(*length) as usize;
            if length > BUFFER {
                return Err(io::Error::other("passt sent a frame of more than 64 KiB"));
            }
            let Some(frame) = stream[start + 4..].get(..length) else {
                break;
            };
            if !self.card.send(frame)? {
                room = false;
                break;
            }
            start += 4 + length;
        }
        stream.drain(..start);
        Ok(room)
    }
}

fn flags(read: bool, write: bool) -> PollFlags {
    let mut flags = PollFlags::empty();
    flags.set(PollFlags::IN, read);
    flags.set(PollFlags::OUT, write);
    flags
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST: [Ipv4Addr; 1] = [Ipv4Addr::new(192, 0, 2, 2)];

    fn to(address: [u8; 4], port: u16) -> Vec<u8> {
        let packet = udp::build(
            (Ipv4Addr::new(10, 0, 2, 15), 1000),
            (Ipv4Addr::from(address), port),
            b"x",
        )
        .unwrap();
        ethernet::build([2; 6], [2, 0, 0, 0, 0, 1], ethernet::IPV4, &packet)
    }

    #[test]
    fn what_is_for_the_host_does_not_leave() {
        for address in [
            [127, 0, 0, 1],
            [127, 255, 0, 1],
            [0, 0, 0, 0],
            [0, 1, 2, 3],
            [192, 0, 2, 2],
            [169, 254, 169, 254],
            [224, 0, 0, 1],
            [255, 255, 255, 255],
            [240, 0, 0, 1],
        ] {
            assert!(!is_allowed(&to(address, 80), &HOST), "{address:?}");
        }
        for address in [[192, 0, 2, 1], [10, 0, 2, 3], [198, 51, 100, 7]] {
            assert!(is_allowed(&to(address, 80), &HOST), "{address:?}");
        }
        assert!(is_allowed(&to([255; 4], dhcp::SERVER_PORT), &HOST));
        let ipv6 = ethernet::build([2; 6], [2, 0, 0, 0, 0, 1], 0x86dd, &[0x60; 40]);
        assert!(!is_allowed(&ipv6, &HOST));
        // Another protocol and options in the header change nothing.
        let packet = ipv4::build(
            Ipv4Addr::new(10, 0, 2, 15),
            Ipv4Addr::LOCALHOST,
            6,
            &[0; 20],
        )
        .unwrap();
        assert!(!is_allowed(
            &ethernet::build([2; 6], [2, 0, 0, 0, 0, 1], ethernet::IPV4, &packet),
            &HOST
        ));
    }

    proptest! {
        #[test]
        fn any_frame_is_judged(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            is_allowed(&bytes, &HOST);
        }
    }

    #[test]
    fn only_name_servers_elsewhere_can_be_asked() {
        let text = "# nameserver 9.9.9.9\nsearch example\nnameserver 127.0.0.53\n\
                    nameserver 192.0.2.2\n nameserver\t198.51.100.1 \nnameserver ::1\nnameserver\n";
        assert_eq!(name_servers(text, &HOST), [Ipv4Addr::new(198, 51, 100, 1)]);
        let line = arguments(7, &name_servers(text, &HOST), None).join(" ");
        assert!(
            line.contains("--no-map-gw") && line.ends_with("--fd 7 --dns 198.51.100.1"),
            "{line}"
        );
        assert!(arguments(7, &[], None).join(" ").ends_with("--dns none"));
    }

    #[test]
    fn addresses_that_the_host_gains_are_the_hosts_soon() {
        let begin = Instant::now();
        let mut readings = 0;
        let mut host = HostAddresses::new(
            || {
                readings += 1;
                match readings {
                    1 => Ok(vec![
                        Ipv4Addr::new(192, 0, 2, 2),
                        Ipv4Addr::new(192, 0, 2, 3),
                    ]),
                    _ => Err(io::Error::other("planted")),
                }
            },
            HOST.to_vec(),
            begin,
        );
        let frame = to([192, 0, 2, 3], 80);
        assert!(is_allowed(&frame, host.now(begin)));
        let later = begin + ADDRESSES_AGE;
        assert!(!is_allowed(&frame, host.now(later)));
        // What was known stays when it cannot be read.
        assert!(!is_allowed(&frame, host.now(later + ADDRESSES_AGE)));
        assert_eq!(readings, 2);
    }

    #[test]
    fn the_host_has_its_loopback() {
        assert!(host_addresses().unwrap().contains(&Ipv4Addr::LOCALHOST));
    }
}
