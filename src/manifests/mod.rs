//! The Kubernetes objects that install harpoon on a cluster, as values and as YAML. Pure: no I/O, no clock, no async.
//!
//! This is where they are written down. What is in `deploy/` is made from here, or is compared with it by a test. No field is newer than
//! Kubernetes 1.20.

use serde_json::{Value, json};

use crate::discovery::workloads::Namespaces;
use crate::model::workload_kind::WorkloadKind;

pub mod options;
mod pod;
mod rbac;
mod yaml;

pub use options::{Flag, Typed};
pub use yaml::print;

/// How harpoon is to be installed.
#[derive(Debug, Clone)]
pub struct Options {
    /// What the objects are called.
    pub name: String,
    /// Where they are.
    pub namespace: String,
    /// The image with the program.
    pub image: String,
    /// The Secret that image is pulled with.
    pub image_pull_secret: Option<String>,
    /// Which images it pulls.
    pub images: Images,
    /// The runtime's socket.
    pub socket: Socket,
    /// Whether images of workloads that cannot run on a node are left out there.
    pub node_relevance: bool,
    /// A Secret of the type `kubernetes.io/dockerconfigjson` to pull with.
    pub registry_secret: Option<String>,
    /// The cloud whose credential provider plugin is on the nodes.
    pub cloud: Option<Cloud>,
    /// How it stands among other pods.
    pub priority: Priority,
    /// Settings of `harpoon run`: variable and value.
    pub settings: Vec<(&'static str, String)>,
}

/// Which images are pulled.
#[derive(Debug, Clone)]
pub enum Images {
    /// These.
    Listed(Vec<String>),
    /// Those of the cluster's workloads.
    Cluster {
        /// The namespaces that are scanned.
        namespaces: Namespaces,
        /// The kinds that are scanned.
        workloads: Vec<WorkloadKind>,
        /// The pull secrets that may be read, where the workloads' own are used; all where none is named.
        pull_secrets: Option<Vec<String>>,
    },
}

/// The socket of a container runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// Where it is.
    pub path: String,
    /// As whom it can be opened.
    pub access: Access,
}

/// As whom a socket can be opened. Its mode is 0660 with every runtime: owner and group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As a member of this group.
    Group(u32),
    /// As root, because nobody can know the number of the group.
    Root,
}

/// A cloud whose nodes have a credential provider plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cloud {
    /// Amazon Linux 2023.
    Eks,
    /// Container-Optimized OS.
    Gke,
    /// Ubuntu and Azure Linux.
    Aks,
}

/// The PriorityClass of the pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Priority {
    /// One that is installed too: before workloads in the queue, and never evicting one.
    Own,
    /// One that is there.
    Named(String),
    /// None.
    Unset,
}

/// The objects, in the order in which they are to be created.
pub fn objects(options: &Options) -> Vec<Value> {
    let mut objects = Vec::new();
    if options.priority == Priority::Own {
        objects.push(priority_class(options));
    }
    match &options.images {
        Images::Listed(images) => objects.push(images_file(options, images)),
        Images::Cluster { .. } => objects.extend(rbac::objects(options)),
    }
    objects.push(pod::daemon_set(options));
    objects
}

fn priority_class(options: &Options) -> Value {
    let why = "Before workloads in the scheduler's queue, so that their images are being pulled when they come; evicts nobody";
    json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": options.metadata(&options.name, None),
        "value": 1_000_000, "preemptionPolicy": "Never", "globalDefault": false, "description": why})
}

fn images_file(options: &Options, images: &[String]) -> Value {
    let lines: String = images.iter().map(|image| format!("{image}\n")).collect();
    let metadata = options.metadata(&options.images_name(), Some(&options.namespace));
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"images": lines}})
}

impl Options {
    /// What all objects of one installation have in common, and no other installation's have.
    fn labels(&self) -> Value {
        json!({"app.kubernetes.io/name": "harpoon", "app.kubernetes.io/instance": self.name})
    }

    fn metadata(&self, name: &str, namespace: Option<&str>) -> Value {
        let mut metadata = json!({"name": name, "labels": self.labels()});
        if let Some(namespace) = namespace {
            metadata["namespace"] = json!(namespace);
        }
        metadata
    }

    /// The ConfigMap with the list of images.
    fn images_name(&self) -> String {
        format!("{}-images", self.name)
    }

    /// The Secret with the value of `PRIVATE_REGISTRY_AUTH`.
    fn private_registry_name(&self) -> String {
        format!("{}-private-registry", self.name)
    }
}
