//! Machines in real containers.
//!
//! The container's system is a busybox; it fetches a script over its wire and runs it, so each test
//! says in a few lines what its guest does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod apart;
mod bounds;
mod copies;
mod created;
mod guest;
mod internet;
#[path = "../internet_support/mod.rs"]
mod internet_support;
mod lifetime;
mod refusals;
mod support;
#[path = "../wire_support/mod.rs"]
mod wire_support;
mod worker;
