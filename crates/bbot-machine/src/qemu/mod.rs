//! Machines in QEMU.

pub mod process;
pub mod qmp;
