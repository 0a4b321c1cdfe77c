//! Telling systemd how the agent is: `sd_notify(3)`, spoken directly, since it is one
//! datagram to the socket that `NOTIFY_SOCKET` names.
//!
//! Where the variable is not set, nothing is sent. A message that cannot be sent is
//! dropped: the agent does not depend on who started it.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::Instant;

/// The way to systemd, or none.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Notify {
    /// As the environment says (`NOTIFY_SOCKET`).
    pub fn from_env() -> Self {
        match std::env::var_os("NOTIFY_SOCKET") {
            Some(path) if !path.is_empty() => Self::to(&path).unwrap_or_else(|e| {
                tracing::warn!(
                    "unable to tell systemd how the agent is: NOTIFY_SOCKET={}: {e}",
                    path.display()
                );
                Self::default()
            }),
            _ => Self::default(),
        }
    }

    /// To this socket: a path, or a name in the abstract name space when it begins
    /// with `@`.
    ///
    /// # Errors
    ///
    /// When it is neither, or there are no more sockets.
    pub fn to(path: &OsStr) -> io::Result<Self> {
        let address = match path.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            [b'/', ..] => SocketAddr::from_pathname(path)?,
            _ => return Err(io::ErrorKind::InvalidInput.into()),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: Some((socket, address)),
        })
    }

    /// Whether there is anybody to tell.
    pub fn is_heard(&self) -> bool {
        self.socket.is_some()
    }

    /// The agent works, after its start and after a reload.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\n{}", status_line(status)));
    }

    /// What the agent does, in a line for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&status_line(status));
    }

    /// The configuration is being read again; [`Notify::ready`] follows.
    pub fn reloading(&self) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n"));
    }

    /// The agent ends.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\n{}", status_line(status)));
    }

    /// It takes at least this long from now, for a start or an end that is slow but
    /// goes on.
    pub fn extend_timeout(&self, by: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}\n", by.as_micros()));
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket
            && let Err(e) = socket.send_to_addr(message.as_bytes(), address)
        {
            tracing::debug!("sd_notify: {e}");
        }
    }
}

/// One line, whatever is in it: a name from a controller must not become a field.
fn status_line(status: &str) -> String {
    let line: String = status
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    format!("STATUS={line}\n")
}

/// Tells systemd that the agent makes progress (`WatchdogSec=`): only ever from the
/// driver's own loop, so that a loop that hangs is noticed.
#[derive(Debug)]
pub struct Watchdog {
    interval: Option<Duration>,
    next: Instant,
}

impl Watchdog {
    /// As the environment says (`WATCHDOG_USEC`, `WATCHDOG_PID`); without
    /// `NOTIFY_SOCKET` there is nobody to tell.
    pub fn from_env(notify: &Notify) -> Self {
        let read = |name| std::env::var(name).ok();
        let own = read("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let timeout = read("WATCHDOG_USEC")
            .and_then(|text| text.parse().ok())
            .filter(|&microseconds: &u64| microseconds > 0)
            .map(Duration::from_micros)
            .filter(|_| own && notify.is_heard());
        Self::every(timeout)
    }

    /// For a time-out of the watchdog; none: nobody watches.
    pub fn every(timeout: Option<Duration>) -> Self {
        Self {
            interval: timeout.map(|timeout| timeout / 2),
            next: Instant::now(),
        }
    }

    /// The driver has come round. Sends at most one message each half of the time-out.
    pub fn progress(&mut self, notify: &Notify) {
        let Some(interval) = self.interval else {
            return;
        };
        let now = Instant::now();
        if now >= self.next {
            notify.send("WATCHDOG=1\n");
            self.next = now + interval;
        }
    }

    /// When the driver has to come round again at the latest; never when nobody
    /// watches.
    pub fn deadline(&self) -> Option<Instant> {
        self.interval.map(|_| self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (tempfile::TempDir, UnixDatagram, Notify) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let notify = Notify::to(path.as_os_str()).unwrap();
        (folder, systemd, notify)
    }

    fn received(systemd: &UnixDatagram) -> String {
        let mut buffer = [0; 4096];
        let length = systemd.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn systemd_hears_of_every_state() {
        let (_folder, systemd, notify) = pair();
        notify.ready("2 of 4 slots");
        assert_eq!(received(&systemd), "READY=1\nSTATUS=2 of 4 slots\n");
        notify.status("name\nREADY=1\u{1b}[31m");
        assert_eq!(received(&systemd), "STATUS=name READY=1 [31m\n");
        notify.reloading();
        let text = received(&systemd);
        let microseconds: u64 = text
            .strip_prefix("RELOADING=1\nMONOTONIC_USEC=")
            .and_then(|rest| rest.strip_suffix('\n')?.parse().ok())
            .unwrap();
        assert!(microseconds > 0);
        notify.stopping("draining");
        assert_eq!(received(&systemd), "STOPPING=1\nSTATUS=draining\n");
        notify.extend_timeout(Duration::from_secs(30));
        assert_eq!(received(&systemd), "EXTEND_TIMEOUT_USEC=30000000\n");
    }

    #[test]
    fn an_abstract_socket_is_heard_too() {
        let name = format!("bbot-agent-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name.as_bytes()).unwrap();
        let systemd = UnixDatagram::bind_addr(&address).unwrap();
        systemd
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let notify = Notify::to(OsStr::new(&format!("@{name}"))).unwrap();
        notify.ready("up");
        assert_eq!(received(&systemd), "READY=1\nSTATUS=up\n");
    }

    #[test]
    fn nobody_there_is_no_trouble() {
        Notify::default().ready("x");
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        Notify::to(gone.as_os_str()).unwrap().ready("x");
        assert!(Notify::to(OsStr::new("relative")).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_hears_of_progress_and_of_nothing_else() {
        let (_folder, systemd, notify) = pair();
        systemd.set_nonblocking(true).unwrap();
        let heard = || {
            let mut buffer = [0; 64];
            let mut count = 0;
            while systemd.recv(&mut buffer).is_ok() {
                count += 1;
            }
            count
        };
        let mut watchdog = Watchdog::every(Some(Duration::from_secs(20)));
        watchdog.progress(&notify);
        assert_eq!(heard(), 1);
        // A busy loop does not flood systemd.
        for _ in 0..1000 {
            watchdog.progress(&notify);
        }
        assert_eq!(heard(), 0);
        let deadline = watchdog.deadline().unwrap();
        assert_eq!(deadline - Instant::now(), Duration::from_secs(10));
        // A loop that hangs sends nothing, however long.
        tokio::time::advance(Duration::from_secs(600)).await;
        assert_eq!(heard(), 0);
        watchdog.progress(&notify);
        assert_eq!(heard(), 1);
        let mut nobody = Watchdog::every(None);
        nobody.progress(&notify);
        assert_eq!((heard(), nobody.deadline()), (0, None));
    }
}
