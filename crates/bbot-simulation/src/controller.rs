//! A controller: the real queue decisions over a table in memory. The table is what a real one keeps in its store,
//! so it survives a crash; requests that are held do not.

use std::collections::BTreeMap;
use std::time::Duration;

use bbot_agent::supervisor::{Kin, Time};
use bbot_controller::buildtab::Buildtab;
use bbot_controller::clock::Millis;
use bbot_controller::queue::era::Peer;
use bbot_controller::queue::lease::{self, Lapse, Renewal, Tries};
use bbot_controller::queue::outcome::{
    self, Again, Facts, Identity, Machine, Proof, SessionState, Skip, Verdict,
};
use bbot_controller::queue::select::{self, Offer, Role};
use bbot_controller::queue::{self, Cancel, State};
use bbot_manifest::{Era, Status};

/// How long a stranger's agent has its task here. The original's three hours would only make the run longer.
const RESULT_TIMEOUT: Duration = Duration::from_secs(20 * 60);

/// A build.
#[derive(Debug)]
pub(crate) struct Build {
    pub(crate) machine: String,
    pub(crate) state: State,
    pub(crate) session: Option<u64>,
    pub(crate) lease_until: Option<Millis>,
    pub(crate) interrupts: u32,
    pub(crate) lapses: u32,
    /// How often it came back without a result, counted by the world itself.
    pub(crate) returns: u32,
    /// What was recorded, and for which session; `None`: it was given up.
    pub(crate) recorded: Vec<(Status, Option<u64>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    GivenBack,
    Lapsed,
    Over,
    Cancelled,
}

#[derive(Debug)]
struct Session {
    build: usize,
    ended: Option<Ended>,
    is_answered: bool,
}

/// A request that is held until there is a task.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) agent: usize,
    pub(crate) life: u64,
    pub(crate) ask: u64,
    pub(crate) machines: Vec<String>,
    pub(crate) until: Time,
}

/// What becomes of a result, as the agent hears it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    Taken,
    Refused,
}

/// A task that was handed out.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) session: u64,
    pub(crate) machine: String,
    /// When to renew.
    pub(crate) renew: Option<Duration>,
}

#[derive(Debug)]
pub(crate) struct Controller {
    pub(crate) url: String,
    pub(crate) kin: Kin,
    pub(crate) is_up: bool,
    /// It answers rubbish until then.
    pub(crate) rubbish_until: Time,
    /// It names machines that were not offered until then.
    pub(crate) confused_until: Time,
    /// It takes no results (503) until then.
    pub(crate) busy_until: Time,
    pub(crate) builds: Vec<Build>,
    sessions: BTreeMap<u64, Session>,
    pub(crate) held: Vec<Held>,
    buildtab: Buildtab,
    /// What the wall clock says when the world begins, in ms.
    pub(crate) wall: i64,
    /// The wall clock's offset at the last start: steady time began with it.
    steady: i64,
    /// When it was seen to run last, in steady time.
    seen: Millis,
    pub(crate) late: u64,
    /// When leases are looked at next.
    pub(crate) lapse: Option<Time>,
}

impl Controller {
    pub(crate) fn new(url: String, kin: Kin, machines: usize) -> Self {
        let lines: String = (0..machines)
            .map(|m| format!("m{m} c{m} x86_64-linux-gnu\n"))
            .collect();
        let buildtab = Buildtab::parse(&lines, "buildtab").expect("its lines are well formed");
        let wall = 1_700_000_000_000;
        Self {
            url,
            kin,
            is_up: true,
            rubbish_until: Time::ZERO,
            confused_until: Time::ZERO,
            busy_until: Time::ZERO,
            builds: Vec::new(),
            sessions: BTreeMap::new(),
            held: Vec::new(),
            buildtab,
            wall,
            steady: wall,
            seen: Millis(wall),
            late: 0,
            lapse: None,
        }
    }

    fn peer(&self) -> Peer {
        match self.kin {
            Kin::Ours => Peer::Ours,
            Kin::Stranger => Peer::Stranger,
        }
    }

    pub(crate) fn steady(&self, now: Time) -> Millis {
        Millis(self.steady).plus(now)
    }

    pub(crate) fn submit(&mut self, machine: String) {
        self.builds.push(Build {
            machine,
            state: State::Queued,
            session: None,
            lease_until: None,
            interrupts: 0,
            lapses: 0,
            returns: 0,
            recorded: Vec::new(),
        });
    }

    /// It crashes, and has said just before that it runs.
    pub(crate) fn crash(&mut self, now: Time) {
        self.is_up = false;
        self.seen = self.steady(now);
    }

    /// It starts again after a crash.
    pub(crate) fn restart(&mut self, now: Time) {
        self.is_up = true;
        self.steady = self.wall;
        let steady = self.steady(now);
        if self.kin == Kin::Ours {
            for build in self
                .builds
                .iter_mut()
                .filter(|b| b.state == State::Building)
            {
                let until = build.lease_until;
                build.lease_until =
                    until.map(|until| lease::after_restart(until, self.seen, steady, lease::LEASE));
            }
        }
    }

    /// A person cancels a build; whether that did anything.
    pub(crate) fn cancel(&mut self, index: usize) -> bool {
        let Some(build) = self.builds.get_mut(index) else {
            return false;
        };
        if queue::cancel(build.state) != Cancel::Now {
            return false;
        }
        build.state = State::Cancelled;
        build.session = None;
        build.lease_until = None;
        build.interrupts = 0;
        build.lapses = 0;
        let ends = |s: &&mut Session| {
            s.build == index && !s.is_answered && matches!(s.ended, None | Some(Ended::Lapsed))
        };
        for session in self.sessions.values_mut().filter(ends) {
            session.ended = Some(Ended::Cancelled);
        }
        true
    }

    /// The next moment, after `now`, at which a lease lapses.
    pub(crate) fn next_lapse(&self, now: Time) -> Option<Time> {
        let building = self.builds.iter().filter(|b| b.state == State::Building);
        let next = building.filter_map(|b| b.lease_until).min()?;
        Some(now + self.steady(now).until(next))
    }

    /// Leases that have lapsed are noticed; how many.
    pub(crate) fn requeue_lapsed(&mut self, now: Time) -> u64 {
        let steady = self.steady(now);
        let mut count = 0;
        for build in &mut self.builds {
            if !queue::lapsed(build.state, build.lease_until, steady) {
                continue;
            }
            count += 1;
            build.returns += 1;
            build.lease_until = None;
            match lease::lapse(build.interrupts, build.lapses, Again::No, Tries::Many) {
                Lapse::Requeue => {
                    build.state = State::Queued;
                    build.lapses += 1;
                    if let Some(session) = build.session.and_then(|s| self.sessions.get_mut(&s)) {
                        session.ended = Some(Ended::Lapsed);
                    }
                }
                Lapse::GiveUp => {
                    build.state = State::Built;
                    build.recorded.push((Status::Abort, None));
                    build.session = None;
                }
            }
        }
        for session in self.sessions.values_mut() {
            if self.builds[session.build].state == State::Built
                && session.ended == Some(Ended::Lapsed)
            {
                session.ended = Some(Ended::Over);
            }
        }
        count
    }

    /// Hands a task out, if there is one for these machines.
    pub(crate) fn hand_out(
        &mut self,
        machines: &[String],
        session: u64,
        now: Time,
    ) -> Option<Task> {
        let offers: Vec<Offer<'_>> = machines
            .iter()
            .map(|name| Offer {
                name,
                role: Role::Build,
            })
            .collect();
        let candidates = select::candidates(&self.buildtab, &offers, Era::Later);
        // First come, first served, whatever the configuration.
        let (index, machine) = candidates
            .iter()
            .filter_map(|c| {
                let name = &self.buildtab.configurations().get(c.configuration)?.name;
                let of_it = |b: &Build| b.state == State::Queued && name[1..] == b.machine[1..];
                Some((self.builds.iter().position(of_it)?, c.machine))
            })
            .min_by_key(|(index, _)| *index)?;
        let terms = lease::terms(self.peer(), lease::LEASE, RESULT_TIMEOUT);
        let until = self.steady(now).plus(terms.lease);
        let build = &mut self.builds[index];
        build.state = State::Building;
        build.session = Some(session);
        build.lease_until = Some(until);
        self.sessions.insert(
            session,
            Session {
                build: index,
                ended: None,
                is_answered: false,
            },
        );
        Some(Task {
            session,
            machine: machines[machine].clone(),
            renew: terms.renew,
        })
    }

    pub(crate) fn session_state(&self, id: u64) -> SessionState {
        let Some(session) = self.sessions.get(&id) else {
            return SessionState::Unknown;
        };
        let build = &self.builds[session.build];
        if session.is_answered {
            SessionState::Answered
        } else if build.session == Some(id) {
            SessionState::Current(build.state)
        } else {
            match session.ended {
                Some(Ended::GivenBack) => SessionState::GivenBack,
                Some(Ended::Lapsed) => SessionState::Overtaken,
                Some(Ended::Cancelled) => SessionState::Cancelled,
                Some(Ended::Over) | None => SessionState::Superseded,
            }
        }
    }

    /// An agent renews its lease; whether its session is still worth anything.
    pub(crate) fn renew(&mut self, id: u64, now: Time) -> bool {
        let until = self.steady(now).plus(lease::LEASE);
        let renewal = lease::renew(self.session_state(id));
        let Some(session) = self.sessions.get_mut(&id) else {
            return false;
        };
        let build = &mut self.builds[session.build];
        match renewal {
            Renewal::Renew => build.lease_until = Some(until),
            Renewal::Revive => {
                build.state = State::Building;
                build.lease_until = Some(until);
                build.lapses = build.lapses.saturating_sub(1);
                build.returns = build.returns.saturating_sub(1);
                session.ended = None;
            }
            Renewal::Over | Renewal::Unknown => return false,
        }
        true
    }

    /// A result comes.
    pub(crate) fn take_result(&mut self, id: u64, status: Status) -> Heard {
        let state = self.session_state(id);
        let Some(session) = self.sessions.get(&id) else {
            return self.heard(None);
        };
        let index = session.build;
        let build = &mut self.builds[index];
        let verdict = outcome::decide(Facts {
            session: state,
            proof: Proof::Good,
            identity: Identity::Same,
            status,
            skip: Skip::NotOffered,
            again: Again::No,
            tries: Tries::Many,
            interrupts: build.interrupts,
            lapses: build.lapses,
            // Agents here say no reasons.
            machine: Machine::Unmentioned,
        });
        match verdict {
            Verdict::Keep(new) | Verdict::Unchanged(new) => {
                if state != SessionState::Current(State::Building) {
                    self.late += 1;
                }
                self.keep(index, id, (status, Some(id)), new);
            }
            Verdict::Requeue | Verdict::Retry => {
                build.state = State::Queued;
                build.session = None;
                build.lease_until = None;
                build.interrupts += 1;
                build.returns += 1;
                self.end(id, Ended::GivenBack);
            }
            Verdict::Release => {
                if build.session == Some(id) {
                    build.session = None;
                }
                self.end(id, Ended::GivenBack);
            }
            Verdict::GiveUp => {
                build.returns += 1;
                self.keep(index, id, (Status::Abort, None), State::Built);
            }
            Verdict::Repeat | Verdict::Wrong(_) | Verdict::Drop(_) => {}
        }
        self.heard(Some(verdict))
    }

    fn heard(&self, verdict: Option<Verdict>) -> Heard {
        match verdict {
            // The original says yes to whatever it drops.
            _ if self.kin == Kin::Stranger => Heard::Taken,
            None | Some(Verdict::Wrong(_) | Verdict::Drop(_)) => Heard::Refused,
            Some(
                Verdict::Keep(_)
                | Verdict::Unchanged(_)
                | Verdict::Requeue
                | Verdict::Retry
                | Verdict::GiveUp
                | Verdict::Release
                | Verdict::Repeat,
            ) => Heard::Taken,
        }
    }

    fn end(&mut self, id: u64, how: Ended) {
        if let Some(session) = self.sessions.get_mut(&id) {
            session.ended = Some(how);
        }
    }

    fn keep(&mut self, index: usize, id: u64, record: (Status, Option<u64>), state: State) {
        let build = &mut self.builds[index];
        build.recorded.push(record);
        build.state = state;
        build.session = None;
        build.lease_until = None;
        build.interrupts = 0;
        build.lapses = 0;
        for (other, session) in &mut self.sessions {
            if *other == id {
                session.is_answered = true;
            } else if session.build == index && session.ended == Some(Ended::Lapsed) {
                session.ended = Some(Ended::Over);
            }
        }
    }
}
