//! Media types of layers: those that can be unpacked here, and the compression that each allows. Pure.

use super::UnpackError;

/// Compression that a media type allows. containerd detects the compression by the bytes, not by the type, and so does the unpacker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    /// The bytes are the archive.
    None,
    /// gzip, or none.
    Gzip,
    /// zstd, which needs memory for its window, or one of the others.
    Zstd,
}

const KNOWN: &[(&str, Compression)] = &[
    ("application/vnd.oci.image.layer.v1.tar", Compression::None),
    (
        "application/vnd.docker.image.rootfs.diff.tar",
        Compression::None,
    ),
    (
        "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression::Gzip,
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        Compression::Gzip,
    ),
    (
        "application/vnd.oci.image.layer.v1.tar+zstd",
        Compression::Zstd,
    ),
    (
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        Compression::Zstd,
    ),
];

/// The compression that the type allows.
///
/// # Errors
/// [`UnpackError::Unsupported`] for other types: foreign layers, encrypted ones.
pub(crate) fn compression(media_type: &str) -> Result<Compression, UnpackError> {
    let known = KNOWN.iter().find(|(known, _)| *known == media_type);
    known
        .map(|(_, compression)| *compression)
        .ok_or_else(|| UnpackError::unsupported("media type", media_type.as_bytes()))
}
