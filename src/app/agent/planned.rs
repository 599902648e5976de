//! A PlannedImage as the agent uses it, decoded once. Pure.
//!
//! A field that cannot be read never hides an image: it gets its default.

use std::sync::Arc;
use std::time::SystemTime;

use crate::api::v1alpha1::{PlannedImage, PullSecret, RetentionPolicy, Seal};
use crate::app::continuous::{names, placement, rollout};
use crate::model::reference::{Reference, ReferenceError};
use crate::model::seal::SealPolicy;
use crate::planning::node_match::Requirements;
use crate::planning::rollout::Rollout;

/// An image for the nodes that fulfil its requirements.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Planned {
    /// The name of its object.
    pub(super) object: String,
    /// The image as the object names it.
    pub(super) image: Arc<str>,
    /// The image, or why it is none.
    pub(super) reference: Result<Reference, ReferenceError>,
    /// Number of pods that use it.
    pub(super) pods: u64,
    /// Names of the ImagePrefetches that use it; none if it is only kept.
    pub(super) prefetches: Vec<String>,
    /// Requirements on nodes, of which any is enough; without any, all nodes need it.
    pub(super) placements: Vec<Requirements>,
    /// The object as revisions count it.
    pub(super) revised: String,
    pub(super) rollout: Rollout,
    /// The time when it was planned; `None` if that is unknown.
    pub(super) planned: Option<SystemTime>,
    /// Number of nodes of the cluster, if known.
    pub(super) nodes: u32,
    pub(super) retention: RetentionPolicy,
    pub(super) seal: SealPolicy,
    pub(super) pull_secrets: Vec<PullSecret>,
    /// Its tag may move.
    pub(super) refresh: bool,
    /// Identifies the object: one that is created again is another.
    uid: String,
}

impl Planned {
    /// Reads the object. Its reference is normalised again, because it may have been written by hand.
    pub(super) fn of(object: PlannedImage) -> Self {
        let spec = object.spec;
        let reference = Reference::parse(&spec.image);
        let image = match &reference {
            Ok(reference) => Arc::from(reference.normalized()),
            Err(_) => Arc::from(spec.image.as_str()),
        };
        let object_name = object.metadata.name.unwrap_or_default();
        Self {
            revised: names::revised(&object_name, &spec.placements),
            object: object_name,
            reference: Reference::of(&image),
            image,
            pods: spec.pods.try_into().unwrap_or(0),
            prefetches: spec.prefetches,
            placements: spec
                .placements
                .iter()
                .map(placement::requirements)
                .collect(),
            rollout: rollout::rollout(&spec.rollout),
            planned: humantime::parse_rfc3339_weak(&spec.rollout.start_time).ok(),
            nodes: rollout::count(spec.rollout.nodes),
            retention: spec.retention.policy,
            seal: match spec.seal {
                Seal::Auto => SealPolicy::Auto,
                Seal::Never => SealPolicy::Never,
                Seal::Always => SealPolicy::Always,
            },
            pull_secrets: spec.pull_secrets,
            refresh: spec.refresh,
            uid: object.metadata.uid.unwrap_or_default(),
        }
    }

    /// Returns whether a pull that failed for the other may succeed for this one.
    pub(super) fn is_new_chance(&self, other: &Self) -> bool {
        self.uid != other.uid || self.seal != other.seal || self.pull_secrets != other.pull_secrets
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;

    use super::*;

    fn planned(spec: &serde_json::Value) -> Planned {
        let object = json!({
            "apiVersion": "harpoon.dev/v1alpha1", "kind": "PlannedImage",
            "metadata": {"name": "web", "uid": "1"}, "spec": spec
        });
        Planned::of(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn broken_fields_have_defaults() {
        let image = planned(&json!({
            "image": "web:1", "pods": -3,
            "rollout": {"type": "Linear", "window": "soon", "startTime": "yesterday", "nodes": -1}
        }));
        assert_eq!(&*image.image, "docker.io/library/web:1");
        assert_eq!((image.pods, image.nodes, image.planned), (0, 1, None));
        assert_eq!(image.rollout, Rollout::Linear(Duration::from_secs(120)));
        let broken = planned(&json!({"image": "a b"}));
        assert!(broken.reference.is_err());
        assert_eq!(&*broken.image, "a b");
    }

    #[test]
    fn changed_secret_is_new_chance() {
        let one = planned(&json!({"image": "web:1"}));
        let more = planned(&json!({"image": "web:1", "pods": 7}));
        assert!(!more.is_new_chance(&one));
        let secrets = json!([{"namespace": "shop", "name": "regcred"}]);
        assert!(planned(&json!({"image": "web:1", "pullSecrets": secrets})).is_new_chance(&one));
    }
}
