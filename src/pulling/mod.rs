//! Runs a plan on a runtime and keeps the disk budget meanwhile.
//!
//! It never knows a concrete runtime or Kubernetes.

mod disk_guard;
pub mod executor;
mod outage;
mod queue;
