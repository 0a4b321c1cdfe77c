//! How machines reach their agent: each agent that is started has its machines on another network than the one before,
//! so that whatever a killed one leaves of its network is found by one that has none of its own there.

use std::cell::Cell;
use std::fmt;
use std::path::Path;
use std::process::Command;

use super::process::Running;

/// A network of the machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Network {
    /// The agent's own wire.
    Wire,
    /// The bridge `br1`, with addresses from dnsmasq.
    Bridge,
    /// The wire, and the internet as a second card.
    User,
}

impl Network {
    /// The agent's options for it.
    pub(super) fn options(self) -> [&'static str; 2] {
        match self {
            Self::Wire => ["--network", "none"],
            Self::Bridge => ["--bridge", "br1"],
            Self::User => ["--network", "user"],
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wire => "the wire",
            Self::Bridge => "the bridge",
            Self::User => "the internet",
        })
    }
}

/// The networks that can be had here.
#[derive(Debug)]
pub(super) struct Networks {
    all: Vec<Network>,
    /// How many agents were started.
    agents: Cell<usize>,
    _dnsmasq: Option<Running>,
}

impl Networks {
    /// Makes them, in the namespace of this test; what needs a program that is missing is left out, with a word.
    pub(super) fn make(log: &Path) -> anyhow::Result<Self> {
        let mut all = vec![Network::Wire];
        let mut dnsmasq = None;
        if testkit::program("nft", "nft") && testkit::program("dnsmasq", "dnsmasq") {
            ip(&[
                "link add br1 type bridge",
                "address add 192.168.77.1/24 dev br1",
                "link set br1 up",
            ]);
            dnsmasq = Some(Running::start("dnsmasq", &mut serve_br1(), log)?);
            all.push(Network::Bridge);
        } else {
            println!("no machine is on a bridge");
        }
        if testkit::program("passt", "passt") {
            // Nobody is out there, but a host without a way out has no internet to give.
            ip(&[
                "link add out type veth peer name in",
                "address add 10.99.0.1/24 dev out",
                "link set in up",
                "link set out up",
                "route add default via 10.99.0.2",
            ]);
            all.push(Network::User);
        } else {
            println!("no machine has the internet");
        }
        Ok(Self {
            all,
            agents: Cell::new(0),
            _dnsmasq: dnsmasq,
        })
    }

    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// That of the agent that was started last.
    pub(super) fn current(&self) -> Network {
        self.all[self.agents.get() % self.all.len()]
    }

    /// That of the next agent.
    pub(super) fn next(&self) -> Network {
        self.agents.set(self.agents.get() + 1);
        self.current()
    }
}

fn ip(lines: &[&str]) {
    for line in lines {
        testkit::run("ip", &line.split(' ').collect::<Vec<_>>());
    }
}

fn serve_br1() -> Command {
    let mut command = Command::new("dnsmasq");
    command.args([
        "--no-daemon",
        "--conf-file=/dev/null",
        "--interface=br1",
        "--bind-interfaces",
        "--port=0",
        "--dhcp-range=192.168.77.50,192.168.77.150,1h",
        "--leasefile-ro",
        "--user=root",
    ]);
    command
}
