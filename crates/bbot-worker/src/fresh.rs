//! What a machine that is saved and restored again makes its own, before anything else runs in it.
//!
//! ```text
//!   save      all other processes are stopped, the disks are in order; the agent saves the machine
//!   (later)   the agent restores a copy of it, and answers
//!   restored  entropy, clock; then the others go on
//! ```
//!
//! All copies of a saved machine begin with one state: the same random numbers to come, and a clock
//! that has stood still since.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail, ensure};
use bbot_manifest::Fresh;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getpid};

use crate::channel::Channel;

/// A clock that is right within half of this is right; an answer that took longer is asked for again.
const CLOSE: Duration = Duration::from_millis(20);

/// How often the time is asked for; the quickest answer counts.
const QUESTIONS: u32 = 5;

/// The entropy of a seed, in bytes.
const SEED: usize = 32;

/// Stops all processes but the first one and this, and has what they have written on the disks, so
/// that a machine which is saved now changes no more by itself.
pub(crate) fn stop_others() {
    signal_others(Signal::SIGSTOP);
    nix::unistd::sync();
}

/// Lets them go on.
pub(crate) fn go_on() {
    signal_others(Signal::SIGCONT);
}

fn signal_others(signal: Signal) {
    // As the first process of a system that is nothing but a worker, or without the right to: then
    // there are no others that matter. A signal to all never reaches who sends it.
    if getpid() != Pid::from_raw(1)
        && let Err(error) = kill(Pid::from_raw(-1), signal)
    {
        eprintln!("trace: {signal} to all others: {error}");
    }
}

/// Makes the machine's entropy and clock its own. What cannot be done is told; the build goes on,
/// since a wrong clock is better than none.
pub(crate) fn make(channel: &Channel, fresh: &Fresh) {
    if let Err(error) = reseed(&fresh.seed) {
        eprintln!("error: the entropy of this machine is that of others: {error:#}");
    }
    if let Err(error) = set_clock(channel, &fresh.clock) {
        eprintln!("error: the clock of this machine is wrong: {error:#}");
    }
}

/// `struct rand_pool_info` of random(4), with a seed in it.
#[repr(C)]
struct Pool {
    /// In bits.
    entropy: libc::c_int,
    /// In bytes.
    size: libc::c_int,
    bytes: [u8; SEED],
}

/// Linux's requests of random(4), which libc does not name: `_IOW('R', 3, int[2])` and `_IO('R', 7)`.
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// Gives the kernel a seed, and has its generators begin anew with it.
fn reseed(seed: &str) -> anyhow::Result<()> {
    let mut pool = Pool {
        entropy: 256,
        size: 32,
        bytes: [0; SEED],
    };
    hex::decode_to_slice(seed, &mut pool.bytes).context("the seed is none")?;
    let random = File::options()
        .read(true)
        .write(true)
        .open("/dev/random")
        .context("cannot open /dev/random")?;
    #[expect(unsafe_code, reason = "there is no other way to credit entropy")]
    // SAFETY: the descriptor is open, and the pointer is to a live value of the type that this
    // request reads.
    let added = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY as _, &raw const pool) };
    if added != 0 {
        return Err(io::Error::last_os_error()).context("the kernel takes no entropy");
    }
    #[expect(
        unsafe_code,
        reason = "there is no other way to have the generators reseeded"
    )]
    // SAFETY: the descriptor is open, and this request takes no argument.
    let reseeded = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG as _) };
    if reseeded != 0 {
        return Err(io::Error::last_os_error()).context("the kernel does not reseed");
    }
    Ok(())
}

/// Sets the clock by the agent's: what it says, and half of the time that the answer took.
fn set_clock(channel: &Channel, name: &str) -> anyhow::Result<()> {
    let mut best: Option<(Duration, Duration, Instant)> = None;
    for _ in 0..QUESTIONS {
        let asked = Instant::now();
        let answer = channel.get_bytes(name).context("the agent tells no time")?;
        let answered = Instant::now();
        let (time, took) = (read_time(&answer)?, answered - asked);
        if best.is_none_or(|(_, least, _)| took < least) {
            best = Some((time, took, answered));
        }
        if took < CLOSE {
            break;
        }
    }
    let Some((time, took, answered)) = best else {
        bail!("the agent was not asked");
    };
    set(time + took / 2 + answered.elapsed())
}

/// Nanoseconds since 1970.
fn read_time(bytes: &[u8]) -> anyhow::Result<Duration> {
    let text = std::str::from_utf8(bytes).context("the time is not text")?;
    let nanoseconds: u64 = text
        .trim()
        .parse()
        .with_context(|| format!("'{}' is no time", text.escape_debug()))?;
    Ok(Duration::from_nanos(nanoseconds))
}

fn set(time: Duration) -> anyhow::Result<()> {
    let to = UNIX_EPOCH + time;
    let at = nix::sys::time::TimeSpec::from_duration(time);
    nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, at)
        .context("the kernel does not let the clock be set")?;
    let off = SystemTime::now().duration_since(to).unwrap_or_default();
    ensure!(off < Duration::from_secs(60), "it does not stay set");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(read_time(b"0").unwrap(), Duration::ZERO);
        assert_eq!(
            read_time(b"1764265200123456789\n").unwrap(),
            Duration::new(1_764_265_200, 123_456_789)
        );
        for bad in [&b""[..], b"now", b"-1", b"99999999999999999999", b"\xff"] {
            assert!(read_time(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_seed_must_be_one() {
        for bad in ["", "00", &"x".repeat(64), &"0".repeat(66)] {
            let error = reseed(bad).unwrap_err().to_string();
            assert_eq!(error, "the seed is none", "{bad}");
        }
    }
}
