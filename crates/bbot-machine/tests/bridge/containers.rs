//! Containers on a bridge that dnsmasq serves.

use bbot_machine::machine::{MachineEvent, Network};
use bbot_tftp::Root;

use super::guests::{Dnsmasq, PING};
use super::namespace::{br1, inside, records, tables, taps};
use super::nspawn::{Guest, must_skip, prepare};

/// Where a bridge was asked for it gets one, and keeps it over a restart; then nothing is left.
#[tokio::test]
async fn a_container_is_put_on_the_bridge_that_was_asked_for() {
    if must_skip()
        || !testkit::program("dnsmasq", "dnsmasq")
        || !inside("containers::a_container_is_put_on_the_bridge_that_was_asked_for")
    {
        return;
    }
    let _dnsmasq = Dnsmasq::start();
    let script = format!(
        "set -e\n\
         tftp -b 1468 -g -r in.large -l /large 196.254.111.222\n\
         (cat /sys/class/net/eth0/address; ls /sys/class/net; ifconfig eth0; \
          {PING}) > /net 2>&1\n\
         if [ -e /second ]; then tftp -p -b 1468 -r out.large -l /large 196.254.111.222; fi\n\
         tftp -p -r net -l /net 196.254.111.222\n\
         if [ ! -e /second ]; then touch /second; reboot -f; fi\n"
    );
    let (folder, mut spec) = prepare(&script);
    spec.network = Network::Bridge(br1());
    assert!(spec.network.of(spec.manifest.kind).is_exclusive());
    let large = "0123456789abcdef".repeat(30_000);
    spec.tftp.root = Root::new()
        .get_bytes("script", script.as_bytes())
        .get_bytes("in.large", large.clone().into_bytes())
        .put_any(folder.path().join("put"), 8 << 20);
    let mut guest = Guest::start(folder, spec).await;
    assert_eq!(taps(), ["bbot0"]);
    assert_eq!(tables().len(), 2, "{:?}", tables());
    assert_eq!(records(), [".bbot0.owner"]);
    let check = |net: &str, mac: String| {
        assert!(net.starts_with(&format!("{mac}\neth0\nlo\n")), "{net}");
        assert!(net.contains("inet addr:192.168.77."), "{net}");
        assert!(net.contains("1 packets received"), "{net}");
    };
    let net = guest.uploaded("net").await;
    check(&net, guest.machine.mac().to_string());
    assert_eq!(guest.other_event().await, MachineEvent::Reset);
    assert!(guest.uploaded("out.large").await == large);
    let net = guest.uploaded("net").await;
    check(&net, guest.machine.mac().to_string());
    guest.machine.force_down().await.unwrap();
    drop(guest);
    assert_eq!((taps(), tables(), records()), (vec![], vec![], vec![]));
}

/// A bridge that is there by chance is for machines that the original could run.
#[tokio::test]
async fn a_container_keeps_its_wire_where_no_bridge_was_asked_for() {
    if must_skip()
        || !inside("containers::a_container_keeps_its_wire_where_no_bridge_was_asked_for")
    {
        return;
    }
    let (folder, mut spec) =
        prepare("ifconfig eth0 > /net; tftp -p -r net -l /net 196.254.111.222; poweroff -f\n");
    let mut bridge = br1();
    bridge.by_default = true;
    spec.network = Network::Bridge(bridge);
    assert!(!spec.network.of(spec.manifest.kind).is_exclusive());
    assert!(
        spec.network
            .of(bbot_manifest::MachineKind::Kvm)
            .is_exclusive()
    );
    let mut guest = Guest::start(folder, spec).await;
    let net = guest.uploaded("net").await;
    assert!(net.contains("inet addr:196.254.111.2 "), "{net}");
    assert_eq!((taps(), tables(), records()), (vec![], vec![], vec![]));
}
