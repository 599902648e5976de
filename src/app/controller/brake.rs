//! Brake: doubles the window of an image whose registry limits the rate of requests. Pure.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::observe::{Node, Planned};
use crate::api::v1alpha1::RolloutType;
use crate::model::failure::FailureKind;
use crate::model::outcome::Reason;

/// The least time between two doublings for one image.
const INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of doublings; the default window of 2 minutes is more than 8 hours then.
const MAX_DOUBLINGS: u32 = 8;

/// The doublings that were decided, by PlannedImage.
#[derive(Debug, Default)]
pub(super) struct Brakes {
    /// The number of doublings.
    pub(super) doublings: BTreeMap<String, u32>,
    last: BTreeMap<String, Instant>,
}

impl Brakes {
    /// Decides on the nodes' failures. Returns whether a window has to be doubled.
    pub(super) fn decide(
        &mut self,
        planned: &BTreeMap<String, Planned>,
        limited: impl Fn(&str) -> bool,
        now: Instant,
    ) -> bool {
        self.last.retain(|name, at| {
            planned.contains_key(name) && now.saturating_duration_since(*at) < INTERVAL
        });
        // The object says so itself once it is written.
        self.doublings.retain(|name, doublings| {
            let known = planned.get(name);
            known.is_some_and(|known| !known.spec.prefetches.is_empty() && known.brake < *doublings)
        });
        let mut decided = false;
        for (name, known) in planned {
            let may_brake = known.brake < MAX_DOUBLINGS
                && known.spec.rollout.kind != RolloutType::Immediate
                && !known.spec.prefetches.is_empty()
                && !self.last.contains_key(name)
                && !self.doublings.contains_key(name);
            if may_brake && limited(&known.spec.image) {
                self.last.insert(name.clone(), now);
                self.doublings.insert(name.clone(), known.brake + 1);
                decided = true;
            }
        }
        decided
    }
}

/// The images that a node reports as limited by their registry.
pub(super) fn limited(node: &Node) -> impl Iterator<Item = &str> {
    let limited = node.failures.iter();
    let limited =
        limited.filter(|failure| failure.reason == Reason::Failure(FailureKind::RateLimited));
    limited.map(|failure| failure.image.as_str())
}
