//! A Node as a watch reads it: the fields that decide which workloads can run on it. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::Deserialize;

use super::name::{Name, or_default};
use super::scheduling::{NodeMeta, NodeObject, NodeSpec, NodeStatus};
use crate::model::node_facts::NodeFacts;
use crate::planning::node_match;

/// The part of a Node that is read.
#[derive(Debug, Clone, Deserialize, Resource)]
#[resource(inherit = k8s_openapi::api::core::v1::Node)]
pub(crate) struct WatchedNode {
    metadata: ObjectMeta,
    #[serde(default, deserialize_with = "or_default")]
    spec: NodeSpec,
    #[serde(default, deserialize_with = "or_default")]
    status: NodeStatus,
}

impl WatchedNode {
    /// Identifies the object.
    pub(crate) fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The node and its facts, if the object has this name. Its age and the user's own start-up taints are set elsewhere.
    pub(crate) fn named(self, name: &str) -> Option<(node_match::Node, NodeFacts)> {
        let created = self.metadata.creation_timestamp.map(|at| at.0.to_string());
        let object = NodeObject {
            metadata: NodeMeta {
                name: Name::from(self.metadata.name.as_deref().unwrap_or_default()),
                creation_timestamp: Name::from(created.as_deref().unwrap_or_default()),
                labels: self.metadata.labels.unwrap_or_default(),
            },
            spec: self.spec,
            status: self.status,
        };
        let facts = object.facts();
        Some((object.named(name)?, facts))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn watched_node_equals_read_node() {
        let object = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": "n", "uid": "1", "creationTimestamp": "2026-01-02T03:04:05Z",
                "labels": {"kubernetes.io/os": "linux", "zone": "a"}, "managedFields": [{"manager": "kubelet"}]},
            "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}], "podCIDR": "10.0.0.0/24"},
            "status": {"allocatable": {"cpu": "4"}, "nodeInfo": {"operatingSystem": "linux", "architecture": "arm64"}}
        });
        let read: NodeObject = serde_json::from_value(object.clone()).unwrap();
        let facts = read.facts();
        assert!(facts.created.is_some() && facts.platform.is_some());
        let watched: WatchedNode = serde_json::from_value(object).unwrap();
        assert_eq!(
            watched.clone().named("n"),
            Some((read.named("n").unwrap(), facts))
        );
        assert_eq!(watched.named("m"), None);
    }
}
