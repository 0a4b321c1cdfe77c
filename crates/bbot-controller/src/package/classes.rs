//! Classes of target configurations: `builds: default legacy : -msvc &( +linux +macos ) ; Why.`
//!
//! The classes before the colon (`default` where there are none) are those to begin with. Each term then adds (`+`), takes
//! away (`-`) or keeps only (`&`) what is of its class, or, with `!`, what is not; whatever is added must be of a class before
//! the colon. Several values are read as one expression, of which the first alone may have a colon.

use bbot_manifest::split_comment;

use super::plan::reason;

/// The class that is built where a package names none.
pub const DEFAULT_CLASS: &str = "default";

/// Parentheses within each other, at most.
const DEPTH: usize = 16;

/// One value of `builds`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expression {
    /// The classes before the colon.
    pub underlying: Vec<String>,
    /// The terms, from left to right.
    terms: Vec<Term>,
    /// What is said to whom it leaves out.
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    operation: Operation,
    is_inverted: bool,
    of: Of,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Add,
    Subtract,
    Intersect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Of {
    Class(String),
    Nested(Vec<Term>),
}

/// A value that is no class expression.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ClassError(String);

fn bad<T>(what: impl Into<String>) -> Result<T, ClassError> {
    Err(ClassError(what.into()))
}

impl Expression {
    /// Reads the value of this name (`builds`, `<configuration>-builds`).
    ///
    /// # Errors
    /// It is no class expression: the word that is wrong, and what was expected.
    pub fn parse(name: &str, value: &str) -> Result<Self, ClassError> {
        let (text, comment) = split_comment(value);
        let words = words(&text);
        let is_term = |word: &str| word.starts_with(['+', '-', '&']);
        let end = words.iter().position(|word| *word == ":" || is_term(word));
        let (underlying, rest) = words.split_at(end.unwrap_or(words.len()));
        for class in underlying {
            check_class(class)?;
        }
        let mut rest = match rest {
            [":", ..] if underlying.is_empty() => return bad("classes expected before `:`"),
            [":", rest @ ..] => rest,
            [_, ..] if !underlying.is_empty() => {
                return bad("`:` expected between the classes and the expression");
            }
            rest => rest,
        };
        let terms = terms(&mut rest, 0)?;
        if terms.is_empty() && underlying.is_empty() {
            return bad("empty class expression");
        }
        Ok(Self {
            underlying: underlying.iter().map(|&class| class.to_owned()).collect(),
            terms,
            reason: reason(name, &text, &comment),
        })
    }

    /// How many classes it names.
    #[must_use]
    pub fn size(&self) -> usize {
        self.underlying.len() + size(&self.terms)
    }
}

fn size(terms: &[Term]) -> usize {
    let each = terms.iter().map(|term| match &term.of {
        Of::Class(_) => 1,
        Of::Nested(terms) => 1 + size(terms),
    });
    each.sum()
}

/// The words of a value; a parenthesis is one of its own.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for mut word in text.split_whitespace() {
        while let Some(at) = word.find(['(', ')']) {
            let (before, rest) = word.split_at(at);
            let (parenthesis, after) = rest.split_at(1);
            words.extend([before, parenthesis].into_iter().filter(|w| !w.is_empty()));
            word = after;
        }
        words.extend(Some(word).filter(|w| !w.is_empty()));
    }
    words
}

/// The terms up to the end, or to the closing parenthesis of what is nested.
fn terms(words: &mut &[&str], depth: usize) -> Result<Vec<Term>, ClassError> {
    let mut all = Vec::new();
    loop {
        let word = match words.split_off_first() {
            None if depth > 0 => return bad("`)` expected at the end"),
            None => return Ok(all),
            Some(&")") if depth == 0 => return bad("`)` without `(`"),
            Some(&")") if all.is_empty() => return bad("empty parentheses"),
            Some(&")") => return Ok(all),
            Some(word) => word,
        };
        let Some((operation, name)) = operation(word) else {
            return bad(format!("`{word}` must begin with `+`, `-` or `&`"));
        };
        if all.is_empty() && depth > 0 && operation != Operation::Add {
            return bad(format!(
                "`{word}` must begin with `+`: it is the first within parentheses"
            ));
        }
        let (is_inverted, name) = match name.strip_prefix('!') {
            Some(name) => (true, name),
            None => (false, name),
        };
        let of = if name.is_empty() {
            if words.split_off_first() != Some(&"(") {
                return bad(format!("a class or `(` expected behind `{word}`"));
            }
            if depth == DEPTH {
                return bad(format!("more than {DEPTH} parentheses within each other"));
            }
            Of::Nested(terms(words, depth + 1)?)
        } else {
            check_class(name)?;
            Of::Class(name.to_owned())
        };
        all.push(Term {
            operation,
            is_inverted,
            of,
        });
    }
}

fn operation(word: &str) -> Option<(Operation, &str)> {
    let operation = match word.chars().next()? {
        '+' => Operation::Add,
        '-' => Operation::Subtract,
        '&' => Operation::Intersect,
        _ => return None,
    };
    Some((operation, &word[1..]))
}

fn check_class(name: &str) -> Result<(), ClassError> {
    let good = name.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_+-.".contains(c));
    if good {
        Ok(())
    } else {
        bad(format!(
            "`{name}` is not a class: letters, digits and _ + - ., beginning with a letter, digit or _"
        ))
    }
}

/// Why a target configuration is left out by its classes; `None`: it is not. `belongs` says which classes it is of.
///
/// `is_chosen`: somebody has asked for it by its name, which counts where the package names no classes to begin with.
#[must_use]
pub fn why_not(
    builds: &[Expression],
    is_chosen: bool,
    belongs: impl Fn(&str) -> bool,
) -> Option<String> {
    let first = builds.first().filter(|first| !first.underlying.is_empty());
    match first {
        Some(first) if !first.underlying.iter().any(|class| belongs(class)) => {
            return Some(first.reason.clone());
        }
        None if !is_chosen && !belongs(DEFAULT_CLASS) => {
            return Some(format!(
                "it is not of the class {DEFAULT_CLASS}, and the package names no other"
            ));
        }
        _ => {}
    }
    let mut is_in = true;
    let mut why = None;
    for expression in builds {
        let was_in = is_in;
        apply(&expression.terms, &belongs, &mut is_in);
        if is_in {
            why = None;
        } else if was_in {
            why = Some(expression);
        }
    }
    why.map(|expression| expression.reason.clone())
}

fn apply(terms: &[Term], belongs: &impl Fn(&str) -> bool, is_in: &mut bool) {
    for term in terms {
        let mut is_of = match &term.of {
            Of::Class(class) => belongs(class),
            Of::Nested(terms) => {
                let mut is_in = false;
                apply(terms, belongs, &mut is_in);
                is_in
            }
        };
        is_of ^= term.is_inverted;
        match term.operation {
            Operation::Add => *is_in |= is_of,
            Operation::Subtract => *is_in &= !is_of,
            Operation::Intersect => *is_in &= is_of,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_built(builds: &[&str], classes: &[&str]) -> bool {
        why(builds, classes).is_none()
    }

    fn why(builds: &[&str], classes: &[&str]) -> Option<String> {
        let builds: Vec<Expression> = builds
            .iter()
            .map(|b| Expression::parse("builds", b).unwrap())
            .collect();
        why_not(&builds, false, |class| classes.contains(&class))
    }

    /// What a farm has, by class.
    const LINUX: &[&str] = &["default", "all", "linux", "gcc", "gcc-8+", "host"];
    const OLD: &[&str] = &["all", "linux", "gcc", "legacy"];
    const FAST: &[&str] = &["all", "linux", "gcc", "optimized"];
    const MAC: &[&str] = &["all", "macos", "gcc"];
    const WINDOWS: &[&str] = &["default", "all", "windows", "msvc"];

    /// The examples of the package manager's manual.
    #[test]
    fn examples() {
        for (builds, expected) in [
            (&[][..], [true, false, false, false, true]),
            (&["none"], [false; 5]),
            (&["all"], [true; 5]),
            (&["all : &host"], [true, false, false, false, false]),
            (&["default"], [true, false, false, false, true]),
            (&["default : &host"], [true, false, false, false, false]),
            (&["default legacy"], [true, true, false, false, true]),
            (
                &["default legacy : &host"],
                [true, false, false, false, false],
            ),
            (&["default legacy :"], [true, true, false, false, true]),
            (&["-windows"], [true, false, false, false, false]),
            (&["all : -windows"], [true, true, true, true, false]),
            (&["all : &gcc"], [true, true, true, true, false]),
            (&["all : &gcc-8+"], [true, false, false, false, false]),
            (&["all : &gcc -optimized"], [true, true, false, true, false]),
            (
                &["all : &gcc &( +linux +macos )"],
                [true, true, true, true, false],
            ),
            (&["all : &!gcc"], [false, false, false, false, true]),
            (&["all : -!gcc"], [true, true, true, true, false]),
            (&["all : -( +macos &gcc)"], [true, true, true, false, true]),
            (
                &["all : -all +!( +gcc )"],
                [false, false, false, false, true],
            ),
            // What is not of the classes before the colon is not added.
            (&["default : +legacy"], [true, false, false, false, true]),
            (
                &["default", "-( +linux &gcc )"],
                [false, false, false, false, true],
            ),
            (
                &["all", "-gcc", "+macos"],
                [false, false, false, true, true],
            ),
        ] {
            let built = [LINUX, OLD, FAST, MAC, WINDOWS].map(|classes| is_built(builds, classes));
            assert_eq!(built, expected, "{builds:?}");
        }
    }

    #[test]
    fn the_reason_is_that_of_the_value_that_takes_it_away() {
        for (builds, classes, expected) in [
            (
                &[][..],
                MAC,
                Some("it is not of the class default, and the package names no other"),
            ),
            (
                &["default experimental ; Only modern compilers."],
                MAC,
                Some("\"builds: default experimental\": Only modern compilers."),
            ),
            (
                &["default", "-gcc ; GCC is not supported.", "-windows"],
                LINUX,
                Some("\"builds: -gcc\": GCC is not supported."),
            ),
            (
                &["default", "-gcc ; GCC is not supported.", "-windows"],
                WINDOWS,
                Some("\"builds: -windows\" leaves it out"),
            ),
            (
                &["all", "-gcc ; No.", "+macos", "-macos;Not even there."],
                MAC,
                Some("\"builds: -macos\": Not even there."),
            ),
            (&["all", "-gcc ; No.", "+macos"], MAC, None),
        ] {
            assert_eq!(
                why(builds, classes).as_deref(),
                expected,
                "{builds:?} {classes:?}"
            );
        }
    }

    #[test]
    fn who_is_asked_for_by_name_need_not_be_of_the_default_class() {
        let builds = |text: &str| vec![Expression::parse("builds", text).unwrap()];
        let belongs = |class: &str| OLD.contains(&class);
        assert_eq!(why_not(&[], true, belongs), None);
        assert_eq!(why_not(&builds("-windows"), true, belongs), None);
        for out in ["-linux", "default", "none"] {
            assert!(why_not(&builds(out), true, belongs).is_some(), "{out}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (value, expected) in [
            ("", "empty class expression"),
            (" ; why", "empty class expression"),
            (": -gcc", "classes expected before `:`"),
            (
                "all -gcc",
                "`:` expected between the classes and the expression",
            ),
            ("all : gcc", "`gcc` must begin with `+`, `-` or `&`"),
            ("+gcc gcc", "`gcc` must begin with `+`, `-` or `&`"),
            ("+gcc )", "`)` without `(`"),
            ("+( )", "empty parentheses"),
            ("+( +gcc", "`)` expected at the end"),
            ("+", "a class or `(` expected behind `+`"),
            ("-!", "a class or `(` expected behind `-!`"),
            (
                "+( -gcc )",
                "`-gcc` must begin with `+`: it is the first within parentheses",
            ),
            (
                "+gcc/8",
                "`gcc/8` is not a class: letters, digits and _ + - ., beginning with a letter, digit or _",
            ),
            (
                "all, gcc",
                "`all,` is not a class: letters, digits and _ + - ., beginning with a letter, digit or _",
            ),
        ] {
            assert_eq!(
                Expression::parse("builds", value).unwrap_err().to_string(),
                expected,
                "{value:?}"
            );
        }
        let deep = "+( ".repeat(100_000) + "+a" + &" )".repeat(100_000);
        assert!(Expression::parse("builds", &deep).is_err());
    }

    fn expression() -> impl Strategy<Value = String> {
        let term = ("[-+&]", "!?", "[abc]").prop_map(|(o, i, c)| format!("{o}{i}{c}"));
        let nested = (
            term.clone(),
            proptest::collection::vec(term.clone(), 0..3),
            "[-+&]",
        )
            .prop_map(|(_, rest, o)| format!("{o}( +a {} )", rest.join(" ")));
        proptest::collection::vec(prop_oneof![3 => term, 1 => nested], 0..6)
            .prop_map(|t| t.join(" "))
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[a-c+&!:(); -]{0,40}") {
            let _ = Expression::parse("builds", &text);
        }

        /// Nothing is built that is not of the classes before the colon; and several values are one.
        #[test]
        fn values_are_one_expression_within_the_underlying_set(
            parts in proptest::collection::vec(expression(), 0..4),
            classes in proptest::sample::subsequence(vec!["a", "b", "c", "u"], 0..=4),
        ) {
            let one = format!("u : {}", parts.join(" "));
            let mut many = vec!["u".to_owned()];
            many.extend(parts.into_iter().filter(|p| !p.is_empty()));
            let many: Vec<&str> = many.iter().map(String::as_str).collect();
            let built = is_built(&many, &classes);
            prop_assert_eq!(built, is_built(&[one.as_str()], &classes));
            prop_assert!(!built || classes.contains(&"u"));
        }
    }
}
