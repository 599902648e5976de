//! A runtime that seals those of its images that the policy says. It pulls nothing by itself.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::credentials::secret::Credential;
use crate::model::failure::FailureKind;
use crate::model::image_size::{ImageFs, LayerStorage, Usage};
use crate::model::reference::Reference;
use crate::model::seal::SealPolicy;
use crate::model::stored_image::StoredImage;
use crate::model::text::sanitize;
use crate::runtime::containerd::{Keep, Pins, Seal, Seals, Store, Unsettled};
use crate::runtime::cri::Cri;
use crate::runtime::detect::{Runtime, of_daemon};
use crate::runtime::image_fs::ImageFsError;
use crate::runtime::image_service::{ImageService, Progress, RuntimeError, RuntimeInfo, Status};

/// A runtime, and which of its images are sealed.
#[derive(Debug)]
pub struct SealingRuntime {
    runtime: Runtime,
    policy: SealPolicy,
    /// The policies of images that have one of their own, by normalised reference.
    policies: RwLock<HashMap<String, SealPolicy>>,
    keep: Keep,
    has_warned: AtomicBool,
}

impl SealingRuntime {
    /// The runtime with this policy.
    pub fn new(runtime: Runtime, policy: SealPolicy, keep: Keep) -> Self {
        Self {
            runtime,
            policy,
            policies: RwLock::default(),
            keep,
            has_warned: AtomicBool::new(false),
        }
    }

    /// The runtime without its seals.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// Replaces the policies of single images, by normalised reference. The others keep the runtime's policy.
    pub fn set_policies(&self, policies: HashMap<String, SealPolicy>) {
        *self
            .policies
            .write()
            .unwrap_or_else(PoisonError::into_inner) = policies;
    }

    fn policy(&self, image: &Reference) -> SealPolicy {
        let policies = self.policies.read().unwrap_or_else(PoisonError::into_inner);
        let own = policies.get(image.normalized()).copied();
        own.unwrap_or(self.policy)
    }

    /// Returns whether any image may be sealed.
    fn may_seal(&self) -> bool {
        let policies = self.policies.read().unwrap_or_else(PoisonError::into_inner);
        let mut policies = policies.values().chain([&self.policy]);
        policies.any(|policy| *policy != SealPolicy::Never)
    }

    /// The reason why no image can be pulled: all are to be sealed, and this runtime cannot.
    pub fn cannot_seal(&self) -> Option<String> {
        let is_needed = self.policy == SealPolicy::Always && self.seals().is_none();
        is_needed.then(|| self.lacks_seals("--seal always (SEAL)"))
    }

    fn lacks_seals(&self, setting: &str) -> String {
        let name = sanitize(&self.info().name);
        format!("{name} cannot seal images: {setting} requires containerd")
    }

    /// containerd's CRI server and its seals.
    fn containerd(&self) -> Option<(&Cri, &Seals)> {
        match &self.runtime {
            Runtime::Cri(cri) => Some((cri, cri.seals()?)),
            Runtime::Docker(_) | Runtime::Oci(_) => None,
        }
    }

    /// The seals of the runtime's images; only containerd has them.
    pub fn seals(&self) -> Option<&Seals> {
        self.containerd().map(|(_, seals)| seals)
    }

    /// The store of containerd's content and snapshots; `None` of other runtimes.
    pub fn store(&self) -> Option<Store> {
        self.seals().map(Seals::store)
    }

    /// Returns whether the image, pulled with this credential, is to be sealed.
    pub fn is_to_seal(&self, image: &Reference, credential: Option<&Credential>) -> bool {
        let policy = self.policy(image);
        policy.seals(credential.is_some_and(|c| c.is_pull_secret))
    }

    /// The lifetimes of content without a name.
    pub fn keep(&self) -> Keep {
        self.keep
    }

    /// Seals an image whose content and snapshots a lease of harpoon's holds; `None` where the runtime cannot seal.
    ///
    /// # Errors
    /// When something of the image is missing, or containerd fails.
    pub async fn seal_held(
        &self,
        image: &Reference,
        digest: &str,
    ) -> Option<Result<StoredImage, RuntimeError>> {
        Some(self.seals()?.seal_held(image, digest, self.keep).await)
    }

    /// The pins of the runtime's images; only containerd has them.
    pub fn pins(&self) -> Option<&Pins> {
        match &self.runtime {
            Runtime::Cri(cri) => cri.pins(),
            Runtime::Docker(_) | Runtime::Oci(_) => None,
        }
    }

    /// Returns whether harpoon can pin images of this runtime.
    pub fn supports_pins(&self) -> bool {
        self.pins().is_some()
    }

    /// The reason why no image can be pinned, for a status message.
    pub fn cannot_pin(&self) -> Option<String> {
        let name = || sanitize(&self.info().name);
        (!self.supports_pins()).then(|| {
            format!(
                "{} has no API to pin images: retention policy Pin acts as Keep",
                name()
            )
        })
    }

    /// The reason why pins have no effect, though containerd stores them; `None` if they have, or if nothing is pinned.
    ///
    /// # Errors
    /// If containerd does not answer.
    pub async fn ignores_pins(&self) -> Result<Option<String>, RuntimeError> {
        let Some(pins) = self.pins() else {
            return Ok(self.cannot_pin());
        };
        let is_ignored = pins.are_honoured().await? == Some(false);
        let info = self.info();
        Ok(is_ignored.then(|| {
            format!(
                "{} {} does not report pinned images to the kubelet (containerd 1.6.25, 1.7.10 and later do): retention policy Pin acts as Keep",
                sanitize(&info.name), sanitize(&info.version)
            )
        }))
    }

    /// The file system of the runtime's image store.
    ///
    /// # Errors
    /// As [`Runtime::image_fs`].
    pub async fn image_fs(&self) -> Result<ImageFs, ImageFsError> {
        self.runtime.image_fs().await
    }

    /// The seals that count; none where nothing is to be sealed.
    async fn whole_seals(&self) -> Result<HashMap<String, Seal>, RuntimeError> {
        let (Some(seals), true) = (self.seals(), self.may_seal()) else {
            return Ok(HashMap::new());
        };
        let mut seals = seals.list().await?;
        seals.retain(|_, seal| seal.is_whole);
        Ok(seals)
    }

    /// Seals the image that its name stands for, and leaves the name, where the runtime can. A failure is logged.
    pub async fn hold(&self, image: &Reference) {
        let Some(seals) = self.seals() else { return };
        match seals.hold(image, self.keep).await {
            Ok(true) => tracing::info!(
                image = image.as_written(),
                "sealed, and left the name of somebody else"
            ),
            Ok(false) => {}
            Err(error) => tracing::warn!(
                image = image.as_written(),
                "failed to seal: {}",
                sanitize(&error.message)
            ),
        }
    }

    /// Renews the seals of these images, except those that are younger than half an hour or half of the lifetime. A failure is logged.
    pub async fn renew(&self, images: &[&Reference]) {
        if let (Some(seals), false) = (self.seals(), images.is_empty())
            && let Err(error) = seals.renew(images, self.keep).await
        {
            tracing::warn!("failed to renew seals: {}", sanitize(&error.message));
        }
    }

    /// Removes the names that pulls through the CRI have made of sealed images. Dropping the future leaves those that are left.
    pub async fn settle(&self) {
        if let Some(seals) = self.seals() {
            seals.settle().await;
        }
    }

    /// The names that [`SealingRuntime::settle`] has not removed, for a later connection to the same runtime.
    pub fn unsettled(&self) -> Unsettled {
        self.seals().map(Seals::unsettled).unwrap_or_default()
    }

    /// Takes over the names that an earlier connection has left.
    pub fn resume(&self, names: Unsettled) {
        if let Some(seals) = self.seals() {
            seals.resume(names);
        }
    }

    /// Forgets the names that [`SealingRuntime::settle`] has kept. Returns whether others are left.
    pub fn forget_kept(&self) -> bool {
        self.seals().is_some_and(Seals::forget_kept)
    }

    /// The normalised references of images that were sealed by this runtime and have a name all the same.
    pub fn still_named(&self) -> HashSet<String> {
        self.seals().map(Seals::still_named).unwrap_or_default()
    }

    async fn sealed(
        &self,
        (cri, seals): (&Cri, &Seals),
        image: &Reference,
        credential: Option<&Credential>,
        progress: &Progress,
    ) -> Result<StoredImage, RuntimeError> {
        if let Some(stored) = seals.pull(image, credential, self.keep, progress).await? {
            return Ok(stored);
        }
        let before = seals.before().await?;
        cri.pull(image, credential, progress).await?;
        seals.adopt(before, image, self.keep).await
    }

    /// Says once that images which should be sealed are named.
    fn warn_once(&self) {
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "{} cannot seal images: every pod of this node can use images that are pulled with a pull secret (--seal)",
                sanitize(&self.info().name)
            );
        }
    }
}

impl ImageService for SealingRuntime {
    fn info(&self) -> &RuntimeInfo {
        self.runtime.info()
    }

    async fn status(&self, image: &Reference) -> Status {
        self.runtime.status(image).await
    }

    async fn statuses(&self, images: &[&Reference]) -> Vec<Status> {
        let (mut statuses, seals) = tokio::join!(self.runtime.statuses(images), self.whole_seals());
        let may_be_sealed = |image: &Reference| self.policy(image) != SealPolicy::Never;
        let seals = match seals {
            Ok(seals) => seals,
            Err(error) => {
                tracing::warn!("failed to list seals: {}", sanitize(&error.message));
                // What has no name may be sealed.
                let unknown = images.iter().zip(&mut statuses);
                unknown
                    .filter(|(image, status)| may_be_sealed(image) && matches!(status, Ok(None)))
                    .for_each(|(_, status)| *status = Err(error.clone()));
                return statuses;
            }
        };
        for (image, status) in images.iter().zip(&mut statuses) {
            let Some(seal) = seals
                .get(image.normalized())
                .filter(|_| may_be_sealed(image))
            else {
                continue;
            };
            match status {
                // Its tag may have moved since.
                Ok(Some(named)) => {
                    let mut digests = named.digest.iter().chain(&named.known).peekable();
                    named.is_sealed =
                        digests.peek().is_none() || digests.any(|d| *d == seal.digest);
                }
                status => {
                    *status = Ok(Some(StoredImage {
                        digest: Some(seal.digest.clone()),
                        known: vec![seal.digest.clone()],
                        bytes: seal.bytes,
                        is_sealed: true,
                    }));
                }
            }
        }
        statuses
    }

    async fn pull(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        progress: &Progress,
    ) -> Result<StoredImage, RuntimeError> {
        let policy = self.policy(image);
        let is_sealed = self.is_to_seal(image, credential);
        let containerd = match self.containerd() {
            Some(containerd) if is_sealed => containerd,
            None if is_sealed => {
                let why = self.cannot_seal();
                let own = (policy == SealPolicy::Always).then(|| self.lacks_seals("seal: Always"));
                if let Some(why) = why.or(own) {
                    return Err(RuntimeError::new(FailureKind::Other, why));
                }
                self.warn_once();
                return self.runtime.pull(image, credential, progress).await;
            }
            _ => return self.runtime.pull(image, credential, progress).await,
        };
        let sealed = self.sealed(containerd, image, credential, progress).await;
        sealed.map_err(|error| of_daemon(error, credential, progress))
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
        self.image_fs().await.ok()
    }
}
