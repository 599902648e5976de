//! The plan of pulls and their order, and the facts that it is made of.
//!
//! It never pulls anything.

pub mod disk_budget;
pub mod disk_marks;
pub mod node_match;
pub mod plan;
pub mod registry_probe;
pub mod rollout;
