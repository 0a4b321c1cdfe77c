//! A world for the agent's scenarios: machines on disk, a hypervisor that plays
//! scripts, controllers that say what they are told to.

use std::collections::VecDeque;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bbot_machine::accel::Accelerator;
use bbot_machine::machine::fake::{Fake, Script, Step};
use bbot_machine::machine::{BoxFuture, Exit, ExitCause, MachineEvent};
use bbot_machine::owner::Instance;
use bbot_manifest::ResultRequest;
use bbot_tftp::{Event, Kind};
use clap::Parser as _;
use tempfile::TempDir;

use super::super::*;
use crate::blocking::Blocking;
use crate::control::{Control, Signals};
use crate::controller::Kin;
use crate::controller::{
    Acknowledged, Channel, Destination, LinkError, Manner, Posted, Renewed, TaskAnswer,
};
use crate::host::Older;
use crate::supervisor::Event as Told;
use crate::warm::Bases;

/// Controllers that play a script, and what was asked of them.
#[derive(Debug, Default)]
pub(super) struct Controllers {
    /// Answers to task requests; when there are none left: no task.
    pub(super) answers: Mutex<VecDeque<Result<TaskAnswer, LinkError>>>,
    /// Answers to results; when there are none left: taken.
    pub(super) posts: Mutex<VecDeque<Posted>>,
    /// How long each answer of the script is held.
    pub(super) answer_after: Mutex<Duration>,
    /// URL and body of what was posted, task requests and results.
    pub(super) requests: Mutex<Vec<(String, String)>>,
    pub(super) results: Mutex<Vec<(String, String)>>,
    /// What goes wrong with fetching; when there is nothing left: it comes.
    pub(super) fetches: Mutex<VecDeque<LinkError>>,
    /// How long the task requests might have been held.
    pub(super) holds: Mutex<Vec<Duration>>,
    /// What was posted by an agent that is drained: it is told nothing.
    pub(super) drained: Mutex<Vec<(String, String)>>,
    /// When the last answer of the script was given.
    pub(super) given: Mutex<Option<Instant>>,
    /// Answers to renewals; when there are none left: the task is still ours.
    pub(super) renewals: Mutex<VecDeque<Renewed>>,
    /// Whether the script is that of all controllers, and not of the first.
    pub(super) share_script: std::sync::atomic::AtomicBool,
}

impl Link for Controllers {
    fn request_task<'a>(
        &'a self,
        url: &'a Url,
        body: String,
        manner: Manner,
    ) -> BoxFuture<'a, Result<TaskAnswer, LinkError>> {
        if manner.is_drained {
            self.drained.lock().unwrap().push((url.to_string(), body));
            let answer = TaskAnswer {
                kin: Kin::Ours,
                ..stranger(": 1\nsession:\n")
            };
            return Box::pin(async { Ok(answer) });
        }
        self.holds.lock().unwrap().push(manner.hold);
        self.requests.lock().unwrap().push((url.to_string(), body));
        // The script is that of the first; the others have nothing.
        let of_script = url.host_str() == Some("c1.example") || self.shares_script();
        let answer = of_script
            .then(|| self.answers.lock().unwrap().pop_front())
            .flatten();
        if answer.is_some() {
            *self.given.lock().unwrap() = Some(Instant::now());
        }
        let after = *self.answer_after.lock().unwrap();
        Box::pin(async move {
            if answer.is_some() && !after.is_zero() {
                tokio::time::sleep(after).await;
            }
            match answer {
                Some(answer) => answer,
                None => Ok(stranger(": 1\nsession:\n")),
            }
        })
    }

    fn post_result<'a>(&'a self, to: &'a Destination, body: Vec<u8>) -> BoxFuture<'a, Posted> {
        let url = &to.url;
        let body = String::from_utf8(body).unwrap();
        self.results.lock().unwrap().push((url.to_string(), body));
        let answer = self.posts.lock().unwrap().pop_front();
        Box::pin(async { answer.unwrap_or(Posted::Taken) })
    }

    fn renew_lease<'a>(
        &'a self,
        _: &'a Channel,
        _: u64,
        _: Duration,
        _: Duration,
    ) -> BoxFuture<'a, Renewed> {
        let answer = self.renewals.lock().unwrap().pop_front();
        Box::pin(async { answer.unwrap_or(Renewed::Until(None)) })
    }

    fn post_segment<'a>(
        &'a self,
        _: &'a Channel,
        _: u64,
        _: bool,
        _: Vec<u8>,
    ) -> BoxFuture<'a, Acknowledged> {
        Box::pin(async { Acknowledged::Taken })
    }

    fn fetch<'a>(
        &'a self,
        _: &'a Url,
        _: Kin,
        _: &'a str,
        to: &'a Path,
    ) -> BoxFuture<'a, Result<(), LinkError>> {
        let wrong = self.fetches.lock().unwrap().pop_front();
        Box::pin(async move {
            if let Some(wrong) = wrong {
                return Err(wrong);
            }
            fs::write(to, "archive").unwrap();
            Ok(())
        })
    }
}

pub(super) fn stranger(body: &str) -> TaskAnswer {
    TaskAnswer {
        body: body.as_bytes().to_vec(),
        kin: Kin::Stranger,
        session_url: None,
        renew: None,
        agreement: None,
    }
}

/// The task response of 2017 for libfoo on `machine`.
pub(super) fn task_for(machine: &str) -> String {
    format!(
        ": 1\nsession: s/1\nresult-url: http://c1.example/?build-result\n:\nname: libfoo\nversion: 1.2\n\
         repository: http://r.example/1\ntrust: AB\nmachine: {machine}\ntarget: x86_64-linux-gnu\n"
    )
}

pub(super) const RESULT: &str = ": 1\nname: libfoo\nversion: 1.2\nstatus: success\nupdate-status: success\n\
                                 update-log: built\n";

impl Controllers {
    fn shares_script(&self) -> bool {
        self.share_script.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// How a turn of the agent has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// A task was done.
    Again,
    /// There was nothing to do.
    Idle,
    /// The agent has ended.
    Ended,
}

pub(super) struct World {
    pub(super) dir: TempDir,
    pub(super) fake: Fake,
    pub(super) controllers: Arc<Controllers>,
    agent: Option<Agent>,
    is_begun: bool,
    uploads: u32,
}

impl World {
    /// One machine, `linux`, not bootstrapped yet; two controllers, the first of which is
    /// asked first.
    pub(super) fn new(args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Fake::new();
        let controllers = Arc::new(Controllers::default());
        let toolchain = dir.path().join("tftp/toolchains/default");
        fs::create_dir_all(&toolchain).unwrap();
        fs::write(toolchain.join("bootstrap"), "#!/bin/sh\n").unwrap();
        make_machine(dir.path(), "linux", "linux-1.1");
        let agent = make_agent(dir.path(), &fake, &controllers, args);
        Self {
            dir,
            fake,
            controllers,
            agent: Some(agent),
            is_begun: false,
            uploads: 0,
        }
    }

    pub(super) fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().unwrap()
    }

    /// The agent is gone as if it had been killed, and started again with these options.
    pub(super) async fn restart(&mut self, args: &[&str]) {
        self.kill().await;
        self.agent = Some(make_agent(
            self.dir.path(),
            &self.fake,
            &self.controllers,
            args,
        ));
        self.is_begun = false;
    }

    /// The same, with the first controller alone.
    pub(super) async fn restart_alone(&mut self, args: &[&str]) {
        self.restart(args).await;
        let agent = self.agent();
        let mut config = config_of(&agent.context.host.options).unwrap();
        config.controllers.truncate(1);
        agent.supervisor = Supervisor::new(config, 0);
    }

    /// The agent is gone: its runs are dropped, and nothing is said to anybody.
    pub(super) async fn kill(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.jobs.shutdown().await;
            let host = Arc::clone(&agent.context.host);
            // What is prepared goes with it.
            drop(agent);
            host.blocking.idle().await;
        }
    }

    /// The agent runs until it is told to end.
    pub(super) async fn until(&mut self, signals: &mut Signals) {
        let agent = self.agent.take().unwrap();
        agent.until(signals).await.unwrap();
    }

    /// The agent works until it has done a task, or has nothing to do.
    pub(super) async fn turn(&mut self) -> Turn {
        let nobody = &mut Control::new().1;
        self.begin();
        let agent = self.agent.as_mut().unwrap();
        let done = |agent: &Agent| {
            let counters = &agent.seen.counters;
            counters.interrupts + counters.tasks.values().sum::<u64>()
        };
        let before = done(agent);
        let mut has_worked = false;
        loop {
            if agent.act().unwrap() || agent.is_done {
                return Turn::Ended;
            }
            if done(agent) > before {
                posted(agent).await;
                return Turn::Again;
            }
            let is_idle = agent.jobs.is_empty() && agent.look_again.is_none();
            if is_idle && has_worked {
                posted(agent).await;
                return Turn::Idle;
            }
            has_worked |= !agent.jobs.is_empty();
            agent.step(nobody).await.unwrap();
        }
    }

    fn begin(&mut self) {
        if !std::mem::replace(&mut self.is_begun, true) {
            self.agent().tell(Told::Tick);
        }
    }

    /// For how long the agent has nothing to do, in whole seconds.
    pub(super) fn pause(&mut self) -> Duration {
        let due = self.agent().wake().unwrap();
        let pause = due.saturating_duration_since(Instant::now());
        // A turn ends a moment later than it has nothing to do.
        Duration::from_secs((pause + Duration::from_millis(500)).as_secs())
    }

    /// How long it is ago that a controller gave what was in the script.
    pub(super) fn took(&self) -> u64 {
        let given = self.controllers.given.lock().unwrap().unwrap();
        given.elapsed().as_secs()
    }

    /// The agent goes on for so long.
    pub(super) async fn goes_on(&mut self, seconds: u64) {
        let nobody = &mut Control::new().1;
        self.begin();
        let agent = self.agent();
        let end = Instant::now() + Duration::from_secs(seconds);
        loop {
            assert!(!agent.act().unwrap());
            let step = tokio::time::timeout_at(end, agent.step(nobody)).await;
            match step {
                Ok(step) => step.unwrap(),
                Err(_) => return,
            }
        }
    }

    /// The agent goes on until this is so.
    pub(super) async fn goes_on_until(&mut self, mut is_so: impl FnMut(&Agent) -> bool) {
        let nobody = &mut Control::new().1;
        self.begin();
        let agent = self.agent();
        let end = Instant::now() + Duration::from_secs(24 * 60 * 60);
        loop {
            assert!(!agent.act().unwrap());
            if is_so(agent) {
                return;
            }
            assert!(Instant::now() < end, "it does not come to pass");
            agent.step(nobody).await.unwrap();
        }
    }

    /// The agent goes on until no machine is suspended any more.
    pub(super) async fn suspensions_end(&mut self) {
        self.goes_on_until(|agent| agent.suspended.is_empty()).await;
    }

    /// One with its machine bootstrapped already.
    pub(super) async fn bootstrapped(args: &[&str]) -> Self {
        let mut world = Self::new(args);
        world.boots();
        assert_eq!(world.turn().await, Turn::Idle);
        assert!(
            world
                .machine("linux")
                .join("linux-default/manifest")
                .exists()
        );
        world.controllers.requests.lock().unwrap().clear();
        world
    }

    pub(super) fn machine(&self, name: &str) -> PathBuf {
        self.dir.path().join("machines/vol").join(name)
    }

    pub(super) fn add_machine(&self, name: &str, id: &str) {
        make_machine(self.dir.path(), name, id);
    }

    pub(super) fn answer(&self, body: &str) {
        self.controllers
            .answers
            .lock()
            .unwrap()
            .push_back(Ok(stranger(body)));
    }

    pub(super) fn posted(&self) -> Vec<ResultRequest> {
        let results = self.controllers.results.lock().unwrap();
        results
            .iter()
            .map(|(_, body)| ResultRequest::parse(body.as_bytes(), "posted").unwrap())
            .collect()
    }

    /// An event: a file with this content was uploaded.
    pub(super) fn upload(&mut self, name: &str, content: &[u8]) -> Step {
        self.uploads += 1;
        let path = self.dir.path().join(format!("upload-{}", self.uploads));
        fs::write(&path, content).unwrap();
        Step::Now(MachineEvent::Tftp(Event::Uploaded {
            name: name.to_owned(),
            path,
            bytes: content.len() as u64,
        }))
    }

    /// The next machine boots and bootstraps.
    pub(super) fn boots(&mut self) {
        let versions = BootstrapManifestText::ours();
        let steps = vec![
            get("bootstrap"),
            self.upload("manifest", versions.as_bytes()),
        ];
        self.fake.add(Script {
            steps,
            ..Script::default()
        });
    }

    /// The next machine boots, fetches its task and uploads this.
    pub(super) fn builds(&mut self, name: &str, result: &[u8]) {
        let steps = vec![get("manifest"), self.upload(name, result)];
        self.fake.add(Script {
            steps,
            ..Script::default()
        });
    }

    /// The next machine does this.
    pub(super) fn plays(&self, steps: Vec<Step>) {
        self.fake.add(Script {
            steps,
            ..Script::default()
        });
    }

    /// What is in the machine's directory.
    pub(super) fn names(&self, machine: &str) -> Vec<String> {
        names(&self.machine(machine))
    }

    /// Nothing of a run is left: no snapshot, no record, no folder.
    pub(super) async fn is_clean(&mut self) {
        if let Some(agent) = &self.agent {
            agent.context.host.blocking.idle().await;
        }
        let left: Vec<String> = self
            .names("linux")
            .into_iter()
            .filter(|n| {
                !matches!(
                    n.as_str(),
                    "linux-1" | "linux-1.1" | "linux-1.2" | "linux-default" | ".linux-default.mac"
                )
            })
            .collect();
        assert_eq!(left, Vec::<String>::new());
        assert_eq!(
            names(&self.dir.path().join("tftp/build")),
            Vec::<String>::new()
        );
        assert_eq!(
            names(&self.dir.path().join("tftp/bootstrap")),
            Vec::<String>::new()
        );
    }

    pub(super) fn spool(&self, folder: &str) -> usize {
        names(&self.dir.path().join("state/default").join(folder)).len()
    }
}

pub(super) struct BootstrapManifestText;

impl BootstrapManifestText {
    pub(super) fn ours() -> String {
        bbot_manifest::BootstrapManifest::ours()
            .serialize()
            .unwrap()
    }
}

/// Waits until what can be posted now is.
async fn posted(agent: &Agent) {
    let Some(results) = &agent.context.results else {
        return;
    };
    let mut changes = results.changes();
    loop {
        changes.borrow_and_update();
        let status = results.status();
        let is_later = |next: Duration| !next.is_zero();
        if status.waiting == 0 || status.next_try.is_some_and(is_later) {
            // Time stands still until the disk is done with it, too.
            return tokio::time::sleep(Duration::from_millis(1)).await;
        }
        changes.changed().await.unwrap();
    }
}

fn make_agent(dir: &Path, fake: &Fake, controllers: &Arc<Controllers>, args: &[&str]) -> Agent {
    let mut all = vec!["bbot-agent", "0001=http://c1.example", "http://c2.example"];
    if !args.contains(&"--warm") {
        // One machine runs less; who is interested in it says so.
        all.extend(["--warm", "off"]);
    }
    if !args.contains(&"--prepare") {
        all.extend(["--prepare", "0"]);
    }
    all.extend(args);
    let mut options = Options::parse_from(all);
    options.machines = dir.join("machines");
    options.tftp = dir.join("tftp");
    options.state = Some(dir.join("state"));
    let host = Host {
        toolchain: options.toolchain_name.parse().unwrap(),
        options,
        hypervisor: Arc::new(fake.clone()),
        accelerator: Accelerator::Kvm,
        instance: Instance::new("test").unwrap(),
        blocking: Blocking::default(),
        older: Older::default(),
        bases: Bases::default(),
    };
    let link = Arc::clone(controllers) as Arc<dyn Link>;
    let mut agent = Agent::new(Parts {
        configuration: Configuration::fixed(host.options.clone()),
        host,
        link,
        keys: Keys::default(),
        out: Box::new(io::sink()),
    })
    .unwrap();
    // What the system tells, it tells in its own time; who is interested in it says so.
    agent.watch = None;
    agent
}

fn make_machine(dir: &Path, name: &str, id: &str) {
    let machine = dir.join("machines/vol").join(name);
    make_revision(&machine, name, "1", id);
    std::os::unix::fs::symlink(format!("{name}-1.1"), machine.join(format!("{name}-1"))).unwrap();
}

pub(super) fn make_revision(machine: &Path, name: &str, number: &str, id: &str) {
    let revision = machine.join(format!("{name}-1.{number}"));
    fs::create_dir_all(&revision).unwrap();
    let manifest = format!(": 1\nid: {id}\nname: {name}\nsummary: A machine\ntype: kvm\n");
    fs::write(revision.join("manifest"), manifest).unwrap();
    fs::write(revision.join("disk.img"), format!("disk of {id}")).unwrap();
}

pub(super) fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn peer() -> SocketAddr {
    "196.254.111.2:1024".parse().unwrap()
}

/// An event: the guest asks for a file.
pub(super) fn get(name: &str) -> Step {
    after(
        0,
        MachineEvent::Tftp(Event::Requested {
            peer: peer(),
            kind: Kind::Get,
            name: name.to_owned(),
        }),
    )
}

pub(super) fn after(seconds: u64, event: MachineEvent) -> Step {
    Step::After(Duration::from_secs(seconds), event)
}

pub(super) fn crash() -> MachineEvent {
    MachineEvent::Exited(Exit {
        cause: ExitCause::Crashed,
        detail: "signal 9".to_owned(),
    })
}
