//! Machines on a bridge, for real: in a network namespace of each test's own, with a bridge `br1`.
//!
//! A test runs itself once more inside (`unshare`), where it is process 1: whatever it starts ends with it, and taps,
//! rules and records are seen by nobody else.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod apart;
mod cleanup;
mod containers;
mod guests;
mod namespace;
#[path = "../nspawn/support.rs"]
#[expect(dead_code, reason = "shared with the tests of containers")]
mod nspawn;
#[path = "../qemu/support.rs"]
#[expect(dead_code, reason = "shared with the tests of QEMU")]
mod support;
