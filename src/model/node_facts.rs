//! Facts of the node that do not decide which workloads fit it. No I/O.

use std::time::{Duration, SystemTime};

use crate::model::platform::Platform;

/// What is known of this node besides what keeps workloads off it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// When it joined the cluster.
    pub created: Option<SystemTime>,
    /// What images have to be made for to run on it.
    pub platform: Option<Platform>,
}

impl NodeFacts {
    /// The time since it joined the cluster. A node from the future is a new one on a machine whose clock is late.
    pub fn age(&self) -> Option<Duration> {
        let age = SystemTime::now().duration_since(self.created?);
        Some(age.unwrap_or_default())
    }
}
