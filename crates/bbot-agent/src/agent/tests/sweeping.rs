//! What is left behind goes while the agent lives.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bbot_machine::layout::MachineDir;
use bbot_machine::owner::{OwnedFolder, Temporary};
use bbot_machine::volume::{self, Kind, Stop, Volume, VolumeError};

use super::*;
use crate::resources::Facts;

/// A volume that cannot delete.
#[derive(Debug)]
struct Stuck(AtomicBool);

impl Volume for Stuck {
    fn kind(&self) -> Kind {
        Kind::Copy
    }

    fn create(&self, path: &Path) -> Result<(), VolumeError> {
        volume::Copy.create(path)
    }

    fn snapshot_until(&self, from: &Path, to: &Path, stop: &Stop) -> Result<(), VolumeError> {
        volume::Copy.snapshot_until(from, to, stop)
    }

    fn set_read_only(&self, path: &Path, read_only: bool) -> Result<(), VolumeError> {
        volume::Copy.set_read_only(path, read_only)
    }

    fn is_read_only(&self, path: &Path) -> Result<bool, VolumeError> {
        volume::Copy.is_read_only(path)
    }

    fn delete(&self, path: &Path) -> Result<(), VolumeError> {
        self.0.store(true, Ordering::Relaxed);
        Err(VolumeError::Io {
            action: "delete",
            path: path.to_owned(),
            source: rustix::io::Errno::IO.into(),
        })
    }
}

/// Copies whose deletion fails, a folder of a run that is gone, an archive that was fetched in
/// part: where they are.
fn leave(world: &mut World) -> Vec<PathBuf> {
    let path = world.machine("linux");
    let sources = world.dir.path().join("state/sources");
    let runs = world.dir.path().join("tftp/build/default");
    let host = &world.agent().context.host;
    let stuck = Arc::new(Stuck(AtomicBool::new(false)));
    let volume: Arc<dyn Volume> = stuck.clone();
    let (from, name) = (path.join("linux-1.1"), "linux".to_owned());
    let dir = MachineDir { path, name };
    let copy = Temporary::snapshot(&host.instance, &volume, &dir, &host.toolchain, &from).unwrap();
    let copied = copy.path().to_owned();
    copy.delete().unwrap_err();
    assert!(stuck.0.load(Ordering::Relaxed));
    // As of a process that was killed: its record, and no lock.
    let folder = OwnedFolder::create(&host.instance, &runs, "run-").unwrap();
    let run = folder.path().to_owned();
    let record = runs.join(format!(".{}.owner", run.file_name().unwrap().display()));
    let text = fs::read(&record).unwrap();
    drop(folder);
    fs::create_dir(&run).unwrap();
    fs::write(record, text).unwrap();
    let fetched = sources.join(".fetching-abc");
    fs::write(&fetched, "part").unwrap();
    let left = vec![copied, run, fetched];
    assert!(left.iter().all(|path| path.exists()));
    left
}

fn are_gone(left: &[PathBuf]) -> bool {
    left.iter().all(|path| !path.exists())
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_deleted_goes_within_the_hour() {
    let mut world = World::bootstrapped(&[]).await;
    let left = leave(&mut world);
    world.goes_on(40 * 60).await;
    assert!(left.iter().all(|path| path.exists()), "not all the time");
    world.goes_on(40 * 60).await;
    assert!(are_gone(&left), "{left:?}");
    // And again.
    let left = leave(&mut world);
    world.goes_on(80 * 60).await;
    assert!(are_gone(&left), "{left:?}");
    world.is_clean().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_left_goes_when_the_host_runs_short() {
    let mut world = World::bootstrapped(&[]).await;
    let left = leave(&mut world);
    let short = |mib: u64| Facts {
        memory_available: Some(mib << 20),
        ..Facts::default()
    };
    world.agent().measured(short(128));
    // Not twice at one time, and not with each measurement.
    world.agent().measured(short(127));
    let sweeps = |agent: &Agent| {
        let jobs = agent.names.values();
        jobs.filter(|job| **job == driver::Job::Sweep).count()
    };
    assert_eq!(sweeps(world.agent()), 1);
    world.goes_on_until(|agent| sweeps(agent) == 0).await;
    assert!(are_gone(&left), "{left:?}");
    world.agent().measured(short(126));
    assert_eq!(sweeps(world.agent()), 0);
    world.agent().measured(short(4096));
    world.agent().measured(short(128));
    assert_eq!(sweeps(world.agent()), 1, "short again");
}
