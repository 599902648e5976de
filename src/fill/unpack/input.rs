//! The uncompressed archive as its consumer sees it: chunks from the decompressing thread, counted, hashed and bounded.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};

use super::{Limits, UnpackError};
use crate::model::digest::Digest;
use crate::registry::digest::Hasher;

/// The bytes of an archive, in order.
pub(super) struct Input<'a> {
    chunks: Receiver<Vec<u8>>,
    /// Takes used buffers back.
    used: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    total: u64,
    hasher: Hasher,
    limits: Limits<'a>,
}

impl<'a> Input<'a> {
    pub(super) fn new(
        chunks: Receiver<Vec<u8>>,
        used: SyncSender<Vec<u8>>,
        hasher: Hasher,
        limits: &Limits<'a>,
    ) -> Self {
        Self {
            chunks,
            used,
            current: Vec::new(),
            at: 0,
            total: 0,
            hasher,
            limits: *limits,
        }
    }

    /// The next bytes; empty at the end.
    pub(super) fn available(&mut self) -> Result<&[u8], UnpackError> {
        if self.at == self.current.len() {
            self.receive()?;
        }
        Ok(&self.current[self.at..])
    }

    /// Marks bytes as used. At most what [`Input::available`] returned.
    pub(super) fn consume(&mut self, bytes: usize) {
        self.at = (self.at + bytes).min(self.current.len());
    }

    /// Fills the buffer, or less at the end; returns how much.
    pub(super) fn read(&mut self, mut buffer: &mut [u8]) -> Result<usize, UnpackError> {
        let mut read = 0;
        while !buffer.is_empty() {
            let available = self.available()?;
            let some = available.len().min(buffer.len());
            if some == 0 {
                break;
            }
            let (now, later) = buffer.split_at_mut(some);
            now.copy_from_slice(&available[..some]);
            self.consume(some);
            read += some;
            buffer = later;
        }
        Ok(read)
    }

    /// Passes exactly `bytes` bytes to `take`, in pieces.
    pub(super) fn each(
        &mut self,
        mut bytes: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        while bytes > 0 {
            let available = self.available()?;
            let some = usize::try_from(bytes).map_or(available.len(), |b| b.min(available.len()));
            if some == 0 {
                return Err(UnpackError::malformed("the archive is truncated"));
            }
            take(&available[..some])?;
            self.consume(some);
            bytes -= some as u64;
        }
        Ok(())
    }

    /// Reads to the end.
    pub(super) fn drain(&mut self) -> Result<(), UnpackError> {
        self.at = self.current.len();
        while !self.available()?.is_empty() {
            self.at = self.current.len();
        }
        Ok(())
    }

    /// The digest of all bytes received, and how many they are.
    pub(super) fn into_sums(self) -> (Digest, u64) {
        (self.hasher.finish(), self.total)
    }

    fn receive(&mut self) -> Result<(), UnpackError> {
        if self.limits.cancelled.load(Ordering::Relaxed) {
            return Err(UnpackError::Cancelled);
        }
        let used = std::mem::take(&mut self.current);
        self.at = 0;
        if used.capacity() > 0 {
            // The queue has room for every buffer; if the other thread has ended, nothing is lost.
            _ = self.used.try_send(used);
        }
        if let Ok(chunk) = self.chunks.recv() {
            self.limits.budget.take(chunk.len() as u64)?;
            self.hasher.update(&chunk);
            self.total += chunk.len() as u64;
            self.current = chunk;
        }
        Ok(())
    }
}
