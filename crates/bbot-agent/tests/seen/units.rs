//! The units for systemd that are shipped.

use std::path::Path;
use std::process::Command;

const UNITS: [&str; 2] = ["bbot-agent@.service", "bbot-controller.service"];

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../systemd")
}

/// systemd's own check. The programs are not installed here, so they stand in a copy
/// of the units as ones that are.
#[test]
fn systemd_has_nothing_to_say_against_the_units() {
    let there = Path::new("/usr/bin/systemd-analyze").exists();
    if !testkit::require("systemd-analyze", there) {
        return;
    }
    let copy = tempfile::tempdir().unwrap();
    for unit in UNITS {
        let text = std::fs::read_to_string(folder().join(unit)).unwrap();
        let text = text.replace("/usr/local/bin/bbot-", "/bin/true bbot-");
        assert!(text.contains("/bin/true bbot-"), "{unit} starts something");
        // The first of a template's instances.
        let name = unit.replace('@', "@default");
        std::fs::write(copy.path().join(name), text).unwrap();
    }
    for unit in UNITS {
        let unit = copy.path().join(unit.replace('@', "@default"));
        let output = Command::new("/usr/bin/systemd-analyze")
            .args(["verify", "--man=no"])
            .arg(&unit)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let name = unit.file_name().unwrap().to_string_lossy().into_owned();
        let about_us: Vec<&str> = said.lines().filter(|line| line.contains(&name)).collect();
        assert!(output.status.success() && about_us.is_empty(), "{said}");
    }
}

/// The value of a unit's setting.
fn setting(unit: &str, name: &str) -> String {
    let text = std::fs::read_to_string(folder().join(unit)).unwrap();
    let found = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("{unit}: no {name}"));
    found.to_owned()
}

#[test]
fn the_agents_unit_lets_it_drain_and_ends_its_machines_with_it() {
    let unit = "bbot-agent@.service";
    assert_eq!(setting(unit, "KillMode"), "mixed");
    assert_eq!(setting(unit, "Restart"), "on-failure");
    assert_eq!(setting(unit, "NotifyAccess"), "main");
    let start = setting(unit, "ExecStart");
    assert!(start.contains("--systemd-daemon"), "{start}");
    assert!(start.contains("--toolchain-name %i"), "{start}");
    // A machine is a child with devices, namespaces and mounts of its own.
    let text = std::fs::read_to_string(folder().join(unit)).unwrap();
    for harmful in [
        "PrivateDevices=",
        "RestrictNamespaces=",
        "PrivateNetwork=",
        "MemoryDenyWriteExecute=yes",
        "PrivateUsers=",
    ] {
        let set = text.lines().any(|line| line.starts_with(harmful));
        assert!(!set, "{harmful} breaks machines");
    }
}
