//! What the tests of the supervisor share.

use super::*;

pub(super) fn config(slots: u32) -> Config {
    Config {
        slots,
        cpus: 1,
        ram_kib: 1000,
        cpu_budget: None,
        ram_budget: None,
        host_cpus: 8,
        controllers: controllers(&["c"]),
        hold: Duration::from_secs(20),
        idle_pause: None,
    }
}

pub(super) fn controllers(arguments: &[&str]) -> Vec<ControllerConfig> {
    arguments
        .iter()
        .map(|argument| {
            let (priority, url) = Priority::split(argument).unwrap();
            ControllerConfig {
                url: url.to_owned(),
                priority,
            }
        })
        .collect()
}

pub(super) fn usable(name: &str) -> MachineView {
    MachineView {
        name: name.to_owned(),
        identity: "1".to_owned(),
        ram_minimum: None,
        ram_maximum: None,
        state: MachineState::Usable,
        exclusive: false,
        kind: "kvm".to_owned(),
    }
}

pub(super) fn unready(name: &str) -> MachineView {
    MachineView {
        state: MachineState::MustBootstrap {
            why: "new".to_owned(),
        },
        ..usable(name)
    }
}
