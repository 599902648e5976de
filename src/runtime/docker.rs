//! A Docker Engine, through its API on a unix socket.
//!
//! The Engine pulls; this module sends the requests, reads the progress and maps the errors. It never runs `docker`, never
//! removes or tags an image and never reads the Engine's own credentials. Dropping a future closes its connection, upon which the
//! Engine stops the download.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use bollard::models::{CreateImageInfo, ImageInspect, ImageSummary};
use bollard::query_parameters::{CreateImageOptionsBuilder, ListImagesOptions};
use bollard::{API_DEFAULT_VERSION, BollardRequest, ClientVersion};
use futures_util::StreamExt;
use http::uri::PathAndQuery;
use http::{HeaderValue, Uri};

use super::listed::{self, Lists, known};
use super::socket::{self, SocketError};
use crate::credentials::secret::{Credential, Login};
use crate::model::digest::Digest;
use crate::model::failure::FailureKind;
use crate::model::image_size::{LayerStorage, Usage};
use crate::model::reference::{DOCKER_HUB, DOCKER_HUB_URL, Reference};
use crate::model::stored_image::StoredImage;
use crate::model::text::{causes, clip};
use crate::runtime::error_kind;
use crate::runtime::image_service::{ImageService, Progress, RuntimeError, RuntimeInfo, Status};
use progress::Layers;

mod progress;
mod usage;

/// Maximum length of an Engine's message in characters: registries may send whole web pages.
const MESSAGE_MAX: usize = 1000;
/// Base64 of JSON, in the alphabet for URLs (Engine API, "Authentication").
const LOGIN_HEADER: &str = "x-registry-auth";

/// The reason why a Docker Engine cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No process accepts connections at the path, or access is denied.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The path is not UTF-8.
    #[error("the path is not UTF-8")]
    Path,
    /// No response within the time limit.
    #[error("no response within {}", humantime::format_duration(*.0))]
    Silent(Duration),
    /// The response is not HTTP, or not the requested JSON.
    #[error("not a Docker Engine: {}", root(.0))]
    NotDocker(Box<bollard::errors::Error>),
    /// HTTP, but an error status.
    #[error(
        "not a Docker Engine, or access is denied: GET /version returned HTTP status {status}: {message}"
    )]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The message of the response.
        message: String,
    },
    /// The response is HTTP and JSON, but not an Engine's.
    #[error("not a Docker Engine: GET /version returned no API version")]
    NoVersion,
    /// The Engine supports only newer API versions than this program.
    #[error("Docker Engine is too new for this version of harpoon: it requires API {min} or later")]
    TooNew {
        /// The oldest API version that the Engine supports.
        min: String,
    },
}

/// A connected Docker Engine.
#[derive(Debug)]
pub struct Docker {
    client: bollard::Docker,
    info: RuntimeInfo,
    usage: usage::DiskUsage,
    /// The time limit for requests other than pulls, whose caller limits them.
    time_limit: Duration,
}

impl Docker {
    /// Identifies the server on the socket and negotiates the API version, within the time limit. The same limit applies later to
    /// every request except pulls.
    ///
    /// # Errors
    /// The reason why there is no usable Docker Engine.
    pub async fn connect(path: &Path, time_limit: Duration) -> Result<Self, ConnectError> {
        tokio::time::timeout(time_limit, Self::negotiate(path, time_limit))
            .await
            .unwrap_or(Err(ConnectError::Silent(time_limit)))
    }

    async fn negotiate(path: &Path, time_limit: Duration) -> Result<Self, ConnectError> {
        socket::check(path).await?;
        let utf8 = path.to_str().ok_or(ConnectError::Path)?;
        // bollard's own time limit would interrupt a pull whose registry sends the manifest slowly; limits are set here instead.
        let client = bollard::Docker::connect_with_unix(utf8, u64::MAX, API_DEFAULT_VERSION)
            .map_err(not_docker)?;
        let answer = client.version().await.map_err(not_docker)?;
        let api = answer.api_version.as_deref().and_then(api_version);
        let (Some(api), Some(version)) = (api, answer.version) else {
            return Err(ConnectError::NoVersion);
        };
        let min = answer.min_api_version.unwrap_or_default();
        if api_version(&min).is_some_and(|m| m > *API_DEFAULT_VERSION) {
            return Err(ConnectError::TooNew { min });
        }
        let spoken = if api < *API_DEFAULT_VERSION {
            api
        } else {
            *API_DEFAULT_VERSION
        };
        let path = format!(
            "/v{}.{}/system/df",
            spoken.major_version, spoken.minor_version
        );
        Ok(Self {
            usage: usage::DiskUsage::new(utf8, path),
            client: client
                .with_request_modifier(move |r| with_version(with_safe_login(r), &spoken)),
            info: RuntimeInfo {
                name: "docker".to_owned(),
                version,
                endpoint: format!("unix://{utf8}"),
            },
            time_limit,
        })
    }

    /// The version that it reports now; a cheap request that tells whether it responds.
    ///
    /// # Errors
    /// If it does not respond.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        let answer = tokio::time::timeout(self.time_limit, self.client.version()).await;
        let error = match answer {
            Ok(Ok(answer)) => return Ok(answer.version.unwrap_or_default()),
            Ok(Err(error)) => root(&error),
            Err(_) => humantime::format_duration(self.time_limit).to_string(),
        };
        Err(RuntimeError::new(
            FailureKind::Unavailable,
            format!("no response from Docker Engine (version): {error}"),
        ))
    }

    async fn inspect(&self, image: &Reference) -> Result<Option<ImageInspect>, RuntimeError> {
        let name = explicit(image);
        let answer = tokio::time::timeout(self.time_limit, self.client.inspect_image(&name));
        match answer.await {
            Ok(Ok(inspect)) => Ok(Some(inspect)),
            Ok(Err(bollard::errors::Error::DockerResponseServerError {
                status_code: 404, ..
            })) => Ok(None),
            Ok(Err(error)) => Err(self.failure(image, error)),
            Err(_) => Err(RuntimeError::new(
                FailureKind::Timeout,
                format!(
                    "no response from Docker Engine within {} (image inspect)",
                    humantime::format_duration(self.time_limit)
                ),
            )),
        }
    }

    /// The Engine's data directory, on the node.
    pub(super) async fn store_directory(&self) -> Result<Option<PathBuf>, RuntimeError> {
        let told = match tokio::time::timeout(self.time_limit, self.client.info()).await {
            Ok(Ok(told)) => told,
            Ok(Err(error)) => {
                let why = format!(
                    "failed to get the data directory of Docker Engine: {}",
                    root(&error)
                );
                return Err(RuntimeError::new(FailureKind::Unavailable, why));
            }
            Err(_) => {
                let limit = humantime::format_duration(self.time_limit);
                let why = format!("no response from Docker Engine within {limit} (info)");
                return Err(RuntimeError::new(FailureKind::Timeout, why));
            }
        };
        let directory = told.docker_root_dir.filter(|dir| dir.starts_with('/'));
        Ok(directory.map(PathBuf::from))
    }

    /// Maps an error of the Engine, or of the connection to it.
    fn failure(&self, image: &Reference, error: bollard::errors::Error) -> RuntimeError {
        use bollard::errors::Error;
        match error {
            Error::DockerStreamError { error } => failure(image, None, &error),
            Error::DockerResponseServerError {
                status_code,
                message,
            } => failure(image, Some(status_code), &message),
            error @ (Error::HyperLegacyError { .. }
            | Error::HyperResponseError { .. }
            | Error::IOError { .. }
            | Error::SocketNotFoundError(_)) => RuntimeError::new(
                FailureKind::Unavailable,
                format!(
                    "lost the connection to Docker Engine at {}: {}",
                    self.info.endpoint,
                    root(&error)
                ),
            ),
            error => RuntimeError::new(
                FailureKind::Other,
                format!("unexpected response from Docker Engine: {}", root(&error)),
            ),
        }
    }
}

impl ImageService for Docker {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    async fn status(&self, image: &Reference) -> Result<Option<StoredImage>, RuntimeError> {
        let inspect = self.inspect(image).await?;
        Ok(inspect.map(|i| stored(image, &i)))
    }

    async fn statuses(&self, images: &[&Reference]) -> Vec<Status> {
        listed::statuses(self, images).await
    }

    async fn pull(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        progress: &Progress,
    ) -> Result<StoredImage, RuntimeError> {
        // Without a tag the Engine would pull every tag of the repository.
        let tag = image.digest().map(Digest::as_str).or_else(|| image.tag());
        let options = CreateImageOptionsBuilder::new()
            .from_image(name(image))
            .tag(tag.unwrap_or("latest"))
            .build();
        let mut events = pin!(self.client.create_image(
            Some(options),
            None,
            credential.map(|c| login(c, image))
        ));
        let mut layers = Layers::default();
        let mut digest = None;
        while let Some(event) = events.next().await {
            let event = event.map_err(|error| self.failure(image, error))?;
            if event.error_detail.is_some() {
                return Err(failure(image, None, ""));
            }
            digest = pulled_digest(&event).or(digest);
            layers.record(&event);
            let (done, total) = layers.sum();
            progress.set(done, total);
            if done > 0 {
                progress.set_came();
            }
        }
        // The stream of an Engine that dies can end like a successful one.
        let inspect = self.inspect(image).await?.ok_or_else(|| {
            RuntimeError::new(
                FailureKind::Unavailable,
                "Docker Engine ended the pull without an error, but does not have the image",
            )
        })?;
        let mut stored = stored(image, &inspect);
        stored.digest = digest.or(stored.digest);
        Ok(stored)
    }

    fn tells_progress(&self) -> bool {
        true
    }

    fn layer_storage(&self) -> LayerStorage {
        LayerStorage::Unpacked
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        let bytes = self.usage.ask().await?;
        Ok(Usage {
            bytes,
            ..Usage::default()
        })
    }
}

impl Lists for Docker {
    type Item = ImageSummary;

    async fn list(&self) -> Option<Vec<ImageSummary>> {
        let asked = self.client.list_images(None::<ListImagesOptions>);
        match tokio::time::timeout(self.time_limit, asked).await {
            Ok(Ok(images)) => Some(images),
            Ok(Err(error)) => {
                tracing::debug!("failed to list images: {}", root(&error));
                None
            }
            Err(_) => None,
        }
    }

    fn names(image: &ImageSummary) -> Vec<String> {
        [&*image.repo_tags, &*image.repo_digests].concat()
    }

    fn is_told(&self, _: &Reference) -> bool {
        true
    }

    fn stored(image: &Reference, summary: &ImageSummary) -> StoredImage {
        let inspect = ImageInspect {
            descriptor: summary.descriptor.clone(),
            repo_digests: Some(summary.repo_digests.clone()),
            size: Some(summary.size),
            ..ImageInspect::default()
        };
        stored(image, &inspect)
    }
}

/// The `X-Registry-Auth` of one pull.
fn login(credential: &Credential, image: &Reference) -> DockerCredentials {
    let serveraddress = Some(match image.registry() {
        DOCKER_HUB => DOCKER_HUB_URL.to_owned(),
        host => format!("https://{host}"),
    });
    match &*credential.login {
        Login::Password { user, password } => DockerCredentials {
            username: Some(user.expose().to_owned()),
            password: Some(password.expose().to_owned()),
            serveraddress,
            ..DockerCredentials::default()
        },
        // The Engine reads JSON, which contains text only: this is the closest approximation.
        Login::Bytes(encoded) => {
            let bytes = STANDARD.decode(encoded.expose()).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let (user, password) = text.split_once(':').unwrap_or_default();
            DockerCredentials {
                username: Some(user.to_owned()),
                password: Some(password.to_owned()),
                serveraddress,
                ..DockerCredentials::default()
            }
        }
        Login::IdentityToken(token) => DockerCredentials {
            identitytoken: Some(token.expose().to_owned()),
            serveraddress,
            ..DockerCredentials::default()
        },
    }
}

/// The name as the user wrote it, without tag and digest.
fn name(image: &Reference) -> &str {
    let written = image.as_written();
    let written = written.split_once('@').map_or(written, |(name, _)| name);
    let path = written.rfind('/').map_or(0, |slash| slash + 1);
    match written[path..].find(':') {
        Some(colon) => &written[..path + colon],
        None => written,
    }
}

/// The reference with an explicit tag or digest. Otherwise the Engine would also treat a short hexadecimal name as the prefix of
/// an image ID, and report a missing image as present.
fn explicit(image: &Reference) -> String {
    let name = name(image);
    match (image.digest(), image.tag()) {
        (Some(digest), _) => format!("{name}@{digest}"),
        (None, tag) => format!("{name}:{}", tag.unwrap_or("latest")),
    }
}

fn stored(image: &Reference, inspect: &ImageInspect) -> StoredImage {
    StoredImage {
        digest: digest_of(image, inspect),
        known: known(inspect.repo_digests.as_deref().unwrap_or_default(), image),
        bytes: inspect.size.and_then(|size| u64::try_from(size).ok()),
        is_sealed: false,
    }
}

/// The digest of the reference. The Engine stores the digests of an image by repository, not by tag: if a repository has several
/// for the same image, the tag's is unknown, and the result is `None`.
fn digest_of(image: &Reference, inspect: &ImageInspect) -> Option<String> {
    if let Some(digest) = image.digest() {
        return Some(digest.to_string());
    }
    let mut known = known(inspect.repo_digests.as_deref().unwrap_or_default(), image);
    let target = inspect.descriptor.as_ref().and_then(|d| d.digest.as_ref());
    match target.filter(|target| known.contains(target)) {
        Some(target) => Some(target.clone()),
        None if known.len() == 1 => known.pop(),
        None => None,
    }
}

/// The digest that the Engine resolved the tag to, from the event that contains it.
fn pulled_digest(event: &CreateImageInfo) -> Option<String> {
    let digest = event.status.as_deref()?.strip_prefix("Digest: ")?;
    Digest::parse(digest).ok().map(|d| d.to_string())
}

fn failure(image: &Reference, status: Option<u16>, message: &str) -> RuntimeError {
    let kind = error_kind::docker::kind_for(status, message, image);
    let message = match (tidy(message), status) {
        (message, Some(status)) if message.is_empty() => {
            format!("Docker Engine returned HTTP status {status} without a message")
        }
        (message, None) if message.is_empty() => {
            "Docker Engine reported an error without a message".to_owned()
        }
        (message, _) => message,
    };
    RuntimeError::new(kind, message)
}

/// One line of bounded length, without credentials in URLs.
fn tidy(message: &str) -> String {
    clip(&error_kind::tidy(message), MESSAGE_MAX)
}

fn not_docker(error: bollard::errors::Error) -> ConnectError {
    use bollard::errors::Error;
    match error {
        Error::DockerResponseServerError {
            status_code,
            message,
        } => ConnectError::Refused {
            status: status_code,
            message: tidy(&message),
        },
        error => ConnectError::NotDocker(Box::new(error)),
    }
}

/// The last cause of an error: the messages of the HTTP client above it do not help users.
fn root(error: &bollard::errors::Error) -> String {
    let root = causes(error).last().map(ToString::to_string);
    tidy(&root.unwrap_or_else(|| error.to_string()))
}

fn api_version(text: &str) -> Option<ClientVersion> {
    let (major, minor) = text.split_once('.')?;
    Some(ClientVersion {
        major_version: major.parse().ok()?,
        minor_version: minor.parse().ok()?,
    })
}

/// Encodes the login in the alphabet that the Engine expects, which bollard 0.21 does not use: the Engine ignores a login that it
/// cannot decode. Marks it as sensitive, too.
fn with_safe_login(mut request: BollardRequest) -> BollardRequest {
    let Some(login) = request.headers_mut().get_mut(LOGIN_HEADER) else {
        return request;
    };
    let safe = login
        .to_str()
        .map(|text| text.replace('+', "-").replace('/', "_"));
    if let Some(safe) = safe.ok().and_then(|text| HeaderValue::try_from(text).ok()) {
        *login = safe;
    }
    login.set_sensitive(true);
    request
}

/// Prefixes the path with the negotiated version. bollard 0.21 tries to do so, but joins an absolute path onto the URL with the
/// version, which replaces it.
fn with_version(mut request: BollardRequest, version: &ClientVersion) -> BollardRequest {
    let Some(path) = request.uri().path_and_query() else {
        return request;
    };
    if path.as_str().starts_with("/v1.") {
        return request;
    }
    let path = PathAndQuery::try_from(format!("/v{version}{path}"));
    let mut parts = request.uri().clone().into_parts();
    if let Ok(path) = path {
        parts.path_and_query = Some(path);
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
    }
    request
}

#[cfg(test)]
mod tests;
