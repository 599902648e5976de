//! Reads this node and checks each workload against it while the workload's template is decoded.
//!
//! Only the result is kept of a template, so that memory use does not depend on the size of templates. Each RuntimeClass is read
//! once, when a template first names it. Objects that cannot be read filter nothing: an unneeded image costs disk space, a
//! missing one delays a pod.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::inventory::Class;
use super::object::Facts;
use super::requirements::workload_requirements;
use super::scheduling::{NodeObject, RuntimeClass, Scheduling};
use crate::kube_api::connect::Cluster;
use crate::kube_api::error::ListError;
use crate::kube_api::get::{self, GetFault};
use crate::model::dns_name::is_subdomain;
use crate::model::node_facts::NodeFacts;
use crate::model::workload_kind::WorkloadKind;
use crate::planning::node_match;

/// Maximum number of RuntimeClasses that are read. A cluster has a handful.
const MAX_CLASSES: usize = 100;

/// The reason why a Node or a RuntimeClass cannot be used. Quotes nothing from the object.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The object does not exist.
    #[error("does not exist")]
    Missing,
    /// RBAC does not allow it.
    #[error(
        "not allowed to read it: needs the RBAC verb \"get\" on \"{0}\" in apiGroup \"{1}\", granted by a ClusterRole and a ClusterRoleBinding"
    )]
    Forbidden(&'static str, &'static str),
    /// The API server refuses the credentials, or no longer accepts them.
    #[error("the API server does not accept the credentials (401 Unauthorized)")]
    Unauthorized,
    /// The request failed.
    #[error("failed to read it: {0}")]
    Failed(ListError),
    /// The response is too large.
    #[error("it is larger than 1.5 MiB")]
    TooLarge,
    /// The response is not the object.
    #[error("unexpected response from the API server")]
    Garbage,
    /// There are too many RuntimeClasses.
    #[error("not read: the workloads name more than 100 RuntimeClasses")]
    TooMany,
}

/// A problem with this node; the rest of discovery succeeded.
#[derive(Debug, thiserror::Error)]
pub enum NodeWarning {
    /// The node could not be read, so node filtering is disabled.
    #[error("node {name}: {error}; node filtering disabled")]
    Node {
        /// Its name.
        name: String,
        /// The cause. Part of the message already: a warning is one line.
        error: NodeError,
    },
    /// A RuntimeClass that a template names cannot be used.
    #[error("RuntimeClass {name}: {error}; ignored for node filtering")]
    RuntimeClass {
        /// Its name.
        name: String,
        /// The cause. Part of the message already: a warning is one line.
        error: NodeError,
    },
}

/// The node that the workloads are checked against.
pub(super) struct LocalNode {
    pub(super) facts: NodeFacts,
    node: node_match::Node,
    /// RuntimeClasses; `None` for one that cannot be used.
    classes: HashMap<Box<str>, Option<Scheduling>>,
    /// The reasons, each once: thousands of workloads fail for a few reasons.
    messages: HashSet<Arc<str>>,
    /// True if the API server stopped answering, which the lists report.
    gone: bool,
    /// The problems with this node. Logged already.
    pub(super) warnings: Vec<NodeWarning>,
}

impl LocalNode {
    /// Reads the Node.
    pub(super) async fn read(
        cluster: &Cluster,
        name: &str,
        startup_taints: &[String],
    ) -> Result<Self, NodeError> {
        let bytes = get::object(cluster, &format!("/api/v1/nodes/{name}")).await;
        let bytes = bytes.map_err(|fault| NodeError::of(fault, "nodes", ""))?;
        let object = decode::<NodeObject>(&bytes)?;
        let facts = object.facts();
        let mut node = object.named(name).ok_or(NodeError::Garbage)?;
        node.age = facts.age();
        node.startup_taints = startup_taints.to_vec();
        Ok(Self::new(node, facts))
    }

    fn new(node: node_match::Node, facts: NodeFacts) -> Self {
        Self {
            facts,
            node,
            classes: HashMap::new(),
            messages: HashSet::new(),
            gone: false,
            warnings: Vec::new(),
        }
    }

    /// The reason why the workload's pods cannot run on this node, if they cannot.
    pub(super) async fn judge(
        &mut self,
        cluster: &Cluster,
        kind: WorkloadKind,
        facts: &Facts,
    ) -> Option<Arc<str>> {
        // A finished workload is not counted, so its RuntimeClass is not read.
        if facts.finished {
            return None;
        }
        let class = facts.template.runtime_class_name.as_str();
        self.know(cluster, class).await;
        let class = self.classes.get(class).and_then(Option::as_ref);
        let requirements = workload_requirements(kind, facts, class);
        let message = node_match::mismatch(&requirements, &self.node)?;
        if let Some(known) = self.messages.get(message.as_str()) {
            return Some(Arc::clone(known));
        }
        let message: Arc<str> = Arc::from(message);
        self.messages.insert(Arc::clone(&message));
        Some(message)
    }

    /// Reads the RuntimeClass unless this was tried already.
    async fn know(&mut self, cluster: &Cluster, name: &str) {
        if !is_subdomain(name) || self.classes.contains_key(name) || self.gone {
            return;
        }
        // One more than the limit is recorded, so that the warning is logged once.
        let class = match self.classes.len() {
            0..MAX_CLASSES => runtime_class(cluster, name).await,
            MAX_CLASSES => Err(NodeError::TooMany),
            _ => return,
        };
        self.gone = match &class {
            Err(NodeError::Failed(error)) => error.is_unreachable(),
            error => matches!(error, Err(NodeError::Unauthorized)),
        };
        let class = class.map_err(|error| {
            let name = name.to_owned();
            let warning = NodeWarning::RuntimeClass { name, error };
            tracing::warn!("{warning}");
            self.warnings.push(warning);
        });
        self.classes.insert(name.into(), class.ok());
    }
}

/// Reads RuntimeClasses, one after the other. One that cannot be read is `None`; the reason is logged.
pub async fn read_classes(
    cluster: &Cluster,
    names: impl IntoIterator<Item = String>,
) -> Vec<(String, Option<Class>)> {
    let mut read = Vec::new();
    for name in names {
        let class = match runtime_class(cluster, &name).await {
            Ok(class) => Some(Class(Some(class))),
            Err(NodeError::Missing) => Some(Class(None)),
            Err(error) => {
                let name = name.clone();
                tracing::warn!("{}", NodeWarning::RuntimeClass { name, error });
                None
            }
        };
        read.push((name, class));
    }
    read
}

/// RuntimeClasses are in `node.k8s.io/v1` since Kubernetes 1.20.
async fn runtime_class(cluster: &Cluster, name: &str) -> Result<Scheduling, NodeError> {
    let path = |version| format!("/apis/node.k8s.io/{version}/runtimeclasses/{name}");
    let answer = match get::object(cluster, &path("v1")).await {
        Err(GetFault::NotFound) => get::object(cluster, &path("v1beta1")).await,
        answer => answer,
    };
    let bytes = answer.map_err(|fault| NodeError::of(fault, "runtimeclasses", "node.k8s.io"))?;
    decode(&bytes).map(|class: RuntimeClass| class.scheduling)
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, NodeError> {
    serde_json::from_slice(bytes).map_err(|_| NodeError::Garbage)
}

impl NodeError {
    fn of(fault: GetFault, plural: &'static str, group: &'static str) -> Self {
        match fault {
            GetFault::NotFound => Self::Missing,
            GetFault::Forbidden => Self::Forbidden(plural, group),
            GetFault::Unauthorized => Self::Unauthorized,
            GetFault::TooLarge => Self::TooLarge,
            GetFault::Failed(error) => Self::Failed(error),
        }
    }
}

#[cfg(test)]
mod tests;
