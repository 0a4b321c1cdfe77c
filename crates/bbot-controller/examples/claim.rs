//! Loops that do nothing but claim the next build of a store, for `bench/controller`: what any controller over that store could
//! reach, each claim kept before the next of its loop. On SQLite, where one writes at a time, there is one loop.
//!
//! `claim FILE|postgres://... SECONDS [LOOPS]`; the result is one line of JSON.

use std::time::{Duration, Instant};

use sqlx::Connection as _;

type Error = Box<dyn std::error::Error>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    let mut words = std::env::args().skip(1);
    let store = words.next().ok_or("which store?")?;
    let span = Duration::from_secs(words.next().ok_or("for how many seconds?")?.parse()?);
    let is_postgres = store.starts_with("postgres");
    let loops: usize = match words.next() {
        Some(loops) if is_postgres => loops.parse()?,
        _ => 1,
    };
    sqlx::any::install_default_drivers();
    let url = if is_postgres {
        store
    } else {
        format!("sqlite://{store}")
    };
    let began = Instant::now();
    let all = (0..loops).map(|number| claim(&url, is_postgres, number, began + span));
    let claimed: u32 = futures_util::future::try_join_all(all)
        .await?
        .into_iter()
        .sum();
    let rate = f64::from(claimed) / began.elapsed().as_secs_f64();
    println!("{{\"claimed\": {claimed}, \"rate\": {rate:.1}}}");
    Ok(())
}

/// One loop; how many it has claimed.
async fn claim(url: &str, is_postgres: bool, number: usize, end: Instant) -> Result<u32, Error> {
    let mut connection = sqlx::AnyConnection::connect(url).await?;
    if !is_postgres {
        for pragma in ["PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"] {
            sqlx::query(pragma).execute(&mut connection).await?;
        }
    }
    let held = if is_postgres {
        " FOR UPDATE SKIP LOCKED"
    } else {
        ""
    };
    let claim = format!(
        "UPDATE builds SET state = 'building', started = $3, lease_until = $3, session = $4 WHERE id = (SELECT id FROM builds \
         WHERE state = 'queued' AND configuration = $1 AND target = $2 AND lane = '' ORDER BY place, id LIMIT 1{held}) RETURNING id"
    );
    let mut claimed = 0;
    let mut asked = 31 * number;
    while Instant::now() < end {
        // The configurations in turn, as agents of a farm would ask.
        let found: Option<(i64,)> = sqlx::query_as(sqlx::AssertSqlSafe(claim.as_str()))
            .bind(format!("c{}", asked % 500))
            .bind("x86_64-linux-gnu")
            .bind(1_700_000_000_000_i64)
            .bind(format!("{number:x}-{asked:062x}"))
            .fetch_optional(&mut connection)
            .await?;
        asked += 1;
        claimed += u32::from(found.is_some());
    }
    Ok(claimed)
}
