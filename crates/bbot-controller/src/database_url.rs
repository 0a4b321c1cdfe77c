//! The URL of a PostgreSQL database, and where in it there are secrets: they go on no command line and into no log.

use std::ffi::OsStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use reqwest::Url;

/// Parameters that mean something here; of others sqlx would say in the log what they are.
const KNOWN: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "statement-cache-capacity",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
];

/// Whether it is one; what is wrong is said without the URL.
pub(crate) fn check(url: &str) -> Result<(), String> {
    let is_of_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let parsed = Url::parse(url).ok().filter(|_| is_of_postgres);
    let Some(parsed) = parsed else {
        return Err(
            "it is no URL of a PostgreSQL database: postgres://USER:PASSWORD@HOST/NAME".to_owned(),
        );
    };
    for (name, _) in parsed.query_pairs() {
        if name == "sslpassword" {
            return Err("keys with a passphrase cannot be used: leave sslpassword out, and name a key without one (sslkey)".to_owned());
        }
        let is_option = name == "options" || name.starts_with("options[");
        if !is_option && !KNOWN.contains(&&*name) {
            return Err(format!("there is no parameter {name:?}"));
        }
    }
    Ok(())
}

/// The URL without its passwords, and the one that counts.
pub(crate) fn without_password(url: &str) -> (String, Option<String>) {
    let Ok(mut parsed) = Url::parse(url) else {
        return (url.to_owned(), None);
    };
    let mut password = parsed.password().map(decoded);
    // It has none then, and is otherwise as it was.
    let _ = parsed.set_password(None);
    let is_secret = |name: &str| matches!(name, "password" | "sslpassword");
    for (name, value) in parsed.query_pairs() {
        if name == "password" {
            password = Some(value.into_owned());
        }
    }
    let kept = parsed.query().map(|query| {
        let pairs = query.split('&').filter(|pair| {
            let name = reqwest::Url::parse(&format!("x:?{pair}")).ok();
            let name = name.as_ref().and_then(|url| url.query_pairs().next());
            !name.is_some_and(|(name, _)| is_secret(&name))
        });
        pairs.collect::<Vec<_>>().join("&")
    });
    parsed.set_query(kept.as_deref().filter(|query| !query.is_empty()));
    (parsed.into(), password)
}

/// What a part of a URL says.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        let byte = hex.and_then(|two| u8::from_str_radix(two, 16).ok());
        match (first, byte) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Reads the option's value. (What clap says of a bad value of its own accord has the value in it.)
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parser;

impl TypedValueParser for Parser {
    type Value = String;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<String, clap::Error> {
        let bad = |what: &str| {
            let what = format!("bad value for '--database <URL>': {what}\n");
            clap::Error::raw(ErrorKind::ValueValidation, what).with_cmd(command)
        };
        let url = value.to_str().ok_or_else(|| bad("it is no text"))?;
        check(url).map_err(|what| bad(&what))?;
        Ok(url.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_is_told_apart() {
        for (url, without, password) in [
            (
                "postgres://u:p%40+%zz@h:5/n?sslmode=x",
                "postgres://u@h:5/n?sslmode=x",
                Some("p@+%zz"),
            ),
            ("postgres://u@h/n", "postgres://u@h/n", None),
            ("postgres://h/n?x=a:b@c", "postgres://h/n?x=a:b@c", None),
            ("postgres:///n", "postgres:///n", None),
            (
                "postgres://%2Frun%2Fpostgresql/n",
                "postgres://%2Frun%2Fpostgresql/n",
                None,
            ),
            ("postgres:///n?password=s+%26", "postgres:///n", Some("s &")),
            // As sqlx has it: the last one counts.
            (
                "postgres://u:first@h/n?host=/run&passwor%64=second&port=7&sslpassword=third",
                "postgres://u@h/n?host=/run&port=7",
                Some("second"),
            ),
        ] {
            assert_eq!(
                without_password(url),
                (without.to_owned(), password.map(str::to_owned))
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_url() {
        for good in [
            "postgres://u:secret@h/n",
            "postgresql:///n?host=/run&password=secret&options[search_path]=x",
        ] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        for (bad, expected) in [
            ("mysql://u:secret@h/n", "no URL of a PostgreSQL database"),
            (
                "postgres://u:secret@h:x/n",
                "no URL of a PostgreSQL database",
            ),
            ("secret", "no URL of a PostgreSQL database"),
            ("postgres://h/n?sslpassword=secret", "leave sslpassword out"),
            ("postgres://h/n?pasword=secret", "no parameter \"pasword\""),
        ] {
            let what = check(bad).unwrap_err();
            assert!(
                what.contains(expected) && !what.contains("secret"),
                "{what}"
            );
        }
    }
}
