//! Back-off between attempts.

use std::time::Duration;

use super::retry_after::RETRY_AFTER_MAX;
use crate::model::failure::FailureKind;

/// The wait after a failed attempt, of which the first is 1: exponential with full jitter, so that nodes that failed together do
/// not retry together. The wait that a registry requests is a minimum, with the jitter on top.
pub(crate) fn wait(kind: FailureKind, attempt: u32, retry_after: Option<Duration>) -> Duration {
    let (base, cap) = match kind {
        FailureKind::RateLimited => (Duration::from_secs(8), Duration::from_secs(120)),
        FailureKind::Unavailable => (Duration::from_secs(4), Duration::from_secs(60)),
        _ => (Duration::from_secs(1), Duration::from_secs(30)),
    };
    let ceiling = base
        .saturating_mul(2_u32.saturating_pow(attempt.saturating_sub(1)))
        .min(cap);
    match retry_after {
        Some(wish) => wish.min(RETRY_AFTER_MAX) + base.mul_f64(fastrand::f64()),
        None => ceiling.mul_f64(fastrand::f64()),
    }
}
