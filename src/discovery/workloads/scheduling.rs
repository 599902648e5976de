//! Deserializes the scheduling fields of Nodes, pod templates and RuntimeClasses into the plain values of [`node_match`]. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::name::{Name, or_default};
use crate::model::node_facts::NodeFacts;
use crate::model::platform::Platform;
use crate::planning::node_match;

/// `spec.affinity` of a pod: the required node affinity is read, preferences are not.
#[derive(Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Affinity {
    #[serde(default, deserialize_with = "or_default")]
    node_affinity: NodeAffinity,
}

#[derive(Debug, PartialEq, Default, Deserialize)]
struct NodeAffinity {
    #[serde(default, rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<NodeSelector>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct NodeSelector {
    #[serde(default, deserialize_with = "or_default")]
    node_selector_terms: Vec<Term>,
}

#[derive(Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Term {
    #[serde(default, deserialize_with = "or_default")]
    match_expressions: Vec<Expression>,
    #[serde(default, deserialize_with = "or_default")]
    match_fields: Vec<Expression>,
}

#[derive(Debug, PartialEq, Default, Deserialize)]
struct Expression {
    #[serde(default, deserialize_with = "or_default")]
    key: String,
    #[serde(default, deserialize_with = "or_default")]
    operator: String,
    #[serde(default, deserialize_with = "or_default")]
    values: Vec<String>,
}

/// An entry of `spec.tolerations`.
#[derive(Debug, PartialEq, Default, Deserialize)]
pub(super) struct Toleration {
    #[serde(default, deserialize_with = "or_default")]
    key: String,
    #[serde(default, deserialize_with = "or_default")]
    operator: String,
    #[serde(default, deserialize_with = "or_default")]
    value: String,
    #[serde(default, deserialize_with = "or_default")]
    effect: String,
}

/// `spec.os` of a pod.
#[derive(Debug, PartialEq, Default, Deserialize)]
pub(super) struct PodOs {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: Name,
}

/// `resources` of a container.
#[derive(Debug, PartialEq, Default, Deserialize)]
pub(super) struct Resources {
    #[serde(default, deserialize_with = "or_default")]
    limits: BTreeMap<String, Quantity>,
    #[serde(default, deserialize_with = "or_default")]
    requests: BTreeMap<String, Quantity>,
}

/// A quantity, which the API server writes as text.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub(super) enum Quantity {
    Text(String),
    Number(f64),
    Other(IgnoredAny),
}

/// The scheduling constraints that a RuntimeClass adds to the pods that name it (`scheduling`).
#[derive(Debug, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Scheduling {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) node_selector: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) tolerations: Vec<Toleration>,
}

/// The part of a RuntimeClass that is read, the same in `node.k8s.io/v1` and `v1beta1`.
#[derive(Debug, Deserialize)]
pub(super) struct RuntimeClass {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) scheduling: Scheduling,
}

/// The part of a Node that is read.
#[derive(Debug, Deserialize)]
pub(super) struct NodeObject {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) metadata: NodeMeta,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) spec: NodeSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeMeta {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) creation_timestamp: Name,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
pub(super) struct NodeSpec {
    #[serde(default, deserialize_with = "or_default")]
    taints: Vec<Taint>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeStatus {
    #[serde(default, deserialize_with = "or_default")]
    node_info: NodeInfo,
    #[serde(default, deserialize_with = "or_default")]
    allocatable: BTreeMap<String, IgnoredAny>,
}

/// The node information that the kubelet reports.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NodeInfo {
    #[serde(default, deserialize_with = "or_default")]
    operating_system: Name,
    #[serde(default, deserialize_with = "or_default")]
    architecture: Name,
    /// Name and version, as in `containerd://1.7.2`.
    #[serde(default, deserialize_with = "or_default")]
    pub(super) container_runtime_version: Name,
}

impl NodeInfo {
    /// The node's platform; `None` if the kubelet has not reported it yet.
    pub(super) fn platform(&self) -> Option<Platform> {
        let (os, architecture) = (self.operating_system.as_str(), self.architecture.as_str());
        Platform::parse(&format!("{os}/{architecture}"))
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Taint {
    #[serde(default, deserialize_with = "or_default")]
    key: String,
    #[serde(default, deserialize_with = "or_default")]
    value: String,
    #[serde(default, deserialize_with = "or_default")]
    effect: String,
}

impl NodeObject {
    /// Its age and platform.
    pub(super) fn facts(&self) -> NodeFacts {
        let label = |key: &str| self.metadata.labels.get(key).map_or("", String::as_str);
        let (os, architecture) = (label("kubernetes.io/os"), label("kubernetes.io/arch"));
        let labelled = || Platform::parse(&format!("{os}/{architecture}"));
        let created = self.metadata.creation_timestamp.as_str();
        NodeFacts {
            created: humantime::parse_rfc3339(created).ok(),
            platform: self.status.node_info.platform().or_else(labelled),
        }
    }

    /// The node, if the object has this name. Its age and the user's own start-up taints are set elsewhere.
    pub(super) fn named(self, name: &str) -> Option<node_match::Node> {
        let label = self.metadata.labels.get("kubernetes.io/os");
        let os = match self.status.node_info.operating_system.as_str() {
            "" => label.map_or("", String::as_str),
            os => os,
        }
        .to_owned();
        let taints = self.spec.taints.into_iter().map(|taint| node_match::Taint {
            key: taint.key,
            value: taint.value,
            effect: taint.effect,
        });
        (self.metadata.name.as_str() == name).then(|| node_match::Node {
            name: name.to_owned(),
            labels: self.metadata.labels,
            taints: taints.collect(),
            os,
            // A quantity of zero counts too: the device plugin may be restarting, or its devices be unhealthy.
            resources: self.status.allocatable.into_keys().collect(),
            age: None,
            startup_taints: Vec::new(),
        })
    }
}

impl Affinity {
    /// The terms of the required node affinity, if there is any.
    pub(super) fn required(&self) -> Option<Vec<node_match::Term>> {
        let required = self.node_affinity.required.as_ref()?;
        Some(
            required
                .node_selector_terms
                .iter()
                .map(Term::plain)
                .collect(),
        )
    }
}

impl Resources {
    /// The extended resources. A limit alone counts as a request, as the API server's default does.
    pub(super) fn extended(&self) -> impl Iterator<Item = (&str, &Quantity)> {
        let all = self.limits.iter().chain(&self.requests);
        let all = all.map(|(name, quantity)| (name.as_str(), quantity));
        all.filter(|(name, _)| is_extended_resource(name))
    }
}

/// Kubernetes' rule `IsExtendedResourceName`: a name with a domain that is not one of Kubernetes' own. The API server rejects
/// containers with a malformed name.
fn is_extended_resource(name: &str) -> bool {
    name.contains('/') && !name.contains("kubernetes.io/") && !name.starts_with("requests.")
}

impl Quantity {
    pub(super) fn is_zero(&self) -> bool {
        match self {
            Self::Text(text) => text == "0",
            Self::Number(number) => *number == 0.0,
            Self::Other(_) => false,
        }
    }
}

impl Term {
    fn plain(&self) -> node_match::Term {
        node_match::Term {
            labels: self
                .match_expressions
                .iter()
                .map(Expression::plain)
                .collect(),
            fields: self.match_fields.iter().map(Expression::plain).collect(),
        }
    }
}

impl Expression {
    fn plain(&self) -> node_match::Expression {
        node_match::Expression {
            key: self.key.clone(),
            operator: self.operator.clone(),
            values: self.values.clone(),
        }
    }
}

impl Toleration {
    pub(super) fn plain(&self) -> node_match::Toleration {
        node_match::Toleration {
            key: self.key.clone(),
            operator: self.operator.clone(),
            value: self.value.clone(),
            effect: self.effect.clone(),
        }
    }
}
