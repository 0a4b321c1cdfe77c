//! What a package says of its own builds: for which target configurations it is built, and in which package
//! configurations. All of it is a function of plain data.
//!
//! ```text
//!   manifest      values of a package manifest, and those that a submission puts in their place
//!   classes       `builds: all : &gcc -windows`
//!   constraint    `build-exclude: windows**/i?86-** ; Linker crash.`
//!   plan          a package and the buildtab: which builds that makes, and why others are left out
//! ```

pub mod classes;
pub mod constraint;
pub mod manifest;
pub mod plan;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use classes::Expression;
use constraint::Constraint;

/// The package configuration that every package has.
pub const DEFAULT: &str = "default";

/// What a package says of its builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Classes of target configurations, where a package configuration names none.
    pub builds: Vec<Expression>,
    /// Target configurations that are left out or put in, where a package configuration says nothing of it.
    pub constraints: Vec<Constraint>,
    /// Package configurations; [`DEFAULT`] is the first.
    pub configurations: Vec<PackageConfiguration>,
    /// What else the package requires (`requires`).
    pub requires: Vec<String>,
    /// Patterns of auxiliary machines by the names of their environments, where a package configuration names none.
    pub auxiliaries: BTreeMap<String, String>,
    /// Keys of custom bots, where a package configuration names none.
    pub bots: BotKeys,
}

/// Public keys of custom bots in PEM form, by their fingerprints.
pub type BotKeys = BTreeMap<String, String>;

/// A package configuration: `<name>-build-config` and what goes with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackageConfiguration {
    /// Its name.
    pub name: String,
    /// What it is configured with.
    pub arguments: Option<String>,
    /// Its own classes of target configurations; none: the package's.
    pub builds: Vec<Expression>,
    /// Target configurations of its own that are left out or put in.
    pub constraints: Vec<Constraint>,
    /// Auxiliary machines of its own; none: the package's.
    pub auxiliaries: BTreeMap<String, String>,
    /// Custom bots of its own; none: the package's.
    pub bots: BotKeys,
}

impl PackageConfiguration {
    fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }
}

impl Default for Package {
    fn default() -> Self {
        Self {
            builds: Vec::new(),
            constraints: Vec::new(),
            configurations: vec![PackageConfiguration::named(DEFAULT)],
            requires: Vec::new(),
            auxiliaries: BTreeMap::new(),
            bots: BotKeys::new(),
        }
    }
}

/// What tasks say of a package beyond its name, version and source. Kept with its submission.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Particulars {
    /// What else it requires.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requires: Vec<String>,
    /// Package configurations of which there is more to say than the name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configurations: Vec<ParticularConfiguration>,
    /// Keys of custom bots that its builds name, by which their results are checked.
    #[serde(default, skip_serializing_if = "BotKeys::is_empty")]
    pub bots: BotKeys,
}

/// What tasks say of a package configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParticularConfiguration {
    /// Its name.
    pub name: String,
    /// What it is configured with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}

impl Package {
    /// The auxiliary machines of a package configuration.
    #[must_use]
    pub fn auxiliaries_of<'a>(
        &'a self,
        configuration: &'a PackageConfiguration,
    ) -> &'a BTreeMap<String, String> {
        match configuration.auxiliaries.is_empty() {
            true => &self.auxiliaries,
            false => &configuration.auxiliaries,
        }
    }

    /// The keys of the custom bots of a package configuration.
    #[must_use]
    pub fn bots_of<'a>(&'a self, configuration: &'a PackageConfiguration) -> &'a BotKeys {
        match configuration.bots.is_empty() {
            true => &self.bots,
            false => &configuration.bots,
        }
    }

    /// What its tasks say of it.
    #[must_use]
    pub fn particulars(&self) -> Particulars {
        let configurations = self.configurations.iter().filter_map(|configuration| {
            Some(ParticularConfiguration {
                name: configuration.name.clone(),
                arguments: Some(configuration.arguments.clone()?),
            })
        });
        Particulars {
            requires: self.requires.clone(),
            configurations: configurations.collect(),
            bots: self
                .configurations
                .iter()
                .flat_map(|configuration| self.bots_of(configuration).clone())
                .collect(),
        }
    }
}

impl Particulars {
    /// What there is to say of this package configuration.
    #[must_use]
    pub fn of(&self, configuration: &str) -> Option<&ParticularConfiguration> {
        self.configurations.iter().find(|c| c.name == configuration)
    }
}
