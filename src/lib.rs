//! harpoon puts the container images that a cluster's workloads use onto a node before a pod needs them.
//!
//! The flow has one direction: [`discovery`] finds candidates, [`planning`] orders and filters them, [`pulling`] has a
//! [`runtime`] pull them, [`report`] says what became of each. `ARCHITECTURE.md` is the map.

pub mod app;
pub mod cli;
pub mod credentials;
pub mod discovery;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fake_http;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod kube_api;
pub mod model;
pub mod planning;
pub mod pulling;
pub mod registry;
pub mod report;
pub mod retry;
pub mod runtime;
