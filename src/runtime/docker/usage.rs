//! What the Engine's images take on disk: `GET /system/df`.
//!
//! bollard 0.21 reads the answer of the newest API alone, which has no `LayersSize`, so the question is asked here.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::FusedFuture;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::tidy;
use crate::failure::FailureKind;
use crate::printable::chain;
use crate::runtime::RuntimeError;

/// The Engine adds up every image; before API 1.42 every volume too, whatever is asked.
const TIME_LIMIT: Duration = Duration::from_secs(120);
/// The answer names every image and container; the sum is what is read.
const ANSWER_MAX: usize = 64 << 20;

/// Asks an Engine for its disk usage.
#[derive(Debug)]
pub(super) struct DiskUsage {
    socket: String,
    path: String,
}

#[derive(Deserialize)]
struct Answer {
    /// Until API 1.51.
    #[serde(rename = "LayersSize")]
    layers_size: Option<i64>,
    /// Since API 1.52.
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
        }
    }

    /// The bytes of all layers, unpacked, each once.
    pub(super) async fn ask(&self) -> Result<u64, RuntimeError> {
        let asked = tokio::time::timeout(TIME_LIMIT, self.read());
        let text = asked
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {} s", TIME_LIMIT.as_secs())));
        let text = text.map_err(|why| {
            let said = format!("failed to ask the Docker Engine for its disk usage: {why}");
            RuntimeError::new(FailureKind::Unavailable, tidy(&said))
        })?;
        sum(&text).ok_or_else(|| {
            let said = "the Docker Engine's disk usage has no size of its layers";
            RuntimeError::new(FailureKind::Other, said)
        })
    }

    async fn read(&self) -> Result<Vec<u8>, String> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = TokioIo::new(stream.map_err(|error| error.to_string())?);
        let (mut sender, connection) = http1::handshake(stream).await.map_err(|e| chain(&e))?;
        // Engines that do not know the parameter ignore it.
        let request = Request::get(format!("{}?type=image", self.path))
            .header(header::HOST, "docker")
            .body(Empty::<Bytes>::new())
            .map_err(|error| chain(&error))?;
        let answer = async {
            let mut answer = sender.send_request(request).await.map_err(|e| chain(&e))?;
            if !answer.status().is_success() {
                return Err(format!("HTTP status {}", answer.status()));
            }
            let mut text = Vec::new();
            while let Some(frame) = answer.frame().await {
                let frame = frame.map_err(|error| chain(&error))?;
                let data = frame.data_ref().map_or(&[][..], |data| data);
                if text.len() + data.len() > ANSWER_MAX {
                    return Err("the answer is too long".to_owned());
                }
                text.extend_from_slice(data);
            }
            Ok(text)
        };
        let mut connection = pin!(connection.fuse());
        let mut answer = pin!(answer);
        // The connection moves the bytes; whether it ends well is the answer's to say.
        loop {
            tokio::select! {
                biased;
                answer = &mut answer => return answer,
                _ = &mut connection, if !connection.is_terminated() => {}
            }
        }
    }
}

fn sum(answer: &[u8]) -> Option<u64> {
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let new = answer.image_usage.and_then(|usage| usage.total_size);
    u64::try_from(answer.layers_size.or(new)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_and_new_answers_have_a_sum() {
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
