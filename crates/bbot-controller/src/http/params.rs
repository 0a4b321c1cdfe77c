//! URL parameters and form bodies: `name=value&...`, percent-encoded, in their order.

use serde::de::value::MapDeserializer;
use serde::de::{self, DeserializeOwned, Deserializer, IntoDeserializer, Visitor};
use serde::forward_to_deserialize_any;

use super::problem::Problem;

/// The parameters in their order. A `%` that begins no escape is itself; what is not UTF-8 is replaced.
pub(super) fn parse(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decode(name), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let escaped = bytes.get(i + 1..i + 3).and_then(|hex| {
            let digit = |b: u8| char::from(b).to_digit(16);
            let value = digit(hex[0])? * 16 + digit(hex[1])?;
            u8::try_from(value).ok()
        });
        match (bytes[i], escaped) {
            (b'%', Some(byte)) => {
                decoded.push(byte);
                i += 3;
            }
            (b'+', _) => {
                decoded.push(b' ');
                i += 1;
            }
            (byte, _) => {
                decoded.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Text as part of a URL: everything but letters, digits and `-._~` is escaped.
pub(super) fn encode(text: &str) -> String {
    use std::fmt::Write as _;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// The value of the first parameter of this name.
pub(super) fn get<'a>(parameters: &'a [(String, String)], name: &str) -> Option<&'a str> {
    parameters
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, v)| v.as_str())
}

/// Without those that have no value: that is how a form sends what was left empty.
pub(super) fn without_empty(mut parameters: Vec<(String, String)>) -> Vec<(String, String)> {
    parameters.retain(|(_, value)| !value.is_empty());
    parameters
}

/// The parameters as a structure. One that it does not know, that is given twice or has a wrong value is refused.
pub(super) fn read<T: DeserializeOwned>(parameters: Vec<(String, String)>) -> Result<T, Problem> {
    let values = parameters
        .into_iter()
        .map(|(name, value)| (name.clone(), Value { name, value }));
    T::deserialize(MapDeserializer::new(values)).map_err(|Wrong(sentence)| Problem::bad(sentence))
}

/// What is wrong with a parameter.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Wrong(String);

impl de::Error for Wrong {
    fn custom<T: std::fmt::Display>(sentence: T) -> Self {
        Self(sentence.to_string())
    }

    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        let known = known.join(", ");
        Self(format!("unknown parameter {field:?}; there are: {known}"))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self(format!("parameter {field} is given twice"))
    }
}

/// The value of one parameter.
struct Value {
    name: String,
    value: String,
}

impl Value {
    fn wrong(&self, what: &dyn std::fmt::Display) -> Wrong {
        Wrong(format!("parameter {}: {what}", self.name))
    }
}

impl IntoDeserializer<'_, Wrong> for Value {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Value {
    type Error = Wrong;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_string(self.value)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        visitor.visit_some(self)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.value.parse() {
            Ok(number) => visitor.visit_i64(number),
            Err(_) => Err(self.wrong(&format_args!("{:?} is not a number", self.value))),
        }
    }

    /// One without a value is set.
    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Wrong> {
        match self.value.as_str() {
            "" | "1" | "true" => visitor.visit_bool(true),
            "0" | "false" => visitor.visit_bool(false),
            _ => Err(self.wrong(&"1 or 0")),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Wrong> {
        if !words.contains(&self.value.as_str()) {
            let words = words.join(", ");
            return Err(self.wrong(&format_args!("{:?} is not one of {words}", self.value)));
        }
        visitor.visit_enum(self.value.into_deserializer())
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct seq
        tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn table() {
        let pair = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        for (text, expected) in [
            ("", vec![]),
            ("build-task", vec![pair("build-task", "")]),
            (
                "build-task&r=pkg%3Acppget.org%2Fstable&r=x",
                vec![
                    pair("build-task", ""),
                    pair("r", "pkg:cppget.org/stable"),
                    pair("r", "x"),
                ],
            ),
            (
                "a=b+c&&d=%2&e=%zz%41",
                vec![pair("a", "b c"), pair("d", "%2"), pair("e", "%zzA")],
            ),
            ("a=%ff", vec![pair("a", "\u{fffd}")]),
            ("a=b=c", vec![pair("a", "b=c")]),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, rename_all = "lowercase")]
    enum Word {
        One,
        Two,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Asked {
        text: Option<String>,
        number: Option<i64>,
        flag: bool,
        word: Option<Word>,
    }

    #[test]
    fn as_a_structure() {
        let all = Asked {
            text: Some("a b".into()),
            number: Some(-7),
            flag: true,
            word: Some(Word::Two),
        };
        let asked = |text: &str| read::<Asked>(parse(text)).map_err(|p| p.sentence);
        assert_eq!(asked("text=a+b&number=-7&flag&word=two"), Ok(all));
        assert_eq!(asked("flag=0"), Ok(Asked::default()));
        for (text, expected) in [
            (
                "x=1",
                "unknown parameter \"x\"; there are: text, number, flag, word",
            ),
            ("number=1&number=2", "parameter number is given twice"),
            ("number=1x", "parameter number: \"1x\" is not a number"),
            (
                "number=99999999999999999999",
                "parameter number: \"99999999999999999999\" is not a number",
            ),
            ("flag=yes", "parameter flag: 1 or 0"),
            (
                "word=three",
                "parameter word: \"three\" is not one of one, two",
            ),
        ] {
            assert_eq!(asked(text), Err(expected.to_owned()), "{text}");
        }
        let given = without_empty(parse("text=&number=3"));
        assert_eq!(read::<Asked>(given).map(|a| a.number), Ok(Some(3)));
    }

    proptest! {
        #[test]
        fn any_parameters_are_read_or_refused(text in ".{0,40}") {
            let _ = read::<Asked>(parse(&text));
        }

        #[test]
        fn what_is_encoded_comes_back(name in ".{0,12}", value in ".{0,12}") {
            let text = format!("x=&{}={}", encode(&name), encode(&value));
            let parsed = parse(&text);
            prop_assert_eq!(parsed.last(), Some(&(name, value)));
        }

        #[test]
        fn any_bytes_are_read(text in ".{0,40}") {
            let _ = parse(&text);
        }
    }
}
