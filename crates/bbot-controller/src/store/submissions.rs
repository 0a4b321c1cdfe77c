//! Submissions: what was asked for, and the builds that it makes.

use super::rows::{self, Build, Service, Submission};
use sqlx::Row as _;

use super::dialect::Dialect;
use super::given::{Column, Given, Type};
use super::objects;
use super::turns::{self, Asker, Newcomer, Versions};
use super::tx::{Sql, Tx};
use super::{Doing as _, Store, StoreError};
use crate::clock::Millis;
use crate::objects::Kind;
use crate::package::Particulars;
use crate::package::plan::{Excluded, Plan, Planned};
use crate::queue::order::{Class, Priority};
use crate::source::Source;

/// A submission that is about to be kept.
#[derive(Debug, Clone)]
pub struct NewSubmission<'a> {
    /// Package name.
    pub name: &'a str,
    /// Package version.
    pub version: &'a str,
    /// Where the package is.
    pub source: &'a Source,
    /// Who submits it.
    pub asker: &'a Asker,
    /// How urgent it is to them.
    pub priority: Priority,
    /// What its tasks say of it besides.
    pub particulars: &'a Particulars,
    /// The service that it is of.
    pub service: Option<&'a Service>,
    /// Where its build stops for a person.
    pub breakpoint: Option<&'a str>,
    /// The builds that it makes, and those that it does not.
    pub plan: &'a Plan,
}

/// A submission that is kept.
#[derive(Debug, Clone)]
pub struct Submitted {
    /// What was submitted.
    pub submission: Submission,
    /// Its builds, in the order of the configurations.
    pub builds: Vec<Build>,
    /// Whether builds that waited before have other places now.
    pub exchanged: bool,
}

impl Store {
    /// Keeps a submission and queues its builds, all or nothing.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn submit(
        &self,
        new: NewSubmission<'_>,
        now: Millis,
    ) -> Result<Submitted, StoreError> {
        let number = i64::try_from(new.plan.builds.len()).unwrap_or(i64::MAX);
        let source = serde_json::to_string(new.source).unwrap_or_default();
        let repository = new.source.canonical_repository();
        let archive = new.source.archive().map(str::to_owned);
        let mut submission = Submission {
            id: 0,
            name: new.name.to_owned(),
            version: new.version.to_owned(),
            source: new.source.clone(),
            submitted: now,
            submitter: new.asker.submitter.clone(),
            priority: new.priority,
            particulars: new.particulars.clone(),
            service: new.service.cloned(),
        };
        let particulars = serde_json::to_string(new.particulars).unwrap_or_default();
        let excluded = serde_json::to_string(&new.plan.excluded).unwrap_or_default();
        let planned = new.plan.builds.clone();
        // Of an interactive one there is nothing else in the submission.
        let is_interactive = planned.iter().any(|planned| planned.lane.interactive);
        let class = Class::of_submission(is_interactive);
        let breakpoint = new.breakpoint.map(str::to_owned);
        let service = new.service.and_then(|s| serde_json::to_string(s).ok());
        let asker = new.asker.clone();
        self.write("keep a submission", move |tx| {
            Box::pin(async move {
                let (id, numbers) = match tx.dialect() {
                    Dialect::Sqlite => count(tx, number).await?,
                    Dialect::Postgres => take_numbers(tx, number).await?,
                };
                submission.id = id;
                if let Some(archive) = &archive {
                    objects::name_known(tx, Kind::Archive, archive).await?;
                }
                tx.later(
                    Sql::new(
                        "INSERT INTO submissions (id, name, version, source, submitted, submitter, priority, \
                         particulars, excluded, archive, service) \
                         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                    )
                    .bind(id)
                    .bind(submission.name.as_str())
                    .bind(submission.version.as_str())
                    .bind(source)
                    .bind(now)
                    .bind(submission.submitter.as_str())
                    .bind(submission.priority.number())
                    .bind(particulars)
                    .bind(excluded)
                    .bind(archive.as_deref())
                    .bind(service.as_deref()),
                );
                let (places, exchanged) = places(tx, &submission, (&planned, class), &asker).await?;
                let builds: Vec<Build> = numbers
                    .into_iter()
                    .zip(places)
                    .zip(planned)
                    .map(|(((id, position), place), planned)| Build {
                        id,
                        position,
                        place,
                        class,
                        ..rows::queued(&submission, planned, breakpoint.clone())
                    })
                    .collect();
                for builds in builds.chunks(together(tx.dialect())) {
                    tx.run(insert(builds, &repository, tx.dialect())).await?;
                }
                Ok(Submitted { submission, builds, exchanged })
            })
        })
        .await
    }

    /// The submission of this number.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn submission(&self, id: i64) -> Result<Option<Submission>, StoreError> {
        let row = sqlx::query(
            "SELECT id, name, version, source, submitted, submitter, priority, particulars, service \
             FROM submissions WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.pool)
        .await
        .doing("read a submission")?;
        row.as_ref().map(rows::submission).transpose()
    }

    /// The builds that a submission has not, and why, in the order of the buildtab.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn excluded(&self, submission: i64) -> Result<Vec<Excluded>, StoreError> {
        let row = sqlx::query("SELECT excluded FROM submissions WHERE id = $1")
            .bind(submission)
            .fetch_optional(&self.pool)
            .await
            .doing("read what a submission leaves out")?;
        let excluded = row.as_ref().map(|row| rows::excluded(row, submission));
        Ok(excluded.transpose()?.unwrap_or_default())
    }

    /// At most `limit` builds of a submission, in the order of the buildtab, after one of them where it is given; the last one
    /// where there are more.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn builds_of(
        &self,
        submission: i64,
        after: Option<i64>,
        limit: usize,
    ) -> Result<(Vec<Build>, Option<i64>), StoreError> {
        let found = sqlx::query(BUILDS_OF)
            .bind(submission)
            .bind(after.unwrap_or(0))
            .bind(i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1))
            .fetch_all(&self.pool)
            .await
            .doing("read the builds of a submission")?;
        let is_more = found.len() > limit;
        let builds: Vec<Build> = found
            .iter()
            .take(limit)
            .map(rows::build)
            .collect::<Result<_, _>>()?;
        let next = builds.last().filter(|_| is_more).map(|build| build.id);
        Ok((builds, next))
    }

    /// Whether all builds of a submission are over.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn is_over(&self, submission: i64) -> Result<bool, StoreError> {
        let left: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM builds WHERE submission = $1 AND state IN ('queued', 'building') LIMIT 1",
        )
        .bind(submission)
        .fetch_optional(&self.pool)
        .await
        .doing("look whether a submission is over")?;
        Ok(left.is_none())
    }
}

const BUILDS_OF: &str =
    "SELECT * FROM builds WHERE submission = $1 AND id > $2 ORDER BY id LIMIT $3";

/// The places in the queue of a submission's builds, and whether those that wait have others now.
async fn places(
    tx: &mut Tx<'_>,
    submission: &Submission,
    (planned, class): (&[Planned], Class),
    asker: &Asker,
) -> Result<(Vec<i64>, bool), StoreError> {
    let now = submission.submitted;
    let turns = turns::take(tx, asker, class, submission.priority, planned.len(), now).await?;
    let of = Versions {
        package: &submission.name,
        submitter: &submission.submitter,
        class,
    };
    let mut newcomers: Vec<Newcomer<'_>> = planned
        .iter()
        .zip(turns)
        .map(|(planned, place)| Newcomer {
            configuration: &planned.configuration,
            target: &planned.target,
            package_configuration: &planned.package_configuration,
            lane: planned.lane.text(),
            version: &submission.version,
            place,
        })
        .collect();
    let exchanged = turns::exchange(tx, of, &mut newcomers, now).await?;
    Ok((newcomers.iter().map(|n| n.place).collect(), exchanged))
}

/// The number of a submission, and the numbers of its builds with their places in lists.
type Numbers = (i64, Vec<(i64, i64)>);

async fn count(tx: &mut Tx<'_>, builds: i64) -> Result<Numbers, StoreError> {
    const DOING: &str = "count";
    let rows = tx
        .all(
            Sql::new(
                "UPDATE counters SET value = value + CASE WHEN name = 'submission' THEN 1 ELSE $1 END \
                 WHERE name IN ('submission', 'build', 'queue') RETURNING name, value",
            )
            .bind(builds),
        )
        .await?;
    // Where the numbers end that these get.
    let (mut submission, mut build, mut place) = (0, 0, 0);
    for row in rows {
        let value: i64 = row.try_get("value").doing(DOING)?;
        match row.try_get("name").doing(DOING)? {
            "submission" => submission = value,
            "build" => build = value,
            _ => place = value,
        }
    }
    let numbers = (1..=builds).map(|n| (build - builds + n, place - builds + n));
    Ok((submission, numbers.collect()))
}

async fn take_numbers(tx: &mut Tx<'_>, builds: i64) -> Result<Numbers, StoreError> {
    const DOING: &str = "take numbers";
    let row = tx
        .optional(Sql::new("SELECT nextval('submission_numbers') AS id"))
        .await?;
    let submission = row.map_or(Ok(0), |row| row.try_get("id")).doing(DOING)?;
    let mut numbers: Vec<(i64, i64)> = tx
        .all(
            Sql::new(
                "SELECT nextval('build_numbers') AS id, nextval('queue_numbers') AS place \
                 FROM generate_series(1, $1)",
            )
            .bind(builds),
        )
        .await?
        .iter()
        .map(|row| Ok((row.try_get("id")?, row.try_get("place")?)))
        .collect::<Result<_, sqlx::Error>>()
        .doing(DOING)?;
    // The order of the buildtab is that of the numbers.
    numbers.sort_unstable();
    Ok((submission, numbers))
}

/// So many builds are written by one statement. SQLite looks for each of its values from the first on.
fn together(dialect: Dialect) -> usize {
    match dialect {
        Dialect::Sqlite => 10,
        Dialect::Postgres => 50,
    }
}

/// What is written of a build. The rest is as the table has it by itself.
const QUEUED: [Column; 20] = [
    ("id", Type::Int),
    ("submission", Type::Int),
    ("package", Type::Text),
    ("version", Type::Text),
    ("configuration", Type::Text),
    ("target", Type::Text),
    ("repository", Type::Text),
    ("state", Type::Text),
    ("position", Type::Int),
    ("again", Type::Int),
    ("queued", Type::Int),
    ("attempt", Type::Int),
    ("operations", Type::Text),
    ("class", Type::Text),
    ("priority", Type::Int),
    ("submitter", Type::Text),
    ("place", Type::Int),
    ("package_configuration", Type::Text),
    ("lane", Type::Text),
    ("breakpoint", Type::Text),
];

fn insert(builds: &[Build], repository: &str, dialect: Dialect) -> Sql {
    let mut given = Given::of(QUEUED);
    for build in builds {
        given.push([
            build.id.into(),
            build.submission.into(),
            build.package.as_str().into(),
            build.version.as_str().into(),
            build.configuration.as_str().into(),
            build.target.as_str().into(),
            repository.into(),
            build.state.as_str().into(),
            build.position.into(),
            false.into(),
            build.queued.into(),
            0.into(),
            "[]".into(),
            build.class.as_str().into(),
            build.priority.number().into(),
            build.submitter.as_str().into(),
            build.place.into(),
            build.package_configuration.as_str().into(),
            build.lane.text().into(),
            build.breakpoint.as_deref().into(),
        ]);
    }
    let columns = QUEUED.map(|(name, _)| name).join(", ");
    let insert = format!("INSERT INTO builds ({columns}) SELECT {columns} FROM w");
    given.sql(dialect, &insert)
}

#[cfg(test)]
mod tests {
    use super::super::look::tests::plan;
    use super::*;

    #[tokio::test]
    async fn a_page_of_builds_is_a_look_at_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("s.sqlite")).await.unwrap();
        let plan = plan(&store, BUILDS_OF).await;
        assert!(
            plan.len() == 1 && plan[0].contains("builds_submission (submission=? AND id>?)"),
            "{plan:?}"
        );
        store.close().await;
    }
}
