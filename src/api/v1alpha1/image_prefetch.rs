//! ImagePrefetch: which images are to be on which nodes. Written by people; its status by the controller.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WINDOW;
use super::common::{Condition, DURATION, LabelSelector, MAX_DURATION, PullSecret};
use super::common::{Retention, Seal, WorkloadKindName};

/// Images that harpoon puts onto nodes before pods need them.
#[derive(
    CustomResource, Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq,
)]
#[kube(
    group = "harpoon.dev",
    version = "v1alpha1",
    kind = "ImagePrefetch",
    plural = "imageprefetches",
    shortname = "ipf",
    category = "harpoon",
    status = "ImagePrefetchStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Images that harpoon puts onto nodes before pods need them.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(name = "Images", type_ = "integer", json_path = ".status.images"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes.desired"),
    printcolumn(
        name = "Complete",
        type_ = "integer",
        json_path = ".status.nodes.complete"
    ),
    printcolumn(
        name = "Failing",
        type_ = "integer",
        json_path = ".status.nodes.failing"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ImagePrefetchSpec {
    /// The source of the images: exactly one of images and workloads.
    pub source: Source,
    /// Prefixes of image names. If set, images without any of these prefixes are skipped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 1024)))]
    pub only: Vec<String>,
    /// Prefixes of image names. Images with any of these prefixes are skipped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 100), inner(length(min = 1, max = 1024)))]
    pub ignore: Vec<String>,
    /// Maximum number of images; the most used come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: Option<i64>,
    /// Nodes to fill. If absent, images go to the nodes on which the workloads' pods can run, and those of a list to every node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,
    /// The spread of a new image over the nodes. New nodes never wait.
    #[serde(default)]
    pub rollout: Rollout,
    /// The retention of images on the nodes.
    #[serde(default)]
    pub retention: Retention,
    /// The sealing of images: Auto, Never or Always.
    #[serde(default)]
    pub seal: Seal,
    /// Pull secrets for these images. The agents read only Secrets that are named here, and need a Role that allows it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub pull_secrets: Vec<PullSecret>,
    /// Keeps new nodes tainted until their first fill is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_gate: Option<NodeGate>,
    /// Stops planning: no image is added or removed while this is true.
    #[serde(default)]
    pub suspend: bool,
}

/// The source of images. Exactly one field is set.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("has(self.images) != has(self.workloads)").message("exactly one of images and workloads is required"))]
#[schemars(inline)]
pub struct Source {
    /// Image references.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 500),
        inner(length(min = 1, max = 1024), regex(pattern = "^[!-~]+$"))
    )]
    pub images: Option<Vec<String>>,
    /// Workloads whose images are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workloads: Option<Workloads>,
}

/// The workloads whose images are used.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.namespaces) || !has(self.namespaceSelector)").message("namespaces and namespaceSelector exclude each other"))]
#[schemars(inline)]
pub struct Workloads {
    /// Kinds of workloads.
    #[serde(default = "default_kinds")]
    #[schemars(length(min = 1, max = 7))]
    pub kinds: Vec<WorkloadKindName>,
    /// Names of namespaces. Without namespaces and namespaceSelector, all namespaces count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 500),
        inner(
            length(min = 1, max = 63),
            regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
        )
    )]
    pub namespaces: Option<Vec<String>>,
    /// Selects namespaces by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// Selects workloads by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

impl Default for Workloads {
    fn default() -> Self {
        Self {
            kinds: default_kinds(),
            namespaces: None,
            namespace_selector: None,
            selector: None,
        }
    }
}

fn default_kinds() -> Vec<WorkloadKindName> {
    vec![WorkloadKindName::Deployment]
}

/// The spread of a new image over the nodes.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct Rollout {
    /// One of Linear, Doubling and Immediate.
    #[serde(rename = "type", default)]
    pub kind: RolloutType,
    /// Linear: time within which the nodes start, spread evenly. Default: 2m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_DURATION), regex(pattern = DURATION))]
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')").message("must be at most 24h"))]
    pub window: Option<String>,
    /// Doubling: number of nodes that start first. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub start_nodes: Option<i64>,
    /// Doubling: time after which twice as many nodes have started. Default: 15s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = MAX_DURATION), regex(pattern = DURATION))]
    #[x_kube(validation = Rule::new("duration(self) <= duration('1h')").message("must be at most 1h"))]
    pub doubling_period: Option<String>,
}

/// A way for a new image to spread over the nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[schemars(inline)]
pub enum RolloutType {
    /// The nodes start evenly within a window.
    #[default]
    Linear,
    /// A few nodes start first, then twice as many after each period.
    Doubling,
    /// All nodes start at once.
    Immediate,
}

/// Keeps new nodes tainted until their first fill is complete.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[schemars(inline)]
pub struct NodeGate {
    /// Time after the creation of a node at which its taint is removed in any case.
    #[serde(default = "gate_timeout")]
    #[schemars(length(max = MAX_DURATION), regex(pattern = DURATION))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('10s') && duration(self) <= duration('24h')").message("must be between 10s and 24h"))]
    pub timeout: String,
}

impl Default for NodeGate {
    fn default() -> Self {
        Self {
            timeout: gate_timeout(),
        }
    }
}

fn gate_timeout() -> String {
    "10m".to_owned()
}

/// The observations of the controller.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct ImagePrefetchStatus {
    /// The generation of the spec that the status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Number of images.
    pub images: i64,
    /// Number of nodes in each state.
    pub nodes: NodeCounts,
    /// Ready, Progressing and Degraded.
    pub conditions: Vec<Condition>,
    /// The failures that concern the most nodes, at most 20.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<ImageFailure>,
}

/// Numbers of nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(default)]
#[schemars(inline)]
pub struct NodeCounts {
    /// Nodes that need an image of this ImagePrefetch, or have not reported yet whether they do.
    pub desired: i64,
    /// Nodes that have all their images.
    pub complete: i64,
    /// Nodes that pull, wait for their start or have not seen the latest images.
    pub updating: i64,
    /// Nodes on which an image failed.
    pub failing: i64,
    /// Nodes that have not reported for five minutes.
    pub unknown: i64,
}

/// An image that failed for one reason on some nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct ImageFailure {
    /// The image.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub image: String,
    /// The kind of failure in CamelCase, such as NotFound.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// The message of one of the nodes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Number of nodes on which it failed.
    pub nodes: i64,
    /// One of these nodes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub example_node: String,
}

impl Rollout {
    /// The window, or its default.
    pub fn window(&self) -> &str {
        self.window.as_deref().unwrap_or(WINDOW)
    }
}
