//! What images weigh, and what room a store has for them. Pure: no I/O, no clock.

use std::collections::{BTreeMap, HashSet};

use crate::model::digest::Digest;
use crate::model::image_size::{Blob, LayerStorage, Size, UNPACKED_FACTOR, Usage, unpacked};

impl Size {
    /// The image alone, compressed, in bytes.
    pub fn packed(&self) -> u64 {
        Weight::of(self, &HashSet::new()).packed
    }
}

/// Bytes in both forms.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Weight {
    packed: u64,
    unpacked: u64,
}

impl Weight {
    /// What the image adds to the blobs that there are. An image that is known by its sum alone shares nothing.
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

/// What an image adds to a download.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Download {
    /// The whole image, compressed, in bytes.
    pub bytes: u64,
    /// As much of it as is there already or comes with an image before it; `None` where its blobs are not known.
    pub shared: Option<u64>,
}

/// Adds up downloads, each blob once.
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

/// What an image would take on disk in a store that has nothing of it yet, in bytes.
pub fn on_disk(size: &Size, keeps: LayerStorage) -> u64 {
    Weight::of(size, &HashSet::new()).kept(keeps)
}

/// That an image does not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InsufficientSpace {
    /// What it needs, in bytes.
    pub need: u64,
    /// What is left, in bytes.
    pub left: u64,
}

/// What a budget leaves in a store, less what is promised to the images that are on their way there.
///
/// The store's own count is believed where it is higher than ours, and never where it is lower: runtimes count late.
#[derive(Debug, Clone)]
pub struct DiskBudget {
    budget: u64,
    keeps: LayerStorage,
    /// What the store held at first, and what has come since.
    counted: u64,
    /// What the store said last.
    told: u64,
    /// The blobs of the store, and those of images that have come.
    there: HashSet<Digest>,
    promises: BTreeMap<usize, Reservation>,
}

/// What an image that is on its way will take.
#[derive(Debug, Clone)]
struct Reservation {
    bytes: u64,
    /// Those that `bytes` counts.
    own: Vec<Blob>,
    /// Those that come with an image before it.
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

    /// Counts what no other counts any more.
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
    /// The room that `budget` bytes leave in a store that holds `usage`.
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

    /// Takes in what the store says now.
    pub fn observe(&mut self, usage: Usage) {
        self.told = usage.bytes;
        self.there.extend(usage.blobs);
    }

    /// Promises the image its room, under a number of the caller's own; returns the bytes.
    ///
    /// # Errors
    /// Where it does not fit.
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

    /// Whether the image of that number has its room already.
    pub fn is_promised(&self, number: usize) -> bool {
        self.promises.contains_key(&number)
    }

    /// Whether nothing is on its way, so that what is short now stays short.
    pub fn is_still(&self) -> bool {
        self.promises.is_empty()
    }

    /// The image of that number has come, as the promise says.
    pub fn kept(&mut self, number: usize) {
        if let Some(promise) = self.promises.remove(&number) {
            self.counted = self.counted.saturating_add(promise.bytes);
            self.there.extend(promise.own.into_iter().map(|b| b.digest));
        }
    }

    /// The image of that number does not come. What others share with it, one of them has to bring now.
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
        // And again, to the last who shares it.
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
