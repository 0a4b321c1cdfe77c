//! The list: each a bug that somebody could really make, as a replacement in one source file.

/// A bug to plant.
#[derive(Debug)]
pub(super) struct Bug {
    /// What it is called here.
    pub(super) name: &'static str,
    /// What goes wrong with it.
    pub(super) sentence: &'static str,
    /// Where, from the workspace's directory.
    pub(super) file: &'static str,
    /// What stands there, once.
    pub(super) old: &'static str,
    /// What stands there with the bug.
    pub(super) new: &'static str,
}

const SUPERVISOR: &str = "crates/bbot-agent/src/supervisor/mod.rs";
const ASKING: &str = "crates/bbot-agent/src/supervisor/asking.rs";
const WORK: &str = "crates/bbot-agent/src/supervisor/work.rs";
const DECIDE: &str = "crates/bbot-agent/src/supervisor/decide.rs";
const MACHINES: &str = "crates/bbot-agent/src/supervisor/machines.rs";
const RUNS: &str = "crates/bbot-agent/src/supervisor/runs.rs";
const CONTROLLERS: &str = "crates/bbot-agent/src/supervisor/controllers.rs";
const PLAN: &str = "crates/bbot-agent/src/delivery/plan.rs";
const OUTCOME: &str = "crates/bbot-controller/src/queue/outcome.rs";
const LEASE: &str = "crates/bbot-controller/src/queue/lease.rs";
const QUEUE: &str = "crates/bbot-controller/src/queue/mod.rs";

pub(super) const BUGS: &[Bug] = &[
    Bug {
        name: "bootstraps-take-no-room",
        sentence: "bootstraps are not counted against slots and budgets",
        file: RUNS,
        old: "            .values()\n            .fold(Room::default()",
        new: "            .values()\n            .filter(|run| run.task.is_some())\n            .fold(Room::default()",
    },
    Bug {
        name: "exclusive-machine-twice",
        sentence: "a machine that may run once at a time is started beside itself",
        file: DECIDE,
        old: "!runs.occupies(machine) && self.fits(beside, machine)",
        new: "self.fits(beside, machine)",
    },
    Bug {
        name: "late-answer-lost",
        sentence: "a task that comes while the agent drains is neither started nor given back",
        file: ASKING,
        old: "(Some(why), _) => return self.act(Action::GiveBack { ask: ask.id, why }),",
        new: "(Some(_), _) => return,",
    },
    Bug {
        name: "works-while-host-is-short",
        sentence: "new work begins although the host has run short of something",
        file: WORK,
        old: "if self.block().is_some() || self.waiting.is_some() || self.is_enumerating {",
        new: "if self.waiting.is_some() || self.is_enumerating {",
    },
    Bug {
        name: "urgent-task-too-early",
        sentence: "an urgent task does not wait until what it interrupted has ended",
        file: WORK,
        old: "self.waiting.take_if(|w| w.victims.is_empty())",
        new: "self.waiting.take()",
    },
    Bug {
        name: "drain-without-end",
        sentence: "at the deadline of a drain what runs goes on",
        file: SUPERVISOR,
        old: "if deadline <= self.now {",
        new: "if deadline <= self.now && self.runs.is_empty() {",
    },
    Bug {
        name: "exit-leaves-machines",
        sentence: "the agent ends as soon as no request is on its way, whatever runs",
        file: SUPERVISOR,
        old: "if self.runs.is_empty() && self.ask.is_none() {",
        new: "if self.ask.is_none() {",
    },
    Bug {
        name: "controller-without-pause",
        sentence: "a controller that answers rubbish is asked again at once",
        file: CONTROLLERS,
        old: "c.failures = c.failures.saturating_add(1);\n        c.next = now.saturating_add(pause);",
        new: "c.failures = c.failures.saturating_add(1);\n        c.next = now;",
    },
    Bug {
        name: "machine-without-pause",
        sentence: "a machine that fails to bootstrap is bootstrapped again at once",
        file: MACHINES,
        old: "Backoff::failed(self.backoffs.get(name), identity, now);\n        self.backoffs.insert(name.to_owned(), backoff);",
        new: "Backoff::failed(self.backoffs.get(name), identity, now);\n        drop(backoff);",
    },
    Bug {
        name: "stale-inventory",
        sentence: "a machine that has just been bootstrapped is bootstrapped once more by what was seen before",
        file: MACHINES,
        old: "&& !self.unseen.contains(&m.name)",
        new: "",
    },
    Bug {
        name: "old-copy-absolves",
        sentence: "a copy of the old revision that does well ends the pause of the new one that failed",
        file: MACHINES,
        old: "if self.backoffs.get(name).is_some_and(|b| b.at <= started) {",
        new: "if self.backoffs.contains_key(name) {",
    },
    Bug {
        name: "busy-taken-as-no",
        sentence: "a result that the controller cannot take just now is set aside as refused",
        file: PLAN,
        old: "Verdict::Taken | Verdict::Refused => {",
        new: "Verdict::Taken | Verdict::Refused | Verdict::Busy => {",
    },
    Bug {
        name: "post-never-ends",
        sentence: "a post that failed counts as on its way for ever, and nothing more is sent there",
        file: PLAN,
        old: "if origin.in_flight == Some(id) {",
        new: "if origin.in_flight == Some(id) && verdict != Verdict::Unreachable {",
    },
    Bug {
        name: "result-twice",
        sentence: "a result that comes once more is recorded once more",
        file: OUTCOME,
        old: "SessionState::Answered => return Verdict::Repeat,",
        new: "SessionState::Answered => {}",
    },
    Bug {
        name: "superseded-result",
        sentence: "a result is recorded although another agent has brought one",
        file: OUTCOME,
        old: "| SessionState::Superseded\n        | SessionState::Current(State::Built | State::Cancelled) => {\n            return Verdict::Drop(Dropped::Superseded);\n        }",
        new: "=> return Verdict::Drop(Dropped::Superseded),\n        SessionState::Superseded | SessionState::Current(State::Built | State::Cancelled) => {}",
    },
    Bug {
        name: "lapse-for-ever",
        sentence: "a task that ends every agent goes round for ever",
        file: LEASE,
        old: "Again::No if returns >= INTERRUPTS => Lapse::GiveUp,",
        new: "Again::No if returns > INTERRUPTS + 1 => Lapse::GiveUp,",
    },
    Bug {
        name: "lease-never-lapses",
        sentence: "a task whose agent is gone is not given to another one",
        file: QUEUE,
        old: "lease_until.is_none_or(|until| until <= now)",
        new: "lease_until.is_none()",
    },
];
