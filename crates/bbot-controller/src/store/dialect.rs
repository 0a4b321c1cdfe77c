//! The few words in which SQLite and PostgreSQL differ. All else is one text for both.

use super::tx::Sql;

/// What is numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counter {
    /// Places in the queue.
    Queue,
    /// Runs.
    Run,
}

/// Whose words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// SQLite: the one that writes is alone anyway.
    Sqlite,
    /// PostgreSQL: others write at the same time, so that what is decided on has to be held.
    Postgres,
}

impl Dialect {
    fn on_postgres(self, text: &'static str) -> &'static str {
        match self {
            Self::Sqlite => "",
            Self::Postgres => text,
        }
    }

    /// Behind a table's name: found by this index. SQLite takes one by what is equal, however many there are of that.
    pub(super) fn by_index(self, index: &str) -> String {
        match self {
            Self::Sqlite => format!(" INDEXED BY {index}"),
            Self::Postgres => String::new(),
        }
    }

    /// Joins the row of a table, called `name`, whose `column` has this value. PostgreSQL may not begin with the table, however small it takes it
    /// for.
    pub(super) fn look_up(self, table: &str, name: &str, column: &str, value: &str) -> String {
        self.look_up_and(table, name, (column, value), "")
    }

    /// The same, and the row is held; none where somebody else holds it.
    pub(super) fn hold(self, table: &str, name: &str, column: &str, value: &str) -> String {
        self.look_up_and(table, name, (column, value), self.held_if_free())
    }

    fn look_up_and(
        self,
        table: &str,
        name: &str,
        (column, value): (&str, &str),
        held: &str,
    ) -> String {
        match self {
            Self::Sqlite => format!("JOIN {table} {name} ON {name}.{column} = {value}"),
            // The offset keeps what else is asked of the row from choosing another index.
            Self::Postgres => format!(
                "CROSS JOIN LATERAL (SELECT * FROM {table} WHERE {column} = {value} OFFSET 0{held}) AS {name}"
            ),
        }
    }

    /// Ends a `SELECT` of one table: what is found stays as it is until the end of the transaction.
    pub(super) fn held(self) -> &'static str {
        self.on_postgres(" FOR UPDATE")
    }

    /// The same, without what somebody else holds.
    pub(super) fn held_if_free(self) -> &'static str {
        self.on_postgres(" FOR UPDATE SKIP LOCKED")
    }

    /// Ends a `SELECT` of a build `b` with its session `s`. Everybody holds the build first, so that no two wait for each
    /// other.
    pub(super) fn session_held(self) -> &'static str {
        self.on_postgres(" FOR UPDATE OF b, s")
    }

    /// Ends a `SELECT` of builds (`b`) and more: they stay as they are until the end of the transaction.
    pub(super) fn build_held(self) -> &'static str {
        self.on_postgres(" FOR UPDATE OF b")
    }

    /// Ends a `SELECT` of builds (`b`) and more: without builds that somebody else holds.
    pub(super) fn build_held_if_free(self) -> &'static str {
        self.on_postgres(" FOR UPDATE OF b SKIP LOCKED")
    }

    /// Text that stands for a counter's next number, in one place of one statement.
    pub(super) fn next(self, counter: Counter) -> &'static str {
        match (self, counter) {
            (Self::Sqlite, Counter::Queue) => {
                "(SELECT value + 1 FROM counters WHERE name = 'queue')"
            }
            (Self::Sqlite, Counter::Run) => "(SELECT value + 1 FROM counters WHERE name = 'run')",
            (Self::Postgres, Counter::Queue) => "nextval('queue_numbers')",
            (Self::Postgres, Counter::Run) => "nextval('run_numbers')",
        }
    }

    /// Takes the number that a statement before has used, where that did not.
    pub(super) fn count(self, counter: Counter) -> Option<Sql> {
        match (self, counter) {
            (Self::Postgres, _) => None,
            (Self::Sqlite, Counter::Queue) => {
                Some("UPDATE counters SET value = value + 1 WHERE name = 'queue'")
            }
            (Self::Sqlite, Counter::Run) => {
                Some("UPDATE counters SET value = value + 1 WHERE name = 'run'")
            }
        }
        .map(Sql::new)
    }
}
