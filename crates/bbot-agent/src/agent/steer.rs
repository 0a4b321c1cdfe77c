//! How the living agent is steered and watched: commands on its socket, what systemd
//! hears, and what the host has left.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Agent;
use crate::metrics;
use crate::notify::{Notify, Watchdog};
use crate::options::Options;
use crate::resources::{self, Facts, INTERVAL, INTERVAL_IDLE, Level, News, Observed, Probe, Watch};
use crate::status::{self, Bound, Command, Moment, Place, Server, Status};
use crate::supervisor::{Event, HostState};

/// How many commands may wait.
const COMMANDS: usize = 16;

/// How often systemd is asked for more time by a start that goes on.
const START_ASKS: Duration = Duration::from_secs(60);

/// Why an agent that a person has told so takes no tasks.
const DRAINED: &str = "the agent was told to take none (`bbot agent`)";

/// A person has told the agent to take no tasks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drained {
    /// When what runs is interrupted. None: never.
    pub(super) until: Option<Instant>,
}

/// The agent's ends of what steers and watches it.
#[derive(Debug)]
pub(super) struct Steering {
    pub(super) status: watch::Sender<Arc<Status>>,
    commands: mpsc::Receiver<Command>,
    /// For the servers; kept, so that there always may be a command.
    sender: mpsc::Sender<Command>,
    /// End with this.
    servers: JoinSet<()>,
    /// None before the agent is open to the world.
    systemd: Option<(Notify, Watchdog)>,
    probe: Option<Probe>,
    pub(super) watch: Watch,
    is_measuring: bool,
    measure_at: Option<Instant>,
    pub(super) drained: Option<Drained>,
    /// Tells controllers that it is drained.
    pub(super) telling: JoinSet<()>,
    /// Whether no more tasks are asked for since the spool is full.
    pub(super) is_full: bool,
    /// When what runs is interrupted, or `Some(None)`: at once; set when the agent ends.
    pub(super) stopping: Option<Instant>,
    begin: Instant,
}

impl Steering {
    pub(super) fn new(options: &Options, begin: Instant) -> Self {
        let (sender, commands) = mpsc::channel(COMMANDS);
        Self {
            status: watch::Sender::default(),
            commands,
            sender,
            servers: JoinSet::new(),
            systemd: None,
            probe: None,
            watch: Watch::new(options.resource_limits()),
            is_measuring: false,
            measure_at: None,
            drained: None,
            telling: JoinSet::new(),
            is_full: false,
            stopping: None,
            begin,
        }
    }

    /// Opens the agent to the world: socket, metrics, systemd; and begins to watch the
    /// host. Where nothing is asked of controllers there is nothing to see.
    ///
    /// # Errors
    ///
    /// When a socket that was asked for cannot be had.
    pub(super) fn open(&mut self, options: &Options) -> Result<()> {
        if options.dump_machines || options.fake_request.is_some() {
            return Ok(());
        }
        resources::raise_handles();
        let server = Server {
            status: self.status.subscribe(),
            commands: self.sender.clone(),
            start: self.begin,
        };
        match Bound::new(&Place(status::socket_of(options))) {
            Ok(bound) => {
                self.servers.spawn(server.clone().serve(bound));
            }
            Err(e) if options.status_socket.is_some() => return Err(e.into()),
            // Nobody asked for it.
            Err(e) => tracing::warn!("no `bbot agent status`: {:#}", anyhow::Error::new(e)),
        }
        if let Some(address) = options.metrics {
            let listener = std::net::TcpListener::bind(address)
                .and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    tokio::net::TcpListener::from_std(listener)
                })
                .with_context(|| format!("unable to listen at {address} (--metrics)"))?;
            self.servers.spawn(metrics::serve(listener, server));
        }
        let notify = Notify::from_env();
        let watchdog = Watchdog::from_env(&notify);
        self.systemd = Some((notify, watchdog));
        self.probe = Some(probe_of(options));
        Ok(())
    }

    /// The options were read again.
    pub(super) fn reloaded(&mut self, options: &Options) {
        self.watch.set_limits(options.resource_limits());
        if self.probe.is_some() {
            self.probe = Some(probe_of(options));
        }
    }

    pub(super) async fn next_command(&mut self) -> Command {
        match self.commands.recv().await {
            Some(command) => command,
            None => std::future::pending().await,
        }
    }

    /// The loop has come round.
    pub(super) fn progress(&mut self) {
        if let Some((notify, watchdog)) = &mut self.systemd {
            watchdog.progress(notify);
        }
    }

    /// When the loop must come round next.
    pub(super) fn due(&self) -> Option<Instant> {
        let watchdog = self.systemd.as_ref().and_then(|(_, w)| w.deadline());
        let drained = self.drained.and_then(|drained| drained.until);
        [watchdog, self.measure_at, drained, self.stopping]
            .into_iter()
            .flatten()
            .min()
    }

    /// Whether the agent was to have ended by now.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.stopping.is_some_and(|at| at <= now)
    }

    pub(super) fn ready(&self) {
        if let Some((notify, _)) = &self.systemd {
            notify.ready("working");
        }
    }

    pub(super) fn reloading(&self) {
        if let Some((notify, _)) = &self.systemd {
            notify.reloading();
        }
    }

    /// The agent ends, at the latest in so long.
    pub(super) fn stopping(&mut self, within: Duration) {
        let until = Instant::now() + within;
        self.stopping = Some(self.stopping.map_or(until, |before| before.min(until)));
        if let Some((notify, _)) = &self.systemd {
            notify.stopping("ending");
            notify.extend_timeout(within);
        }
    }

    /// Asks systemd for more time for the start as long as this goes on.
    pub(super) async fn asking_for_time<T>(&self, work: impl Future<Output = T>) -> T {
        let ask = async {
            loop {
                if let Some((notify, _)) = &self.systemd {
                    notify.extend_timeout(2 * START_ASKS);
                }
                sleep(START_ASKS).await;
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            never = ask => never,
        }
    }

    pub(super) fn tell_systemd(&self, text: &str) {
        if let Some((notify, _)) = &self.systemd {
            notify.status(text);
        }
    }

    /// Whether the host is to be asked now.
    pub(super) fn is_measuring_due(&self, now: Instant) -> bool {
        self.measure_at.is_some_and(|at| at <= now)
    }

    /// What asks the host; None: it is being asked, or is not watched.
    pub(super) fn begin_measuring(&mut self) -> Option<Probe> {
        self.measure_at = None;
        if self.is_measuring {
            return None;
        }
        let probe = self.probe.clone()?;
        self.is_measuring = true;
        Some(probe)
    }

    pub(super) fn measured(&mut self, facts: Facts, now: Duration, is_busy: bool) -> Observed {
        self.measured_nothing();
        if is_busy {
            self.measure_at = Some(Instant::now() + INTERVAL);
        }
        self.watch.observe(facts, now)
    }

    /// The host could not be asked; another time.
    pub(super) fn measured_nothing(&mut self) {
        self.is_measuring = false;
        self.measure_at = Some(Instant::now() + INTERVAL_IDLE);
    }

    /// Whether there may be new work.
    pub(super) fn host_state(&self) -> HostState {
        if self.drained.is_some() {
            return HostState::Low(DRAINED.to_owned());
        }
        self.watch.host_state()
    }
}

/// What asks the host for what is left on the volumes that the agent writes to.
fn probe_of(options: &Options) -> Probe {
    let folders: [PathBuf; 3] = [
        options.machines.clone(),
        options.tftp.clone(),
        options.state_dir(),
    ];
    Probe::new(folders)
}

pub(super) fn tell_news(news: &News) {
    match news {
        News::Short {
            level: Level::Critical,
            text,
        } => tracing::error!("{text}"),
        News::Short { text, .. } => tracing::warn!("{text}"),
        News::Over { text } => tracing::info!("{text}"),
    }
}

impl Agent {
    pub(super) fn command(&mut self, command: Command) {
        // Whoever asked may have gone.
        match command {
            Command::Drain { within, reply } => {
                let until = within.and_then(|within| Instant::now().checked_add(within));
                tracing::info!("no new tasks, as told on the socket");
                self.steering.drained = Some(Drained { until });
                self.remember_drained();
                self.tell_host_state();
                let _ = reply.send(Ok(()));
            }
            Command::Resume { reply } => {
                let answer = if self.steering.stopping.is_some() {
                    Err("the agent is ending".to_owned())
                } else {
                    if self.steering.drained.take().is_some() {
                        tracing::info!("tasks again, as told on the socket");
                        self.remember_drained();
                    }
                    Ok(())
                };
                self.tell_host_state();
                let _ = reply.send(answer);
            }
            Command::SuspendedResume { id, reply } => self.suspended.resume(&id, reply),
            Command::SuspendedKill { id, reply } => {
                let _ = reply.send(self.suspended.kill(&id));
            }
            Command::Attach { id, reply } => {
                let _ = reply.send(self.suspended.attach(&id));
            }
        }
    }

    pub(super) fn tell_host_state(&mut self) {
        let results = self.context.results.as_ref();
        let full = results.and_then(|results| results.status().full);
        self.steering.is_full = full.is_some();
        let state = match self.steering.host_state() {
            // Rather no more tasks than results that nobody keeps.
            HostState::Ok => full.map_or(HostState::Ok, |why| HostState::Low(why.to_owned())),
            low @ HostState::Low(_) => low,
        };
        self.tell(Event::Resources(state));
    }

    /// Interrupts what still runs when a person's patience is over.
    pub(super) fn stop_drained(&mut self, now: Instant) {
        let Some(drained) = &mut self.steering.drained else {
            return;
        };
        if drained.until.is_some_and(|until| until <= now) {
            drained.until = None;
            for run in self.runs.values() {
                tracing::info!(
                    "machine {} is interrupted: the agent is drained",
                    run.machine
                );
                run.stop.cancel();
            }
        }
    }

    pub(super) fn moment(&self, at: Instant) -> Moment {
        Moment::from(at.saturating_duration_since(self.begin))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use clap::Parser as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_start_that_goes_on_asks_for_more_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let options = Options::parse_from(["bbot-agent", "http://c1.example"]);
        let mut steering = Steering::new(&options, Instant::now());
        let notify = Notify::to(path.as_os_str()).unwrap();
        steering.systemd = Some((notify, Watchdog::every(None)));
        let sweep = sleep(Duration::from_secs(10 * 60 - 1));
        steering.asking_for_time(sweep).await;
        let mut asked = 0;
        let mut bytes = [0; 100];
        while let Ok(length) = socket.recv(&mut bytes) {
            assert_eq!(&bytes[..length], b"EXTEND_TIMEOUT_USEC=120000000\n");
            asked += 1;
        }
        assert_eq!(asked, 10);
    }
}
