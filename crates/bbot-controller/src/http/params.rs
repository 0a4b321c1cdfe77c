//! URL parameters and form bodies: `name=value&...`, percent-encoded, in their order.

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

    proptest! {
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
