//! Sends requests to the API server and reads its responses, including the pauses that it requests.
//!
//! [`retrying`] is the only retry loop.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use kube::client::Body;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::QUOTED_MAX;
use super::connect::Cluster;
use super::decode::{self, Element, PageEnd};
use super::error::{ListError, TransportError, Undecodable};
use crate::model::text::one_line;
use crate::retry::retry_after::retry_after;

/// Maximum number of attempts of one request, including the first.
const MAX_TRIES: u32 = 4;

/// Maximum number of bytes that are read of an error's body.
const MAX_STATUS_BYTES: usize = 64 << 10;

/// The reason why a list was not read, or not to its end.
#[derive(Debug)]
pub(crate) enum ListFault {
    Unauthorized(String),
    Forbidden,
    NotFound,
    Failed(ListError),
}

/// The reason why a page was not read.
pub(crate) enum PageFault {
    /// The continue token expired; a new one may continue the list, without consistency.
    Gone(Option<String>),
    /// A retry may succeed, after the pause that the API server requests.
    Passing(ListError, Option<Duration>),
    Final(ListFault),
}

impl From<ListError> for PageFault {
    fn from(error: ListError) -> Self {
        Self::Final(ListFault::Failed(error))
    }
}

/// Retries an attempt until it succeeds, fails with a permanent error, or runs out of attempts. `what` is for the debug log.
///
/// # Errors
/// The error of the last attempt.
pub(crate) async fn retrying<T>(
    cluster: &Cluster,
    what: impl fmt::Debug,
    mut attempt: impl AsyncFnMut() -> Result<T, PageFault>,
) -> Result<T, PageFault> {
    let mut tried = 0;
    loop {
        let outcome = attempt().await;
        tried += 1;
        match outcome {
            Err(PageFault::Passing(error, after)) if tried < MAX_TRIES => {
                tracing::debug!(?what, tried, %error, "retrying");
                cluster.patience.pause(tried, after).await;
            }
            outcome => return outcome,
        }
    }
}

/// Requests `path` and returns a successful response.
pub(crate) async fn send(cluster: &Cluster, path: &str) -> Result<Response<Body>, PageFault> {
    let idle = cluster.patience.idle;
    let request = Request::get(path)
        .header(header::ACCEPT, "application/json")
        .body(Body::empty())
        .map_err(|error| ListError::Transport(TransportError(kube::Error::HttpError(error))))?;
    let response = match timeout(idle, cluster.client().send(request)).await {
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
    let after = retry_after(response.headers());
    let status = read_status(idle, response.into_body()).await;
    let message = one_line(&status.message.unwrap_or_default(), QUOTED_MAX);
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
    // A proxy may answer with a page of its own; only the code is used then.
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Decodes the response on a thread of its own while it arrives, and passes on each of its objects.
pub(crate) async fn decode_each<E: Element>(
    cluster: &Cluster,
    kind: E::Kind,
    response: Response<Body>,
    mut each: impl AsyncFnMut(E),
) -> Result<PageEnd, PageFault> {
    // One chunk may be hundreds of kilobytes.
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
            // Blocking tasks are cancelled only when the runtime shuts down, and then this result is not read.
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

/// Sends the body chunk by chunk until it ends or fails, or the receiver is closed.
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
