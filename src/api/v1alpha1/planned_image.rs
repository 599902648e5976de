//! PlannedImage: one image for the agents. Written by the controller only; it has no status.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::{PullSecret, Retention, Seal};
use super::image_prefetch::RolloutType;

/// An image that agents put onto their nodes. The controller writes it; do not edit it.
#[derive(
    CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "harpoon.dev",
    version = "v1alpha1",
    kind = "PlannedImage",
    plural = "plannedimages",
    shortname = "pli",
    category = "harpoon",
    derive = "PartialEq",
    derive = "Default",
    doc = "An image that harpoon's agents put onto their nodes. The controller writes it; do not edit it.",
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "Pods", type_ = "integer", json_path = ".spec.pods"),
    printcolumn(
        name = "Prefetches",
        type_ = "string",
        json_path = ".spec.prefetches",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct PlannedImageSpec {
    /// The normalised reference of the image.
    #[serde(default)]
    pub image: String,
    /// Number of pods that use it. Images with more pods are pulled first. It is written again when it has doubled or halved.
    #[serde(default)]
    pub pods: i64,
    /// Names of the ImagePrefetches that use it; none if it is only kept.
    #[serde(default)]
    pub prefetches: Vec<String>,
    /// Requirements on nodes; a node that fulfils any of them needs the image. Without any, all nodes need it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub placements: Vec<Placement>,
    /// The start of its pulls on the nodes.
    #[serde(default)]
    pub rollout: PlannedRollout,
    /// Its retention on the nodes.
    #[serde(default)]
    pub retention: Retention,
    /// Its sealing.
    #[serde(default)]
    pub seal: Seal,
    /// Pull secrets for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<PullSecret>,
    /// Its tag may move, so that agents compare it with the registry from time to time.
    #[serde(default)]
    pub refresh: bool,
    /// Fields of other versions of harpoon, which are kept.
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: BTreeMap<String, serde_json::Value>,
}

/// Scheduling requirements of pods that use the image, as in a pod's spec and its RuntimeClass.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct Placement {
    /// The node that pods name without being scheduled; empty for any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_name: String,
    /// Labels that the node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// The terms of the required node affinity, of which one must match. An empty term matches no node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Vec<AffinityTerm>>,
    /// Tolerations of taints.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,
    /// The operating system that the pods are for; empty for any.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub os: String,
    /// Extended resources that the pods require.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<String>,
}

/// A term of a required node affinity.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct AffinityTerm {
    /// Requirements on the node's labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Expression>,
    /// Requirements on the node's fields.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_fields: Vec<Expression>,
}

/// A requirement on a label or a field.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
#[schemars(inline)]
pub struct Expression {
    /// The label or field.
    pub key: String,
    /// In, NotIn, Exists, DoesNotExist, Gt or Lt.
    pub operator: String,
    /// The values that the operator compares with.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// A toleration of taints.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
#[schemars(inline)]
pub struct Toleration {
    /// The taint's key; empty for every key.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub key: String,
    /// Equal or Exists; empty for Equal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub operator: String,
    /// The taint's value, for Equal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// The taint's effect; empty for every effect.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub effect: String,
}

/// The start of an image's pulls on the nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct PlannedRollout {
    /// One of Linear, Doubling and Immediate.
    #[serde(rename = "type")]
    pub kind: RolloutType,
    /// Linear: time within which the nodes start.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub window: String,
    /// Doubling: number of nodes that start first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_nodes: Option<i64>,
    /// Doubling: time after which twice as many nodes have started.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub doubling_period: String,
    /// Number of nodes of the cluster when the image was planned. For Doubling, and for the time in which agents spread their reports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i64>,
    /// The time at which its rollout began.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub start_time: String,
}
