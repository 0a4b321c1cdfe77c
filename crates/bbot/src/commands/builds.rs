//! `bbot builds`: the controller's builds, newest first.

use anyhow::Result;
use bbot_manifest::Status;
use clap::Args;

use super::Exit;
use crate::{
    api::{Api, Build, ControllerOptions},
    home::Home,
    table::Table,
};

/// List builds, newest first.
#[derive(Debug, Args)]
pub(crate) struct ListBuilds {
    /// Only builds of this package; `*` and `?` are wildcards
    #[arg(long, short, value_name = "NAME")]
    package: Option<String>,
    /// Only builds in this state
    #[arg(long, value_parser = ["queued", "building", "built", "cancelled"])]
    state: Option<String>,
    /// Only builds with this status: success, warning, error, ...
    #[arg(long)]
    status: Option<Status>,
    /// Only builds in this configuration; `*` and `?` are wildcards
    #[arg(long, short, value_name = "NAME")]
    configuration: Option<String>,
    /// How many at the most
    #[arg(long, short = 'n', value_name = "NUM", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
    limit: u32,
    /// Go on from here: the "next" of an earlier list
    #[arg(long, value_name = "CURSOR")]
    before: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    controller: ControllerOptions,
}

pub(crate) async fn run(options: ListBuilds, home: &Home) -> Result<Exit> {
    let api = Api::new(&options.controller, home)?;
    let mut filters = vec![("limit", options.limit.to_string())];
    for (name, value) in [
        ("package", &options.package),
        ("state", &options.state),
        ("status", &options.status.map(|status| status.to_string())),
        ("configuration", &options.configuration),
        ("before", &options.before),
    ] {
        if let Some(value) = value {
            filters.push((name, value.clone()));
        }
    }
    let mut list = api.builds(&filters).await?;
    // With a filter a page may have fewer than there are further on.
    let wanted = options.limit as usize;
    while list.builds.len() < wanted
        && let Some(next) = list.next.take()
    {
        let mut more = filters.clone();
        more.retain(|(name, _)| *name != "before" && *name != "limit");
        more.push(("before", next));
        more.push(("limit", (wanted - list.builds.len()).to_string()));
        let page = api.builds(&more).await?;
        list.builds.extend(page.builds);
        list.next = page.next;
    }
    if options.json {
        println!("{}", serde_json::to_string_pretty(&list)?);
        return Ok(Exit::Done);
    }
    if list.builds.is_empty() {
        if filters.len() > 1 {
            eprintln!("no such builds at {}", api.root());
        } else {
            eprintln!(
                "no builds at {}: hand one in with `bbot submit DIR`",
                api.root()
            );
        }
        return Ok(Exit::Done);
    }
    let mut table = Table::new(&[
        "id",
        "package",
        "configuration",
        "machine",
        "status",
        "queued",
        "took",
    ]);
    for build in &list.builds {
        table.row([
            build.id.clone(),
            format!("{}/{}", build.package, build.version),
            build.configuration.clone(),
            build.machine.clone().unwrap_or_default(),
            build.status.clone().unwrap_or_else(|| build.state.clone()),
            build.queued.as_deref().map(local_time).unwrap_or_default(),
            took(build).unwrap_or_default(),
        ]);
    }
    table.print()?;
    if let Some(next) = list.next {
        eprintln!("there are more: go on with --before {next}");
    }
    Ok(Exit::Done)
}

/// A time as the reader's clock shows it; what is not a time is shown as it came.
pub(crate) fn local_time(text: &str) -> String {
    match text.parse::<jiff::Timestamp>() {
        Ok(time) => time
            .to_zoned(jiff::tz::TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => text.to_string(),
    }
}

/// How long the build took, from its start to its result.
pub(crate) fn took(build: &Build) -> Option<String> {
    let start: jiff::Timestamp = build.started.as_deref()?.parse().ok()?;
    let end: jiff::Timestamp = build.finished.as_deref()?.parse().ok()?;
    let seconds = end.duration_since(start).as_millis().max(0) / 100;
    let (seconds, tenths) = (seconds / 10, seconds % 10);
    Some(match seconds {
        0..60 => format!("{seconds}.{tenths} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    })
}
