//! Build machines: volumes and snapshots, virtual machines, and the machine's
//! own network.
//!
//! Knows nothing of controllers and tasks.

pub mod accel;
pub mod bridge;
pub mod create;
pub mod durable;
pub mod hypervisor;
pub mod layout;
pub mod mac;
pub mod machine;
pub mod nspawn;
pub mod owner;
pub mod qemu;
mod socket_folder;
pub mod volume;
pub mod warm;
pub mod wire;
