//! An HTTP proxy on loopback that produces faults on demand, in front of a real registry or API server.
//!
//! Requests without a fault are answered by the real server; only the connection is faulty.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{block_on, client};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Parts = stream::BoxStream<'static, Result<Bytes, Error>>;
type Body = UnsyncBoxBody<Bytes, Error>;

/// Longer than any test.
const FOREVER: Duration = Duration::from_secs(3600);

/// The handling of one request.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Passed to the server.
    Pass,
    /// This response, without passing the request to the server.
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// The connection is closed without a response.
    Close,
    /// Passed after this delay.
    Delay(Duration),
    /// Passed after the test opens the gate.
    Hold(Gate),
    /// Never answered.
    Stall,
    /// The response stalls after this many bytes of its body.
    StallAfter(usize),
    /// The connection is closed after this many bytes of the response's body.
    CutAfter(usize),
    /// The body is limited to this many bytes per second.
    Throttle(usize),
    /// Passed without its `Range`, so that all bytes come, as from a server that has no ranges; no faster than this.
    WholeAt(usize),
    /// A long response with status 200, generated while it is sent: a start, this many `x`, an end.
    Long {
        media_type: &'static str,
        start: &'static str,
        filling: u64,
        end: &'static str,
    },
}

impl Fault {
    /// An error in the format of registries: `{"errors":[{"code":...,"message":...}]}`.
    pub fn status(status: u16) -> Self {
        let body = format!(
            r#"{{"errors":[{{"code":"FAULT","message":"made by the test, status {status}"}}]}}"#
        );
        Self::Answer {
            status,
            headers: vec![("content-type", "application/json".into())],
            body,
        }
    }

    /// 429 with `Retry-After`, like Docker Hub's rate limit.
    pub fn too_many(retry_after_seconds: u64) -> Self {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;
        let headers = vec![
            ("content-type", "application/json".into()),
            ("retry-after", retry_after_seconds.to_string()),
        ];
        Self::Answer {
            status: 429,
            headers,
            body: body.into(),
        }
    }
}

/// A gate that requests wait for until the test opens it, permanently.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Semaphore>);

impl Gate {
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    pub fn open(&self) {
        self.0.close();
    }

    async fn passed(&self) {
        // There is never a permit: this returns when the semaphore is closed.
        let _ = self.0.acquire().await;
    }
}

/// A request to the proxy.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    /// Without the `?`; empty if there is none.
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    /// Number of requests with this method and path so far, including this one.
    pub nth: usize,
}

impl Seen {
    /// A manifest, or a blob's download, of the repository `name`; not the check of the API's base path.
    pub fn is_of(&self, name: &str) -> bool {
        self.path
            .strip_prefix("/v2/")
            .and_then(|path| path.strip_prefix(name))
            .is_some_and(|rest| rest.starts_with('/'))
    }

    /// A blob's download.
    pub fn is_blob(&self) -> bool {
        self.method == Method::GET && self.path.contains("/blobs/")
    }

    /// A request of containerd's own.
    pub fn is_by_containerd(&self) -> bool {
        let agent = self.headers["user-agent"].to_str().unwrap();
        agent.starts_with("containerd/")
    }

    pub fn is_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }

    /// The repository of a manifest or a blob.
    pub fn repository(&self) -> Option<&str> {
        let name = self.path.strip_prefix("/v2/")?;
        ["/manifests/", "/blobs/"]
            .iter()
            .find_map(|part| name.split_once(part))
            .map(|(name, _)| name)
    }
}

/// The `fault` for the first `count` requests that are `chosen`; all others pass.
pub fn first(
    count: usize,
    fault: Fault,
    chosen: impl Fn(&Seen) -> bool + Send + Sync + 'static,
) -> impl Fn(&Seen) -> Fault + Send + Sync {
    let made = AtomicUsize::new(0);
    move |seen| {
        if chosen(seen) && made.fetch_add(1, Ordering::SeqCst) < count {
            fault.clone()
        } else {
            Fault::Pass
        }
    }
}

/// The proxy. When dropped, it closes its port and all connections, like a server that disappears.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// A proxy that holds every blob until the gate is opened.
    pub fn holding_blobs(upstream: &str, gate: &Gate) -> Self {
        let held = gate.clone();
        Self::start(upstream, move |seen| {
            if seen.is_blob() {
                Fault::Hold(held.clone())
            } else {
                Fault::Pass
            }
        })
    }

    /// In front of a server over plain http, such as [`super::Registry::url`]; `decide` is asked for each request, and
    /// may block.
    pub fn start(upstream: &str, decide: impl Fn(&Seen) -> Fault + Send + Sync + 'static) -> Self {
        Self::launch(upstream, client(None), Box::new(decide))
    }

    /// The same in front of a server over https whose certificate this CA signed; the proxy itself speaks plain http.
    pub fn start_tls(
        upstream: &str,
        ca: &Path,
        decide: impl Fn(&Seen) -> Fault + Send + Sync + 'static,
    ) -> Self {
        Self::launch(upstream, client(Some(ca)), Box::new(decide))
    }

    /// `127.0.0.1:PORT`
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The reference of an image of the registry behind by way of the proxy.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    /// All requests so far, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Number of requests so far that were `chosen`.
    pub fn count(&self, chosen: impl Fn(&Seen) -> bool) -> usize {
        self.shared
            .seen
            .lock()
            .unwrap()
            .iter()
            .filter(|seen| chosen(seen))
            .count()
    }

    /// Number of body bytes that the server has sent so far, as transferred.
    pub fn bytes(&self) -> u64 {
        self.shared.bytes.load(Ordering::Relaxed)
    }

    /// Requests in progress.
    pub fn now(&self) -> usize {
        self.shared.busy.lock().unwrap().requests
    }

    /// Maximum number of requests in progress at once.
    pub fn most_at_once(&self) -> usize {
        self.shared.busy.lock().unwrap().most_requests
    }

    /// Maximum number of repositories with requests in progress at once.
    pub fn most_repositories_at_once(&self) -> usize {
        self.shared.busy.lock().unwrap().most_repositories
    }

    fn launch(upstream: &str, client: reqwest::Client, decide: Box<Decide>) -> Self {
        let upstream = upstream.to_owned();
        let shared = Arc::new(Shared {
            upstream,
            client,
            decide,
            seen: Mutex::default(),
            nth: Mutex::default(),
            busy: Mutex::default(),
            bytes: AtomicU64::default(),
        });
        let serving = Arc::clone(&shared);
        let (address, task) = block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            (
                listener.local_addr().unwrap(),
                tokio::spawn(accept(listener, serving)),
            )
        });
        Self {
            address,
            shared,
            task,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Decide = dyn Fn(&Seen) -> Fault + Send + Sync;

struct Shared {
    upstream: String,
    client: reqwest::Client,
    decide: Box<Decide>,
    seen: Mutex<Vec<Seen>>,
    nth: Mutex<BTreeMap<String, usize>>,
    busy: Mutex<AtOnce>,
    bytes: AtomicU64,
}

/// The requests in progress, and their maximum.
#[derive(Debug, Default)]
struct AtOnce {
    requests: usize,
    most_requests: usize,
    repositories: BTreeMap<String, usize>,
    most_repositories: usize,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("upstream", &self.upstream)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

/// A request in progress, until its body's end.
struct Busy {
    shared: Arc<Shared>,
    repository: Option<String>,
}

impl Busy {
    fn new(shared: &Arc<Shared>, seen: &Seen) -> Self {
        let repository = seen.repository().map(str::to_owned);
        let mut busy = shared.busy.lock().unwrap();
        busy.requests += 1;
        busy.most_requests = busy.most_requests.max(busy.requests);
        if let Some(repository) = &repository {
            *busy.repositories.entry(repository.clone()).or_default() += 1;
            busy.most_repositories = busy.most_repositories.max(busy.repositories.len());
        }
        Self {
            shared: Arc::clone(shared),
            repository,
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut busy = self.shared.busy.lock().unwrap();
        busy.requests -= 1;
        if let Some(repository) = &self.repository {
            let left = busy.repositories.get_mut(repository).unwrap();
            *left -= 1;
            if *left == 0 {
                busy.repositories.remove(repository);
            }
        }
    }
}

/// The connections end with the task, since the set aborts what is in it when it is dropped.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            continue;
        };
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = hyper::service::service_fn(|request| shared.answer(request));
            // An error means that either side closed the connection.
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(connection), service)
                .await;
        });
    }
}

impl Shared {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Result<Response<Body>, Error> {
        let (head, body) = request.into_parts();
        let request = Request::from_parts(head, body.collect().await?.to_bytes());
        let seen = self.note(&request);
        let busy = Busy::new(self, &seen);
        // A test may well do something between two requests, and wait for it.
        let fault = tokio::task::block_in_place(|| (self.decide)(&seen));
        match &fault {
            Fault::Answer {
                status,
                headers,
                body,
            } => {
                let mut answer = Response::new(
                    Full::from(body.clone())
                        .map_err(|never: Infallible| match never {})
                        .boxed_unsync(),
                );
                *answer.status_mut() = StatusCode::from_u16(*status)?;
                for (name, value) in headers {
                    answer
                        .headers_mut()
                        .insert(HeaderName::from_static(name), HeaderValue::from_str(value)?);
                }
                return Ok(answer);
            }
            Fault::Close => return Err("closed by the test".into()),
            Fault::Delay(time) => tokio::time::sleep(*time).await,
            Fault::Hold(gate) => gate.passed().await,
            Fault::Stall => tokio::time::sleep(FOREVER).await,
            Fault::Long {
                media_type,
                start,
                filling,
                end,
            } => {
                let frames = long(start, *filling, end).map(move |part| {
                    // It is in progress until the response is sent or dropped.
                    let _ = &busy;
                    part.map(Frame::data)
                });
                let answer = Response::builder().header(header::CONTENT_TYPE, *media_type);
                return Ok(answer.body(StreamBody::new(frames).boxed_unsync())?);
            }
            Fault::Pass
            | Fault::StallAfter(_)
            | Fault::CutAfter(_)
            | Fault::Throttle(_)
            | Fault::WholeAt(_) => {}
        }
        self.pass(request, fault, busy).await
    }

    fn note(&self, request: &Request<Bytes>) -> Seen {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let mut counts = self.nth.lock().unwrap();
        let nth = counts.entry(format!("{method} {path}")).or_default();
        *nth += 1;
        let query = request.uri().query().unwrap_or_default().to_owned();
        let seen = Seen {
            method,
            path,
            query,
            headers: request.headers().clone(),
            body: request.body().clone(),
            nth: *nth,
        };
        self.seen.lock().unwrap().push(seen.clone());
        seen
    }

    async fn pass(
        &self,
        request: Request<Bytes>,
        fault: Fault,
        busy: Busy,
    ) -> Result<Response<Body>, Error> {
        let (head, body) = request.into_parts();
        let path = head
            .uri
            .path_and_query()
            .map_or("/", http::uri::PathAndQuery::as_str);
        let mut headers = head.headers;
        headers.remove(header::CONNECTION);
        if matches!(fault, Fault::WholeAt(_)) {
            headers.remove(header::RANGE);
        }
        let asked = self
            .client
            .request(head.method, format!("{}{path}", self.upstream))
            .headers(headers)
            .body(body);
        let from = asked.send().await?;
        let mut answer = Response::builder().status(from.status());
        for (name, value) in from
            .headers()
            .iter()
            .filter(|(name, _)| *name != header::CONNECTION && *name != header::TRANSFER_ENCODING)
        {
            answer = answer.header(name, value);
        }
        // The body keeps the request in progress until it is sent or dropped.
        let frames = spoil(
            from.bytes_stream()
                .map(|part| part.map_err(Error::from))
                .boxed(),
            &fault,
        )
        .map(move |part| {
            let bytes = part.as_ref().map_or(0, Bytes::len);
            busy.shared.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            part.map(Frame::data)
        });
        Ok(answer.body(StreamBody::new(frames).boxed_unsync())?)
    }
}

/// The body with its fault.
fn spoil(body: Parts, fault: &Fault) -> Parts {
    match *fault {
        Fault::StallAfter(bytes) => start_of(body, bytes).chain(stream::pending()).boxed(),
        Fault::CutAfter(bytes) => start_of(body, bytes).chain(stream::once(cut())).boxed(),
        Fault::Throttle(bytes_per_second) | Fault::WholeAt(bytes_per_second) => {
            throttle(body, bytes_per_second)
        }
        _ => body,
    }
}

/// At most 250 MB per second, so that an endless body does not use up the machine.
fn long(start: &'static str, filling: u64, end: &'static str) -> Parts {
    const PIECE: u64 = 256 << 10;
    static X: [u8; PIECE as usize] = [b'x'; PIECE as usize];
    let middle = stream::unfold(filling, |left| async move {
        let len = left.min(PIECE);
        (len > 0).then_some(())?;
        tokio::time::sleep(Duration::from_millis(1)).await;
        Some((Ok(Bytes::from_static(&X[..len as usize])), left - len))
    });
    let whole =
        |text: &'static str| stream::once(async move { Ok(Bytes::from_static(text.as_bytes())) });
    whole(start).chain(middle).chain(whole(end)).boxed()
}

/// hyper drops what is still in its buffer when a body fails, so it gets a moment to send it.
async fn cut() -> Result<Bytes, Error> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    Err("cut by the test".into())
}

fn start_of(body: Parts, bytes: usize) -> Parts {
    body.scan(bytes, |left, part| {
        let part = part.map(|part| part.slice(..part.len().min(*left)));
        *left -= part.as_ref().map_or(0, Bytes::len);
        std::future::ready(Some(part))
    })
    .take_while(|part| std::future::ready(!matches!(part, Ok(part) if part.is_empty())))
    .boxed()
}

/// Some twenty pieces a second.
fn throttle(body: Parts, bytes_per_second: usize) -> Parts {
    let step = (bytes_per_second / 20).max(1);
    body.flat_map(move |part| {
        let pieces = match part {
            Ok(part) => (0..part.len())
                .step_by(step)
                .map(|at| Ok(part.slice(at..part.len().min(at + step))))
                .collect(),
            Err(error) => vec![Err(error)],
        };
        stream::iter(pieces)
    })
    .then(move |piece| async move {
        let bytes = piece.as_ref().map_or(0, Bytes::len);
        tokio::time::sleep(Duration::from_secs(1).mul_f64(bytes as f64 / bytes_per_second as f64))
            .await;
        piece
    })
    .boxed()
}
