//! Runs a plan on a runtime, once or continuously, and enforces the disk budget.
//!
//! It never knows a concrete runtime or Kubernetes.

pub mod continuous;
mod disk_guard;
pub mod executor;
mod outage;
mod queue;
mod run;
#[cfg(test)]
mod scripted;
