//! The second card leads out of the host and not into it.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use bbot_machine::machine::Network;

use super::support::{Guest, is_installed, missing, must_skip, prepare};

const ROLE: &str = "BBOT_TEST_IN_A_NAMESPACE";

/// The host's own address in the namespace, and that of a host next to it.
const HOST: &str = "10.99.0.1";
const OTHER: &str = "10.99.0.2";

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

/// Says `word` to everyone who connects.
fn greet(address: &str, word: &'static str) -> u16 {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            // Who has hung up has heard enough.
            let _ = stream.write_all(word.as_bytes());
        }
    });
    port
}

/// The test proper, in a network namespace of its own: another namespace plays
/// the world.
#[tokio::test]
async fn in_a_namespace() {
    if std::env::var_os(ROLE).is_none() {
        return;
    }
    ip("link set lo up");
    let mut world = Command::new("unshare")
        .args(["-n", "sh", "-c", "echo ready; exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    world.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let there = format!("nsenter -t {} -n", world.id());
    ip("link add out type veth peer name in");
    ip(&format!("link set in netns {}", world.id()));
    ip(&format!("addr add {HOST}/24 dev out"));
    ip("link set out up");
    ip(&format!("route add default via {OTHER}"));
    let outside = |command: &str| {
        let status = Command::new("sh").args(["-c", &format!("{there} {command}")]).status();
        assert!(status.unwrap().success(), "{command}");
    };
    outside(&format!("ip addr add {OTHER}/24 dev in"));
    outside("ip link set in up");
    // A server in the world, that says so to whoever connects.
    let mut server = Command::new("sh")
        .args(["-c", &format!("exec {there} busybox nc -ll -p 7777 -e echo world")])
        .spawn()
        .unwrap();

    let loopback = greet("127.0.0.1", "loopback");
    let everywhere = greet("0.0.0.0", "everywhere");
    let own = greet(HOST, "own");
    // What is at a host's loopback under the addresses that user-mode networks
    // give it, or under its own, must stay unheard; what is outside must be heard.
    let script = format!(
        "ask() {{ nc -w 5 $1 $2 < /dev/null >> /heard 2>> /errors; }}\n\
         : > /heard; : > /errors\n\
         ask {OTHER} 7777\n\
         for host in 10.0.2.2 10.0.2.3 {HOST} 196.254.111.222; do\n\
           for port in {loopback} {everywhere} {own}; do ask $host $port; done\n\
         done\n\
         route -n > /route\n\
         ip route add 127.0.0.0/8 via 10.0.2.2 2>/dev/null\n\
         tftp -p -r route -l /route 196.254.111.222\n\
         tftp -p -r heard -l /heard 196.254.111.222"
    );
    let (folder, mut spec) = prepare(&script, None);
    spec.network = Network::User;
    let mut guest = Guest::start(folder, spec).await;
    let route = String::from_utf8(guest.uploaded("route").await).unwrap();
    assert!(route.lines().any(|line| line.starts_with("0.0.0.0") && line.ends_with("eth1")), "{route}");
    let heard = String::from_utf8(guest.uploaded("heard").await).unwrap();
    server.kill().unwrap();
    server.wait().unwrap();
    world.kill().unwrap();
    world.wait().unwrap();
    guest.machine.force_down().await.unwrap();
    assert_eq!(heard, "world\n", "{}", guest.console());
    println!("the guest heard the world alone");
}

#[test]
fn a_guest_reaches_the_world_but_no_port_of_the_host() {
    if must_skip() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        missing("root", "namespaces for the test need root");
        return;
    }
    if !is_installed("passt") {
        missing("passt", "passt is not installed");
        return;
    }
    let output = Command::new("unshare")
        .arg("-n")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "internet::in_a_namespace", "--nocapture"])
        .env(ROLE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(said.contains("the guest heard the world alone"), "{said}\n{errors}");
}
