//! Machines on a bridge of the host's, as the original has them (`docs/decisions/0009-bridge.md`).
//!
//! The machine's one card is a tap on the bridge. Whoever serves the bridge gives it an address and
//! the way out; the agent serves TFTP for it at a port of the bridge's address, to which
//! 196.254.111.222, UDP port 69, is mapped for packets from that tap alone. What is called a tap here
//! is one end of a pair (veth) for a container, whose other end is the container's card.
//!
//! ```text
//!   plan      whether machines are put on a bridge: a pure function
//!   host      what it decides by
//!   rules     the mapping, as text for nft
//!   tap       making a tap
//!   server    the run's TFTP server
//!   attached  all of it for one machine, as one guard
//!   sweep     what killed agents have left of it
//! ```

mod attached;
mod command;
mod host;
mod name;
mod plan;
mod rules;
mod server;
mod sweep;
mod tap;

pub(crate) use attached::attach;
pub use attached::{Attached, GuestEnd, RECORDS};
pub use host::facts;
pub use name::{BadName, InterfaceName, LONGEST};
pub use plan::{DEFAULT_BRIDGE, Facts, Interface, Plan, Unusable, Wanted, decide};
pub use rules::{Mapping, load, unload};
pub use sweep::{Kept, Problem, Swept, sweep};

/// A bridge for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: InterfaceName,
    /// The first UDP port to try for a machine's TFTP; the next free one is taken.
    pub port: u16,
    /// It is used because it is there; nobody asked for it. Then only machines that an original's
    /// agent could run are put on it.
    pub by_default: bool,
}
