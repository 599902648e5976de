//! Types that several kinds share.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::KEEP_AFTER_UNUSED;

/// The most characters of a duration.
pub(super) const MAX_DURATION: u32 = 20;
/// A duration in the notation of Go, such as `1h30m`.
pub(super) const DURATION: &str = "^([0-9]{1,7}(h|m|s|ms))+$";

/// A kind of workload.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[schemars(inline)]
pub enum WorkloadKindName {
    /// `deployments.apps`.
    Deployment,
    /// `statefulsets.apps`.
    StatefulSet,
    /// `daemonsets.apps`.
    DaemonSet,
    /// `replicasets.apps`.
    ReplicaSet,
    /// `jobs.batch`.
    Job,
    /// `cronjobs.batch`.
    CronJob,
    /// `pods`.
    Pod,
}

/// Selects objects by their labels. All requirements must match; an empty selector matches every object.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct LabelSelector {
    /// Labels that the object must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub match_labels: BTreeMap<String, String>,
    /// Requirements on the object's labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub match_expressions: Vec<SelectorExpression>,
}

/// A requirement on a label.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub struct SelectorExpression {
    /// The key of the label.
    #[schemars(length(min = 1, max = 317))]
    pub key: String,
    /// One of In, NotIn, Exists and DoesNotExist.
    #[schemars(extend("enum" = ["In", "NotIn", "Exists", "DoesNotExist"]))]
    pub operator: String,
    /// Values for In and NotIn.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub values: Vec<String>,
}

/// The protection of a prefetched image from garbage collection.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum RetentionPolicy {
    /// Nothing: an image that is removed from a node is not pulled again.
    None,
    /// An image that is removed from a node is pulled again.
    #[default]
    Keep,
    /// The kubelet may not remove the image. Only containerd supports this; on other runtimes it acts as Keep.
    Pin,
}

/// The retention of prefetched images on the nodes.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Retention {
    /// The protection of an image from garbage collection: None, Keep or Pin.
    #[serde(default)]
    pub policy: RetentionPolicy,
    /// Time for which an image is kept after the last workload or list entry that uses it is gone, such as 24h.
    #[serde(default = "keep_after_unused")]
    #[schemars(length(max = MAX_DURATION), regex(pattern = DURATION))]
    #[x_kube(validation = Rule::new("duration(self) <= duration('8760h')").message("must be at most 8760h"))]
    pub keep_after_unused: String,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            policy: RetentionPolicy::default(),
            keep_after_unused: keep_after_unused(),
        }
    }
}

fn keep_after_unused() -> String {
    KEEP_AFTER_UNUSED.to_owned()
}

/// The sealing of images. A sealed image has no name on the nodes, so that a pod needs its own credential to use it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum Seal {
    /// Images that were pulled with a pull secret are sealed.
    #[default]
    Auto,
    /// No image is sealed.
    Never,
    /// All images are sealed; on a runtime that cannot seal, they fail.
    Always,
}

/// A Secret of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash,
)]
#[schemars(inline)]
pub struct PullSecret {
    /// The namespace of the Secret.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// The name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// One aspect of an object's state, as in other Kubernetes APIs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Condition {
    /// The type of the condition.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: String,
    /// The reason of the last transition, in CamelCase.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Details for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// The time of the last change of the status.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub last_transition_time: String,
    /// The generation of the spec that the condition is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl Condition {
    /// Type, status and reason of each condition: others wait for these, and not for messages and times.
    pub fn verdicts(conditions: &[Self]) -> impl Iterator<Item = (&str, &str, &str)> {
        conditions
            .iter()
            .map(|c| (&*c.kind, &*c.status, &*c.reason))
    }
}
