//! When work is done again, and how much of it at once: back-off, limits for each registry, one task for many waiters.
//!
//! It never does the work itself.

pub(crate) mod backoff;
pub(crate) mod limiter;
pub(crate) mod single_flight;
