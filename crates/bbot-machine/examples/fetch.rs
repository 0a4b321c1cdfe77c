//! How fast a guest fetches a file over its wire, for the benchmark: with busybox's client, which
//! knows no windows, and with ours.
//!
//! The guest is a small one under TCG, so that the figure is that of a translated processor.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bbot_machine::accel::Accelerator;
use bbot_machine::machine::{Disk, Hypervisor, MachineEvent, Memory, Network, StartSpec, Tftp};
use bbot_machine::qemu::Qemu;
use bbot_manifest::MachineManifest;
use bbot_tftp::{Event, Limits, Root};
use testkit::guest::{self, GuestFile};

const USAGE: &str = "usage: fetch --client STATIC_PROGRAM [--megabytes NUMBER]";

/// After what all begin with.
const INIT: &str = r#"ifconfig eth0 up
udhcpc -i eth0 -n -q -t 20 -T 2 -s /udhcpc
tftp -g -r script -l /script 196.254.111.222 && sh /script
while :; do sleep 1000; done
"#;

/// Under TCG, on a busy host.
const PATIENCE: Duration = Duration::from_secs(300);

struct Arguments {
    client: PathBuf,
    bytes: usize,
}

type Failure = Box<dyn std::error::Error>;

fn arguments() -> Result<Arguments, lexopt::Error> {
    use lexopt::prelude::*;
    let (mut client, mut megabytes) = (None, 200);
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("client") => client = Some(PathBuf::from(parser.value()?)),
            Long("megabytes") => megabytes = parser.value()?.parse()?,
            Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(Arguments {
        client: client.ok_or("--client is missing")?,
        bytes: megabytes * 1_000_000,
    })
}

/// What is fetched: the name, how much of the whole, and by which command.
fn rows(bytes: usize) -> Vec<(String, usize, String)> {
    let mut rows = vec![(
        "busybox window 1".to_owned(),
        bytes / 10,
        "tftp -b 1468 -g -r file.0 -l /dev/null 196.254.111.222".to_owned(),
    )];
    for (index, window) in [1, 16, 64].into_iter().enumerate() {
        let index = index + 1;
        rows.push((
            format!("ours window {window}"),
            if window == 1 { bytes / 10 } else { bytes },
            format!(
                "/transfer get --server 196.254.111.222:69 --name file.{index} --file /dev/null \
                 --blksize 1468 --windowsize {window}"
            ),
        ));
    }
    rows
}

async fn run(arguments: &Arguments) -> Result<(), Failure> {
    let client = fs::read(&arguments.client)?;
    let rows = rows(arguments.bytes);
    let folder = tempfile::tempdir()?;
    let spec = prepare(folder.path(), &client, &rows)?;
    let mut machine = Qemu::new().start(spec).await?;
    for (index, (what, bytes, _)) in rows.iter().enumerate() {
        let wanted = format!("file.{index}");
        let mut started = None;
        loop {
            let event = tokio::time::timeout(PATIENCE, machine.next_event()).await?;
            match event {
                MachineEvent::Tftp(Event::Requested { name, .. }) if name == wanted => {
                    started.get_or_insert_with(Instant::now);
                }
                MachineEvent::Tftp(Event::Fetched { name, .. }) if name == wanted => break,
                MachineEvent::Tftp(Event::Failed { name, reason }) => {
                    return Err(format!("{name}: {reason}").into());
                }
                MachineEvent::Tftp(_) => {}
                other => return Err(format!("{other:?} before {wanted}").into()),
            }
        }
        let took = started.map_or(Duration::ZERO, |at| at.elapsed());
        #[expect(clippy::cast_precision_loss, reason = "some hundred megabytes")]
        let speed = *bytes as f64 / took.as_secs_f64() / 1e6;
        println!("{what}\t{bytes}\t{speed:.2}");
    }
    Ok(())
}

fn prepare(
    folder: &Path,
    client: &[u8],
    rows: &[(String, usize, String)],
) -> Result<StartSpec, Failure> {
    let directory = folder.join("machine");
    fs::create_dir(&directory)?;
    fs::copy(guest::kernel()?, directory.join("kernel"))?;
    let client = GuestFile {
        name: "transfer",
        is_program: true,
        contents: client,
    };
    fs::write(directory.join("initrd"), guest::initrd(INIT, &[client])?)?;
    fs::write(directory.join("cmdline"), "console=ttyS0 panic=0\n")?;
    fs::File::create(directory.join("disk.img"))?.set_len(1 << 20)?;
    let mut root = Root::new();
    let mut script = String::new();
    for (index, (_, bytes, command)) in rows.iter().enumerate() {
        root = root.get_bytes(format!("file.{index}"), vec![0x5a; *bytes]);
        script.push_str(command);
        script.push('\n');
    }
    let manifest = ": 1\nid: fetch-1\nname: fetch\nsummary: Fetches\ntype: kvm\n";
    Ok(StartSpec {
        directory,
        manifest: MachineManifest::parse(manifest.as_bytes(), "manifest")?,
        mac: None,
        cpus: 1,
        ram_kib: 192 * 1024,
        network: Network::None,
        accelerator: Accelerator::Tcg,
        disk: Disk::ThrowAway,
        memory: Memory::Booted,
        tftp: Tftp {
            root: root.get_bytes("script", script.into_bytes()),
            limits: Limits::wire(),
        },
        run_dir: folder.join("run"),
        user: None,
    })
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("fetch: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("fetch: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fetch: {error}");
            ExitCode::FAILURE
        }
    }
}
