//! Tasks that are handed out at once: each as if it were alone.

use std::collections::HashSet;
use std::time::Duration;

use bbot_controller::clock::Millis;
use bbot_controller::store::{Instead, NewLease, SessionSigning, Store, StoreError, Waiting};
use bbot_signature::{Ephemeral, PublicKey, SessionKey};
use futures_util::future::Either;
use sha2::Digest as _;
use sqlx::Connection as _;

use crate::cluster::Cluster;
use crate::store::{lease, on_both, runtime, submit};

/// Hand-outs that come at once may share a transaction: each comes to what it would have come to alone, be there one that cannot be
/// kept or not.
#[test]
fn hand_outs_at_once_harm_no_other() {
    on_both(async |place| {
        let store = place.open().await;
        store.drain_agent("drained", None, Millis(0)).await.unwrap();
        for is_bad in [false, true] {
            hand_out_at_once(&store, is_bad).await;
        }
        store.close().await;
    });
}

async fn hand_out_at_once(store: &Store, is_bad: bool) {
    let mut builds = Vec::new();
    for n in 0..40 {
        builds.push(submit(store, &format!("p{n}"), 0).await);
    }
    let sessions: Vec<String> = (0..40).map(|n| format!("{is_bad}-{n}")).collect();
    let of = |n: usize| lease(builds[n], &sessions[n], 100);
    let agent = PublicKey::parse(&Ephemeral::new().unwrap().public()).unwrap();
    let key = SessionKey::parse(&"0f".repeat(32)).unwrap();
    let signing = Some(SessionSigning {
        key: &key,
        agent: &agent,
    });
    let any = Instead::First(Waiting {
        configuration: "c",
        target: "t",
        lane: "",
        repository: None,
    });
    let mut all: Vec<NewLease<'_>> = (0..30).map(of).collect();
    all.extend([
        // A session that there is, or not; a build that is gone; the same where another will do; whoever is drained; one key twice;
        NewLease {
            session: &sessions[if is_bad { 3 } else { 30 }],
            ..of(30)
        },
        NewLease {
            build: builds[4],
            ..of(31)
        },
        NewLease {
            build: builds[5],
            instead: any,
            ..of(32)
        },
        NewLease {
            agent: "drained",
            instead: any,
            ..of(33)
        },
        NewLease { signing, ..of(34) },
        NewLease { signing, ..of(35) },
        // what a database may not take as it is; one build twice.
        NewLease {
            machine_summary: "a\0b",
            until: Millis(i64::MAX),
            ..of(36)
        },
        of(37),
        NewLease {
            build: builds[37],
            ..of(38)
        },
    ]);
    let handed = all.iter().map(|new| store.lease(new, Millis(1)));
    let handed = futures_util::future::join_all(handed).await;
    let got: Vec<Option<i64>> = handed
        .iter()
        .map(|handed| handed.as_ref().ok()?.as_ref().map(|l| l.build.id))
        .collect();
    for n in (0..=30).chain([36]) {
        if !is_bad || (n != 3 && n != 30) {
            assert_eq!(got[n], Some(builds[n]), "{n}");
        }
    }
    // Who of two is first is not said.
    let failed = [3, 30].iter().filter(|n| handed[**n].is_err()).count();
    assert_eq!(failed, usize::from(is_bad));
    assert!(matches!(handed[31], Ok(None)) && matches!(handed[33], Ok(None)));
    assert!(got[32].is_some_and(|id| id != builds[5]), "{got:?}");
    let used = |n: usize| matches!(handed[n], Err(StoreError::UsedKey));
    assert!(used(34) != used(35), "{handed:?}");
    assert!(handed[37].is_ok() && handed[38].is_ok());
    let given: HashSet<i64> = got.iter().flatten().copied().collect();
    assert_eq!(given.len(), got.iter().flatten().count(), "each once");
    // What is kept is what was said.
    for handed in handed.iter().flatten().flatten() {
        let session = handed.build.session.clone().unwrap();
        let facts = store.session_by_path(&session).await.unwrap().unwrap();
        assert_eq!(facts.build.id, handed.build.id);
        let mut kept = store.build(handed.build.id).await.unwrap().unwrap();
        if kept.id == builds[36] {
            // PostgreSQL has no text with a zero byte.
            let summary = kept.machine_summary.replace("a\0b".to_owned());
            assert!(matches!(summary.as_deref(), Some("a\0b" | "a\u{fffd}b")));
        }
        assert_eq!(kept, handed.build);
    }
}

/// Who is about to be drained keeps others from nothing.
#[test]
fn an_agent_that_somebody_holds_holds_up_no_other() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let url = cluster.database();
    runtime().block_on(async {
        let store = Store::open_postgres(&url, Millis(0)).await.unwrap();
        let mut builds = Vec::new();
        for n in 0..=20 {
            builds.push(submit(&store, &format!("p{n}"), 0).await);
        }
        // As the transaction that drains it does, if it stays.
        let hash = sha2::Sha256::digest("held");
        let lock = i64::from_le_bytes(hash[..8].try_into().unwrap());
        let mut other = sqlx::AnyConnection::connect(&url).await.unwrap();
        sqlx::query("SELECT COUNT(pg_advisory_lock($1))")
            .bind(lock)
            .execute(&mut other)
            .await
            .unwrap();
        let sessions: Vec<String> = (0..=20).map(|n| format!("s{n}")).collect();
        let all: Vec<NewLease<'_>> = (0..=20)
            .map(|n| NewLease {
                agent: if n == 10 { "held" } else { "free" },
                ..lease(builds[n], &sessions[n], 100)
            })
            .collect();
        let handed = all[..20].iter().map(|new| store.lease(new, Millis(1)));
        let handed = futures_util::future::join_all(handed);
        // Who comes while they are held up is not.
        let later = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            store.lease(&all[20], Millis(1)).await
        };
        let handed = match futures_util::future::select(Box::pin(handed), Box::pin(later)).await {
            Either::Left(_) => panic!("the later one waits for the others"),
            Either::Right((later, handed)) => {
                assert!(later.unwrap().is_some());
                handed.await
            }
        };
        for (n, handed) in handed.iter().enumerate() {
            match handed {
                Ok(lease) => assert!(n != 10 && lease.is_some(), "{n}"),
                Err(e) => assert!(n == 10 && e.is_passing(), "{n}: {e:?}"),
            }
        }
        other.close().await.unwrap();
        let again = store.lease(&all[10], Millis(2)).await.unwrap();
        assert!(again.is_some());
        store.close().await;
        let closed = store.lease(&all[10], Millis(2)).await;
        assert!(
            matches!(closed, Err(StoreError::Closed { .. })),
            "{closed:?}"
        );
    });
}
