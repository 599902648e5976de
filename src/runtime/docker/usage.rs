//! Disk usage of the Engine's images: `GET /system/df`.
//!
//! bollard 0.21 supports only the response of the newest API, which has no `LayersSize`, so the request is sent here. An Engine
//! handles one such request at a time: concurrent callers share a response, and a busy Engine is retried.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::FusedFuture;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::tidy;
use crate::model::failure::FailureKind;
use crate::model::text::chain;
use crate::retry::polling::Polling;
use crate::runtime::image_service::RuntimeError;

/// The Engine adds up all images; before API 1.42 all volumes too, regardless of the request.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// The response lists every image and container; only the sum is read.
const ANSWER_MAX: usize = 64 << 20;
/// Error of an Engine that is already handling such a request.
const BUSY: &str = "a disk usage operation is already running";
/// The pauses for a busy Engine. Jitter prevents two clients from colliding repeatedly.
const BUSY_POLLING: Polling = Polling {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(2),
};

/// Requests an Engine's disk usage.
#[derive(Debug)]
pub(super) struct DiskUsage {
    socket: String,
    path: String,
    /// The last response. The requesting task holds the lock, and tasks that waited for it use its response.
    last: Mutex<Option<Last>>,
}

#[derive(Debug)]
struct Last {
    ended: Instant,
    answer: Result<u64, RuntimeError>,
}

/// The reason why there is no response.
#[derive(Debug)]
enum Failed {
    /// The Engine could not be reached, or the connection was lost.
    Lost(String),
    /// The Engine refused the request.
    Refused { status: StatusCode, message: String },
}

/// The body of the Engine's errors.
#[derive(Deserialize)]
struct Refusal {
    message: String,
}

#[derive(Deserialize)]
struct Answer {
    /// Set before API 1.52.
    #[serde(rename = "LayersSize")]
    layers_size: Option<i64>,
    /// Set since API 1.52.
    #[serde(rename = "ImageUsage")]
    image_usage: Option<ImageUsage>,
}

#[derive(Deserialize)]
struct ImageUsage {
    #[serde(rename = "TotalSize")]
    total_size: Option<i64>,
}

impl DiskUsage {
    /// For the Engine at the socket, with the path of its API version.
    pub(super) fn new(socket: &str, path: String) -> Self {
        Self {
            socket: socket.to_owned(),
            path,
            last: Mutex::new(None),
        }
    }

    /// The unpacked bytes of all layers, each counted once. Concurrent callers share one request.
    pub(super) async fn ask(&self) -> Result<u64, RuntimeError> {
        let arrived = Instant::now();
        let mut last = self.last.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.ended > arrived) {
            return last.answer.clone();
        }
        let asked = tokio::time::timeout(TIME_LIMIT, self.read_when_free());
        let text = asked.await.unwrap_or_else(|_| {
            let why = format!("no response within {} s", TIME_LIMIT.as_secs());
            Err(Failed::Lost(why))
        });
        let answer = text.map_err(RuntimeError::from).and_then(|text| {
            sum(&text).ok_or_else(|| {
                let said = "unexpected response from Docker Engine: no size of the layers in its disk usage";
                RuntimeError::new(FailureKind::Other, said)
            })
        });
        *last = Some(Last {
            ended: Instant::now(),
            answer: answer.clone(),
        });
        answer
    }

    /// Repeats the request until no other one is in progress.
    async fn read_when_free(&self) -> Result<Vec<u8>, Failed> {
        let is_busy = |failed: &Failed| match failed {
            Failed::Refused { message, .. } => message.contains(BUSY),
            Failed::Lost(_) => false,
        };
        BUSY_POLLING
            .ask(None, || self.read(), is_busy, |_, _| {})
            .await
    }

    async fn read(&self) -> Result<Vec<u8>, Failed> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = TokioIo::new(stream.map_err(|error| Failed::Lost(error.to_string()))?);
        let (mut sender, connection) = http1::handshake(stream).await.map_err(lost)?;
        // Engines without this parameter ignore it.
        let request = Request::get(format!("{}?type=image", self.path))
            .header(header::HOST, "docker")
            .body(Empty::<Bytes>::new())
            .map_err(lost)?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(lost)?;
            let status = answer.status();
            let text = body(answer).await?;
            match status.is_success() {
                true => Ok(text),
                false => Err(Failed::Refused {
                    status,
                    message: message(&text),
                }),
            }
        };
        let mut connection = pin!(connection.fuse());
        let mut answer = pin!(answer);
        // The connection transfers the bytes; the response shows whether it ended successfully.
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                _ = &mut connection, if !connection.is_terminated() => {}
            }
        }
    }
}

impl From<Failed> for RuntimeError {
    fn from(failed: Failed) -> Self {
        let (kind, why) = match failed {
            Failed::Lost(why) => (FailureKind::Unavailable, why),
            Failed::Refused { status, message } => {
                // An Engine that shuts down refuses requests with these; any other refusal stays one.
                let kind = match status.as_u16() {
                    502..=504 => FailureKind::Unavailable,
                    _ => FailureKind::Other,
                };
                let colon = if message.is_empty() { "" } else { ": " };
                (kind, format!("HTTP status {status}{colon}{message}"))
            }
        };
        let said = format!("failed to get the disk usage of Docker Engine: {why}");
        Self::new(kind, tidy(&said))
    }
}

fn lost(error: impl std::error::Error) -> Failed {
    Failed::Lost(chain(&error))
}

/// The whole body, up to the limit.
async fn body(mut answer: Response<Incoming>) -> Result<Vec<u8>, Failed> {
    let mut text = Vec::new();
    while let Some(frame) = answer.frame().await {
        let frame = frame.map_err(lost)?;
        let data = frame.data_ref().map_or(&[][..], |data| data);
        if text.len() + data.len() > ANSWER_MAX {
            return Err(Failed::Lost("the response is too long".to_owned()));
        }
        text.extend_from_slice(data);
    }
    Ok(text)
}

/// The message of a refusal: the Engine's, or any other text in its place.
fn message(text: &[u8]) -> String {
    match serde_json::from_slice(text) {
        Ok(Refusal { message }) => message,
        Err(_) => String::from_utf8_lossy(text).trim().to_owned(),
    }
}

fn sum(answer: &[u8]) -> Option<u64> {
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let new = answer.image_usage.and_then(|usage| usage.total_size);
    u64::try_from(answer.layers_size.or(new)?).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;
    use tempfile::TempDir;
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::fake_http::{Asked, on_unix};

    const BUSY_ANSWER: (&str, &str) = (
        "500 Internal Server Error",
        r#"{"message":"a disk usage operation is already running"}"#,
    );
    const ANSWER: (&str, &str) = ("200 OK", r#"{"LayersSize":7}"#);

    /// A mock Engine that returns these responses one after the other and then repeats the last, each after a short delay. Counts
    /// the requests.
    fn engine(answers: &'static [(&str, &str)]) -> (TempDir, DiskUsage, Arc<AtomicUsize>) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("docker.sock");
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        on_unix(&path, move |mut stream| {
            let nth = count.fetch_add(1, Ordering::SeqCst);
            let (status, body) = answers.get(nth).or(answers.last()).unwrap();
            async move {
                let _ = Asked::read(&mut stream).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let usage = DiskUsage::new(path.to_str().unwrap(), "/v1.41/system/df".to_owned());
        (dir, usage, asked)
    }

    #[tokio::test]
    async fn busy_engine_is_retried() {
        let (_dir, usage, asked) = engine(&[BUSY_ANSWER, BUSY_ANSWER, ANSWER]);
        assert_eq!(usage.ask().await.unwrap(), 7);
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }

    #[tokio::test]
    async fn concurrent_callers_share_one_request() {
        let (_dir, usage, asked) = engine(&[ANSWER]);
        let answers = join_all((0..8).map(|_| usage.ask())).await;
        assert!(answers.iter().all(|a| matches!(a, Ok(7))), "{answers:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        // A response is not kept for later callers.
        assert_eq!(usage.ask().await.unwrap(), 7);
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }

    #[tokio::test]
    async fn refusal_shows_its_body() {
        let words = "authorization denied by plugin guard";
        let (_dir, usage, asked) = engine(&[(
            "403 Forbidden",
            r#"{"message":"authorization denied by plugin guard"}"#,
        )]);
        let error = usage.ask().await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Other);
        let expected = format!(
            "failed to get the disk usage of Docker Engine: HTTP status 403 Forbidden: {words}"
        );
        assert_eq!(error.message, expected);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn absent_engine_is_unavailable() {
        let dir = TempDir::new().unwrap();
        let socket = dir.path().join("docker.sock");
        let usage = DiskUsage::new(socket.to_str().unwrap(), "/system/df".to_owned());
        let error = usage.ask().await.unwrap_err();
        assert_eq!(error.kind, FailureKind::Unavailable);
    }

    #[test]
    fn old_and_new_responses_are_summed() {
        for (answer, expected) in [
            (
                r#"{"LayersSize":1092588,"Images":[{"Size":5}],"Volumes":null}"#,
                Some(1_092_588),
            ),
            (r#"{"ImageUsage":{"TotalSize":7,"Items":[]}}"#, Some(7)),
            (r#"{"LayersSize":0}"#, Some(0)),
            (r#"{"LayersSize":-1}"#, None),
            (r#"{"Images":[]}"#, None),
            ("[]", None),
            ("", None),
        ] {
            assert_eq!(sum(answer.as_bytes()), expected, "{answer}");
        }
    }
}
