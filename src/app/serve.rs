//! The HTTP server of agent and controller: `/metrics`, `/healthz`, `/readyz`.
//!
//! It never sends a request, so that liveness depends on no other part of the cluster.

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{StatusCode, header};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::model::text::one_line;

/// Time that a client has to send a request's header.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);
/// Time for a whole connection, which carries one request.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of open connections. A further one closes the oldest, so that idle connections cannot fail a probe.
const MAX_CONNECTIONS: usize = 32;
/// Maximum size of a request's header in bytes.
const MAX_HEADER_BYTES: usize = 16 << 10;
/// Pause after a failed accept, for example when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Characters of a failing check's reason.
const REASON_MAX: usize = 200;
/// The media type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The named checks of a process's readiness, shared by all clones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness(Arc<Mutex<Vec<NamedCheck>>>);

#[derive(Debug)]
struct NamedCheck {
    name: &'static str,
    /// The reason why it fails; `None` if it passes.
    failure: Option<String>,
}

impl Readiness {
    /// Adds a check, which fails with this reason until it passes. A name that exists is replaced.
    pub(crate) fn check(&self, name: &'static str, failure: &str) -> Check {
        let check = Check {
            readiness: self.clone(),
            name,
        };
        check.fail(failure);
        check
    }

    /// Returns whether every check passes.
    #[cfg(test)]
    pub(crate) fn is_ready(&self) -> bool {
        self.with(|checks| checks.iter().all(|check| check.failure.is_none()))
    }

    /// One line for each check, as the API server's own `/readyz?verbose` has them.
    fn report(&self) -> (bool, String) {
        self.with(|checks| {
            let lines = checks.iter().map(|check| match &check.failure {
                None => format!("[+]{} ok\n", check.name),
                Some(failure) => format!("[-]{} failed: {failure}\n", check.name),
            });
            let ready = checks.iter().all(|check| check.failure.is_none());
            (ready, lines.collect())
        })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Vec<NamedCheck>) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// One check of a [`Readiness`]. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub(crate) struct Check {
    readiness: Readiness,
    name: &'static str,
}

impl Check {
    /// The check passes from now on.
    pub(crate) fn pass(&self) {
        self.set(None);
    }

    /// The check fails from now on.
    pub(crate) fn fail(&self, failure: &str) {
        self.set(Some(one_line(failure, REASON_MAX)));
    }

    fn set(&self, failure: Option<String>) {
        let name = self.name;
        self.readiness
            .with(|checks| match checks.iter_mut().find(|c| c.name == name) {
                Some(check) => check.failure = failure,
                None => checks.push(NamedCheck { name, failure }),
            });
    }
}

/// The progress of a process's main loop, shared by all clones. The loop calls [`Liveness::beat`] on each turn, at least twice
/// within the limit, also when it has nothing to do.
#[derive(Debug, Clone)]
pub(crate) struct Liveness {
    limit: Duration,
    started: Instant,
    /// Milliseconds from the start to the last beat.
    last: Arc<AtomicU64>,
}

impl Liveness {
    /// A main loop that counts as stuck after `limit` without a beat. Creating it is the first beat.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            started: Instant::now(),
            last: Arc::default(),
        }
    }

    /// The main loop made progress.
    pub(crate) fn beat(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.fetch_max(now, Ordering::Relaxed);
    }

    /// The time since the last beat.
    fn silence(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }
}

/// The content of the responses. Cloning it is cheap.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    /// The metrics of `/metrics`.
    pub(crate) metrics: Arc<Registry>,
    /// The checks of `/readyz`.
    pub(crate) readiness: Readiness,
    /// The progress of `/healthz`.
    pub(crate) liveness: Liveness,
}

/// The address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {address} (--metrics-address): {}", reason(.source))]
pub(crate) struct BindError {
    address: SocketAddr,
    source: std::io::Error,
}

fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            "the address is in use; choose another port, such as 0.0.0.0:9465".to_owned()
        }
        std::io::ErrorKind::AddrNotAvailable => "this machine has no such address".to_owned(),
        _ => error.to_string(),
    }
}

/// A server that listens.
pub(crate) struct Server {
    listener: TcpListener,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Server").field(&self.address()).finish()
    }
}

impl Server {
    /// Listens on the address. Port 0 is any free port.
    ///
    /// # Errors
    /// If the address is in use or not available.
    pub(crate) async fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let bound = TcpListener::bind(address).await;
        let listener = bound.map_err(|source| BindError { address, source })?;
        Ok(Self { listener })
    }

    /// The address that it listens on, with the port that port 0 became.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Answers requests until `stop` is cancelled, then closes all connections.
    pub(crate) async fn run(self, served: Served, stop: CancellationToken) {
        let router = router(served);
        let mut connections = Connections::default();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => connections.add(stream, router.clone()),
                Err(error) => {
                    tracing::debug!(%error, "failed to accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The open connections, oldest first. Dropping it closes them.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    oldest: VecDeque<AbortHandle>,
}

impl Connections {
    fn add(&mut self, stream: TcpStream, router: Router) {
        while self.tasks.try_join_next().is_some() {}
        self.oldest.retain(|task| !task.is_finished());
        if self.oldest.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.oldest.pop_front()
        {
            oldest.abort();
        }
        let task = self.tasks.spawn(answer(stream, router));
        self.oldest.push_back(task);
    }
}

/// Answers the one request of a connection.
async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(MAX_HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    // An error is the client's: it closed the connection or sent no valid request.
    let _ = timeout(CONNECTION_TIMEOUT, connection).await;
}

fn router(served: Served) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .with_state(served)
}

async fn metrics(State(served): State<Served>) -> impl IntoResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &served.metrics) {
        Ok(()) => (StatusCode::OK, [(header::CONTENT_TYPE, OPEN_METRICS)], text),
        Err(_) => {
            let text = "failed to encode the metrics\n".to_owned();
            let plain = "text/plain; charset=utf-8";
            let type_ = [(header::CONTENT_TYPE, plain)];
            (StatusCode::INTERNAL_SERVER_ERROR, type_, text)
        }
    }
}

async fn healthz(State(served): State<Served>) -> impl IntoResponse {
    let (silence, limit) = (served.liveness.silence(), served.liveness.limit);
    if silence < limit {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let seconds = silence.as_secs();
    let text = format!("the main loop made no progress for {seconds} s\n");
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn readyz(State(served): State<Served>) -> impl IntoResponse {
    match served.readiness.report() {
        (true, report) => (StatusCode::OK, format!("{report}ok\n")),
        (false, report) => (StatusCode::SERVICE_UNAVAILABLE, report),
    }
}

#[cfg(test)]
mod tests;
