//! Matching of machine names against the patterns of a buildtab, in the two ways that the original had.
//!
//! *Plain* (2017): `*` stands for any run of characters, `?` for one, over the whole name.
//! *Component-wise* (later): a dash separates components; `*`, `?` and `[...]` stay within one, `**`
//! crosses them, and a component that is only `*` also matches an absent one. `linux**` so matches
//! `linux-gcc`, and `linux*-gcc*` does not match `linux_debian_12-gcc_13-O2`.

/// Which of the two ways a pattern is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matching {
    /// The way of 2017: wildcards over the whole name.
    Plain,
    /// Today's way: wildcards within dash-separated components.
    Components,
}

/// Whether the name matches the pattern.
#[must_use]
pub fn matches(matching: Matching, pattern: &str, name: &str) -> bool {
    match matching {
        Matching::Plain => wildcard(pattern, name, Brackets::Literal),
        Matching::Components => components(pattern, name),
    }
}

fn components(pattern: &str, name: &str) -> bool {
    let pattern = split(pattern);
    let name: Vec<&str> = name.split('-').collect();

    // reached[j]: the pattern's components so far can match the name's first j. Names come from agents
    // and may have thousands of components, so there is no recursion and no backtracking here.
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for component in pattern {
        let mut next = vec![false; name.len() + 1];
        for j in 0..=name.len() {
            if !reached[j] {
                continue;
            }
            match component.as_str() {
                "**" => {
                    // From the first place on everything can be reached; nothing is left to add.
                    next[j..].fill(true);
                    break;
                }
                "*" => {
                    next[j] = true;
                    if j < name.len() {
                        next[j + 1] = true;
                    }
                }
                _ if j < name.len() && wildcard(&component, name[j], Brackets::Class) => {
                    next[j + 1] = true;
                }
                _ => {}
            }
        }
        reached = next;
    }
    reached[name.len()]
}

/// The components of a pattern. `a**b` is `a*`, any components, `*b`; a dash or star within brackets is a
/// member of the class and parts nothing.
fn split(pattern: &str) -> Vec<String> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut components = vec![String::new()];
    let mut i = 0;
    while i < chars.len() {
        let last = components.len() - 1;
        match chars[i] {
            '-' => components.push(String::new()),
            '*' if chars.get(i + 1) == Some(&'*') => {
                components[last].push('*');
                components.extend(["**".to_owned(), "*".to_owned()]);
                i += 1;
            }
            '[' => {
                let used = class(&chars[i + 1..]).map_or(0, |(_, used)| used);
                components[last].extend(&chars[i..=i + used]);
                i += used;
            }
            c => components[last].push(c),
        }
        i += 1;
    }
    components
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Brackets {
    Literal,
    Class,
}

/// `*` and `?` (and bracket classes) over a whole text, in time proportional to the product of the lengths.
fn wildcard(pattern: &str, text: &str, brackets: Brackets) -> bool {
    let pattern = items(pattern, brackets);
    let text: Vec<char> = text.chars().collect();
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last `*`: just behind it, with one more character given to it.
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some(Item::Many) => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(item) if item.takes(text[t]) => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((after, from)) => {
                    star = Some((after, from + 1));
                    p = after;
                    t = from + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|item| matches!(item, Item::Many))
}

enum Item {
    Many,
    One,
    Literal(char),
    Class {
        ranges: Vec<(char, char)>,
        negated: bool,
    },
}

impl Item {
    fn takes(&self, c: char) -> bool {
        match self {
            Self::Many => false,
            Self::One => true,
            Self::Literal(l) => *l == c,
            Self::Class { ranges, negated } => {
                ranges.iter().any(|(a, b)| (*a..=*b).contains(&c)) != *negated
            }
        }
    }
}

fn items(pattern: &str, brackets: Brackets) -> Vec<Item> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut items = Vec::new();
    let mut i = 0;
    while i < chars.len() {
        match chars[i] {
            '*' => items.push(Item::Many),
            '?' => items.push(Item::One),
            '[' if brackets == Brackets::Class => match class(&chars[i + 1..]) {
                Some((item, used)) => {
                    items.push(item);
                    i += used;
                }
                // An unclosed bracket is itself.
                None => items.push(Item::Literal('[')),
            },
            c => items.push(Item::Literal(c)),
        }
        i += 1;
    }
    items
}

/// The class after an opening bracket, and how many characters it took, the closing one included.
fn class(rest: &[char]) -> Option<(Item, usize)> {
    let negated = rest.first() == Some(&'!');
    let start = usize::from(negated);
    // A closing bracket in first place is a member.
    let close = start + 1 + rest.get(start + 1..)?.iter().position(|c| *c == ']')?;
    let members = &rest[start..close];
    let mut ranges = Vec::new();
    let mut i = 0;
    while i < members.len() {
        if i + 2 < members.len() && members[i + 1] == '-' {
            ranges.push((members[i], members[i + 2]));
            i += 3;
        } else {
            ranges.push((members[i], members[i]));
            i += 1;
        }
    }
    Some((Item::Class { ranges, negated }, close + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_takes_no_time() {
        let name = "-".repeat(100_000);
        let begin = std::time::Instant::now();
        assert!(matches(Matching::Components, "**", &name));
        assert!(!matches(Matching::Components, "**a**b**", &name));
        // A second is a hundred times what it takes; without the bound it is some more.
        assert!(begin.elapsed() < std::time::Duration::from_secs(1));
    }
    use proptest::prelude::*;

    #[test]
    fn plain() {
        for (pattern, name, expected) in [
            ("*", "linux-gcc", true),
            ("linux*", "linux-gcc-O2", true),
            ("linux*gcc", "linux-debian-gcc", true),
            ("linux-gcc", "linux-gcc", true),
            ("linux-gcc", "linux-gcc-O2", false),
            ("linux-gcc_?", "linux-gcc_6", true),
            ("linux-gcc_?", "linux-gcc_", false),
            ("[a]", "[a]", true),
            ("[a]", "a", false),
            ("", "", true),
            ("", "a", false),
            ("***", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
        ] {
            assert_eq!(
                matches(Matching::Plain, pattern, name),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn component_wise() {
        for (pattern, name, expected) in [
            ("linux**", "linux-gcc", true),
            ("linux**", "linux_debian_12-gcc_13-O2", true),
            ("linux**", "windows-msvc", false),
            ("**", "anything-at-all", true),
            ("*", "linux", true),
            ("*", "linux-gcc", false),
            ("linux*-gcc*", "linux_debian_12-gcc_13.1", true),
            ("linux*-gcc*", "linux_debian_12-gcc_13-O2", false),
            ("linux*-gcc*-*", "linux_debian_12-gcc_13-O2", true),
            ("linux*-gcc*-*", "linux_debian_12-gcc_13", true),
            ("linux-*-O2", "linux-O2", true),
            (
                "linux_debian_1[0-2]-gcc**",
                "linux_debian_12-gcc_14-ndebug_O3",
                true,
            ),
            ("linux_debian_1[!0]-gcc**", "linux_debian_10-gcc_14", false),
            ("a[b", "a[b", true),
            ("linux", "linux-gcc", false),
            (
                "linux_debian_12*-gcc_13.1",
                "linux_debian_12-gcc_13.1",
                true,
            ),
        ] {
            assert_eq!(
                matches(Matching::Components, pattern, name),
                expected,
                "{pattern} {name}"
            );
        }
    }

    #[test]
    fn hostile_names_end_soon() {
        let name = "a-".repeat(50_000);
        assert!(matches(Matching::Components, "**", &name));
        assert!(!matches(Matching::Plain, "*b*b*b*c", &name));
    }

    proptest! {
        #[test]
        fn any_pattern_and_name_end(pattern in "[a*?\\[\\]!-]{0,12}", name in "[a-c-]{0,12}") {
            let _ = matches(Matching::Plain, &pattern, &name);
            let _ = matches(Matching::Components, &pattern, &name);
        }

        #[test]
        fn a_name_matches_itself(name in "[a-z0-9_.+]{1,8}(-[a-z0-9_.+]{1,8}){0,4}") {
            prop_assert!(matches(Matching::Plain, &name, &name));
            prop_assert!(matches(Matching::Components, &name, &name));
            let prefix = format!("{}**", &name[..1]);
            prop_assert!(matches(Matching::Components, &prefix, &name));
        }
    }
}
