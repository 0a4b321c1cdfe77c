//! The controller from outside: real HTTP by `curl`, real keys by `openssl`, real processes.

mod agents;
mod api;
mod challenge;
mod git;
mod hostile;
mod pages;
mod process;
mod store;
mod support;
