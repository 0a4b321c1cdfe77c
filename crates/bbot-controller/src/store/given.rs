//! Rows that are given to a statement as one value: its text is the same however many there are, so that it is prepared once.

use serde_json::{Map, Value as Json};

use super::dialect::Dialect;
use super::tx::Value;

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
#[derive(Debug)]
pub(super) struct Given<const N: usize> {
    columns: [Column; N],
    rows: Vec<Json>,
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
        let names = self.columns.iter().map(|(name, _)| (*name).to_owned());
        let row: Map<String, Json> = names.zip(values.map(json)).collect();
        self.rows.push(Json::Object(row));
    }

    /// What stands for them in a `FROM` of a statement whose first value is [`Given::value`]. They are called `w`.
    pub(super) fn table(&self, dialect: Dialect) -> String {
        let columns = |column: &dyn Fn(&Column) -> String| {
            let columns: Vec<String> = self.columns.iter().map(column).collect();
            columns.join(", ")
        };
        match dialect {
            Dialect::Sqlite => {
                let each = columns(&|(name, _)| format!("value ->> '{name}' AS {name}"));
                format!("(SELECT {each} FROM json_each($1)) AS w")
            }
            Dialect::Postgres => {
                let each = columns(&|(name, of)| match of {
                    Type::Int => format!("{name} BIGINT"),
                    Type::Text => format!("{name} TEXT"),
                });
                format!("json_to_recordset(CAST($1 AS JSON)) AS w ({each})")
            }
        }
    }

    /// All of them.
    pub(super) fn value(self) -> String {
        Json::Array(self.rows).to_string()
    }
}

/// PostgreSQL has no text with a zero byte in it, and takes none out of what it is given.
fn json(value: Value) -> Json {
    match value {
        Value::Int(value) => value.into(),
        Value::Text(Some(text)) if text.contains('\0') => text.replace('\0', "\u{fffd}").into(),
        Value::Text(value) => value.into(),
    }
}
