//! Machines in a real QEMU, with a real kernel in them.
//!
//! The guest is Debian's cloud kernel with a busybox; it fetches a script over
//! its wire and runs it, so each test says in a few lines what its guest does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accelerator;
mod alone;
mod attach;
mod fresh;
mod guest;
mod hostile;
mod internet;
#[path = "../internet_support/mod.rs"]
mod internet_support;
mod lifetime;
mod refusals;
mod support;
mod warm;
#[path = "../wire_support/mod.rs"]
mod wire_support;
