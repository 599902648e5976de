//! What a source finds: an image, and who uses it. Plain values, no I/O.

use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A workload of the cluster, shown as `default/Deployment/web`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Workload {
    /// The namespace it lives in. Shared, as is the name, with whoever knows it too: a large cluster has many.
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

/// That a workload uses an image, and with how many pods.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// Who uses it. Shared, because a workload often uses several images and a cluster has thousands of both.
    pub workload: Arc<Workload>,
    /// The number of pods that the workload is meant to have; 0 when it is scaled to zero.
    pub pods: u64,
    /// Why those pods cannot run on this node; `None` where they can, or where nobody asked.
    pub mismatch: Option<Arc<str>>,
    /// Whether its template wants the image asked for at every start (`imagePullPolicy: Always`).
    pub always: bool,
}

/// An image that some source names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidate {
    /// The reference as the user wrote it, which may be malformed. Shared with all that is made of it.
    pub image: Arc<str>,
    /// Who uses it; `None` where the source does not know (an images file, an argument).
    pub uses: Option<Vec<Use>>,
}

impl Candidate {
    /// A candidate from an explicit list: nothing is known of who uses it.
    pub fn listed(image: impl Into<Arc<str>>) -> Self {
        Self {
            image: image.into(),
            uses: None,
        }
    }
}
