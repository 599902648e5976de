//! What is pulled and in which order: the plan, and the facts that it is made of.
//!
//! It never pulls anything.

pub mod disk_budget;
pub mod node_match;
pub mod plan;
pub mod registry_probe;
