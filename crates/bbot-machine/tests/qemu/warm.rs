//! A real guest that is saved while it waits for an answer, and restored.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use bbot_machine::mac::Mac;
use bbot_machine::machine::{ExitCause, Hypervisor, MachineEvent, Memory, StartSpec};
use bbot_machine::qemu::Qemu;
use bbot_machine::warm::{Base, Waiting};
use bbot_tftp::{Event, Root};
use tempfile::TempDir;

use crate::support::{Guest, must_skip, prepare};

/// What the guest does once it has its answer: it shows that it is the one that was saved (a file in
/// its memory), has a disk and a wire, and can end in good order.
const SCRIPT: &str = "set -e\n\
    cat /proc/sys/kernel/random/uuid > /tmp-saved\n\
    tftp -g -r later -l /answer 196.254.111.222\n\
    cat /answer > /dev/vda\n\
    sync\n\
    (cat /tmp-saved; head -c 9 /dev/vda) > /out\n\
    tftp -p -r out -l /out 196.254.111.222\n\
    poweroff -f\n";

/// The card's address is part of what was saved.
const MAC: Mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// Boots it to where it waits, and saves it.
async fn saved() -> (TempDir, Base) {
    let (folder, mut spec) = prepare(SCRIPT, None);
    spec.mac = Some(MAC);
    spec.memory = Memory::ToBeSaved;
    spec.tftp.root = Root::new()
        .get_bytes("script", SCRIPT.as_bytes())
        .get_held("later");
    let mut guest = Guest::start(folder, spec).await;
    let waiting = loop {
        if let MachineEvent::Tftp(Event::Held { peer, request, .. }) = guest.event().await {
            break Waiting { peer, request };
        }
    };
    let base = guest.machine.save(waiting).await.unwrap();
    let exit = guest.machine.wait().await;
    assert_eq!(exit.cause, ExitCause::Forced, "{exit}");
    (guest.folder, base)
}

/// Another guest like it, with its own copy of the disk as it was then, that is restored.
fn restored(from: &TempDir, base: &Arc<Base>, answer: &str) -> (TempDir, StartSpec) {
    let (folder, mut spec) = prepare(SCRIPT, None);
    fs::copy(
        from.path().join("machine/disk.img"),
        spec.directory.join("disk.img"),
    )
    .unwrap();
    spec.mac = Some(MAC);
    spec.memory = Memory::Restored(Arc::clone(base));
    spec.tftp.root = Root::new()
        .get_bytes("later", answer.as_bytes())
        .put_any(folder.path().join("put"), 1 << 20);
    (folder, spec)
}

/// Lets a restored guest come to its end; what it has uploaded.
async fn comes_to_its_end(guest: &mut Guest) -> String {
    let out = String::from_utf8(guest.uploaded("out").await).unwrap();
    assert_eq!(guest.other_event().await, MachineEvent::PoweringOff);
    let MachineEvent::Exited(exit) = guest.other_event().await else {
        panic!("it did not exit")
    };
    assert_eq!(exit.cause, ExitCause::PoweredOff, "{exit}");
    out
}

#[tokio::test]
async fn a_guest_goes_on_from_where_it_was_saved_as_often_as_one_likes() {
    if must_skip() {
        return;
    }
    let (folder, base) = saved().await;
    let stored = tempfile::tempdir().unwrap();
    base.store(stored.path()).unwrap();
    let ram = fs::read(stored.path().join("warm.ram")).unwrap();
    // As an agent that is started later finds it.
    let base = Arc::new(Base::load(stored.path()).unwrap().unwrap());
    assert!(base.resident_kib() < 192 * 1024, "{}", base.resident_kib());

    let begin = Instant::now();
    let (one_folder, one) = restored(&folder, &base, "the first");
    let mut one = Guest::start(one_folder, one).await;
    println!("restored after {:?}", begin.elapsed());
    let (two_folder, two) = restored(&folder, &base, "theSecond");
    let mut two = Guest::start(two_folder, two).await;
    let first = comes_to_its_end(&mut one).await;
    println!("at its end after {:?}", begin.elapsed());
    let second = comes_to_its_end(&mut two).await;
    let (uuid, answer) = first.split_once('\n').unwrap();
    assert_eq!(answer, "the first");
    assert_eq!(second, format!("{uuid}\ntheSecond"));

    drop((one, two));
    base.store(stored.path()).unwrap();
    assert!(fs::read(stored.path().join("warm.ram")).unwrap() == ram);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_and_the_guest_boots() {
    if must_skip() {
        return;
    }
    let (folder, base) = saved().await;
    let base = Arc::new(base);
    let refused = async |change: fn(&mut StartSpec)| {
        let (_folder, mut spec) = restored(&folder, &base, "");
        change(&mut spec);
        Qemu::new().start(spec).await.unwrap_err().to_string()
    };
    let error = refused(|spec| spec.ram_kib /= 2).await;
    assert!(
        error.contains("RAM (KiB) 196608, and here it is 98304"),
        "{error}"
    );
    let error = refused(|spec| spec.cpus = 2).await;
    assert!(error.contains("CPUs 1, and here it is 2"), "{error}");
    let error = refused(|spec| spec.mac = None).await;
    assert!(error.contains("other options"), "{error}");

    // A state that QEMU itself cannot make sense of.
    let stored = tempfile::tempdir().unwrap();
    base.store(stored.path()).unwrap();
    let text = fs::read_to_string(stored.path().join("warm.manifest")).unwrap();
    let rubbish = "no state at all";
    fs::write(stored.path().join("warm.state"), rubbish).unwrap();
    let text: String = text
        .lines()
        .map(|line| match line.strip_prefix("state-sha256: ") {
            Some(_) => format!("state-sha256: {}\n", sha256(rubbish)),
            None => format!("{line}\n"),
        })
        .collect();
    // The hash is wider than a line.
    let text = text.replace("\\\n", "");
    fs::write(stored.path().join("warm.manifest"), text).unwrap();
    let other = Arc::new(Base::load(stored.path()).unwrap().unwrap());
    let (other_folder, spec) = restored(&folder, &other, "");
    let error = Qemu::new().start(spec).await.unwrap_err().to_string();
    assert!(
        error.contains("unable to restore its saved memory"),
        "{error}"
    );

    // Nothing has touched the disk: the machine boots.
    let (_boots_in, mut spec) = prepare("poweroff -f\n", None);
    spec.directory = other_folder.path().join("machine");
    let mut guest = Guest::start(other_folder, spec).await;
    assert_eq!(guest.other_event().await, MachineEvent::PoweringOff);
}

fn sha256(text: &str) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(text))
}
