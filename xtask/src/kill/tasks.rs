//! The stream of tasks: submitted by the controller's API, followed until each has its result, and judged in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::http;

/// The submissions of this test.
#[derive(Debug)]
pub(super) struct Tasks {
    controller: SocketAddr,
    token: String,
    /// The archive that all of them build.
    sha256: String,
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
    /// Puts the archive of the package into the controller.
    pub(super) fn begin(
        controller: SocketAddr,
        token: String,
        configurations: &[&str],
    ) -> anyhow::Result<Self> {
        let archive = package()?;
        let sha256: String = Sha256::digest(&archive)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let tasks = Self {
            controller,
            token,
            sha256,
            configurations: configurations.iter().map(|&name| name.to_owned()).collect(),
            submitted: 0,
            waiting: BTreeSet::new(),
            built: 0,
        };
        let answer = tasks.send(
            "PUT",
            &format!("/api/v1/archives/{}", tasks.sha256),
            &archive,
        )?;
        ensure!(
            answer.status == 201,
            "the controller does not take the archive: {}",
            answer.status
        );
        Ok(tasks)
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
        let name = format!("task-{}", self.submitted + 1);
        // The controller may have been killed between taking it and saying so.
        let mut builds = self.builds(&format!("package={name}"))?;
        if builds.is_empty() {
            let body = json!({
                "name": name,
                "version": "1.0.0",
                "source": {"archive": self.sha256},
                "configurations": [configuration_of(self.submitted + 1, &self.configurations)],
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

/// The smallest package that a worker builds: a makefile, for the make of these machines.
fn package() -> anyhow::Result<Vec<u8>> {
    let failed = "cannot pack the package";
    let makefile = b"all:\n\techo made\n";
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    let mut header = tar::Header::new_gnu();
    header.set_size(makefile.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "task/Makefile", &makefile[..])
        .context(failed)?;
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
            }),
            _ => bail!("this is no build: {build}"),
        }
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
            .remove(&(format!("task-{number}"), configuration.to_owned()))
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

    fn build(package: &str, state: &str, results: u64) -> Build {
        Build {
            package: package.to_owned(),
            configuration: "c".to_owned(),
            state: state.to_owned(),
            status: (state == "built").then(|| "success".to_owned()),
            results,
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
        let package = package().unwrap();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&package[..]));
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["task/Makefile"]);
    }
}
