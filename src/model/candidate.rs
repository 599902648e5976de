//! The result of a source: images and the workloads that use them. Plain values, no I/O.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A workload of the cluster, shown as `default/Deployment/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// Its namespace. Shared, like the name, because a large cluster has many.
    pub namespace: Arc<str>,
    /// Its kind as Kubernetes spells it, such as `Deployment`.
    pub kind: &'static str,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.namespace, self.kind, self.name)
    }
}

impl Serialize for Workload {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// A workload's use of an image, with the number of pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// The workload. Shared, because a workload often uses several images and a cluster has thousands of both.
    pub workload: Arc<Workload>,
    /// The desired number of pods; 0 if it is scaled to zero.
    pub pods: u64,
    /// The reason why those pods cannot run on this node; `None` if they can, or if this is not checked.
    pub mismatch: Option<Arc<str>>,
    /// True if its template has the pull policy `Always` for the image (`imagePullPolicy: Always`).
    pub always: bool,
}

/// An image that a source names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidate {
    /// The reference as the user wrote it, which may be malformed. Shared, to avoid copies.
    pub image: Arc<str>,
    /// The workloads that use it; `None` if the source does not know them (an images file, an argument).
    pub uses: Option<Vec<Use>>,
}

impl Candidate {
    /// A candidate from an explicit list, without any known workload.
    pub fn listed(image: impl Into<Arc<str>>) -> Self {
        Self {
            image: image.into(),
            uses: None,
        }
    }
}
