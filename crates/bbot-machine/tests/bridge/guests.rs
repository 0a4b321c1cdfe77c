//! Real guests on a bridge that dnsmasq serves, as on a host of the original.

use std::fs;
use std::process::{Child, Command, Stdio};

use bbot_machine::machine::{ExitCause, Hypervisor, MachineEvent, Network, ShutdownOutcome};
use bbot_machine::qemu::Qemu;
use bbot_tftp::Root;

use super::namespace::{br1, inside, records, tables, taps};
use super::support::{Guest, PATIENCE, must_skip, prepare};

/// One answer will do: a guest on a busy host may stand still for longer than it waits for one.
pub(crate) const PING: &str =
    "for n in 1 2 3 4 5 6; do timeout 10 ping -c 1 192.168.77.1 && break; done";

/// Serves addresses, ends with the namespace at the latest.
pub(crate) struct Dnsmasq(Child);

impl Dnsmasq {
    pub(crate) fn start() -> Self {
        let child = Command::new("dnsmasq")
            .args([
                "--no-daemon",
                "--conf-file=/dev/null",
                "--interface=br1",
                "--bind-interfaces",
                "--port=0",
                "--dhcp-range=192.168.77.50,192.168.77.150,1h",
                "--leasefile-ro",
                "--user=root",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self(child)
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two guests at once fetch, upload and tell what they see, each with its own run; then nothing is left.
#[tokio::test]
async fn two_guests_at_once_fetch_and_upload() {
    if must_skip()
        || !testkit::program("dnsmasq", "dnsmasq")
        || !inside("guests::two_guests_at_once_fetch_and_upload")
    {
        return;
    }
    let _dnsmasq = Dnsmasq::start();
    let mut guests = Vec::new();
    for name in ["one", "two"] {
        let script = format!(
            "set -e\n\
             tftp -g -r in.plain -l /a 196.254.111.222\n\
             tftp -b 1468 -g -r in.large -l /b 196.254.111.222\n\
             tftp -p -r out.plain -l /a 196.254.111.222\n\
             tftp -b 1468 -p -r out.large -l /b 196.254.111.222\n\
             (echo {name}; ifconfig eth0; route -n; {PING}) > /net 2>&1\n\
             tftp -p -r net -l /net 196.254.111.222\n\
             poweroff -f\n"
        );
        let (folder, mut spec) = prepare(&script, None);
        spec.network = Network::Bridge(br1());
        assert!(spec.network.is_exclusive());
        spec.tftp.root = Root::new()
            .get_bytes("script", script.as_bytes())
            .get_bytes("in.plain", name.as_bytes())
            .get_bytes("in.large", name.repeat(100_000).into_bytes())
            .put_any(folder.path().join("put"), 8 << 20);
        guests.push((name, Guest::start(folder, spec).await));
    }
    assert_eq!(taps(), ["bbot0", "bbot1"]);
    assert_eq!(tables().len(), 4, "{:?}", tables());
    assert_eq!(records(), [".bbot0.owner", ".bbot1.owner"]);
    let mut addresses = Vec::new();
    for (name, guest) in &mut guests {
        assert_eq!(guest.uploaded("out.plain").await, name.as_bytes());
        assert!(guest.uploaded("out.large").await == name.repeat(100_000).into_bytes());
        let net = String::from_utf8(guest.uploaded("net").await).unwrap();
        assert!(net.starts_with(*name), "{net}");
        assert!(net.contains("1 packets received"), "{net}");
        let address = net.split_once("inet addr:").unwrap().1;
        addresses.push(address.split(' ').next().unwrap().to_owned());
        assert_eq!(guest.other_event().await, MachineEvent::PoweringOff);
        let MachineEvent::Exited(exit) = guest.other_event().await else {
            panic!("it did not exit")
        };
        assert_eq!(exit.cause, ExitCause::PoweredOff, "{exit}");
        assert!(
            guest.machine.last_words().contains("reboot: Power down"),
            "{}",
            guest.machine.last_words()
        );
    }
    assert!(
        addresses
            .iter()
            .all(|address| address.starts_with("192.168.77.")),
        "{addresses:?}"
    );
    assert_ne!(addresses[0], addresses[1]);
    drop(guests);
    assert_eq!((taps(), tables(), records()), (vec![], vec![], vec![]));
}

/// A machine with options as the original's reach the agent too, and a machine that cannot start leaves nothing.
#[tokio::test]
async fn options_of_its_own_and_starts_that_fail() {
    if must_skip()
        || !testkit::program("dnsmasq", "dnsmasq")
        || !inside("guests::options_of_its_own_and_starts_that_fail")
    {
        return;
    }
    let _dnsmasq = Dnsmasq::start();
    let options = "-netdev tap,id=n,script=no,downscript=no,ifname=? \
                   -device 'virtio-net-pci,netdev=n,mac=?,romfile=' \
                   -drive file=disk.img,format=raw,if=virtio";
    let script = "cat /sys/class/net/eth0/address > /f\ntftp -p -r seen -l /f 196.254.111.222";
    let (folder, mut spec) = prepare(script, Some(options));
    spec.network = Network::Bridge(br1());
    let mut guest = Guest::start(folder, spec).await;
    let seen = String::from_utf8(guest.uploaded("seen").await).unwrap();
    assert_eq!(seen, format!("{}\n", guest.machine.mac()));
    let outcome = guest.machine.shutdown(PATIENCE).await.unwrap();
    assert_eq!(outcome, ShutdownOutcome::Down);
    drop(guest);

    // QEMU itself does not start.
    let (_folder, mut spec) = prepare(script, Some(&format!("-no-such-option {options}")));
    spec.network = Network::Bridge(br1());
    let error = Qemu::new().start(spec).await.unwrap_err();
    assert!(error.to_string().contains("no-such-option"), "{error}");
    assert_eq!((taps(), tables(), records()), (vec![], vec![], vec![]));

    // There is no such bridge.
    let (_folder, mut spec) = prepare(script, None);
    let mut bridge = br1();
    bridge.name = "br7".parse().unwrap();
    spec.network = Network::Bridge(bridge);
    let error = Qemu::new().start(spec).await.unwrap_err();
    assert!(
        error.to_string().contains("bridge br7 is not there"),
        "{error}"
    );
    assert_eq!((taps(), tables(), records()), (vec![], vec![], vec![]));
    assert!(fs::read_dir("/run/bbot").unwrap().count() <= 1);
}
