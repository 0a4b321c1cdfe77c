//! `bbot agent`: looking at a living agent, and steering it.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail};
use bbot_agent::{
    options::Options as AgentOptions,
    resources::{Level, size},
    status::{
        Client, ClientError, Machine, MachineState, Mode, Moment, Place, Request, RunKind, Status,
        Suspended, known_sockets,
    },
};
use clap::{Args, Subcommand};

use super::{Exit, agents};
use crate::{PLACES, api::ControllerOptions, home::Home, table::Table};

/// Look at a running agent, also that of `bbot up`, and steer it.
#[derive(Debug, Subcommand)]
pub(crate) enum Agent {
    Status(ShowStatus),
    Drain(Drain),
    List(agents::List),
    Approve(agents::Approve),
    Refuse(agents::Refuse),
}

/// Show an agent's machines, slots, tasks, controllers, waiting results and last errors.
#[derive(Debug, Args)]
pub(crate) struct ShowStatus {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: Reach,
}

/// Let an agent take no new tasks; what runs finishes. It stays so over restarts.
#[derive(Debug, Args)]
pub(crate) struct Drain {
    /// Say it to a controller, of its agent of this name; without, to the agent that runs here
    #[arg(value_name = "NAME", conflicts_with_all = ["wait", "within", "socket"])]
    name: Option<String>,
    /// Why, for the controller's page
    #[arg(
        long,
        value_name = "TEXT",
        requires = "name",
        conflicts_with = "resume"
    )]
    reason: Option<String>,
    /// Wait until nothing runs any more
    #[arg(long)]
    wait: bool,
    /// Interrupt what still runs after so many seconds, and give it back to its controller
    #[arg(long, value_name = "SECONDS", conflicts_with = "resume")]
    within: Option<u64>,
    /// Take tasks again
    #[arg(long, conflicts_with = "wait")]
    resume: bool,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    controller: ControllerOptions,
}

/// Which agent.
#[derive(Debug, Args)]
pub(crate) struct Reach {
    /// The agent's socket (its --status-socket) [default: of the agent that runs here]
    #[arg(long, value_name = "PATH", help_heading = PLACES)]
    socket: Option<PathBuf>,
}

impl Reach {
    /// A connection to the agent that is meant.
    pub(crate) fn connect(&self, home: &Home) -> Result<Client> {
        if let Some(path) = &self.socket {
            return Ok(Client::connect(&Place(path.clone()))?);
        }
        let default_state = AgentOptions::with_controllers(&[]).state_dir();
        let (places, folders) = known_sockets(&[home.state()], &default_state);
        let mut clients = Vec::new();
        let mut closed = String::new();
        for place in places {
            match Client::connect(&place) {
                Ok(client) => clients.push((place, client)),
                Err(ClientError::Connect { path, source })
                    if source.kind() == std::io::ErrorKind::PermissionDenied =>
                {
                    closed.push_str(&format!("\n  {}: it is another user's", path.display()));
                }
                // What a dead agent has left.
                Err(_) => {}
            }
        }
        if clients.len() > 1 {
            let paths: Vec<_> = clients
                .iter()
                .map(|(place, _)| format!("\n  --socket {}", place.0.display()))
                .collect();
            bail!("several agents answer; say which one:{}", paths.concat());
        }
        match clients.pop() {
            Some((_, client)) => Ok(client),
            None => bail!(
                "no agent answers: is one running? Looked for its socket (*.sock) in{}{closed}\n\
                 one that is elsewhere is named by --socket",
                folders
                    .iter()
                    .map(|folder| format!("\n  {}", folder.display()))
                    .collect::<String>()
            ),
        }
    }
}

pub(crate) async fn run(command: &Agent, home: &Home) -> Result<Exit> {
    match command {
        Agent::Status(options) => {
            let status = options.reach.connect(home)?.status()?;
            if options.json {
                println!("{}", serde_json::to_string_pretty(&status)?);
            } else {
                show(&status)?;
            }
        }
        Agent::Drain(options) => match &options.name {
            Some(name) => {
                let reason = options.reason.as_deref();
                agents::drain(name, options.resume, reason, &options.controller, home).await?;
            }
            None => drain(options, home)?,
        },
        Agent::List(options) => agents::list(options, home).await?,
        Agent::Approve(options) => agents::approve(options, home).await?,
        Agent::Refuse(options) => agents::refuse(options, home).await?,
    }
    Ok(Exit::Done)
}

fn drain(options: &Drain, home: &Home) -> Result<()> {
    let mut client = options.reach.connect(home)?;
    if options.resume {
        client.tell(&Request::Undrain)?;
        eprintln!("the agent takes tasks again");
        return Ok(());
    }
    let within = options.within;
    client.tell(&Request::Drain { within })?;
    if options.wait {
        let running = client.status().map_or(0, |status| status.runs.len());
        if running > 0 {
            eprintln!("the agent takes no more tasks; waiting for what runs ({running})");
        }
        client.wait_drained().context("the agent is not drained")?;
        eprintln!("the agent is drained: nothing runs");
    } else {
        eprintln!(
            "the agent takes no more tasks; `bbot agent drain --resume` lets it take them again"
        );
    }
    Ok(())
}

/// The page for people.
fn show(status: &Status) -> Result<()> {
    println!("{}", summary(status));
    for reason in &status.resources.reasons {
        println!("{}: {}", word_of(status.resources.level), plain(reason));
    }
    let now = status.uptime;
    if !status.runs.is_empty() {
        println!("\nrunning");
        runs(status).print()?;
    }
    if !status.suspended.is_empty() {
        println!("\nsuspended machines");
        suspended(&status.suspended, now).print()?;
    }
    println!("\nmachines");
    if status.machines.is_empty() {
        println!("none");
    } else {
        machines(&status.machines, now).print()?;
    }
    if !status.controllers.is_empty() {
        println!("\ncontrollers");
        controllers(status).print()?;
    }
    println!("\n{}", spool(status));
    println!("{}", host(status));
    if !status.errors.is_empty() {
        println!("\nlast errors");
        let mut table = Table::new(&["ago", "level", "message"]);
        for error in &status.errors {
            table.row([
                span(error.at.before(now)),
                error.level.clone(),
                error.message.clone(),
            ]);
        }
        table.print()?;
    }
    Ok(())
}

fn summary(status: &Status) -> String {
    let now = status.uptime;
    let mode = match status.mode {
        Mode::Draining { until: Some(until) } | Mode::Stopping { until: Some(until) } => format!(
            "{}, what runs is interrupted in {}",
            status.mode.word(),
            span(until.after(now))
        ),
        mode => mode.word().to_string(),
    };
    let (slots, budgets) = (status.slots, status.budgets);
    let mut line = format!(
        "{} {} (toolchain {}, process {}): {mode}, up {}\nslots {} of {}, processors {}{}, memory {} of {}",
        plain(&status.agent),
        status.version,
        plain(&status.toolchain),
        status.pid,
        span(Duration::try_from_secs_f64(now.0).unwrap_or_default()),
        slots.used,
        slots.total,
        budgets.cpus_used,
        match budgets.cpus {
            0 => String::new(),
            cpus => format!(" of {cpus}"),
        },
        size(budgets.ram_kib_used.saturating_mul(1024)),
        size(budgets.ram_kib.saturating_mul(1024)),
    );
    let done: Vec<String> = status
        .counters
        .tasks
        .iter()
        .map(|(word, count)| format!("{count} {}", plain(word)))
        .collect();
    if !done.is_empty() {
        line.push_str(&format!("\ntasks so far: {}", done.join(", ")));
    }
    line
}

fn runs(status: &Status) -> Table {
    let now = status.uptime;
    let mut table = Table::new(&[
        "run",
        "task",
        "machine",
        "phase",
        "for",
        "time-out in",
        "session",
    ]);
    for run in &status.runs {
        let (task, session) = match &run.what {
            RunKind::Bootstrap => ("(bootstrap)".to_string(), String::new()),
            RunKind::Saving => ("(saved)".to_string(), String::new()),
            RunKind::Task {
                name,
                version,
                session,
                ..
            } => (format!("{name}/{version}"), shortened(session)),
        };
        let timeout = run.timeout_at.map(|at| span(at.after(now)));
        table.row([
            run.id.to_string(),
            task,
            run.machine.clone(),
            run.phase.word().to_string(),
            span(run.since.before(now)),
            timeout.unwrap_or_default(),
            session,
        ]);
    }
    table
}

fn machines(machines: &[Machine], now: Moment) -> Table {
    let mut table = Table::new(&["machine", "type", "state", "start", "why"]);
    for machine in machines {
        let mut state = machine.state.word().to_string();
        if let MachineState::BackingOff { until, .. } = &machine.state {
            state.push_str(&format!(" for {}", span(until.after(now))));
        }
        table.row([
            machine.name.clone(),
            machine.kind.clone(),
            state,
            start(machine),
            machine.state.why().to_string(),
        ]);
    }
    table
}

/// How a task's copy of it begins.
fn start(machine: &Machine) -> String {
    match (&machine.state, machine.warm, machine.prepared) {
        (MachineState::Usable, false, 0) => "boots".to_string(),
        // A container: nothing is saved of it.
        (MachineState::Usable, false, ready) => format!("boots, {ready} ready"),
        (MachineState::Usable, true, 0) => "restored".to_string(),
        (MachineState::Usable, true, ready) => format!("restored, {ready} ready"),
        _ => String::new(),
    }
}

fn controllers(status: &Status) -> Table {
    let now = status.uptime;
    let slots = status.slots;
    let mut table = Table::new(&[
        "controller",
        "priority",
        "kin",
        "last answer",
        "next",
        "trouble",
    ]);
    for controller in &status.controllers {
        let kin = match controller.ours {
            Some(true) => "ours",
            Some(false) => "stranger",
            None => "",
        };
        let answer = controller
            .last_answer
            .as_ref()
            .map(|(at, word)| format!("{word}, {} ago", span(at.before(now))));
        let next = match controller.next_ask {
            _ if controller.asking => "asked now".to_string(),
            _ if status.mode != Mode::Running => "not now".to_string(),
            Some(at) if at > now => format!("in {}", span(at.after(now))),
            _ if slots.used >= slots.total => "with a free slot".to_string(),
            _ => "soon".to_string(),
        };
        table.row([
            controller.url.clone(),
            controller.priority.clone(),
            kin.to_string(),
            answer.unwrap_or_default(),
            next,
            controller.trouble.clone().unwrap_or_default(),
        ]);
    }
    table
}

/// Also for `bbot machine list --suspended`.
pub(crate) fn suspended(all: &[Suspended], now: Moment) -> Table {
    let mut table = Table::new(&["id", "machine", "for", "ends in", "memory", "state", "why"]);
    for machine in all {
        table.row([
            machine.id.clone(),
            machine.machine.clone(),
            span(machine.since.before(now)),
            span(machine.until.after(now)),
            size(machine.ram_kib.saturating_mul(1024)),
            if machine.resumed {
                "goes on"
            } else {
                "stopped"
            }
            .to_string(),
            machine.why.clone(),
        ]);
    }
    table
}

fn spool(status: &Status) -> String {
    let spool = &status.spool;
    let mut line = format!(
        "results that wait: {}, log segments: {}",
        spool.waiting, spool.segments
    );
    if spool.bytes > 0 {
        line.push_str(&format!(", {}", size(spool.bytes)));
    }
    if let Some(next) = spool.next_try {
        line.push_str(&format!(
            ", next try in {}",
            span(next.after(status.uptime))
        ));
    }
    if spool.refused > 0 {
        line.push_str(&format!("; refused and kept aside: {}", spool.refused));
    }
    for (controller, why) in &spool.errors {
        line.push_str(&format!("\n  {}: {}", plain(controller), plain(why)));
    }
    line
}

fn host(status: &Status) -> String {
    let facts = &status.resources.facts;
    let mut parts = Vec::new();
    for volume in &facts.volumes {
        let path = plain(&volume.path.display().to_string());
        parts.push(format!("{} free on {path}", size(volume.free)));
    }
    if let Some(memory) = facts.memory_available {
        parts.push(format!("{} of memory", size(memory)));
    }
    if let Some(handles) = facts.handles {
        parts.push(format!("{} file handles", handles.left()));
    }
    if let Some(pids) = facts.pids {
        parts.push(format!("{} processes", pids.left()));
    }
    if parts.is_empty() {
        return "host: not measured yet".to_string();
    }
    format!("host has left: {}", parts.join(", "))
}

fn word_of(level: Level) -> &'static str {
    match level {
        Level::Ok => "note",
        Level::Low => "no new tasks",
        Level::Critical => "critical",
    }
}

/// A session as the agent's log has it.
fn shortened(session: &str) -> String {
    let length = session.chars().count();
    if length <= 20 {
        return session.to_string();
    }
    let first: String = session.chars().take(8).collect();
    let last: String = session.chars().skip(length - 8).collect();
    format!("{first}..{last}")
}

/// What comes from elsewhere on a line of ours.
fn plain(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// A duration in its two largest units.
fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3600 * 5 + 61, "5 h 1 min"),
            (86_400 * 3 + 7200, "3 d 2 h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn nothing_from_elsewhere_steers_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc"), "a?[2Jb?c");
    }
}
