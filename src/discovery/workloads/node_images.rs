//! Image sizes that the kubelets of other nodes report in `status.images`, without a request to any registry.

use std::collections::{HashMap, HashSet};

use serde::{Deserialize, Deserializer};

use super::name::or_default;
use super::object::Image;
use super::scheduling::NodeInfo;
use crate::kube_api::connect::Cluster;
use crate::kube_api::decode::Element;
use crate::kube_api::request::{self, ListFault, PageFault};
use crate::model::image_size::Size;
use crate::model::platform::Platform;
use crate::model::reference::Reference;

/// Maximum number of Nodes that are read. All Nodes of a cluster of 5,000 would be over 100 MB for each of them; a hundred cover
/// the images in use, and each kubelet reports its 50 largest images. Without `resourceVersion=0`, since API servers then ignore
/// the limit.
const PATH: &str = "/api/v1/nodes?limit=100";

/// The part of a Node that is read.
#[derive(Debug, Default, Deserialize)]
struct Node {
    #[serde(default, deserialize_with = "or_default")]
    status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    #[serde(default, deserialize_with = "or_default")]
    node_info: NodeInfo,
    #[serde(default, deserialize_with = "or_default")]
    images: Vec<ContainerImage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ContainerImage {
    #[serde(default, deserialize_with = "or_default")]
    names: Vec<Image>,
    #[serde(default, deserialize_with = "or_default")]
    size_bytes: i64,
}

impl Element for Node {
    type Kind = ();

    fn decode<'de, D: Deserializer<'de>>((): (), from: D) -> Result<Self, D::Error> {
        Self::deserialize(from)
    }
}

/// The sizes of the images that Nodes of this platform report, by normalised reference. Failures are only logged, because
/// registries are queried next.
pub(super) async fn sizes(
    cluster: &Cluster,
    platform: &Platform,
    wanted: &HashSet<String>,
) -> HashMap<String, Size> {
    let mut sizes = HashMap::new();
    if wanted.is_empty() {
        return sizes;
    }
    let listed = request::retrying(cluster, PATH, async || {
        read(cluster, platform, wanted, &mut sizes).await
    });
    let Err(fault) = listed.await else {
        return sizes;
    };
    let elsewhere = "image sizes are read from registries instead";
    match fault {
        PageFault::Final(ListFault::Forbidden) => tracing::info!(
            "not allowed to list nodes, so {elsewhere}: needs the RBAC verb \"list\" on \"nodes\", granted by a ClusterRole"
        ),
        PageFault::Final(ListFault::Failed(error)) | PageFault::Passing(error, _) => {
            tracing::warn!("failed to list nodes, so {elsewhere}: {error}");
        }
        PageFault::Final(_) | PageFault::Gone(_) => {
            tracing::warn!("failed to list nodes, so {elsewhere}");
        }
    }
    sizes
}

async fn read(
    cluster: &Cluster,
    platform: &Platform,
    wanted: &HashSet<String>,
    into: &mut HashMap<String, Size>,
) -> Result<(), PageFault> {
    let response = request::send(cluster, PATH).await?;
    let fold = async |node: Node| fold(&node, platform, wanted, into);
    request::decode_each(cluster, (), response, fold).await?;
    Ok(())
}

/// Adds the sizes that a Node reports for the requested images.
fn fold(
    node: &Node,
    platform: &Platform,
    wanted: &HashSet<String>,
    into: &mut HashMap<String, Size>,
) {
    let info = &node.status.node_info;
    if !info.platform().is_some_and(|p| p.suits(platform)) {
        return;
    }
    // containerd reports the packed size (`image.Size` of its client), CRI-O and Docker the unpacked size on disk.
    let runtime = info.container_runtime_version.as_str();
    let packed = runtime.starts_with("containerd://");
    for image in &node.status.images {
        let Some(bytes) = u64::try_from(image.size_bytes).ok().filter(|b| *b > 0) else {
            continue;
        };
        let size = match packed {
            true => Size::Packed(bytes),
            false => Size::Unpacked(bytes),
        };
        for name in &image.names {
            let Image::Named(name) = name else { continue };
            let Ok(reference) = Reference::parse(name) else {
                continue;
            };
            let name = reference.normalized().to_owned();
            if wanted.contains(&name) {
                let known = into.remove(&name);
                into.insert(name, better(known, size.clone()));
            }
        }
    }
}

/// The preferred of two sizes: a packed one, since that is the download size; of two equal kinds the larger one, since a tag may
/// mean different images on different nodes.
fn better(known: Option<Size>, told: Size) -> Size {
    match (known, told) {
        (Some(Size::Packed(a)), Size::Packed(b)) => Size::Packed(a.max(b)),
        (Some(Size::Unpacked(a)), Size::Unpacked(b)) => Size::Unpacked(a.max(b)),
        (Some(Size::Packed(a)), _) => Size::Packed(a),
        (_, told) => told,
    }
}

#[cfg(test)]
mod tests;
