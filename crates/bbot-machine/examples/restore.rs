//! Measures how long it takes to restore a guest, against the size of its memory.
//!
//! `restore [--quick] [--json FILE]`; `bench/restore` builds and runs it. The guest is the smallest there is, and has
//! written to a quarter of its memory before it was saved. One guest of each size is saved; then they are restored in
//! turns, each from a sealed memory that all its copies map, as the agent does it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bbot_machine::accel::Accelerator;
use bbot_machine::mac::Mac;
use bbot_machine::machine::{
    Disk, Hypervisor, Machine, MachineEvent, Memory, Network, StartSpec, Tftp,
};
use bbot_machine::qemu::Qemu;
use bbot_machine::warm::{Base, Waiting};
use bbot_manifest::MachineManifest;
use bbot_tftp::{Event, Limits, Root};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::guest;
use tokio::time::timeout;

/// In MiB.
const SIZES: [u64; 5] = [512, 1024, 2048, 4096, 8192];
/// In milliseconds per GiB, of the line through the medians.
const AIM_SLOPE: f64 = 10.0;
/// It boots under TCG beside others, and writes to gigabytes.
const PATIENCE: Duration = Duration::from_secs(300);
/// The card's address is part of what was saved.
const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
/// After what all begin with.
const INIT: &str = r#"ifconfig eth0 up
udhcpc -i eth0 -n -q -t 20 -T 2 -s /udhcpc
mkdir /full
mount -t tmpfs -o size=90% full /full
dd if=/dev/zero of=/full/written bs=1M count=$(sed 's/.*written=\([0-9]*\).*/\1/' /proc/cmdline)
tftp -g -r held -l /answer 196.254.111.222
tftp -g -r after -l /after 196.254.111.222
while :; do sleep 1000; done
"#;
const USAGE: &str = "usage: restore [--quick] [--json FILE]";

fn main() -> ExitCode {
    let mut quick = false;
    let mut json_file = None;
    let mut args = std::env::args_os().skip(1);
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--quick") => quick = true,
            Some("--json") => match args.next() {
                Some(file) => json_file = Some(PathBuf::from(file)),
                None => {
                    eprintln!("error: --json needs a file\n{USAGE}");
                    return ExitCode::from(2);
                }
            },
            Some("--help") => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            _ => {
                eprintln!("error: unknown argument {}\n{USAGE}", arg.display());
                return ExitCode::from(2);
            }
        }
    }
    // One thread: QEMU is bound to the life of the thread that starts it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let (runs, share) = if quick { (5, 16) } else { (20, 4) };
    let sizes = match runtime.block_on(measure(runs, share)) {
        Ok(sizes) => sizes,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!(
        "one in {share} of the guest's memory was written; medians of {runs} restores in turns, ms\n"
    );
    print!("{}", table(&sizes));
    let points: Vec<(f64, f64)> = sizes
        .iter()
        .map(|size| (size.gib(), median(&size.asked)))
        .collect();
    let slope = slope(&points);
    let holds = slope < AIM_SLOPE;
    println!(
        "\nslope {slope:.2} ms per GiB, aim < {AIM_SLOPE}: {}",
        if holds { "met" } else { "NOT MET" }
    );
    if let Some(file) = json_file {
        let rows: Value = sizes.iter().map(Size::json).collect();
        let json = json!({ "rows": rows, "slope": slope, "aim": AIM_SLOPE, "holds": holds });
        if let Err(error) = fs::write(&file, format!("{json:#}\n")) {
            eprintln!("error: cannot write {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// What was measured of one size; milliseconds from the start of QEMU.
struct Size {
    mib: u64,
    saved_kib: u64,
    /// Until the guest runs.
    runs: Vec<f64>,
    /// Until the guest has its answer and asks for something else.
    asked: Vec<f64>,
}

#[expect(
    clippy::cast_precision_loss,
    reason = "sizes and counts are far below 2^52"
)]
impl Size {
    fn gib(&self) -> f64 {
        self.mib as f64 / 1024.0
    }

    fn json(&self) -> Value {
        json!({
            "case": format!("{} MiB", self.mib),
            "saved_mib": self.saved_kib / 1024,
            "unit": "ms",
            "runs": median(&self.runs),
            "ours": median(&self.asked),
            "worst": self.asked.iter().copied().fold(0.0, f64::max),
        })
    }
}

/// A guest that was saved.
struct Saved {
    folder: TempDir,
    base: Arc<Base>,
    mib: u64,
    share: u64,
}

async fn measure(runs: usize, share: u64) -> Result<Vec<Size>, String> {
    let kernel = guest::kernel()?;
    let initrd = guest::initrd(INIT, &[])?;
    let mut saved = Vec::new();
    let mut sizes = Vec::new();
    for mib in SIZES {
        let one = save(&kernel, &initrd, mib, share).await?;
        sizes.push(Size {
            mib,
            saved_kib: one.base.resident_kib(),
            runs: Vec::new(),
            asked: Vec::new(),
        });
        eprintln!("a guest of {mib} MiB is saved");
        saved.push(one);
    }
    // The first of each is not counted: it finds its files for the first time.
    for run in 0..=runs {
        for (one, size) in saved.iter().zip(&mut sizes) {
            let (runs, asked) = restore(&kernel, &initrd, one).await?;
            if run > 0 {
                size.runs.push(runs);
                size.asked.push(asked);
            }
        }
    }
    Ok(sizes)
}

/// Folders of a guest, and how it is started.
fn prepare(
    kernel: &Path,
    initrd: &[u8],
    mib: u64,
    share: u64,
) -> std::io::Result<(TempDir, StartSpec)> {
    let folder = tempfile::tempdir()?;
    let machine = folder.path().join("machine");
    fs::create_dir(&machine)?;
    fs::copy(kernel, machine.join("kernel"))?;
    fs::write(machine.join("initrd"), initrd)?;
    let written = mib / share;
    fs::write(
        machine.join("cmdline"),
        format!("console=ttyS0 quiet panic=0 written={written}\n"),
    )?;
    fs::File::create(machine.join("disk.img"))?.set_len(1 << 20)?;
    let text = b": 1\nid: restore-1\nname: restore\nsummary: Waits\ntype: kvm\n";
    let manifest = MachineManifest::parse(text, "manifest").map_err(std::io::Error::other)?;
    let spec = StartSpec {
        directory: machine,
        manifest,
        mac: Some(MAC),
        cpus: 1,
        ram_kib: mib * 1024,
        network: Network::None,
        accelerator: Accelerator::Tcg,
        disk: Disk::ThrowAway,
        memory: Memory::ToBeSaved,
        tftp: Tftp {
            root: Root::new().get_held("held"),
            limits: Limits::wire(),
        },
        run_dir: folder.path().join("run"),
        user: None,
    };
    Ok((folder, spec))
}

async fn next(machine: &mut dyn Machine) -> Result<MachineEvent, String> {
    match timeout(PATIENCE, machine.next_event()).await {
        Ok(MachineEvent::Exited(exit)) => Err(format!("the guest has ended: {exit}")),
        Ok(event) => Ok(event),
        Err(_) => Err(format!(
            "nothing was heard of the guest for {} s",
            PATIENCE.as_secs()
        )),
    }
}

async fn save(kernel: &Path, initrd: &[u8], mib: u64, share: u64) -> Result<Saved, String> {
    let (folder, spec) = prepare(kernel, initrd, mib, share)
        .map_err(|error| format!("cannot prepare a guest: {error}"))?;
    let started = Qemu::new().start(spec).await;
    let mut machine = started.map_err(|error| error.to_string())?;
    let waiting = loop {
        if let MachineEvent::Tftp(Event::Held { peer, request, .. }) =
            next(machine.as_mut()).await?
        {
            break Waiting { peer, request };
        }
    };
    let base = machine.save(waiting).await;
    Ok(Saved {
        folder,
        base: Arc::new(base.map_err(|error| error.to_string())?),
        mib,
        share,
    })
}

async fn restore(kernel: &Path, initrd: &[u8], saved: &Saved) -> Result<(f64, f64), String> {
    let (_folder, mut spec) = prepare(kernel, initrd, saved.mib, saved.share)
        .and_then(|(folder, spec)| {
            let disk = spec.directory.join("disk.img");
            fs::copy(saved.folder.path().join("machine/disk.img"), disk)?;
            Ok((folder, spec))
        })
        .map_err(|error| format!("cannot prepare a guest: {error}"))?;
    spec.memory = Memory::Restored(Arc::clone(&saved.base));
    spec.tftp.root = Root::new()
        .get_bytes("held", b"go on".to_vec())
        .get_bytes("after", b"".to_vec());
    let begin = Instant::now();
    let started = Qemu::new().start(spec).await;
    let mut machine = started.map_err(|error| error.to_string())?;
    let runs = begin.elapsed();
    let asked = loop {
        match next(machine.as_mut()).await? {
            MachineEvent::Tftp(Event::Requested { name, .. }) if name == "after" => {
                break begin.elapsed();
            }
            _ => {}
        }
    };
    machine
        .force_down()
        .await
        .map_err(|error| error.to_string())?;
    Ok((runs.as_secs_f64() * 1e3, asked.as_secs_f64() * 1e3))
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 {
        values[middle]
    } else {
        f64::midpoint(values[middle - 1], values[middle])
    }
}

/// Of the line with the least squares.
#[expect(clippy::cast_precision_loss, reason = "there are five points")]
fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / count;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / count;
    let rise: f64 = points
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum();
    let run: f64 = points.iter().map(|(x, _)| (x - mean_x).powi(2)).sum();
    rise / run
}

fn table(sizes: &[Size]) -> String {
    let mut text = format!(
        "{:>9} {:>10} {:>12} {:>14} {:>8}\n",
        "RAM MiB", "saved MiB", "guest runs", "guest asks", "worst"
    );
    for size in sizes {
        text.push_str(&format!(
            "{:>9} {:>10} {:>12.1} {:>14.1} {:>8.1}\n",
            size.mib,
            size.saved_kib / 1024,
            median(&size.runs),
            median(&size.asked),
            size.asked.iter().copied().fold(0.0, f64::max)
        ));
    }
    text
}
