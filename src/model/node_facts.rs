//! Facts about the node that do not affect which workloads can run on it. No I/O.

use std::time::{Duration, SystemTime};

use crate::model::platform::Platform;

/// The facts about this node that do not affect which workloads can run on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// The time when it joined the cluster.
    pub created: Option<SystemTime>,
    /// The platform that its images are for.
    pub platform: Option<Platform>,
}

impl NodeFacts {
    /// The time since it joined the cluster. A creation time in the future means a new node and a slow clock.
    pub fn age(&self) -> Option<Duration> {
        let age = SystemTime::now().duration_since(self.created?);
        Some(age.unwrap_or_default())
    }
}
