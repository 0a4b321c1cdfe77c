//! Lanes: what a build asks of an agent beyond a machine for its configuration. Builds wait by configuration and lane, so that a
//! look for a task passes over nothing that the agent cannot have.
//!
//! ```text
//!   ''                                      the plain lane: nothing more
//!   {"interactive":true}                    it stops for a person to log in
//!   {"service":"ci"}                        it is of a service, by whose type agents may ask
//!   {"auxiliaries":{"pg":"*-postgresql**"}} machines beside its own, by the name of their environment
//!   {"keys":["4ae9..."]}                    only agents with one of these keys
//! ```

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// The longest text of a lane, in bytes: it is in the queue's indexes.
pub const LONGEST: usize = 1024;

/// The longest type of a service, in bytes.
pub const SERVICE: usize = 64;

/// What a build asks of an agent beyond a machine for its configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lane {
    /// It stops for a person to log in.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub interactive: bool,
    /// The type of the service that its submission is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Patterns of auxiliary machines, by the names of their environments.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub auxiliaries: BTreeMap<String, String>,
    /// Fingerprints of the keys of custom bots: no others build it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub keys: BTreeSet<String>,
}

/// A text that is no lane.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the text of a lane")]
pub struct BadLane(pub String);

impl Lane {
    /// Whether it asks for nothing.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::default()
    }

    /// The one text form, in the store: the same for the same lane, and empty for the plain one.
    #[must_use]
    pub fn text(&self) -> String {
        if self.is_plain() {
            return String::new();
        }
        // Its keys are text, so that it can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// It is none.
    pub fn parse(text: &str) -> Result<Self, BadLane> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(text).map_err(|_| BadLane(text.to_owned()))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn interactive() -> Lane {
        Lane {
            interactive: true,
            ..Lane::default()
        }
    }

    pub(crate) fn of_service(kind: &str) -> Lane {
        Lane {
            service: Some(kind.to_owned()),
            ..Lane::default()
        }
    }

    pub(crate) fn with(auxiliaries: &[(&str, &str)]) -> Lane {
        let owned = |(name, pattern): &(&str, &str)| ((*name).to_owned(), (*pattern).to_owned());
        Lane {
            auxiliaries: auxiliaries.iter().map(owned).collect(),
            ..Lane::default()
        }
    }

    pub(crate) fn of_keys(keys: &[&str]) -> Lane {
        Lane {
            keys: keys.iter().map(|key| (*key).to_owned()).collect(),
            ..Lane::default()
        }
    }

    #[test]
    fn lanes_have_one_text_form() {
        for (lane, text) in [
            (Lane::default(), ""),
            (interactive(), r#"{"interactive":true}"#),
            (of_service("ci"), r#"{"service":"ci"}"#),
            (
                with(&[("b", "*-x"), ("", "*-pg")]),
                r#"{"auxiliaries":{"":"*-pg","b":"*-x"}}"#,
            ),
            (of_keys(&["b", "a"]), r#"{"keys":["a","b"]}"#),
        ] {
            assert_eq!(lane.text(), text);
            assert_eq!(Lane::parse(text), Ok(lane));
        }
        for text in ["{", "{\"other\":1}", "{\"keys\":1}", "plain"] {
            assert_eq!(Lane::parse(text), Err(BadLane(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            interactive: bool,
            service in proptest::option::of(".{1,8}"),
            auxiliaries in proptest::collection::btree_map(".{0,4}", ".{0,8}", 0..4),
            keys in proptest::collection::btree_set("[0-9a-f]{4}", 0..3),
        ) {
            let lane = Lane { interactive, service, auxiliaries, keys };
            prop_assert_eq!(Lane::parse(&lane.text()), Ok(lane.clone()));
            prop_assert_eq!(lane.text().is_empty(), lane.is_plain());
        }
    }
}
