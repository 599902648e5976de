//! Version `v1alpha1`: the kinds ImagePrefetch, PlannedImage and NodePrefetch, all cluster-scoped. No logic.
//!
//! Durations are text such as `2m`, `1h30m` or `24h`, times are RFC 3339. Both are parsed where they are used, so that one object
//! with an unusable value does not prevent the decoding of the others.
//!
//! Empty texts of a status are not written: Kubernetes 1.20 takes an empty text in a list for `null` and rejects it.

mod common;
mod crds;
mod image_prefetch;
mod node_prefetch;
mod planned_image;

pub use common::{Condition, LabelSelector, PullSecret, Retention, RetentionPolicy, Seal};
pub use common::{SelectorExpression, WorkloadKindName};
pub use crds::{crds, yaml};
pub use image_prefetch::{
    ImageFailure, ImagePrefetch, ImagePrefetchSpec, ImagePrefetchStatus, NodeCounts, NodeGate,
    Rollout, RolloutType, Source, Workloads,
};
pub use node_prefetch::{
    ImageStore, NodeFailure, NodePrefetch, NodePrefetchEntry, NodePrefetchFields,
    NodePrefetchStatus,
};
pub use planned_image::{
    AffinityTerm, Expression, Placement, PlannedImage, PlannedImageSpec, PlannedRollout, Toleration,
};

/// The annotation of a PlannedImage with the number of times that the brake has doubled its window.
pub const ROLLOUT_BRAKE: &str = "harpoon.dev/rollout-brake";
/// The annotation of a PlannedImage with the time since when no ImagePrefetch uses it (RFC 3339).
pub const UNUSED_SINCE: &str = "harpoon.dev/unused-since";
/// The time that an image without a use is kept where its ImagePrefetch does not say.
pub const KEEP_AFTER_UNUSED: &str = "24h";
/// The window of a rollout that does not say.
pub const WINDOW: &str = "2m";
