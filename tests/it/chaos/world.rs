//! The wishes of people: ImagePrefetches, workloads and labels of nodes, and the plan that follows from them. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Number of nodes, images, names for ImagePrefetches and names for workloads.
pub(super) const NODES: usize = 3;
pub(super) const IMAGES: usize = 10;
pub(super) const PREFETCHES: usize = 4;
pub(super) const WORKLOADS: usize = 3;
/// The first images are used by ImagePrefetches that seal, and by no others.
pub(super) const PRIVATE: usize = 2;

/// The value of the label `pool` of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Pool {
    Blue,
    Green,
}

/// A retention policy, from the weakest to the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Policy {
    None,
    Keep,
    Pin,
}

/// The source of an ImagePrefetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    Images(BTreeSet<usize>),
    Workloads,
}

/// An ImagePrefetch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prefetch {
    pub(super) source: Source,
    pub(super) pool: Option<Pool>,
    pub(super) policy: Policy,
    pub(super) is_sealed: bool,
    pub(super) is_immediate: bool,
}

/// A Deployment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) image: usize,
    pub(super) pool: Option<Pool>,
}

/// A change of what people ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// Creates or replaces an ImagePrefetch, or deletes it.
    Prefetch(usize, Option<Prefetch>),
    /// Creates or replaces a Deployment, or deletes it.
    Workload(usize, Option<Workload>),
    Label(usize, Pool),
}

/// Everything that is asked for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct World {
    pub(super) prefetches: BTreeMap<usize, Prefetch>,
    pub(super) workloads: BTreeMap<usize, Workload>,
    pub(super) pools: [Pool; NODES],
}

/// An image that is to be planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) prefetches: BTreeSet<usize>,
    /// The pools whose nodes need it; `None` for all nodes.
    pub(super) placements: BTreeSet<Option<Pool>>,
    pub(super) policy: Policy,
    pub(super) is_sealed: bool,
}

impl Pool {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Blue => "blue",
            Self::Green => "green",
        }
    }
}

impl World {
    /// Nothing is asked for.
    pub(super) fn new() -> Self {
        Self {
            prefetches: BTreeMap::new(),
            workloads: BTreeMap::new(),
            pools: [Pool::Blue, Pool::Green, Pool::Blue],
        }
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Prefetch(number, Some(prefetch)) => {
                self.prefetches.insert(*number, prefetch.clone());
            }
            Change::Prefetch(number, None) => _ = self.prefetches.remove(number),
            Change::Workload(number, Some(workload)) => {
                self.workloads.insert(*number, *workload);
            }
            Change::Workload(number, None) => _ = self.workloads.remove(number),
            Change::Label(node, pool) => self.pools[*node] = *pool,
        }
    }

    /// The images that are to be planned.
    pub(super) fn planned(&self) -> BTreeMap<usize, Planned> {
        let mut all: BTreeMap<usize, Planned> = BTreeMap::new();
        for (number, prefetch) in &self.prefetches {
            for (image, placement) in self.demanded(prefetch) {
                let planned = all.entry(image).or_insert_with(|| Planned {
                    prefetches: BTreeSet::new(),
                    placements: BTreeSet::new(),
                    policy: prefetch.policy,
                    is_sealed: false,
                });
                planned.prefetches.insert(*number);
                planned.placements.insert(placement);
                planned.policy = planned.policy.max(prefetch.policy);
                planned.is_sealed |= prefetch.is_sealed;
            }
        }
        all
    }

    /// The images of an ImagePrefetch, each with the pool whose nodes need it.
    fn demanded(&self, prefetch: &Prefetch) -> Vec<(usize, Option<Pool>)> {
        match &prefetch.source {
            Source::Images(images) => images.iter().map(|i| (*i, prefetch.pool)).collect(),
            Source::Workloads => {
                let workloads = self.workloads.values();
                let demanded = workloads.map(|w| (w.image, prefetch.pool.or(w.pool)));
                demanded.collect()
            }
        }
    }

    /// The images that a node needs.
    pub(super) fn wanted(&self, node: usize) -> BTreeMap<usize, Planned> {
        let pool = self.pools[node];
        let fits = |placement: &Option<Pool>| placement.is_none_or(|of| of == pool);
        let mut wanted = self.planned();
        wanted.retain(|_, planned| planned.placements.iter().any(fits));
        wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(images: &[usize], pool: Option<Pool>) -> Prefetch {
        Prefetch {
            source: Source::Images(images.iter().copied().collect()),
            pool,
            policy: Policy::Keep,
            is_sealed: false,
            is_immediate: true,
        }
    }

    #[test]
    fn shared_image_has_strictest_wish() {
        let mut world = World::new();
        let pinned = Prefetch {
            policy: Policy::Pin,
            ..list(&[1, 2], Some(Pool::Green))
        };
        let sealed = Prefetch {
            is_sealed: true,
            policy: Policy::None,
            ..list(&[2], Some(Pool::Blue))
        };
        world.apply(&Change::Prefetch(0, Some(pinned)));
        world.apply(&Change::Prefetch(1, Some(sealed)));
        let both = &world.planned()[&2];
        assert_eq!(both.prefetches, BTreeSet::from([0, 1]));
        assert!(both.is_sealed && both.policy == Policy::Pin);
        assert_eq!([0, 1].map(|node| world.wanted(node).len()), [1, 2]);
        world.apply(&Change::Label(0, Pool::Green));
        assert_eq!(world.wanted(0).len(), 2);
        world.apply(&Change::Prefetch(1, None));
        assert!(!world.planned()[&2].is_sealed);
    }

    #[test]
    fn workload_places_its_image() {
        let mut world = World::new();
        let workload = |image, pool| Some(Workload { image, pool });
        world.apply(&Change::Workload(0, workload(3, Some(Pool::Green))));
        world.apply(&Change::Workload(1, workload(4, None)));
        assert!(world.planned().is_empty());
        let workloads = Prefetch {
            source: Source::Workloads,
            ..list(&[], None)
        };
        world.apply(&Change::Prefetch(0, Some(workloads.clone())));
        assert_eq!([0, 1].map(|node| world.wanted(node).len()), [1, 2]);
        let pool = Some(Pool::Blue);
        world.apply(&Change::Prefetch(0, Some(Prefetch { pool, ..workloads })));
        assert_eq!([0, 1].map(|node| world.wanted(node).len()), [2, 0]);
    }
}
