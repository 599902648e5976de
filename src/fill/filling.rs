//! A runtime whose pulls are filled from here where that is possible. Everything else it passes on.

use tokio::sync::OnceCell;

use super::hand_over::{Filled, Filler};
use super::{Failure, place};
use crate::credentials::secret::Credential;
use crate::model::image_size::{ImageFs, LayerStorage, Usage};
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;
use crate::model::text::sanitize;
use crate::runtime::detect::of_daemon;
use crate::runtime::image_service::{ImageService, Progress, RuntimeError, RuntimeInfo, Status};
use crate::runtime::sealing::SealingRuntime;

/// Who fetches and unpacks images.
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
    "no usable container runtime for --fill fast (FILL): {0}; it requires containerd with the overlayfs snapshotter, and its root directory mounted writable at the same path"
)]
pub struct FillError(String);

/// A runtime, and the means to fill it.
#[derive(Debug)]
pub struct FillingRuntime {
    runtime: SealingRuntime,
    filler: Option<Filler>,
    /// The result of the check, made at the first pull.
    is_ready: OnceCell<bool>,
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
            filler,
            is_ready: OnceCell::new(),
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
        let checked = place::check(filler.store()).await;
        checked.map_err(|why| FillError(sanitize(&why)))
    }

    /// The runtime itself.
    pub fn sealing(&self) -> &SealingRuntime {
        &self.runtime
    }

    /// The filler, if the runtime's store can be filled from here.
    async fn ready(&self) -> Option<&Filler> {
        let filler = self.filler.as_ref()?;
        let check = || async {
            let checked = place::check(filler.store()).await;
            if let Err(why) = &checked {
                tracing::debug!("the runtime pulls (--fill): {}", sanitize(why));
            }
            checked.is_ok()
        };
        let is_ready = self.is_ready.get_or_init(check).await;
        is_ready.then_some(filler)
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
        let Some(filler) = self.ready().await else {
            return self.runtime.pull(image, credential, progress).await;
        };
        let keep = self.runtime.keep();
        let filled = Box::pin(filler.fill(image, credential, keep, progress)).await;
        match filled {
            Ok(filled) => {
                let stored = self.finish(image, credential, &filled).await;
                filler.store().release(&filled.lease, false).await;
                stored.map_err(|error| of_daemon(error, credential, progress))
            }
            Err(Failure::Unsupported(why)) => {
                tracing::debug!(
                    image = image.as_written(),
                    "the runtime pulls (--fill): {}",
                    sanitize(&why)
                );
                self.runtime.pull(image, credential, progress).await
            }
            Err(Failure::Failed(error)) => Err(of_daemon(error, credential, progress)),
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
