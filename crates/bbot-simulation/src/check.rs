//! What must hold: before each action, after each step, and at the end. All of it is judged by what the world itself
//! knows, not by what the supervisor says of itself.

use std::time::Duration;

use bbot_agent::delivery::plan::{Fate, PATIENCE, Verdict};
use bbot_agent::supervisor::{Action, Kin, MachineState, Supervisor};
use bbot_controller::queue::State;
use bbot_controller::queue::outcome::{INTERRUPTS, SessionState};
use bbot_manifest::Status;

use crate::agent::{Agent, Work};
use crate::world::World;

/// A machine that failed to bootstrap is left alone for so long at least.
const LEFT_ALONE: Duration = Duration::from_secs(60);

/// So many requests and looks at the machines a minute are a hot loop.
const RATE: usize = 300;

type Checked = Result<(), String>;

fn rule(holds: bool, what: impl FnOnce() -> String) -> Checked {
    if holds { Ok(()) } else { Err(what()) }
}

/// Before an agent's action is done.
pub(crate) fn action(world: &mut World, number: usize, action: &Action) -> Checked {
    let now = world.now;
    let a = &mut world.agents[number];
    if matches!(
        action,
        Action::Ask { .. } | Action::Enumerate | Action::GiveBack { .. }
    ) {
        a.recent.push_back(now);
        while a
            .recent
            .front()
            .is_some_and(|at| *at + Duration::from_secs(60) < now)
        {
            a.recent.pop_front();
        }
        rule(a.recent.len() <= RATE, || {
            format!("agent {number} spins: {action:?}")
        })?;
    }
    let a = &*a;
    let is_working = !a.is_draining && !a.is_low;
    match action {
        Action::Ask { machines, .. } => {
            rule(!a.is_draining, || {
                format!("agent {number} asks while it drains")
            })?;
            rule(!a.is_low, || {
                format!("agent {number} asks while its host runs short")
            })?;
            rule(a.ask.is_none(), || {
                format!("agent {number} asks twice at once")
            })?;
            rule(!machines.is_empty(), || {
                format!("agent {number} offers nothing")
            })?;
            let bootstraps = machines.iter().find(|m| is_bootstrapping(a, m));
            rule(bootstraps.is_none(), || {
                format!("{bootstraps:?} is offered while it is bootstrapped")
            })
        }
        Action::StartTask {
            ask,
            machine,
            cpus,
            ram_kib,
            ..
        } => {
            rule(is_working, || {
                format!("agent {number} starts a task although it drains or has no room")
            })?;
            let assigned = a.assigned.get(&ask.0);
            rule(assigned.is_some_and(|t| t.task.machine == *machine), || {
                format!("{ask} brought no task for {machine}")
            })?;
            rule(!is_bootstrapping(a, machine), || {
                format!("{machine} runs a task and is bootstrapped")
            })?;
            room(a, machine, *cpus, *ram_kib)
        }
        Action::StartBootstrap {
            machine,
            cpus,
            ram_kib,
            ..
        } => {
            rule(is_working, || {
                format!("agent {number} bootstraps although it drains or has no room")
            })?;
            rule(!is_bootstrapping(a, machine), || {
                format!("{machine} is bootstrapped twice at once")
            })?;
            let failed = a.failed.get(machine);
            let seen = a.seen.get(machine);
            let is_early =
                failed.is_some_and(|(at, of)| now < *at + LEFT_ALONE && Some(of) == seen);
            rule(!is_early, || {
                format!("{machine} failed and is bootstrapped again at once")
            })?;
            room(a, machine, *cpus, *ram_kib)?;
            leaves_a_slot(a)
        }
        Action::Interrupt { run, .. } => {
            let interrupted = a.runs.get(&run.0);
            rule(interrupted.is_some(), || {
                format!("{run} is interrupted and does not run")
            })
        }
        Action::Exit => {
            rule(a.is_draining, || format!("agent {number} ends unasked"))?;
            rule(a.runs.is_empty(), || {
                format!("agent {number} ends and leaves machines running")
            })?;
            rule(a.assigned.is_empty(), || {
                format!("agent {number} ends and forgets a task")
            })?;
            rule(a.ask.is_none(), || {
                format!("agent {number} ends before its request is answered")
            })?;
            rule(a.held.is_empty(), || {
                format!("agent {number} ends and a task is still held")
            })
        }
        Action::Enumerate => rule(!a.is_enumerating, || {
            "the inventory is looked at twice at once".to_owned()
        }),
        Action::GiveBack { ask, why } => {
            let is_reason = a.is_draining || a.is_low || a.is_disturbed;
            rule(is_reason, || {
                format!("{ask} is given back although nothing has changed: {why}")
            })
        }
        Action::CancelAsk { .. } | Action::Report(_) => Ok(()),
    }
}

fn is_bootstrapping(a: &Agent, machine: &str) -> bool {
    a.runs
        .values()
        .any(|r| r.machine == machine && matches!(r.work, Work::Bootstrap { .. }))
}

/// What starts must be within the slots and budgets, and a machine that may run once runs once.
fn room(a: &Agent, machine: &str, cpus: u32, ram_kib: u64) -> Checked {
    let config = &a.config;
    let slots = a.runs.len() + 1;
    rule(config.slots == 0 || slots <= config.slots as usize, || {
        format!("{slots} machines in {} slots", config.slots)
    })?;
    let cpus: u32 = a.runs.values().map(|r| r.cpus).sum::<u32>() + cpus;
    rule(config.cpu_budget.is_none_or(|most| cpus <= most), || {
        format!("{cpus} processors of {:?}", config.cpu_budget)
    })?;
    let known = a.machines.iter().find(|m| m.name == machine);
    rule(
        known.is_some_and(|m| m.ram_minimum.is_none_or(|least| ram_kib >= least)),
        || format!("{machine} gets {ram_kib} KiB, less than it needs"),
    )?;
    let ram: u64 = a.runs.values().map(|r| r.ram_kib).sum::<u64>() + ram_kib;
    rule(config.ram_budget.is_none_or(|most| ram <= most), || {
        format!("{ram} KiB of {:?}", config.ram_budget)
    })?;
    let runs = a.runs.values().filter(|r| r.machine == machine).count();
    rule(!known.is_some_and(|m| m.is_exclusive) || runs == 0, || {
        format!(
            "{machine} may run once at a time and runs {} times",
            runs + 1
        )
    })
}

/// Bootstraps do not take every slot while something could build.
fn leaves_a_slot(a: &Agent) -> Checked {
    let slots = a.config.slots as usize;
    let is_bounded = a.config.cpu_budget.is_some() || a.config.ram_budget.is_some();
    let has_task = a.runs.values().any(|r| matches!(r.work, Work::Task(..)));
    if slots < 2 || is_bounded || has_task || a.runs.len() + 1 < slots {
        return Ok(());
    }
    let view = a.supervisor.as_ref().map(Supervisor::view);
    let machines = view.iter().flat_map(|v| &v.machines);
    let mut could = machines
        .filter(|m| m.machine.state == MachineState::Usable && m.backed_off_until.is_none());
    let could = could.next();
    rule(could.is_none(), || {
        format!(
            "bootstraps take every slot although {:?} could build",
            could.map(|m| &m.machine.name)
        )
    })
}

/// After an agent was told something.
pub(crate) fn agent(world: &World, number: usize) -> Checked {
    let a = &world.agents[number];
    let Some(supervisor) = &a.supervisor else {
        return Ok(());
    };
    let now = world.now - a.since;
    let deadline = supervisor.next_deadline();
    rule(deadline.is_none_or(|at| at > now), || {
        format!("agent {number} wants to be woken at once, for ever")
    })?;
    let is_waiting = a.runs.values().any(|r| r.is_interrupted);
    rule(
        a.assigned.is_empty() || (a.assigned.len() == 1 && is_waiting),
        || format!("agent {number} neither starts nor gives back a task that came"),
    )?;
    rule(a.plan.len() == a.spool.len(), || {
        format!(
            "agent {number} has {} results and plans to send {}",
            a.spool.len(),
            a.plan.len()
        )
    })?;
    let tasks = a
        .runs
        .values()
        .filter(|r| matches!(r.work, Work::Task(..)))
        .count();
    rule(a.held.len() <= tasks + a.assigned.len(), || {
        format!("agent {number} holds what is done already")
    })?;
    let is_busy = !a.runs.is_empty() || a.ask.is_some() || a.is_enumerating || a.is_low;
    rule(is_busy || deadline.is_some(), || {
        format!("agent {number} sleeps for ever")
    })?;
    let known = supervisor.running().map(|run| run.0);
    rule(known.eq(a.runs.keys().copied()), || {
        format!("agent {number} does not know what it runs")
    })
}

/// When a run ends that nobody interrupted.
pub(crate) fn run_ends(world: &World, number: usize, run: u64) -> Checked {
    let late = world.agents[number]
        .deadline
        .map(|at| at + Duration::from_secs(5));
    rule(late.is_none_or(|at| world.now <= at), || {
        format!("run {run} of agent {number} goes on beyond the deadline of the drain")
    })
}

/// What an agent does with a result that was posted.
pub(crate) fn fate(world: &World, number: usize, id: u64, verdict: Verdict, fate: Fate) -> Checked {
    let Some(spooled) = world.agents[number].spool.get(&id) else {
        return Ok(());
    };
    let controller = &world.controllers[spooled.controller];
    let state = controller.session_state(spooled.session);
    match (verdict, fate) {
        (Verdict::Taken, Fate::Forget)
        | (Verdict::Busy | Verdict::Unsent | Verdict::Unreachable, Fate::Again { .. }) => Ok(()),
        (Verdict::Refused, Fate::SetAside) => {
            let is_wanted = matches!(
                state,
                SessionState::Overtaken | SessionState::Current(State::Queued | State::Building)
            );
            rule(!is_wanted || spooled.status == Status::Interrupt, || {
                format!(
                    "the result of session {} is lost: it is {state:?}",
                    spooled.session
                )
            })
        }
        // It has answered for so long; one that was away is waited for.
        (Verdict::Busy, Fate::GivenUp { .. }) => {
            let age = world.now - spooled.written;
            rule(controller.kin == Kin::Stranger && age > PATIENCE, || {
                format!(
                    "the result of session {} is given up after {age:?}",
                    spooled.session
                )
            })
        }
        _ => Err(format!(
            "{verdict:?} of session {} leads to {fate:?}",
            spooled.session
        )),
    }
}

/// After each step, of the controllers.
pub(crate) fn controllers(world: &World) -> Checked {
    for controller in &world.controllers {
        for (n, build) in controller.builds.iter().enumerate() {
            let is_building = build.lease_until.is_some();
            let is_one = match build.state {
                State::Queued => !is_building && build.recorded.is_empty(),
                State::Building => {
                    is_building && build.session.is_some() && build.recorded.is_empty()
                }
                State::Built => {
                    !is_building && build.session.is_none() && build.recorded.len() == 1
                }
                // Whatever its agents bring from now on.
                State::Cancelled => {
                    !is_building && build.session.is_none() && build.recorded.is_empty()
                }
            };
            rule(is_one, || {
                let url = &controller.url;
                format!(
                    "build {n} of {url} is not in one state, or has more than one result: {build:?}"
                )
            })?;
            rule(build.interrupts + build.lapses < INTERRUPTS, || {
                format!(
                    "build {n} of {} comes back for ever: {build:?}",
                    controller.url
                )
            })?;
        }
        rule(controller.held.len() <= world.agents.len(), || {
            format!(
                "{} holds more requests than there are agents",
                controller.url
            )
        })?;
    }
    Ok(())
}

/// When all is done.
pub(crate) fn at_the_end(world: &mut World) -> Checked {
    rule(world.agents.iter().all(|a| a.supervisor.is_none()), || {
        format!("nothing happens any more: {}", unfinished(world))
    })?;
    for (n, a) in world.agents.iter().enumerate() {
        rule(a.spool.is_empty() && a.held.is_empty(), || {
            format!("agent {n} leaves results behind")
        })?;
        rule(a.runs.is_empty(), || {
            format!("agent {n} leaves machines behind")
        })?;
    }
    let mut given_up = 0;
    for controller in &world.controllers {
        for (n, build) in controller.builds.iter().enumerate() {
            if build.state == State::Cancelled {
                continue;
            }
            let [(status, session)] = build.recorded[..] else {
                return Err(format!(
                    "build {n} of {} has no result: {build:?}",
                    controller.url
                ));
            };
            match session {
                None => {
                    given_up += 1;
                    rule(
                        status == Status::Abort && build.returns >= INTERRUPTS,
                        || {
                            format!(
                                "build {n} of {} was given up too early: {build:?}",
                                controller.url
                            )
                        },
                    )?;
                }
                Some(session) => {
                    let brought = world.results.get(&(controller.url.clone(), session));
                    rule(
                        brought.is_some_and(|all| all.contains(&status))
                            && status != Status::Interrupt,
                        || {
                            format!(
                                "build {n} of {} has a result that no run brought: {build:?}",
                                controller.url
                            )
                        },
                    )?;
                }
            }
        }
    }
    world.figures.given_up = given_up;
    Ok(())
}

/// What is not done yet, in words.
pub(crate) fn unfinished(world: &World) -> String {
    let mut words = Vec::new();
    for controller in &world.controllers {
        for (n, build) in controller.builds.iter().enumerate() {
            if !build.state.is_over() {
                words.push(format!(
                    "build {n} of {} on {}: {}",
                    controller.url, build.machine, build.state
                ));
            }
        }
    }
    for (n, a) in world.agents.iter().enumerate() {
        let view = a.supervisor.as_ref().map(Supervisor::view);
        words.push(format!(
            "agent {n}: {:?}, idle {:?}, asking {:?}, {} runs, {} results",
            view.as_ref().map(|v| v.mode),
            view.as_ref().and_then(|v| v.idle.clone()),
            view.as_ref().and_then(|v| v.asking.clone()),
            a.runs.len(),
            a.spool.len()
        ));
    }
    words.join("; ")
}
