//! Build machines: volumes and snapshots, virtual machines, and the machine's
//! own network.
//!
//! Knows nothing of controllers and tasks.

pub mod accel;
pub mod create;
pub mod durable;
pub mod mac;
pub mod volume;
pub mod machine;
pub mod qemu;
pub mod wire;
