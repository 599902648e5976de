//! The `oci:DIR` runtime: pulls directly from the registry into an OCI image layout directory.
//!
//! For machines without a daemon, for building node images and for air-gapped bundles. It stores one platform's manifest of an
//! image, its configuration and its layers, compressed as in the registry:
//!
//! - `index.json` has an entry for each reference, annotated twice with its normalised form: as
//!   `org.opencontainers.image.ref.name`, by which `skopeo … oci:DIR:docker.io/library/nginx:latest` finds it, and as
//!   `io.containerd.image.name`, by which `ctr images import` names it. `dev.harpoon.source.digest` is the digest of
//!   the reference in the registry: that of the index, if the image is for several platforms.
//! - A Docker manifest (schema 2) is written as the OCI manifest of the same configuration and layers, since a layout
//!   holds OCI manifests and skopeo reads no others; every other blob is byte for byte the registry's.
//! - `.harpoon/` contains the lock and the downloads in progress.
//!
//! Layers that "may not be distributed" are requested from the registry like all others, since most registries have them; their
//! `urls`, which are untrusted, are never fetched. Nothing is ever deleted from `blobs/`.
//!
//! The directory is a valid layout at every moment, even after a crash: a blob appears under its name by a rename, when it is
//! complete, verified and synced; `index.json` is replaced likewise, after all blobs of its new entry. Opening it creates
//! nothing; the first image does. Several pulls, in one or several processes, may share the directory. No path in it follows a
//! symbolic link, and a layout that another user created is refused (`dir.rs`).

mod dir;
mod error;
mod fetch;
mod layout;
mod partial;
mod usage;

#[cfg(any(test, fuzzing))]
pub(crate) use layout::fuzz_index;

use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::sync::OnceCell;

use crate::credentials::secret::Credential;
use crate::model::digest::Digest;
use crate::model::image_size::{LayerStorage, Usage};
use crate::model::platform::Platform;
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;
use crate::registry::manifest::{Descriptor, Manifest, OCI_MANIFEST, config_platform};
use crate::registry::{self, Access, Chosen, Client, MANIFEST_MAX, digest, select};
use crate::runtime::image_service::{
    ImageService, Progress, RuntimeError, RuntimeInfo, Status, ask_each,
};

use error::Error;
pub use error::OpenError;
use fetch::{Downloads, Gauge};
use layout::{Entry, Layout, blocking};

/// Maximum number of concurrent layer downloads of one image, as in skopeo.
const LAYERS_AT_ONCE: usize = 6;

/// An OCI image layout directory that images are pulled into.
pub struct OciLayout {
    info: RuntimeInfo,
    platform: Platform,
    client: Client,
    layout: Layout,
    made: OnceCell<()>,
    downloads: Downloads,
}

/// Opens the layout directory `dir`. If it is missing or empty, the first pull creates the layout. Images are pulled for
/// `platform`.
///
/// # Errors
/// [`OpenError`], for example if the directory contains something else.
pub async fn open(dir: &Path, platform: Platform) -> Result<OciLayout, OpenError> {
    let client = Client::new().map_err(OpenError::Client)?;
    OciLayout::with_client(dir, platform, client).await
}

impl OciLayout {
    /// As [`open`], with the given registry client.
    ///
    /// # Errors
    /// As [`open`].
    async fn with_client(
        dir: &Path,
        platform: Platform,
        client: Client,
    ) -> Result<Self, OpenError> {
        let root = dir.to_owned();
        let layout = blocking(move || Layout::open(root)).await?;
        Ok(Self {
            info: RuntimeInfo {
                name: "oci".to_owned(),
                version: layout::VERSION.to_owned(),
                endpoint: format!("oci:{}", dir.display()),
            },
            platform,
            client,
            layout,
            made: OnceCell::new(),
            downloads: Downloads::default(),
        })
    }

    /// The layout's directory, or the nearest one above it that exists.
    pub(super) fn store_directory(&self) -> Option<PathBuf> {
        let root = self.layout.root();
        let root = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
        let existing = root.ancestors().find(|directory| directory.is_dir());
        existing.map(Path::to_owned)
    }

    /// The same layout for images of another platform.
    #[must_use]
    pub fn for_platform(self, platform: Platform) -> Self {
        Self { platform, ..self }
    }

    /// Looks up these images with a single read of the index.
    async fn stored(&self, images: &[&Reference]) -> Result<Vec<Option<StoredImage>>, Error> {
        let layout = self.layout.clone();
        let names: Vec<_> = images
            .iter()
            .map(|image| image.normalized().to_owned())
            .collect();
        let wanted = self.platform.clone();
        blocking(move || {
            let entries = layout.entries(&names)?;
            let stored = entries.into_iter().map(|entry| match entry {
                Some(entry) => whole(&layout, &entry, &wanted),
                None => Ok(None),
            });
            stored.collect()
        })
        .await
    }

    async fn fetch(&self, access: Access<'_>, progress: &Progress) -> Result<StoredImage, Error> {
        let image = access.image;
        let chosen = self.client.choose(access, &self.platform).await?;
        self.made.get_or_try_init(|| self.layout.make()).await?;
        let blobs = chosen.image.blobs();
        let bytes = blobs.iter().map(|b| b.size).fold(0, u64::saturating_add);
        let gauge = Gauge::new(progress, bytes);

        let config = &chosen.image.config;
        if config.size > MANIFEST_MAX {
            return Err(Error::Registry(registry::Error::TooLarge {
                what: "the image configuration",
                limit: MANIFEST_MAX,
            }));
        }
        self.fetch_blob(access, config, &gauge).await?;
        let platform = match chosen.platform.clone() {
            Some(platform) => platform,
            None => self.config_platform(image, config).await?,
        };
        // The largest first, since a pull waits for the last one to end.
        let mut layers = blobs;
        layers.retain(|blob| blob.digest != config.digest);
        layers.sort_by_key(|layer| std::cmp::Reverse(layer.size));
        stream::iter(layers)
            .map(|layer| {
                let gauge = &gauge;
                async move { self.fetch_blob(access, &layer, gauge).await }
            })
            .buffer_unordered(LAYERS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        self.record(image, &chosen, platform, bytes).await
    }

    /// The platform of an image without an index, from its own configuration; an error if it is not this platform.
    async fn config_platform(
        &self,
        image: &Reference,
        config: &Descriptor,
    ) -> Result<Platform, Error> {
        let layout = self.layout.clone();
        let blob = config.digest.clone();
        let text = blocking(move || layout.read_blob(&blob, MANIFEST_MAX)).await?;
        let made_for = config_platform(&text.unwrap_or_default())?;
        // Images built from scratch may lack a platform.
        let made_for = made_for.unwrap_or_else(|| self.platform.clone());
        if select::runs(&made_for, &self.platform) {
            return Ok(made_for);
        }
        Err(registry::Error::Platform {
            image: image.to_string(),
            wanted: self.platform.to_string(),
            available: select::shown(&made_for),
        }
        .into())
    }

    /// Writes the manifest, then adds the image to `index.json`, which makes it present.
    async fn record(
        &self,
        image: &Reference,
        chosen: &Chosen,
        platform: Platform,
        bytes: u64,
    ) -> Result<StoredImage, Error> {
        let (text, digest) = as_oci(&chosen.manifest)?;
        let size = text.len() as u64;
        let entry = Entry {
            name: image.normalized().to_owned(),
            manifest: digest,
            size,
            source: chosen.source.clone(),
            platform: Some(platform),
        };
        let stored = StoredImage {
            digest: Some(entry.source.to_string()),
            known: vec![entry.source.to_string()],
            bytes: Some(bytes.saturating_add(size)),
            is_sealed: false,
        };
        let lock = self.layout.lock().await?;
        let layout = self.layout.clone();
        blocking(move || {
            layout.write_blob(&entry.manifest, &text)?;
            layout.record(&entry, &lock)
        })
        .await?;
        Ok(stored)
    }
}

impl ImageService for OciLayout {
    fn info(&self) -> &RuntimeInfo {
        &self.info
    }

    async fn status(&self, image: &Reference) -> Result<Option<StoredImage>, RuntimeError> {
        Ok(self.stored(&[image]).await?.pop().flatten())
    }

    async fn statuses(&self, images: &[&Reference]) -> Vec<Status> {
        match self.stored(images).await {
            Ok(stored) => stored.into_iter().map(Ok).collect(),
            // A damaged one must not hide the others.
            Err(_) => ask_each(self, images).await,
        }
    }

    async fn pull(
        &self,
        image: &Reference,
        credential: Option<&Credential>,
        progress: &Progress,
    ) -> Result<StoredImage, RuntimeError> {
        Ok(self.fetch(Access { image, credential }, progress).await?)
    }

    fn tells_progress(&self) -> bool {
        true
    }

    fn layer_storage(&self) -> LayerStorage {
        LayerStorage::Packed
    }

    async fn usage(&self) -> Result<Usage, RuntimeError> {
        let layout = self.layout.clone();
        Ok(blocking(move || layout.usage()).await?)
    }
}

/// The image of this entry, if it is for this platform and complete.
fn whole(layout: &Layout, entry: &Entry, wanted: &Platform) -> Result<Option<StoredImage>, Error> {
    let platform = entry.platform.as_ref();
    if platform.is_some_and(|p| !select::runs(p, wanted)) {
        return Ok(None);
    }
    let stored = layout.complete(entry)?.map(|bytes| StoredImage {
        digest: Some(entry.source.to_string()),
        known: vec![entry.source.to_string()],
        bytes: Some(bytes),
        is_sealed: false,
    });
    Ok(stored)
}

/// The manifest as a layout holds it, and its digest.
fn as_oci(manifest: &Manifest) -> Result<(Vec<u8>, Digest), Error> {
    if manifest.media_type == OCI_MANIFEST {
        return Ok((manifest.bytes.to_vec(), manifest.digest.clone()));
    }
    let text = manifest.to_oci()?;
    let digest = digest::sha256(&text);
    Ok((text, digest))
}

#[cfg(test)]
mod tests;
