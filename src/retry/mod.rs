//! Back-off between attempts, polling, a limit for each registry, locks by a key, one task for many waiters.
//!
//! It never does the work itself.

pub(crate) mod backoff;
pub(crate) mod keyed;
pub(crate) mod limiter;
pub(crate) mod polling;
pub(crate) mod retry_after;
pub(crate) mod single_flight;
