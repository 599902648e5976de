//! Back-off between attempts.

use std::time::Duration;

use super::retry_after::RETRY_AFTER_MAX;
use crate::model::failure::FailureKind;

/// The pause after so many failures in a row, of which the first is 1: from the first to the longest, doubled each time, less up to
/// half of it as jitter.
pub(crate) fn pause((first, longest): (Duration, Duration), failures: u32) -> Duration {
    let doubled = first.saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)));
    shortened(doubled.min(longest), 0.5)
}

/// A time less up to this part of it as jitter.
pub(crate) fn shortened(time: Duration, part: f64) -> Duration {
    time.mul_f64(1.0 - fastrand::f64() * part)
}

/// A time more or less up to this part of it as jitter.
pub(crate) fn around(time: Duration, part: f64) -> Duration {
    time.mul_f64(1.0 + (2.0 * fastrand::f64() - 1.0) * part)
}

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
