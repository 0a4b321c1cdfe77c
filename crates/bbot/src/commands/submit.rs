//! `bbot submit`: hands a package to the controller, and waits for its builds on request.

use std::{io::IsTerminal, path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::json;

use super::{Exit, follow, log};
use crate::{
    api::{Api, Build, ControllerOptions},
    home::Home,
    progress::Progress,
    source::{self, Given},
};

/// How often a waiting submit asks how its builds are doing.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// Hand a package to the controller to be built.
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 done, 1 failed, 2 wrong usage; with --wait or --follow 3 when a build did not succeed."
)]
pub(crate) struct Submit {
    /// A source directory, or an archive (tar, plain or compressed)
    #[arg(required_unless_present_any = ["git", "repository"], conflicts_with_all = ["git", "repository"])]
    source: Option<PathBuf>,

    /// A git repository that the controller fetches (https only)
    #[arg(
        long,
        value_name = "URL",
        requires = "commit",
        conflicts_with = "repository"
    )]
    git: Option<String>,
    /// The commit of --git: its full hash
    #[arg(long, value_name = "HASH", requires = "git")]
    commit: Option<String>,

    /// A package repository, for agents and workers of the original
    #[arg(long, value_name = "URL", requires = "package")]
    repository: Option<String>,
    /// The package in --repository
    #[arg(long, value_name = "NAME/VERSION", requires = "repository", value_parser = name_and_version)]
    package: Option<(String, String)>,
    /// The kind of --repository: pkg, git or dir
    #[arg(long = "type", value_name = "TYPE", requires = "repository")]
    repository_type: Option<String>,
    /// A certificate fingerprint that --repository is trusted by; may be repeated
    #[arg(long, value_name = "FINGERPRINT", requires = "repository")]
    trust: Vec<String>,

    /// The package's name, where its sources do not tell it
    #[arg(long)]
    name: Option<String>,
    /// The package's version, where its sources do not tell it
    #[arg(long)]
    version: Option<String>,
    /// Build in this configuration only; may be repeated [default: what the package's manifest says, else the class default]
    #[arg(long, short, value_name = "NAME")]
    configuration: Vec<String>,
    /// How urgent it is next to others that are queued at the same time: from -2 (last) to 2 (first) [default: 0]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-2..=2))]
    priority: Option<i64>,
    /// Values of a package manifest that count in the place of the package's own, a file as in `builds: all : &gcc`
    #[arg(long, value_name = "FILE")]
    overrides: Option<PathBuf>,
    /// Have the build stop for a person to log in, at the first `error` or `warning` or before this step; it has to be one build
    #[arg(long, value_name = "BREAKPOINT")]
    interactive: Option<String>,
    /// Wait until everything is built, and print the logs
    #[arg(long, short)]
    wait: bool,
    /// As --wait, but print each log as it grows, one build after the other
    #[arg(long, short, conflicts_with = "json")]
    follow: bool,
    /// Print the builds as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerOptions,
}

pub(crate) async fn run(options: Submit, home: &Home) -> Result<Exit> {
    let api = Api::new(&options.controller, home)?;
    let mut body = if let Some(url) = &options.git {
        let base = url
            .trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or_default();
        let name = options
            .name
            .clone()
            .unwrap_or_else(|| base.trim_end_matches(".git").to_string());
        let commit = options.commit.as_deref().unwrap_or_default();
        // A commit has no number of its own; its first digits tell it from the next one.
        let version = options
            .version
            .clone()
            .unwrap_or_else(|| format!("0.0.{commit:.12}"));
        json!({ "name": name, "version": version, "source": { "git": { "url": url, "commit": commit } } })
    } else if let Some(url) = &options.repository {
        let (name, version) = options
            .package
            .as_ref()
            .context("name the package in the repository with --package")?;
        json!({ "name": name, "version": version, "source": { "repository":
            { "url": url, "type": options.repository_type, "trust": options.trust } } })
    } else {
        let path = options
            .source
            .as_ref()
            .context("name a directory or an archive to submit")?;
        let given = Given {
            name: options.name.clone(),
            version: options.version.clone(),
        };
        let package = source::package(path, &given)?;
        api.put_archive(&package).await?;
        json!({
            "name": package.identity.name,
            "version": package.identity.version,
            "source": { "archive": package.sha256 },
        })
    };
    if !options.configuration.is_empty() {
        body["configurations"] = json!(options.configuration);
    }
    if let Some(priority) = options.priority {
        body["priority"] = json!(priority);
    }
    if let Some(breakpoint) = &options.interactive {
        body["interactive"] = json!(breakpoint);
    }
    if let Some(path) = &options.overrides {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        body["overrides"] = json!(text);
    }
    let submission = api.submit(&body).await?;

    let mut builds = submission.builds;
    if !options.json {
        for build in &builds {
            let configuration = described(&build.configuration, &build.package_configuration);
            eprintln!(
                "queued {}/{} for {configuration} as build {}",
                build.package, build.version, build.id
            );
        }
        for out in &submission.excluded {
            let configuration = described(&out.configuration, &out.package_configuration);
            eprintln!("left out {configuration}: {}", out.why);
        }
        if submission.excluded_next.is_some() {
            eprintln!(
                "and more are left out: {}/submissions/{}",
                api.root(),
                submission.id
            );
        }
        if builds.is_empty() {
            eprintln!("submission {}: there is nothing to build", submission.id);
        }
    }
    if options.follow {
        for build in &mut builds {
            *build = follow::follow(&api, &build.id, None).await?;
            log::print_summary(build);
        }
    } else if options.wait {
        builds = wait(&api, builds, options.json).await?;
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&builds)?);
    }
    let waited = options.wait || options.follow;
    let failed = waited && builds.iter().any(|build| !build.succeeded());
    Ok(if failed {
        Exit::BuildFailed
    } else {
        Exit::Done
    })
}

fn name_and_version(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((name, version)) if !name.is_empty() && !version.is_empty() => {
            Ok((name.to_string(), version.to_string()))
        }
        _ => Err("it is not NAME/VERSION, as in libhello/1.0.0".to_string()),
    }
}

/// A target configuration, and the package's where that is not the one that all have.
fn described(configuration: &str, of_package: &str) -> String {
    match of_package {
        "" | "default" => configuration.to_owned(),
        other => format!("{configuration} ({other})"),
    }
}

/// Waits until all are built; prints each log as its build ends.
async fn wait(api: &Api, mut builds: Vec<Build>, quiet: bool) -> Result<Vec<Build>> {
    let progress = Progress::start(
        "waiting for an agent",
        quiet || !std::io::stderr().is_terminal(),
    );
    loop {
        let mut open = 0_usize;
        for build in builds.iter_mut().filter(|build| !build.is_over()) {
            let had = build.login.take();
            *build = api.build(&build.id).await?;
            if let (Some(login), None, false) = (&build.login, had, quiet) {
                let told = format!("build {} stops for you; log in: {login}", build.id);
                progress.pause(|| eprintln!("{told}"));
            }
            if build.is_over() {
                if !quiet {
                    // What was cancelled may have none.
                    if !build.is_cancelled() {
                        let text = api.log(&build.id, None).await?;
                        progress.pause(|| log::print(&text))?;
                    }
                    progress.pause(|| log::print_summary(build));
                }
            } else {
                open += 1;
            }
        }
        if open == 0 {
            return Ok(builds);
        }
        progress.set(&describe(&builds));
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// One line on what the waiting is for.
fn describe(builds: &[Build]) -> String {
    let count = |state: &str| builds.iter().filter(|build| build.state == state).count();
    match (count("building"), count("queued")) {
        (0, queued) => format!("waiting for an agent: {queued} queued"),
        (building, queued) => {
            let machine = builds
                .iter()
                .find(|build| build.state == "building")
                .and_then(|build| build.machine.as_deref())
                .unwrap_or("a machine");
            format!("{building} building (on {machine}), {queued} queued")
        }
    }
}
