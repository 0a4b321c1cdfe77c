//! What the host has for machines on a bridge.

use std::io;
use std::net::Ipv4Addr;

use nix::ifaddrs::getifaddrs;
use serde_json::Value;

use super::command;
use super::plan::{Facts, Interface};
use super::server::Net;
use super::{InterfaceName, tap};
use crate::mac::Mac;

/// The bit of `CAP_NET_ADMIN`.
const CAP_NET_ADMIN: u32 = 12;

/// Finds out what [`super::decide`] needs. Blocks for a moment.
pub fn facts(name: InterfaceName) -> Facts {
    let missing = ["ip", "nft"]
        .into_iter()
        .find(|program| command::find(program).is_none());
    Facts {
        interface: interface(name),
        may_change: may_change(),
        tun: tap::open_device()
            .map(drop)
            .map_err(|error| error.to_string()),
        missing,
    }
}

fn interface(name: InterfaceName) -> Interface {
    match nix::net::if_::if_nametoindex(name.as_str()) {
        Ok(_) => {}
        Err(nix::errno::Errno::ENODEV | nix::errno::Errno::ENXIO) => return Interface::Missing,
        Err(error) => return Interface::Unknown(error.to_string()),
    }
    if command::find("ip").is_none() {
        // What is missing is told by itself.
        return Interface::Bridge {
            has_address: true,
            is_up: true,
        };
    }
    let link = match link(name) {
        Ok(Some(link)) => link,
        Ok(None) => return Interface::Missing,
        Err(error) => return Interface::Unknown(error.to_string()),
    };
    if link["linkinfo"]["info_kind"] != "bridge" {
        return Interface::NoBridge;
    }
    let is_up = link["flags"]
        .as_array()
        .is_some_and(|flags| flags.iter().any(|flag| flag == "UP"));
    match net_of(name) {
        Ok(net) => Interface::Bridge {
            has_address: net.is_some(),
            is_up,
        },
        Err(error) => Interface::Unknown(error.to_string()),
    }
}

/// What `ip` says of an interface. None: there is none of the name.
pub(super) fn link(name: InterfaceName) -> io::Result<Option<Value>> {
    let is_missing = || {
        matches!(
            nix::net::if_::if_nametoindex(name.as_str()),
            Err(nix::errno::Errno::ENODEV | nix::errno::Errno::ENXIO)
        )
    };
    if is_missing() {
        return Ok(None);
    }
    let arguments = ["-json", "-details", "link", "show", "dev", name.as_str()];
    let said = match command::run("ip", &arguments, "") {
        // It went meanwhile, as that of a container does a moment after its namespace.
        Err(_) if is_missing() => return Ok(None),
        said => said?,
    };
    let list: Value = serde_json::from_str(&said).map_err(io::Error::other)?;
    Ok(list.get(0).filter(|link| link.is_object()).cloned())
}

/// The interface's first IPv4 network.
pub(super) fn net_of(name: InterfaceName) -> io::Result<Option<Net>> {
    Ok(getifaddrs()?
        .filter(|interface| interface.interface_name == name.as_str())
        .find_map(|interface| {
            let address = interface.address?.as_sockaddr_in()?.ip();
            let mask = interface
                .netmask
                .and_then(|mask| Some(mask.as_sockaddr_in()?.ip()))
                .unwrap_or(Ipv4Addr::BROADCAST);
            Some(Net { address, mask })
        }))
}

/// The address that a bridge is to keep, where it may take one of ours: it takes the lowest of its
/// ports, and with the port it goes. None: it has a port of somebody else's, whose address is lower.
pub(super) fn address_to_keep(name: InterfaceName) -> io::Result<Option<Mac>> {
    let arguments = ["-json", "link", "show", "master", name.as_str()];
    let said = command::run("ip", &arguments, "")?;
    let ports: Vec<Value> = serde_json::from_str(&said).map_err(io::Error::other)?;
    if !ports.iter().all(is_tap_of_ours) {
        return Ok(None);
    }
    let link = link(name)?.unwrap_or_default();
    Ok(link["address"].as_str().and_then(|mac| mac.parse().ok()))
}

/// By its name: what else tells it is there a moment later.
fn is_tap_of_ours(port: &Value) -> bool {
    let number = port["ifname"]
        .as_str()
        .and_then(|name| name.strip_prefix("bbot"));
    number.is_some_and(|number| number.parse::<u16>().is_ok())
}

fn may_change() -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .is_some_and(|bits| bits >> CAP_NET_ADMIN & 1 == 1)
}
