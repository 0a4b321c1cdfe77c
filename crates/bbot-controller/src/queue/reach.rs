//! Which lanes an agent serves, by what it says of itself with its request.

use bbot_manifest::InteractiveMode;

use super::auxiliary::{self, Auxiliary};
use super::lane::Lane;

/// What an agent serves beyond builds of the plain lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reach {
    /// Whether it takes interactive builds, and others; `None` is neither, since it contradicts itself.
    pub interactive: Option<InteractiveMode>,
    /// The types of services that it asks for, the empty one for builds of none; `None` is any.
    pub services: Option<Vec<String>>,
    /// Whether it gets what no key is named for.
    pub is_default: bool,
    /// The fingerprint of its key, where builds that name it are for it.
    pub fingerprint: Option<String>,
    /// Its auxiliary machines.
    pub auxiliaries: Vec<Auxiliary>,
    /// The memory for them, in KiB; `None` is any.
    pub ram: Option<u64>,
}

impl Default for Reach {
    fn default() -> Self {
        Self {
            interactive: Some(InteractiveMode::False),
            services: None,
            is_default: true,
            fingerprint: None,
            auxiliaries: Vec::new(),
            ram: None,
        }
    }
}

/// What keeps a build from an agent that has a machine for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lack {
    /// Its key is none of those that the build names; or it is a custom bot, and the build names none.
    Key,
    /// It takes no interactive builds; or no others.
    Interactive,
    /// It asks for builds of other services.
    Service,
    /// Its auxiliary machines are not those that the build wants, or its memory is too small for them.
    Auxiliary,
}

impl Reach {
    /// What of a lane it lacks first; `None` when it serves it.
    #[must_use]
    pub fn lacks(&self, lane: &Lane) -> Option<Lack> {
        let is_its = if lane.keys.is_empty() {
            self.is_default
        } else {
            self.fingerprint
                .as_ref()
                .is_some_and(|key| lane.keys.contains(key))
        };
        if !is_its {
            return Some(Lack::Key);
        }
        let other = if lane.interactive {
            InteractiveMode::False
        } else {
            InteractiveMode::True
        };
        if self.interactive.is_none_or(|mode| mode == other) {
            return Some(Lack::Interactive);
        }
        let service = lane.service.as_deref().unwrap_or_default();
        let asks = |services: &Vec<String>| services.iter().any(|asked| asked == service);
        if !self.services.as_ref().is_none_or(asks) {
            return Some(Lack::Service);
        }
        self.auxiliaries_for(lane)
            .is_none()
            .then_some(Lack::Auxiliary)
    }

    /// The room that it takes, in bytes, by and large: what is in it comes from agents.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let services = self.services.iter().flatten().map(|s| (s, size_of_val(s)));
        let machines = self.auxiliaries.iter().map(|a| (&a.name, size_of_val(a)));
        let each = services.chain(machines).map(|(text, own)| text.len() + own);
        let key = self.fingerprint.as_ref().map_or(0, String::len);
        size_of::<Self>() + key + each.sum::<usize>()
    }

    /// The machines, by their numbers, that serve the environments of a lane, in their order.
    #[must_use]
    pub fn auxiliaries_for(&self, lane: &Lane) -> Option<Vec<usize>> {
        auxiliary::choose(&lane.auxiliaries, &self.auxiliaries, self.ram)
    }
}

/// What an agent's mode is when the URL that it asks by says one too; `None` when they contradict each other.
#[must_use]
pub fn narrowed(mode: InteractiveMode, said: Option<InteractiveMode>) -> Option<InteractiveMode> {
    use InteractiveMode::{Both, False, True};
    match (mode, said) {
        (mode, None | Some(Both)) => Some(mode),
        (Both, Some(said)) => Some(said),
        (True, Some(True)) => Some(True),
        (False, Some(False)) => Some(False),
        (True, Some(False)) | (False, Some(True)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::lane::tests::{interactive, of_keys, of_service, with};
    use super::*;
    use InteractiveMode::{Both, False, True};

    #[test]
    fn modes() {
        for (mode, said, expected) in [
            (False, None, Some(False)),
            (False, Some(False), Some(False)),
            (False, Some(True), None),
            (False, Some(Both), Some(False)),
            (True, None, Some(True)),
            (True, Some(False), None),
            (True, Some(True), Some(True)),
            (True, Some(Both), Some(True)),
            (Both, None, Some(Both)),
            (Both, Some(False), Some(False)),
            (Both, Some(True), Some(True)),
            (Both, Some(Both), Some(Both)),
        ] {
            assert_eq!(narrowed(mode, said), expected, "{mode} {said:?}");
        }
    }

    #[test]
    fn who_serves_what() {
        let plain = Lane::default();
        let mode = |mode| Reach {
            interactive: Some(mode),
            ..Reach::default()
        };
        let asks = |services: &[&str]| Reach {
            services: Some(services.iter().map(|s| (*s).to_owned()).collect()),
            ..Reach::default()
        };
        let bot = |is_default, key: Option<&str>| Reach {
            is_default,
            fingerprint: key.map(str::to_owned),
            ..Reach::default()
        };
        let pg = Reach {
            auxiliaries: vec![Auxiliary {
                name: "linux-pg".into(),
                machine: 3,
                ram: 10,
            }],
            ram: Some(10),
            ..Reach::default()
        };
        let small = Reach {
            ram: Some(9),
            ..pg.clone()
        };
        let wants_pg = with(&[("pg", "*-pg")]);
        let all = Lane {
            interactive: true,
            service: Some("ci".into()),
            auxiliaries: wants_pg.auxiliaries.clone(),
            keys: ["k".to_owned()].into(),
        };
        let any = Reach {
            interactive: Some(Both),
            services: Some(vec![String::new(), "ci".into()]),
            fingerprint: Some("k".into()),
            ..pg.clone()
        };
        let neither = Reach {
            interactive: None,
            ..Reach::default()
        };
        for (reach, lane, expected) in [
            (neither.clone(), &plain, Some(Lack::Interactive)),
            (neither, &interactive(), Some(Lack::Interactive)),
            (Reach::default(), &plain, None),
            (Reach::default(), &interactive(), Some(Lack::Interactive)),
            (Reach::default(), &of_service("ci"), None),
            (Reach::default(), &wants_pg, Some(Lack::Auxiliary)),
            (Reach::default(), &of_keys(&["k"]), Some(Lack::Key)),
            (mode(True), &plain, Some(Lack::Interactive)),
            (mode(True), &interactive(), None),
            (mode(Both), &plain, None),
            (mode(Both), &interactive(), None),
            (asks(&[""]), &plain, None),
            (asks(&[""]), &of_service("ci"), Some(Lack::Service)),
            (asks(&["ci", "x"]), &of_service("ci"), None),
            (asks(&["ci"]), &plain, Some(Lack::Service)),
            (asks(&["cI"]), &of_service("ci"), Some(Lack::Service)),
            (bot(false, Some("k")), &plain, Some(Lack::Key)),
            (bot(false, Some("k")), &of_keys(&["j", "k"]), None),
            (bot(false, Some("k")), &of_keys(&["j"]), Some(Lack::Key)),
            (bot(true, Some("k")), &plain, None),
            (bot(true, Some("k")), &of_keys(&["k"]), None),
            (pg.clone(), &wants_pg, None),
            (pg.clone(), &plain, None),
            (small, &wants_pg, Some(Lack::Auxiliary)),
            (any.clone(), &all, None),
            (pg.clone(), &all, Some(Lack::Key)),
        ] {
            assert_eq!(reach.lacks(lane), expected, "{reach:?} {lane:?}");
        }
        assert_eq!(any.auxiliaries_for(&all), Some(vec![3]));
        // Two services and a machine, with what they are called.
        let own = 2 * size_of::<String>() + size_of::<Auxiliary>();
        let names = "k".len() + "ci".len() + "linux-pg".len();
        assert_eq!(any.bytes(), Reach::default().bytes() + own + names);
    }
}
