//! harpoon pulls the container images of a cluster's workloads onto a node before a pod needs them.
//!
//! Data flows in one direction: [`discovery`] finds candidates, [`planning`] orders and filters them, [`pulling`] pulls them with
//! a [`runtime`], [`report`] shows the outcome of each. `ARCHITECTURE.md` describes the modules.

pub mod api;
pub mod app;
pub mod cli;
pub mod credentials;
pub mod discovery;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod fake_http;
pub mod fill;
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
