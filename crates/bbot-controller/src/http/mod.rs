//! The HTTP face: the agents' protocol, the API, the pages. Handlers translate; decisions are the queue's.

mod access;
mod admit;
mod agents;
mod api;
mod archives;
mod artifacts;
mod bodies;
mod body;
mod changes;
mod cut;
mod ends;
mod follow;
mod guard;
mod hand_out;
mod held;
mod kept;
mod leases;
mod live;
mod looked;
mod metrics;
mod neighbours;
mod nonces;
mod pages;
mod params;
mod problem;
mod reach;
mod reader;
mod rebuilds;
mod result;
mod retention;
mod session;
mod signed;
mod spool;
mod steer;
mod task;
mod waits;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{Method, Request};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post, put};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::auth::AgentKeys;
use crate::buildtab::{Buildtab, LoadError};
use crate::clock::Millis;
use crate::config::Config;
use crate::crew::Crew;
use crate::dispatch::Desk;
use crate::figures::Figures;
use crate::log_limit::LogLimit;
use crate::objects::{Object, Objects, Reading};
use crate::pace::Paced;
use crate::pending::Waiting;
use crate::roll::Roll;
use crate::segments::Segments;
use crate::source::archives::Archives;
use crate::store::{Asker, Build, Head, Kind, News, Store, StoreError};
use crate::token::{SignIns, Token};
use crate::upkeep::{self, UpkeepError};
use crate::watched::Watched;

use artifacts::pieces::Uploads;
use bodies::Bodies;
use changes::Changes;
use ends::Ends;
use leases::Lapses;
use looked::Looked;
use nonces::Nonces;
use problem::chain;
use reader::Reader;
use signed::Signers;
use spool::Spool;

pub use guard::External;
pub(crate) use guard::{Base, Connection, Scheme};

/// Archives that are looked into at once: each is a core's work.
const PEEKS: usize = 2;

/// Git fetches at once: they are other people's networks and our disk.
const GIT_FETCHES: usize = 2;

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct App {
    config: Config,
    external: Option<External>,
    address: SocketAddr,
    store: Store,
    objects: Objects,
    archives: Archives,
    buildtab: Watched<Buildtab, LoadError>,
    keys: Option<AgentKeys>,
    /// What people have said about agents.
    crew: Crew,
    /// Agents that wait to be let in.
    pending: Waiting,
    /// Signed requests that have come.
    nonces: Nonces,
    /// Keys by which requests are signed.
    signers: Signers,
    token: Token,
    sign_ins: SignIns,
    /// Lines of the log about wrong tokens.
    wrong_tokens: LogLimit,
    git: Semaphore,
    /// Archives that may still be looked into.
    peeks: Arc<Semaphore>,
    /// Artifacts that come.
    uploads: Uploads,
    /// Room for bodies that are in memory.
    bodies: Bodies,
    /// Archives and artifacts that may still be put into the object store,
    putting: Arc<Semaphore>,
    /// and clients that may still read them.
    readers: Arc<Semaphore>,
    /// Results that come.
    spool: Spool,
    /// The raw logs of runs.
    segments: Arc<Segments>,
    /// What is counted.
    figures: Figures,
    /// Who has been heard of.
    agents: Roll,
    /// Clients that may still begin to follow a log,
    followers: Arc<Semaphore>,
    /// or to read a long one.
    log_readers: Arc<Semaphore>,
    /// What of the queue is known in memory, and who waits, by the buildtab as it is now.
    desk: Mutex<Arc<Desk>>,
    /// How fast builds are taken from the queue.
    paced: Paced,
    /// How many builds wait, and how many are with agents.
    counts: Looked<(i64, i64)>,
    /// Builds that are with agents.
    building: Looked<Vec<Build>>,
    /// Builds that change, for those who follow their logs.
    changes: Changes,
    /// Agents that wait to hear whether their session is over.
    ends: Ends,
    /// When the next lease lapses.
    lapses: Lapses,
    shutdown: CancellationToken,
}

impl App {
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, with everything that a start has opened"
    )]
    pub(crate) fn new(
        config: Config,
        external: Option<External>,
        address: SocketAddr,
        store: Store,
        objects: Objects,
        buildtab: Watched<Buildtab, LoadError>,
        keys: Option<AgentKeys>,
        token: Token,
        shutdown: CancellationToken,
    ) -> Self {
        let runs = config.data_dir.join("runs");
        let uploads = Uploads::new(config.data_dir.join("uploads"));
        let bodies = Bodies::new(config.limits.bodies);
        let spool = Spool::new(
            config.data_dir.clone(),
            config.limits.result,
            bodies.clone(),
        );
        let (putting, readers) = (config.limits.uploads, config.limits.readers);
        let archives = Archives::new(
            objects.clone(),
            store.clone(),
            Arc::clone(&config.clock),
            config.data_dir.join("archives"),
            config.limits.archive,
        );
        let steady = store.steady(config.clock.steady());
        let desk = Desk::new(buildtab.get(config.clock.steady()), Arc::default(), steady);
        let desk = Mutex::new(Arc::new(desk));
        Self {
            segments: Arc::new(Segments::new(runs, config.limits.run_log)),
            figures: Figures::new(),
            agents: Roll::new(steady),
            followers: Arc::new(Semaphore::new(config.limits.followers)),
            log_readers: Arc::new(Semaphore::new(config.limits.log_readers)),
            counts: Looked::default(),
            building: Looked::default(),
            changes: Changes::default(),
            ends: Ends::default(),
            lapses: Lapses::default(),
            paced: Paced::default(),
            config,
            external,
            address,
            store,
            objects,
            archives,
            buildtab,
            keys,
            crew: Crew::default(),
            pending: Waiting::default(),
            nonces: Nonces::default(),
            signers: Signers::default(),
            token,
            sign_ins: SignIns::default(),
            wrong_tokens: LogLimit::default(),
            git: Semaphore::new(GIT_FETCHES),
            peeks: Arc::new(Semaphore::new(PEEKS)),
            uploads,
            bodies,
            putting: Arc::new(Semaphore::new(putting)),
            readers: Arc::new(Semaphore::new(readers)),
            spool,
            desk,
            shutdown,
        }
    }

    /// Where the store is, for people.
    pub(crate) fn place(&self) -> &str {
        self.store.place()
    }

    fn now(&self) -> Millis {
        self.config.clock.now()
    }

    /// The buildtab as it is now.
    fn buildtab(&self) -> Arc<Buildtab> {
        self.buildtab.get(self.steady())
    }

    /// What of the queue is known in memory, by the buildtab as it is now.
    fn desk(&self) -> Arc<Desk> {
        let buildtab = self.buildtab();
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.steady();
        let next = if Arc::ptr_eq(&desk.buildtab, &buildtab) {
            desk.next(now)
        } else {
            Some(Desk::new(buildtab, Arc::default(), now))
        };
        if let Some(next) = next {
            std::mem::replace(&mut *desk, Arc::new(next)).close();
        }
        Arc::clone(&desk)
    }

    /// A build waits: who can build it is told, here and at other controllers, and who looks at it. `place`: where in the queue, if that is known.
    fn waits(&self, build: &Build, place: Option<i64>) {
        let head = place.map(|place| Head {
            place,
            build: build.id,
            failures: build.failures.clone(),
        });
        self.desk().queued(build, head);
        if self.store.is_shared() {
            let lane = build.lane.text();
            self.store.tell(&News::Queued {
                kind: Kind::of(&build.configuration, &build.target, &lane),
                is_plain: lane.is_empty(),
                builds: 1,
            });
        }
        self.build_changed(build.id);
    }

    /// How many builds wait, and how many are with agents; a while ago, where these are very many.
    async fn counts(&self) -> Result<(i64, i64), StoreError> {
        // Entries of an index, many of which are as much as a row.
        let rows = |(queued, building): &(i64, i64)| (queued + building).unsigned_abs() / 20;
        let found = self.counts.get(self.store.counts(), rows).await;
        found.map(|counts| *counts)
    }

    /// Waits until whoever looks into the queue has looked.
    pub(crate) async fn look_at_desk(&self) {
        let desk = self.desk();
        let _looking = desk.looking.lock().await;
    }

    /// Writes, in its turn, nothing.
    pub(crate) async fn write_nothing(&self) {
        let _ = self.store.write_nothing().await;
    }

    /// Whether the store is somebody else's, and may be away.
    pub(crate) fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    /// Looks at what may have changed whenever it is asked to, until `shutdown`. (Whoever needs it looks too, so that nobody
    /// has to ask: but not those who wait.)
    pub(crate) async fn reload(&self, shutdown: &CancellationToken) {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = self.config.reload.notified() => {}
            }
            if self.buildtab.reload() {
                // Those who wait are sent to the new one.
                self.desk();
            }
        }
    }

    /// Who asks for builds: a submitter, whose turns go on as fast as the farm does.
    fn asker(&self, submitter: &str) -> Asker {
        Asker {
            submitter: submitter.to_owned(),
            share: self.paced.share(),
        }
    }

    pub(crate) fn steady(&self) -> Millis {
        self.store.steady(self.config.clock.steady())
    }

    /// Tells those who follow this build or have it, here and at other controllers.
    fn build_changed(&self, build: i64) {
        self.changes.tell(build);
        self.ends.tell(build);
        self.store.tell(&News::Changed(build));
    }

    /// An object that is kept as it is, as the body of an answer.
    async fn body_of(
        self: &Arc<Self>,
        object: Object,
        reading: Reading,
    ) -> Result<Body, problem::Problem> {
        let what = "clients read archives and artifacts";
        let turn = reader::turn(&self.readers, self.config.limits.patience, what).await?;
        let (reader, body) = Reader::new(self, Some(turn));
        let app = Arc::clone(self);
        tokio::spawn(async move {
            let damaged = || {
                let (app, object) = (Arc::clone(&app), object.clone());
                tracing::error!("{} in the object store is damaged", object.place);
                tokio::spawn(async move { app.note_damaged(&object).await });
            };
            // Whoever has gone needs no more.
            let _ = reader.take(reading, &object.sha256, damaged).await;
        });
        Ok(body)
    }

    /// Room for an archive or an artifact on its way into the object store.
    async fn turn_to_put(&self) -> Result<OwnedSemaphorePermit, problem::Problem> {
        let what = "archives and artifacts come";
        reader::turn(&self.putting, self.config.limits.patience, what).await
    }

    /// Has an object that was found to be damaged put anew by whoever puts the same next.
    async fn note_damaged(&self, object: &Object) {
        if let Err(e) = self.store.note_damaged(object, self.now()).await {
            tracing::error!(
                "cannot note that {} is damaged: {}",
                object.place,
                chain(&e)
            );
        }
    }

    /// Looks after what is kept, once in a while, until `shutdown`.
    pub(crate) async fn look_after(&self, shutdown: &CancellationToken) {
        loop {
            if let Some(keep) = self.config.keep_logs {
                match self.prune(keep).await {
                    Ok(0) => {}
                    Ok(n) => tracing::info!("{n} old raw log(s) and result(s) are removed"),
                    Err(e) => tracing::error!("cannot remove old logs: {}", e.sentence),
                }
            }
            if let Some(keep) = self.config.keep_submissions {
                match self.prune_submissions(keep).await {
                    Ok(0) => {}
                    Ok(n) => tracing::info!("{n} old submission(s) are removed"),
                    Err(e) => tracing::error!("cannot remove old submissions: {}", e.sentence),
                }
            }
            if let Err(e) = self.look_after_objects().await {
                tracing::error!("cannot look after the object store: {}", chain(&e));
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(PRUNE) => {}
            }
        }
    }

    async fn look_after_objects(&self) -> Result<(), UpkeepError> {
        let archives = self.archives.move_all().await?;
        let logs = upkeep::move_logs(&self.store, &self.objects).await?;
        if archives + logs > 0 {
            tracing::info!(
                "{archives} archive(s) and {logs} log(s) were moved into {}",
                self.objects.name()
            );
        }
        self.uploads.remove_left(std::time::SystemTime::now())?;
        let now = self.now();
        let removed = upkeep::sweep(
            &self.store,
            &self.objects,
            now,
            std::time::SystemTime::now(),
        );
        match removed.await? {
            0 => {}
            removed => tracing::info!("{removed} object(s) that nothing names are removed"),
        }
        Ok(())
    }

    async fn prune(&self, keep: Duration) -> Result<usize, problem::Problem> {
        let before = Millis(self.now().0.saturating_sub(Millis(0).plus(keep).0));
        let removed = if self.store.is_shared() {
            self.prune_own_logs(before).await?
        } else {
            self.prune_all_logs(before).await?
        };
        Ok(removed + self.store.prune_attempts(before).await?)
    }

    async fn prune_all_logs(&self, before: Millis) -> Result<usize, problem::Problem> {
        let mut removed = 0;
        loop {
            let old = self.store.old_runs(before, PRUNE_AT_ONCE).await?;
            if old.is_empty() {
                return Ok(removed);
            }
            for (build, run) in &old {
                // The files first: whoever is killed in between does it once more.
                self.remove_log(*build, *run).await?;
                self.store.forget_run(*run).await?;
            }
            removed += old.len();
        }
    }

    /// Where several controllers have a store, each has raw logs of its own, and only its files say which.
    async fn prune_own_logs(&self, before: Millis) -> Result<usize, problem::Problem> {
        let failed = |e: problem::Cause<'_>| problem::Problem::internal("look for raw logs", e);
        let before = Duration::from_millis(u64::try_from(before.0).unwrap_or(0));
        let before = std::time::UNIX_EPOCH + before;
        let segments = Arc::clone(&self.segments);
        let old = tokio::task::spawn_blocking(move || segments.unchanged_since(before))
            .await
            .map_err(|e| failed(&e))?
            .map_err(|e| failed(&e))?;
        let mut removed = 0;
        for (build, run) in old {
            if !self.store.is_under_way(build, run).await? {
                self.remove_log(build, run).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    async fn remove_log(&self, build: i64, run: i64) -> Result<(), problem::Problem> {
        let failed = |e: problem::Cause<'_>| problem::Problem::internal("remove a raw log", e);
        let segments = Arc::clone(&self.segments);
        tokio::task::spawn_blocking(move || segments.remove(build, run))
            .await
            .map_err(|e| failed(&e))?
            .map_err(|e| failed(&e))
    }
}

/// Does it to its end, whether or not the client waits for that: what was written must be told to those who wait for it.
async fn to_the_end<T: Send + 'static>(
    doing: impl Future<Output = T> + Send + 'static,
) -> Result<T, problem::Problem> {
    let done = tokio::spawn(doing).await;
    done.map_err(|e| problem::Problem::internal("finish a request", &e))
}

/// How often old logs are looked for.
const PRUNE: Duration = Duration::from_secs(6 * 3600);

/// So many old logs are found at once.
const PRUNE_AT_ONCE: i64 = 100;

/// All routes, behind the checks that every request goes through.
pub(crate) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", any(root))
        .route("/@{tenant}", any(tenant_root))
        .route("/@{tenant}/", any(tenant_root))
        .route("/archives/{name}", get(archives::get))
        .route("/builds/{id}", get(pages::build))
        .route("/builds/{id}/log", get(pages::log))
        .route("/builds/{id}/log/{operation}", get(pages::operation_log))
        .route("/builds/{id}/rebuild", post(pages::rebuild))
        .route("/builds/{id}/cancel", post(pages::cancel))
        .route("/submissions/{id}", get(pages::submission))
        .route("/submissions/{id}/cancel", post(pages::cancel_submission))
        .route("/configurations", get(pages::configurations))
        .route("/agents", get(pages::agents))
        .route("/agents/drain", post(pages::drain))
        .route("/agents/resume", post(pages::resume))
        .route("/agents/approve", post(pages::approve))
        .route("/sessions/{path}/lease", post(session::lease))
        .route("/sessions/{path}/log/{number}", post(session::log))
        .route(
            "/sessions/{path}/artifacts/{type}/{sha256}",
            put(artifacts::pieces::artifact).head(artifacts::pieces::artifact),
        )
        .route("/builds/{id}/artifacts/{sha256}", get(artifacts::get))
        .route("/sign-in", get(pages::sign_in_form).post(pages::sign_in))
        .route("/sign-out", post(pages::sign_out))
        .route("/style.css", get(pages::style))
        .route("/healthz", get(metrics::health))
        .route("/metrics", get(metrics::metrics))
        .nest("/api/v1", api::router())
        .fallback(unknown)
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&app),
            guard::check,
        ))
        .with_state(app)
}

/// The same below the number of a submission, which is what the original calls a tenant: for its agents, which keep URLs with one.
async fn tenant_root(
    State(app): State<Arc<App>>,
    Path(tenant): Path<String>,
    request: Request<Body>,
) -> Response {
    if request.method() == Method::POST {
        function(app, Some(tenant), request).await
    } else {
        unknown(State(app), request).await
    }
}

/// The root: as the original has it, the name of the first URL parameter is the function.
async fn root(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    function(app, None, request).await
}

async fn function(app: Arc<App>, tenant: Option<String>, request: Request<Body>) -> Response {
    let parameters = params::parse(request.uri().query().unwrap_or_default());
    let function = parameters.first().map(|(name, _)| name.as_str());
    let agents = matches!(function, Some("build-task" | "build-result" | "upload"));
    // In boxes all but the first: ten thousand requests for a task may be held, and each has the room of the largest.
    match (function, request.method()) {
        (Some("build-task"), &Method::POST) => task::handle(&app, &parameters[1..], request)
            .await
            .into_response(),
        (Some("build-result"), &Method::POST) => {
            let result = Box::pin(async move {
                result::handle(&app, &parameters[1..], tenant.as_deref(), request)
                    .await
                    .into_response()
            });
            match to_the_end(result).await {
                Ok(answer) => answer,
                Err(problem) => problem::Plain(problem).into_response(),
            }
        }
        (Some("upload"), &Method::POST) => {
            let kind = parameters[0].1.clone();
            let form = artifacts::form::handle(&app, &kind, tenant.as_deref(), request);
            Box::pin(form).await
        }
        (_, &Method::GET | &Method::HEAD) if !agents => {
            let (head, _) = request.into_parts();
            let page = Box::pin(pages::builds(&app, &parameters, &head));
            page.await.into_response()
        }
        _ => problem::wrong_method(if agents { "POST" } else { "GET, HEAD" }),
    }
}

/// Whatever else is asked for: told in JSON below the API, on a page elsewhere.
async fn unknown(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    if request.uri().path().starts_with("/api/") {
        return api::unknown().await.into_response();
    }
    pages::unknown(&app, request.headers()).into_response()
}
