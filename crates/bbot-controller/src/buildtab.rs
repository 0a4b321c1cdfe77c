//! The buildtab: which machine, by name, builds for which target configurations.
//!
//! One entry per line, fields separated by blanks, quotes group, `#` starts a comment at a line's
//! beginning. Lines of both eras are read, each by its own rule:
//!
//! ```text
//! <machine-pattern> <name> <target>                          [<argument>...] [~<regex>...]
//! <machine-pattern> <name> <target>[/<environment>] <classes> [<argument>...] [~<regex>...]
//! ```
//!
//! A fourth field that is a list of class names (no `=`, no leading `-` or `~`) makes a line one of the
//! later era; its pattern is then matched component by component, otherwise over the whole name.

use std::collections::BTreeMap;
use std::path::Path;

use crate::pattern::{self, Matching};

/// Something in a buildtab that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{source_name}:{line}:{column}: error: {what}")]
pub struct BuildtabError {
    /// The file's name, as it was given.
    pub source_name: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub what: String,
}

/// A buildtab could not be loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read the buildtab {path}")]
    Read {
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It was read, and a line of it is wrong.
    #[error(transparent)]
    Line(#[from] BuildtabError),
}

/// One line: a target configuration and the machines that build for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Configuration {
    /// Pattern of machine names.
    pub pattern: String,
    /// How the pattern is matched: as the era of the line has it.
    pub matching: Matching,
    /// Name of the configuration.
    pub name: String,
    /// Target triplet.
    pub target: String,
    /// Environment of the worker (later era).
    pub environment: Option<String>,
    /// Classes it belongs to, inherited ones included. A line of 2017 names none, and is of `all` and `default`: every package was built in
    /// every configuration then.
    pub classes: Vec<String>,
    /// Arguments and variables for the build, unquoted.
    pub arguments: Vec<String>,
    /// Further regular expressions that tell a warning, without the `~`.
    pub warning_regexes: Vec<String>,
    /// Line of the file, from 1.
    pub line: usize,
}

impl Configuration {
    /// Whether a machine of this name builds for this configuration.
    #[must_use]
    pub fn takes(&self, machine: &str) -> bool {
        pattern::matches(self.matching, &self.pattern, machine)
    }

    /// Whether it belongs to the class, by itself or by inheritance.
    #[must_use]
    pub fn is_of_class(&self, class: &str) -> bool {
        self.classes.iter().any(|c| c == class)
    }
}

/// The classes of a line that names none.
const EVERY: [&str; 2] = ["all", "default"];

/// All configurations, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buildtab {
    configurations: Vec<Configuration>,
}

/// What is used when no file is given: any machine builds one configuration.
const DEFAULT: &str = "* default x86_64-linux-gnu\n";

impl Default for Buildtab {
    fn default() -> Self {
        Self::parse(DEFAULT, "<default>").expect("the default line is tested to be right")
    }
}

impl Buildtab {
    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be read, or a line is wrong: told with line and column.
    pub fn load(path: &Path) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self::parse(&text, &path.display().to_string())?)
    }

    /// Reads the text of a buildtab; `source` is its name in errors.
    ///
    /// # Errors
    /// The first line that is wrong.
    pub fn parse(text: &str, source: &str) -> Result<Self, BuildtabError> {
        let mut configurations: Vec<Configuration> = Vec::new();
        let mut bases: BTreeMap<String, String> = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line_number = index + 1;
            let fail = |(column, what): (usize, String)| BuildtabError {
                source_name: source.to_owned(),
                line: line_number,
                column,
                what,
            };
            let fields = fields(line).map_err(fail)?;
            if fields.is_empty() {
                continue;
            }
            let configuration =
                configuration(&fields, line, line_number, &mut bases).map_err(fail)?;
            if let Some(first) = configurations
                .iter()
                .find(|c| c.name == configuration.name && c.target == configuration.target)
            {
                return Err(fail((
                    fields[1].column,
                    format!(
                        "configuration {} for target {} is already on line {}",
                        configuration.name, configuration.target, first.line
                    ),
                )));
            }
            configurations.push(configuration);
        }
        for configuration in &mut configurations {
            inherit(&mut configuration.classes, &bases);
        }
        Ok(Self { configurations })
    }

    /// The configurations, in the order of the file.
    #[must_use]
    pub fn configurations(&self) -> &[Configuration] {
        &self.configurations
    }
}

/// A field with where it began.
struct Field {
    column: usize,
    /// Quotes removed.
    text: String,
}

/// Splits a line; an error is a column and a sentence.
fn fields(line: &str) -> Result<Vec<Field>, (usize, String)> {
    let mut fields: Vec<Field> = Vec::new();
    let mut open: Option<Field> = None;
    let mut quote: Option<(char, usize)> = None;
    for (index, c) in line.chars().enumerate() {
        let column = index + 1;
        if let Some((mark, _)) = quote {
            if c == mark {
                quote = None;
            } else if let Some(field) = &mut open {
                field.text.push(c);
            }
        } else if c == ' ' || c == '\t' || c == '\r' {
            fields.extend(open.take());
        } else if c == '#' && fields.is_empty() && open.is_none() {
            return Ok(Vec::new());
        } else {
            let field = open.get_or_insert(Field {
                column,
                text: String::new(),
            });
            if c == '"' || c == '\'' {
                quote = Some((c, column));
            } else if c.is_control() {
                return Err((column, "control character".to_owned()));
            } else {
                field.text.push(c);
            }
        }
    }
    if let Some((mark, column)) = quote {
        return Err((column, format!("unterminated quote {mark}")));
    }
    fields.extend(open);
    Ok(fields)
}

fn configuration(
    fields: &[Field],
    line: &str,
    line_number: usize,
    bases: &mut BTreeMap<String, String>,
) -> Result<Configuration, (usize, String)> {
    let end = line.chars().count() + 1;
    let required = |index: usize, what: &str| match fields.get(index) {
        None => Err((end, format!("{what} expected"))),
        Some(field) if field.text.is_empty() => Err((field.column, format!("empty {what}"))),
        Some(field) => Ok(field),
    };
    let pattern = required(0, "machine name pattern")?.text.clone();
    let name = required(1, "configuration name")?;
    if !name
        .text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "_+.-~".contains(c))
    {
        return Err((
            name.column,
            format!(
                "configuration name {:?} may hold letters, digits and _ + . - ~ only",
                name.text
            ),
        ));
    }
    let target_field = required(2, "target")?;
    let (target, environment) = match target_field.text.split_once('/') {
        None => (target_field.text.clone(), None),
        Some((target, environment)) => {
            if environment.is_empty() || target.is_empty() {
                return Err((
                    target_field.column,
                    "expected <target>/<environment>".to_owned(),
                ));
            }
            (target.to_owned(), Some(environment.to_owned()))
        }
    };

    let mut rest = 3;
    let mut classes = EVERY.map(str::to_owned).to_vec();
    let mut matching = Matching::Plain;
    if let Some(field) = fields.get(3)
        && is_class_list(&field.text)
    {
        classes = class_list(field, bases)?;
        matching = Matching::Components;
        rest = 4;
    } else if let Some(environment) = &environment {
        let column = fields.get(3).map_or(end, |f| f.column);
        return Err((
            column,
            format!(
                "a line with an environment ({environment}) has a list of classes as its fourth field"
            ),
        ));
    }

    let mut arguments = Vec::new();
    let mut warning_regexes = Vec::new();
    for field in &fields[rest.min(fields.len())..] {
        match field.text.strip_prefix('~') {
            Some("") => return Err((field.column, "empty warning regex".to_owned())),
            Some(regex) => warning_regexes.push(regex.to_owned()),
            None if warning_regexes.is_empty() => arguments.push(field.text.clone()),
            None => return Err((field.column, "argument after a warning regex".to_owned())),
        }
    }
    Ok(Configuration {
        pattern,
        matching,
        name: name.text.clone(),
        target,
        environment,
        classes,
        arguments,
        warning_regexes,
        line: line_number,
    })
}

fn is_class_list(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(['-', '~'])
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_+.-: \t".contains(c))
}

/// The classes of a field; `derived:base` also declares what `derived` inherits from.
fn class_list(
    field: &Field,
    bases: &mut BTreeMap<String, String>,
) -> Result<Vec<String>, (usize, String)> {
    let mut classes = Vec::new();
    for word in field.text.split_ascii_whitespace() {
        let (class, base) = match word.split_once(':') {
            None => (word, None),
            Some((class, base)) => (class, Some(base)),
        };
        if class.is_empty() || base.is_some_and(|b| b.is_empty() || b.contains(':')) {
            return Err((
                field.column,
                format!("bad class {word:?}: expected <class> or <class>:<base>"),
            ));
        }
        if let Some(base) = base {
            if let Some(other) = bases.get(class)
                && other != base
            {
                return Err((
                    field.column,
                    format!("class {class} inherits from {other} already, not from {base}"),
                ));
            }
            bases.insert(class.to_owned(), base.to_owned());
            if chain(base, bases).iter().any(|c| c == class) {
                return Err((field.column, format!("class {class} inherits from itself")));
            }
        }
        classes.push(class.to_owned());
    }
    Ok(classes)
}

/// The class and all that it inherits from; ends even for a ring.
fn chain(class: &str, bases: &BTreeMap<String, String>) -> Vec<String> {
    let mut chain = vec![class.to_owned()];
    while let Some(base) = chain.last().and_then(|c| bases.get(c)) {
        if chain.contains(base) {
            break;
        }
        chain.push(base.clone());
    }
    chain
}

fn inherit(classes: &mut Vec<String>, bases: &BTreeMap<String, String>) {
    let mut all: Vec<String> = Vec::new();
    for class in classes.iter() {
        for class in chain(class, bases) {
            if !all.contains(&class) {
                all.push(class);
            }
        }
    }
    *classes = all;
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(line: &str) -> Configuration {
        Buildtab::parse(line, "buildtab").unwrap().configurations()[0].clone()
    }

    #[test]
    fn the_default_takes_any_machine() {
        let tab = Buildtab::default();
        let [only] = tab.configurations() else {
            panic!("one line")
        };
        assert_eq!(
            (only.name.as_str(), only.target.as_str()),
            ("default", "x86_64-linux-gnu")
        );
        assert!(only.takes("debian-12"));
        assert!(only.takes("windows_10-msvc_14"));
    }

    #[test]
    fn a_line_of_2017() {
        let c = one(
            "linux-gcc* linux-gcc_6-O2 x86_64-linux-gnu config.cc.coptions=\"-O2 -g\" cxx=g++ ~\"warning C4[0-9]+: \" ~'my warning'",
        );
        assert_eq!(c.matching, Matching::Plain);
        assert_eq!(c.arguments, ["config.cc.coptions=-O2 -g", "cxx=g++"]);
        assert_eq!(c.warning_regexes, ["warning C4[0-9]+: ", "my warning"]);
        assert!(c.takes("linux-gcc_6-any"));
        assert_eq!(c.classes, ["all", "default"]);
    }

    #[test]
    fn a_line_of_today() {
        let c = one(
            r#"linux_debian_12*-gcc_13.1 linux_debian_12-gcc_13.1-O3 x86_64-linux-gnu "all default" config.cc.coptions="-O3""#,
        );
        assert_eq!(c.matching, Matching::Components);
        assert_eq!(c.classes, ["all", "default"]);
        assert_eq!(c.arguments, ["config.cc.coptions=-O3"]);
        assert!(c.takes("linux_debian_12-gcc_13.1"));
        assert!(!c.takes("linux_debian_12-gcc_13.1-extra"));
        let c = one("w**  w  x86_64-microsoft-win32-msvc14.3/vc143 all");
        assert_eq!(c.environment.as_deref(), Some("vc143"));
        assert_eq!(c.target, "x86_64-microsoft-win32-msvc14.3");
    }

    #[test]
    fn classes_are_inherited() {
        let tab = Buildtab::parse(
            "a** a t \"gcc-O2:gcc gcc:host\"\n# comment\n\n  # another\nb** b t gcc\n",
            "x",
        )
        .unwrap();
        assert!(tab.configurations()[0].is_of_class("host"));
        assert!(tab.configurations()[1].is_of_class("host"));
        assert!(!tab.configurations()[1].is_of_class("gcc-O2"));
    }

    #[test]
    fn errors_name_the_place() {
        for (text, expected) in [
            ("linux", "t:1:6: error: configuration name expected"),
            ("\nlinux gcc", "t:2:10: error: target expected"),
            ("m 'n", "t:1:3: error: unterminated quote '"),
            ("m \"\" t", "t:1:3: error: empty configuration name"),
            (
                "m a/b t",
                "t:1:3: error: configuration name \"a/b\" may hold letters, digits and _ + . - ~ only",
            ),
            ("m a t/", "t:1:5: error: expected <target>/<environment>"),
            (
                "m a t/e",
                "t:1:8: error: a line with an environment (e) has a list of classes as its fourth field",
            ),
            ("m a t ~", "t:1:7: error: empty warning regex"),
            (
                "m a t ~x y",
                "t:1:10: error: argument after a warning regex",
            ),
            (
                "m a t\nm a t",
                "t:2:3: error: configuration a for target t is already on line 1",
            ),
            (
                "m a t \"x:y y:x\"",
                "t:1:7: error: class y inherits from itself",
            ),
            (
                "m a t x:y\nm b t x:z",
                "t:2:7: error: class x inherits from y already, not from z",
            ),
            (
                "m a t :y",
                "t:1:7: error: bad class \":y\": expected <class> or <class>:<base>",
            ),
            ("m a\u{1}", "t:1:4: error: control character"),
        ] {
            assert_eq!(
                Buildtab::parse(text, "t").unwrap_err().to_string(),
                expected,
                "{text:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[ a-c\"'#~:/=*\n-]{0,60}") {
            if let Ok(tab) = Buildtab::parse(&text, "t") {
                for c in tab.configurations() {
                    prop_assert!(!c.name.is_empty() && !c.target.is_empty() && !c.pattern.is_empty());
                }
            }
        }
    }
}
