//! The interface of a container runtime's image store, independent of any runtime.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;

use crate::credentials::secret::Credential;
use crate::model::failure::FailureKind;
use crate::model::image_size::{ImageFs, LayerStorage, Usage};
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;

/// Maximum number of concurrent requests to a runtime.
const QUESTIONS: usize = 8;

/// The image that a runtime has for a reference, if any.
pub type Status = Result<Option<StoredImage>, RuntimeError>;

/// The identity of the runtime at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuntimeInfo {
    /// `containerd`, `cri-o`, `docker`, `oci`, or another name that the runtime reports.
    pub name: String,
    /// The version that the runtime reports.
    pub version: String,
    /// `unix:///path` or `oci:DIR`.
    pub endpoint: String,
}

impl RuntimeInfo {
    /// Returns whether it searches the registries of its own configuration for a name without one, as CRI-O does. containerd,
    /// Docker and image layouts use Docker Hub.
    pub fn searches_registries(&self) -> bool {
        !matches!(self.name.as_str(), "containerd" | "docker" | "oci")
    }
}

/// The progress of a pull. The runtime writes it, the report reads it; all zero if the runtime does not report progress.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    came: AtomicBool,
}

impl Progress {
    /// Records that `done` of `total` bytes were received.
    pub fn set(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done.min(total), Ordering::Relaxed);
    }

    /// Bytes received, and bytes in total as far as known.
    pub fn get(&self) -> (u64, u64) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }

    /// Records that the registry has sent bytes of this image: the credentials were accepted, so that later failures have another
    /// cause.
    pub fn set_came(&self) {
        self.came.store(true, Ordering::Relaxed);
    }

    /// Returns whether bytes were received; `false` too if the runtime does not report that.
    pub fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }
}

/// The reason why a runtime did not pull an image, or did not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    /// The kind, for reports and for the decision about a retry.
    pub kind: FailureKind,
    /// The runtime's or the registry's own message.
    pub message: String,
    /// The wait that the server requested, if any.
    pub retry_after: Option<Duration>,
    /// True if a retry can help regardless of the kind: a source of credentials gave no answer.
    pub source_failed: bool,
}

impl RuntimeError {
    /// An error without a requested wait.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
            source_failed: false,
        }
    }

    /// Returns whether another attempt can succeed without any change by a user.
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable() || self.source_failed
    }
}

/// An image store that can be queried and filled.
///
/// Dropping a returned future cancels the call and leaves the runtime clean.
pub trait ImageService: Sync {
    /// The identity of the runtime.
    fn info(&self) -> &RuntimeInfo;

    /// The image that the runtime has for this reference, if any.
    fn status(&self, image: &Reference) -> impl Future<Output = Status> + Send;

    /// The images for many references, in their order: with a single request if the runtime supports one and it is cheaper.
    fn statuses(&self, images: &[&Reference]) -> impl Future<Output = Vec<Status>> + Send {
        ask_each(self, images)
    }

    /// Makes one attempt to pull the image by the reference as the user wrote it; anonymously without a credential. The
    /// credential is sent only to the image's own registry.
    fn pull(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        progress: &Progress,
    ) -> impl Future<Output = Result<StoredImage, RuntimeError>> + Send;

    /// Returns whether a pull's [`Progress`] is updated during the download.
    fn tells_progress(&self) -> bool;

    /// The form in which it keeps layers.
    fn layer_storage(&self) -> LayerStorage;

    /// The current usage of the store. A runtime's own count may be some seconds old.
    fn usage(&self) -> impl Future<Output = Result<Usage, RuntimeError>> + Send;

    /// The file system of the store; `None` if it is not known.
    fn file_system(&self) -> impl Future<Output = Option<ImageFs>> + Send {
        std::future::ready(None)
    }
}

/// Looks up each reference separately, some concurrently.
pub(super) async fn ask_each<S: ImageService + ?Sized>(
    service: &S,
    images: &[&Reference],
) -> Vec<Status> {
    let questions = images.iter().map(|image| service.status(image));
    futures_util::stream::iter(questions.collect::<Vec<_>>())
        .buffered(QUESTIONS)
        .collect()
        .await
}
