//! CRI-O's responses that differ from containerd's. Pure: no I/O.

use std::borrow::Cow;
use std::collections::HashMap;

use k8s_cri::v1::Image;

/// The beginning of CRI-O's error text of a failed pull: it tries each image as an artifact too, and reports both failures.
const BOTH: &str = "unable to pull image or OCI artifact: ";
const FIRST: &str = "pull image err: ";
const SECOND: &str = "; artifact err: ";

/// Bytes of the images, each counted once by its ID. An upper bound, because shared layers count for each image.
///
/// `ImageFsInfo` of CRI-O and of cri-dockerd measures only the directory of the images' records, without their layers.
pub(super) fn listed_bytes(images: &[Image]) -> u64 {
    let sizes: HashMap<&str, u64> = images.iter().map(|i| (i.id.as_str(), i.size)).collect();
    sizes.values().copied().fold(0, u64::saturating_add)
}

/// The text with only the first of the two failures: usually both are of the same request.
pub(super) fn first_failure(text: &str) -> Cow<'_, str> {
    let first = || {
        let (before, rest) = text.split_once(BOTH)?;
        let (first, _) = rest.strip_prefix(FIRST)?.split_once(SECOND)?;
        (!first.is_empty()).then(|| format!("{before}{first}"))
    };
    first().map_or(Cow::Borrowed(text), Cow::Owned)
}
