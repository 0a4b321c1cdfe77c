//! The controller from outside: real HTTP by `curl`, real keys by `openssl`, real processes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod agents;
mod api;
mod artifacts;
mod backup;
mod bad_input;
mod bucket;
mod cancel;
mod challenge;
mod cluster;
mod crowd;
mod damage;
mod document;
mod failures;
mod follow;
mod git;
mod hostile;
mod kills;
mod lanes;
mod late;
mod many;
mod migrations;
mod model;
mod objects;
mod order;
mod packages;
mod pages;
mod plans;
mod process;
mod rebuilds;
mod retire;
mod sessions;
mod shared;
mod shutdown;
mod signed;
mod signing;
mod silence;
mod steer;
mod store;
mod support;
mod tls;
mod tokens;
mod upkeep;
mod waits;
mod watch;
