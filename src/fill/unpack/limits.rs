//! Limits of one layer: bytes, entries, memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::UnpackError;

/// Bytes that layers may still write, shared by all layers that are unpacked at once.
///
/// The uncompressed archive counts, the rest of each file's last block, and 4 KiB for each directory: a few bytes of a compressed
/// layer can stand for many.
#[derive(Debug)]
pub struct Budget {
    limit: u64,
    left: AtomicU64,
}

impl Budget {
    /// A budget of so many bytes.
    pub fn new(bytes: u64) -> Self {
        Self {
            limit: bytes,
            left: AtomicU64::new(bytes),
        }
    }

    /// The bytes that are left.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, bytes: u64) -> Result<(), UnpackError> {
        let take = |left: u64| left.checked_sub(bytes);
        match self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        {
            Ok(_) => Ok(()),
            Err(_) => Err(UnpackError::OverBudget { limit: self.limit }),
        }
    }
}

/// The limits of unpacking one layer.
#[derive(Debug, Clone, Copy)]
pub struct Limits<'a> {
    /// The bytes that may be written.
    pub budget: &'a Budget,
    /// Set by the caller to end the unpacking: it then returns [`UnpackError::Cancelled`] within one read of the stream.
    pub cancelled: &'a AtomicBool,
    /// Memory for the paths of directories, in bytes. A layer that needs more is [`UnpackError::Unsupported`].
    pub memory: usize,
}

impl<'a> Limits<'a> {
    /// Memory for the paths of about 200,000 directories.
    const MEMORY: usize = 16 << 20;

    /// Limits with the usual memory.
    pub fn new(budget: &'a Budget, cancelled: &'a AtomicBool) -> Self {
        Self {
            budget,
            cancelled,
            memory: Self::MEMORY,
        }
    }
}
