//! The daemon: opens everything, listens, and ends in order.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::{AgentKeys, KeyError};
use crate::buildtab::{Buildtab, LoadError};
use crate::config::Config;
use crate::http::{self, App, Connection, Scheme};
use crate::objects::{ObjectError, Objects};
use crate::patience;
use crate::store::StoreError;
use crate::tls::TlsError;
use crate::token::{Token, TokenError};
use crate::watchdog;
use crate::watched::Watched;

/// The controller could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}; give another with --data")]
    Data {
        /// The directory.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// Another controller uses the data directory.
    #[error("another controller uses {path}: stop it, or give another directory with --data")]
    Locked {
        /// The directory.
        path: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {hint}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// How to mend it.
        hint: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The external URL is none.
    #[error("--external-url {url}: {what}")]
    ExternalUrl {
        /// What was given.
        url: String,
        /// What is wrong.
        what: &'static str,
    },
    /// The buildtab.
    #[error(transparent)]
    Buildtab(#[from] LoadError),
    /// The agents' keys.
    #[error(transparent)]
    Keys(#[from] KeyError),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The object store.
    #[error(transparent)]
    Objects(#[from] ObjectError),
}

/// A client has this long to send a request's head; slow ones must not hold connections.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);

/// And this long to agree on TLS.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A client that takes nothing of an answer for so long is cut off.
const STALLED: Duration = Duration::from_secs(120);

/// Bytes that are read ahead of a connection, and the most that the head of a request may have. It is held for as long as the connection
/// is, and ten thousand agents may wait.
const READ_AHEAD: usize = 8192;

/// Requests that are under way at the end have this long to finish.
const GRACE: Duration = Duration::from_secs(10);

/// Runs a controller until `shutdown` is cancelled.
///
/// # Errors
/// Something that it needs cannot be used; see [`RunError`]. Once it listens, single failures are logged
/// and answered, and do not end it.
pub async fn run(mut config: Config, shutdown: CancellationToken) -> Result<(), RunError> {
    let data = config.data_dir.clone();
    let data_error = |source| RunError::Data {
        path: data.display().to_string(),
        source,
    };
    make_private_directory(&data).map_err(data_error)?;
    let _lock = lock(&data)?;
    let buildtab = match &config.buildtab {
        Some(path) => {
            let file = path.clone();
            Watched::open(vec![path.clone()], move || Buildtab::load(&file))?
        }
        None => Watched::fixed(Buildtab::default()),
    };
    let keys = config
        .agent_keys
        .as_deref()
        .map(AgentKeys::open)
        .transpose()?;
    let token = Token::open(&config.token_path())?;
    let objects = Objects::open(&config.objects_place())?;
    let external = config
        .external_url
        .as_deref()
        .map(http::External::parse)
        .transpose()
        .map_err(|what| RunError::ExternalUrl {
            url: config.external_url.clone().unwrap_or_default(),
            what,
        })?;
    let tls = match config.tls.clone() {
        Some(files) => Some(Watched::open(files.paths(), move || files.load())?),
        None => None,
    };
    let Some(store) = patience::open(&config, &shutdown).await? else {
        tracing::info!("stopped");
        return Ok(());
    };

    let listener = TcpListener::bind(config.bind)
        .await
        .map_err(|source| RunError::Listen {
            address: config.bind,
            hint: listen_hint(&source),
            source,
        })?;
    let address = listener.local_addr().map_err(data_error)?;
    let connections = Arc::new(Semaphore::new(room_for(config.limits.connections)));
    let bound = config.bound.take();
    let app = Arc::new(App::new(
        config,
        external,
        address,
        store.clone(),
        objects,
        buildtab,
        keys,
        token,
        shutdown.clone(),
    ));
    app.hear_said().await?;
    app.restart_leases().await?;
    tracing::info!(%address, data = %data.display(), store = app.place(), "listening on {address}");
    if let Some(bound) = bound {
        // Nobody waiting for it any more is no reason to stop.
        let _ = bound.send(address);
    }

    let router = http::router(Arc::clone(&app));
    let tasks = TaskTracker::new();
    let leases = {
        let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
        tokio::spawn(async move { app.watch_leases(&shutdown).await })
    };
    let upkeep = {
        let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
        tokio::spawn(async move { app.look_after(&shutdown).await })
    };
    let rebuilds = {
        let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
        tokio::spawn(async move { app.watch_rebuilds(&shutdown).await })
    };
    let reloading = {
        let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
        tokio::spawn(async move { app.reload(&shutdown).await })
    };
    let neighbours = {
        let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
        tokio::spawn(async move { app.hear_neighbours(&shutdown).await })
    };
    let watching = {
        let (app, shutdown) = (Arc::clone(&app), shutdown.clone());
        tokio::spawn(async move { watchdog::watch(app, &shutdown).await })
    };
    loop {
        // The permit comes first: at the limit, further clients wait in the kernel's queue.
        let permit = tokio::select! {
            () = shutdown.cancelled() => break,
            permit = Arc::clone(&connections).acquire_owned() => permit,
        };
        let Ok(permit) = permit else { break };
        let (stream, peer) = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(e) => {
                    // Out of descriptors, mostly; it passes when others close theirs.
                    tracing::warn!("cannot accept a connection: {e}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let router = TowerToHyperService::new(router.clone());
        let shutdown = shutdown.clone();
        let tls = tls.as_ref().map(|tls| tls.get(app.steady()));
        tasks.spawn(async move {
            accepted(stream, peer, tls, router, shutdown).await;
            drop(permit);
        });
    }
    drop(listener);
    tasks.close();
    if tokio::time::timeout(GRACE, tasks.wait()).await.is_err() {
        tracing::warn!(
            "requests were still under way after {} s and are cut off",
            GRACE.as_secs()
        );
    }
    leases.abort();
    upkeep.abort();
    rebuilds.abort();
    reloading.abort();
    neighbours.abort();
    watching.abort();
    store.close().await;
    tracing::info!("stopped");
    Ok(())
}

/// Files that are open beside connections: the store's, logs, archives, with much to spare.
const OTHER_FILES: u64 = 256;

/// So many connections can be had of those that are wanted: each is an open file, of which a process has not many before it asks
/// for more.
fn room_for(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let need = wanted as u64 + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let mut have = limit.current.unwrap_or(u64::MAX);
    if have < need {
        let raised = limit.maximum.map_or(need, |maximum| maximum.min(need));
        let wish = Rlimit {
            current: Some(raised),
            maximum: limit.maximum,
        };
        if raised > have && setrlimit(Resource::Nofile, wish).is_ok() {
            have = raised;
        }
    }
    let room = have.saturating_sub(OTHER_FILES).max(8);
    if room < wanted as u64 {
        tracing::warn!(
            "only {room} connections at once instead of {wanted}: the process may open {have} files (LimitNOFILE=, ulimit -n)"
        );
    }
    wanted.min(usize::try_from(room).unwrap_or(usize::MAX))
}

fn listen_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another program listens there; stop it, or choose another port with --listen"
        }
        io::ErrorKind::PermissionDenied => {
            "ports below 1024 need root; choose another with --listen"
        }
        io::ErrorKind::AddrNotAvailable => {
            "this computer has no such address; choose another with --listen"
        }
        _ => "choose another address with --listen",
    }
}

fn make_private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    // Sources and logs are nobody else's business. A directory that is there keeps its mode.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Holds the data directory for this process alone.
pub(crate) fn lock(data: &Path) -> Result<std::fs::File, RunError> {
    let fail = |source| RunError::Data {
        path: data.display().to_string(),
        source,
    };
    let file = std::fs::File::create(data.join("lock")).map_err(fail)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(RunError::Locked {
            path: data.display().to_string(),
        }),
        Err(e) => Err(fail(e.into())),
    }
}

/// The routes, with what they must know of the connection.
struct Service {
    router: TowerToHyperService<axum::Router>,
    connection: Connection,
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.connection);
        Box::pin(self.router.call(request))
    }
}

/// Has the kernel end a connection whose other end is gone without a word, or takes nothing any more: it would hold its
/// place for ever, and an agent's held request would get a task.
fn notice_dead_peers(stream: &TcpStream) {
    use rustix::net::sockopt;
    // All of these only make it better: a system without them still serves.
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, Duration::from_secs(20));
    let _ = sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10));
    let _ = sockopt::set_tcp_keepcnt(stream, 3);
    let timeout = u32::try_from(STALLED.as_millis()).unwrap_or(u32::MAX);
    let _ = sockopt::set_tcp_user_timeout(stream, timeout);
}

async fn accepted(
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Arc<rustls::ServerConfig>>,
    router: TowerToHyperService<axum::Router>,
    shutdown: CancellationToken,
) {
    let Ok(local) = stream.local_addr() else {
        return;
    };
    notice_dead_peers(&stream);
    // Answers are short: without this, the second write of one waits for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let service = Service {
        router,
        connection: Connection {
            local,
            peer,
            scheme: if tls.is_some() {
                Scheme::Https
            } else {
                Scheme::Http
            },
        },
    };
    let Some(tls) = tls else {
        return serve(stream, peer, service, shutdown).await;
    };
    // In boxes, as the connections without TLS would have the room for it too.
    let handshake = TlsAcceptor::from(tls).accept(stream);
    let handshake = Box::pin(tokio::time::timeout(HANDSHAKE, handshake));
    let accepted = tokio::select! {
        accepted = handshake => accepted,
        () = shutdown.cancelled() => return,
    };
    match accepted {
        Ok(Ok(stream)) => Box::pin(serve(stream, peer, service, shutdown)).await,
        Ok(Err(error)) => tracing::debug!(%peer, "connection: no TLS: {error}"),
        Err(_) => tracing::debug!(%peer, "connection: no TLS in time"),
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    service: Service,
    shutdown: CancellationToken,
) {
    // Where it stays at once: what is moved takes its room twice, and there may be ten thousand.
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(READ_AHEAD)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.as_mut().await
        }
    };
    if let Err(e) = ended {
        tracing::debug!(%peer, "connection: {e}");
    }
}
