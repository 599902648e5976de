//! Values that every other module uses: references, candidates, failure kinds, outcomes. No I/O, no async.
//!
//! It never uses another module of the crate.

pub mod candidate;
pub mod failure;
pub mod reference;
pub mod text;
pub mod workload_kind;
