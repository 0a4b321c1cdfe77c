//! `bbot machine`: the build machines on this host.

use std::{
    fs,
    io::IsTerminal,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use bbot_machine::{
    create::{self, Cached, Suite},
    layout::{self, BOOTSTRAP_PROTOCOL, MachineDir, ProblemKind},
    owner::Instance,
    volume::{self, Volume},
};
use bbot_manifest::{BootstrappedMachine, MachineKind, MachineManifest};
use clap::{Args, Subcommand};

use super::{Exit, agent::Reach, suspended};
use crate::{
    PLACES,
    home::{Home, make_folder},
    progress::Progress,
    table::Table,
};

/// Manage build machines.
#[derive(Debug, Subcommand)]
pub(crate) enum Machine {
    List(List),
    Create(Create),
    Import(Import),
    Activate(Activate),
    Remove(Remove),
    Attach(suspended::Attach),
    Resume(suspended::Resume),
    Kill(suspended::Kill),
}

/// List machines: their revisions, and the toolchains they are bootstrapped for.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// List the suspended machines that the agent here keeps for a person
    #[arg(long, conflicts_with = "machines")]
    suspended: bool,
    #[command(flatten)]
    reach: Reach,
    #[command(flatten)]
    place: Place,
}

/// Make a machine of a distribution's packages: debian-12, debian-13.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The machine's name, which tells the distribution: debian-12, debian-13-qt
    #[arg(value_name = "NAME", value_parser = made_of)]
    made: Made,
    /// What it runs in: kvm, a virtual machine; nspawn, a container, which starts in a moment and
    /// shares the host's kernel, and which only root can make and run
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value_t = Kind::Kvm)]
    kind: Kind,
    /// Another name than the first argument; a container is called NAME-nspawn unless told
    #[arg(long, value_name = "NAME", value_parser = machine_name)]
    name: Option<String>,
    /// One more Debian package to install; may be repeated
    #[arg(long = "package", short, value_name = "NAME")]
    packages: Vec<String>,
    /// The size of its disk in GiB; only what is used takes room
    #[arg(long, value_name = "GIB", default_value_t = 8, value_parser = clap::value_parser!(u64).range(2..=1024))]
    disk: u64,
    /// The Debian mirror to take packages from [default: as this host does]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Fetch the packages anew instead of using what an earlier creation left
    #[arg(long)]
    fresh: bool,
    /// Do nothing when there is such a machine
    #[arg(long)]
    if_missing: bool,
    #[command(flatten)]
    volume: NewOn,
    #[command(flatten)]
    place: Place,
}

/// What a new machine runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Kvm,
    Nspawn,
}

impl From<Kind> for MachineKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Kvm => Self::Kvm,
            Kind::Nspawn => Self::Nspawn,
        }
    }
}

/// Add a machine, or a new revision of one, from a folder with a manifest and a disk.img or rootfs.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The folder: `manifest`, `disk.img`, and for a direct boot `kernel`, `initrd`, `cmdline`; for a
    /// container `manifest` and `rootfs`, and `cmdline` (init=/path) if its first program is elsewhere
    folder: PathBuf,
    /// The revision's number [default: one more than the last]
    #[arg(long, value_name = "NUM")]
    revision: Option<String>,
    #[command(flatten)]
    volume: NewOn,
    #[command(flatten)]
    place: Place,
}

/// Make another revision of a machine the current one.
#[derive(Debug, Args)]
pub(crate) struct Activate {
    /// The machine
    name: String,
    /// The revision
    revision: String,
    #[command(flatten)]
    place: Place,
}

/// Remove a machine with all its revisions and bootstrapped copies.
#[derive(Debug, Args)]
pub(crate) struct Remove {
    /// The machine
    name: String,
    #[command(flatten)]
    place: Place,
}

/// Where machines are.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The folder with the machines' volumes, as `bbot-agent --machines` has it [default: machines
    /// in --home]
    #[arg(long, value_name = "DIR", help_heading = PLACES)]
    machines: Option<PathBuf>,
}

/// Where a new machine goes.
#[derive(Debug, Args)]
pub(crate) struct NewOn {
    /// The volume that a new machine goes to: a folder in --machines
    #[arg(long, value_name = "NAME", default_value = "default", help_heading = PLACES)]
    volume: String,
}

impl NewOn {
    /// The volume's folder, made if need be.
    fn open(&self, machines: &Path) -> Result<(PathBuf, Arc<dyn Volume>)> {
        if layout::check_machine_name(&self.volume).is_err() {
            bail!(
                "'{}' cannot be the name of a volume: it is one folder, and does not start with a dot",
                self.volume
            );
        }
        let path = machines.join(&self.volume);
        make_folder(&path)?;
        Ok((path.clone(), Arc::from(volume::detect(&path)?)))
    }
}

/// A machine that can be made: the name tells of what.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    name: String,
    suite: Suite,
}

/// Both kinds of one distribution can stand beside each other.
fn name_of(made: &str, kind: Kind) -> String {
    match kind {
        Kind::Nspawn if !made.contains("nspawn") => format!("{made}-nspawn"),
        Kind::Nspawn | Kind::Kvm => made.to_string(),
    }
}

fn machine_name(name: &str) -> Result<String, String> {
    layout::check_machine_name(name)
        .map(|()| name.to_string())
        .map_err(|error| error.to_string())
}

fn made_of(name: &str) -> Result<Made, String> {
    match Suite::of_machine(name) {
        Some(suite) => Ok(Made {
            name: name.to_string(),
            suite,
        }),
        None => Err(
            "it does not tell what to make: name it debian-12 or debian-13, perhaps with more \
             behind (debian-12-qt); other machines come by `bbot machine import`"
                .to_string(),
        ),
    }
}

impl Place {
    fn machines(&self, home: &Home) -> PathBuf {
        self.machines.clone().unwrap_or_else(|| home.machines())
    }

    /// The machine of this name, on whichever volume it is.
    fn find(&self, name: &str, home: &Home) -> Result<Option<MachineDir>> {
        let machines = self.machines(home);
        if !machines.is_dir() {
            return Ok(None);
        }
        Ok(layout::scan(&machines)?
            .machines
            .into_iter()
            .find(|machine| machine.name == name))
    }

    fn required(&self, name: &str, home: &Home) -> Result<MachineDir> {
        match self.find(name, home)? {
            Some(machine) => Ok(machine),
            None => bail!(
                "there is no machine {name} below {}: `bbot machine list` shows what there is",
                self.machines(home).display()
            ),
        }
    }
}

pub(crate) fn run(command: Machine, home: &Home) -> Result<Exit> {
    match command {
        Machine::List(options) if options.suspended => {
            suspended::list(&options.reach, options.json, home)
        }
        Machine::List(options) => list(&options, home),
        Machine::Attach(options) => suspended::attach(&options, home),
        Machine::Resume(options) => suspended::resume(options, home),
        Machine::Kill(options) => suspended::kill(options, home),
        Machine::Create(options) => create(options, home),
        Machine::Import(options) => import(&options, home),
        Machine::Activate(options) => {
            let machine = options.place.required(&options.name, home)?;
            layout::activate(&machine, BOOTSTRAP_PROTOCOL, &options.revision)?;
            eprintln!(
                "revision {} of {} is the current one",
                options.revision, options.name
            );
            Ok(Exit::Done)
        }
        Machine::Remove(options) => {
            let machine = options.place.required(&options.name, home)?;
            layout::remove(&machine)?;
            eprintln!("{} is removed", options.name);
            Ok(Exit::Done)
        }
    }
}

/// The names of the machines that have a current revision.
pub(crate) fn usable(machines: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    if machines.is_dir() {
        for machine in layout::scan(machines)?.machines {
            if layout::resolve_current(&machine, BOOTSTRAP_PROTOCOL)?.is_some() {
                names.push(machine.name);
            }
        }
    }
    Ok(names)
}

fn create(options: Create, home: &Home) -> Result<Exit> {
    let Made { name: made, suite } = options.made;
    let name = options.name.unwrap_or_else(|| name_of(&made, options.kind));
    if options.if_missing
        && let Some(machine) = options.place.find(&name, home)?
        && layout::resolve_current(&machine, BOOTSTRAP_PROTOCOL)?.is_some()
    {
        return Ok(Exit::Done);
    }
    let (path, volume) = options.volume.open(&options.place.machines(home))?;
    let cache = home.cache().join("machines");
    make_folder(&cache)?;
    let machine = match options.place.find(&name, home)? {
        Some(machine) => machine,
        None => MachineDir::create(&path, &name)?,
    };
    let instance = Instance::new("bbot machine create")?;
    let revision = layout::next_revision(&machine, BOOTSTRAP_PROTOCOL)?;
    let temporary =
        layout::begin_revision(&instance, &volume, &machine, BOOTSTRAP_PROTOCOL, &revision)?;

    let mut request = create::Options::new(&name, suite, temporary.path(), &cache);
    request.kind = options.kind.into();
    request.packages = options.packages;
    request.disk_bytes = options.disk << 30;
    request.mirror = options.mirror;
    if options.fresh {
        request.cached = Cached::Never;
    }
    let terminal = std::io::stderr().is_terminal();
    let progress = Progress::start(&format!("making {name}"), !terminal);
    let created = create::debian(&request, &mut |line| {
        if terminal {
            progress.set(&line.to_string());
        } else {
            eprintln!("{line}");
        }
    })?;
    progress.set("writing it to the disk");
    layout::publish_revision(temporary, &machine, BOOTSTRAP_PROTOCOL, &revision)?;
    layout::activate(&machine, BOOTSTRAP_PROTOCOL, &revision)?;
    drop(progress);
    eprintln!("made {name} revision {revision}: {}", created.summary);
    Ok(Exit::Done)
}

fn import(options: &Import, home: &Home) -> Result<Exit> {
    let folder = &options.folder;
    let manifest = folder.join("manifest");
    let text = fs::read(&manifest).with_context(|| {
        format!(
            "cannot read {}: name the folder of a machine",
            manifest.display()
        )
    })?;
    let manifest = MachineManifest::parse(&text, &manifest.display().to_string())?;
    let name = &manifest.header.name;
    if manifest.kind == MachineKind::Kvm && !folder.join("disk.img").is_file() {
        bail!(
            "{} has no disk.img: a machine of type kvm needs its disk as that file (raw)",
            folder.display()
        );
    }
    if manifest.kind == MachineKind::Nspawn {
        bbot_machine::hypervisor::require_files(&manifest, folder)?;
    }
    let (path, volume) = options.volume.open(&options.place.machines(home))?;
    let machine = match options.place.find(name, home)? {
        Some(machine) => machine,
        None => MachineDir::create(&path, name)?,
    };
    let revision = match &options.revision {
        Some(revision) => revision.clone(),
        None => layout::next_revision(&machine, BOOTSTRAP_PROTOCOL)?,
    };
    let instance = Instance::new("bbot machine import")?;
    let progress = Progress::start(&format!("copying {name}"), !std::io::stderr().is_terminal());
    layout::add_revision(
        &instance,
        &volume,
        &machine,
        BOOTSTRAP_PROTOCOL,
        &revision,
        folder,
    )?;
    layout::activate(&machine, BOOTSTRAP_PROTOCOL, &revision)?;
    drop(progress);
    eprintln!(
        "imported {name} revision {revision}: {}",
        manifest.header.summary
    );
    Ok(Exit::Done)
}

/// What `bbot machine list` tells of one machine.
#[derive(Debug, serde::Serialize)]
struct Row {
    name: String,
    summary: String,
    kind: String,
    volume: String,
    revisions: Vec<String>,
    current: Option<String>,
    bootstrapped: Vec<Bootstrapped>,
    /// None: its files are closed to this user.
    disk_bytes: Option<u64>,
    /// Its files are closed to this user, so that what they say is left out.
    closed: bool,
}

/// A machine bootstrapped for one toolchain.
#[derive(Debug, serde::Serialize)]
struct Bootstrapped {
    toolchain: String,
    toolchain_id: String,
    current: bool,
}

fn list(options: &List, home: &Home) -> Result<Exit> {
    let machines = options.place.machines(home);
    let scan = if machines.is_dir() {
        layout::scan(&machines)?
    } else {
        layout::Scan::default()
    };
    let mut rows = Vec::new();
    let mut warnings = Vec::new();
    for machine in &scan.machines {
        match row(machine, Files::Open) {
            Ok(row) => rows.push(row),
            Err(error) => warnings.push(format!("{}: {error:#}", machine.path.display())),
        }
    }
    for problem in &scan.problems {
        warnings.push(problem.to_string());
        // What can be told of it from outside is told.
        if let (ProblemKind::Closed { .. }, Some(name)) = (&problem.kind, &problem.machine) {
            let machine = MachineDir {
                path: problem.path.clone(),
                name: name.clone(),
            };
            rows.extend(row(&machine, Files::Closed));
        }
    }
    rows.sort_by(|one, other| one.name.cmp(&other.name));
    if options.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else if rows.is_empty() && warnings.is_empty() {
        eprintln!(
            "no machines below {}: make one with `bbot machine create debian-12`",
            machines.display()
        );
    } else if !rows.is_empty() {
        let mut table = Table::new(&["name", "summary", "revisions", "bootstrapped for", "disk"]);
        for row in rows {
            let revisions = row.revisions.iter().map(|r| {
                if Some(r) == row.current.as_ref() {
                    format!("{r}*")
                } else {
                    r.clone()
                }
            });
            let bootstrapped = row.bootstrapped.iter().map(|b| {
                if b.current {
                    b.toolchain.clone()
                } else {
                    format!("{} (out of date)", b.toolchain)
                }
            });
            table.row([
                row.name,
                if row.closed {
                    "(closed to this user)".to_string()
                } else {
                    row.summary
                },
                revisions.collect::<Vec<_>>().join(" "),
                bootstrapped.collect::<Vec<_>>().join(", "),
                match row.disk_bytes {
                    Some(bytes) => format!("{:.1} GiB", gib(bytes)),
                    None => "?".to_string(),
                },
            ]);
        }
        table.print()?;
    }
    for warning in &warnings {
        eprintln!("warning: {warning}");
    }
    Ok(Exit::Done)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "one digit behind the point is shown"
)]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Whether a machine's files can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Files {
    Open,
    Closed,
}

fn row(machine: &MachineDir, files: Files) -> Result<Row> {
    let current = layout::resolve_current(machine, BOOTSTRAP_PROTOCOL)?;
    let manifest = match &current {
        Some(path) if files == Files::Open => {
            let path = path.join("manifest");
            Some(MachineManifest::parse(
                &fs::read(&path)?,
                &path.display().to_string(),
            )?)
        }
        _ => None,
    };
    let revisions = layout::revisions(machine, BOOTSTRAP_PROTOCOL)?;
    let mut disk_bytes = 0;
    let mut bootstrapped = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(&machine.path)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if !entry.file_type()?.is_dir() {
            continue;
        }
        disk_bytes += used(&entry.path());
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(toolchain) = name.strip_prefix(&format!("{}-", machine.name)) else {
            continue;
        };
        let file = entry.path().join("manifest");
        // Revisions have a machine manifest, and what is temporary has none of ours or is on its way.
        let Ok(text) = fs::read(&file) else { continue };
        let Ok(list) = BootstrappedMachine::parse(&text, &file.display().to_string()) else {
            continue;
        };
        bootstrapped.push(Bootstrapped {
            toolchain: toolchain.to_string(),
            toolchain_id: list.toolchain.id,
            current: manifest
                .as_ref()
                .is_some_and(|m| m.header.id == list.machine.header.id),
        });
    }
    Ok(Row {
        name: machine.name.clone(),
        summary: manifest
            .as_ref()
            .map(|m| m.header.summary.clone())
            .unwrap_or_default(),
        kind: manifest
            .as_ref()
            .map(|m| m.kind.to_string())
            .unwrap_or_default(),
        volume: machine
            .path
            .parent()
            .and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        revisions: revisions.iter().map(|r| r.name.clone()).collect(),
        current: revisions.iter().find(|r| r.current).map(|r| r.name.clone()),
        bootstrapped,
        disk_bytes: (files == Files::Open).then_some(disk_bytes),
        closed: files == Files::Closed,
    })
}

/// Bytes that the files below a folder take on the disk (blocks shared with others counted in).
fn used(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok()?;
            let below = if metadata.is_dir() {
                used(&entry.path())
            } else {
                0
            };
            Some(metadata.blocks() * 512 + below)
        })
        .sum()
}
