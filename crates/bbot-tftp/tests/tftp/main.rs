//! Tests of the whole: by packet, by simulation, over bad networks, with other people's programs.

// One program, so that what they share is compiled once.
#[cfg(test)]
mod bench;
#[cfg(test)]
mod client;
#[cfg(test)]
mod interop;
#[cfg(test)]
mod losses;
#[cfg(test)]
mod names;
mod one_port;
#[cfg(test)]
mod relay;
#[cfg(test)]
mod requests;
#[cfg(test)]
mod server;
#[cfg(test)]
mod simulate;
#[cfg(test)]
mod support;
#[cfg(test)]
mod uploads;
