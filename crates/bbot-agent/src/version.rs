//! The versions that this agent has and a bootstrap is compared with.

use bbot_manifest::StandardVersion;

/// The version of every part of ours: they are released together.
pub const OWN: &str = env!("CARGO_PKG_VERSION");

/// The names whose versions a bootstrap manifest carries, from the top of the
/// dependencies down (the order in which the seed compares them).
pub const COMPARED: [&str; 4] = ["bbot", "libbbot", "libbpkg", "libbutl"];

/// [`OWN`] as a version.
pub fn own() -> StandardVersion {
    StandardVersion::parse(OWN)
        .expect("the package's version is a standard version; a test says so")
}

/// What `--version` prints.
pub fn text() -> String {
    let mut text = format!("bbot-agent {OWN}\n");
    for name in &COMPARED[1..] {
        text.push_str(&format!("{name} {OWN}\n"));
    }
    text.push_str("Copyright (c) 2026 the bbot authors\nThis is free software released under the MIT license\n");
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn own_version_is_a_standard_version() {
        assert_eq!(super::own().to_string(), super::OWN);
    }

    #[test]
    fn each_part_has_its_own_line() {
        let text = super::text();
        for name in ["bbot-agent", "libbbot", "libbpkg", "libbutl"] {
            let lines = text
                .lines()
                .filter(|l| *l == format!("{name} {}", super::OWN));
            assert_eq!(lines.count(), 1, "{name}");
        }
    }
}
