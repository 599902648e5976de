//! The marks of the image file system: above the high mark harpoon pulls nothing and gives up what it protects, below the
//! resume mark it goes on. Pure: no I/O, no clock.
//!
//! Two rules keep it from pulling what the node then evicts again. A pull is admitted only if the file system is below the high
//! mark after it. An image that was lost while the disk was too full needs more than its own size the next time.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::image_size::ImageFs;

/// Points below the high mark at which harpoon resumes.
pub const RESUME_BELOW: u8 = 5;
/// Percentage of the capacity that an image of unknown size is taken to need, where twice as much is left.
const ASSUMED: u8 = 25;
/// Percentage of the capacity that an image counts whose size its registry does not tell.
const UNKNOWN: u8 = 5;
/// Maximum number of times that the space for a lost image is doubled.
const DOUBLINGS_MAX: u32 = 6;

/// An image of the plan, present or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedImage<'a> {
    /// Its normalised reference.
    pub name: &'a str,
    /// True if it is present on the node.
    pub is_present: bool,
    /// True if it is pinned or sealed now, so that the kubelet cannot remove it.
    pub is_protected: bool,
    /// The bytes on disk that the node gets back without it: 0 for an image that a container uses.
    pub bytes: u64,
    /// The least important images are given up first.
    pub importance: u64,
}

/// The actions to take now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// True above the high mark, and from then on until the usage is below the resume mark: nothing is pulled or protected.
    pub is_yielding: bool,
    /// The images to unpin or unseal now, in this order.
    pub give_up: Vec<String>,
}

/// The marks of one image file system, and what happened since the start.
#[derive(Debug, Clone)]
pub struct DiskMarks {
    high_percent: u8,
    is_yielding: bool,
    /// The images that were given up since the usage was above the high mark.
    given_up: BTreeSet<String>,
    /// The present images of the plan at the last decision, with their bytes.
    present: BTreeMap<String, u64>,
    /// Images that were lost while harpoon yielded; of the plan only.
    lost: BTreeMap<String, Lost>,
}

/// The loss of an image.
#[derive(Debug, Clone, Copy, Default)]
struct Lost {
    /// Number of times.
    times: u32,
    /// The most bytes that it had.
    bytes: u64,
}

impl DiskMarks {
    /// The marks for this percentage of the capacity.
    pub fn new(high_percent: u8) -> Self {
        Self {
            high_percent,
            is_yielding: false,
            given_up: BTreeSet::new(),
            present: BTreeMap::new(),
            lost: BTreeMap::new(),
        }
    }

    /// The high mark as a percentage of the capacity.
    pub fn high_percent(&self) -> u8 {
        self.high_percent
    }

    /// Returns whether the usage was above the high mark, and not below the resume mark since.
    pub fn is_yielding(&self) -> bool {
        self.is_yielding
    }

    /// The usage in bytes above which harpoon yields.
    pub fn high(&self, fs: ImageFs) -> u64 {
        fs.percent(self.high_percent)
    }

    /// The usage in bytes below which it resumes.
    pub fn resume(&self, fs: ImageFs) -> u64 {
        fs.percent(self.high_percent.saturating_sub(RESUME_BELOW))
    }

    /// Decides by the current usage, with all images of the plan.
    pub fn decide(&mut self, fs: ImageFs, plan: &[PlannedImage<'_>]) -> Decision {
        self.count_losses(plan);
        if fs.used > self.high(fs) {
            self.is_yielding = true;
        } else if fs.used < self.resume(fs) {
            self.is_yielding = false;
            self.given_up.clear();
        }
        let give_up = match self.is_yielding {
            true => self.give_up(fs, plan),
            false => Vec::new(),
        };
        Decision {
            is_yielding: self.is_yielding,
            give_up,
        }
    }

    /// Counts the images that are gone since the last decision, if harpoon yielded then.
    fn count_losses(&mut self, plan: &[PlannedImage<'_>]) {
        let names: BTreeSet<&str> = plan.iter().map(|image| image.name).collect();
        self.given_up.retain(|name| names.contains(&**name));
        self.lost.retain(|name, _| names.contains(&**name));
        for image in plan.iter().filter(|image| !image.is_present) {
            if let (true, Some(bytes)) = (self.is_yielding, self.present.get(image.name)) {
                let lost = self.lost.entry(image.name.to_owned()).or_default();
                lost.times += 1;
                lost.bytes = lost.bytes.max(*bytes);
            }
        }
        let present = plan.iter().filter(|image| image.is_present);
        let present = present.map(|image| (image.name.to_owned(), image.bytes));
        self.present = present.collect();
    }

    /// Chooses the least important protected images, until the usage without them, and without those that the kubelet can remove
    /// already, is not above the high mark.
    fn give_up(&mut self, fs: ImageFs, plan: &[PlannedImage<'_>]) -> Vec<String> {
        let present = || plan.iter().filter(|image| image.is_present);
        let free = present().filter(|image| !image.is_protected);
        let free = free.map(|image| image.bytes);
        let mut used = fs.used.saturating_sub(free.fold(0, u64::saturating_add));
        let mut kept: Vec<_> = present()
            .filter(|image| image.is_protected && image.bytes > 0)
            .collect();
        // Of equals the largest goes first, so that few go.
        kept.sort_by_key(|image| (image.importance, u64::MAX - image.bytes, image.name));
        let mut chosen = Vec::new();
        for image in kept {
            if used <= self.high(fs) {
                break;
            }
            used = used.saturating_sub(image.bytes);
            self.given_up.insert(image.name.to_owned());
            chosen.push(image.name.to_owned());
        }
        chosen
    }

    /// Returns whether an image of this estimated size on disk may be pulled now, while pulls with these estimates are in
    /// progress.
    pub fn admits(&self, fs: ImageFs, in_progress: u64, name: &str, bytes: u64) -> bool {
        if self.is_yielding {
            return false;
        }
        let lost = self.lost.get(name).copied().unwrap_or_default();
        let doublings = lost.times.min(DOUBLINGS_MAX);
        let need = bytes.max(lost.bytes).saturating_mul(1 << doublings);
        let after = fs.used.saturating_add(in_progress).saturating_add(need);
        after <= self.high(fs)
    }

    /// The estimate for an image of unknown size that takes no request to its registry: so much is left below the mark that no
    /// usual image comes near it. `None` if its size matters.
    pub fn assumed(&self, fs: ImageFs, in_progress: u64, name: &str) -> Option<u64> {
        let used = fs.used.saturating_add(in_progress);
        let left = self.high(fs).saturating_sub(used);
        let bytes = fs.percent(ASSUMED);
        let is_far = left >= bytes.saturating_mul(2) && !self.lost.contains_key(name);
        (is_far && !self.is_yielding).then_some(bytes)
    }

    /// The estimate for an image whose size cannot be requested, such as from a registry that only the runtime reaches.
    pub fn unknown(fs: ImageFs) -> u64 {
        fs.percent(UNKNOWN)
    }

    /// Returns whether the image may be pinned or sealed now.
    pub fn may_protect(&self, name: &str) -> bool {
        !self.given_up.contains(name)
    }
}

#[cfg(test)]
mod tests;
