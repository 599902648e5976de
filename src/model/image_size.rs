//! Sizes of images and the usage of an image store, in bytes. No I/O.

use std::collections::HashSet;

use crate::model::digest::Digest;

/// Bytes on disk for each byte of a compressed layer after unpacking. Measured: `docs/disk.md`.
pub const UNPACKED_FACTOR: f64 = 3.5;

/// The form in which a store keeps layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerStorage {
    /// Compressed, as in the registry: an image layout.
    Packed,
    /// Unpacked only: CRI-O, Docker.
    Unpacked,
    /// Both: containerd, whose content store keeps the compressed layers after unpacking.
    Both,
}

/// The usage of a store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes on disk, in every form in which the store keeps layers.
    pub bytes: u64,
    /// The layers and configurations that it is known to have, which are not downloaded again. Empty if the store does not report
    /// them by the registry's digests.
    pub blobs: HashSet<Digest>,
}

/// One blob of an image in its registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes, compressed.
    pub bytes: u64,
}

/// The size of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Size {
    /// From its manifest: its layers and its configuration, each once.
    Blobs(Vec<Blob>),
    /// As reported by a node's runtime: compressed, in bytes.
    Packed(u64),
    /// As reported by a node's runtime: unpacked, in bytes.
    Unpacked(u64),
}

/// The estimated size of compressed layers after unpacking.
pub fn unpacked(packed: u64) -> u64 {
    (packed as f64 * UNPACKED_FACTOR).ceil() as u64
}

/// A limit of the image store's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskLimit {
    /// Bytes.
    Bytes(u64),
    /// Percent of the capacity of the image file system; 1 to 100.
    Percent(u8),
}

/// The file system that holds an image store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFs {
    /// Its size in bytes.
    pub capacity: u64,
    /// The bytes that are not available, by whatever they are used: the kubelet counts the same.
    pub used: u64,
}

impl ImageFs {
    /// This percentage of the capacity, in bytes.
    pub fn percent(&self, percent: u8) -> u64 {
        let bytes = u128::from(self.capacity) * u128::from(percent) / 100;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}
