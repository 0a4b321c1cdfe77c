//! A world for the second card: a network namespace for the host, and one that plays what is outside of it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

const ROLE: &str = "BBOT_TEST_IN_A_NAMESPACE";

/// The host's own address in the namespace, and that of a host next to it.
const HOST: &str = "10.99.0.1";
const OTHER: &str = "10.99.0.2";

/// A child that does not outlive the test, however that ends.
struct Helper(Child);

impl Helper {
    fn start(program: &str, arguments: &[&str]) -> Self {
        Self(
            Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .unwrap();
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

/// Whether this process is the test proper, in a namespace of its own.
pub(crate) fn is_in_a_namespace() -> bool {
    std::env::var_os(ROLE).is_some()
}

/// Runs the test `internet::in_a_namespace` of this program in a network namespace of its own.
pub(crate) fn run_in_a_namespace() {
    let output = Command::new("timeout")
        .args(["-k", "5", "400", "unshare", "-n"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "internet::in_a_namespace", "--nocapture"])
        .env(ROLE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert!(
        said.contains("the guest heard the world alone"),
        "{said}\n{errors}"
    );
}

/// The world, as long as this is there.
pub(crate) struct World {
    _namespace: Helper,
    _server: Helper,
    /// What a guest does that asks everybody, and uploads its `route` and what it `heard`.
    pub(crate) script: String,
}

/// Makes the world, in a namespace of the test's own.
pub(crate) fn world() -> World {
    ip("link set lo up");
    let mut world = Helper::start("unshare", &["-n", "sh", "-c", "echo ready; exec cat"]);
    let mut ready = [0; 6];
    world
        .0
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut ready)
        .unwrap();
    let there = world.0.id().to_string();
    ip("link add out type veth peer name in");
    ip(&format!("link set in netns {there}"));
    ip(&format!("addr add {HOST}/24 dev out"));
    ip("link set out up");
    ip(&format!("route add default via {OTHER}"));
    for command in [
        &format!("ip addr add {OTHER}/24 dev in"),
        "ip link set in up",
    ] {
        let status = Command::new("nsenter")
            .args(["-t", &there, "-n"])
            .args(command.split(' '))
            .status();
        assert!(status.unwrap().success(), "{command}");
    }
    // A server in the world, that says so to whoever connects.
    let server = [
        "-t", &there, "-n", "busybox", "nc", "-ll", "-p", "7777", "-e", "echo", "world",
    ];
    let server = Helper::start("nsenter", &server);

    let loopback = greet("127.0.0.1", "loopback");
    let everywhere = greet("0.0.0.0", "everywhere");
    let own = greet(HOST, "own");
    // What is at a host's loopback under the addresses that user-mode networks
    // give it, or under its own, must stay unheard; what is outside must be heard.
    // Packets to 127.0.0.1 leave the guest only once it is told to let them.
    let script = format!(
        "ask() {{ timeout 5 nc -w 2 $1 $2 < /dev/null >> /heard 2>> /errors; }}\n\
         : > /heard; : > /errors\n\
         ask {OTHER} 7777\n\
         for port in {loopback} {everywhere} {own}; do\n\
           for host in 10.0.2.2 {HOST}; do ask $host $port; done\n\
         done\n\
         route -n > /route\n\
         tftp -p -r route -l /route 196.254.111.222\n\
         ifconfig lo down\n\
         for card in all eth1; do echo 1 > /proc/sys/net/ipv4/conf/$card/route_localnet; done\n\
         route add -net 127.0.0.0 netmask 255.0.0.0 gw 10.0.2.2\n\
         ask 127.0.0.1 {loopback}\n\
         tftp -p -r heard -l /heard 196.254.111.222"
    );
    World {
        _namespace: world,
        _server: server,
        script,
    }
}

/// Checks what a guest has uploaded.
pub(crate) fn check(route: &str, heard: &str, console: &str) {
    assert!(
        route
            .lines()
            .any(|line| line.starts_with("0.0.0.0") && line.ends_with("eth1")),
        "{route}"
    );
    // passt (of 2023, seen on Linux 6.18) may send twice what it has taken once.
    assert!(
        heard.starts_with("world\n") && heard.lines().all(|line| line == "world"),
        "{heard}{console}"
    );
    println!("the guest heard the world alone");
}
