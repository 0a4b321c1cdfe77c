//! Manifests of machines and toolchains, and the run manifest.

mod refused;

use bbot_manifest::{
    BootstrapManifest, BootstrappedMachine, Era, Mac, MachineHeader, MachineKind, MachineManifest,
    RunManifest, ToolchainManifest,
};
use refused::refused;

const HEX: &str = "8d969eef6ecad3c29a3a629280e686cf0c3f5d5a86aff3ca12020c923adc6c92";

const MACHINE: &str = ": 1
id: linux_debian_12-gcc_12-bindist-1.7
name: linux_debian_12-gcc_12-bindist
summary: Debian 12 (bookworm) with GCC 12.2
role: build
ram-minimum: 4194304
ram-maximum: 16777216
type: kvm
mac: de:ad:be:ef:01:02
options: -device \"virtio-scsi-pci,id=scsi\" -device 'scsi-hd,drive=disk0'
changes: \\
1.7
  - Upgrade to 12.5; drop python2
\\
changes: 1.6
";

#[test]
fn machine() {
    let machine = MachineManifest::parse(MACHINE.as_bytes(), "manifest").unwrap();
    assert_eq!(machine.kind, MachineKind::Kvm);
    assert_eq!(machine.mac, Some(Mac([0xde, 0xad, 0xbe, 0xef, 1, 2])));
    assert_eq!(
        machine.changes,
        ["1.7\n  - Upgrade to 12.5; drop python2", "1.6"]
    );
    assert_eq!(
        machine.option_list().unwrap().unwrap(),
        [
            "-device",
            "virtio-scsi-pci,id=scsi",
            "-device",
            "scsi-hd,drive=disk0"
        ]
    );
    assert_eq!(machine.serialize().unwrap(), MACHINE);

    // As the seed knew it.
    let input = ": 1\nid: windows-1.0\nname: windows\nsummary: Windows\ntype: nspawn\n";
    let machine = MachineManifest::parse(input.as_bytes(), "manifest").unwrap();
    assert_eq!(machine.kind, MachineKind::Nspawn);
    assert_eq!((machine.mac, machine.option_list()), (None, Ok(None)));
    assert_eq!(machine.serialize().unwrap(), input);
    // The header alone takes the same file.
    let header = MachineHeader::parse(input.as_bytes(), "manifest").unwrap();
    assert_eq!(header, machine.header);
    let alone = header.serialize(Era::Y2017).unwrap();
    assert_eq!(alone, input.replace("type: nspawn\n", ""));
}

#[test]
fn machine_refused() {
    let base = ": 1\nid: i\nname: n\nsummary: s\n";
    let with = |lines: &str| format!("{base}{lines}\n");
    let mac = |mac: &str| with(&format!("type: kvm\nmac: {mac}"));
    let bad_mac = |mac: &str| {
        format!(
            "6:6: error: invalid machine field `mac`: `{mac}` is not a MAC address like \
             de:ad:be:ef:01:02"
        )
    };
    refused(
        MachineManifest::parse,
        &[
            (base, "5:1: error: machine has no required field `type`"),
            (
                &with("type: xen"),
                "5:7: error: invalid machine field `type`: neither `kvm` nor `nspawn`",
            ),
            (&mac("de:ad:be:ef:01"), &bad_mac("de:ad:be:ef:01")),
            (
                &mac("de:ad:be:ef:01:02:03"),
                &bad_mac("de:ad:be:ef:01:02:03"),
            ),
            (&mac("de:ad:be:ef:01:2"), &bad_mac("de:ad:be:ef:01:2")),
            (&mac("de:ad:be:ef:01:+2"), &bad_mac("de:ad:be:ef:01:+2")),
            (&mac("de:ad:be:ef:01:gg"), &bad_mac("de:ad:be:ef:01:gg")),
            (
                &with("type: kvm\noptions: -x \"a"),
                "6:10: error: invalid machine field `options`: unterminated quote at character 4 \
                 of `-x \"a`: close it, or remove it",
            ),
            (
                &with("type: kvm\nram-minimum: 4G"),
                "6:14: error: invalid machine field `ram-minimum`: not an unsigned number",
            ),
            (
                &with("type: kvm\nram-minimum: 18446744073709551616"),
                "6:14: error: invalid machine field `ram-minimum`: not an unsigned number",
            ),
        ],
    );
}

const BOOTSTRAPPED: &str = ": 1
id: windows_10-msvc_17.8-2.1
name: windows_10-msvc_17.8
summary: Windows 10 22H2 with MSVC 17.8 (VS 2022)
type: kvm
mac: 52:54:00:12:34:56
:
id: a2834e7c9c5b4bb4f5f1f2f8f9ae0e0f4d8f0f3e1b8a4c6d2e0f1a2b3c4d5e6f
:
bbot-version: 0.18.0-a.0.20250603101500.abcdef012345
libbbot-version: 0.18.0-a.0.20250603101500.0123456789ab
libbpkg-version: 0.18.0-a.0.20250602093000.deadbeef0001
libbutl-version: 0.18.0-a.0.20250602080000.cafe00d0babe
";

#[test]
fn bootstrapped_machine() {
    let machine = BootstrappedMachine::parse(BOOTSTRAPPED.as_bytes(), "manifest").unwrap();
    assert_eq!(machine.machine.header.name, "windows_10-msvc_17.8");
    assert!(machine.toolchain.id.starts_with("a2834e7c"));
    assert_eq!(machine.bootstrap.versions.len(), 4);
    assert!(!machine.bootstrap.is_ours());
    let versions = &machine.bootstrap.versions;
    assert!(versions["bbot"] > versions["libbpkg"]);
    assert_eq!(machine.serialize().unwrap(), BOOTSTRAPPED);
    refused(
        BootstrappedMachine::parse,
        &[
            (
                &BOOTSTRAPPED[..BOOTSTRAPPED.find(":\nbbot").unwrap()],
                "9:1: error: bootstrap manifest expected",
            ),
            (
                &BOOTSTRAPPED.replace(":\nbbot", ":\nid: x\n:\nbbot"),
                "11:1: error: unexpected manifest behind the last one",
            ),
            (
                &BOOTSTRAPPED.replace(
                    "id: a2834e7c9c5b4bb4f5f1f2f8f9ae0e0f4d8f0f3e1b8a4c6d2e0f1a2b3c4d5e6f",
                    "id:",
                ),
                "8:4: error: invalid toolchain field `id`: the value is empty",
            ),
        ],
    );
}

#[test]
fn toolchain() {
    let toolchain = ToolchainManifest::parse(b": 1\nid: bogus\n", "").unwrap();
    assert_eq!(toolchain.id, "bogus");
    assert_eq!(toolchain.serialize().unwrap(), ": 1\nid: bogus\n");
    refused(
        ToolchainManifest::parse,
        &[(": 1\n", "2:1: error: toolchain has no required field `id`")],
    );
}

#[test]
fn bootstrap() {
    let ours = BootstrapManifest::ours();
    assert!(ours.is_ours());
    let text = ours.serialize().unwrap();
    for part in ["bbot", "libbbot", "libbpkg", "libbutl", "bbot-worker"] {
        let field = format!("\n{part}-version: {}\n", env!("CARGO_PKG_VERSION"));
        assert!(text.contains(&field), "{text}");
    }
    assert_eq!(BootstrapManifest::parse(text.as_bytes(), "").unwrap(), ours);

    let none = BootstrapManifest::parse(b": 1\nother: 1\n-version: x\n", "").unwrap();
    assert_eq!(none, BootstrapManifest::default());
    refused(
        BootstrapManifest::parse,
        &[
            (
                ": 1\nbbot-version: 1.2\n",
                "2:15: error: invalid bootstrap field `bbot-version`: '.' expected after minor \
                 version",
            ),
            (
                ": 1\nbbot-version: 1.2.3\nbbot-version: 1.2.3\n",
                "3:1: error: bootstrap field `bbot-version` occurs more than once (first in line \
                 2)",
            ),
        ],
    );
}

#[test]
fn run_manifest() {
    let text = format!(
        ": 1\nagent: bbot-agent/0.1.0\nlog-segments: 1\nsource: source.tar.gz\n\
         source-sha256: {HEX}\n"
    );
    // Behind its name the hash is wider than a line.
    let (head, tail) = HEX.split_at(62);
    let wrapped = text.replace(HEX, &format!("{head}\\\n{tail}"));
    let run = RunManifest::parse(text.as_bytes(), "").unwrap();
    assert_eq!(run.log_segments, Some(1));
    assert_eq!(run.source.as_ref().unwrap().name, "source.tar.gz");
    assert_eq!(run.source.as_ref().unwrap().sha256, HEX);
    assert_eq!(run.serialize().unwrap(), wrapped);
    assert_eq!(RunManifest::parse(wrapped.as_bytes(), "").unwrap(), run);
    let least = RunManifest::parse(b": 1\nagent: a\n", "").unwrap();
    assert_eq!((least.log_segments, least.source), (None, None));
    assert_eq!((least.save, least.fresh), (None, None));
    let text = format!(": 1\nagent: a\nsave: again\nclock: c\nseed: {HEX}\n");
    let run = RunManifest::parse(text.as_bytes(), "").unwrap();
    assert_eq!(run.save.as_deref(), Some("again"));
    let fresh = run.fresh.as_ref().unwrap();
    assert_eq!((fresh.clock.as_str(), fresh.seed.as_str()), ("c", HEX));
    assert_eq!(run.serialize().unwrap(), text);
    refused(
        RunManifest::parse,
        &[
            (": 1\n", "2:1: error: run has no required field `agent`"),
            (
                ": 1\nagent: a\nsource: s\n",
                "4:1: error: run has no required field `source-sha256`",
            ),
            (
                &format!(": 1\nagent: a\nsource-sha256: {HEX}\n"),
                "4:1: error: run has no required field `source`",
            ),
            (
                ": 1\nagent: a\nsource: s\nsource-sha256: abc\n",
                "4:16: error: invalid run field `source-sha256`: not 64 lower-case hexadecimal \
                 digits",
            ),
            (
                ": 1\nagent: a\nclock: c\n",
                "4:1: error: run has no required field `seed`",
            ),
            (
                ": 1\nagent: a\nclock: c\nseed: 00\n",
                "4:7: error: invalid run field `seed`: not 64 lower-case hexadecimal digits",
            ),
            (
                ": 1\nagent: a\nlog-segments: one\n",
                "3:15: error: invalid run field `log-segments`: not an unsigned number",
            ),
        ],
    );
}
