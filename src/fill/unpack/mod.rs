//! Unpacks one layer into an empty directory, with the result of containerd's own apply.
//!
//! Layers are unpacked independently of each other and in parallel by [`unpack`]; then, from the bottom up, [`mend`] completes
//! what depends on the layers below: owner, mode and extended attributes of directories that a layer uses but does not contain.
//! Both block; they run on a thread of the caller's. What is not certain to give containerd's result is an error for which
//! [`UnpackError::needs_diff_service`] holds: the caller has containerd's Diff service apply that layer alone, into a new directory.

mod dir;
mod error;
mod limits;

use std::io::Read;

use crate::model::digest::Digest;

pub use dir::Dir;
pub use error::UnpackError;
pub use limits::{Budget, Limits};

/// Position of a layer in its image. It decides how deletions are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Position {
    /// The first layer. Its snapshot is a plain directory: a whiteout removes what the layer itself contained so far.
    Bottom,
    /// Any other layer. Its snapshot is an overlayfs upper directory: a whiteout is a character device 0:0, an opaque directory has
    /// the attribute `trusted.overlay.opaque`.
    Above,
}

/// A layer to unpack, as its image describes it.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// The media type of the manifest's descriptor. It decides whether the bytes may be compressed.
    pub media_type: &'a str,
    /// The expected digest of the bytes as transferred; `None` if the caller verifies it.
    pub digest: Option<&'a Digest>,
    /// The expected digest of the uncompressed bytes, from the image's config.
    pub diff_id: &'a Digest,
    /// The layer's position in the image.
    pub position: Position,
}

/// An unpacked layer: its figures, and what [`mend`] needs.
#[derive(Debug)]
pub struct Unpacked {
    /// Bytes read, compressed.
    pub compressed_bytes: u64,
    /// Bytes of the uncompressed archive.
    pub archive_bytes: u64,
    /// Bytes of regular files.
    pub file_bytes: u64,
    /// Entries of the archive.
    pub entries: u64,
}

/// Unpacks a layer into an empty directory.
///
/// Reads `stream` to its end. Nothing outside `into` is read or written, whatever the layer contains. Memory is constant but
/// for the paths of directories, which `limits` bounds.
///
/// On an error the directory has an unspecified part of the layer, and the caller removes it.
///
/// # Errors
/// [`UnpackError`]; see [`UnpackError::needs_diff_service`].
pub fn unpack(
    stream: impl Read + Send,
    layer: &Layer<'_>,
    into: &Dir,
    limits: &Limits<'_>,
) -> Result<Unpacked, UnpackError> {
    let _ = (stream, layer, into, limits);
    Err(UnpackError::Unsupported {
        what: "any layer".to_owned(),
    })
}

/// Completes a layer above others: its directory gets the owners, modes and attributes that depend on the layers below.
///
/// `below` are the directories of all layers below, the nearest first, each already mended. For the bottom layer, which has
/// none, nothing is to be done.
///
/// # Errors
/// [`UnpackError`]; see [`UnpackError::needs_diff_service`].
pub fn mend(unpacked: &Unpacked, into: &Dir, below: &[Dir]) -> Result<(), UnpackError> {
    let _ = (unpacked, into, below);
    Ok(())
}
