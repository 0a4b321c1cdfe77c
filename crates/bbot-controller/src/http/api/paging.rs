//! Lists in pages: a page ends with what the next one begins after, so that it costs the same however long the list is, and
//! whatever is added or removed meanwhile, nothing comes twice.

use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::http::problem::Problem;

/// Entries of a page when no number is asked for, and at most.
const PAGE: i64 = 50;
const PAGE_LIMIT: i64 = 500;

/// How many entries a page has at most.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(try_from = "i64")]
#[schema(value_type = i64, minimum = 1, maximum = 500, default = 50)]
pub(super) struct Limit(i64);

impl Default for Limit {
    fn default() -> Self {
        Self(PAGE)
    }
}

impl TryFrom<i64> for Limit {
    type Error = String;

    fn try_from(number: i64) -> Result<Self, String> {
        if (1..=PAGE_LIMIT).contains(&number) {
            return Ok(Self(number));
        }
        Err(format!("parameter limit: from 1 to {PAGE_LIMIT}"))
    }
}

impl From<Limit> for i64 {
    fn from(limit: Limit) -> Self {
        limit.0
    }
}

/// Which entries a list shows that is in the order of names.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields, default)]
#[into_params(parameter_in = Query)]
pub(super) struct ByName {
    /// `next` of the page before.
    pub(super) after: Option<String>,
    #[param(inline)]
    pub(super) limit: Limit,
}

/// The number that a cursor is.
pub(super) fn number(cursor: &str) -> Result<i64, Problem> {
    cursor
        .parse()
        .map_err(|_| Problem::bad("parameter before: not a cursor of this list"))
}

/// The longest name, or pattern of one, that lists are asked for by, in bytes: longer ones than there are names, and shorter ones than a
/// database takes.
pub(super) const NAME: usize = 256;

/// A name that a list is asked for by.
pub(super) fn name(parameter: &str, name: Option<String>) -> Result<Option<String>, Problem> {
    match name {
        Some(name) if name.len() > NAME => Err(Problem::bad(format!(
            "parameter {parameter}: longer than {NAME} bytes"
        ))),
        name => Ok(name),
    }
}

/// A page out of one entry more than it has, and what the next one begins after, if there is one.
pub(super) fn page<T, C>(
    mut entries: Vec<T>,
    limit: i64,
    cursor: impl Fn(&T) -> C,
) -> (Vec<T>, Option<C>) {
    let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = entries.len() > wanted;
    entries.truncate(wanted);
    let next = entries.last().filter(|_| more).map(cursor);
    (entries, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_no_next() {
        assert_eq!(page(vec![9, 8, 7], 2, |n| *n), (vec![9, 8], Some(8)));
        assert_eq!(page(vec![9, 8], 2, |n| *n), (vec![9, 8], None));
        assert_eq!(page(Vec::<i64>::new(), 2, |n| *n), (vec![], None));
    }

    #[test]
    fn limits() {
        assert!(Limit::try_from(1).is_ok() && Limit::try_from(500).is_ok());
        assert!(Limit::try_from(0).is_err() && Limit::try_from(501).is_err());
        assert!(number("17").is_ok());
        assert!(number("x").is_err());
    }
}
