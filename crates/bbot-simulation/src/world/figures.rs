//! What a run of the world, or many, came to, in figures.

use std::fmt;
use std::ops::AddAssign;

/// What a run, or many, came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Figures {
    /// Tasks that were submitted, all with one result in the end unless they were cancelled.
    pub tasks: u64,
    /// Faults that were planted.
    pub faults: u64,
    /// Steps that were played, the rules checked after each.
    pub steps: u64,
    /// Agents that were killed.
    pub agent_crashes: u64,
    /// Controllers that were killed.
    pub controller_crashes: u64,
    /// Messages that were lost.
    pub lost_messages: u64,
    /// Bootstraps that began.
    pub bootstraps: u64,
    /// Runs that were interrupted by the agent.
    pub interrupts: u64,
    /// Tasks that were given back without having run.
    pub given_back: u64,
    /// Leases that lapsed.
    pub lapses: u64,
    /// Results that were taken although the lease had lapsed.
    pub late: u64,
    /// Builds that ended as `abort` since they came back too often.
    pub given_up: u64,
    /// Builds that were cancelled.
    pub cancelled: u64,
    /// Virtual seconds.
    pub seconds: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.tasks += other.tasks;
        self.faults += other.faults;
        self.steps += other.steps;
        self.agent_crashes += other.agent_crashes;
        self.controller_crashes += other.controller_crashes;
        self.lost_messages += other.lost_messages;
        self.bootstraps += other.bootstraps;
        self.interrupts += other.interrupts;
        self.given_back += other.given_back;
        self.lapses += other.lapses;
        self.late += other.late;
        self.given_up += other.given_up;
        self.cancelled += other.cancelled;
        self.seconds += other.seconds;
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} agent crashes, {} controller crashes, {} lost messages, {} bootstraps, {} interrupted runs, {} tasks \
             given back, {} lapsed leases, {} late results, {} builds given up, {} cancelled, {} virtual hours",
            self.agent_crashes,
            self.controller_crashes,
            self.lost_messages,
            self.bootstraps,
            self.interrupts,
            self.given_back,
            self.lapses,
            self.late,
            self.given_up,
            self.cancelled,
            self.seconds / 3600
        )
    }
}
