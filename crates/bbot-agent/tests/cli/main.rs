//! The real `bbot-agent`: its dumps, its fakes, its signals, its exit statuses, and
//! what it says over real HTTP to controllers of both eras.

#![expect(
    clippy::unwrap_used,
    reason = "what is not as it should be fails the test"
)]

mod fakes;
mod http;
mod power;
#[path = "../../src/controller/scripted.rs"]
mod scripted;
mod support;
mod tls;
mod usage;
