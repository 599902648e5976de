//! CRI-O's responses that differ from containerd's. Pure: no I/O.

use std::collections::HashMap;

use k8s_cri::v1::Image;

/// Bytes of the images, each counted once by its ID. An upper bound, because shared layers count for each image.
///
/// `ImageFsInfo` of CRI-O and of cri-dockerd measures only the directory of the images' records, without their layers.
pub(super) fn listed_bytes(images: &[Image]) -> u64 {
    let sizes: HashMap<&str, u64> = images.iter().map(|i| (i.id.as_str(), i.size)).collect();
    sizes.values().copied().fold(0, u64::saturating_add)
}
