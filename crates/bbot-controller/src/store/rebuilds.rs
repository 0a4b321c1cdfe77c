//! Rebuilds by themselves: which builds are due, and results that say that nothing has changed. The rules are
//! [`rebuild`]'s.

use sqlx::any::AnyRow;
use sqlx::{AssertSqlSafe, Row as _};

use super::builds;
use super::dialect::{Counter, Dialect};
use super::results::SessionFacts;
use super::rows::{self, Build};
use super::turns::{self, Asker};
use super::tx::{Sql, Tx};
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;
use crate::queue::State;
use crate::queue::order::Class;
use crate::queue::rebuild::{Checksums, Due, Kind, Makings};

/// What was found due.
#[derive(Debug, Clone, Default)]
pub struct FoundDue {
    /// The builds that are queued now.
    pub queued: Vec<Build>,
    /// Whether there may be more.
    pub is_more: bool,
}

/// Builds that may be due by the time in this column, those that have waited longest first.
fn due_by(column: &str, dialect: Dialect) -> String {
    let index = dialect.by_index(&format!("builds_{column}"));
    format!(
        "SELECT * FROM builds{index} WHERE state = 'built' AND checked IS NOT NULL AND {column} <= $1 ORDER BY {column} LIMIT $2"
    )
}

/// A newer build of the same that has had a result: it may be just building again. Not one that a person has looked into: that is not
/// rebuilt by itself, so it takes nobody's place.
const NEWER: &str = "SELECT id FROM builds WHERE attempt > 0 AND state <> 'cancelled' AND breakpoint IS NULL AND package = $1 AND configuration = $2 \
    AND target = $3 AND package_configuration = $4 AND id > $5 LIMIT 1";

impl Store {
    /// Queues builds that are due, `limit` of each kind at most. One that is not the newest of its package and configurations any more
    /// (interactive ones do not count), or whose configuration is not offered (`is_offered`: its name and target), is not rebuilt by itself
    /// from now on.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn queue_due(
        &self,
        due: Due,
        share: std::time::Duration,
        limit: usize,
        now: Millis,
        is_offered: impl Fn(&str, &str) -> bool + Send + 'static,
    ) -> Result<FoundDue, StoreError> {
        const DOING: &str = "look for builds that are due";
        let dialect = self.dialect();
        let looks: Vec<(String, Millis)> = [("finished", due.built), ("checked", due.checked)]
            .into_iter()
            .filter_map(|(column, before)| Some((due_by(column, dialect), before?)))
            .collect();
        // Mostly there are none, which need not be written.
        let mut is_any = false;
        for (text, before) in &looks {
            let row = sqlx::query(AssertSqlSafe(text.clone()))
                .bind(before.0)
                .bind(1_i64)
                .fetch_optional(&self.pool)
                .await
                .doing(DOING)?;
            is_any |= row.is_some();
        }
        if !is_any {
            return Ok(FoundDue::default());
        }
        self.write(DOING, move |tx| {
            Box::pin(async move {
                let mut found = FoundDue::default();
                let mut offered: Vec<(Build, Kind)> = Vec::new();
                for (text, before) in looks {
                    let text = format!("{text}{}", tx.dialect().held_if_free());
                    let limit_of = i64::try_from(limit).unwrap_or(i64::MAX);
                    let rows = tx.all(Sql::new(text).bind(before).bind(limit_of)).await?;
                    let mut is_any = false;
                    for row in &rows {
                        let build = rows::build(row)?;
                        let times = build.checked.zip(build.finished);
                        let Some(kind) = times.and_then(|(checked, built)| due.of(checked, built))
                        else {
                            continue;
                        };
                        // Held, it is found by both looks.
                        if offered.iter().any(|(known, _)| known.id == build.id) {
                            continue;
                        }
                        is_any = true;
                        if !is_offered(&build.configuration, &build.target)
                            || is_overtaken(tx, &build).await?
                        {
                            let never = Sql::new("UPDATE builds SET checked = NULL WHERE id = $1");
                            tx.later(never.bind(build.id));
                        } else {
                            offered.push((build, kind));
                        }
                    }
                    found.is_more |= is_any && rows.len() == limit;
                }
                // Whoever takes several submitters' turns takes them in this order, so that no two wait for each other.
                offered.sort_by(|(a, _), (b, _)| a.submitter.cmp(&b.submitter));
                for (build, kind) in offered {
                    queue(tx, &build, kind, share, now).await?;
                    found.queued.push(build);
                }
                Ok(found)
            })
        })
        .await
    }
}

async fn is_overtaken(tx: &mut Tx<'_>, build: &Build) -> Result<bool, StoreError> {
    let newer = Sql::new(NEWER)
        .bind(build.package.as_str())
        .bind(build.configuration.as_str())
        .bind(build.target.as_str())
        .bind(build.package_configuration.as_str())
        .bind(build.id);
    Ok(tx.optional(newer).await?.is_some())
}

async fn queue(
    tx: &mut Tx<'_>,
    build: &Build,
    kind: Kind,
    share: std::time::Duration,
    now: Millis,
) -> Result<(), StoreError> {
    let asker = Asker {
        submitter: build.submitter.clone(),
        share,
    };
    let class = Class::Rebuild;
    let places = turns::take(tx, &asker, class, build.priority, 1, now).await?;
    let place = places.first().copied().unwrap_or(build.place);
    builds::enter(tx, build, class, place, &asker.submitter, now).await?;
    let position = tx.dialect().next(Counter::Queue);
    tx.later(
        Sql::new(format!(
            "UPDATE builds SET state = 'queued', position = {position}, queued = $2, reason = $3, soft = $4, again = 0, \
             interrupts = 0, lapses = 0, failures = '[]', session = NULL, run = NULL, lease_until = NULL WHERE id = $1"
        ))
        .bind(build.id)
        .bind(now)
        .bind(kind.reason())
        .bind(kind == Kind::Soft),
    );
    tx.count(Counter::Queue);
    Ok(())
}

/// What the last result of a build was made with, and what its next task is.
pub(super) struct Last {
    pub(super) kind: Kind,
    pub(super) makings: Option<Makings>,
    pub(super) checksums: Option<Checksums>,
}

/// Out of a row of a build.
pub(super) fn last(row: &AnyRow) -> Result<Last, StoreError> {
    const DOING: &str = "read a build's checksums";
    let text = |column: &str| row.try_get::<Option<String>, _>(column).doing(DOING);
    let soft: i64 = row.try_get("soft").doing(DOING)?;
    let makings = text("controller_checksum")?.zip(text("machine_checksum")?);
    Ok(Last {
        kind: if soft == 1 { Kind::Soft } else { Kind::Hard },
        makings: makings.map(|(controller, machine)| Makings {
            controller,
            machine,
        }),
        checksums: Checksums::new(
            text("agent_checksum")?.as_deref(),
            text("worker_checksum")?.as_deref(),
            text("dependency_checksum")?.as_deref(),
        ),
    })
}

/// Keeps that nothing has changed: the result that is there stays, with all that is said of it.
pub(super) async fn unchanged(
    tx: &mut Tx<'_>,
    facts: &SessionFacts,
    state: State,
    now: Millis,
) -> Result<(), StoreError> {
    let build = &facts.build;
    tx.later(
        Sql::new("UPDATE sessions SET attempt = $2 WHERE id = $1")
            .bind(facts.session.as_str())
            .bind(build.attempt),
    );
    super::results::end_others(tx, build.id);
    tx.later(
        Sql::new(
            "UPDATE builds SET (agent, fingerprint, machine, machine_summary, auxiliaries, toolchain_name, toolchain_version, started, run) \
             = (SELECT agent, fingerprint, machine, machine_summary, auxiliaries, toolchain_name, toolchain_version, started, run \
             FROM attempts a WHERE a.build = builds.id AND a.number = builds.attempt) WHERE id = $1",
        )
        .bind(build.id),
    );
    tx.later(
        Sql::new("UPDATE builds SET checked = $2, soft = 0 WHERE id = $1")
            .bind(build.id)
            .bind(now),
    );
    super::results::end(tx, build, state, now).await
}

#[cfg(test)]
mod tests {
    use super::super::look::tests::plan;
    use super::*;

    /// What is not due is not looked at, however much it is.
    #[tokio::test]
    async fn each_look_is_at_the_beginning_of_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.sqlite")).await.unwrap();
        for (text, index) in [
            (due_by("checked", Dialect::Sqlite), "builds_checked"),
            (due_by("finished", Dialect::Sqlite), "builds_finished"),
            (NEWER.to_owned(), "builds_newer"),
        ] {
            let plan = plan(&store, &text).await;
            assert_eq!(plan.len(), 1, "{plan:?}");
            assert!(
                plan[0].starts_with("SEARCH") && plan[0].contains(index),
                "{plan:?}"
            );
        }
        store.close().await;
    }
}
