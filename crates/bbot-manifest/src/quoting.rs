//! Lists in one value: elements parted by blanks, quoted where they hold blanks.
//!
//! One level of quotes is removed: `'` and `"` group, everywhere in an element,
//! and nothing escapes them, backslashes least of all (`-I "C:\x y"` is `-I` and
//! `C:\x y`). This is how the original splits configuration variables, a
//! machine's options and warning regexes.

/// A quote that nothing closes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unterminated quote at character {column} of `{list}`: close it, or remove it")]
pub struct QuotingError {
    /// Where the open quote stands in the list, in code points from 1.
    pub column: usize,
    /// The list.
    pub list: String,
}

/// The elements of a list, their quotes removed. Newlines are blanks.
///
/// # Errors
/// A quote that nothing closes.
pub fn split(list: &str) -> Result<Vec<String>, QuotingError> {
    let mut elements = Vec::new();
    let mut element: Option<String> = None;
    let mut quote: Option<(char, usize)> = None;
    for (i, c) in list.chars().enumerate() {
        match quote {
            Some((open, _)) if c == open => quote = None,
            Some(_) => element.get_or_insert_default().push(c),
            None if c == '"' || c == '\'' => {
                // A pair of quotes makes an element even when it is empty.
                element.get_or_insert_default();
                quote = Some((c, i + 1));
            }
            None if matches!(c, ' ' | '\t' | '\n' | '\r') => elements.extend(element.take()),
            None => element.get_or_insert_default().push(c),
        }
    }
    if let Some((_, column)) = quote {
        return Err(QuotingError {
            column,
            list: list.to_owned(),
        });
    }
    elements.extend(element);
    Ok(elements)
}

/// The list that [`split`] takes apart into these elements.
pub fn join<S: AsRef<str>>(elements: impl IntoIterator<Item = S>) -> String {
    let mut list = String::new();
    for element in elements {
        if !list.is_empty() {
            list.push(' ');
        }
        quote(element.as_ref(), &mut list);
    }
    list
}

fn quote(element: &str, list: &mut String) {
    let special = |c| matches!(c, ' ' | '\t' | '\n' | '\r' | '"' | '\'');
    if !element.is_empty() && !element.contains(special) {
        list.push_str(element);
    } else if !element.contains('"') {
        list.push('"');
        list.push_str(element);
        list.push('"');
    } else {
        // Single quotes stand within double ones and the other way round.
        for (i, part) in element.split('\'').enumerate() {
            if i > 0 {
                list.push_str("\"'\"");
            }
            if !part.is_empty() {
                list.push('\'');
                list.push_str(part);
                list.push('\'');
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn splits_as_the_original() {
        for (list, elements) in [
            ("", &[][..]),
            (" \t\n ", &[]),
            ("a", &["a"]),
            (" a  b\nc\t", &["a", "b", "c"]),
            (
                r#"config.cc.coptions="-O3 -g""#,
                &["config.cc.coptions=-O3 -g"],
            ),
            (r#"'a "b" c' d"#, &["a \"b\" c", "d"]),
            (r#""" x ''"#, &["", "x", ""]),
            (r#"-I "C:\x y\" \s"#, &["-I", r"C:\x y\", r"\s"]),
            (r#"a"b"'c'd"#, &["abcd"]),
        ] {
            assert_eq!(split(list).unwrap(), elements, "{list:?}");
        }
    }

    #[test]
    fn an_open_quote_is_named() {
        let error = split("a 'b c").unwrap_err();
        assert_eq!(error.column, 3);
        assert!(
            error
                .to_string()
                .contains("unterminated quote at character 3")
        );
        assert_eq!(split("\"").unwrap_err().column, 1);
        assert_eq!(split("ж \"'\" '").unwrap_err().column, 7);
    }

    proptest! {
        #[test]
        fn joined_lists_split_again(
            elements in proptest::collection::vec("[a-z\"' \t\n\\\\ж]{0,6}", 0..6)
        ) {
            prop_assert_eq!(split(&join(&elements)).unwrap(), elements);
        }
    }
}
