//! The supervisor: what the agent does next, decided without I/O and without a clock.
pub mod api;
pub mod priority;

pub use api::*;
pub use priority::{Priority, PriorityError};
