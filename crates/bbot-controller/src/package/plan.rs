//! Which builds a package becomes: one for each of its configurations and each target configuration of the buildtab that it does
//! not leave out.

use bbot_manifest::Era;
use serde::{Deserialize, Serialize};

use super::classes::{self, Expression};
use super::constraint::{self, Constraint};
use super::{Package, PackageConfiguration};
use crate::buildtab::{Buildtab, Configuration};
use crate::queue::lane::{self, Lane};
use crate::queue::{auxiliary, select};

/// A build to be queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Name of the target configuration.
    pub configuration: String,
    /// Its target.
    pub target: String,
    /// Name of the package configuration.
    pub package_configuration: String,
    /// What it asks of an agent beyond a machine.
    pub lane: Lane,
}

/// A build that there will not be. Kept with the submission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Excluded {
    /// Name of the target configuration.
    pub configuration: String,
    /// Its target.
    pub target: String,
    /// Name of the package configuration.
    pub package_configuration: String,
    /// Why, in a sentence.
    pub why: String,
}

/// The builds of a submission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Those to be queued, in the order of the buildtab.
    pub builds: Vec<Planned>,
    /// Those that the package leaves out, in the same order.
    pub excluded: Vec<Excluded>,
}

impl Plan {
    /// A build in the package's default configuration for each of these target configurations, by name and target.
    #[must_use]
    pub fn of(configurations: &[(&str, &str)]) -> Self {
        let planned = |(name, target): &(&str, &str)| Planned {
            configuration: (*name).to_owned(),
            target: (*target).to_owned(),
            package_configuration: super::DEFAULT.to_owned(),
            lane: Lane::default(),
        };
        Self {
            builds: configurations.iter().map(planned).collect(),
            excluded: Vec::new(),
        }
    }
}

/// A submission that is for a person to look into has other than one build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotOne {
    /// It has none.
    #[error(
        "an interactive submission has to be one build, and this is none: {0}; name a configuration of the buildtab in \"configurations\" \
         that the package does not leave out"
    )]
    None(String),
    /// It has several.
    #[error(
        "an interactive submission has to be one build, and this is {number}: {some}; name one configuration of the buildtab in \
         \"configurations\", and leave out all but one package configuration in \"overrides\" (as in `x-builds: none`)"
    )]
    Several {
        /// How many.
        number: usize,
        /// Some of them.
        some: String,
    },
}

/// So many builds are named at most.
const NAMED: usize = 10;

impl Plan {
    /// Makes sure that it is one build.
    ///
    /// # Errors
    /// It is not.
    pub fn check_one(&self) -> Result<(), NotOne> {
        let some = |all: Vec<String>| {
            let more = all.len().saturating_sub(NAMED);
            let mut text = all.into_iter().take(NAMED).collect::<Vec<_>>().join(", ");
            if more > 0 {
                text.push_str(&format!(" and {more} more"));
            }
            text
        };
        match self.builds.as_slice() {
            [_] => Ok(()),
            [] => {
                let why = |e: &Excluded| {
                    format!(
                        "{} ({}): {}",
                        e.configuration, e.package_configuration, e.why
                    )
                };
                let all = some(self.excluded.iter().map(why).collect());
                Err(NotOne::None(all))
            }
            several => {
                let name = |b: &Planned| {
                    format!(
                        "{} {} ({})",
                        b.configuration, b.target, b.package_configuration
                    )
                };
                Err(NotOne::Several {
                    number: several.len(),
                    some: some(several.iter().map(name).collect()),
                })
            }
        }
    }
}

/// More builds than one submission may have, those that are left out included.
pub const MOST: usize = 10_000;

/// A submission that would be too many builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{package} package configuration(s) in {target} target configuration(s) are more than {MOST} builds: name fewer in \"configurations\""
)]
pub struct TooMany {
    package: usize,
    target: usize,
}

/// The builds of a package. `chosen`: somebody has named these target configurations, and wants no others. `asks`: what the submission asks
/// of agents for each of them.
///
/// # Errors
/// There would be more than [`MOST`].
pub fn plan(
    package: &Package,
    buildtab: &Buildtab,
    chosen: Option<&[String]>,
    asks: &Lane,
) -> Result<Plan, TooMany> {
    let targets: Vec<&Configuration> = buildtab
        .configurations()
        .iter()
        .filter(|c| chosen.is_none_or(|names| names.contains(&c.name)))
        .collect();
    let (ours, theirs) = (package.configurations.len(), targets.len());
    if ours.saturating_mul(theirs) > MOST {
        return Err(TooMany {
            package: ours,
            target: theirs,
        });
    }
    let lanes: Vec<Result<Lane, String>> = package
        .configurations
        .iter()
        .map(|configuration| lane(package, configuration, asks))
        .collect();
    let mut plan = Plan::default();
    for target in targets {
        // What all package configurations have in common is looked at once.
        let common_classes = by_classes(&package.builds, target, chosen.is_some());
        let common_constraints = by_constraints(&package.constraints, target);
        for (configuration, lane) in package.configurations.iter().zip(&lanes) {
            let own = Own::of(configuration);
            let why = match own.builds {
                Some(builds) => by_classes(builds, target, chosen.is_some()),
                None => common_classes.clone(),
            };
            let why = why.or_else(|| match own.constraints {
                Some(constraints) => by_constraints(constraints, target),
                None => common_constraints.clone(),
            });
            let why = why.or_else(|| by_era(configuration, target));
            let lane = why.map_or_else(|| lane.clone(), Err);
            match lane {
                Ok(lane) => plan.builds.push(Planned {
                    configuration: target.name.clone(),
                    target: target.target.clone(),
                    package_configuration: configuration.name.clone(),
                    lane,
                }),
                Err(why) => plan.excluded.push(Excluded {
                    configuration: target.name.clone(),
                    target: target.target.clone(),
                    package_configuration: configuration.name.clone(),
                    why,
                }),
            }
        }
    }
    Ok(plan)
}

/// The lane of the builds in a package configuration; or why there can be none.
fn lane(
    package: &Package,
    configuration: &PackageConfiguration,
    asks: &Lane,
) -> Result<Lane, String> {
    let lane = Lane {
        auxiliaries: package.auxiliaries_of(configuration).clone(),
        keys: package.bots_of(configuration).keys().cloned().collect(),
        ..asks.clone()
    };
    let wanted = lane.auxiliaries.len();
    if wanted > auxiliary::MOST {
        return Err(format!(
            "it asks for {wanted} auxiliary machines, and a task can have {}",
            auxiliary::MOST
        ));
    }
    let length = lane.text().len();
    if length > lane::LONGEST {
        return Err(format!(
            "what it asks of agents (patterns of auxiliary machines, keys of custom bots) takes {length} bytes, and the most is {}",
            lane::LONGEST
        ));
    }
    Ok(lane)
}

/// What counts for a package configuration in the place of what the package says.
struct Own<'a> {
    builds: Option<&'a [Expression]>,
    constraints: Option<&'a [Constraint]>,
}

impl<'a> Own<'a> {
    fn of(configuration: &'a PackageConfiguration) -> Self {
        let PackageConfiguration {
            builds,
            constraints,
            ..
        } = configuration;
        Self {
            builds: Some(builds.as_slice()).filter(|b| !b.is_empty()),
            // Whoever names classes of his own begins anew; whoever only leaves something out does not.
            constraints: Some(constraints.as_slice())
                .filter(|c| !c.is_empty() || !builds.is_empty()),
        }
    }
}

fn by_classes(builds: &[Expression], target: &Configuration, is_chosen: bool) -> Option<String> {
    classes::why_not(builds, is_chosen, |class| target.is_of_class(class))
}

fn by_constraints(constraints: &[Constraint], target: &Configuration) -> Option<String> {
    constraint::why_not(constraints, target.matching, &target.name, &target.target)
}

/// The wire of 2017 has no word for a package configuration: what its agents built in its place would be something else.
fn by_era(configuration: &PackageConfiguration, target: &Configuration) -> Option<String> {
    let says_more = configuration.arguments.is_some();
    (says_more && select::is_for(target, Era::Y2017)).then(|| {
        "its line in the buildtab is one of 2017, whose agents know nothing of package configurations: \
         give the line a list of classes"
            .to_owned()
    })
}

/// A sentence about a value that leaves something out, in the package's words where it has any.
pub(super) fn reason(name: &str, text: &str, comment: &str) -> String {
    let (text, comment) = (short(text, 100), short(comment, 200));
    if comment.is_empty() {
        format!("\"{name}: {text}\" leaves it out")
    } else {
        format!("\"{name}: {text}\": {comment}")
    }
}

/// In one line of so many characters at most.
fn short(text: &str, most: usize) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(most) {
        Some((at, _)) => format!("{}...", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAB: &str = "\
linux**      linux-gcc        x86_64-linux-gnu              \"all default linux gcc\"\n\
linux**      linux-gcc-static x86_64-linux-gnu              \"all linux gcc static\"\n\
windows**    windows-msvc     x86_64-microsoft-win32-msvc14 \"all default windows\"\n\
old*         plain            i686-linux-gnu\n";

    fn of(manifest: &str, chosen: Option<&[&str]>) -> (Vec<String>, Vec<String>) {
        let package = Package::read(format!(": 1\n{manifest}").as_bytes(), "manifest").unwrap();
        let chosen: Option<Vec<String>> =
            chosen.map(|names| names.iter().map(|&n| n.to_owned()).collect());
        let tab = Buildtab::parse(TAB, "t").unwrap();
        let plan = plan(&package, &tab, chosen.as_deref(), &Lane::default()).unwrap();
        let name = |c: &str, p: &str| match p {
            super::super::DEFAULT => c.to_owned(),
            p => format!("{c}/{p}"),
        };
        (
            plan.builds
                .iter()
                .map(|b| name(&b.configuration, &b.package_configuration))
                .collect(),
            plan.excluded
                .iter()
                .map(|e| {
                    format!(
                        "{}: {}",
                        name(&e.configuration, &e.package_configuration),
                        e.why
                    )
                })
                .collect(),
        )
    }

    #[test]
    fn a_package_that_says_nothing_is_built_by_default() {
        let (built, out) = of("name: p\nversion: 1\n", None);
        // A line of 2017 names no classes, and is of those that every package was built in then.
        assert_eq!(built, ["linux-gcc", "windows-msvc", "plain"]);
        assert_eq!(
            out,
            ["linux-gcc-static: it is not of the class default, and the package names no other"]
        );
        let (built, out) = of("", Some(&["linux-gcc-static"]));
        assert_eq!(
            (built.as_slice(), out.len()),
            (&["linux-gcc-static".to_owned()][..], 0)
        );
    }

    #[test]
    fn classes_then_patterns() {
        let manifest = "builds: all : -windows ; No winsock.\nbuild-exclude: **-static ; Needs plugins.\nbuild-exclude: **/i?86-**\n";
        let (built, out) = of(manifest, None);
        assert_eq!(built, ["linux-gcc"]);
        assert_eq!(
            out,
            [
                "linux-gcc-static: \"build-exclude: **-static\": Needs plugins.",
                "windows-msvc: \"builds: all : -windows\": No winsock.",
                "plain: \"build-exclude: **/i?86-**\" leaves it out",
            ]
        );
        let (built, _) = of("builds: none\n", None);
        assert!(built.is_empty());
    }

    #[test]
    fn package_configurations() {
        // The one says its own classes, and so nothing of what all say counts; the other only leaves one out more.
        let manifest = "builds: all\nbuild-exclude: **-static\n\
            network-build-config: config.p.network=true ; Enable the network.\nnetwork-builds: linux ; Only on Linux.\n\
            small-build-config: config.p.small=true\nsmall-build-exclude: linux-gcc ; Too slow.\n";
        let (built, out) = of(manifest, None);
        assert_eq!(
            built,
            [
                "linux-gcc",
                "linux-gcc/network",
                "linux-gcc-static/network",
                "linux-gcc-static/small",
                "windows-msvc",
                "windows-msvc/small",
                "plain",
            ]
        );
        assert_eq!(
            out,
            [
                "linux-gcc/small: \"small-build-exclude: linux-gcc\": Too slow.",
                "linux-gcc-static: \"build-exclude: **-static\" leaves it out",
                "windows-msvc/network: \"network-builds: linux\": Only on Linux.",
                "plain/network: \"network-builds: linux\": Only on Linux.",
                "plain/small: its line in the buildtab is one of 2017, whose agents know nothing of package configurations: \
                 give the line a list of classes",
            ]
        );
    }

    #[test]
    fn one_build_is_one() {
        let package = Package::default();
        let tab = Buildtab::parse(TAB, "t").unwrap();
        let of = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
            let plan = plan(&package, &tab, Some(&names), &Lane::default()).unwrap();
            plan.check_one().map_err(|e| e.to_string())
        };
        assert_eq!(of(&["plain"]), Ok(()));
        let several = of(&["plain", "linux-gcc"]).unwrap_err();
        assert!(
            several.contains("this is 2: linux-gcc x86_64-linux-gnu (default), plain i686-linux-gnu (default); name one"),
            "{several}"
        );
        let none = plan(&package, &tab, None, &Lane::default()).unwrap();
        let none = Plan {
            builds: Vec::new(),
            ..none
        };
        let none = none.check_one().unwrap_err().to_string();
        assert!(
            none.contains("this is none: linux-gcc-static (default): it is not of the class"),
            "{none}"
        );
        let many = Plan::of(&[("c", "t"); 12])
            .check_one()
            .unwrap_err()
            .to_string();
        assert!(
            many.contains("this is 12") && many.contains("and 2 more"),
            "{many}"
        );
    }

    #[test]
    fn lanes_are_of_package_configurations() {
        let manifest = "build-auxiliary-pg: *-postgresql**\nx-build-config: a=b\ny-build-config: c=d\ny-build-auxiliary: *-redis ; Y.\n";
        let mut package = Package::read(format!(": 1\n{manifest}").as_bytes(), "m").unwrap();
        let tab = Buildtab::parse("** c t all\n", "t").unwrap();
        let asks = Lane {
            service: Some("ci".into()),
            ..Lane::default()
        };
        let found = plan(&package, &tab, Some(&["c".to_owned()]), &asks).unwrap();
        let pg = r#"{"service":"ci","auxiliaries":{"pg":"*-postgresql**"}}"#;
        let lanes: Vec<String> = found.builds.iter().map(|b| b.lane.text()).collect();
        assert_eq!(
            lanes,
            [pg, pg, r#"{"service":"ci","auxiliaries":{"":"*-redis"}}"#]
        );
        // Too many, and too long.
        package.auxiliaries = (0..10).map(|n| (n.to_string(), "*".to_owned())).collect();
        package.configurations[1].auxiliaries = [("a".to_owned(), "x".repeat(1024))].into();
        let found = plan(&package, &tab, Some(&["c".to_owned()]), &asks).unwrap();
        assert_eq!(found.builds.len(), 1);
        let why: Vec<&str> = found.excluded.iter().map(|e| e.why.as_str()).collect();
        assert_eq!(
            why[0],
            "it asks for 10 auxiliary machines, and a task can have 9"
        );
        assert!(why[1].starts_with("what it asks of agents"), "{why:?}");
    }

    #[test]
    fn there_is_a_bound() {
        let lines: String = (0..1000).map(|n| format!("* c{n} t default\n")).collect();
        let tab = Buildtab::parse(&lines, "t").unwrap();
        let manifest: String = (0..10).map(|n| format!("c{n}-build-config: a\n")).collect();
        let package = Package::read(format!(": 1\n{manifest}").as_bytes(), "m").unwrap();
        let many = plan(&package, &tab, None, &Lane::default())
            .unwrap_err()
            .to_string();
        assert!(
            many.starts_with("11 package configuration(s) in 1000 target"),
            "{many}"
        );
        assert_eq!(
            plan(&package, &tab, Some(&["c7".to_owned()]), &Lane::default())
                .unwrap()
                .builds
                .len(),
            11
        );
        assert_eq!(
            reason("builds", "a\n b", ""),
            "\"builds: a b\" leaves it out"
        );
        assert!(
            reason("builds", &"ж".repeat(500), &"ж".repeat(500))
                .chars()
                .count()
                < 330
        );
    }

    proptest! {
        /// Each package configuration in each target configuration is either built or left out, and with a reason.
        #[test]
        fn nothing_is_lost(
            builds in proptest::sample::select(vec!["", "builds: all\n", "builds: -linux\n", "builds: linux : -static\n"]),
            exclude in proptest::sample::select(vec!["", "build-exclude: *-gcc**\n", "build-include: **\nbuild-exclude: **\n"]),
            own in proptest::sample::select(vec!["", "x-builds: none\n", "x-build-config: a=b\n", "x-build-exclude: plain\n"]),
            chosen in proptest::option::of(proptest::sample::subsequence(vec!["linux-gcc", "linux-gcc-static", "windows-msvc", "plain"], 0..=4)),
        ) {
            let (built, out) = of(&format!("{builds}{exclude}{own}"), chosen.as_deref());
            let targets = chosen.map_or(4, |c| c.len());
            let configurations = if own.is_empty() { 1 } else { 2 };
            prop_assert_eq!(built.len() + out.len(), targets * configurations);
            prop_assert!(out.iter().all(|line| line.contains(": ")));
            if exclude.starts_with("build-include: **") && builds == "builds: all\n" && own.is_empty() {
                prop_assert!(out.is_empty());
            }
        }
    }
}
