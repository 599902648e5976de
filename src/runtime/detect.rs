//! Detection of the runtime of this node.
//!
//! Checks an explicit endpoint, or the well-known sockets in their order. It opens no other files, and starts nothing: a runtime
//! that is not running is not found.

use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::cri::{self, Cri};
use super::docker::{self, Docker};
use super::oci::{self, OciLayout};
use super::socket::SocketError;
use crate::credentials::secret::{Credential, redact};
use crate::model::image_size::{ImageFs, LayerStorage, Usage};
use crate::model::platform::Platform;
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;
use crate::model::text::{chain, sanitize};
use crate::runtime::error_kind;
use crate::runtime::image_fs::{self, ImageFsError};
use crate::runtime::image_service::{ImageService, Progress, RuntimeError, RuntimeInfo, Status};
pub use endpoint::{Endpoint, EndpointError};

mod endpoint;

/// The protocol of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Protocol {
    Cri,
    Docker,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cri => "CRI",
            Self::Docker => "Docker",
        })
    }
}

/// The runtimes, and the sockets that they listen on by default, in the order in which they are tried.
const WELL_KNOWN: &[(&str, &str, Protocol)] = &[
    (
        "containerd",
        "/run/containerd/containerd.sock",
        Protocol::Cri,
    ),
    ("crio", "/run/crio/crio.sock", Protocol::Cri),
    ("k3s", "/run/k3s/containerd/containerd.sock", Protocol::Cri),
    (
        "microk8s",
        "/var/snap/microk8s/common/run/containerd.sock",
        Protocol::Cri,
    ),
    ("k0s", "/run/k0s/containerd.sock", Protocol::Cri),
    ("dockershim", "/run/dockershim.sock", Protocol::Cri),
    ("cri-dockerd", "/run/cri-dockerd.sock", Protocol::Cri),
    ("docker", "/var/run/docker.sock", Protocol::Docker),
];

/// Time limit for further runtimes to answer.
const OTHERS_LIMIT: Duration = Duration::from_secs(1);

/// The runtime of this node.
pub enum Runtime {
    /// A CRI server: containerd, CRI-O, cri-dockerd.
    Cri(Cri),
    /// A Docker Engine.
    Docker(Docker),
    /// A directory with an OCI image layout.
    Oci(OciLayout),
}

impl Runtime {
    /// Returns whether the runtime that was found still responds: `false` if another version does.
    ///
    /// # Errors
    /// If it does not respond.
    pub async fn is_same(&self) -> Result<bool, RuntimeError> {
        let version = match self {
            Self::Cri(cri) => cri.version().await?,
            Self::Docker(docker) => docker.version().await?,
            Self::Oci(_) => return Ok(true),
        };
        Ok(version == self.info().version)
    }

    /// The runtime for images of another platform, if it pulls itself, as into an image layout. A daemon uses its machine's
    /// platform.
    #[must_use]
    pub fn for_platform(self, platform: &Platform) -> Self {
        match self {
            Self::Oci(layout) => Self::Oci(layout.for_platform(platform.clone())),
            daemon => daemon,
        }
    }
}

impl Runtime {
    /// The file system of its image store, as this process sees it.
    ///
    /// # Errors
    /// If the runtime does not report the directory of its store, or if that is not visible here.
    pub async fn image_fs(&self) -> Result<ImageFs, ImageFsError> {
        let directory = match self {
            Self::Cri(cri) => cri.store_directory().await?,
            Self::Docker(docker) => docker.store_directory().await?,
            Self::Oci(layout) => layout.store_directory(),
        };
        match directory {
            Some(directory) => image_fs::of_directory(&directory).await,
            None => Err(ImageFsError::NotReported(sanitize(&self.info().name))),
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The runtime's identity is enough; connections are left out.
        f.debug_tuple("Runtime").field(self.info()).finish()
    }
}

impl ImageService for Runtime {
    fn info(&self) -> &RuntimeInfo {
        match self {
            Self::Cri(cri) => cri.info(),
            Self::Docker(docker) => docker.info(),
            Self::Oci(layout) => layout.info(),
        }
    }

    async fn status(&self, image: &Reference) -> Status {
        match self {
            Self::Cri(cri) => cri.status(image).await,
            Self::Docker(docker) => docker.status(image).await,
            Self::Oci(layout) => layout.status(image).await,
        }
    }

    async fn statuses(&self, images: &[&Reference]) -> Vec<Status> {
        match self {
            Self::Cri(cri) => cri.statuses(images).await,
            Self::Docker(docker) => docker.statuses(images).await,
            Self::Oci(layout) => layout.statuses(images).await,
        }
    }

    async fn pull(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        progress: &Progress,
    ) -> Result<StoredImage, RuntimeError> {
        let pulled = match self {
            Self::Cri(cri) => cri.pull(image, credential, progress).await,
            Self::Docker(docker) => docker.pull(image, credential, progress).await,
            Self::Oci(layout) => {
                let pulled = layout.pull(image, credential, progress).await;
                return pulled.map_err(|error| without_secrets(error, credential));
            }
        };
        pulled.map_err(|error| of_daemon(error, credential, progress))
    }

    fn tells_progress(&self) -> bool {
        match self {
            Self::Cri(cri) => cri.tells_progress(),
            Self::Docker(docker) => docker.tells_progress(),
            Self::Oci(layout) => layout.tells_progress(),
        }
    }

    fn layer_storage(&self) -> LayerStorage {
        match self {
            Self::Cri(cri) => cri.layer_storage(),
            Self::Docker(docker) => docker.layer_storage(),
            Self::Oci(layout) => layout.layer_storage(),
        }
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        match self {
            Self::Cri(cri) => cri.usage().await,
            Self::Docker(docker) => docker.usage().await,
            Self::Oci(layout) => layout.usage().await,
        }
    }
}

/// The error of a daemon's pull, without the credential. A daemon reports received bytes too late or too coarsely, so the
/// text of the error counts for `progress` too.
pub(crate) fn of_daemon(
    error: RuntimeError,
    credential: Option<&Credential>,
    progress: &Progress,
) -> RuntimeError {
    if error_kind::came(&error.message) {
        progress.set_came();
    }
    without_secrets(error, credential)
}

/// The error without the credential: a registry may quote it, and a runtime quotes the registry.
fn without_secrets(error: RuntimeError, credential: Option<&Credential>) -> RuntimeError {
    match credential {
        Some(credential) => RuntimeError {
            message: redact(&error.message, &credential.login.secrets()),
            ..error
        },
        None => error,
    }
}

/// A path that was tried without success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    /// The path.
    pub path: PathBuf,
    /// The reason why it was not usable, on one line.
    pub why: String,
}

/// The reason why no runtime was found.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// None of the well-known sockets answers.
    #[error(
        "no usable container runtime: {}; if the runtime listens elsewhere, set --runtime-endpoint (RUNTIME_ENDPOINT)",
        list(.0)
    )]
    Nowhere(Vec<Tried>),
    /// The explicit endpoint cannot be used.
    #[error("no usable container runtime at {endpoint}: {why}")]
    Unusable {
        /// The requested endpoint.
        endpoint: Endpoint,
        /// The reason why it was not usable, on one line.
        why: String,
    },
}

fn list(tried: &[Tried]) -> String {
    let lines = tried
        .iter()
        .map(|t| format!("{}: {}", t.path.display(), t.why));
    lines.collect::<Vec<_>>().join("; ")
}

/// Finds the runtime: the one at the endpoint, otherwise at the first well-known socket that exists and answers. The time limit
/// is for each attempt at a socket; `platform` is for an OCI image layout only.
///
/// # Errors
/// [`FindError`], which names every path that was tried and the problem with it.
pub async fn find(
    endpoint: Option<&Endpoint>,
    platform: &Platform,
    time_limit: Duration,
) -> Result<Runtime, FindError> {
    let Some(endpoint) = endpoint else {
        let sockets: Vec<_> = WELL_KNOWN
            .iter()
            .map(|(_, path, protocol)| (*path, *protocol))
            .collect();
        let found = find_among(&sockets, time_limit).await?;
        warn_of_others(&found, time_limit).await;
        return Ok(found);
    };
    let found = match endpoint {
        Endpoint::Unix(path) => connect_either(path, time_limit).await,
        Endpoint::Oci(dir) => match oci::open(dir, platform.clone()).await {
            Ok(layout) => Ok(Runtime::Oci(layout)),
            Err(error) => Err(chain(&error)),
        },
    };
    found.map_err(|why| FindError::Unusable {
        endpoint: endpoint.clone(),
        why,
    })
}

async fn find_among(
    table: &[(impl AsRef<Path>, Protocol)],
    time_limit: Duration,
) -> Result<Runtime, FindError> {
    let mut tried = Vec::new();
    for (path, protocol) in table {
        let path = path.as_ref();
        let unusable = match connect(path, *protocol, time_limit).await {
            Ok(runtime) => {
                tracing::debug!(path = %path.display(), %protocol, "found the runtime");
                return Ok(runtime);
            }
            Err(unusable) => unusable,
        };
        let why = unusable.to_string();
        match unusable {
            Unusable::Socket(SocketError::Missing) => {
                tracing::debug!(path = %path.display(), %protocol, "no runtime: {why}");
            }
            _ => {
                tracing::warn!(path = %path.display(), %protocol, "not a usable runtime: {why}");
            }
        }
        tried.push(Tried {
            path: path.to_owned(),
            why,
        });
    }
    Err(FindError::Nowhere(tried))
}

/// Logs a warning if further runtimes answer, since their sockets do not show which one the node's pods use.
async fn warn_of_others(taken: &Runtime, time_limit: Duration) {
    let taken_at = taken.info().endpoint.trim_start_matches("unix://");
    let place = WELL_KNOWN.iter().position(|(_, path, _)| *path == taken_at);
    let Some((place, (name, ..))) = place.and_then(|at| Some((at, WELL_KNOWN.get(at)?))) else {
        return;
    };
    let mut others = Vec::new();
    for (other, path, protocol) in WELL_KNOWN.iter().skip(place + 1) {
        let of_docker = |name: &str| matches!(name, "dockershim" | "cri-dockerd" | "docker");
        // These three sockets lead to one image store.
        if of_docker(name) && of_docker(other) || is_same_file(taken_at.as_ref(), path.as_ref()) {
            continue;
        }
        let limit = time_limit.min(OTHERS_LIMIT);
        if connect(path.as_ref(), *protocol, limit).await.is_ok() {
            others.push(*other);
        }
    }
    if !others.is_empty() {
        let others = others.join(" and ");
        tracing::warn!(
            "using {name}, the first well-known socket that responds; {others} responds too and has its own image store. If the pods of \
             this node run with {others}, set --runtime-endpoint (RUNTIME_ENDPOINT) to its socket"
        );
    }
}

/// Returns whether both paths lead to one socket.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| {
        let data = std::fs::metadata(path).ok()?;
        Some((data.dev(), data.ino()))
    };
    id(one).is_some_and(|one| id(other) == Some(one))
}

/// Tries both protocols on a socket, first the one that its name suggests.
async fn connect_either(path: &Path, time_limit: Duration) -> Result<Runtime, String> {
    let mut reasons = Vec::new();
    for protocol in by_name(path) {
        match connect(path, protocol, time_limit).await {
            Ok(runtime) => return Ok(runtime),
            // The other protocol would fail in the same way.
            Err(why @ Unusable::Socket(_)) => return Err(why.to_string()),
            Err(why) => {
                tracing::debug!(path = %path.display(), %protocol, "not a usable runtime: {why}");
                reasons.push(format!("as {protocol}: {why}"));
            }
        }
    }
    Err(reasons.join("; "))
}

fn by_name(path: &Path) -> [Protocol; 2] {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    if name.ends_with("docker.sock") && !name.starts_with("cri-") {
        [Protocol::Docker, Protocol::Cri]
    } else {
        [Protocol::Cri, Protocol::Docker]
    }
}

/// The reason why a path cannot be used as a runtime.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// The socket cannot be connected to.
    #[error("{}", chain(.0))]
    Socket(SocketError),
    /// The server is not a runtime that can be used.
    #[error("{0}")]
    Other(String),
}

impl From<cri::ConnectError> for Unusable {
    fn from(error: cri::ConnectError) -> Self {
        match error {
            cri::ConnectError::Socket(error) => Self::Socket(error),
            error => Self::Other(chain(&error)),
        }
    }
}

impl From<docker::ConnectError> for Unusable {
    fn from(error: docker::ConnectError) -> Self {
        match error {
            docker::ConnectError::Socket(error) => Self::Socket(error),
            error => Self::Other(chain(&error)),
        }
    }
}

async fn connect(
    path: &Path,
    protocol: Protocol,
    time_limit: Duration,
) -> Result<Runtime, Unusable> {
    Ok(match protocol {
        Protocol::Cri => Runtime::Cri(Cri::connect(path, time_limit).await?),
        Protocol::Docker => Runtime::Docker(Docker::connect(path, time_limit).await?),
    })
}

#[cfg(test)]
mod tests;
