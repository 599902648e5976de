//! How long to wait before another attempt, and which registries want to be left alone for now.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::FailureKind;

/// The longest that a registry's own wish (`Retry-After`) is obeyed.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(600);

/// The wait after a failed attempt, the first being 1: exponential with full jitter, so that nodes that failed together
/// do not come back together. A registry's own wish is a minimum, with the jitter on top.
pub(crate) fn wait(kind: FailureKind, attempt: u32, retry_after: Option<Duration>) -> Duration {
    let (base, cap) = match kind {
        FailureKind::RateLimited => (Duration::from_secs(8), Duration::from_secs(120)),
        // Long enough that a runtime's restart fits into the default number of retries.
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

/// Until when no pull of a registry is to start, because it answered `rate_limited`.
#[derive(Default)]
pub(super) struct RateLimits {
    until: Mutex<HashMap<String, Instant>>,
}

impl RateLimits {
    /// Holds the registry back for so long from now, unless it is held back for longer already.
    pub(super) fn hold(&self, registry: &str, wait: Duration) {
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let end = Instant::now() + wait;
        let entry = until.entry(registry.to_owned()).or_insert(end);
        *entry = end.max(*entry);
    }

    /// Whether the registry is held back now.
    pub(super) fn is_held(&self, registry: &str) -> bool {
        self.end(registry).is_some_and(|end| end > Instant::now())
    }

    /// Waits until the registry is not held back any more.
    pub(super) async fn released(&self, registry: &str) {
        while let Some(end) = self.end(registry).filter(|end| *end > Instant::now()) {
            tokio::time::sleep_until(end).await;
        }
    }

    fn end(&self, registry: &str) -> Option<Instant> {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.get(registry).copied()
    }
}
