//! Counts images of a workload's objects that its template lacks. Pure.
//!
//! Memory grows with the different images of each workload, not with the number of pods.

use std::sync::Arc;

use indexmap::IndexMap;

use crate::model::workload_kind::WorkloadKind;

/// Images that were seen, by the kind of the objects and by workload.
#[derive(Debug, Default)]
pub(super) struct Sightings {
    seen: IndexMap<Key, Sighting>,
    /// Number of checkpoints so far.
    generation: u32,
}

/// An image of a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The image, as an index of the accumulator.
    pub(super) image: u32,
    /// The workload that it is attributed to, as an index of the accumulator.
    pub(super) workload: u32,
    /// The kind of the objects that use it.
    pub(super) by: WorkloadKind,
}

/// One image's counts.
#[derive(Debug, Default)]
pub(super) struct Sighting {
    now: Tally,
    /// The tally at the last mark, if it changed since.
    before: Tally,
    /// The generation of the last change.
    changed: u32,
    /// True if a container has the pull policy `Always`.
    pub(super) always: bool,
    mismatch: Option<Arc<str>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    /// Pods that could run on this node.
    fitting: u32,
    /// Pods that could not.
    elsewhere: u32,
}

impl Sighting {
    /// The number of pods that could run on this node or, if there are none, of the others.
    pub(super) fn pods(&self) -> u64 {
        u64::from(match self.now.fitting {
            0 => self.now.elsewhere,
            fitting => fitting,
        })
    }

    /// The reason why none of the pods could run on this node.
    pub(super) fn mismatch(&self) -> Option<Arc<str>> {
        let mismatch = self.mismatch.as_ref();
        mismatch.filter(|_| self.now.fitting == 0).cloned()
    }
}

impl Sightings {
    /// The current state, for a rollback.
    pub(super) fn checkpoint(&mut self) -> usize {
        self.generation = self.generation.wrapping_add(1);
        self.seen.len()
    }

    /// Removes the additions since `mark`. Counts of images that were known before are restored as they were at the latest mark:
    /// a list has entries of its own, so that only its pages have counts to restore.
    pub(super) fn rollback(&mut self, mark: usize) {
        self.seen.truncate(mark);
        for sighting in self.seen.values_mut() {
            if sighting.changed == self.generation {
                sighting.now = sighting.before;
            }
        }
    }

    /// Counts `pods` that use the image.
    pub(super) fn add(&mut self, key: Key, pods: u64, always: bool, mismatch: Option<&Arc<str>>) {
        let sighting = self.seen.entry(key).or_default();
        if sighting.changed != self.generation {
            sighting.changed = self.generation;
            sighting.before = sighting.now;
        }
        let count = match mismatch {
            None => &mut sighting.now.fitting,
            Some(_) => &mut sighting.now.elsewhere,
        };
        *count = count.saturating_add(u32::try_from(pods).unwrap_or(u32::MAX));
        sighting.always |= always;
        if sighting.mismatch.is_none() {
            sighting.mismatch = mismatch.cloned();
        }
    }

    /// All sightings.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Sighting)> {
        self.seen.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key {
        image: 0,
        workload: 0,
        by: WorkloadKind::Pods,
    };

    fn shown(sightings: &Sightings) -> Vec<(u64, Option<Arc<str>>)> {
        let each = sightings.iter();
        each.map(|(_, seen)| (seen.pods(), seen.mismatch()))
            .collect()
    }

    #[test]
    fn only_fitting_pods_count() {
        let mut sightings = Sightings::default();
        let reason: Arc<str> = "taint".into();
        sightings.checkpoint();
        sightings.add(KEY, 5, false, Some(&reason));
        assert_eq!(shown(&sightings), [(5, Some(reason))]);
        sightings.add(KEY, 2, false, None);
        assert_eq!(shown(&sightings), [(2, None)]);
    }

    #[test]
    fn page_rollback_restores_counts() {
        let mut sightings = Sightings::default();
        let list = sightings.checkpoint();
        sightings.checkpoint();
        sightings.add(KEY, 1, false, None);
        sightings.add(KEY, 1, false, None);
        let page = sightings.checkpoint();
        sightings.add(KEY, 7, false, None);
        sightings.add(Key { image: 1, ..KEY }, 1, false, None);
        sightings.add(KEY, 7, false, None);
        sightings.rollback(page);
        assert_eq!(shown(&sightings), [(2, None)]);
        let page = sightings.checkpoint();
        sightings.add(KEY, 1, false, None);
        sightings.rollback(page);
        sightings.checkpoint();
        sightings.add(KEY, 1, false, None);
        assert_eq!(shown(&sightings), [(3, None)]);
        sightings.rollback(list);
        assert_eq!(shown(&sightings), []);
    }
}
