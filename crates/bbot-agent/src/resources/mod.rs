//! What the host has left: disk, memory, file handles, processes; and what follows.
//!
//! ```text
//!                below low                     below critical
//!     Ok  ----------------------> Low  -----------------------> Critical
//!      ^                           | ^                             |
//!      '-- well above low again ---' '---- well above critical ----'
//! ```
//!
//! At `Low` no new work is asked for; what runs goes on. At `Critical` what runs is
//! told, and the newest run is interrupted before the host dies of it, one at a time
//! with a pause between, so that what it gives back has time to show. "Well above" is
//! a quarter more than the mark, so that the verdict does not flutter.
//!
//! [`judge`] is a pure function over [`Facts`]; [`Watch`] remembers what was said;
//! [`Probe`] asks the host.

mod probe;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use probe::{Probe, free_at, is_of_host, raise_handles};

use crate::supervisor::HostState;

/// How often the host is asked while something runs.
pub const INTERVAL: Duration = Duration::from_secs(5);

/// How often the host is asked while nothing runs.
pub const INTERVAL_IDLE: Duration = Duration::from_secs(30);

/// How long what an interrupted run gives back may take to show.
pub const RELIEF_PAUSE: Duration = Duration::from_secs(20);

/// How bad it is.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// There is enough.
    #[default]
    Ok,
    /// New work would hurt.
    Low,
    /// What runs is in danger.
    Critical,
}

impl Level {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Low => "low",
            Level::Critical => "critical",
        }
    }
}

/// The marks below which it is low, and critical.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// Below it no new work is asked for. 0: never.
    pub low: u64,
    /// Below it what runs is in danger.
    pub critical: u64,
}

impl Mark {
    /// A mark at `low`, with what is critical in the same proportion as the default.
    pub const fn at(low: u64) -> Self {
        Self {
            low,
            critical: low / 4,
        }
    }
}

/// All marks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Free bytes on each volume (`--min-free-disk`).
    pub disk: Mark,
    /// Free inodes on each volume that counts them.
    pub inodes: Mark,
    /// Available memory of the host in bytes (`--min-free-memory`).
    pub memory: Mark,
    /// The share of time, in percent over ten seconds, in which all tasks of the host
    /// waited for memory, above which it is low.
    pub memory_pressure: f32,
    /// File handles that this process may still open.
    pub handles: Mark,
    /// Processes that may still be started.
    pub pids: Mark,
}

impl Default for Limits {
    /// For a desk as for a farm: 2 GiB of disk, since a build's machine writes that in
    /// minutes; 256 MiB of memory, since the kernel begins to kill below that; the
    /// handles of two machines (about 25 each); the processes of a QEMU with its
    /// threads.
    fn default() -> Self {
        Self {
            disk: Mark::at(2 << 30),
            inodes: Mark::at(10_000),
            memory: Mark::at(256 << 20),
            memory_pressure: 50.0,
            handles: Mark::at(64),
            pids: Mark::at(128),
        }
    }
}

/// What was measured. What the host does not tell is absent and judged as enough.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// The volumes with machines, folders of runs and state; each file system once.
    pub volumes: Vec<VolumeFacts>,
    /// Memory that can be had without swapping, in bytes; where a control group
    /// allows less, that.
    pub memory_available: Option<u64>,
    /// All memory, in bytes.
    pub memory_total: Option<u64>,
    /// Percent of the last ten seconds in which all tasks waited for memory (PSI).
    pub memory_pressure: Option<f32>,
    /// The same for some task, and the processor.
    pub cpu_pressure: Option<f32>,
    /// The same for all tasks, and disks.
    pub io_pressure: Option<f32>,
    /// File handles of this process that are open, and may be.
    pub handles: Option<Use>,
    /// Processes that there are, and may be: the tightest of the host's, the control
    /// group's and the user's bounds.
    pub pids: Option<Use>,
}

/// What is used of something that has a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Use {
    /// So many are.
    pub used: u64,
    /// So many may be.
    pub limit: u64,
}

impl Use {
    /// How many more there may be.
    pub fn left(self) -> u64 {
        self.limit.saturating_sub(self.used)
    }
}

/// A file system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeFacts {
    /// A folder on it.
    pub path: PathBuf,
    /// Bytes that the agent may still write.
    pub free: u64,
    /// Its size in bytes.
    pub total: u64,
    /// Inodes that are free; absent: it does not count them (btrfs).
    pub free_inodes: Option<u64>,
}

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Bytes on a volume.
    Disk,
    /// Inodes on a volume.
    Inodes,
    /// Memory.
    Memory,
    /// The share of time in which everything waits for memory.
    MemoryPressure,
    /// File handles.
    Handles,
    /// Processes.
    Pids,
}

/// Something that there is too little of.
#[derive(Debug, Clone, PartialEq)]
pub struct Shortage {
    /// What.
    pub kind: Kind,
    /// How bad it is.
    pub level: Level,
    /// On which volume, for disk and inodes.
    pub volume: Option<PathBuf>,
    /// What is left: bytes, or a count; percent for the pressure.
    pub left: u64,
    /// The mark that it is below (the pressure: above).
    pub mark: u64,
}

impl Shortage {
    /// Whether both are about the same thing.
    fn same(&self, other: &Shortage) -> bool {
        self.kind == other.kind && self.volume == other.volume
    }

    /// Of what there is too little.
    fn subject(&self) -> String {
        let what = match self.kind {
            Kind::Disk => "disk space",
            Kind::Inodes => "inodes",
            Kind::Memory | Kind::MemoryPressure => "memory",
            Kind::Handles => "file handles",
            Kind::Pids => "processes",
        };
        match &self.volume {
            Some(path) => format!("{what} on {}", path.display()),
            None => what.to_owned(),
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (left, mark) = (self.left, self.mark);
        let volume = self
            .volume
            .as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default();
        match self.kind {
            Kind::Disk => write!(
                f,
                "{} free on {volume}, less than {}: make room there, or lower --min-free-disk",
                size(left),
                size(mark)
            ),
            Kind::Inodes => write!(
                f,
                "{left} inodes free on {volume}, less than {mark}: remove files there"
            ),
            Kind::Memory => write!(
                f,
                "{} of memory available, less than {}: lower --ram or --instance-max, or \
                 --min-free-memory",
                size(left),
                size(mark)
            ),
            Kind::MemoryPressure => write!(
                f,
                "everything waits for memory {left} % of the time, more than {mark} %: lower --ram \
                 or --instance-max"
            ),
            Kind::Handles => write!(
                f,
                "{left} file handles left, less than {mark}: raise the limit of open files \
                 (LimitNOFILE=)"
            ),
            Kind::Pids => write!(
                f,
                "{left} processes may still be started, less than {mark}: raise the limit \
                 (TasksMax=, kernel.pid_max)"
            ),
        }
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut whole = bytes;
    let mut tenths = 0;
    let mut unit = 0;
    for (index, _) in UNITS.iter().enumerate() {
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit = index;
        if whole < 1024 {
            break;
        }
    }
    if whole < 10 && tenths != 0 {
        format!("{whole}.{tenths} {}", UNITS[unit])
    } else {
        format!("{whole} {}", UNITS[unit])
    }
}

/// What there is too little of, the worst first. `before` is the last verdict: what
/// was short remains so until there is a quarter more than the mark.
pub fn judge(limits: &Limits, facts: &Facts, before: &[Shortage]) -> Vec<Shortage> {
    let mut found = Vec::new();
    let mut check = |kind: Kind, volume: Option<&PathBuf>, mark: Mark, left: Option<u64>| {
        let Some(left) = left else { return };
        let mut shortage = Shortage {
            kind,
            level: Level::Ok,
            volume: volume.cloned(),
            left,
            mark: mark.low,
        };
        let was = before
            .iter()
            .find(|other| other.same(&shortage))
            .map_or(Level::Ok, |other| other.level);
        let below = |level: Level, mark: u64| {
            let mark = if was >= level { mark + mark / 4 } else { mark };
            left < mark
        };
        if below(Level::Critical, mark.critical) {
            shortage.level = Level::Critical;
            shortage.mark = mark.critical;
        } else if below(Level::Low, mark.low) {
            shortage.level = Level::Low;
        } else {
            return;
        }
        found.push(shortage);
    };
    for volume in &facts.volumes {
        let path = Some(&volume.path);
        check(Kind::Disk, path, limits.disk, Some(volume.free));
        check(Kind::Inodes, path, limits.inodes, volume.free_inodes);
    }
    check(Kind::Memory, None, limits.memory, facts.memory_available);
    check(
        Kind::Handles,
        None,
        limits.handles,
        facts.handles.map(Use::left),
    );
    check(Kind::Pids, None, limits.pids, facts.pids.map(Use::left));
    found.extend(pressure(limits, facts, before));
    found.sort_by_key(|shortage| std::cmp::Reverse(shortage.level));
    found
}

/// Never critical: the kernel's figure lags behind by ten seconds, and a run that is
/// ended for it may not have been the cause.
fn pressure(limits: &Limits, facts: &Facts, before: &[Shortage]) -> Option<Shortage> {
    let percent = |share: f32| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "bounded just before"
        )]
        let whole = share.clamp(0.0, 100.0) as u64;
        whole
    };
    let (left, mark) = (
        percent(facts.memory_pressure?),
        percent(limits.memory_pressure),
    );
    let was = before.iter().any(|b| b.kind == Kind::MemoryPressure);
    let bound = if was { mark * 4 / 5 } else { mark };
    (mark > 0 && left > bound).then_some(Shortage {
        kind: Kind::MemoryPressure,
        level: Level::Low,
        volume: None,
        left,
        mark,
    })
}

/// What is to be done for what runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relief {
    /// The newest run is to be interrupted, before the host dies.
    InterruptNewest,
}

/// What has changed for the worse or the better; to be told once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// There is too little of something, or it has become critical.
    Short {
        /// How bad it is.
        level: Level,
        /// A sentence.
        text: String,
    },
    /// There is enough of it again.
    Over {
        /// A sentence.
        text: String,
    },
}

/// What an observation has brought.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// What is to be told.
    pub news: Vec<News>,
    /// What is to be done.
    pub relief: Option<Relief>,
}

/// The watch over the host: remembers what it has said and done.
#[derive(Debug, Clone)]
pub struct Watch {
    limits: Limits,
    shortages: Vec<Shortage>,
    facts: Facts,
    relieved: Option<Duration>,
}

impl Watch {
    /// With these marks; all is well until something is observed.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            shortages: Vec::new(),
            facts: Facts::default(),
            relieved: None,
        }
    }

    /// Other marks, from the next observation on.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes in what was measured at `now` (since the agent's start).
    pub fn observe(&mut self, facts: Facts, now: Duration) -> Observed {
        let facts = match facts.handles {
            // Nothing else could be measured: what was known remains.
            Some(handles) if handles.left() == 0 => Facts {
                handles: Some(handles),
                ..self.facts.clone()
            },
            _ => facts,
        };
        let shortages = judge(&self.limits, &facts, &self.shortages);
        let mut news = Vec::new();
        for shortage in &shortages {
            let was = self.shortages.iter().find(|was| was.same(shortage));
            if was.is_none_or(|was| was.level < shortage.level) {
                news.push(News::Short {
                    level: shortage.level,
                    text: shortage.to_string(),
                });
            }
        }
        for was in &self.shortages {
            if !shortages.iter().any(|shortage| shortage.same(was)) {
                let text = format!("there is enough again: {}", was.subject());
                news.push(News::Over { text });
            }
        }
        let critical = shortages.iter().any(|s| s.level == Level::Critical);
        let may = self
            .relieved
            .is_none_or(|at| now.saturating_sub(at) >= RELIEF_PAUSE);
        let relief = (critical && may).then_some(Relief::InterruptNewest);
        if relief.is_some() {
            self.relieved = Some(now);
        } else if !critical {
            self.relieved = None;
        }
        self.shortages = shortages;
        self.facts = facts;
        Observed { news, relief }
    }

    /// How bad it is.
    pub fn level(&self) -> Level {
        self.shortages
            .iter()
            .map(|shortage| shortage.level)
            .max()
            .unwrap_or_default()
    }

    /// Why, a sentence each, the worst first.
    pub fn reasons(&self) -> Vec<String> {
        self.shortages.iter().map(Shortage::to_string).collect()
    }

    /// For the supervisor: of what there is too little. How much is left, and how to mend it,
    /// is in the news.
    pub fn host_state(&self) -> HostState {
        let mut subjects: Vec<String> = self.shortages.iter().map(Shortage::subject).collect();
        if subjects.is_empty() {
            return HostState::Ok;
        }
        // Which is the worst may change each time that it is measured.
        subjects.sort_unstable();
        subjects.dedup();
        HostState::Low(format!("there is too little of: {}", subjects.join(", ")))
    }

    /// For the status.
    pub fn view(&self) -> crate::status::Resources {
        crate::status::Resources {
            level: self.level(),
            reasons: self.reasons(),
            facts: self.facts.clone(),
        }
    }
}
