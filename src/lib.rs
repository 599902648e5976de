//! harpoon puts the container images that a cluster's workloads use onto a node before a pod needs them.
//!
//! The flow has one direction: [`source`] finds candidates, [`plan`] orders and filters them, [`pull`] has a
//! [`runtime`] pull them, [`report`] says what became of each. `ARCHITECTURE.md` is the map.

pub mod candidate;
pub mod cli;
pub mod config;
pub mod disk;
pub mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod image;
pub mod inquiry;
pub mod manifests;
pub mod plan;
pub mod printable;
pub mod pull;
pub mod registry;
pub mod relevance;
pub mod report;
pub mod runtime;
pub mod source;
pub mod stagger;
