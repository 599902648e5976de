//! The references between blobs in containerd's content store, by the labels that its garbage collector follows.
//!
//! The labels say which manifests, configuration, layers and snapshots belong to an image, so that no manifest is read.

use std::collections::{HashMap, HashSet};

use containerd_client::services::v1::snapshots::{ListSnapshotsRequest, StatSnapshotRequest};
use containerd_client::services::v1::{
    Info, InfoRequest, ListContentRequest, ListResourcesRequest,
};
use tonic::{Code, Response, Status};

use super::{Client, answer, request};
use crate::runtime::image_service::RuntimeError;

const CHILD: &str = "containerd.io/gc.ref.content.";
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
/// Blobs of one image: an index of many platforms, and the layers of one. More are not followed.
const BLOBS_MAX: usize = 2048;

/// The references of one blob.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Blob {
    size: u64,
    manifests: Vec<String>,
    config: Option<String>,
    layers: Vec<String>,
    /// Snapshotters, and the name of the snapshot in each.
    snapshots: Vec<(String, String)>,
}

impl Blob {
    fn of(info: &Info) -> Self {
        let mut blob = Self {
            size: u64::try_from(info.size).unwrap_or(0),
            ..Self::default()
        };
        for (label, value) in &info.labels {
            if let Some(snapshotter) = label.strip_prefix(SNAPSHOT) {
                // `overlayfs/name` is a further one of the same snapshotter.
                let name = snapshotter.split('/').next().unwrap_or(snapshotter);
                blob.snapshots.push((name.to_owned(), value.clone()));
            }
            let Some(child) = label.strip_prefix(CHILD) else {
                continue;
            };
            match child.split(['.', '/']).next() {
                Some("m") => blob.manifests.push(value.clone()),
                Some("config") => blob.config = Some(value.clone()),
                Some("l") => blob.layers.push(value.clone()),
                _ => {}
            }
        }
        blob
    }

    fn children(&self) -> impl Iterator<Item = &String> {
        self.manifests
            .iter()
            .chain(&self.config)
            .chain(&self.layers)
    }
}

/// Blobs of the content store, and the names of committed snapshots by snapshotter.
#[derive(Debug, Default)]
pub(super) struct Graph {
    blobs: HashMap<String, Blob>,
    snapshots: HashMap<String, HashSet<String>>,
}

/// An image that is whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Whole {
    /// Bytes of the blobs that are there.
    pub(super) bytes: u64,
    /// Layers whose compressed form is there. With `discard_unpacked_layers`, or where another image's snapshots were used, it
    /// is not.
    pub(super) layers: usize,
    /// The snapshotters that have its unpacked form.
    pub(super) snapshotters: Vec<String>,
}

impl Graph {
    /// The image of this manifest or index, if all is there that a container needs: a manifest, its configuration, and the
    /// snapshot of its last layer. Of an index one manifest is enough.
    pub(super) fn whole(&self, digest: &str) -> Option<Whole> {
        let root = self.blobs.get(digest)?;
        if root.manifests.is_empty() {
            return self.manifest(root);
        }
        let manifests = root.manifests.iter().filter_map(|m| self.blobs.get(m));
        let mut whole = manifests
            .filter_map(|manifest| self.manifest(manifest))
            .max_by_key(|whole| whole.bytes)?;
        whole.bytes = whole.bytes.saturating_add(root.size);
        Some(whole)
    }

    fn manifest(&self, manifest: &Blob) -> Option<Whole> {
        let config = self.blobs.get(manifest.config.as_ref()?)?;
        let unpacked = config.snapshots.iter().filter(|(snapshotter, name)| {
            let known = self.snapshots.get(snapshotter);
            known.is_some_and(|names| names.contains(name))
        });
        let snapshotters: Vec<_> = unpacked.map(|(name, _)| name.clone()).collect();
        // An image without layers has no snapshot.
        if snapshotters.is_empty() && !(config.snapshots.is_empty() && manifest.layers.is_empty()) {
            return None;
        }
        let layers: HashSet<&String> = manifest.layers.iter().collect();
        let layers: Vec<_> = layers.iter().filter_map(|l| self.blobs.get(*l)).collect();
        let bytes = layers
            .iter()
            .fold(0_u64, |sum, l| sum.saturating_add(l.size));
        Some(Whole {
            bytes: bytes.saturating_add(manifest.size + config.size),
            layers: layers.len(),
            snapshotters,
        })
    }

    /// The configuration of the image, by which the CRI knows it.
    pub(super) fn configs(&self, digest: &str) -> Vec<String> {
        let Some(root) = self.blobs.get(digest) else {
            return Vec::new();
        };
        let manifests = root.manifests.iter().filter_map(|m| self.blobs.get(m));
        let configs = manifests.filter_map(|manifest| manifest.config.clone());
        root.config.clone().into_iter().chain(configs).collect()
    }

    /// The one blob that no other of these refers to, if there is just one.
    fn root(&self, digests: &[String]) -> Option<String> {
        let blobs = digests.iter().filter_map(|digest| self.blobs.get(digest));
        let children: HashSet<&String> = blobs.flat_map(Blob::children).collect();
        let mut roots = digests.iter().filter(|digest| !children.contains(digest));
        let root = roots.next()?;
        roots.next().is_none().then(|| root.clone())
    }

    fn snapshotters(&self) -> HashSet<String> {
        let snapshots = self.blobs.values().flat_map(|blob| &blob.snapshots);
        snapshots
            .map(|(snapshotter, _)| snapshotter.clone())
            .collect()
    }
}

impl Client {
    /// The parts of one image that are present, by one request for each blob.
    pub(super) async fn graph_of(&self, digest: &str) -> Result<Graph, RuntimeError> {
        let mut graph = Graph::default();
        let mut open = vec![digest.to_owned()];
        let mut seen = HashSet::new();
        while let Some(digest) = open.pop() {
            if seen.len() >= BLOBS_MAX || !seen.insert(digest.clone()) {
                continue;
            }
            let mut content = self.content();
            let asked = found(content.info(request(InfoRequest {
                digest: digest.clone(),
            })));
            let info = answer(asked, "content info").await?;
            if let Some(info) = info.and_then(|answer| answer.info) {
                let blob = Blob::of(&info);
                open.extend(blob.children().cloned());
                graph.blobs.insert(digest, blob);
            }
        }
        let wanted: Vec<_> = graph
            .blobs
            .values()
            .flat_map(|b| b.snapshots.clone())
            .collect();
        for (snapshotter, key) in wanted {
            let mut snapshots = self.snapshots();
            let asked = found(snapshots.stat(request(StatSnapshotRequest {
                snapshotter: snapshotter.clone(),
                key: key.clone(),
            })));
            if answer(asked, "snapshot stat").await?.is_some() {
                graph.snapshots.entry(snapshotter).or_default().insert(key);
            }
        }
        Ok(graph)
    }

    /// The manifest or index of the image that was pulled under the lease, if that is all that it holds.
    pub(super) async fn root_of(&self, lease: &str) -> Result<Option<String>, RuntimeError> {
        let mut leases = self.leases();
        let asked = leases.list_resources(request(ListResourcesRequest {
            id: lease.to_owned(),
        }));
        let resources = answer(asked, "lease resources").await?.resources;
        let content = resources.into_iter().filter(|r| r.r#type == "content");
        let digests: Vec<_> = content.map(|r| r.id).take(BLOBS_MAX).collect();
        let mut graph = Graph::default();
        for digest in &digests {
            graph.blobs.extend(self.graph_of(digest).await?.blobs);
        }
        Ok(graph.root(&digests))
    }

    /// The whole store, by one list of the blobs and one of each snapshotter's snapshots.
    pub(super) async fn graph(&self) -> Result<Graph, RuntimeError> {
        let mut graph = Graph::default();
        let read = async {
            let mut content = self.content();
            let pages = content.list(request(ListContentRequest::default()));
            let mut pages = pages.await?.into_inner();
            while let Some(page) = pages.message().await? {
                for info in page.info {
                    graph.blobs.insert(info.digest.clone(), Blob::of(&info));
                }
            }
            for snapshotter in graph.snapshotters() {
                let names = self.committed(&snapshotter).await?;
                graph.snapshots.insert(snapshotter, names);
            }
            Ok(Response::new(()))
        };
        answer(read, "content list").await?;
        Ok(graph)
    }

    /// The names of the snapshotter's committed snapshots; none where it is not configured any more.
    async fn committed(&self, snapshotter: &str) -> Result<HashSet<String>, Status> {
        let mut names = HashSet::new();
        let mut snapshots = self.snapshots();
        let pages = snapshots.list(request(ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            filters: vec!["kind==committed".to_owned()],
        }));
        let mut pages = match pages.await {
            Ok(pages) => pages.into_inner(),
            Err(status) if is_missing(&status) => return Ok(names),
            Err(status) => return Err(status),
        };
        loop {
            match pages.message().await {
                Ok(Some(page)) => names.extend(page.info.into_iter().map(|info| info.name)),
                Ok(None) => return Ok(names),
                Err(status) if is_missing(&status) => return Ok(names),
                Err(status) => return Err(status),
            }
        }
    }
}

/// No such blob, snapshot or snapshotter.
fn is_missing(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::InvalidArgument)
}

/// The response, where what is asked for exists.
async fn found<T>(
    asked: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<Option<T>>, Status> {
    match asked.await {
        Ok(answer) => Ok(Response::new(Some(answer.into_inner()))),
        Err(status) if is_missing(&status) => Ok(Response::new(None)),
        Err(status) => Err(status),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn info(digest: &str, size: i64, labels: &[(&str, &str)]) -> Info {
        let labels = labels
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Info {
            digest: digest.to_owned(),
            size,
            labels: labels.collect(),
            ..Info::default()
        }
    }

    fn graph(infos: &[Info], snapshots: &[&str]) -> Graph {
        let blobs = infos.iter().map(|i| (i.digest.clone(), Blob::of(i)));
        let names = snapshots.iter().map(|name| (*name).to_owned());
        Graph {
            blobs: blobs.collect(),
            snapshots: HashMap::from([("overlayfs".to_owned(), names.collect())]),
        }
    }

    fn image() -> Vec<Info> {
        vec![
            info(
                "index",
                1,
                &[
                    ("containerd.io/gc.ref.content.m.0", "manifest"),
                    ("containerd.io/gc.ref.content.m.1", "other"),
                ],
            ),
            info(
                "manifest",
                2,
                &[
                    ("containerd.io/gc.ref.content.config", "config"),
                    ("containerd.io/gc.ref.content.l.0", "one"),
                    ("containerd.io/gc.ref.content.l.1", "two"),
                ],
            ),
            info(
                "config",
                4,
                &[("containerd.io/gc.ref.snapshot.overlayfs", "chain")],
            ),
            info("one", 8, &[]),
            info("two", 16, &[]),
        ]
    }

    fn without(digest: &str) -> Vec<Info> {
        image().into_iter().filter(|i| i.digest != digest).collect()
    }

    #[test]
    fn whole_image_counts_its_bytes() {
        let graph = graph(&image(), &["chain"]);
        for (root, bytes) in [("index", 31), ("manifest", 30)] {
            let whole = graph.whole(root).unwrap();
            assert_eq!((whole.bytes, whole.layers), (bytes, 2), "{root}");
            assert_eq!(whole.snapshotters, ["overlayfs"]);
            assert_eq!(graph.configs(root), ["config"]);
        }
    }

    #[test]
    fn missing_parts_make_no_image() {
        for missing in ["index", "manifest", "config"] {
            assert_eq!(
                graph(&without(missing), &["chain"]).whole("index"),
                None,
                "{missing}"
            );
        }
        assert_eq!(graph(&image(), &["else"]).whole("index"), None);
    }

    #[test]
    fn root_is_nobodys_child() {
        let graph = graph(&image(), &["chain"]);
        let digests = |all: &[&str]| all.iter().map(|d| (*d).to_owned()).collect::<Vec<_>>();
        let all = digests(&["config", "one", "index", "two", "manifest"]);
        assert_eq!(graph.root(&all).as_deref(), Some("index"));
        assert_eq!(graph.root(&digests(&["one", "two"])), None);
        assert_eq!(graph.root(&[]), None);
    }

    #[test]
    fn missing_layer_is_told_by_count() {
        let whole = graph(&without("two"), &["chain"]).whole("index").unwrap();
        assert_eq!((whole.bytes, whole.layers), (15, 1));
    }
}
