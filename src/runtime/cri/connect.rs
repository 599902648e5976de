//! Connects to a CRI socket and identifies the runtime, or the reason why there is none.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use k8s_cri::v1::VersionRequest;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1alpha2;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::{message, words};
use crate::runtime::image_service::RuntimeInfo;
use crate::runtime::socket::{self, SocketError};

/// Error texts are in HTTP/2 trailers, and a text that names many mirrors is long.
const HEADERS_MAX: u32 = 256 << 10;

/// The reason why a socket cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket cannot be connected to.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The connection was accepted, but there was no response.
    #[error("no response within {limit} at {path}: the container runtime hangs or is overloaded", path = .0.display(), limit = humantime::format_duration(*.1))]
    Silent(PathBuf, Duration),
    /// The server does not use gRPC, or does not serve the CRI.
    #[error("no CRI server at {path}: {reason}", path = .path.display())]
    NotARuntime {
        /// The socket.
        path: PathBuf,
        /// The response.
        reason: String,
    },
    /// containerd without its CRI plugin, as Docker's packages configure it.
    #[error(
        "the CRI plugin of containerd {version} at {path} is disabled: remove \"cri\" from disabled_plugins in its config.toml and restart containerd, or use Docker's socket if this node runs Docker",
        path = .path.display()
    )]
    CriDisabled {
        /// The socket.
        path: PathBuf,
        /// containerd's version.
        version: String,
    },
    /// A runtime that supports CRI v1alpha2 but not v1.
    #[error(
        "{name} {version} at {path} is too old: it supports CRI v1alpha2, but harpoon requires CRI v1 (containerd 1.6, CRI-O 1.23 or later)",
        path = .path.display()
    )]
    TooOld {
        /// The socket.
        path: PathBuf,
        /// The name that the runtime reports.
        name: String,
        /// Its version.
        version: String,
    },
    /// The runtime reports that it cannot serve yet, or no longer.
    #[error("the container runtime at {path} is not ready: {reason}", path = .path.display())]
    NotReady {
        /// The socket.
        path: PathBuf,
        /// Its own message.
        reason: String,
    },
}

/// Opens a channel to the socket and identifies the runtime.
pub(super) async fn connect(
    path: &Path,
    time_limit: Duration,
) -> Result<(Channel, RuntimeInfo), ConnectError> {
    let answer = async {
        socket::check(path).await?;
        let channel = channel(path);
        let info = ask(&channel, path).await?;
        Ok((channel, info))
    };
    tokio::time::timeout(time_limit, answer)
        .await
        .unwrap_or_else(|_| Err(ConnectError::Silent(path.to_owned(), time_limit)))
}

/// A channel that reconnects to the socket when necessary. The URI is needed because HTTP/2 requires an authority.
fn channel(path: &Path) -> Channel {
    let path = path.to_owned();
    Endpoint::from_static("http://localhost")
        .http2_max_header_list_size(HEADERS_MAX)
        .connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
}

async fn ask(channel: &Channel, path: &Path) -> Result<RuntimeInfo, ConnectError> {
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    match runtime.version(VersionRequest::default()).await {
        Ok(answer) => {
            let answer = answer.into_inner();
            Ok(RuntimeInfo {
                name: answer.runtime_name,
                version: answer.runtime_version,
                endpoint: format!("unix://{}", path.display()),
            })
        }
        Err(status) if is_unimplemented(&status) => Err(without_v1(channel, path, &status).await),
        Err(status) if status.source().is_some() => Err(not_a_runtime(path, &status)),
        Err(status) => Err(ConnectError::NotReady {
            path: path.to_owned(),
            reason: message(&status),
        }),
    }
}

/// Returns whether a server lacks the method. One that uses HTTP/2 but not gRPC answers 404, which tonic maps to the same code.
fn is_unimplemented(status: &Status) -> bool {
    status.code() == Code::Unimplemented
}

/// Identifies a server without CRI v1.
async fn without_v1(channel: &Channel, path: &Path, status: &Status) -> ConnectError {
    let mut older = v1alpha2::runtime_service_client::RuntimeServiceClient::new(channel.clone());
    if let Ok(answer) = older.version(v1alpha2::VersionRequest::default()).await {
        let answer = answer.into_inner();
        return ConnectError::TooOld {
            path: path.to_owned(),
            name: answer.runtime_name,
            version: answer.runtime_version,
        };
    }
    if let Ok(answer) = VersionClient::new(channel.clone()).version(()).await {
        return ConnectError::CriDisabled {
            path: path.to_owned(),
            version: answer.into_inner().version,
        };
    }
    not_a_runtime(path, status)
}

fn not_a_runtime(path: &Path, status: &Status) -> ConnectError {
    ConnectError::NotARuntime {
        path: path.to_owned(),
        reason: words(status),
    }
}
