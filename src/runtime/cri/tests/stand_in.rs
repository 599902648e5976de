//! A gRPC mock server on a temporary socket.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tonic::Code;

use super::SOON;
use crate::runtime::cri::{ConnectError, Cri};

/// Longer than the time until the first poll of the progress.
const LATE: Duration = Duration::from_millis(1_500);

/// The mock server's response to a call.
pub(super) enum Answer {
    Message(Vec<u8>),
    /// The same, after a delay.
    Late(Vec<u8>),
    Fail(Code, String),
    Http404,
    Never,
}

impl Answer {
    pub(super) fn message(message: &impl Message) -> Self {
        Self::Message(message.encode_to_vec())
    }

    pub(super) fn unknown_service() -> Self {
        Self::Fail(Code::Unimplemented, "unknown service".to_owned())
    }
}

/// A gRPC server of one function, which maps the path and the message of a call to a response.
pub(super) struct StandIn {
    directory: TempDir,
    pub(super) server: JoinHandle<()>,
    /// Calls that the client cancelled.
    pub(super) dropped: Arc<Mutex<Vec<String>>>,
}

impl StandIn {
    pub(super) fn start(answer: impl Fn(&str, &[u8]) -> Answer + Send + Sync + 'static) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let dropped = Arc::default();
        let server = serve(
            directory.path().join("cri.sock"),
            Arc::new(answer),
            &dropped,
        );
        Self {
            directory,
            server,
            dropped,
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.directory.path().join("cri.sock")
    }

    pub(super) async fn connect(&self) -> Result<Cri, ConnectError> {
        Cri::connect(&self.path(), SOON).await
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.server.abort();
    }
}

type Script = Arc<dyn Fn(&str, &[u8]) -> Answer + Send + Sync>;

pub(super) fn serve(
    path: PathBuf,
    script: Script,
    dropped: &Arc<Mutex<Vec<String>>>,
) -> JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    let dropped = Arc::clone(dropped);
    tokio::spawn(async move {
        // Aborting the server must close its connections too.
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let (script, dropped) = (Arc::clone(&script), Arc::clone(&dropped));
            connections.spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    call(request, Arc::clone(&script), Arc::clone(&dropped))
                });
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await
            });
        }
    })
}

/// Records the path of a call that ends without a response.
struct Unanswered(String, Arc<Mutex<Vec<String>>>);

impl Drop for Unanswered {
    fn drop(&mut self) {
        self.1.lock().unwrap().push(std::mem::take(&mut self.0));
    }
}

async fn call(
    request: http::Request<hyper::body::Incoming>,
    script: Script,
    dropped: Arc<Mutex<Vec<String>>>,
) -> Result<http::Response<impl hyper::body::Body<Data = Bytes, Error = Infallible>>, hyper::Error>
{
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await?.to_bytes();
    let mut answer = script(&path, body.get(5..).unwrap_or_default());
    if let Answer::Late(message) = answer {
        tokio::time::sleep(LATE).await;
        answer = Answer::Message(message);
    }
    let mut status = http::StatusCode::OK;
    let mut trailers = http::HeaderMap::new();
    let mut frame = BytesMut::new();
    match answer {
        Answer::Message(message) | Answer::Late(message) => {
            frame.put_u8(0);
            frame.put_u32(u32::try_from(message.len()).unwrap());
            frame.put_slice(&message);
            trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        }
        Answer::Fail(code, text) => {
            trailers.insert("grpc-status", (code as i32).into());
            trailers.insert("grpc-message", text.parse().unwrap());
        }
        Answer::Http404 => status = http::StatusCode::NOT_FOUND,
        Answer::Never => {
            let _unanswered = Unanswered(path, dropped);
            std::future::pending::<()>().await;
        }
    }
    let body = Full::new(frame.freeze()).with_trailers(async move { Some(Ok(trailers)) });
    Ok(http::Response::builder()
        .status(status)
        .header("content-type", "application/grpc")
        .body(body)
        .unwrap())
}
