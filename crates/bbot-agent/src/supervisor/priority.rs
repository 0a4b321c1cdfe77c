//! A controller's priority, `[F]DCBA` before its URL: who is asked first, who waits, and who has to go.
//!
//! Each digit means what the one to its right means, and more, so that they are compared as one number from
//! the left: a controller with any D goes before one that has only a C.
//!
//! | digit | a higher one |
//! |---|---|
//! | A | is asked first |
//! | B | and while its task runs, controllers below it are not asked |
//! | C | and one task of a controller below it is interrupted where its own has no room |
//! | D | and all tasks of controllers below it are interrupted |
//! | F | (1, with a D) its task gets all processors of the host |

use std::fmt;

/// A controller's priority (spec of the original, task loop).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Priority {
    dcba: u16,
    boost: bool,
}

/// A priority that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PriorityError {
    /// Not four or five digits.
    #[error(
        "priority {0:?} is not of four or five digits ([F]DCBA, for example 0001=https://ci.example.org)"
    )]
    Length(String),
    /// F is neither 0 nor 1.
    #[error("priority {0:?}: the first of five digits is 0 or 1")]
    Boost(String),
    /// F without D.
    #[error(
        "priority {0:?}: 1 as the first of five digits needs a second digit above 0, which frees the host"
    )]
    BoostAlone(String),
}

impl Priority {
    /// Splits a controller's argument `[<priority>=]<url>`; without a priority it is 0. A URL may contain `=`:
    /// only digits before the first one are a priority.
    ///
    /// # Errors
    ///
    /// When the digits before `=` are no priority.
    pub fn split(argument: &str) -> Result<(Self, &str), PriorityError> {
        match argument.split_once('=') {
            Some((digits, url))
                if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) =>
            {
                Ok((Self::parse(digits)?, url))
            }
            _ => Ok((Self::default(), argument)),
        }
    }

    /// Reads `DCBA` or `FDCBA`.
    ///
    /// # Errors
    ///
    /// When it is not of four or five digits, or F is not 0 or 1, or F is 1 and D is 0.
    pub fn parse(text: &str) -> Result<Self, PriorityError> {
        let is_length = matches!(text.len(), 4 | 5) && text.bytes().all(|b| b.is_ascii_digit());
        let (boost, dcba) = match (is_length, text.len()) {
            (false, _) => return Err(PriorityError::Length(text.to_owned())),
            (true, 5) => match text.split_at(1) {
                ("0", rest) => (false, rest),
                ("1", rest) => (true, rest),
                _ => return Err(PriorityError::Boost(text.to_owned())),
            },
            (true, _) => (false, text),
        };
        let dcba = dcba
            .parse()
            .map_err(|_| PriorityError::Length(text.to_owned()))?;
        if boost && dcba < 1000 {
            return Err(PriorityError::BoostAlone(text.to_owned()));
        }
        Ok(Self { dcba, boost })
    }

    /// Who is asked first: the higher.
    #[must_use]
    pub fn preference(self) -> u16 {
        self.dcba
    }

    /// Whether a controller of priority `other` is not asked while a task of this one runs.
    #[must_use]
    pub fn holds_back(self, other: Self) -> bool {
        self.dcba / 10 > other.dcba / 10
    }

    /// Whether a task of this one may interrupt one of `other` where it has no room.
    #[must_use]
    pub fn interrupts(self, other: Self) -> bool {
        self.dcba / 100 > other.dcba / 100
    }

    /// Whether a task of this one interrupts each of `other`.
    #[must_use]
    pub fn interrupts_all(self, other: Self) -> bool {
        self.dcba / 1000 > other.dcba / 1000
    }

    /// Whether its tasks have the host for themselves, bootstraps included.
    #[must_use]
    pub fn clears_host(self) -> bool {
        self.dcba >= 1000
    }

    /// Whether its tasks get all processors of the host.
    #[must_use]
    pub fn is_boosted(self) -> bool {
        self.boost
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.boost {
            f.write_str("1")?;
        }
        write!(f, "{:04}", self.dcba)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Priority {
        Priority::parse(text).unwrap()
    }

    #[test]
    fn an_argument_is_a_url_with_or_without_a_priority() {
        for (argument, priority, url) in [
            ("http://c", "0000", "http://c"),
            ("0001=http://c", "0001", "http://c"),
            ("11000=http://c?x=y", "11000", "http://c?x=y"),
            ("01000=http://c", "1000", "http://c"),
            ("http://c/?a=1", "0000", "http://c/?a=1"),
            ("=http://c", "0000", "=http://c"),
        ] {
            let (read, rest) = Priority::split(argument).unwrap();
            assert_eq!((read.to_string().as_str(), rest), (priority, url));
        }
        for wrong in ["1=u", "123=u", "123456=u", "21000=u", "10999=u"] {
            let error = Priority::split(wrong).unwrap_err().to_string();
            assert!(error.contains(wrong.trim_end_matches("=u")), "{error}");
        }
        for wrong in ["", "12a4", "-001", "٠٠٠١"] {
            assert!(Priority::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_digit_means_what_those_to_its_right_mean_and_more() {
        // (this, other, is preferred, holds back, interrupts, interrupts all)
        for (one, other, expected) in [
            ("0000", "0000", [false; 4]),
            ("0002", "0001", [true, false, false, false]),
            ("0010", "0009", [true, true, false, false]),
            ("0100", "0099", [true, true, true, false]),
            ("1000", "0999", [true, true, true, true]),
            ("0999", "1000", [false; 4]),
            ("2000", "1999", [true; 4]),
            ("1110", "1101", [true, true, false, false]),
        ] {
            let (one, other) = (p(one), p(other));
            let got = [
                one.preference() > other.preference(),
                one.holds_back(other),
                one.interrupts(other),
                one.interrupts_all(other),
            ];
            assert_eq!(got, expected, "{one} {other}");
        }
        assert!(p("11000").is_boosted() && !p("1000").is_boosted());
        assert!(p("1000").clears_host() && !p("0999").clears_host());
    }
}
