//! Media types of layers: which are known, and whether their bytes may be compressed. Pure.

use super::UnpackError;

/// Types whose bytes are a plain archive.
const PLAIN: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
];

/// Types whose bytes are compressed. containerd looks at the bytes, not at the type's suffix: so do we.
const COMPRESSED: &[&str] = &[
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// Returns whether the bytes may be compressed.
///
/// # Errors
/// [`UnpackError::Unsupported`] for other types: foreign layers, encrypted ones.
pub(super) fn may_be_compressed(media_type: &str) -> Result<bool, UnpackError> {
    if PLAIN.contains(&media_type) {
        Ok(false)
    } else if COMPRESSED.contains(&media_type) {
        Ok(true)
    } else {
        Err(UnpackError::unsupported(
            "media type",
            media_type.as_bytes(),
        ))
    }
}
