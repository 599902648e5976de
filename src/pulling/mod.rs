//! Runs a plan on a runtime and enforces the disk budget.
//!
//! It never knows a concrete runtime or Kubernetes.

mod disk_guard;
pub mod executor;
mod outage;
mod queue;
