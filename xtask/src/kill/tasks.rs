//! The stream of tasks: submitted by the controller's API, followed until each has its result, and judged in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::figures::Kills;
use super::http;

/// One of so many tasks ends abnormally. Odd, so that they come to each of two configurations.
const BAD: usize = 3;

/// After so many interrupts a controller gives a task up.
const INTERRUPTS: usize = 5;

/// The submissions of this test.
#[derive(Debug)]
pub(super) struct Tasks {
    controller: SocketAddr,
    token: String,
    /// The archive that most of them build, and the one of those that end abnormally.
    good: String,
    bad: String,
    /// What they are built for, in turn.
    configurations: Vec<String>,
    /// How many were submitted; they are called `task-1` and so on.
    submitted: usize,
    /// The controller's ids of builds that have no result yet.
    waiting: BTreeSet<String>,
    /// How many builds have one.
    built: usize,
}

impl Tasks {
    /// Puts the archives of the packages into the controller.
    pub(super) fn begin(
        controller: SocketAddr,
        token: String,
        configurations: &[&str],
    ) -> anyhow::Result<Self> {
        let mut tasks = Self {
            controller,
            token,
            good: String::new(),
            bad: String::new(),
            configurations: configurations.iter().map(|&name| name.to_owned()).collect(),
            submitted: 0,
            waiting: BTreeSet::new(),
            built: 0,
        };
        tasks.good = tasks.put(&package(false)?)?;
        tasks.bad = tasks.put(&package(true)?)?;
        Ok(tasks)
    }

    /// Puts an archive into the controller; gives its checksum.
    fn put(&self, archive: &[u8]) -> anyhow::Result<String> {
        let sha256: String = Sha256::digest(archive)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let answer = self.send("PUT", &format!("/api/v1/archives/{sha256}"), archive)?;
        ensure!(
            matches!(answer.status, 200 | 201),
            "the controller does not take the archive: {}",
            answer.status
        );
        Ok(sha256)
    }

    pub(super) fn submitted(&self) -> usize {
        self.submitted
    }

    /// How many builds have a result, and how many wait for one.
    pub(super) fn progress(&self) -> (usize, usize) {
        (self.built, self.waiting.len())
    }

    /// Submits one more. An error is the controller's absence: it is to be tried again, and is not done twice.
    pub(super) fn submit(&mut self) -> anyhow::Result<()> {
        let number = self.submitted + 1;
        let name = name_of(number);
        let archive = if is_bad(number) {
            &self.bad
        } else {
            &self.good
        };
        // The controller may have been killed between taking it and saying so.
        let mut builds = self.builds(&format!("package={name}"))?;
        if builds.is_empty() {
            let body = json!({
                "name": name,
                "version": "1.0.0",
                "source": {"archive": archive},
                "configurations": [configuration_of(number, &self.configurations)],
            });
            let answer = self.send("POST", "/api/v1/submissions", body.to_string().as_bytes())?;
            let answer = answer.json()?;
            builds = answer["builds"]
                .as_array()
                .with_context(|| format!("{name} is not taken: {answer}"))?
                .clone();
        }
        ensure!(builds.len() == 1, "{name} has {} builds", builds.len());
        self.waiting.extend(builds.iter().filter_map(id));
        self.submitted += 1;
        Ok(())
    }

    /// Looks which of those that wait have their result.
    pub(super) fn look(&mut self) -> anyhow::Result<()> {
        for id in self.waiting.clone() {
            let answer = self.send("GET", &format!("/api/v1/builds/{id}"), b"")?;
            ensure!(
                answer.status == 200,
                "build {id} is not to be seen: status {}",
                answer.status
            );
            if answer.json()?["state"] == "built" {
                self.waiting.remove(&id);
                self.built += 1;
            }
        }
        Ok(())
    }

    /// All that the controller knows of the builds.
    pub(super) fn all(&self) -> anyhow::Result<Vec<Build>> {
        self.builds("limit=100")?.iter().map(Build::read).collect()
    }

    fn builds(&self, query: &str) -> anyhow::Result<Vec<Value>> {
        let mut all = Vec::new();
        let mut before = String::new();
        loop {
            let answer = self.send("GET", &format!("/api/v1/builds?{query}{before}"), b"")?;
            let answer = answer.json()?;
            all.extend_from_slice(
                answer["builds"]
                    .as_array()
                    .with_context(|| format!("no list of builds: {answer}"))?,
            );
            match answer["next"].as_str() {
                Some(next) => before = format!("&before={next}"),
                None => return Ok(all),
            }
        }
    }

    fn send(&self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<http::Answer> {
        http::send(self.controller, &self.token, method, path, body)
    }
}

/// An id may be a text or a number.
fn id(build: &Value) -> Option<String> {
    match &build["id"] {
        Value::String(id) => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    }
}

/// The smallest package that a worker builds: a makefile, for the make of these machines, and a file that tells it to end
/// abnormally.
fn package(is_bad: bool) -> anyhow::Result<Vec<u8>> {
    let failed = "cannot pack the package";
    let files = [("Makefile", &b"all:\n\techo made\n"[..]), ("bad", b"")];
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (name, contents) in &files[..if is_bad { 2 } else { 1 }] {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, format!("task/{name}"), *contents)
            .context(failed)?;
    }
    let mut gzip = tar.into_inner().context(failed)?;
    gzip.flush().context(failed)?;
    gzip.finish().context(failed)
}

/// A build in the end, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Build {
    pub(super) package: String,
    pub(super) configuration: String,
    pub(super) state: String,
    pub(super) status: Option<String>,
    /// How many results were recorded.
    pub(super) results: u64,
    /// Whether the controller has given the task up, since it came back too often.
    is_given_up: bool,
}

impl Build {
    fn read(build: &Value) -> anyhow::Result<Self> {
        let text = |name: &str| build[name].as_str().map(str::to_owned);
        match (
            text("package"),
            text("configuration"),
            text("state"),
            build["attempt"].as_u64(),
        ) {
            (Some(package), Some(configuration), Some(state), Some(results)) => Ok(Self {
                package,
                configuration,
                state,
                status: text("status"),
                results,
                is_given_up: build["operations"]
                    .as_array()
                    .is_some_and(|all| all.iter().any(|one| one["name"] == "controller")),
            }),
            _ => bail!("this is no build: {build}"),
        }
    }
}

/// What the task of this number is called.
fn name_of(number: usize) -> String {
    format!("task-{number}")
}

/// Whether the build of this number is to end abnormally.
fn is_bad(number: usize) -> bool {
    number.is_multiple_of(BAD)
}

/// How the build of this number ends when nobody is killed.
fn status_of(number: usize) -> &'static str {
    if is_bad(number) {
        "abnormal"
    } else {
        "success"
    }
}

/// What the task of this number is built for.
fn configuration_of<S: AsRef<str>>(number: usize, configurations: &[S]) -> &str {
    configurations[number % configurations.len()].as_ref()
}

/// What is wrong with the builds in the end: each of `submitted` tasks is there once, for its configuration, and has
/// exactly one result, or none and is queued.
pub(super) fn problems(builds: &[Build], submitted: usize, configurations: &[&str]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut count: BTreeMap<(String, String), usize> = BTreeMap::new();
    for build in builds {
        let Build {
            package,
            configuration,
            state,
            results,
            ..
        } = build;
        *count
            .entry((package.clone(), configuration.clone()))
            .or_default() += 1;
        let is_right = match state.as_str() {
            "built" => *results == 1 && build.status.is_some(),
            "queued" => *results == 0,
            _ => false,
        };
        if !is_right {
            problems.push(format!(
                "{package} for {configuration} is {state} with {results} results"
            ));
        }
    }
    for number in 1..=submitted {
        let configuration = configuration_of(number, configurations);
        let times = count
            .remove(&(name_of(number), configuration.to_owned()))
            .unwrap_or_default();
        if times != 1 {
            problems.push(format!(
                "task-{number} for {configuration} is there {times} times"
            ));
        }
    }
    problems.extend(count.keys().map(|(package, configuration)| {
        format!("nobody has submitted {package} for {configuration}")
    }));
    problems
}

/// Builds that have not ended as their packages have it, and that no kill explains: a machine that is killed ends one
/// build at most, and a task is given up after so many interrupts, of which an agent that is killed makes as many as it has
/// machines.
pub(super) fn wrong(builds: &[Build], kills: Kills, instances: u32) -> Vec<String> {
    let (mut wrong, mut cut, mut given_up) = (Vec::new(), Vec::new(), Vec::new());
    for build in builds {
        let Some(status) = &build.status else {
            continue;
        };
        let number = build.package.strip_prefix("task-");
        let expected = number.and_then(|number| number.parse().ok()).map(status_of);
        if expected == Some(status) {
            continue;
        }
        let word = format!("{} is {status}", build.package);
        match status.as_str() {
            "abort" if build.is_given_up => given_up.push(word),
            "abort" | "abnormal" => cut.push(word),
            _ => wrong.push(word),
        }
    }
    let interrupts = kills.agents() * usize::try_from(instances).unwrap_or(usize::MAX);
    for (why, most, builds) in [
        ("machines killed", kills.machines(), cut),
        ("tasks given up", interrupts / INTERRUPTS, given_up),
    ] {
        if builds.len() > most {
            let builds = builds.join(", ");
            wrong.push(format!("more than the {most} {why} explain: {builds}"));
        }
    }
    wrong
}

/// Tasks that the controller says more than once to be built: its log has a line for each result that it records.
pub(super) fn recorded_twice(log: &str) -> Vec<String> {
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for line in log.lines() {
        let Some((front, _)) = line.split_once(" is built: ") else {
            continue;
        };
        // "... NAME VERSION is built: STATUS"
        if let Some(name) = front.split_whitespace().rev().nth(1) {
            *times.entry(name).or_default() += 1;
        }
    }
    times
        .into_iter()
        .filter(|(_, times)| *times > 1)
        .map(|(name, times)| format!("{name} was recorded {times} times"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kill::plan::Victim;

    fn build(package: &str, state: &str, results: u64) -> Build {
        Build {
            package: package.to_owned(),
            configuration: "c".to_owned(),
            state: state.to_owned(),
            status: (state == "built").then(|| "success".to_owned()),
            results,
            is_given_up: false,
        }
    }

    #[test]
    fn each_task_has_one_result_or_is_queued() {
        let good = [build("task-1", "built", 1), build("task-2", "queued", 0)];
        assert_eq!(problems(&good, 2, &["c"]), Vec::<String>::new());
        for (builds, submitted) in [
            (vec![], 1),
            (vec![build("task-1", "built", 2)], 1),
            (vec![build("task-1", "built", 0)], 1),
            (vec![build("task-1", "building", 0)], 1),
            (vec![build("task-1", "queued", 1)], 1),
            (
                vec![build("task-1", "built", 1), build("task-1", "built", 1)],
                1,
            ),
            (vec![build("task-1", "built", 1)], 0),
        ] {
            assert_eq!(problems(&builds, submitted, &["c"]).len(), 1, "{builds:?}");
        }
        // The first is for d then: nobody has submitted it for c, and it is missing there.
        assert_eq!(problems(&good, 2, &["c", "d"]).len(), 2);
    }

    #[test]
    fn what_no_kill_explains_is_wrong() {
        let ended = |number: usize, status: &str| Build {
            status: Some(status.to_owned()),
            ..build(&name_of(number), "built", 1)
        };
        let given_up = |number: usize| Build {
            is_given_up: true,
            ..ended(number, "abort")
        };
        let kills = |agents: usize, machines: usize| {
            let mut kills = Kills::default();
            (0..agents).for_each(|_| kills.count(Victim::Agent, false));
            (0..machines).for_each(|_| kills.count(Victim::Machine, false));
            kills
        };
        let cases: [(&[Build], Kills, usize); 9] = [
            (
                &[ended(1, "success"), ended(BAD, "abnormal")],
                kills(0, 0),
                0,
            ),
            (&[build("task-1", "queued", 0)], kills(0, 0), 0),
            (&[ended(1, "abnormal")], kills(9, 0), 1),
            (&[ended(1, "abnormal"), ended(2, "abort")], kills(0, 2), 0),
            (&[ended(1, "abnormal"), ended(2, "abort")], kills(0, 1), 1),
            // Never seen with these packages, whoever is killed.
            (&[ended(1, "error"), ended(2, "warning")], kills(9, 9), 2),
            (&[ended(BAD, "success")], kills(9, 9), 1),
            (&[given_up(1)], kills(3, 0), 0),
            (&[given_up(1)], kills(2, 9), 1),
        ];
        for (builds, kills, problems) in cases {
            let wrong = wrong(builds, kills, 2);
            assert_eq!(wrong.len(), problems, "{builds:?} {kills:?}: {wrong:?}");
        }
    }

    #[test]
    fn two_lines_for_one_task_are_one_too_many() {
        let log =
            "T INFO x: task-1 1.0.0 is built: success\nT INFO x: task-2 1.0.0 is built: abort\n";
        assert_eq!(recorded_twice(log), Vec::<String>::new());
        let log =
            format!("{log}T INFO x: task-2 1.0.0 is built: success status=success\nrubbish\n");
        assert_eq!(recorded_twice(&log), ["task-2 was recorded 2 times"]);
    }

    #[test]
    fn the_package_is_an_archive_of_a_makefile() {
        for (is_bad, expected) in [
            (false, &["task/Makefile"][..]),
            (true, &["task/Makefile", "task/bad"]),
        ] {
            let package = package(is_bad).unwrap();
            let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&package[..]));
            let names: Vec<String> = archive
                .entries()
                .unwrap()
                .map(|entry| entry.unwrap().path().unwrap().display().to_string())
                .collect();
            assert_eq!(names, expected);
        }
    }
}
