//! nspawn's command line, as a pure function of what is asked for.

use std::net::Ipv4Addr;

/// The longest `cmdline` that is read.
pub(super) const MAX_CMDLINE: u64 = 4096;

/// Processes and threads of one user in a container, where no control group counts them all. Not
/// below the worker's own bound for the build's user, which it could not set then.
pub(super) const FALLBACK_PROCESSES: u64 = 16_384;

/// Rights that nspawn leaves to a container's root over its own namespaces, and that neither a
/// bootstrap nor a worker needs. What is left: files and users (CHOWN, DAC_OVERRIDE, FOWNER,
/// FSETID, SETFCAP, SETUID, SETGID, SETPCAP, SYS_CHROOT), processes (KILL, SYS_BOOT to power off),
/// the network (NET_ADMIN, NET_RAW, NET_BIND_SERVICE), and SYS_ADMIN, without which the worker
/// could not give the build a network of its own.
const DROPPED: [&str; 12] = [
    "CAP_AUDIT_CONTROL",
    "CAP_AUDIT_WRITE",
    "CAP_DAC_READ_SEARCH",
    "CAP_IPC_OWNER",
    "CAP_LEASE",
    "CAP_LINUX_IMMUTABLE",
    "CAP_MKNOD",
    "CAP_NET_BROADCAST",
    "CAP_SYS_NICE",
    "CAP_SYS_PTRACE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TTY_CONFIG",
];

/// What a shell runs as the first process of the container's outer process namespace: nspawn must
/// not be that itself, since it would take itself for the host's first process. Arguments: the
/// socket that hears of the start, the program, and its arguments. No lock file beside the root
/// directory; /tmp on the disk, since builds may need more room than there is memory.
pub(super) const WRAPPER: &str = "\
    NOTIFY_SOCKET=$0 SYSTEMD_NSPAWN_LOCK=0 SYSTEMD_NSPAWN_TMPFS_TMP=0 \
    SYSTEMD_LOG_TARGET=console SYSTEMD_LOG_LEVEL=warning SYSTEMD_COLORS=0 \
    \"$@\"; exit $?";

/// What nspawn is to run.
#[derive(Debug, Clone)]
pub(super) struct Plan<'a> {
    /// The container's root directory.
    pub(super) rootfs: &'a str,
    /// What its root is on the host.
    pub(super) first_user: u32,
    /// Whether it has the second card.
    pub(super) internet: bool,
    /// The processors that it sees.
    pub(super) processors: &'a [usize],
    /// Its address and mask on the wire, for a first program that sets them without asking by DHCP; others may ask.
    /// None: it is on a bridge, where somebody else gives addresses.
    pub(super) address: Option<(Ipv4Addr, Ipv4Addr)>,
    /// Its first program.
    pub(super) init: &'a str,
}

/// Makes the command line, without the program.
pub(super) fn build(plan: &Plan<'_>) -> Vec<String> {
    let mut arguments: Vec<String> = [
        // Nothing that is not asked for here: no settings from /etc, no registration.
        "--quiet",
        "--settings=no",
        "--register=no",
        "--keep-unit",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        // It is alone in a namespace with its name.
        "--machine=bbot",
        "--hostname=build",
        "--no-new-privileges=yes",
        // What it prints goes to the agent; it reads nothing.
        "--console=read-only",
        // Where the file system cannot show files as other users', they are given away; the
        // directory is a copy.
        "--private-users-ownership=auto",
        "--network-interface=eth0",
        // A core file would fill the disk.
        "--rlimit=CORE=0",
    ]
    .map(str::to_owned)
    .into();
    let users = super::users::SIZE;
    arguments.push(format!("--private-users={}:{users}", plan.first_user));
    arguments.push(format!("--rlimit=NPROC={FALLBACK_PROCESSES}"));
    arguments.push(format!("--drop-capability={}", DROPPED.join(",")));
    if plan.internet {
        arguments.push("--network-interface=eth1".to_owned());
    }
    if let Some((address, mask)) = plan.address {
        arguments.push(format!("--setenv=BBOT_ADDRESS={address}/{mask}"));
    }
    if !plan.processors.is_empty() {
        let processors: Vec<String> = plan.processors.iter().map(ToString::to_string).collect();
        arguments.push(format!("--cpu-affinity={}", processors.join(",")));
    }
    arguments.push(format!("--directory={}", plan.rootfs));
    arguments.push("--".to_owned());
    arguments.push(plan.init.to_owned());
    arguments
}

/// The first program that a machine's `cmdline` names, if it names one: the last `init=`, as the
/// kernel takes it.
pub(super) fn init_of(cmdline: &str) -> Option<String> {
    cmdline
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("init="))
        .rfind(|path| path.starts_with('/') && !path.contains('\0'))
        .map(str::to_owned)
}

/// Which of the processors that the agent may use the container sees: `wanted` of them, beginning
/// elsewhere for each run, so that containers do not crowd on the first ones. Empty: all of them.
pub(super) fn processors(available: &[usize], wanted: u32, run: usize) -> Vec<usize> {
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    if available.is_empty() || wanted >= available.len() {
        return Vec::new();
    }
    let start = run.wrapping_mul(wanted) % available.len();
    let mut chosen: Vec<usize> = (0..wanted)
        .map(|step| available[(start + step) % available.len()])
        .collect();
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire;
    use proptest::prelude::*;

    fn plan<'a>() -> Plan<'a> {
        Plan {
            rootfs: "/machines/m/rootfs",
            first_user: 1_879_048_192,
            internet: false,
            processors: &[],
            address: None,
            init: "/sbin/init",
        }
    }

    #[test]
    fn what_keeps_a_container_in_is_always_there() {
        let line = build(&plan()).join(" ");
        for word in [
            "--settings=no",
            "--register=no",
            "--keep-unit",
            "--no-new-privileges=yes",
            "--private-users=1879048192:65536",
            "--network-interface=eth0",
            "--rlimit=CORE=0",
            "CAP_MKNOD",
            "CAP_SYS_PTRACE",
        ] {
            assert!(line.contains(word), "{word}: {line}");
        }
        assert!(!line.contains("BBOT_ADDRESS"));
        assert!(!line.contains("eth1") && !line.contains("--cpu-affinity"));
        assert!(line.ends_with("--directory=/machines/m/rootfs -- /sbin/init"));
    }

    #[test]
    fn what_is_asked_for_is_added() {
        let line = build(&Plan {
            internet: true,
            processors: &[1, 3],
            address: Some((wire::GUEST, wire::MASK)),
            ..plan()
        })
        .join(" ");
        assert!(line.contains("--network-interface=eth1"), "{line}");
        assert!(line.contains("--cpu-affinity=1,3"), "{line}");
        let address = "--setenv=BBOT_ADDRESS=196.254.111.2/255.255.255.0";
        assert!(line.contains(address), "{line}");
    }

    #[test]
    fn the_last_init_counts() {
        for (cmdline, init) in [
            ("", None),
            (
                "root=/dev/vda init=/usr/lib/bbot/init",
                Some("/usr/lib/bbot/init"),
            ),
            ("init=/a\ninit=/b", Some("/b")),
            ("init=relative", None),
            ("xinit=/a", None),
        ] {
            assert_eq!(init_of(cmdline).as_deref(), init, "{cmdline}");
        }
    }

    #[test]
    fn containers_spread_over_the_processors() {
        let all = [0, 1, 2, 5];
        assert_eq!(processors(&all, 2, 0), [0, 1]);
        assert_eq!(processors(&all, 2, 1), [2, 5]);
        assert_eq!(processors(&all, 3, 1), [0, 1, 5]);
        assert!(processors(&all, 4, 1).is_empty());
        assert!(processors(&[], 1, 0).is_empty());
    }

    proptest! {
        #[test]
        fn as_many_processors_as_wanted(
            available in proptest::collection::btree_set(0usize..512, 0..20),
            wanted in 1u32..30,
            run in any::<usize>(),
        ) {
            let available: Vec<usize> = available.into_iter().collect();
            let chosen = processors(&available, wanted, run);
            if wanted as usize >= available.len() {
                prop_assert!(chosen.is_empty());
            } else {
                prop_assert_eq!(chosen.len(), wanted as usize);
                prop_assert!(chosen.iter().all(|one| available.contains(one)));
                prop_assert!(chosen.windows(2).all(|two| two[0] < two[1]));
            }
        }
    }
}
