//! The HTTP face: the agents' protocol, the API, the pages. Handlers translate; decisions are the queue's.

mod api;
mod archives;
mod body;
mod guard;
mod pages;
mod params;
mod problem;
mod result;
mod task;
mod view;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Method, Request};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{any, get, post, put};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::auth::AgentKeys;
use crate::buildtab::Buildtab;
use crate::clock::Millis;
use crate::config::Config;
use crate::source::archives::Archives;
use crate::store::{Store, StoreError};
use crate::token::{SignIns, Token};

pub use guard::External;
pub(crate) use guard::{Base, Connection};

/// Git fetches at once: they are other people's networks and our disk.
const GIT_FETCHES: usize = 2;

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct App {
    config: Config,
    external: Option<External>,
    address: SocketAddr,
    store: Store,
    archives: Archives,
    buildtab: Buildtab,
    keys: Option<AgentKeys>,
    token: Token,
    sign_ins: SignIns,
    git: Semaphore,
    /// Counts up whenever a build is queued, so that waiting agents look again.
    queued: watch::Sender<u64>,
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
        archives: Archives,
        buildtab: Buildtab,
        keys: Option<AgentKeys>,
        token: Token,
        shutdown: CancellationToken,
    ) -> Self {
        Self {
            config,
            external,
            address,
            store,
            archives,
            buildtab,
            keys,
            token,
            sign_ins: SignIns::default(),
            git: Semaphore::new(GIT_FETCHES),
            queued: watch::Sender::new(0),
            shutdown,
        }
    }

    fn now(&self) -> Millis {
        self.config.clock.now()
    }

    /// Tells waiting agents that there may be something for them.
    fn wake_agents(&self) {
        self.queued.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Queues builds again whose agents have not been heard of in time.
    pub(crate) async fn requeue_lapsed(&self) -> Result<(), StoreError> {
        let lapsed = self.store.requeue_lapsed(self.now()).await?;
        for build in &lapsed {
            tracing::warn!(
                build.id,
                agent = build.agent.as_deref().unwrap_or_default(),
                "no result of build {} in time: queued again",
                build.id
            );
        }
        if !lapsed.is_empty() {
            self.wake_agents();
        }
        Ok(())
    }
}

/// All routes, behind the checks that every request goes through.
pub(crate) fn router(app: Arc<App>) -> Router {
    let api = Router::new()
        .route("/archives/{sha256}", put(archives::put))
        .route("/submissions", post(api::submit))
        .route("/submissions/{id}", get(api::submission))
        .route("/builds", get(api::builds))
        .route("/builds/{id}", get(api::build))
        .route("/builds/{id}/log", get(api::log))
        .route("/builds/{id}/log/{operation}", get(api::operation_log))
        .route("/builds/{id}/rebuild", post(api::rebuild))
        .route("/configurations", get(api::configurations_list))
        .fallback(api::unknown)
        .method_not_allowed_fallback(api::wrong_method);
    Router::new()
        .route("/", any(root))
        .route("/archives/{name}", get(archives::get))
        .route("/builds/{id}", get(pages::build))
        .route("/builds/{id}/log", get(pages::log))
        .route("/builds/{id}/log/{operation}", get(pages::operation_log))
        .route("/builds/{id}/rebuild", post(pages::rebuild))
        .route("/submissions/{id}", get(pages::submission))
        .route("/configurations", get(pages::configurations))
        .route("/sign-in", get(pages::sign_in_form).post(pages::sign_in))
        .route("/sign-out", post(pages::sign_out))
        .route("/style.css", get(pages::style))
        .nest("/api/v1", api)
        .fallback(unknown)
        .layer(axum::middleware::from_fn_with_state(
            Arc::clone(&app),
            guard::check,
        ))
        .with_state(app)
}

/// The root: as the original has it, the name of the first URL parameter is the function.
async fn root(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    let parameters = params::parse(request.uri().query().unwrap_or_default());
    let function = parameters.first().map(|(name, _)| name.as_str());
    let agents = matches!(function, Some("build-task" | "build-result"));
    match (function, request.method()) {
        (Some("build-task"), &Method::POST) => task::handle(&app, &parameters[1..], request)
            .await
            .into_response(),
        (Some("build-result"), &Method::POST) => result::handle(&app, &parameters[1..], request)
            .await
            .into_response(),
        (_, &Method::GET | &Method::HEAD) if !agents => {
            let (head, _) = request.into_parts();
            pages::builds(&app, &parameters, &head)
                .await
                .into_response()
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
