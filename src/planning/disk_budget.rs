//! Image sizes and the disk budget of a store. Pure: no I/O, no clock.

use std::collections::{BTreeMap, HashSet};

use crate::model::digest::Digest;
use crate::model::image_size::{Blob, LayerStorage, Size, UNPACKED_FACTOR, Usage, unpacked};

impl Size {
    /// The compressed size of the image alone, in bytes.
    pub fn packed(&self) -> u64 {
        Weight::of(self, &HashSet::new()).packed
    }
}

/// A size in both forms, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Weight {
    packed: u64,
    unpacked: u64,
}

impl Weight {
    /// The size that the image adds to the existing blobs. An image with a known total only shares nothing.
    fn of(size: &Size, there: &HashSet<Digest>) -> Self {
        match size {
            Size::Blobs(blobs) => {
                Self::of_blobs(blobs.iter().filter(|blob| !there.contains(&blob.digest)))
            }
            Size::Packed(bytes) => Self::of_packed(*bytes),
            Size::Unpacked(bytes) => Self {
                packed: (*bytes as f64 / UNPACKED_FACTOR).ceil() as u64,
                unpacked: *bytes,
            },
        }
    }

    fn of_blobs<'a>(blobs: impl IntoIterator<Item = &'a Blob>) -> Self {
        let bytes = blobs.into_iter().map(|blob| blob.bytes);
        Self::of_packed(bytes.fold(0, u64::saturating_add))
    }

    fn of_packed(packed: u64) -> Self {
        Self {
            packed,
            unpacked: unpacked(packed),
        }
    }

    fn kept(self, keeps: LayerStorage) -> u64 {
        match keeps {
            LayerStorage::Packed => self.packed,
            LayerStorage::Unpacked => self.unpacked,
            LayerStorage::Both => self.packed.saturating_add(self.unpacked),
        }
    }
}

/// The size that an image adds to a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Download {
    /// The whole image, compressed, in bytes.
    pub bytes: u64,
    /// The part that is already present or comes with an earlier image; `None` if its blobs are not known.
    pub shared: Option<u64>,
}

/// Sums up downloads, counting each blob once.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    blobs: HashSet<Digest>,
}

impl Tally {
    /// A tally for a store that has these blobs.
    pub fn new(blobs: HashSet<Digest>) -> Self {
        Self { blobs }
    }

    /// Adds an image.
    pub fn add(&mut self, size: &Size) -> Download {
        let bytes = size.packed();
        let shared = match size {
            Size::Blobs(blobs) => {
                let fresh = Weight::of(size, &self.blobs).packed;
                self.blobs.extend(blobs.iter().map(|b| b.digest.clone()));
                Some(bytes - fresh)
            }
            Size::Packed(_) | Size::Unpacked(_) => None,
        };
        Download { bytes, shared }
    }
}

/// The size on disk of an image in a store that has none of its blobs yet, in bytes.
pub fn on_disk(size: &Size, keeps: LayerStorage) -> u64 {
    more_on_disk(size, &HashSet::new(), keeps)
}

/// The same for a store that has these blobs already.
pub fn more_on_disk(size: &Size, present: &HashSet<Digest>, keeps: LayerStorage) -> u64 {
    Weight::of(size, present).kept(keeps)
}

/// The image does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InsufficientSpace {
    /// The required space in bytes.
    pub need: u64,
    /// The remaining space in bytes.
    pub left: u64,
}

/// The remaining budget of a store, less the reservations of images that are being pulled.
///
/// The store's own count is used if it is higher than ours, never if it is lower: runtimes report their usage late.
#[derive(Debug, Clone)]
pub struct DiskBudget {
    budget: u64,
    keeps: LayerStorage,
    /// The usage at the start, plus the images pulled since.
    counted: u64,
    /// The last usage that the store reported.
    told: u64,
    /// The blobs of the store, and those of images pulled since.
    there: HashSet<Digest>,
    promises: BTreeMap<usize, Reservation>,
}

/// The space reserved for an image that is being pulled.
#[derive(Debug, Clone)]
struct Reservation {
    bytes: u64,
    /// The blobs that `bytes` includes.
    own: Vec<Blob>,
    /// The blobs that come with an earlier image.
    shared: Vec<Blob>,
}

impl Reservation {
    fn new(
        size: &Size,
        there: &HashSet<Digest>,
        coming: &HashSet<Digest>,
        keeps: LayerStorage,
    ) -> Self {
        match size {
            Size::Blobs(blobs) => {
                let missing = blobs.iter().filter(|blob| !there.contains(&blob.digest));
                let (shared, own) = missing
                    .cloned()
                    .partition(|blob| coming.contains(&blob.digest));
                let own: Vec<Blob> = own;
                Self {
                    bytes: Weight::of_blobs(&own).kept(keeps),
                    own,
                    shared,
                }
            }
            size => Self {
                bytes: Weight::of(size, there).kept(keeps),
                own: Vec::new(),
                shared: Vec::new(),
            },
        }
    }

    /// Takes over blobs that no other reservation counts any more.
    fn take_over(&mut self, orphans: &mut Vec<Blob>, keeps: LayerStorage) {
        let mine = |blob: &Blob| self.shared.iter().any(|b| b.digest == blob.digest);
        let (taken, left): (Vec<Blob>, Vec<Blob>) = orphans.drain(..).partition(mine);
        *orphans = left;
        self.shared
            .retain(|blob| !taken.iter().any(|t| t.digest == blob.digest));
        let more = Weight::of_blobs(&taken).kept(keeps);
        self.bytes = self.bytes.saturating_add(more);
        self.own.extend(taken);
    }
}

impl DiskBudget {
    /// The budget of `budget` bytes for a store with this `usage`.
    pub fn new(budget: u64, keeps: LayerStorage, usage: Usage) -> Self {
        Self {
            budget,
            keeps,
            counted: usage.bytes,
            told: usage.bytes,
            there: usage.blobs,
            promises: BTreeMap::new(),
        }
    }

    /// The budget, in bytes.
    pub fn budget(&self) -> u64 {
        self.budget
    }

    /// Updates the usage that the store reports.
    pub fn observe(&mut self, usage: Usage) {
        self.told = usage.bytes;
        self.there.extend(usage.blobs);
    }

    /// Replaces the count by the usage that the store reports; for a time without pulls.
    pub fn recount(&mut self, usage: Usage) {
        self.counted = usage.bytes;
        self.told = usage.bytes;
        self.there = usage.blobs;
    }

    /// Reserves space for the image, under a number chosen by the caller; returns the bytes.
    ///
    /// # Errors
    /// If it does not fit.
    pub fn promise(&mut self, number: usize, size: &Size) -> Result<u64, InsufficientSpace> {
        let coming = self.promises.values().flat_map(|p| &p.own);
        let coming = coming.map(|blob| blob.digest.clone()).collect();
        let promise = Reservation::new(size, &self.there, &coming, self.keeps);
        let need = promise.bytes;
        let coming = self.promises.values().map(|p| p.bytes);
        let taken = coming.fold(self.counted.max(self.told), u64::saturating_add);
        let left = self.budget.saturating_sub(taken);
        if need > left {
            return Err(InsufficientSpace { need, left });
        }
        self.promises.insert(number, promise);
        Ok(need)
    }

    /// Returns whether the image with that number has a reservation.
    pub fn is_promised(&self, number: usize) -> bool {
        self.promises.contains_key(&number)
    }

    /// Returns whether no image is being pulled, so that missing space stays missing.
    pub fn is_still(&self) -> bool {
        self.promises.is_empty()
    }

    /// The image with that number was pulled; its reservation becomes usage.
    pub fn kept(&mut self, number: usize) {
        if let Some(promise) = self.promises.remove(&number) {
            self.counted = self.counted.saturating_add(promise.bytes);
            self.there.extend(promise.own.into_iter().map(|b| b.digest));
        }
    }

    /// The image with that number is not pulled. One of the images that share its blobs now has to download them.
    pub fn broken(&mut self, number: usize) {
        let Some(promise) = self.promises.remove(&number) else {
            return;
        };
        let mut orphans = promise.own;
        for promise in self.promises.values_mut() {
            promise.take_over(&mut orphans, self.keeps);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(blobs: &[(char, u64)]) -> Size {
        let blob = |(name, bytes): &(char, u64)| Blob {
            digest: Digest::parse(&format!("sha256:{}", name.to_string().repeat(64)))
                .expect("digest"),
            bytes: *bytes,
        };
        Size::Blobs(blobs.iter().map(blob).collect())
    }

    #[test]
    fn failed_reservation_passes_to_sharing_images() {
        let mut room = DiskBudget::new(100, LayerStorage::Packed, Usage::default());
        let shared = ('a', 80);
        assert_eq!(room.promise(0, &size(&[shared, ('b', 5)])), Ok(85));
        assert_eq!(room.promise(1, &size(&[shared, ('c', 5)])), Ok(5));
        assert_eq!(room.promise(2, &size(&[shared, ('c', 5)])), Ok(0));
        room.broken(0);
        let short = InsufficientSpace { need: 90, left: 15 };
        assert_eq!(room.promise(3, &size(&[('d', 90)])), Err(short));
        // And again, for the last image that shares it.
        room.broken(1);
        assert_eq!(room.promise(3, &size(&[('d', 90)])), Err(short));
        room.kept(2);
        assert_eq!(room.promise(4, &size(&[shared, ('e', 15)])), Ok(15));
        room.broken(4);
        assert!(room.is_still());
        let short = InsufficientSpace { need: 16, left: 15 };
        assert_eq!(room.promise(5, &size(&[('e', 16)])), Err(short));
    }
}
