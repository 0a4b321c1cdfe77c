//! Places in the queue: a submitter's turns, and their exchange between the versions of a package. The formula is
//! [`order`]'s.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx::Row as _;

use super::dialect::Dialect;
use super::error::Doing as _;
use super::rows::Build;
use super::tx::{Sql, Tx};
use super::{StoreError, look};
use crate::clock::Millis;
use crate::queue::State;
use crate::queue::order::{self, Class, Priority};

/// Who queues builds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asker {
    /// The submitter: turns are theirs.
    pub submitter: String,
    /// The time in which the farm takes one build from the queue.
    pub share: Duration,
}

/// Takes the next turns of a submitter in a class, and gives the places that so many builds have by them.
pub(super) async fn take(
    tx: &mut Tx<'_>,
    asker: &Asker,
    class: Class,
    priority: Priority,
    builds: usize,
    now: Millis,
) -> Result<Vec<i64>, StoreError> {
    // It also holds the row: whoever else takes turns of this submitter waits for this transaction.
    let row = tx
        .optional(
            Sql::new(
                "INSERT INTO turns (submitter, class, next) VALUES ($1, $2, $3) \
                 ON CONFLICT (submitter, class) DO UPDATE SET next = turns.next RETURNING next",
            )
            .bind(asker.submitter.as_str())
            .bind(class.as_str())
            .bind(now),
        )
        .await?;
    let next = row.map(|row| row.try_get("next")).transpose();
    let mut next = next.doing("read a submitter's turn")?.map(Millis);
    let places = (0..builds)
        .map(|_| {
            let (turn, after) = order::turn(now, next, asker.share);
            next = Some(after);
            order::place(turn, class, priority)
        })
        .collect();
    tx.later(
        Sql::new("UPDATE turns SET next = $3 WHERE submitter = $1 AND class = $2")
            .bind(asker.submitter.as_str())
            .bind(class.as_str())
            .bind(next.unwrap_or(now)),
    );
    Ok(places)
}

/// Turns of builds that are cancelled.
#[derive(Debug, Default)]
pub(super) struct Cancelled(BTreeMap<(String, Class), Vec<Millis>>);

impl Cancelled {
    /// Adds those of a build that is about to be cancelled: what it waits by, and what it would wait by once more.
    pub(super) fn add(&mut self, build: &Build) {
        let mut add = |submitter: &str, class, place| {
            let turn = order::turn_of(place, class, build.priority);
            let turns = self.0.entry((submitter.to_owned(), class)).or_default();
            turns.push(turn);
        };
        if build.state == State::Queued {
            add(&build.submitter, build.class, build.place);
        }
        if let Some((place, submitter)) = build.again_place.as_ref().filter(|_| build.again) {
            add(submitter, Class::Forced, *place);
        }
    }

    /// Gives them back, in the order of the submitters, so that no two wait for each other.
    pub(super) async fn give_back(
        self,
        tx: &mut Tx<'_>,
        now: Millis,
        share: Duration,
    ) -> Result<(), StoreError> {
        for ((submitter, class), turns) in self.0 {
            let row = tx
                .optional(
                    Sql::new(format!(
                        "SELECT next FROM turns WHERE submitter = $1 AND class = $2{}",
                        tx.dialect().held()
                    ))
                    .bind(submitter.as_str())
                    .bind(class.as_str()),
                )
                .await?;
            let next = row.map(|row| row.try_get("next")).transpose();
            let Some(next) = next.doing("read a submitter's turn")?.map(Millis) else {
                continue;
            };
            let left = order::given_back(next, &turns, now, share);
            if left != next {
                tx.later(
                    Sql::new("UPDATE turns SET next = $3 WHERE submitter = $1 AND class = $2")
                        .bind(submitter)
                        .bind(class.as_str())
                        .bind(left),
                );
            }
        }
        Ok(())
    }
}

/// Which builds exchange their places, in each configuration, the target's and the package's, and each lane by itself.
#[derive(Debug, Clone, Copy)]
pub(super) struct Versions<'a> {
    pub(super) package: &'a str,
    pub(super) submitter: &'a str,
    pub(super) class: Class,
}

/// A build that is about to be queued.
#[derive(Debug)]
pub(super) struct Newcomer<'a> {
    pub(super) configuration: &'a str,
    pub(super) target: &'a str,
    pub(super) package_configuration: &'a str,
    /// Its lane, in its text form.
    pub(super) lane: String,
    pub(super) version: &'a str,
    /// By its turn; then by its version too.
    pub(super) place: i64,
}

/// So many builds of one package in one configuration exchange their places at most, those that are next.
const EXCHANGED: usize = 64;

/// Gives builds that are about to be queued their places by version, among those that wait already; whether any of these has
/// another one now. `newcomers` are of different configurations or lanes.
pub(super) async fn exchange(
    tx: &mut Tx<'_>,
    of: Versions<'_>,
    newcomers: &mut [Newcomer<'_>],
    now: Millis,
) -> Result<bool, StoreError> {
    const DOING: &str = "compare versions that wait";
    let mut moved: Vec<(i64, i64)> = Vec::new();
    for some in newcomers.chunks_mut(look::LARGEST) {
        let size = look::size_for(some.len());
        let mut sql = Sql::new(text(size, tx.dialect()));
        for n in 0..size {
            // What is one too many is the last once more.
            let at = some.get(n).or(some.last());
            let names = at.map_or([""; 4], |w| {
                [w.configuration, w.target, w.package_configuration, &w.lane]
            });
            sql = names.into_iter().fold(sql, Sql::bind);
        }
        let sql = sql
            .bind(of.package)
            .bind(of.submitter)
            .bind(of.class.as_str());
        let mut waiting: Vec<Vec<(i64, i64, String)>> = vec![Vec::new(); some.len()];
        for row in tx.all(sql).await? {
            let n: i64 = row.try_get("n").doing(DOING)?;
            let at = usize::try_from(n).unwrap_or(usize::MAX);
            let queued = Millis(row.try_get("queued").doing(DOING)?);
            if let Some(waiting) = waiting.get_mut(at)
                && order::is_exchanged(queued, now)
            {
                waiting.push((
                    row.try_get("id").doing(DOING)?,
                    row.try_get("place").doing(DOING)?,
                    row.try_get("version").doing(DOING)?,
                ));
            }
        }
        for (newcomer, waiting) in some.iter_mut().zip(waiting) {
            let mut builds = vec![(newcomer.place, newcomer.version)];
            builds.extend(
                waiting
                    .iter()
                    .map(|(_, place, version)| (*place, version.as_str())),
            );
            let mut places = order::by_version(&builds).into_iter();
            newcomer.place = places.next().unwrap_or(newcomer.place);
            for ((id, had, _), place) in waiting.iter().zip(places) {
                if place != *had {
                    moved.push((*id, place));
                }
            }
        }
    }
    for some in moved.chunks(look::LARGEST) {
        let size = look::size_for(some.len());
        // What is one too many is the last once more.
        let padded = some.iter().chain(some.last().into_iter().cycle());
        let sql = Sql::new(text_of_moves(size));
        let sql = padded
            .take(size)
            .fold(sql, |sql, (id, place)| sql.bind(*id).bind(*place));
        tx.run(sql).await?;
    }
    Ok(!moved.is_empty())
}

/// The statement that gives so many builds other places.
fn text_of_moves(size: usize) -> String {
    let values: Vec<String> = (0..size)
        .map(|n| format!("(${}, ${})", 2 * n + 1, 2 * n + 2))
        .collect();
    format!(
        "WITH w (id, place) AS (VALUES {}) UPDATE builds SET place = w.place FROM w WHERE builds.id = w.id",
        values.join(", ")
    )
}

/// The statement for so many configurations: of each the builds that may exchange their places.
fn text(size: usize, dialect: Dialect) -> String {
    let values: Vec<String> = (0..size)
        .map(|n| {
            let [a, b, c, d] = [1, 2, 3, 4].map(|i| 4 * n + i);
            format!("({n}, ${a}, ${b}, ${c}, ${d})")
        })
        .collect();
    let of = |table: &str| {
        let [package, submitter, class] = [1, 2, 3].map(|n| 4 * size + n);
        format!(
            "{table}.state = 'queued' AND {table}.package = ${package} AND {table}.configuration = w.configuration \
             AND {table}.target = w.target AND {table}.package_configuration = w.package_configuration AND {table}.lane = w.lane \
             AND {table}.submitter = ${submitter} AND {table}.class = ${class}"
        )
    };
    let found = match dialect {
        // Where the last one is that may, and all up to there.
        Dialect::Sqlite => format!(
            "JOIN builds b ON {} AND b.place <= COALESCE((SELECT l.place FROM builds l WHERE {} ORDER BY l.place LIMIT 1 OFFSET {}), {})",
            of("b"),
            of("l"),
            EXCHANGED - 1,
            i64::MAX
        ),
        // It would look for the last one once more for each. What somebody is handing out is passed over.
        Dialect::Postgres => format!(
            "CROSS JOIN LATERAL (SELECT q.id, q.place, q.version, q.queued FROM builds q WHERE {} \
             ORDER BY q.place LIMIT {EXCHANGED} FOR UPDATE SKIP LOCKED) b",
            of("q")
        ),
    };
    format!(
        "WITH w (n, configuration, target, package_configuration, lane) AS (VALUES {}) \
         SELECT w.n, b.id, b.place, b.version, b.queued FROM w {found}",
        values.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::look::tests::plan;
    use super::*;

    /// What waits of other packages, or of others' submissions, is not looked at.
    #[tokio::test]
    async fn it_reads_what_may_be_exchanged_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.sqlite")).await.unwrap();
        let plan = plan(&store, &text(8, Dialect::Sqlite)).await;
        let by = |table: &str| {
            let search = format!("SEARCH {table} USING");
            plan.iter()
                .any(|line| line.starts_with(&search) && line.contains("builds_versions"))
        };
        assert!(by("b") && by("l"), "{plan:?}");
        assert!(plan.iter().any(|l| l.contains("place<?")), "{plan:?}");
        store.close().await;
    }

    /// One statement for all, which finds each build by its number.
    #[tokio::test]
    async fn places_are_exchanged_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.sqlite")).await.unwrap();
        let plan = plan(&store, &text_of_moves(8)).await;
        assert!(
            plan.iter()
                .any(|line| line.starts_with("SEARCH builds USING") && line.contains("(id=?)")),
            "{plan:?}"
        );
        store.close().await;
    }
}
