//! Values that every other module uses: references, candidates, failure kinds, outcomes. No I/O, no async.
//!
//! It never uses another module of the crate.

pub mod candidate;
pub mod digest;
pub mod dns_name;
pub mod failure;
pub(crate) mod go_duration;
pub mod image_size;
pub mod node_facts;
pub mod outcome;
pub mod platform;
pub mod reference;
pub mod seal;
pub mod stored_image;
pub mod text;
pub mod workload_kind;
