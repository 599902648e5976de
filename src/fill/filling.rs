//! A runtime whose pulls are filled from here where that is possible. Everything else it passes on.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::hand_over::{Filled, Filler, Unfilled, is_useful};
use super::{Failure, place};
use crate::credentials::secret::Credential;
use crate::model::failure::FailureKind;
use crate::model::image_size::{ImageFs, LayerStorage, Usage};
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;
use crate::model::text::sanitize;
use crate::runtime::detect::of_daemon;
use crate::runtime::image_service::{ImageService, Progress, RuntimeError, RuntimeInfo, Status};
use crate::runtime::sealing::SealingRuntime;

/// Method of fetching and unpacking images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FillMode {
    /// harpoon where it can, otherwise the runtime.
    Auto,
    /// The runtime.
    Runtime,
    /// harpoon; it is an error if it cannot.
    Fast,
}

/// The reason why `--fill fast` is not possible.
#[derive(Debug, thiserror::Error)]
#[error(
    "no usable container runtime for --fill fast (FILL): {0}; it requires containerd with the overlayfs snapshotter, and its snapshot directory mounted writable at the same path"
)]
pub struct FillError(String);

/// Time until a failed check is made again: the disk may have been full, or containerd busy.
const CHECK_AGAIN: Duration = Duration::from_secs(600);

/// A runtime, and the means to fill it.
#[derive(Debug)]
pub struct FillingRuntime {
    runtime: SealingRuntime,
    mode: FillMode,
    filler: Option<Filler>,
    /// The result of the last check, and its time.
    checked: Mutex<Option<(Result<(), String>, Instant)>>,
}

impl FillingRuntime {
    /// The runtime, filled as the mode says.
    pub fn new(runtime: SealingRuntime, mode: FillMode) -> Self {
        let filler = match mode {
            FillMode::Runtime => None,
            FillMode::Auto | FillMode::Fast => runtime.store().map(Filler::new),
        };
        Self {
            runtime,
            mode,
            filler,
            checked: Mutex::default(),
        }
    }

    /// Checks what `--fill fast` needs.
    ///
    /// # Errors
    /// The reason why the runtime cannot be filled.
    pub async fn require(&self) -> Result<(), FillError> {
        let Some(filler) = &self.filler else {
            return Err(FillError("the runtime is not containerd".to_owned()));
        };
        self.check(filler).await.map_err(FillError)
    }

    /// The result of the check, made at the first pull and, if it failed, again later.
    async fn check(&self, filler: &Filler) -> Result<(), String> {
        let mut checked = self.checked.lock().await;
        if let Some((known, at)) = &*checked
            && (known.is_ok() || at.elapsed() < CHECK_AGAIN)
        {
            return known.clone();
        }
        let now = place::check(filler.store()).await;
        let now = now.map_err(|why| sanitize(&why));
        if let Err(why) = &now {
            tracing::debug!("the runtime pulls (--fill): {why}");
        }
        *checked = Some((now.clone(), Instant::now()));
        now
    }

    /// The runtime itself.
    pub fn sealing(&self) -> &SealingRuntime {
        &self.runtime
    }

    /// The filler, if the runtime's store can be filled from here.
    async fn ready(&self) -> Result<Option<&Filler>, RuntimeError> {
        let Some(filler) = &self.filler else {
            return Ok(None);
        };
        match self.check(filler).await {
            Ok(()) => Ok(Some(filler)),
            Err(why) if self.mode == FillMode::Fast => {
                let message = FillError(why).to_string();
                Err(RuntimeError::new(FailureKind::Unavailable, message))
            }
            Err(_) => Ok(None),
        }
    }

    /// Makes the image that was filled known to the runtime, or seals it.
    async fn finish(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        filled: &Filled,
    ) -> Result<StoredImage, RuntimeError> {
        let is_sealed = self.runtime.is_to_seal(image, credential);
        if is_sealed
            && let Some(sealed) = self.runtime.seal_held(image, filled.digest.as_str()).await
        {
            return sealed;
        }
        // It finds everything there, and makes the names.
        let progress = Progress::default();
        self.runtime.pull(image, credential, &progress).await
    }
}

impl ImageService for FillingRuntime {
    fn info(&self) -> &RuntimeInfo {
        self.runtime.info()
    }

    async fn status(&self, image: &Reference) -> Status {
        self.runtime.status(image).await
    }

    async fn statuses(&self, images: &[&Reference]) -> Vec<Status> {
        self.runtime.statuses(images).await
    }

    async fn pull(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        progress: &Progress,
    ) -> Result<StoredImage, RuntimeError> {
        let Some(filler) = self.ready().await? else {
            return self.runtime.pull(image, credential, progress).await;
        };
        let keep = self.runtime.keep();
        let filled = Box::pin(filler.fill(image, credential, keep, progress)).await;
        let Unfilled { failure, lease } = match filled {
            Ok(filled) => {
                let stored = self.finish(image, credential, &filled).await;
                if !stored.as_ref().is_err_and(is_useful) {
                    filler.store().release(&filled.lease, false).await;
                }
                return stored.map_err(|error| of_daemon(error, credential, progress));
            }
            Err(unfilled) => unfilled,
        };
        match failure {
            Failure::Unsupported(why) => {
                tracing::debug!(
                    image = image.as_written(),
                    "the runtime pulls (--fill): {}",
                    sanitize(&why)
                );
                let pulled = self.runtime.pull(image, credential, progress).await;
                if let Some(lease) = lease {
                    filler.store().release(&lease, false).await;
                }
                pulled
            }
            Failure::Failed(error) => Err(of_daemon(error, credential, progress)),
        }
    }

    fn tells_progress(&self) -> bool {
        self.runtime.tells_progress()
    }

    fn layer_storage(&self) -> LayerStorage {
        self.runtime.layer_storage()
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        self.runtime.usage().await
    }

    async fn file_system(&self) -> Option<ImageFs> {
        self.runtime.file_system().await
    }
}
