//! `GET /metrics` and `GET /healthz`, for programs that watch over a controller; and what of a request is counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::App;
use super::problem::Plain;
use crate::figures::Now;
use crate::roll::Doing;
use crate::room;

/// OpenMetrics 1.0.0.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /healthz`: 200 when this controller can do its work, else 503.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let data = app.config.data_dir.clone();
    let room = tokio::task::spawn_blocking(move || room::is_there(&data)).await;
    match room.map_err(std::io::Error::other).flatten() {
        Ok(true) => {}
        Ok(false) => {
            let sentence = "there is no room in the data directory\n";
            return (StatusCode::SERVICE_UNAVAILABLE, sentence).into_response();
        }
        Err(error) => {
            tracing::error!("health: cannot look at the data directory: {error}");
            let sentence = "the data directory cannot be used; the controller's log says why\n";
            return (StatusCode::SERVICE_UNAVAILABLE, sentence).into_response();
        }
    }
    // The cheapest look that there is, however much the store holds.
    match app.store.next_lapse().await {
        Ok(_) if !app.shutdown.is_cancelled() => "ok\n".into_response(),
        Ok(_) => (StatusCode::SERVICE_UNAVAILABLE, "it is being stopped\n").into_response(),
        Err(error) => {
            tracing::error!("health: {error}");
            let sentence = "the store cannot be used; the controller's log says why\n";
            (StatusCode::SERVICE_UNAVAILABLE, sentence).into_response()
        }
    }
}

/// `GET /metrics`.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Plain> {
    let (queued, building) = app.counts().await?;
    let next = app.store.next_lapse().await?;
    let overdue = next.map_or(0, |next| {
        app.steady().0.saturating_sub(next.0).max(0) / 1000
    });
    let mut now = Now {
        queued,
        building,
        overdue,
        ..Now::default()
    };
    for (doing, asking) in super::agents::each(&app).await? {
        let place = match doing {
            Doing::Building => 0,
            Doing::Asking => 1,
            Doing::Silent => 2,
        };
        now.agents[place] += 1;
        now.held += i64::try_from(asking).unwrap_or(i64::MAX);
    }
    Ok((
        [(header::CONTENT_TYPE, OPEN_METRICS)],
        app.figures.text(now),
    )
        .into_response())
}

/// A request that is counted when it is answered.
#[derive(Debug)]
pub(super) struct Counted {
    kind: &'static str,
    /// None: it may be held.
    began: Option<Instant>,
}

impl Counted {
    pub(super) fn begin(request: &Request<Body>) -> Self {
        let kind = kind(request.uri().path(), request.uri().query());
        let is_held = request.headers().contains_key("bbot-wait");
        Self {
            kind,
            began: (!is_held).then(Instant::now),
        }
    }

    pub(super) fn end(&self, app: &App, code: StatusCode) {
        let took: Option<Duration> = self.began.map(|began| began.elapsed());
        app.figures.answered(self.kind, code.as_u16(), took);
    }
}

/// What a request is for, in few words: what clients choose must not make new series.
fn kind(path: &str, query: Option<&str>) -> &'static str {
    let function = query.unwrap_or_default();
    let function = function.split(['&', '=']).next().unwrap_or_default();
    let first = path.trim_start_matches('/').split('/').next();
    match first.filter(|first| !first.starts_with('@')).or(Some("")) {
        Some("") if function == "build-task" => "task",
        Some("") if function == "build-result" => "result",
        Some("") if function == "upload" => "artifact",
        Some("sessions") if path.ends_with("/lease") => "lease",
        Some("sessions") if path.contains("/artifacts/") => "artifact",
        Some("sessions") => "log",
        Some("archives") => "archive",
        Some("api") => "api",
        Some("metrics" | "healthz") => "watch",
        _ => "page",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_requests() {
        for (path, query, expected) in [
            ("/", None, "page"),
            ("/", Some("build-task"), "task"),
            ("/", Some("build-task=&r=x"), "task"),
            ("/", Some("build-result"), "result"),
            ("/", Some("x=build-task"), "page"),
            ("/sessions/ab/lease", None, "lease"),
            ("/sessions/ab/log/1", None, "log"),
            ("/archives/x.tar.gz", None, "archive"),
            ("/api/v1/builds", None, "api"),
            ("/metrics", None, "watch"),
            ("/builds/1", None, "page"),
            ("//", None, "page"),
        ] {
            assert_eq!(kind(path, query), expected, "{path} {query:?}");
        }
    }
}
