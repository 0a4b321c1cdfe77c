//! QEMU's command line, as a pure function of what is asked for.

use crate::accel::Accelerator;
use crate::mac::Mac;
use crate::machine::Disk;
use crate::qemu::options::{self, Filling};

/// The machine that QEMU plays, unless the machine's options say otherwise.
pub const MACHINE_TYPE: &str = "q35";

/// What every QEMU may not do once it runs: call what is obsolete, get more
/// rights, start programs, change its limits.
pub const SANDBOX: &str = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";

/// The kernel's command line for a machine that has a `kernel` but no `cmdline`.
pub const DEFAULT_CMDLINE: &str = "root=/dev/vda rw console=ttyS0";

/// A kernel that is booted directly.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectBoot {
    /// Path of the kernel, as QEMU sees it.
    pub kernel: String,
    /// Path of the initial RAM disk.
    pub initrd: Option<String>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// A second network card, with the way to the internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondCard {
    /// Number of its descriptor.
    pub fd: i32,
    /// Its address.
    pub mac: Mac,
}

/// Where the machine's one card ends, with the number of its descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CardEnd {
    /// In the agent: a socket that carries frames.
    Wire(i32),
    /// On a bridge: a tap.
    Tap(i32),
}

impl CardEnd {
    /// The net device.
    pub fn netdev(self, id: &str) -> String {
        match self {
            Self::Wire(fd) => wire_netdev(id, fd),
            // vhost would need a device that QEMU's user may not open.
            Self::Tap(fd) => format!("tap,id={id},fd={fd},vhost=off"),
        }
    }
}

/// Memory that is a file, so that it can be saved and restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryFile {
    /// Number of its descriptor.
    pub fd: i32,
    /// Whether what the guest writes goes into the file; else it is the guest's own.
    pub shared: bool,
    /// Number of the descriptor of a saved state, from which the guest goes on and does not boot.
    pub state: Option<i32>,
}

/// What QEMU is to run.
pub struct Plan<'a> {
    /// The machine's name.
    pub name: &'a str,
    /// The machine's own options, in place of the default disk and card.
    pub options: Option<&'a [String]>,
    /// Whether the machine's directory has a regular file of this name.
    pub has_file: &'a dyn Fn(&str) -> bool,
    /// The address of the card on the wire.
    pub mac: Mac,
    /// Virtual processors.
    pub cpus: u32,
    /// Memory in KiB.
    pub ram_kib: u64,
    /// How instructions are run.
    pub accelerator: Accelerator,
    /// What becomes of the disk.
    pub disk: Disk,
    /// The kernel to boot; absent: the disk's boot loader.
    pub boot: Option<&'a DirectBoot>,
    /// Where the machine's card ends.
    pub card: CardEnd,
    /// Number of the control socket's descriptor.
    pub qmp: i32,
    /// The folder for the sockets of console and screen, as QEMU sees it.
    pub sockets: &'a str,
    /// Number of the descriptor that gets a copy of what the console says.
    pub console_log: i32,
    /// The second card.
    pub second: Option<SecondCard>,
    /// Where the memory is; absent: QEMU's own.
    pub memory: Option<MemoryFile>,
}

impl std::fmt::Debug for Plan<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A command line, and the files to hand over with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine {
    /// The arguments, without the program.
    pub arguments: Vec<String>,
    /// Files of the machine's directory, as in [`options::Filled::files`].
    pub files: Vec<String>,
}

/// A net device whose frames come and go over a datagram socket.
pub fn wire_netdev(id: &str, fd: i32) -> String {
    format!("dgram,id={id},local.type=fd,local.str={fd}")
}

/// The name of the console's socket in [`Plan::sockets`].
pub const CONSOLE_SOCKET: &str = "console";
/// The descriptor set of [`Plan::console_log`]; those of disks count from 1.
pub const CONSOLE_SET: u32 = 1000;
/// The name of the screen's socket in [`Plan::sockets`].
pub const SCREEN_SOCKET: &str = "vnc";

/// The processor that the guest sees: all that the accelerator can do.
pub fn cpu_model(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    }
}

/// Makes the command line.
///
/// # Errors
///
/// When the machine's options cannot be used.
pub fn build(plan: &Plan<'_>) -> Result<CommandLine, options::OptionsError> {
    let devices = devices(plan)?;
    let mut arguments: Vec<String> = Vec::new();
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(|&word| word.to_owned()));

    add(&["-name", &plan.name.replace(',', ",,")]);
    // Nothing that is not asked for here: no devices, no files of the host's.
    add(&["-nodefaults", "-no-user-config", "-display", "none"]);
    add(&["-sandbox", SANDBOX]);
    match plan.memory {
        None => add(&["-machine", MACHINE_TYPE]),
        Some(_) => add(&["-machine", &format!("{MACHINE_TYPE},memory-backend=ram0")]),
    }
    // The machine's options may choose; a second -accel would be a fallback.
    if !devices.arguments.iter().any(|word| word == "-accel") {
        add(&["-accel", &plan.accelerator.to_string()]);
    }
    add(&["-cpu", cpu_model(plan.accelerator)]);
    let cpus = plan.cpus;
    add(&[
        "-smp",
        &format!("cpus={cpus},sockets=1,cores={cpus},threads=1"),
    ]);
    add(&["-m", &format!("size={}k", plan.ram_kib)]);
    if let Some(memory) = plan.memory {
        let share = if memory.shared { "on" } else { "off" };
        add(&[
            "-object",
            &format!(
                "memory-backend-file,id=ram0,size={}k,mem-path=/proc/self/fd/{},share={share}",
                plan.ram_kib, memory.fd
            ),
        ]);
        // Its kernel begins with new random numbers when it is restored, where it knows the device.
        add(&["-device", "vmgenid,guid=auto"]);
        // Nobody is there to hear that a restored guest has moved. A guest that expects to be asked
        // for it while QEMU has no round of it brings QEMU down when it powers off.
        add(&["-global", "virtio-net-device.guest_announce=off"]);
        if memory.state.is_some() {
            // Its end is to be told; there are no switches that must hear of it. Said here and not
            // later, since of its control socket QEMU reads one byte each time it looks around.
            for setting in ["x-events=on", "announce-rounds=0"] {
                add(&["-global", &format!("migration.{setting}")]);
            }
            add(&["-incoming", "defer"]);
        }
    }
    // A bootstrap may restart its guest; who powers off is gone; who panics is
    // kept for a look.
    add(&["-action", "reboot=reset,shutdown=poweroff,panic=pause"]);
    add(&["-chardev", &format!("socket,id=qmp,fd={}", plan.qmp)]);
    add(&["-mon", "chardev=qmp,mode=control"]);
    let socket = |name: &str| format!("{}/{name}", plan.sockets);
    add(&[
        "-add-fd",
        &format!("fd={},set={CONSOLE_SET}", plan.console_log),
    ]);
    add(&[
        "-chardev",
        &format!(
            "socket,id=console,path={},server=on,wait=off,logfile=/dev/fdset/{CONSOLE_SET},logappend=on",
            socket(CONSOLE_SOCKET)
        ),
        "-serial",
        "chardev:console",
    ]);
    add(&[
        "-vga",
        "std",
        "-vnc",
        &format!("unix:{}", socket(SCREEN_SOCKET)),
    ]);
    add(&["-device", "virtio-rng-pci", "-device", "pvpanic"]);
    if let Some(boot) = plan.boot {
        add(&["-kernel", &boot.kernel]);
        if let Some(initrd) = &boot.initrd {
            add(&["-initrd", initrd]);
        }
        add(&["-append", &boot.cmdline]);
    }
    arguments.extend(devices.arguments);
    if let Some(second) = plan.second {
        // After the wire: the guest's first card is the agent's.
        arguments.extend([
            "-netdev".to_owned(),
            wire_netdev("internet", second.fd),
            "-device".to_owned(),
            card("internet", second.mac),
        ]);
    }
    Ok(CommandLine {
        arguments,
        files: devices.files,
    })
}

/// A card without a boot ROM: nothing is booted from the wire.
fn card(netdev: &str, mac: Mac) -> String {
    format!("virtio-net-pci,netdev={netdev},mac={mac},romfile=")
}

fn devices(plan: &Plan<'_>) -> Result<options::Filled, options::OptionsError> {
    if let Some(options) = plan.options {
        let filling = Filling {
            mac: plan.mac,
            card: plan.card,
            has_file: plan.has_file,
        };
        return options::fill(options, &filling);
    }
    let cache = match plan.disk {
        // The guest's flushes reach the disk.
        Disk::Kept => "writeback",
        // Nobody reads it after a crash.
        Disk::ThrowAway => "unsafe",
    };
    // A restored guest's disk is opened for writing from the start: when QEMU opens it anew as the
    // guest goes on, the lock of the first time is still there.
    let anew = match plan.memory {
        Some(_) => ",auto-read-only=off",
        None => "",
    };
    Ok(options::Filled {
        arguments: [
            "-netdev".to_owned(),
            plan.card.netdev("net0"),
            "-device".to_owned(),
            card("net0", plan.mac),
            "-drive".to_owned(),
            format!(
                "if=none,id=disk0,format=raw,file=/dev/fdset/1,cache={cache},discard=unmap{anew}"
            ),
            "-device".to_owned(),
            "virtio-blk-pci,drive=disk0,bootindex=1".to_owned(),
        ]
        .into(),
        files: vec!["disk.img".to_owned()],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan<'a>() -> Plan<'a> {
        Plan {
            name: "linux",
            options: None,
            has_file: &|name| name == "disk.img",
            mac: Mac([2, 0, 0, 0, 0, 1]),
            cpus: 2,
            ram_kib: 1_048_576,
            accelerator: Accelerator::Tcg,
            disk: Disk::ThrowAway,
            boot: None,
            card: CardEnd::Wire(5),
            qmp: 6,
            sockets: "/proc/self/fd/9",
            console_log: 10,
            second: None,
            memory: None,
        }
    }

    fn line(plan: &Plan<'_>) -> String {
        build(plan).unwrap().arguments.join(" ")
    }

    #[test]
    fn a_plain_machine() {
        assert_eq!(
            line(&plan()),
            "-name linux -nodefaults -no-user-config -display none \
             -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
             -machine q35 -accel tcg -cpu max -smp cpus=2,sockets=1,cores=2,threads=1 \
             -m size=1048576k -action reboot=reset,shutdown=poweroff,panic=pause \
             -chardev socket,id=qmp,fd=6 -mon chardev=qmp,mode=control \
             -add-fd fd=10,set=1000 \
             -chardev socket,id=console,path=/proc/self/fd/9/console,server=on,wait=off,logfile=/dev/fdset/1000,logappend=on \
             -serial chardev:console -vga std -vnc unix:/proc/self/fd/9/vnc \
             -device virtio-rng-pci -device pvpanic \
             -netdev dgram,id=net0,local.type=fd,local.str=5 \
             -device virtio-net-pci,netdev=net0,mac=02:00:00:00:00:01,romfile= \
             -drive if=none,id=disk0,format=raw,file=/dev/fdset/1,cache=unsafe,discard=unmap \
             -device virtio-blk-pci,drive=disk0,bootindex=1"
        );
        assert_eq!(build(&plan()).unwrap().files, ["disk.img"]);
    }

    #[test]
    fn what_is_asked_for_is_there() {
        let boot = DirectBoot {
            kernel: "/proc/self/fd/11".to_owned(),
            initrd: Some("/proc/self/fd/12".to_owned()),
            cmdline: "quiet x=1,2".to_owned(),
        };
        let second = SecondCard {
            fd: 8,
            mac: Mac([2, 0, 0, 0, 0, 2]),
        };
        let cases: [(Plan<'_>, &[&str]); 6] = [
            (
                Plan {
                    name: "a,b",
                    ..plan()
                },
                &["-name a,,b "],
            ),
            (
                Plan {
                    accelerator: Accelerator::Kvm,
                    ..plan()
                },
                &["-accel kvm -cpu host"],
            ),
            (
                Plan {
                    disk: Disk::Kept,
                    ..plan()
                },
                &["cache=writeback"],
            ),
            (
                Plan {
                    boot: Some(&boot),
                    ..plan()
                },
                &["-kernel /proc/self/fd/11 -initrd /proc/self/fd/12 -append quiet x=1,2"],
            ),
            (
                Plan {
                    second: Some(second),
                    ..plan()
                },
                &[
                    "bootindex=1 -netdev dgram,id=internet,local.type=fd,local.str=8 \
                   -device virtio-net-pci,netdev=internet,mac=02:00:00:00:00:02,romfile=",
                ],
            ),
            (
                Plan {
                    ram_kib: 524_288,
                    cpus: 1,
                    ..plan()
                },
                &["-m size=524288k", "cpus=1,"],
            ),
        ];
        for (plan, expected) in cases {
            let line = line(&plan);
            for part in expected {
                assert!(line.contains(part), "{part} is not in {line}");
            }
        }
    }

    #[test]
    fn options_take_the_place_of_card_and_disk() {
        let options: Vec<String> = "-machine pc -accel tcg,thread=single \
            -netdev tap,id=n,ifname=? -device e1000,netdev=n,mac=? -hda disk.img"
            .split_whitespace()
            .map(str::to_owned)
            .collect();
        let plan = Plan {
            options: Some(&options),
            ..plan()
        };
        let built = build(&plan).unwrap();
        let line = built.arguments.join(" ");
        assert!(
            line.ends_with(
                "-device pvpanic -machine pc -accel tcg,thread=single \
             -netdev dgram,id=n,local.type=fd,local.str=5 \
             -device e1000,netdev=n,mac=02:00:00:00:00:01 -hda /dev/fdset/1"
            ),
            "{line}"
        );
        assert!(
            !line.contains("virtio-net-pci") && !line.contains("virtio-blk-pci"),
            "{line}"
        );
        assert_eq!(line.matches("-accel").count(), 1, "{line}");
        assert_eq!(built.files, ["disk.img"]);
    }

    #[test]
    fn a_tap_takes_the_place_of_the_wire() {
        let plan = Plan {
            card: CardEnd::Tap(7),
            ..plan()
        };
        let line = line(&plan);
        assert!(
            line.contains("-netdev tap,id=net0,fd=7,vhost=off "),
            "{line}"
        );
        assert!(!line.contains("dgram"), "{line}");
        let options =
            ["-netdev", "tap,id=n,ifname=?,script=no", "-hda", "disk.img"].map(str::to_owned);
        let plan = Plan {
            options: Some(&options),
            ..plan
        };
        let line = self::line(&plan);
        assert!(line.contains("-netdev tap,id=n,fd=7,vhost=off "), "{line}");
        assert!(!line.contains("script"), "{line}");
    }

    #[test]
    fn memory_can_be_a_file() {
        let file = MemoryFile {
            fd: 7,
            shared: true,
            state: None,
        };
        let saved = line(&Plan {
            memory: Some(file),
            ..plan()
        });
        for part in [
            "-machine q35,memory-backend=ram0 ",
            "-object memory-backend-file,id=ram0,size=1048576k,mem-path=/proc/self/fd/7,share=on ",
            "-device vmgenid,guid=auto -global virtio-net-device.guest_announce=off ",
            "discard=unmap,auto-read-only=off ",
        ] {
            assert!(saved.contains(part), "{part} is not in {saved}");
        }
        let restored = line(&Plan {
            memory: Some(MemoryFile {
                shared: false,
                state: Some(8),
                ..file
            }),
            ..plan()
        });
        assert_eq!(
            restored,
            saved.replace("share=on", "share=off").replace(
                "guest_announce=off",
                "guest_announce=off -global migration.x-events=on \
                 -global migration.announce-rounds=0 -incoming defer"
            )
        );
    }

    #[test]
    fn the_sandbox_is_always_whole() {
        for option in ["obsolete", "elevateprivileges", "spawn", "resourcecontrol"] {
            assert!(
                line(&plan()).contains(&format!("{option}=deny")),
                "{option}"
            );
        }
    }
}
