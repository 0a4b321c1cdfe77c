//! The kill test: a controller, an agent and real machines, of which one after the other is killed while tasks stream
//! through them. In the end every task has exactly one result, and nothing is left over.
//!
//! ```text
//! plan      who is killed and when: a sequence that its seed makes again
//! world     the folders, the toolchain, and how the programs are started
//! machine   the machines: one in QEMU, one in a container
//! network   how machines reach their agent: another way with each agent
//! process   a program that runs; which processes there are
//! ask       what an agent says of itself
//! tasks     submitting them, following them, judging them in the end
//! left      what lies around on the host: before and after
//! figures   what was seen
//! ```
//!
//! Some of the builds end abnormally: their machines are suspended, so that kills meet such too.
//!
//! It runs in namespaces of its own (`unshare`): whatever processes, mounts and network cards are there in the end were
//! made here, and when it ends or is killed, so are they.

mod ask;
mod figures;
mod http;
mod left;
mod machine;
mod network;
mod plan;
mod process;
mod tasks;
mod world;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, anyhow, bail, ensure};
use lexopt::ValueExt as _;

use crate::workspace;
use figures::{Figures, Kills};
use machine::Kind;
use network::Networks;
use plan::{Kill, Victim};
use process::Running;
use tasks::Tasks;
use world::{Programs, World};

/// How many tasks wait for their result at a time: so many that no agent is idle, so few that all are in each other's way.
const AHEAD: usize = 6;

/// How long nothing may get done before this is a failure: longer than a lost lease and a machine that does not start.
const STALL: Duration = Duration::from_secs(300);

/// Among so many kills there are some of each kind.
const MANY: usize = 100;

/// How finely the moments of kills are kept.
const TICK: Duration = Duration::from_millis(20);

/// How often the tasks are looked at.
const LOOK: Duration = Duration::from_millis(100);

struct Options {
    kills: usize,
    tasks: usize,
    seed: u64,
    instances: u32,
    /// Milliseconds from one kill to the next, on average.
    pause: u64,
    keep: bool,
    /// Only of this kind.
    machines: Option<String>,
    inside: Option<PathBuf>,
}

impl Options {
    fn parse(arguments: Vec<OsString>) -> Result<Self, lexopt::Error> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut options = Self {
            kills: 200,
            tasks: 400,
            seed: u64::from(now.subsec_nanos()),
            instances: 2,
            pause: 3500,
            keep: false,
            machines: None,
            inside: None,
        };
        let mut parser = lexopt::Parser::from_args(arguments);
        while let Some(argument) = parser.next()? {
            match argument {
                lexopt::Arg::Long("kills") => options.kills = parser.value()?.parse()?,
                lexopt::Arg::Long("tasks") => options.tasks = parser.value()?.parse()?,
                lexopt::Arg::Long("seed") => options.seed = parser.value()?.parse()?,
                lexopt::Arg::Long("instances") => options.instances = parser.value()?.parse()?,
                lexopt::Arg::Long("pause") => options.pause = parser.value()?.parse()?,
                lexopt::Arg::Long("keep") => options.keep = true,
                lexopt::Arg::Long("machines") => {
                    options.machines = Some(parser.value()?.string()?);
                }
                lexopt::Arg::Long("inside") => options.inside = Some(parser.value()?.into()),
                other => return Err(other.unexpected()),
            }
        }
        Ok(options)
    }
}

/// Builds the programs, and runs the test in namespaces of its own; in there, the test itself.
pub(crate) fn run(arguments: Vec<OsString>) -> anyhow::Result<()> {
    let options = Options::parse(arguments.clone())?;
    if let Some(home) = &options.inside {
        return inside(&options, home);
    }
    ensure!(
        testkit::root(),
        "the kill test makes namespaces and mounts: run it as root"
    );
    ensure!(
        testkit::program("qemu-system-x86_64", "qemu"),
        "install qemu-system-x86"
    );
    build()?;
    // What is fetched for the machines is fetched here: inside there is no network.
    testkit::guest::kernel().map_err(|why| anyhow!("cannot make a machine: {why}"))?;
    let home = tempfile::Builder::new()
        .prefix("bbot-kill-")
        .tempdir()
        .context("cannot make a temporary directory")?;
    let me = std::env::current_exe().context("cannot find my own program")?;
    println!(
        "{} kills over at least {} tasks, seed {}",
        options.kills, options.tasks, options.seed
    );
    let status = Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--net",
            "--ipc",
            "--fork",
            "--kill-child=KILL",
            "--mount-proc",
            "--",
        ])
        .arg(me)
        .arg("kill")
        .args(arguments)
        .args(["--seed", &options.seed.to_string()])
        .arg("--inside")
        .arg(home.path())
        .stdin(Stdio::null())
        .status()
        .context("cannot run unshare (Debian's package util-linux)")?;
    if options.keep || !status.success() {
        println!("logs are kept in {}", home.keep().display());
    }
    ensure!(status.success(), "the kill test failed");
    Ok(())
}

/// The machines of the test.
fn kinds(options: &Options) -> anyhow::Result<Vec<Kind>> {
    let mut kinds = vec![Kind::Tiny];
    let containers = testkit::program("systemd-nspawn", "nspawn");
    match options.machines.as_deref() {
        Some("qemu") => {}
        Some("nspawn") => kinds = vec![Kind::Box],
        None if containers => kinds.push(Kind::Box),
        None => println!("no containers: install systemd-container"),
        Some(other) => bail!("there are no machines of the kind {other}: it is qemu or nspawn"),
    }
    Ok(kinds)
}

/// The programs, as `cargo build` leaves them.
fn programs() -> anyhow::Result<Programs> {
    let target = workspace::target()?;
    Ok(Programs {
        agent: target.join("debug/bbot-agent"),
        controller: target.join("debug/bbot-controller"),
        worker: crate::worker::path()?,
        toolchain: workspace::root()?.join("toolchain"),
    })
}

fn build() -> anyhow::Result<()> {
    let status = Command::new(workspace::cargo())
        .args([
            "build",
            "--quiet",
            "-p",
            "bbot-agent",
            "-p",
            "bbot-controller",
            "--bins",
        ])
        .current_dir(workspace::root()?)
        .stdin(Stdio::null())
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the programs do not build ({status})");
    if !crate::worker::path()?.exists() {
        crate::worker::run()?;
    }
    Ok(())
}

/// What runs, and what is to come.
struct Test<'a> {
    world: &'a World,
    tasks: Tasks,
    agent: Option<Running>,
    controller: Option<Running>,
    /// Those that are away, and until when.
    back: Vec<(Victim, Instant)>,
    began: Instant,
}

fn inside(options: &Options, home: &Path) -> anyhow::Result<()> {
    // The first mount is seen by nobody else: unshare has made the others' copies private.
    for (program, arguments) in [
        ("ip", &["link", "set", "lo", "up"][..]),
        ("mount", &["-t", "tmpfs", "-o", "mode=755", "run", "/run"]),
    ] {
        testkit::run(program, arguments);
    }
    let networks = Networks::make(&home.join("dnsmasq.log"))?;
    let world = World::make(
        home,
        programs()?,
        options.instances,
        kinds(options)?,
        networks,
    )?;
    println!(
        "machines are on {}",
        if world.is_btrfs() {
            "btrfs"
        } else {
            "plain directories"
        }
    );
    let outcome = test(options, &world);
    let verdict = match &outcome {
        Ok(figures) if figures.problems.is_empty() => format!("kill: all holds: {figures}"),
        Ok(figures) => {
            for problem in &figures.problems {
                println!("problem: {problem}");
            }
            format!(
                "kill: FAILED: {} problems with seed {}: {figures}",
                figures.problems.len(),
                options.seed
            )
        }
        Err(error) => format!("kill: FAILED with seed {}: {error:#}", options.seed),
    };
    println!("{verdict}");
    match outcome {
        Ok(figures) if figures.problems.is_empty() => Ok(()),
        _ => bail!("what is promised does not hold"),
    }
}

fn test(options: &Options, world: &World) -> anyhow::Result<Figures> {
    world.bootstrap()?;
    let controller = world.start_controller()?;
    let token = until("the controller", || Ok(world.token().ok()))?;
    let tasks = until("the controller's answer", || {
        Ok(Tasks::begin(world.address(), token.clone(), &world.configurations()).ok())
    })?;
    let mut test = Test {
        world,
        tasks,
        agent: None,
        controller: Some(controller),
        back: Vec::new(),
        began: Instant::now(),
    };
    // One whole task for each machine on each network, and then an end in order: what is there after that is there for
    // good.
    let mut problems = Vec::new();
    for _ in 0..world.networks().count() {
        test.agent = Some(world.start_agent()?);
        for _ in world.configurations() {
            test.tasks.submit()?;
        }
        until("the first results", || {
            test.tasks.look()?;
            Ok((test.tasks.progress().1 == 0).then_some(()))
        })?;
        if let Some(agent) = test.agent.take() {
            world::end(agent, "agent", &mut problems)?;
        }
    }
    let first = test.tasks.all()?;
    let wrong = tasks::wrong(&first, Kills::default(), options.instances);
    ensure!(
        wrong.is_empty(),
        "not all builds end as they should before anything is killed: {}",
        wrong.join("; ")
    );
    test.stop(&mut problems)?;
    let before = world.inventory()?;
    test.controller = Some(world.start_controller()?);
    test.agent = Some(world.start_agent()?);

    let plan = plan::kills(
        options.seed,
        options.kills,
        Duration::from_millis(options.pause),
    );
    let kills = test.run(&plan, options.tasks)?;

    // What the last kill has left, the next agent finds at its start.
    test.stop(&mut problems)?;
    test.controller = Some(world.start_controller()?);
    test.agent = Some(world.start_agent()?);
    let builds = until("the list of builds", || Ok(test.tasks.all().ok()))?;
    problems.extend(tasks::problems(
        &builds,
        test.tasks.submitted(),
        &world.configurations(),
    ));
    problems.extend(tasks::wrong(&builds, kills, options.instances));
    if options.kills >= MANY && kills.of_suspended() == 0 {
        problems.push("no kill has met a suspended machine".to_owned());
    }
    let log = fs::read(world.log("controller")).context("cannot read the controller's log")?;
    problems.extend(tasks::recorded_twice(&String::from_utf8_lossy(&log)));
    // A task more shows that the agent has begun, and so has swept.
    test.one_more()?;
    test.stop(&mut problems)?;
    problems.extend(
        world
            .inventory()?
            .more_than(&before)
            .into_iter()
            .map(|left| format!("left over: {left}")),
    );

    Ok(Figures::new(
        kills,
        &builds,
        test.began.elapsed().as_secs(),
        problems,
    ))
}

impl Test<'_> {
    /// Kills by the plan while tasks stream, and then waits until all have their results. Gives what it killed.
    fn run(&mut self, plan: &[Kill], tasks: usize) -> anyhow::Result<Kills> {
        let mut killed = Kills::default();
        let mut plan = plan.iter().enumerate();
        let mut next = plan.next();
        let mut last_kill = Instant::now();
        let mut progress = (self.tasks.progress(), Instant::now());
        let mut looked = Instant::now();
        loop {
            self.bring_back()?;
            if self.controller.is_some() && looked.elapsed() >= LOOK {
                looked = Instant::now();
                // An error is the controller on its way up or down; a stall is noticed below.
                let _ = self.tasks.look();
                let is_more = next.is_some() || self.tasks.submitted() < tasks;
                if is_more && self.tasks.progress().1 < AHEAD {
                    let _ = self.tasks.submit();
                }
            }
            if self.tasks.progress() != progress.0 {
                progress = (self.tasks.progress(), Instant::now());
            }
            ensure!(
                progress.1.elapsed() < STALL,
                "nothing was done for {} s: {:?}",
                STALL.as_secs(),
                progress.0
            );
            let is_quiet = self.back.is_empty();
            let done = self.tasks.submitted() >= tasks && self.tasks.progress().1 == 0;
            let Some((number, kill)) = next else {
                if is_quiet && done {
                    return Ok(killed);
                }
                std::thread::sleep(TICK);
                continue;
            };
            let is_due = is_quiet && last_kill.elapsed() >= kill.after;
            if is_due && self.kill(number, kill, &mut killed)? {
                last_kill = Instant::now();
                next = plan.next();
            }
            std::thread::sleep(TICK);
        }
    }

    /// Whether the kill was done; no machine may be running yet.
    fn kill(&mut self, number: usize, kill: &Kill, killed: &mut Kills) -> anyhow::Result<bool> {
        // It may be on its way up, or have just been killed.
        let suspended = self.world.suspended().unwrap_or_default();
        match kill.victim {
            Victim::Agent => {
                let Some(agent) = self.agent.take() else {
                    return Ok(false);
                };
                agent.kill()?;
                self.back.push((kill.victim, Instant::now() + kill.away));
            }
            Victim::Controller => {
                let Some(controller) = self.controller.take() else {
                    return Ok(false);
                };
                controller.kill()?;
                self.back.push((kill.victim, Instant::now() + kill.away));
            }
            Victim::Machine => {
                let Some(agent) = &self.agent else {
                    return Ok(false);
                };
                let machines = process::machines_of(agent.id())?;
                if machines.is_empty() || !process::kill(machines[kill.choice % machines.len()])? {
                    return Ok(false);
                }
            }
        }
        killed.count(kill.victim, suspended > 0);
        let (built, waiting) = self.tasks.progress();
        println!(
            "{:7.2} s  kill {}: {} {:.2} s after the one before, with machines on {}; \
             {suspended} suspended, {built} built, {waiting} waiting",
            self.began.elapsed().as_secs_f64(),
            number + 1,
            kill.victim,
            kill.after.as_secs_f64(),
            self.world.networks().current(),
        );
        Ok(true)
    }

    /// Starts again who has been away long enough; whoever has ended unasked is an error.
    fn bring_back(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) =
            self.back.drain(..).partition(|(_, until)| *until <= now);
        self.back = later;
        for (victim, _) in due {
            match victim {
                Victim::Agent => self.agent = Some(self.world.start_agent()?),
                Victim::Controller => self.controller = Some(self.world.start_controller()?),
                Victim::Machine => {}
            }
        }
        for (name, running) in [
            ("agent", &mut self.agent),
            ("controller", &mut self.controller),
        ] {
            if let Some(status) = running.as_mut().map(Running::ended).transpose()?.flatten() {
                bail!(
                    "the {name} ended by itself: {status}; see {}",
                    self.world.log(name).display()
                );
            }
        }
        Ok(())
    }

    /// One task from its submission to its result.
    fn one_more(&mut self) -> anyhow::Result<()> {
        until("the controller's answer", || Ok(self.tasks.submit().ok()))?;
        until("the last result", || {
            // The controller may be on its way up.
            let _ = self.tasks.look();
            Ok((self.tasks.progress().1 == 0).then_some(()))
        })
    }

    /// Ends both in order.
    fn stop(&mut self, problems: &mut Vec<String>) -> anyhow::Result<()> {
        for (name, running) in [
            ("agent", self.agent.take()),
            ("controller", self.controller.take()),
        ] {
            if let Some(running) = running {
                world::end(running, name, problems)?;
            }
        }
        Ok(())
    }
}

/// Waits for something that must come, but not for ever.
fn until<T>(what: &str, mut ask: impl FnMut() -> anyhow::Result<Option<T>>) -> anyhow::Result<T> {
    let began = Instant::now();
    loop {
        if let Some(it) = ask()? {
            return Ok(it);
        }
        ensure!(
            began.elapsed() < STALL,
            "{what} does not come within {} s",
            STALL.as_secs()
        );
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let parse = |text: &str| Options::parse(text.split(' ').map(OsString::from).collect());
        let options = parse("--kills 20 --tasks 40 --seed 7").unwrap();
        assert_eq!((options.kills, options.tasks, options.seed), (20, 40, 7));
        assert!(parse("--kills many").is_err());
        assert!(parse("--what").is_err());
    }
}
