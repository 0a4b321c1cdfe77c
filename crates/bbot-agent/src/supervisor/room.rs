//! Room: slots, processors and memory, what a machine takes of them and what is left.

use super::api::{Config, MachineView};

/// What there is for all machines together; `None`: no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) slots: Option<u32>,
    pub(super) cpus: Option<u32>,
    pub(super) ram_kib: Option<u64>,
}

impl Limits {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            slots: (config.slots > 0).then_some(config.slots),
            cpus: config.cpu_budget,
            ram_kib: config.ram_budget,
        }
    }

    /// Whether that much is within them.
    pub(super) fn hold(&self, room: Room) -> bool {
        self.slots.is_none_or(|most| room.slots <= most)
            && self.cpus.is_none_or(|most| room.cpus <= most)
            && self.ram_kib.is_none_or(|most| room.ram_kib <= most)
    }
}

/// An amount of room: what one machine needs, or what several take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Room {
    pub(super) slots: u32,
    pub(super) cpus: u32,
    pub(super) ram_kib: u64,
}

impl Room {
    /// What a run of the machine needs. Its manifest's minimum goes before its maximum, and both before what
    /// the operator says.
    pub(super) fn need(config: &Config, machine: &MachineView) -> Self {
        let most = machine.ram_maximum.unwrap_or(u64::MAX);
        let least = machine.ram_minimum.unwrap_or(0);
        Self {
            slots: 1,
            cpus: config.cpus,
            ram_kib: config.ram_kib.min(most).max(least),
        }
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            slots: self.slots.saturating_add(other.slots),
            cpus: self.cpus.saturating_add(other.cpus),
            ram_kib: self.ram_kib.saturating_add(other.ram_kib),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{config, usable};
    use super::*;

    #[test]
    fn memory_of_a_run() {
        for (ram, minimum, maximum, expected) in [
            (1000, None, None, 1000),
            (1000, Some(2000), None, 2000),
            (1000, Some(500), Some(700), 700),
            (1000, None, Some(4000), 1000),
            // A manifest that contradicts itself: it would not run with less.
            (1000, Some(3000), Some(2000), 3000),
        ] {
            let config = Config {
                ram_kib: ram,
                ..config(1)
            };
            let machine = MachineView {
                ram_minimum: minimum,
                ram_maximum: maximum,
                ..usable("m")
            };
            assert_eq!(Room::need(&config, &machine).ram_kib, expected);
        }
    }

    #[test]
    fn each_limit_holds_by_itself() {
        let limits = Limits {
            slots: Some(2),
            cpus: Some(4),
            ram_kib: Some(100),
        };
        let room = |slots, cpus, ram_kib| Room {
            slots,
            cpus,
            ram_kib,
        };
        for (room, expected) in [
            (room(2, 4, 100), true),
            (room(3, 4, 100), false),
            (room(2, 5, 100), false),
            (room(2, 4, 101), false),
        ] {
            assert_eq!(limits.hold(room), expected, "{room:?}");
        }
        let none = Limits::of(&config(0));
        assert!(none.hold(room(u32::MAX, u32::MAX, u64::MAX)));
        assert_eq!(room(2, 4, 100).plus(room(1, 1, 1)), room(3, 5, 101));
    }
}
