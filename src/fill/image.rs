//! Layers of an image, from its manifest and configuration, and the labels that containerd sets for it. Pure, no I/O.

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Failure;
use super::unpack::media_type::compression;
use crate::model::digest::Digest;
use crate::model::reference::Reference;
use crate::model::text::excerpt;
use crate::registry::manifest::{DOCKER_CONFIG, Descriptor, ImageManifest, Index, OCI_CONFIG};
use crate::runtime::containerd::Labels;

/// Labels that containerd's garbage collection follows, and those that its pull reads.
const CHILD: &str = "containerd.io/gc.ref.content.";
const SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";
const SOURCE: &str = "containerd.io/distribution.source.";
const UNCOMPRESSED: &str = "containerd.io/uncompressed";
const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// containerd's limit on the length of a label's key and value.
const LABEL_MAX: usize = 4096;

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// Its place, 0 being the lowest.
    pub(super) index: usize,
    pub(super) descriptor: Descriptor,
    /// The digest of its uncompressed bytes.
    pub(super) diff_id: Digest,
    /// The name of its snapshot, made of the diff IDs of this layer and all below it.
    pub(super) chain: String,
    /// That of the layer below; empty for the lowest.
    pub(super) parent: String,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// The layers of the image, the lowest first.
pub(super) fn layers(image: &ImageManifest, config: &[u8]) -> Result<Vec<Layer>, Failure> {
    let unsupported = |what: &str| Failure::Unsupported(what.to_owned());
    if ![OCI_CONFIG, DOCKER_CONFIG].contains(&&*image.config.media_type) {
        return Err(unsupported("configuration without a media type"));
    }
    let config: Config =
        serde_json::from_slice(config).map_err(|_| unsupported("unexpected configuration"))?;
    let ids = config.rootfs.diff_ids;
    if image.layers.is_empty() || ids.len() != image.layers.len() {
        return Err(unsupported("the configuration does not list the layers"));
    }
    let mut layers: Vec<Layer> = Vec::with_capacity(ids.len());
    for (index, (descriptor, diff_id)) in image.layers.iter().zip(&ids).enumerate() {
        if compression(&descriptor.media_type).is_err() || !descriptor.urls.is_empty() {
            let media_type = excerpt(&descriptor.media_type);
            return Err(Failure::Unsupported(format!("layer of type {media_type}")));
        }
        let diff_id = Digest::parse(diff_id).map_err(|_| unsupported("malformed diff ID"))?;
        let is_known = |digest: &Digest| digest.algorithm() == "sha256";
        if !is_known(&descriptor.digest) || !is_known(&diff_id) {
            return Err(unsupported("digest of another algorithm than sha256"));
        }
        let parent = layers.last().map_or("", |below| &below.chain).to_owned();
        layers.push(Layer {
            index,
            descriptor: descriptor.clone(),
            chain: chain(&parent, &diff_id),
            diff_id,
            parent,
        });
    }
    Ok(layers)
}

/// The chain ID (OCI image specification, "Layer ChainID").
fn chain(parent: &str, diff_id: &Digest) -> String {
    if parent.is_empty() {
        return diff_id.to_string();
    }
    let hash = Sha256::digest(format!("{parent} {diff_id}"));
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The label that names the repositories that have the content, in addition to those in `known`.
pub(super) fn source(image: &Reference, known: Option<&Labels>) -> Labels {
    let registry = image.registry();
    let host = match registry.strip_prefix('[') {
        Some(address) => address.split(']').next().unwrap_or_default(),
        None => registry.split(':').next().unwrap_or_default(),
    };
    let key = format!("{SOURCE}{host}");
    let known = known.and_then(|labels| labels.get(&key));
    let mut all: Vec<&str> = known.map_or(Vec::new(), |known| known.split(',').collect());
    all.retain(|repository| !repository.is_empty());
    all.push(image.repository());
    all.sort_unstable();
    all.dedup();
    let value = all.join(",");
    match key.len() + value.len() > LABEL_MAX {
        true => Labels::new(),
        false => Labels::from([(key, value)]),
    }
}

impl Layer {
    /// The labels of its content when the diff ID was verified.
    pub(super) fn verified_labels(&self) -> Labels {
        Labels::from([(UNCOMPRESSED.to_owned(), self.diff_id.to_string())])
    }

    /// The labels of its snapshot.
    pub(super) fn snapshot_labels(&self) -> Labels {
        Labels::from([(SNAPSHOT_REF.to_owned(), self.chain.clone())])
    }
}

/// The labels of the configuration: the snapshot of the whole image.
pub(super) fn config_labels(source: Labels, snapshotter: &str, top: &str) -> Labels {
    let mut labels = source;
    labels.insert(format!("{SNAPSHOT}{snapshotter}"), top.to_owned());
    labels
}

/// The labels of a manifest: its configuration and, unless containerd discards those that are unpacked, its layers.
pub(super) fn manifest_labels(source: Labels, image: &ImageManifest, keeps: bool) -> Labels {
    let mut labels = source;
    labels.insert(format!("{CHILD}config"), image.config.digest.to_string());
    if !keeps {
        return labels;
    }
    for (index, layer) in image.layers.iter().enumerate() {
        labels.insert(format!("{CHILD}l.{index}"), layer.digest.to_string());
    }
    labels
}

/// The labels of an index: its manifests, of all platforms.
pub(super) fn index_labels(source: Labels, index: &Index) -> Labels {
    let mut labels = source;
    for (at, manifest) in index.manifests.iter().enumerate() {
        labels.insert(format!("{CHILD}m.{at}"), manifest.digest.to_string());
    }
    labels
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const PLAIN: &str = "application/vnd.oci.image.layer.v1.tar";
    const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn digest(n: u8) -> String {
        format!("sha256:{n:064x}")
    }

    fn manifest(layers: &[(&str, u8)]) -> ImageManifest {
        let layers: Vec<_> = layers
            .iter()
            .map(
                |(kind, n)| serde_json::json!({"mediaType": kind, "digest": digest(*n), "size": 1}),
            )
            .collect();
        let config = serde_json::json!({"mediaType": OCI_CONFIG, "digest": digest(0), "size": 1});
        let text = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        ImageManifest::parse(text.to_string().as_bytes()).unwrap()
    }

    fn config(ids: &[u8]) -> Vec<u8> {
        let ids: Vec<_> = ids.iter().map(|n| digest(*n)).collect();
        let text = serde_json::json!({"rootfs": {"type": "layers", "diff_ids": ids}});
        text.to_string().into_bytes()
    }

    #[test]
    fn chain_ids_follow_the_specification() {
        let image = manifest(&[(PLAIN, 1), (GZIP, 2)]);
        let layers = layers(&image, &config(&[7, 8])).unwrap();
        assert_eq!((&*layers[0].chain, &*layers[0].parent), (&*digest(7), ""));
        assert_eq!(layers[1].parent, digest(7));
        let expected = Sha256::digest(format!("{} {}", digest(7), digest(8)));
        let expected: String = expected.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(layers[1].chain, format!("sha256:{expected}"));
    }

    #[test]
    fn odd_images_are_for_the_runtime() {
        let one = [(PLAIN, 1)];
        layers(&manifest(&one), &config(&[1])).unwrap();
        layers(&manifest(&one), &config(&[])).unwrap_err();
        layers(&manifest(&one), &config(&[1, 2])).unwrap_err();
        layers(&manifest(&[]), &config(&[])).unwrap_err();
        layers(&manifest(&one), b"{}").unwrap_err();
        let foreign = [(
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            1,
        )];
        layers(&manifest(&foreign), &config(&[1])).unwrap_err();
        let mut urls = manifest(&one);
        urls.layers[0].urls.push("https://x.example".to_owned());
        layers(&urls, &config(&[1])).unwrap_err();
    }

    #[test]
    fn sources_are_added_and_sorted() {
        let image = Reference::parse("registry.example:5000/team/web:1").unwrap();
        let key = "containerd.io/distribution.source.registry.example";
        let known = Labels::from([(key.to_owned(), "z,a".to_owned())]);
        assert_eq!(source(&image, Some(&known))[key], "a,team/web,z");
        assert_eq!(source(&image, None)[key], "team/web");
        let long = Labels::from([(key.to_owned(), "z".repeat(LABEL_MAX))]);
        assert_eq!(source(&image, Some(&long)), Labels::new());
    }
}
