//! The progress of a pull by containerd. The CRI does not report it, but containerd's own content API, on the same socket, lists
//! the downloads in progress and the complete blobs.
//!
//! It only reads, about once a second. It never fails or delays a pull: if the content API is missing or fails repeatedly, the
//! progress stays unknown.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::{
    Info, InfoRequest, ListContentRequest, ListStatusesRequest, ReadContentRequest,
};
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::model::reference::Reference;
use crate::registry::manifest::{Descriptor, ImageManifest};
use crate::runtime::image_service::Progress;

/// The namespace of containerd in which the CRI plugin keeps everything.
const NAMESPACE: &str = "k8s.io";
const INTERVAL: Duration = Duration::from_secs(1);
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Number of consecutive failures after which no more requests are made during this pull.
const FAILURES_MAX: u32 = 5;
/// Maximum size of a manifest: registries and containerd reject larger ones too.
const MANIFEST_MAX: usize = 4 << 20;
/// Maximum number of layers: each needs a request until it is complete, and no image that can be unpacked has more (overlayfs
/// allows 500).
const LAYERS_MAX: usize = 512;
/// Maximum number of blobs that are read in one poll, newest first.
const READS_MAX: usize = 32;
/// The label with a registry's repositories that a blob was fetched from, set by containerd.
const SOURCE_LABEL: &str = "containerd.io/distribution.source.";

/// containerd's downloads.
#[derive(Debug, Clone)]
pub(super) struct Downloads {
    content: ContentClient<Channel>,
    /// Manifests that a pull watches, so that two tags of one repository are not confused.
    watched: Arc<Mutex<HashSet<String>>>,
}

impl Downloads {
    pub(super) fn new(channel: Channel) -> Self {
        Self {
            content: ContentClient::new(channel).max_decoding_message_size(super::MESSAGE_MAX),
            watched: Arc::default(),
        }
    }

    /// A client of the content API.
    pub(super) fn client(&self) -> ContentClient<Channel> {
        self.content.clone()
    }

    /// Updates the progress of the pull of `image`, until it is dropped.
    pub(super) async fn watch(&self, image: &Reference, progress: &Progress) -> Infallible {
        let mut watch = Watch {
            content: self.content.clone(),
            watched: &self.watched,
            image,
            since: SystemTime::now(),
            no_manifests: HashSet::new(),
            manifest: None,
            complete: HashSet::new(),
        };
        let mut failures = 0;
        while failures < FAILURES_MAX {
            tokio::time::sleep(INTERVAL).await;
            match tokio::time::timeout(CALL_LIMIT, watch.poll(progress)).await {
                Ok(Ok(())) => failures = 0,
                Ok(Err(status)) if is_final(&status) => break,
                Ok(Err(_)) | Err(_) => failures += 1,
            }
        }
        future::pending().await
    }
}

/// Returns whether another request is useless.
fn is_final(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated
    )
}

/// One pull that is watched.
struct Watch<'a> {
    content: ContentClient<Channel>,
    watched: &'a Mutex<HashSet<String>>,
    image: &'a Reference,
    since: SystemTime,
    /// Blobs of the repository that were read and are not a manifest of this image.
    no_manifests: HashSet<String>,
    manifest: Option<(String, Manifest)>,
    /// Blobs that have been complete. containerd may remove a layer as soon as it is unpacked.
    complete: HashSet<String>,
}

impl Watch<'_> {
    async fn poll(&mut self, progress: &Progress) -> Result<(), Status> {
        let active = self.active().await?;
        if self.manifest.is_none() {
            self.manifest = self.find(&active).await?;
        }
        let Some((_, manifest)) = self.manifest.clone() else {
            return Ok(());
        };
        let mut done: u64 = 0;
        for (digest, size) in manifest.blobs() {
            let here = if self.is_complete(digest).await? {
                size
            } else {
                active.get(digest).copied().unwrap_or(0).min(size)
            };
            done = done.saturating_add(here);
        }
        progress.set(done, manifest.total());
        Ok(())
    }

    /// The bytes of each blob that is being downloaded, by digest.
    async fn active(&mut self) -> Result<HashMap<String, u64>, Status> {
        let answer = self
            .content
            .list_statuses(in_namespace(ListStatusesRequest::default()))
            .await?;
        Ok(answer
            .into_inner()
            .statuses
            .into_iter()
            // The name is `layer-sha256:…`, `config-sha256:…` or `manifest-sha256:…`.
            .filter_map(|status| {
                let (_, digest) = status.r#ref.split_once('-')?;
                Some((digest.to_owned(), u64::try_from(status.offset).ok()?))
            })
            .collect())
    }

    async fn is_complete(&mut self, digest: &str) -> Result<bool, Status> {
        if self.complete.contains(digest) {
            return Ok(true);
        }
        let request = in_namespace(InfoRequest {
            digest: digest.to_owned(),
        });
        match self.content.info(request).await {
            Ok(_) => {
                self.complete.insert(digest.to_owned());
                Ok(true)
            }
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status),
        }
    }

    /// The manifest that is being pulled. containerd does not report it: it is one that was fetched from this image's repository
    /// and whose blobs are not all complete. Among several (another tag, or an abandoned pull), the best one has a download in
    /// progress and arrived after this pull started.
    async fn find(
        &mut self,
        active: &HashMap<String, u64>,
    ) -> Result<Option<(String, Manifest)>, Status> {
        let mut best = None;
        for info in self.fetched().await? {
            if self.no_manifests.contains(&info.digest) || self.is_watched(&info.digest) {
                continue;
            }
            let Some(manifest) = self.read_manifest(&info).await? else {
                self.no_manifests.insert(info.digest);
                continue;
            };
            let mut complete = true;
            for (digest, _) in manifest.blobs() {
                complete &= self.is_complete(digest).await?;
            }
            if complete {
                continue;
            }
            let downloads = manifest
                .blobs()
                .any(|(digest, _)| active.contains_key(digest));
            let named = self
                .image
                .digest()
                .is_some_and(|d| d.as_str() == info.digest);
            let fits = (named, downloads, created(&info) >= self.since);
            if best.as_ref().is_none_or(|(so_far, _, _)| fits > *so_far) {
                best = Some((fits, info.digest, manifest));
            }
        }
        // Another pull may have taken it since; then the next poll finds one of the others.
        Ok(best.and_then(|(_, digest, manifest)| {
            let is_ours = self
                .watched
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(digest.clone());
            is_ours.then_some((digest, manifest))
        }))
    }

    fn is_watched(&self, digest: &str) -> bool {
        self.watched
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(digest)
    }

    /// Small blobs that were fetched from this image's repository, newest first.
    async fn fetched(&mut self) -> Result<Vec<Info>, Status> {
        let label = source_label(self.image.registry());
        let request = ListContentRequest {
            filters: vec![format!("labels.\"{label}\"")],
        };
        let mut answers = self.content.list(in_namespace(request)).await?.into_inner();
        let mut found = Vec::new();
        while let Some(answer) = answers.message().await? {
            found.extend(answer.info.into_iter().filter(|info| {
                usize::try_from(info.size).is_ok_and(|size| size <= MANIFEST_MAX)
                    && info
                        .labels
                        .get(&label)
                        .is_some_and(|names| names.split(',').any(|n| n == self.image.repository()))
                    && !self.no_manifests.contains(&info.digest)
            }));
        }
        found.sort_by_key(|info| std::cmp::Reverse(created(info)));
        found.truncate(READS_MAX);
        Ok(found)
    }

    async fn read_manifest(&mut self, info: &Info) -> Result<Option<Manifest>, Status> {
        let request = in_namespace(ReadContentRequest {
            digest: info.digest.clone(),
            offset: 0,
            size: 0,
        });
        let mut answers = match self.content.read(request).await {
            Ok(answers) => answers.into_inner(),
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(status),
        };
        let mut text = Vec::new();
        while let Some(answer) = answers.message().await? {
            text.extend_from_slice(&answer.data);
            // A small layer is not read to its end.
            if !text.starts_with(b"{") || text.len() > MANIFEST_MAX {
                return Ok(None);
            }
        }
        Ok(Manifest::parse(&text))
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if let Some((digest, _)) = &self.manifest {
            self.watched
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(digest);
        }
    }
}

/// containerd names the registry in the label by its host, without the port and without an IPv6 address's brackets.
fn source_label(registry: &str) -> String {
    let host = match registry.strip_prefix('[') {
        Some(address) => address.split(']').next(),
        None => registry.split(':').next(),
    };
    format!("{SOURCE_LABEL}{}", host.unwrap_or(registry))
}

pub(super) fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "containerd-namespace",
        MetadataValue::from_static(NAMESPACE),
    );
    request
}

fn created(info: &Info) -> SystemTime {
    info.created_at
        .as_ref()
        .and_then(|at| {
            let seconds = Duration::from_secs(u64::try_from(at.seconds).ok()?);
            let nanos = Duration::from_nanos(u64::try_from(at.nanos).ok()?);
            UNIX_EPOCH.checked_add(seconds)?.checked_add(nanos)
        })
        .unwrap_or(UNIX_EPOCH)
}

/// The blobs that an image manifest names, without duplicates: a layer that is named twice, often the empty one, is fetched once.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Manifest(Vec<Descriptor>);

impl Manifest {
    /// Parses an image manifest; `None` for an index, a configuration or anything else.
    fn parse(text: &[u8]) -> Option<Self> {
        let manifest = ImageManifest::parse_artifact(text).ok()?;
        (manifest.layers.len() <= LAYERS_MAX).then(|| Self(manifest.blobs()))
    }

    fn blobs(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().map(|blob| (blob.digest.as_str(), blob.size))
    }

    fn total(&self) -> u64 {
        self.blobs()
            .fold(0, |sum, (_, size)| sum.saturating_add(size))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A descriptor of these bytes under this number.
    fn blob(number: usize, size: u64) -> String {
        format!(r#"{{"digest":"sha256:{number:064x}","size":{size}}}"#)
    }

    fn manifest(config: &str, layers: &[String]) -> String {
        let layers = layers.join(",");
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}]}}"#)
    }

    #[test]
    fn only_image_manifests_are_parsed() {
        let layers = [blob(1, 100), blob(2, 7), blob(1, 100)];
        let text = manifest(&blob(3, 10), &layers);
        let parsed = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.total(), 117, "a layer named twice counts once");
        assert_eq!(parsed.blobs().count(), 3);
        let index = format!(r#"{{"manifests":[{}]}}"#, blob(1, 1));
        let negative = manifest(&blob(3, 10).replace("10", "-1"), &[]);
        for other in [
            index.as_str(),
            r#"{"architecture":"amd64","os":"linux","rootfs":{},"config":{}}"#,
            &negative,
            "{",
            "",
        ] {
            assert_eq!(Manifest::parse(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn overflowing_sizes_do_not_panic() {
        let text = manifest(&blob(1, u64::MAX), &[blob(2, u64::MAX)]);
        let parsed = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.total(), u64::MAX);
    }

    #[test]
    fn excess_layers_are_not_tracked() {
        let layers: Vec<String> = (0..=LAYERS_MAX).map(|number| blob(number, 1)).collect();
        let text = manifest(&blob(0, 1), &layers);
        assert_eq!(Manifest::parse(text.as_bytes()), None);
    }
}
