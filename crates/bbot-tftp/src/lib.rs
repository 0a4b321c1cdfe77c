//! TFTP as state machines without network I/O, and blocking drivers for real UDP sockets.
//!
//! The specifications: RFC 1350 (the protocol), 2347 (options), 2348 (`blksize`), 2349 (`tsize`,
//! `timeout`) and 7440 (`windowsize`). Octet mode both ways, netascii for GET.
//!
//! Why our own: the server must decide by name what may be read and written, must acknowledge an
//! upload only when it is on disk under its name, must repeat that acknowledgement when it is lost,
//! and must run where there is no socket at all: on the frames of a virtual machine's network card.
//!
//! ```text
//!   packet, options, netascii      what is on the wire
//!   sender, receiver               the two ends of a transfer, used by server and client alike
//!   root, upload                   which names can be read and written, and where they are
//!   session                        one transfer of a server: request, sender or receiver, its events
//!   server                         all transfers of one server, without I/O (a machine's wire)
//!   udp                            the same transfers over a real socket, a thread each
//!   runs                           a window over a real socket with one system call
//!   client                         GET and PUT: a state machine, and a blocking driver over UDP
//! ```
//!
//! Time is always given by the caller, so that a test can run hours of losses in a moment.

pub mod client;
mod limits;
mod name;
mod netascii;
mod options;
pub mod packet;
pub mod receiver;
mod retry;
mod root;
mod runs;
pub mod sender;
mod server;
mod session;
mod socket;
mod transfer;
pub mod udp;
mod upload;

pub use limits::{Limits, Retransmit};
pub use name::{BadName, Name};
pub use root::Root;
pub use server::{Outgoing, REQUEST_PORT, Server};
pub use session::{Event, Kind};
pub use transfer::{Failure, Output, Refusal, Sink, State};
