//! The agent: asks controllers for build tasks, runs each in a throw-away
//! machine, and posts the results.
//!
//! The way of a task reads off the files:
//!
//! ```text
//! options      what the operator wants
//! agent        the loop: machines, task, result
//! supervisor   what to do next: pure decisions
//! inventory    which machines there are, which must be bootstrapped
//! bootstrap    making a machine ready for builds
//! controller   HTTP: asking for a task, posting a result
//! source       the archive that a task names
//! task         running a task in a copy of its machine
//! run          what a bootstrap and a task have in common: waiting for a guest
//! result       what became of the task
//! auth         answering the controller's challenge
//! session      the lease and the log of a running task
//! spool        the result on disk ...
//! delivery     ... until a controller has taken it
//! ```
//!
//! `status` and `metrics` show and steer a living agent, `notify` tells systemd,
//! `resources` watches what the host has left.
//! `toolchain` manages what machines are bootstrapped with; `local` is a build
//! without a controller; `diagnostics` and `version` are what they say.

mod agent;
pub mod assignment;
pub mod auth;
pub mod blocking;
pub mod bootstrap;
pub mod config;
pub mod control;
pub mod controller;
pub mod delivery;
pub mod diagnostics;
mod fake;
pub mod host;
pub mod inventory;
mod lack;
pub mod local;
pub mod metrics;
pub mod notify;
pub mod options;
mod prepared;
pub mod resources;
pub mod result;
pub mod run;
pub mod segments;
pub mod session;
pub mod source;
pub mod spool;
pub mod status;
pub mod supervisor;
pub mod suspended;
pub mod task;
pub mod toolchain;
pub mod version;
pub mod warm;

pub use agent::{run, serve};
