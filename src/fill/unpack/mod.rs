//! Unpacks one layer into an empty directory, with the result of containerd's own apply.
//!
//! Layers are unpacked independently of each other and in parallel by [`unpack`]; then, from the bottom up, [`mend()`] completes
//! what depends on the layers below: owner, mode and extended attributes of directories that a layer uses but does not contain.
//! Both block; they run on a thread of the caller's. What is not certain to give containerd's result is an error for which
//! [`UnpackError::needs_diff_service`] holds: the caller has containerd's Diff service apply that layer alone, into a new directory.

mod apply;
mod archive;
mod attributes;
mod decompress;
mod dir;
mod error;
#[cfg(any(test, fuzzing))]
mod fuzz;
mod header;
mod implied;
mod input;
mod limits;
pub(crate) mod media_type;
mod mend;
mod parents;
mod pax;
mod remove;
mod resolve;

use std::io::Read;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::model::digest::Digest;
use crate::registry::digest::Hasher;

use archive::Archive;
use decompress::Source;
use implied::ImpliedDirectories;
use input::Input;

pub use dir::Dir;
pub use error::UnpackError;
#[cfg(any(test, fuzzing))]
pub use fuzz::fuzz_layer;
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

/// An unpacked layer: its figures, and what [`mend()`] needs.
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
    implied: ImpliedDirectories,
}

/// Unpacks a layer into an empty directory.
///
/// Reads `stream` to its end, on a second thread that decompresses. Nothing outside `into` is read or written, whatever the layer
/// contains. Memory is constant, about 4 MiB and zstd's window of at most 8 MiB, but for the paths of directories, which `limits`
/// bounds.
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
    let compression = media_type::compression(layer.media_type)?;
    let mut source = Source::new(stream, layer.digest.map(hasher).transpose()?);
    let (producer, (chunks, used)) = decompress::queues();
    let input = Input::new(chunks, used, hasher(layer.diff_id)?, limits);
    let must_drain = AtomicBool::new(false);
    let (applied, decompressed) = thread::scope(|scope| {
        let decompressing = scope.spawn(|| {
            let producer = producer;
            decompress::run(&mut source, compression, &producer, &must_drain)
        });
        let mut archive = Archive::new(input);
        let applied = apply::apply(&mut archive, into, layer.position, limits)
            .and_then(|applied| archive.drain().map(|()| applied));
        // The digest of a layer that containerd is to apply must be known to be right.
        let is_wanted = matches!(&applied, Err(error) if error.needs_diff_service());
        must_drain.store(is_wanted, Ordering::Release);
        let sums = archive.into_sums();
        let decompressed = decompressing.join();
        let decompressed = decompressed.unwrap_or_else(|panic| resume_unwind(panic));
        (applied.map(|applied| (applied, sums)), decompressed)
    });
    let (compressed_bytes, digest) = source.into_sums();
    let is_complete = match &applied {
        Ok(_) => true,
        Err(error) => error.needs_diff_service(),
    };
    if is_complete {
        let digest = digest.map(Hasher::finish);
        // A broken stream or wrong bytes are the reason for anything else that is wrong with them.
        match decompressed {
            Err(error @ UnpackError::Stream(_)) => return Err(error),
            decompressed => {
                check_digest(layer.digest, digest.as_ref())?;
                decompressed?;
            }
        }
    }
    let (applied, (diff_id, archive_bytes)) = applied?;
    if diff_id != *layer.diff_id {
        return Err(UnpackError::DiffId {
            expected: layer.diff_id.to_string(),
            actual: diff_id.to_string(),
        });
    }
    Ok(Unpacked {
        compressed_bytes,
        archive_bytes,
        file_bytes: applied.file_bytes,
        entries: applied.entries,
        implied: applied.implied,
    })
}

fn hasher(digest: &Digest) -> Result<Hasher, UnpackError> {
    Hasher::like(digest)
        .map_err(|_| UnpackError::unsupported("digest algorithm", digest.as_str().as_bytes()))
}

fn check_digest(expected: Option<&Digest>, actual: Option<&Digest>) -> Result<(), UnpackError> {
    match (expected, actual) {
        (Some(expected), Some(actual)) if expected != actual => Err(UnpackError::Digest {
            expected: expected.to_string(),
            actual: actual.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Completes a layer above others: its directory gets the owners, modes and attributes that depend on the layers below.
///
/// `below` are the directories of all layers below, the nearest first, each already mended. For the bottom layer, which has
/// none, nothing is to be done. `into` may have been renamed since.
///
/// # Errors
/// [`UnpackError`]; see [`UnpackError::needs_diff_service`].
pub fn mend(unpacked: &Unpacked, into: &Dir, below: &[Dir]) -> Result<(), UnpackError> {
    mend::mend(&unpacked.implied, into, below)
}
