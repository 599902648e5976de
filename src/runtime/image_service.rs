//! The interface of a container runtime's image store. It knows no runtime.

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;

use crate::credentials::secret::Credential;
use crate::model::failure::FailureKind;
use crate::model::image_size::{LayerStorage, Usage};
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;

/// Questions to a runtime that are under way at once.
const QUESTIONS: usize = 8;

/// What a runtime has under a reference, if anything.
pub type Status = Result<Option<StoredImage>, RuntimeError>;

/// Who answers at an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuntimeInfo {
    /// `containerd`, `cri-o`, `docker`, `oci`, or what else the runtime calls itself.
    pub name: String,
    /// The version as the runtime gives it.
    pub version: String,
    /// `unix:///path` or `oci:DIR`.
    pub endpoint: String,
}

impl RuntimeInfo {
    /// Returns whether it searches registries of its own configuration for a name without one, as CRI-O does. containerd, Docker and
    /// image layouts take it for Docker Hub's.
    pub fn searches_registries(&self) -> bool {
        !matches!(self.name.as_str(), "containerd" | "docker" | "oci")
    }
}

/// How far a pull has come. Written by a runtime, read by whoever shows it; all zero where the runtime does not tell.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    total: AtomicU64,
    came: AtomicBool,
}

impl Progress {
    /// Records that `done` of `total` bytes are here.
    pub fn set(&self, done: u64, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        self.done.store(done.min(total), Ordering::Relaxed);
    }

    /// Bytes that are here, and bytes in all as far as known.
    pub fn get(&self) -> (u64, u64) {
        (
            self.done.load(Ordering::Relaxed),
            self.total.load(Ordering::Relaxed),
        )
    }

    /// Records that the registry has sent bytes of this very image: it let the pull in, and what fails then is no matter of credentials.
    pub fn set_came(&self) {
        self.came.store(true, Ordering::Relaxed);
    }

    /// Returns whether bytes came; `false` too where the runtime does not tell.
    pub fn came(&self) -> bool {
        self.came.load(Ordering::Relaxed)
    }
}

/// Why a runtime did not pull an image, or did not answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct RuntimeError {
    /// The kind, for reports and for the decision to try again.
    pub kind: FailureKind,
    /// The runtime's or the registry's own words.
    pub message: String,
    /// How long the other side asked to wait, where it said so.
    pub retry_after: Option<Duration>,
    /// Another attempt can help whatever the kind: a source of credentials gave no answer.
    pub source_failed: bool,
}

impl RuntimeError {
    /// An error without a wish for how long to wait.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
            source_failed: false,
        }
    }

    /// Whether another attempt can end differently without anybody changing anything.
    pub fn is_retryable(&self) -> bool {
        self.kind.is_retryable() || self.source_failed
    }
}

/// A store of images that can be asked and filled.
///
/// Dropping a future that a method returned cancels the call and leaves the runtime clean.
pub trait ImageService: Sync {
    /// Who answers.
    fn info(&self) -> &RuntimeInfo;

    /// What the runtime has under this reference, if anything.
    fn status(&self, image: &Reference) -> impl Future<Output = Status> + Send;

    /// The same of many references, in their order: by one question for them all where a runtime has one and that is cheaper.
    fn statuses(&self, images: &[&Reference]) -> impl Future<Output = Vec<Status>> + Send {
        ask_each(self, images)
    }

    /// Makes one attempt to pull the image, as the user wrote the reference; anonymously where there is no credential.
    /// The credential is shown to the image's own registry alone.
    fn pull(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        progress: &Progress,
    ) -> impl Future<Output = Result<StoredImage, RuntimeError>> + Send;

    /// Returns whether a pull's [`Progress`] tells what comes while it comes.
    fn tells_progress(&self) -> bool;

    /// In which form it keeps layers.
    fn layer_storage(&self) -> LayerStorage;

    /// What the store holds now. A runtime's own count may be some seconds old.
    fn usage(&self) -> impl Future<Output = Result<Usage, RuntimeError>> + Send;
}

/// Asks for each reference by itself, some at a time.
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
