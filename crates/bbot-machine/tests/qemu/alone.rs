//! A guest is alone on its wire: it reaches neither another guest nor the host.

use std::fmt::Write;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::support::{Guest, must_skip, prepare};

/// What a guest has for whoever reaches it.
const PORT: u16 = 7777;

/// A guest with an address of its own beside the one that all have, and a server there. It says that it is `up`, waits
/// until it may `go`, tries to reach what is in `tries`, and tells what came of it.
fn script(own: &str, tries: &str) -> String {
    format!(
        "ifconfig eth0:1 {own} netmask 255.255.255.0\n\
         route add default gw 196.254.111.222\n\
         mkdir /www; echo the-word > /www/word; httpd -p {PORT} -h /www\n\
         tftp -p -r up -l /init 196.254.111.222\n\
         until tftp -g -r go -l /go 196.254.111.222; do sleep 1; done\n\
         try() {{ if timeout 10 \"$@\" > /said 2>&1; then echo \"REACHED by $*: $(cat /said)\"; else echo \"not by $*\"; fi; }}\n\
         (wget -q -O - http://{own}:{PORT}/word && echo self\n\
         {tries}\n\
         cat /proc/net/arp) > /told 2>&1\n\
         tftp -p -r told -l /told 196.254.111.222\n"
    )
}

/// The ways to another guest: whose address nobody answers for, and whose card the guest knows.
fn ways_to_a_guest(address: &str, mac: &str) -> String {
    format!(
        "try arping -c 2 -w 3 -I eth0 {address}\n\
         try ping -c 1 -W 2 {address}\n\
         arp -s {address} {mac}\n\
         try ping -c 1 -W 2 {address}\n\
         try wget -T 3 -q -O - http://{address}:{PORT}/word\n\
         try ping -c 1 -W 2 196.254.111.255\n"
    )
}

/// The ways to a port of the host: by the agent's address and by each of the host's.
fn ways_to_the_host(addresses: &[Ipv4Addr], tcp: u16, udp: u16) -> String {
    let mut tries = String::new();
    for address in addresses {
        writeln!(
            tries,
            "try wget -T 2 -q -O - http://{address}:{tcp}/\n\
             try timeout 2 tftp -g -r word -l /word {address} {udp}"
        )
        .unwrap();
    }
    tries
}

fn host_addresses() -> Vec<Ipv4Addr> {
    let mut addresses = vec![bbot_machine::wire::AGENT];
    addresses.extend(nix::ifaddrs::getifaddrs().unwrap().filter_map(|interface| {
        let address = interface.address?.as_sockaddr_in()?.ip();
        // The guest's own loopback has this one.
        (!address.is_loopback()).then_some(address)
    }));
    addresses
}

#[tokio::test]
async fn guests_reach_neither_each_other_nor_the_host() {
    if must_skip() {
        return;
    }
    let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let (tcp_port, udp_port) = (
        tcp.local_addr().unwrap().port(),
        udp.local_addr().unwrap().port(),
    );
    let to_the_host = ways_to_the_host(&host_addresses(), tcp_port, udp_port);
    let macs = ["02:00:00:00:00:0a", "02:00:00:00:00:0b"];
    let own = ["196.254.111.3", "196.254.111.4"];
    let mut guests = Vec::new();
    for index in [0, 1] {
        let other = 1 - index;
        let tries = ways_to_a_guest(own[other], macs[other]) + &to_the_host;
        let (folder, mut spec) = prepare(&script(own[index], &tries), None);
        spec.mac = Some(macs[index].parse().unwrap());
        let get = folder.path().join("get");
        fs::create_dir(&get).unwrap();
        spec.tftp.root = spec.tftp.root.clone().get_folder(get);
        guests.push(Guest::start(folder, spec).await);
    }
    for guest in &mut guests {
        guest.uploaded("up").await;
    }
    // Both are there and serve.
    for guest in &guests {
        fs::write(guest.folder.path().join("get/go"), "go\n").unwrap();
    }
    for guest in &mut guests {
        let told = String::from_utf8(guest.uploaded("told").await).unwrap();
        assert!(told.starts_with("the-word\nself\n"), "{told}");
        assert!(!told.contains("REACHED"), "{told}");
        assert!(told.contains("not by wget -T 3"), "{told}");
        assert!(
            told.contains(&format!(
                "not by timeout 2 tftp -g -r word -l /word 196.254.111.222 {udp_port}"
            )),
            "{told}"
        );
    }

    // The host has heard nobody, and would have.
    tcp.set_nonblocking(true).unwrap();
    assert!(tcp.accept().is_err(), "a guest has reached a TCP port");
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, tcp_port));
    let _heard = TcpStream::connect(here).unwrap();
    tcp.set_nonblocking(false).unwrap();
    tcp.accept().unwrap();
    let us = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    us.send_to(b"us", (Ipv4Addr::LOCALHOST, udp_port)).unwrap();
    udp.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut word = [0; 100];
    let (length, _) = udp.recv_from(&mut word).unwrap();
    assert_eq!(&word[..length], b"us", "a guest has reached a UDP port");
}
