//! The controller of the build bot: it keeps the queue of builds, hands tasks to agents, takes their
//! results, and shows all of it.
//!
//! The way of a task through here: [`http`] `api` takes a submission, [`source`] turns it into an archive,
//! [`store`] keeps it, [`queue`] decides which agent gets what, [`http`] `task` hands it out under a lease,
//! `session` hears of the agent and takes the log as it grows ([`segments`]), `result` takes what comes back, and the
//! API and the pages show it.
//!
//! [`run`] is the whole daemon; the program `bbot-controller` adds only a command line.

pub mod auth;
pub mod backup;
pub mod buildtab;
pub mod clock;
pub mod config;
pub mod config_file;
mod crew;
mod database_url;
mod dispatch;
mod figures;
pub mod http;
mod log_limit;
pub mod login;
pub mod objects;
pub mod options;
mod pace;
pub mod package;
mod patience;
pub mod pattern;
mod pending;
pub mod queue;
mod roll;
mod room;
pub mod segments;
mod server;
pub mod source;
pub mod store;
mod tls;
mod token;
pub mod upkeep;
pub mod watchdog;
mod watched;

pub use config::{Config, EraChoice, Limits, TlsFiles};
pub use server::{RunError, run};
pub use token::{Scope, Scopes};
