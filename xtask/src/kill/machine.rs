//! The machines of the test: the smallest that a worker builds in.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use anyhow::{Context, anyhow};
use testkit::guest::{self, GuestFile};

/// A machine of the test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// In QEMU: a kernel, a RAM disk, and a disk for what the bootstrap leaves.
    Tiny,
    /// In a container.
    Box,
}

impl Kind {
    /// Its name, also that of its configuration.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Box => "box",
        }
    }

    fn manifest(self) -> String {
        let (name, kind) = match self {
            Self::Tiny => ("tiny", "kvm"),
            Self::Box => ("box", "nspawn"),
        };
        format!(": 1\nid: {name}-1.1\nname: {name}\nsummary: Starts in seconds\ntype: {kind}\n")
    }
}

/// The first process in QEMU: what a bootstrap has left comes from the disk, a tar archive without a file system around
/// it; then bootstrap protocol 1.
const TINY_INIT: &str = r#"export HOME=/root
mkdir -p /root /build /run /var/run /var/log /usr/lib/bbot
mkdir -m 1777 /tmp
ifconfig eth0 up
until udhcpc -i eth0 -n -q -t 20 -T 1 -s /udhcpc; do :; done
tar -x -f /dev/vda -C / 2>/dev/null
if [ -x /usr/lib/bbot/bbot-worker ]; then
  /usr/lib/bbot/bbot-worker --startup
else
  acpid
  until tftp -g -b 1468 -r bootstrap -l /run/bootstrap 196.254.111.222; do sleep 1; done
  sh /run/bootstrap 196.254.111.222
fi
while :; do sleep 1000; done
"#;

/// What its power button does.
const POWER_OFF: &str = "#!/bin/sh\ntar -c -f /dev/vda -C / usr/lib/bbot\nsync\npoweroff -f\n";

/// The first process in the container: what a bootstrap leaves is in its files.
const BOX_INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
trap 'poweroff -f' TERM
ifconfig lo up
ifconfig eth0 up
until udhcpc -i eth0 -n -q -t 20 -T 1 -s /udhcpc; do :; done
if [ -x /usr/lib/bbot/bbot-worker ]; then
  /usr/lib/bbot/bbot-worker --startup
else
  until tftp -g -b 1468 -r bootstrap -l /run/bootstrap 196.254.111.222; do sleep 1; done
  sh /run/bootstrap 196.254.111.222
fi
while :; do sleep 1000 & wait $!; done
"#;

/// Enough of make for a makefile with nothing in it. With a file `bad` beside it, it is killed: the build ends abnormally,
/// and its machine is kept for a person.
const MAKE: &str = "#!/bin/sh
[ ! -e bad ] || kill -KILL $$
for word; do
  case $word in check|test) echo \"make: *** No rule to make target '$word'.  Stop.\" >&2; exit 2 ;; esac
done
echo made
";

/// What both have besides busybox.
const FILES: [GuestFile<'_>; 3] = [
    GuestFile {
        name: "bin/make",
        is_program: true,
        contents: MAKE.as_bytes(),
    },
    GuestFile {
        name: "etc/passwd",
        is_program: false,
        contents: b"root:x:0:0::/root:/bin/sh\nbuild:x:1000:1000::/:/bin/sh\n",
    },
    GuestFile {
        name: "etc/group",
        is_program: false,
        contents: b"root:x:0:\nbuild:x:1000:\n",
    },
];

/// Makes the machine in its volume: the revision 1.1 and the link to it.
pub(super) fn make(kind: Kind, volume: &Path, is_btrfs: bool) -> anyhow::Result<()> {
    let name = kind.name();
    let machine = volume.join(name);
    make_folder(&machine)?;
    let revision = machine.join(format!("{name}-1.1"));
    if is_btrfs {
        testkit::run(
            "btrfs",
            &["-q", "subvolume", "create", testkit::text(&revision)],
        );
    } else {
        make_folder(&revision)?;
    }
    match kind {
        Kind::Tiny => make_tiny(&revision)?,
        Kind::Box => make_box(&revision.join("rootfs"))?,
    }
    write(&revision.join("manifest"), kind.manifest().as_bytes())?;
    if is_btrfs {
        testkit::run(
            "btrfs",
            &[
                "property",
                "set",
                "-t",
                "subvol",
                testkit::text(&revision),
                "ro",
                "true",
            ],
        );
    }
    symlink(format!("{name}-1.1"), machine.join(format!("{name}-1")))
        .context("cannot make the link to the revision")
}

fn make_tiny(revision: &Path) -> anyhow::Result<()> {
    let cannot = |why: String| anyhow!("cannot make the guest: {why}");
    let button = GuestFile {
        name: "etc/acpi/PWRF/00000080",
        is_program: true,
        contents: POWER_OFF.as_bytes(),
    };
    let files: Vec<GuestFile<'_>> = FILES.into_iter().chain([button]).collect();
    let initrd = guest::initrd(TINY_INIT, &files).map_err(cannot)?;
    let kernel = guest::kernel().map_err(cannot)?;
    fs::copy(&kernel, revision.join("kernel"))
        .with_context(|| format!("cannot copy {}", kernel.display()))?;
    write(&revision.join("initrd"), &initrd)?;
    write(&revision.join("cmdline"), b"console=ttyS0 panic=0\n")?;
    let disk = revision.join("disk.img");
    fs::File::create(&disk)
        .and_then(|file| file.set_len(16 << 20))
        .with_context(|| format!("cannot make {}", disk.display()))
}

fn make_box(rootfs: &Path) -> anyhow::Result<()> {
    for folder in [
        "bin",
        "build",
        "dev",
        "etc",
        "proc",
        "root",
        "run",
        "sbin",
        "sys",
        "tmp",
        "usr/lib/bbot",
    ] {
        make_folder(&rootfs.join(folder))?;
    }
    set_mode(&rootfs.join("tmp"), 0o1777)?;
    let busybox = guest::busybox().map_err(|why| anyhow!("cannot make the container: {why}"))?;
    let own = [
        ("bin/busybox", &busybox[..]),
        ("sbin/init", BOX_INIT.as_bytes()),
        ("udhcpc", guest::UDHCPC.as_bytes()),
    ];
    let own = own.map(|(name, contents)| GuestFile {
        name,
        is_program: true,
        contents,
    });
    for file in own.into_iter().chain(FILES) {
        let path = rootfs.join(file.name);
        write(&path, file.contents)?;
        set_mode(&path, if file.is_program { 0o755 } else { 0o644 })?;
    }
    Ok(())
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

fn write(path: &Path, contents: &[u8]) -> anyhow::Result<()> {
    fs::write(path, contents).with_context(|| format!("cannot write {}", path.display()))
}

fn set_mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot change {}", path.display()))
}
