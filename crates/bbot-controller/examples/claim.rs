//! A loop that does nothing but claim the next build of a store, for `bench/controller`: what any controller over that store
//! could reach at most, one claim after the other, each kept before the next.
//!
//! `claim FILE|postgres://... SECONDS`; the result is one line of JSON.

use std::time::{Duration, Instant};

use sqlx::Connection as _;

type Error = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut words = std::env::args().skip(1);
    let store = words.next().ok_or("which store?")?;
    let span = Duration::from_secs(words.next().ok_or("for how many seconds?")?.parse()?);
    sqlx::any::install_default_drivers();
    let is_postgres = store.starts_with("postgres");
    let url = if is_postgres {
        store
    } else {
        format!("sqlite://{store}")
    };
    let mut connection = sqlx::AnyConnection::connect(&url).await?;
    if !is_postgres {
        for pragma in ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"] {
            sqlx::query(pragma).execute(&mut connection).await?;
        }
    }
    // The configurations in turn, as agents of a farm would ask.
    let held = if is_postgres {
        " FOR UPDATE SKIP LOCKED"
    } else {
        ""
    };
    let claim = format!(
        "UPDATE builds SET state = 'building', started = $3, lease_until = $3, session = $4 WHERE id = (SELECT id FROM builds \
         WHERE state = 'queued' AND configuration = $1 AND target = $2 ORDER BY place, id LIMIT 1{held}) RETURNING id"
    );
    let began = Instant::now();
    let mut claimed = 0_u32;
    let mut asked = 0_u32;
    while began.elapsed() < span {
        let found: Option<(i64,)> = sqlx::query_as(sqlx::AssertSqlSafe(claim.as_str()))
            .bind(format!("c{}", asked % 500))
            .bind("x86_64-linux-gnu")
            .bind(1_700_000_000_000_i64)
            .bind(format!("{asked:064x}"))
            .fetch_optional(&mut connection)
            .await?;
        asked += 1;
        claimed += u32::from(found.is_some());
    }
    let rate = f64::from(claimed) / began.elapsed().as_secs_f64();
    println!("{{\"claimed\": {claimed}, \"rate\": {rate:.1}}}");
    Ok(())
}
