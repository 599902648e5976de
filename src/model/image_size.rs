//! Sizes of images and the usage of an image store, in bytes. No I/O.

use std::collections::HashSet;

use crate::model::digest::Digest;

/// Bytes on disk for each byte of a compressed layer, once it is unpacked. Measured: `docs/disk.md`.
pub const UNPACKED_FACTOR: f64 = 3.5;

/// In which form a store keeps layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerStorage {
    /// As the registry has them: an image layout.
    Packed,
    /// As files alone: CRI-O, Docker.
    Unpacked,
    /// Both: containerd, whose content store keeps what its snapshotter has unpacked.
    Both,
}

/// What a store holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk, in every form in which the store keeps layers.
    pub bytes: u64,
    /// The layers and configurations that it is known to have; they need not come again. Empty where the store does not
    /// tell them by the registry's digests.
    pub blobs: HashSet<Digest>,
}

/// One blob of an image, as its registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes, compressed.
    pub bytes: u64,
}

/// What an image weighs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Size {
    /// By its manifest: its layers and its configuration, each once.
    Blobs(Vec<Blob>),
    /// As a node's runtime tells it: compressed, in bytes.
    Packed(u64),
    /// As a node's runtime tells it: unpacked, in bytes.
    Unpacked(u64),
}

/// What so many compressed bytes of layers take once they are unpacked.
pub fn unpacked(packed: u64) -> u64 {
    (packed as f64 * UNPACKED_FACTOR).ceil() as u64
}
