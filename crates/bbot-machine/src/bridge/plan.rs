//! Whether machines are put on a bridge: a pure function of what was asked for and what there is.

use super::{Bridge, InterfaceName};

/// The bridge that the original uses.
pub const DEFAULT_BRIDGE: &str = "br1";

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// No bridge: the agent's own wire, perhaps with a second card.
    Wire,
    /// This bridge where it is there and may be used.
    IfUsable(InterfaceName),
    /// This bridge and nothing else.
    Bridge(InterfaceName),
}

/// What the host has for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// What there is of the name.
    pub interface: Interface,
    /// Whether this process may change the network (`CAP_NET_ADMIN`).
    pub may_change: bool,
    /// Whether `/dev/net/tun` can be opened, or why not.
    pub tun: Result<(), String>,
    /// The first program that is missing: `ip` or `nft`.
    pub missing: Option<&'static str>,
}

/// What there is of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Interface {
    /// Nothing.
    Missing,
    /// An interface that is no bridge.
    NoBridge,
    /// A bridge.
    Bridge {
        /// Whether it has an IPv4 address.
        has_address: bool,
        /// Whether it is up.
        is_up: bool,
    },
    /// It could not be found out.
    Unknown(String),
}

/// What becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// The agent's own wire.
    Wire,
    /// The agent's own wire, since the bridge that is there cannot be used; to be told once.
    WireSince(Unusable),
    /// The bridge.
    Bridge(Bridge),
}

/// Why a bridge cannot be used, and how to mend it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// There is no such interface.
    #[error(
        "there is no bridge {0}: make it (ip link add {0} type bridge), or choose another by --bridge"
    )]
    Missing(InterfaceName),
    /// The interface is no bridge.
    #[error("network interface {0} is no bridge: choose another by --bridge")]
    NoBridge(InterfaceName),
    /// The bridge has no address, at which the agent would serve.
    #[error(
        "bridge {0} has no IPv4 address: give it one (ip address add ADDRESS/24 dev {0}), for the agent to serve at"
    )]
    NoAddress(InterfaceName),
    /// The bridge is down.
    #[error("bridge {0} is down: bring it up (ip link set {0} up)")]
    Down(InterfaceName),
    /// The right is missing.
    #[error(
        "bridge {0} needs the right to make network devices and rules: run the agent as root, or give it \
         CAP_NET_ADMIN and CAP_NET_RAW (systemd: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW)"
    )]
    NoRight(InterfaceName),
    /// Taps cannot be made.
    #[error("bridge {bridge} needs taps, and /dev/net/tun cannot be opened: {why} (modprobe tun)")]
    NoTun {
        /// The bridge.
        bridge: InterfaceName,
        /// The system's words.
        why: String,
    },
    /// A program is missing.
    #[error("bridge {bridge} needs the program {program}: install the package {package}")]
    NoProgram {
        /// The bridge.
        bridge: InterfaceName,
        /// The program.
        program: &'static str,
        /// Debian's package of it.
        package: &'static str,
    },
    /// The system does not tell.
    #[error("unable to find out about bridge {bridge}: {why}")]
    Unknown {
        /// The bridge.
        bridge: InterfaceName,
        /// Its words.
        why: String,
    },
}

/// Decides. `port` is the first port to try for the machines' TFTP.
///
/// # Errors
///
/// When a bridge was asked for and cannot be used.
pub fn decide(wanted: Wanted, facts: &Facts, port: u16) -> Result<Plan, Unusable> {
    let (name, must) = match wanted {
        Wanted::Wire => return Ok(Plan::Wire),
        Wanted::IfUsable(name) => (name, false),
        Wanted::Bridge(name) => (name, true),
    };
    match (check(name, facts), must) {
        (Ok(()), must) => Ok(Plan::Bridge(Bridge {
            name,
            port,
            by_default: !must,
        })),
        (Err(why), true) => Err(why),
        (Err(Unusable::Missing(_)), false) => Ok(Plan::Wire),
        (Err(why), false) => Ok(Plan::WireSince(why)),
    }
}

fn check(name: InterfaceName, facts: &Facts) -> Result<(), Unusable> {
    match &facts.interface {
        Interface::Missing => return Err(Unusable::Missing(name)),
        Interface::NoBridge => return Err(Unusable::NoBridge(name)),
        Interface::Unknown(why) => {
            return Err(Unusable::Unknown {
                bridge: name,
                why: why.clone(),
            });
        }
        Interface::Bridge {
            has_address: false, ..
        } => return Err(Unusable::NoAddress(name)),
        Interface::Bridge { is_up: false, .. } => return Err(Unusable::Down(name)),
        Interface::Bridge { .. } => {}
    }
    if !facts.may_change {
        return Err(Unusable::NoRight(name));
    }
    if let Err(why) = &facts.tun {
        return Err(Unusable::NoTun {
            bridge: name,
            why: why.clone(),
        });
    }
    match facts.missing {
        None => Ok(()),
        Some(program) => Err(Unusable::NoProgram {
            bridge: name,
            program,
            package: if program == "nft" {
                "nftables"
            } else {
                "iproute2"
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn br1() -> InterfaceName {
        DEFAULT_BRIDGE.parse().unwrap()
    }

    fn good() -> Facts {
        Facts {
            interface: Interface::Bridge {
                has_address: true,
                is_up: true,
            },
            may_change: true,
            tun: Ok(()),
            missing: None,
        }
    }

    #[test]
    fn the_plan_by_table() {
        let name = br1();
        let bad = |change: &dyn Fn(&mut Facts)| {
            let mut facts = good();
            change(&mut facts);
            facts
        };
        let bridge = |has_address, is_up| Interface::Bridge { has_address, is_up };
        let cases = [
            (
                bad(&|f| f.interface = Interface::Missing),
                Unusable::Missing(name),
            ),
            (
                bad(&|f| f.interface = Interface::NoBridge),
                Unusable::NoBridge(name),
            ),
            (
                bad(&|f| f.interface = bridge(false, true)),
                Unusable::NoAddress(name),
            ),
            (
                bad(&|f| f.interface = bridge(true, false)),
                Unusable::Down(name),
            ),
            (bad(&|f| f.may_change = false), Unusable::NoRight(name)),
            (
                bad(&|f| f.tun = Err("no such device".to_owned())),
                Unusable::NoTun {
                    bridge: name,
                    why: "no such device".to_owned(),
                },
            ),
            (
                bad(&|f| f.missing = Some("nft")),
                Unusable::NoProgram {
                    bridge: name,
                    program: "nft",
                    package: "nftables",
                },
            ),
            (
                bad(&|f| f.interface = Interface::Unknown("odd".to_owned())),
                Unusable::Unknown {
                    bridge: name,
                    why: "odd".to_owned(),
                },
            ),
        ];
        for (facts, why) in cases {
            // Whoever asked for it is told; who did not gets the wire, and is told unless there is nothing to tell.
            assert_eq!(decide(Wanted::Bridge(name), &facts, 1), Err(why.clone()));
            let told = decide(Wanted::IfUsable(name), &facts, 1);
            let expected = match why {
                Unusable::Missing(_) => Plan::Wire,
                why => Plan::WireSince(why),
            };
            assert_eq!(told, Ok(expected));
            assert_eq!(decide(Wanted::Wire, &facts, 1), Ok(Plan::Wire));
        }
        for (wanted, by_default) in [
            (Wanted::IfUsable(name), true),
            (Wanted::Bridge(name), false),
        ] {
            let port = 23401;
            let bridge = Bridge {
                name,
                port,
                by_default,
            };
            let plan = decide(wanted, &good(), port);
            assert_eq!(plan, Ok(Plan::Bridge(bridge)));
        }
        assert_eq!(decide(Wanted::Wire, &good(), 23401), Ok(Plan::Wire));
    }
}
