//! NodePrefetch: what one node has. Written by the agent of that node only.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::common::Condition;

/// A NodePrefetch has no spec.
#[derive(
    CustomResource, Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "harpoon.dev",
    version = "v1alpha1",
    kind = "NodePrefetch",
    plural = "nodeprefetches",
    shortname = "npf",
    category = "harpoon",
    status = "NodePrefetchStatus",
    no_spec,
    derive = "PartialEq",
    derive = "Default",
    doc = "What harpoon's agent has put onto the node of the same name. The agent writes it; do not edit it.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Desired", type_ = "integer", json_path = ".status.desired"),
    printcolumn(name = "Present", type_ = "integer", json_path = ".status.present"),
    printcolumn(name = "Pulling", type_ = "integer", json_path = ".status.pulling"),
    printcolumn(name = "Failed", type_ = "integer", json_path = ".status.failed"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
pub struct NodePrefetchFields {}

/// The observations of the agent.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct NodePrefetchStatus {
    /// Ready: all images that the node needs are present. DiskPressure, while it lasts: the usage of the disk is above the high
    /// mark, so that nothing is pulled. PinsIgnored: the runtime does not pin images, so that the retention policy Pin acts as
    /// Keep.
    pub conditions: Vec<Condition>,
    /// Number of images that the node needs.
    pub desired: i64,
    /// Number of these that are present.
    pub present: i64,
    /// Number of these that are being pulled or wait for it.
    pub pulling: i64,
    /// Number of these whose last pull failed.
    pub failed: i64,
    /// The same for each ImagePrefetch.
    pub prefetches: Vec<NodePrefetchEntry>,
    /// Images that failed, at most 10.
    // Written also if there is none. Before Kubernetes 1.22, the write of the object by a new agent gives up the fields of its
    // status, and a field without an owner stays if it is not written.
    pub failures: Vec<NodeFailure>,
    /// Duration of the node's first fill in seconds, once it is complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_fill_seconds: Option<f64>,
    /// Name and version of the container runtime.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    /// The image store of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_store: Option<ImageStore>,
    /// The time of the last report.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub heartbeat_time: String,
}

/// The images of one ImagePrefetch on a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
#[schemars(inline)]
pub struct NodePrefetchEntry {
    /// The name of the ImagePrefetch.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Hash of the names and placements of its PlannedImages that the agent has seen.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub revision: String,
    /// Number of its images that the node needs.
    pub desired: i64,
    /// Number of these that are present.
    pub present: i64,
    /// Number of these that are being pulled or wait for it.
    pub pulling: i64,
    /// Number of these whose last pull failed.
    pub failed: i64,
}

/// An image that failed on a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
#[schemars(inline)]
pub struct NodeFailure {
    /// The image.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// The kind of failure, such as not_found.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The message of the runtime or registry.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
}

/// The image store of a node, in bytes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct ImageStore {
    /// Bytes of the images that harpoon keeps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub harpoon_bytes: Option<i64>,
    /// Bytes of all images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<i64>,
    /// Capacity of the file system, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<i64>,
}
