//! Rows that are given to a statement, as a table `w` of it.
//!
//! PostgreSQL gets them as one value, so that the text is the same however many there are, and is prepared and planned once. SQLite, to which few
//! go at once, is quicker with a value each.

use serde_json::{Map, Value as Json};

use super::dialect::Dialect;
use super::tx::{Sql, Value};

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    /// `BIGINT`.
    Int,
    /// `TEXT`.
    Text,
}

/// A column: its name and what it holds.
pub(super) type Column = (&'static str, Type);

/// Rows of these columns.
#[derive(Debug, Clone)]
pub(super) struct Given<const N: usize> {
    columns: [Column; N],
    rows: Vec<[Value; N]>,
}

impl<const N: usize> Given<N> {
    /// None yet.
    pub(super) fn of(columns: [Column; N]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// One more.
    pub(super) fn push(&mut self, values: [Value; N]) {
        self.rows.push(values);
    }

    /// A statement over them, which has no other values; it goes on behind the table's definition.
    pub(super) fn sql(self, dialect: Dialect, text: &str) -> Sql {
        match dialect {
            Dialect::Sqlite => {
                let names = self.columns.map(|(name, _)| name).join(", ");
                let row = |row: usize| {
                    let values: Vec<String> =
                        (1..=N).map(|n| format!("${}", row * N + n)).collect();
                    format!("({})", values.join(", "))
                };
                let rows: Vec<String> = (0..self.rows.len()).map(row).collect();
                let rows = rows.join(", ");
                let sql = Sql::new(format!("WITH w ({names}) AS (VALUES {rows}) {text}"));
                self.rows
                    .into_iter()
                    .flatten()
                    .fold(sql, |sql, value| sql.bind(value))
            }
            Dialect::Postgres => {
                let columns = self.columns.map(|(name, of)| match of {
                    Type::Int => format!("{name} BIGINT"),
                    Type::Text => format!("{name} TEXT"),
                });
                let columns = columns.join(", ");
                let sql = Sql::new(format!(
                    "WITH w AS (SELECT * FROM json_to_recordset(CAST($1 AS JSON)) AS w ({columns})) {text}"
                ));
                sql.bind(self.json())
            }
        }
    }

    fn json(self) -> String {
        let row = |values: [Value; N]| {
            let names = self.columns.iter().map(|(name, _)| (*name).to_owned());
            let row: Map<String, Json> = names.zip(values.map(json)).collect();
            Json::Object(row)
        };
        Json::Array(self.rows.into_iter().map(row).collect()).to_string()
    }
}

/// PostgreSQL has no text with a zero byte in it, written out or not.
fn json(value: Value) -> Json {
    match value {
        Value::Int(value) => value.into(),
        Value::Text(Some(text)) if text.contains('\0') => text.replace('\0', "\u{fffd}").into(),
        Value::Text(value) => value.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Given<2> {
        let mut given = Given::of([("a", Type::Int), ("b", Type::Text)]);
        given.push([1.into(), "x".into()]);
        given.push([None::<i64>.into(), "it's \"\0\"".into()]);
        given
    }

    #[test]
    fn rows_are_one_value_or_many() {
        let text = "SELECT a FROM w";
        assert_eq!(
            format!("{:?}", given().sql(Dialect::Sqlite, text)),
            format!(
                "{:?}",
                Sql::new("WITH w (a, b) AS (VALUES ($1, $2), ($3, $4)) SELECT a FROM w")
                    .bind(1)
                    .bind("x")
                    .bind(None::<i64>)
                    .bind("it's \"\0\"")
            )
        );
        assert_eq!(
            format!("{:?}", given().sql(Dialect::Postgres, text)),
            format!(
                "{:?}",
                Sql::new(
                    "WITH w AS (SELECT * FROM json_to_recordset(CAST($1 AS JSON)) AS w (a BIGINT, b TEXT)) SELECT a FROM w"
                )
                .bind("[{\"a\":1,\"b\":\"x\"},{\"a\":null,\"b\":\"it's \\\"\u{fffd}\\\"\"}]")
            )
        );
    }
}
