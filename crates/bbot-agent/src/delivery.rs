//! Getting results to their controllers: from the spool, again and again, until
//! each is taken or refused.

mod old;
pub mod plan;

pub use old::Delivery;
