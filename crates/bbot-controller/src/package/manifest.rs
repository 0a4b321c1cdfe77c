//! Reading a package's manifest: only what is said of builds, since the rest is for its worker.
//!
//! A submission may put values of its own in the place of those of the manifest, as the original's CI requests do: what it says of
//! classes and patterns counts in the place of all that the manifest says of them.

use std::mem;

use bbot_manifest::{ManifestError, Pair, ParseError, Position, split_comment};

use super::classes::Expression;
use super::constraint::Constraint;
use super::{DEFAULT, Package, PackageConfiguration};
use crate::auth;

/// The largest manifest of a package, in bytes.
pub const LARGEST: usize = 256 << 10;

/// Package configurations of a package, at most.
const CONFIGURATIONS: usize = 64;

/// Classes that all of a package's expressions name, and constraints of all of its configurations, at most: each is looked at for
/// each target configuration.
const TERMS: usize = 256;

/// Values of `requires`, at most.
const REQUIREMENTS: usize = 64;

/// Values of `build-auxiliary` of all package configurations, at most.
const AUXILIARIES: usize = 64;

/// Values of `build-bot` of all package configurations, at most: each is a key that is read.
const BOTS: usize = 16;

/// Longest pattern of an auxiliary machine, in bytes.
const PATTERN: usize = 256;

/// Longest key of a custom bot, in bytes: one of 8192 bits takes a quarter.
const KEY: usize = 8 << 10;

/// Longest name of a package configuration or of an auxiliary machine's environment, in bytes.
const NAME: usize = 128;

/// Longest arguments of a package configuration, in bytes.
const ARGUMENTS: usize = 32 << 10;

/// A value that has to do with builds; empty where it is said of the package, else the package configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Name<'a> {
    Builds(&'a str),
    Constraint(&'a str, Excludes),
    Arguments(&'a str),
    /// And the environment's name, which may be empty.
    Auxiliary(&'a str, &'a str),
    Bot(&'a str),
    Requires,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Excludes {
    Yes,
    No,
}

impl<'a> Name<'a> {
    fn of(name: &'a str) -> Option<Self> {
        let owner = |value: &str| match name.strip_suffix(value)? {
            "" => Some(""),
            before => before.strip_suffix('-').filter(|owner| !owner.is_empty()),
        };
        if name == "requires" {
            Some(Self::Requires)
        } else if let Some((owner, environment)) = auxiliary(name) {
            Some(Self::Auxiliary(owner, environment))
        } else if let Some(owner) = owner("build-bot") {
            Some(Self::Bot(owner))
        } else if let Some(owner) = owner("build-include") {
            Some(Self::Constraint(owner, Excludes::No))
        } else if let Some(owner) = owner("build-exclude") {
            Some(Self::Constraint(owner, Excludes::Yes))
        } else if let Some(owner) = owner("build-config").filter(|owner| !owner.is_empty()) {
            Some(Self::Arguments(owner))
        } else {
            owner("builds").map(Self::Builds)
        }
    }
}

/// The package configuration and the environment of a value `[<configuration>-]build-auxiliary[-<environment>]`.
fn auxiliary(name: &str) -> Option<(&str, &str)> {
    let (before, after) = name.split_once("build-auxiliary")?;
    let part = |text: &'_ str, stripped: Option<&'_ str>| {
        text.is_empty() || stripped.is_some_and(|part| !part.is_empty())
    };
    let (owner, environment) = (before.strip_suffix('-'), after.strip_prefix('-'));
    (part(before, owner) && part(after, environment))
        .then(|| (owner.unwrap_or_default(), environment.unwrap_or_default()))
}

/// Whether a part of values' names is one that can stand for something.
fn is_name(name: &str) -> bool {
    let is_good = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
    name.len() <= NAME && name.chars().all(is_good)
}

fn fail<T>(at: Position, what: impl Into<String>) -> Result<T, ParseError> {
    Err(ParseError {
        line: at.line,
        column: at.column,
        what: what.into(),
    })
}

fn invalid<T>(pair: &Pair, why: impl std::fmt::Display) -> Result<T, ParseError> {
    fail(
        pair.value_position,
        format!("invalid package {}: {why}", pair.name),
    )
}

fn many<T>(what: &str, most: usize) -> Result<T, ParseError> {
    fail(
        Position::START,
        format!("the package has more than {most} {what}"),
    )
}

/// Whether a text is meant to be a manifest: it begins with its format's version. Others have files of that name, too.
#[must_use]
pub fn is_manifest(text: &[u8]) -> bool {
    let mut lines = text.split(|byte| matches!(byte, b'\n' | b'\r'));
    let first = lines.find_map(|line| {
        let line = line.trim_ascii_start();
        line.first().filter(|byte| **byte != b'#')
    });
    first == Some(&b':')
}

impl Package {
    /// Reads a package's manifest; `source` is its name in errors. What is not said of builds is passed over.
    ///
    /// # Errors
    /// It is no manifest, or a value that has to do with builds is wrong: told with line and column.
    pub fn read(text: &[u8], source: &str) -> Result<Self, ManifestError> {
        let read = || {
            let manifests = bbot_manifest::parse(text)?;
            let mut package = Self::default();
            for pair in manifests
                .iter()
                .take(1)
                .flat_map(|manifest| &manifest.pairs)
            {
                if let Some(name) = Name::of(&pair.name) {
                    package.add(name, pair)?;
                }
            }
            package.check()
        };
        read().map_err(|e| e.in_source(source))
    }

    /// Puts values in the place of the manifest's: a text of a manifest's values, with the version of the format at its beginning or
    /// without.
    ///
    /// # Errors
    /// It cannot be read, or has a value that has nothing to do with builds: told with line and column.
    pub fn overridden(self, text: &str, source: &str) -> Result<Self, ManifestError> {
        let added = !is_manifest(text.as_bytes());
        let read = || {
            let whole = if added {
                format!(": 1\n{text}")
            } else {
                text.to_owned()
            };
            let manifests = bbot_manifest::parse(whole.as_bytes())?;
            let pairs: Vec<&Pair> = manifests.iter().flat_map(|m| &m.pairs).collect();
            let mut named = Vec::with_capacity(pairs.len());
            for pair in pairs {
                let Some(name) = Name::of(&pair.name) else {
                    return fail(
                        pair.name_position,
                        format!(
                            "`{}` cannot be overridden: builds, build-include, build-exclude, <configuration>-builds and so on, \
                             <configuration>-build-config, build-auxiliary, build-bot and requires can",
                            pair.name
                        ),
                    );
                };
                named.push((name, pair));
            }
            let mut package = self;
            for (name, _) in &named {
                package.forget(*name);
            }
            for (name, pair) in named {
                package.add(name, pair)?;
            }
            package.check()
        };
        read().map_err(|mut e| {
            // The line that is not in their text does not count.
            e.line = e.line.saturating_sub(u64::from(added)).max(1);
            e.in_source(source)
        })
    }

    fn configuration(
        &mut self,
        name: &str,
        pair: &Pair,
    ) -> Result<&mut PackageConfiguration, ParseError> {
        let found = self.configurations.iter().position(|c| c.name == name);
        let at = match found {
            Some(at) => at,
            None => {
                if !is_name(name) {
                    return fail(
                        pair.name_position,
                        format!(
                            "the package configuration's name has other than letters, digits and _ + . -, or is longer than {NAME}"
                        ),
                    );
                }
                self.configurations.push(PackageConfiguration::named(name));
                self.configurations.len() - 1
            }
        };
        Ok(&mut self.configurations[at])
    }

    fn add(&mut self, name: Name<'_>, pair: &Pair) -> Result<(), ParseError> {
        match name {
            Name::Requires => self.requires.push(pair.value.clone()),
            Name::Builds(owner) => {
                let expression = match Expression::parse(&pair.name, &pair.value) {
                    Ok(expression) => expression,
                    Err(e) => return invalid(pair, e),
                };
                let builds = match owner {
                    "" => &mut self.builds,
                    owner => &mut self.configuration(owner, pair)?.builds,
                };
                if !expression.underlying.is_empty() && !builds.is_empty() {
                    return invalid(
                        pair,
                        "only the first of several can have classes before the `:`",
                    );
                }
                builds.push(expression);
            }
            Name::Constraint(owner, excludes) => {
                let constraint =
                    Constraint::parse(&pair.name, &pair.value, excludes == Excludes::Yes);
                let constraint = match constraint {
                    Ok(constraint) => constraint,
                    Err(e) => return invalid(pair, e),
                };
                match owner {
                    "" => self.constraints.push(constraint),
                    owner => self
                        .configuration(owner, pair)?
                        .constraints
                        .push(constraint),
                }
            }
            Name::Auxiliary(owner, environment) => {
                if !is_name(environment) {
                    return fail(
                        pair.name_position,
                        format!(
                            "the environment's name has other than letters, digits and _ + . -, or is longer than {NAME}"
                        ),
                    );
                }
                let (pattern, _) = split_comment(&pair.value);
                let pattern = pattern.trim();
                if pattern.is_empty() || pattern.len() > PATTERN {
                    return invalid(
                        pair,
                        format!("expected a pattern of names of at most {PATTERN} characters"),
                    );
                }
                let auxiliaries = match owner {
                    "" => &mut self.auxiliaries,
                    owner => &mut self.configuration(owner, pair)?.auxiliaries,
                };
                if auxiliaries
                    .insert(environment.to_owned(), pattern.to_owned())
                    .is_some()
                {
                    return fail(
                        pair.name_position,
                        format!("`{}` occurs more than once", pair.name),
                    );
                }
            }
            Name::Bot(owner) => {
                if pair.value.len() > KEY {
                    return invalid(pair, format!("longer than {KEY} characters"));
                }
                let (fingerprint, pem) = match auth::public_key(&pair.value) {
                    Ok(key) => (auth::fingerprint(&key), auth::pem(&key)),
                    Err(e) => return invalid(pair, e),
                };
                let bots = match owner {
                    "" => &mut self.bots,
                    owner => &mut self.configuration(owner, pair)?.bots,
                };
                bots.insert(fingerprint, pem);
                // Before the next one is read: that is what takes time.
                let all = self.configurations.iter().map(|c| c.bots.len());
                if all.sum::<usize>() + self.bots.len() > BOTS {
                    return many("keys of custom bots", BOTS);
                }
            }
            Name::Arguments(owner) => {
                let configuration = self.configuration(owner, pair)?;
                if configuration.arguments.is_some() {
                    return fail(
                        pair.name_position,
                        format!("`{}` occurs more than once", pair.name),
                    );
                }
                let (arguments, _) = split_comment(&pair.value);
                let arguments = arguments.trim();
                if arguments.len() > ARGUMENTS {
                    return invalid(pair, format!("longer than {ARGUMENTS} characters"));
                }
                configuration.arguments = Some(arguments.to_owned());
            }
        }
        Ok(())
    }

    /// Forgets what counts no more when somebody else says a value of this name.
    fn forget(&mut self, name: Name<'_>) {
        let of = |owner: &str, configuration: &PackageConfiguration| {
            owner.is_empty() || owner == configuration.name
        };
        match name {
            Name::Builds(owner) | Name::Constraint(owner, _) => {
                if owner.is_empty() {
                    self.builds.clear();
                    self.constraints.clear();
                }
                for configuration in self.configurations.iter_mut().filter(|c| of(owner, c)) {
                    configuration.builds.clear();
                    configuration.constraints.clear();
                }
            }
            Name::Arguments(owner) => {
                for configuration in self.configurations.iter_mut().filter(|c| of(owner, c)) {
                    configuration.arguments = None;
                }
            }
            Name::Auxiliary(owner, _) => {
                if owner.is_empty() {
                    self.auxiliaries.clear();
                }
                for configuration in self.configurations.iter_mut().filter(|c| of(owner, c)) {
                    configuration.auxiliaries.clear();
                }
            }
            Name::Bot(owner) => {
                if owner.is_empty() {
                    self.bots.clear();
                }
                for configuration in self.configurations.iter_mut().filter(|c| of(owner, c)) {
                    configuration.bots.clear();
                }
            }
            Name::Requires => self.requires.clear(),
        }
    }

    /// It is not more than is reasonable; `default` is the first of its configurations.
    fn check(mut self) -> Result<Self, ParseError> {
        let own = |c: &PackageConfiguration| {
            c.constraints.len() + c.builds.iter().map(Expression::size).sum::<usize>()
        };
        let terms: usize = self.configurations.iter().map(own).sum();
        let common: usize = self.builds.iter().map(Expression::size).sum();
        if self.configurations.len() > CONFIGURATIONS {
            return many("package configurations", CONFIGURATIONS);
        }
        if terms + common + self.constraints.len() > TERMS {
            return many("classes and patterns of target configurations", TERMS);
        }
        let auxiliaries = self.configurations.iter().map(|c| c.auxiliaries.len());
        if auxiliaries.sum::<usize>() + self.auxiliaries.len() > AUXILIARIES {
            return many("auxiliary machines", AUXILIARIES);
        }
        if self.requires.len() > REQUIREMENTS {
            return many("requirements", REQUIREMENTS);
        }
        // Without anything to configure it with it is the same as none.
        for configuration in &mut self.configurations {
            configuration.arguments =
                mem::take(&mut configuration.arguments).filter(|a| !a.is_empty());
        }
        debug_assert_eq!(self.configurations[0].name, DEFAULT);
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
