//! Reads one list, of one kind in one namespace or in all, page by page, to its end.
//!
//! Pages are read as the Kubernetes API concepts tell ("Retrieving large results sets in chunks"), an expired continue
//! token included. A page that fails is tried again and never counted twice.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::accumulate::Accumulator;
use super::node::Here;
use super::object::Facts;
use crate::kube_api::connect::{Cluster, Patience};
use crate::kube_api::decode;
use crate::kube_api::decode::{Element, PageEnd};
use crate::kube_api::error::{ListError, Scope, TransportError, Undecodable, clip};
use crate::model::workload_kind::{WorkloadKind, percent_encode};

/// Objects a page, as kubectl asks for.
const LIMIT: usize = 500;
/// Ten million objects; a list beyond that is one that does not end.
const MAX_PAGES: usize = 20_000;
pub(super) const MAX_TRIES: u32 = 4;
const MAX_RESTARTS: u32 = 3;
/// Of an error's body, only so much is read.
const MAX_STATUS_BYTES: usize = 64 << 10;

/// What to list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query<'a> {
    pub(super) kind: WorkloadKind,
    pub(super) version: &'a str,
    pub(super) scope: &'a Scope,
    pub(super) selector: Option<&'a str>,
    /// From the API server's watch cache, in one answer.
    pub(super) cached: bool,
}

/// Why a list has not been read, or not to its end.
#[derive(Debug)]
pub(super) enum ListFault {
    Unauthorized(String),
    Forbidden,
    NotFound,
    Failed(ListError),
}

/// Why a page has not been read.
pub(super) enum PageFault {
    /// The continue token expired; a new one may continue, at the price of consistency.
    Gone(Option<String>),
    /// Another try may fare better, after the pause that the API server asks for.
    Passing(ListError, Option<Duration>),
    Final(ListFault),
}

impl From<ListError> for PageFault {
    fn from(error: ListError) -> Self {
        Self::Final(ListFault::Failed(error))
    }
}

/// Reads the list into the accumulator, each workload judged by the node where there is one, and says how many objects
/// it had. What the pages that could be read held is in
/// the accumulator in any case.
pub(super) async fn read(
    cluster: &Cluster,
    query: Query<'_>,
    here: &mut Option<Here>,
    into: &mut Accumulator,
) -> Result<usize, ListFault> {
    let start = into.mark();
    let mut token: Option<String> = None;
    // Their hashes alone: 20,000 tokens as long as they may be would be 320 MB.
    let (mut tokens, hash) = (HashSet::new(), RandomState::new());
    let mut objects = 0;
    let mut restarts = 0;
    for _ in 0..MAX_PAGES {
        let next = match read_page(cluster, query, token.as_deref(), here, into).await {
            Ok(end) => {
                objects += end.objects;
                match end.next {
                    Some(next) => next,
                    None => return Ok(objects),
                }
            }
            Err(PageFault::Gone(Some(next))) => next,
            Err(PageFault::Gone(None)) if restarts == MAX_RESTARTS => {
                return failed(ListError::Expired(restarts + 1));
            }
            Err(PageFault::Gone(None)) => {
                tracing::debug!(?query, "the list expired while it was read: starting again");
                into.take_back(start);
                pause(&cluster.patience, restarts, None).await;
                restarts += 1;
                objects = 0;
                token = None;
                tokens.clear();
                continue;
            }
            Err(PageFault::Passing(error, _)) => return failed(error),
            Err(PageFault::Final(fault)) => return Err(fault),
        };
        if !tokens.insert(hash.hash_one(&next)) {
            return failed(ListError::Endless("it repeats a page"));
        }
        token = Some(next);
    }
    failed(ListError::Endless("it has more than 20000 pages"))
}

fn failed(error: ListError) -> Result<usize, ListFault> {
    Err(ListFault::Failed(error))
}

/// Reads one page, trying again where that may help.
async fn read_page(
    cluster: &Cluster,
    query: Query<'_>,
    token: Option<&str>,
    here: &mut Option<Here>,
    into: &mut Accumulator,
) -> Result<PageEnd, PageFault> {
    let mut tried = 0;
    loop {
        let start = into.mark();
        let page = try_page(cluster, query, token, here, into).await;
        if page.is_err() {
            into.take_back(start);
        }
        tried += 1;
        match page {
            Err(PageFault::Passing(error, after)) if tried < MAX_TRIES => {
                tracing::debug!(?query, tried, %error, "trying a page again");
                pause(&cluster.patience, tried - 1, after).await;
            }
            page => return page,
        }
    }
}

/// Sleeps for a random part of a time that doubles with each try, after what the API server asked for.
pub(super) async fn pause(patience: &Patience, tried: u32, asked: Option<Duration>) {
    let most = patience.backoff * 2_u32.saturating_pow(tried);
    let asked = asked.unwrap_or_default().min(patience.longest_pause);
    tokio::time::sleep(asked + most.mul_f64(fastrand::f64())).await;
}

async fn try_page(
    cluster: &Cluster,
    query: Query<'_>,
    token: Option<&str>,
    here: &mut Option<Here>,
    into: &mut Accumulator,
) -> Result<PageEnd, PageFault> {
    let response = send(cluster, &target(query, token)).await?;
    decode_page(cluster, query.kind, response, here, into).await
}

/// Asks for `path` and gives back the answer if it is a good one.
pub(super) async fn send(cluster: &Cluster, path: &str) -> Result<Response<Body>, PageFault> {
    let idle = cluster.patience.idle;
    let request = Request::get(path)
        .header(header::ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(|error| ListError::Transport(TransportError(kube::Error::HttpError(error))))?;
    let response = match timeout(idle, cluster.client.send(request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            let error = ListError::Transport(TransportError(error));
            return Err(PageFault::Passing(error, None));
        }
        Err(_) => return Err(PageFault::Passing(ListError::Silent(idle), None)),
    };
    if response.status().is_success() {
        return Ok(response);
    }
    Err(refusal(idle, response).await)
}

fn target(query: Query<'_>, token: Option<&str>) -> String {
    let mut path = query.kind.path(query.version, query.scope.namespace());
    // The watch cache knows no pages: API servers ignore a limit beside resourceVersion=0, or take the list from etcd for it.
    match query.cached {
        true => path.push_str("?resourceVersion=0"),
        false => path.push_str(&format!("?limit={LIMIT}")),
    }
    for (key, value) in [("labelSelector", query.selector), ("continue", token)] {
        if let Some(value) = value {
            path.push_str(&format!("&{key}="));
            percent_encode(value, &mut path);
        }
    }
    path
}

/// The part of a `metav1.Status` that is read.
#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    metadata: Option<StatusMeta>,
}

#[derive(Debug, Default, Deserialize)]
struct StatusMeta {
    #[serde(default, rename = "continue")]
    next: Option<String>,
}

async fn refusal(idle: Duration, response: Response<Body>) -> PageFault {
    let code = response.status();
    let after = response.headers().get(header::RETRY_AFTER);
    let after = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let after = after.map(Duration::from_secs);
    let status = read_status(idle, response.into_body()).await;
    let message = clip(&status.message.unwrap_or_default());
    match code {
        StatusCode::GONE => {
            let next = status.metadata.and_then(|meta| meta.next);
            PageFault::Gone(next.filter(|token| !token.is_empty()))
        }
        StatusCode::UNAUTHORIZED => PageFault::Final(ListFault::Unauthorized(message)),
        StatusCode::FORBIDDEN => PageFault::Final(ListFault::Forbidden),
        StatusCode::NOT_FOUND => PageFault::Final(ListFault::NotFound),
        code => {
            let error = ListError::Answer {
                code: code.as_u16(),
                message,
            };
            if code == StatusCode::TOO_MANY_REQUESTS || code.is_server_error() {
                PageFault::Passing(error, after)
            } else {
                error.into()
            }
        }
    }
}

async fn read_status(idle: Duration, mut body: Body) -> Status {
    let mut text = Vec::new();
    while let Ok(Some(Ok(frame))) = timeout(idle, body.frame()).await {
        text.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
        if text.len() > MAX_STATUS_BYTES {
            break;
        }
    }
    // A proxy answers with a page of its own; then the code has to do.
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Decodes a page of workloads.
///
/// What is kept of it is folded in here, by the task that goes on to plan with it: memory that another thread allocated
/// stays with that thread's arena when it is freed, and is of no use to this one.
async fn decode_page(
    cluster: &Cluster,
    kind: WorkloadKind,
    response: Response<Body>,
    here: &mut Option<Here>,
    into: &mut Accumulator,
) -> Result<PageEnd, PageFault> {
    decode_each(cluster, kind, response, async |mut facts: Facts| {
        if let Some(here) = here.as_mut() {
            facts.mismatch = here.judge(cluster, kind, &facts).await;
        }
        into.fold(kind, &facts);
    })
    .await
}

/// Has the answer decoded on a thread of its own while it arrives here, and hands on each object that it has.
pub(super) async fn decode_each<E: Element>(
    cluster: &Cluster,
    kind: E::Kind,
    response: Response<Body>,
    mut each: impl AsyncFnMut(E),
) -> Result<PageEnd, PageFault> {
    // A chunk may be hundreds of kilobytes.
    let (sender, chunks) = mpsc::channel(1);
    let (found, mut objects) = mpsc::channel(16);
    let decoder = tokio::task::spawn_blocking(move || {
        decode::page(kind, chunks, &mut |element| {
            found.blocking_send(element).is_ok()
        })
    });
    let fold = async {
        while let Some(element) = objects.recv().await {
            each(element).await;
        }
    };
    let (fed, ()) = tokio::join!(
        feed(cluster.patience.idle, response.into_body(), sender),
        fold
    );
    let page = match decoder.await {
        Ok(page) => page,
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Only a runtime that is shutting down cancels a blocking task, and then nobody reads this.
            Err(_) => return Err(ListError::Cut(None).into()),
        },
    };
    match (page, fed) {
        (Ok(end), _) => Ok(end),
        (Err(error), Err(cut)) if error.is_cut() => Err(PageFault::Passing(cut, None)),
        (Err(error), Ok(())) if error.is_cut() => {
            Err(PageFault::Passing(ListError::Cut(None), None))
        }
        (Err(error), _) => Err(ListError::Garbage(Undecodable(error)).into()),
    }
}

/// Passes the body on, chunk by chunk, until it ends, breaks off, or nobody wants more of it.
async fn feed(
    idle: Duration,
    mut body: Body,
    sender: mpsc::Sender<Bytes>,
) -> Result<(), ListError> {
    loop {
        match timeout(idle, body.frame()).await {
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data()
                    && sender.send(data).await.is_err()
                {
                    return Ok(());
                }
            }
            Ok(Some(Err(error))) => return Err(ListError::Cut(Some(TransportError(error)))),
            Ok(None) => return Ok(()),
            Err(_) => return Err(ListError::Stalled(idle)),
        }
    }
}

/// Whether a namespace exists; `None` when the API server does not tell.
pub(super) async fn namespace_exists(cluster: &Cluster, namespace: &str) -> Option<bool> {
    let mut path = "/api/v1/namespaces/".to_owned();
    percent_encode(namespace, &mut path);
    match send(cluster, &path).await {
        Ok(_) => Some(true),
        Err(PageFault::Final(ListFault::NotFound)) => Some(false),
        Err(_) => None,
    }
}
