//! Runtimes that serve the Kubernetes Container Runtime Interface, version 1, on a unix socket: containerd, CRI-O,
//! cri-dockerd.
//!
//! It only reads and pulls images; it never creates a container or a sandbox. The channel reconnects when the daemon has been
//! restarted; in the meantime, calls fail as `unavailable`. No proxy setting applies to a socket.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    AuthConfig, Image, ImageFsInfoRequest, ImageSpec, ImageStatusRequest, ListImagesRequest,
    PodSandboxConfig, PodSandboxMetadata, PullImageRequest, VersionRequest,
};
use tonic::Status;
use tonic::transport::Channel;

use super::listed::{self, Lists, known};
use crate::credentials::secret::{Credential, Login};
use crate::model::failure::FailureKind;
use crate::model::image_size::{LayerStorage, Usage};
use crate::model::reference::{Reference, served_at};
use crate::model::stored_image::StoredImage;
use crate::runtime::containerd::{Pins, Seals};
use crate::runtime::grpc::{failure, message, unexplained, words};
use crate::runtime::image_service::Status as Presence;
use crate::runtime::image_service::{ImageService, Progress, RuntimeError, RuntimeInfo};

mod connect;
mod content;
mod crio;
mod progress;

pub use connect::ConnectError;

/// tonic's default limit is 4 MB; the response of a node with thousands of images is larger.
const MESSAGE_MAX: usize = 64 << 20;
/// A runtime that is busy with unpacking answers late, but one that sends nothing for this long is stuck.
const STATUS_LIMIT: Duration = Duration::from_secs(60);
/// The name in the sandbox config that every pull sends.
const SANDBOX_NAME: &str = "harpoon";

/// A connected CRI server.
#[derive(Debug)]
pub struct Cri {
    info: RuntimeInfo,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    downloads: Option<progress::Downloads>,
    seals: Option<Box<Seals>>,
    pins: Option<Box<Pins>>,
}

impl Cri {
    /// Connects to the socket at `path` and requests the runtime's version, all within `time_limit`.
    ///
    /// # Errors
    /// The reason why the socket cannot be used, and how to fix it.
    pub async fn connect(path: &Path, time_limit: Duration) -> Result<Self, ConnectError> {
        let (channel, info) = connect::connect(path, time_limit).await?;
        // Only containerd serves the content API on the same socket as the CRI.
        let downloads =
            (info.name == "containerd").then(|| progress::Downloads::new(channel.clone()));
        let seals = downloads
            .is_some()
            .then(|| Box::new(Seals::new(channel.clone())));
        let pins = downloads
            .is_some()
            .then(|| Box::new(Pins::new(channel.clone())));
        Ok(Self {
            info,
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX),
            downloads,
            seals,
            pins,
        })
    }

    /// The seals of its images; only containerd has them.
    pub fn seals(&self) -> Option<&Seals> {
        self.seals.as_deref()
    }

    /// The pins of its images; only containerd has them.
    pub fn pins(&self) -> Option<&Pins> {
        self.pins.as_deref()
    }

    /// The version that it reports now; a cheap request that tells whether it responds.
    ///
    /// # Errors
    /// If it does not respond.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        let mut runtime = self.runtime.clone();
        let asked = runtime.version(VersionRequest::default());
        let answer = self.answer(asked, "Version", unexplained).await?;
        Ok(answer.into_inner().runtime_version)
    }

    async fn image_status(&self, image: &Reference) -> Result<Option<Image>, RuntimeError> {
        let request = ImageStatusRequest {
            image: Some(image_spec(&asked_name(image))),
            verbose: false,
        };
        let mut images = self.images.clone();
        let asked = images.image_status(request);
        let answer = self.answer(asked, "ImageStatus", |s| failure(s, image));
        Ok(answer.await?.into_inner().image)
    }

    /// All its images.
    async fn images(&self) -> Result<Vec<Image>, RuntimeError> {
        let mut images = self.images.clone();
        let asked = images.list_images(ListImagesRequest::default());
        let answer = self.answer(asked, "ListImages", unexplained);
        Ok(answer.await?.into_inner().images)
    }

    /// The runtime's response to a call of `method`, within the time limit.
    async fn answer<T>(
        &self,
        asked: impl Future<Output = Result<T, Status>>,
        method: &str,
        failure: impl Fn(&Status) -> RuntimeError,
    ) -> Result<T, RuntimeError> {
        match tokio::time::timeout(STATUS_LIMIT, asked).await {
            Ok(answer) => answer.map_err(|status| failure(&status)),
            Err(_) => Err(RuntimeError::new(
                FailureKind::Timeout,
                format!(
                    "no response from {} within {} s ({method})",
                    self.info.name,
                    STATUS_LIMIT.as_secs()
                ),
            )),
        }
    }

    /// The directory of its image store that it reports, on the node.
    pub(super) async fn store_directory(&self) -> Result<Option<PathBuf>, RuntimeError> {
        let mut images = self.images.clone();
        let asked = images.image_fs_info(ImageFsInfoRequest::default());
        let answer = self.answer(asked, "ImageFsInfo", unexplained);
        let filesystems = answer.await?.into_inner().image_filesystems.into_iter();
        let mut directories = filesystems.filter_map(|fs| Some(fs.fs_id?.mountpoint));
        let directory = directories.find(|directory| directory.starts_with('/'));
        Ok(directory.map(PathBuf::from))
    }

    async fn pull_image(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
    ) -> Result<String, RuntimeError> {
        let request = PullImageRequest {
            image: Some(image_spec(image.as_written())),
            auth: credential.map(|c| auth_config(c, image)),
            sandbox_config: Some(sandbox_config()),
        };
        let mut images = self.images.clone();
        match images.pull_image(request).await {
            Ok(answer) => Ok(answer.into_inner().image_ref),
            Err(status) => Err(failure(&status, image)),
        }
    }
}

impl ImageService for Cri {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    async fn status(&self, image: &Reference) -> Result<Option<StoredImage>, RuntimeError> {
        let answer = self.image_status(image).await?;
        Ok(answer.map(|stored| stored_image(image, &stored)))
    }

    async fn statuses(&self, images: &[&Reference]) -> Vec<Presence> {
        listed::statuses(self, images).await
    }

    async fn pull(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        progress: &Progress,
    ) -> Result<StoredImage, RuntimeError> {
        let pulled = match &self.downloads {
            None => self.pull_image(image, credential).await,
            Some(downloads) => tokio::select! {
                biased;
                pulled = self.pull_image(image, credential) => pulled,
                never = downloads.watch(image, progress) => match never {},
            },
        }?;
        let (_, total) = progress.get();
        progress.set(total, total);
        // The image was pulled; a failure of this request does not change that.
        match self.image_status(image).await {
            Ok(Some(stored)) => Ok(stored_image(image, &stored)),
            Ok(None) | Err(_) => Ok(StoredImage {
                digest: digest_of(&pulled, image),
                known: known(&[pulled], image),
                ..StoredImage::default()
            }),
        }
    }

    fn tells_progress(&self) -> bool {
        self.downloads.is_some()
    }

    fn layer_storage(&self) -> LayerStorage {
        match self.downloads {
            Some(_) => LayerStorage::Both,
            None => LayerStorage::Unpacked,
        }
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        let mut images = self.images.clone();
        let asked = images.image_fs_info(ImageFsInfoRequest::default());
        let answer = self.answer(asked, "ImageFsInfo", unexplained);
        let answer = answer.await?.into_inner();
        let filesystems = answer.image_filesystems.iter();
        let used = filesystems.filter_map(|fs| Some(fs.used_bytes.as_ref()?.value));
        let bytes = used.fold(0, u64::saturating_add);
        let Some(downloads) = &self.downloads else {
            let listed = crio::listed_bytes(&self.images().await?);
            return Ok(Usage {
                bytes: bytes.max(listed),
                ..Usage::default()
            });
        };
        // containerd reports only its snapshots there, not the blobs that they were unpacked from.
        let counted = answer.image_filesystems.iter().map(|fs| fs.timestamp);
        let counted = counted.min().filter(|_| bytes > 0);
        let content = downloads.content(counted);
        let mut usage = self.answer(content, "content list", unexplained).await?;
        usage.bytes = usage.bytes.saturating_add(bytes);
        Ok(usage)
    }
}

impl Lists for Cri {
    type Item = Image;

    async fn list(&self) -> Option<Vec<Image>> {
        let images = self.images().await;
        let images = images.inspect_err(|error| tracing::debug!("failed to list images: {error}"));
        images.ok()
    }

    fn names(image: &Image) -> Vec<String> {
        [&*image.repo_tags, &*image.repo_digests].concat()
    }

    fn is_told(&self, image: &Reference) -> bool {
        !self.info.searches_registries() || image.names_registry()
    }

    fn stored(image: &Reference, stored: &Image) -> StoredImage {
        stored_image(image, stored)
    }
}

fn image_spec(image: &str) -> ImageSpec {
    ImageSpec {
        image: image.to_owned(),
        ..ImageSpec::default()
    }
}

/// The name with its tag, which a runtime cannot mistake for an image ID or its prefix, such as `4bc` or `sha256:4bc`. The
/// kubelet adds the tag too.
fn asked_name(image: &Reference) -> Cow<'_, str> {
    match image.as_written().starts_with("sha256:") {
        true => image.normalized().into(),
        false => image.tagged(),
    }
}

/// The credential for one pull. `server_address` is always set, with its scheme, because containerd sends a credential without an
/// address to any host, including mirrors, and one without a scheme to none.
fn auth_config(credential: &Credential, image: &Reference) -> AuthConfig {
    // containerd compares it with the host that it connects to.
    let server_address = format!("https://{}", served_at(image.registry()));
    match &*credential.login {
        // Without a user, containerd ignores the two fields, but uses the encoded one.
        Login::Password { user, password } if user.expose().is_empty() => AuthConfig {
            auth: STANDARD.encode(format!(":{}", password.expose())),
            server_address,
            ..AuthConfig::default()
        },
        // A field of the CRI must be UTF-8, otherwise the message is invalid.
        Login::Bytes(encoded) => AuthConfig {
            auth: encoded.expose().to_owned(),
            server_address,
            ..AuthConfig::default()
        },
        Login::Password { user, password } => AuthConfig {
            username: user.expose().to_owned(),
            password: password.expose().to_owned(),
            server_address,
            ..AuthConfig::default()
        },
        Login::IdentityToken(token) => AuthConfig {
            identity_token: token.expose().to_owned(),
            server_address,
            ..AuthConfig::default()
        },
    }
}

/// The sandbox config of every pull. Without one, containerd ignores the runtime handler, and with it the snapshotter of a
/// runtime class.
fn sandbox_config() -> PodSandboxConfig {
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: SANDBOX_NAME.to_owned(),
            uid: SANDBOX_NAME.to_owned(),
            namespace: SANDBOX_NAME.to_owned(),
            attempt: 0,
        }),
        ..PodSandboxConfig::default()
    }
}

fn stored_image(image: &Reference, stored: &Image) -> StoredImage {
    StoredImage {
        digest: digest(image, &stored.repo_digests),
        known: known(&stored.repo_digests, image),
        bytes: (stored.size > 0).then_some(stored.size),
        is_sealed: false,
    }
}

/// The digest among `repository@digest` for the image's own repository: the requested one, otherwise the first. An image that has
/// only another repository's digest gets that one: the bytes are the same.
fn digest(image: &Reference, repo_digests: &[String]) -> Option<String> {
    let known: Vec<Reference> = repo_digests
        .iter()
        .filter_map(|text| Reference::parse(text).ok())
        .filter(|known| known.digest().is_some())
        .collect();
    let same_repository = |known: &&Reference| known.is_same_repository(image);
    known
        .iter()
        .find(|known| known.digest() == image.digest())
        .or_else(|| known.iter().find(same_repository))
        .or_else(|| known.first())
        .and_then(Reference::digest)
        .map(ToString::to_string)
}

/// The digest in the response to a pull. CRI-O and cri-dockerd return `repository@digest`; containerd returns the image ID, which
/// is a digest too, but the configuration's.
fn digest_of(image_ref: &str, image: &Reference) -> Option<String> {
    digest(image, &[image_ref.to_owned()]).or_else(|| image.digest().map(ToString::to_string))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
