//! The nftables rules of one bridge machine, as text for `nft -f -`.
//!
//! What comes in by the machine's tap for 196.254.111.222, UDP port 69, is sent to the run's own
//! port at the bridge's address; what leaves that port gets 196.254.111.222 and 69 as its source.
//! Both are rewritten packet by packet, without connection tracking: so there is no state that one
//! guest could fill or another one's packets could match, and it does not matter whether the host
//! hands bridged packets to iptables (`br_netfilter`).
//!
//! Other rules keep the guests of one bridge apart: a guest speaks with its own hardware address
//! alone and never as the agent; the run's port takes packets from its tap alone; and a tap carries no
//! answers but those of its own run, whatever a guest has made the host believe of addresses. A
//! mark tells the packets; it is on them between two hooks only, so that no other rules meet it.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::InterfaceName;
use crate::mac::Mac;
use crate::wire::AGENT;

/// The mark of the first tap's packets; that of number n is n more. The low bits are those that
/// other programs use least.
const FIRST_MARK: u32 = 0x6262_0000;

/// What the rules of a machine are made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The name of the tables.
    pub table: String,
    /// The tap.
    pub tap: InterfaceName,
    /// The tap's number, different for each that there is.
    pub number: u16,
    /// The hardware address of the guest's card.
    pub guest: Mac,
    /// The tap's own hardware address, at which the host listens.
    pub host: Mac,
    /// The bridge's address.
    pub address: Ipv4Addr,
    /// The run's port there.
    pub port: u16,
}

/// The rules that map.
pub fn load(mapping: &Mapping) -> String {
    let Mapping {
        table,
        tap,
        number,
        guest,
        host,
        address,
        port,
    } = mapping;
    let mark = FIRST_MARK + u32::from(*number);
    format!(
        "table bridge {table} {{\n\
         \tchain from_guest {{\n\
         \t\ttype filter hook prerouting priority -300; policy accept;\n\
         \t\tiifname != \"{tap}\" accept\n\
         \t\tether saddr != {guest} drop\n\
         \t\tarp saddr ether != {guest} drop\n\
         \t\tip saddr {AGENT} drop\n\
         \t\tip daddr {AGENT} udp dport 69 meta mark set {mark:#x} meta pkttype set host \
         ether daddr set {host} ip daddr set {address} udp dport set {port}\n\
         \t}}\n\
         \tchain to_guest {{\n\
         \t\ttype filter hook postrouting priority 300; policy accept;\n\
         \t\toifname \"{tap}\" ip saddr {AGENT} meta mark != {mark:#x} drop\n\
         \t}}\n\
         }}\n\
         table ip {table} {{\n\
         \tchain in {{\n\
         \t\ttype filter hook prerouting priority -450; policy accept;\n\
         \t\tip daddr {address} udp dport {port} meta mark != {mark:#x} drop\n\
         \t\tmeta mark {mark:#x} meta mark set 0\n\
         \t}}\n\
         \tchain out {{\n\
         \t\ttype filter hook postrouting priority 450; policy accept;\n\
         \t\tip saddr {address} udp sport {port} meta mark set {mark:#x} \
         ip saddr set {AGENT} udp sport set 69\n\
         \t}}\n\
         }}\n"
    )
}

/// The rules that undo it, whether it was done or not: what is deleted is declared first.
pub fn unload(table: &str) -> String {
    let mut text = String::new();
    for family in ["bridge", "ip"] {
        let _ = write!(
            text,
            "table {family} {table} {{}}\ndelete table {family} {table}\n"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_is_bound_to_the_tap() {
        let mapping = Mapping {
            table: "bbot-0123".to_owned(),
            tap: "bbot7".parse().unwrap(),
            number: 7,
            guest: Mac([2, 0, 0, 0, 0, 0x0a]),
            host: Mac([0xfe, 0, 0, 0, 0, 0x0a]),
            address: Ipv4Addr::new(192, 168, 7, 1),
            port: 23401,
        };
        let text = load(&mapping);
        for part in [
            "table bridge bbot-0123 {",
            "table ip bbot-0123 {",
            "iifname != \"bbot7\" accept",
            "ether saddr != 02:00:00:00:00:0a drop",
            "ip daddr 196.254.111.222 udp dport 69 meta mark set 0x62620007",
            "ether daddr set fe:00:00:00:00:0a ip daddr set 192.168.7.1 udp dport set 23401",
            "oifname \"bbot7\" ip saddr 196.254.111.222 meta mark != 0x62620007 drop",
            "ip daddr 192.168.7.1 udp dport 23401 meta mark != 0x62620007 drop",
            "ip saddr set 196.254.111.222 udp sport set 69",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert_eq!(
            unload("x"),
            "table bridge x {}\ndelete table bridge x\ntable ip x {}\ndelete table ip x\n"
        );
    }
}
