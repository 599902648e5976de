//! Shares one run of a program between concurrent lookups.
//!
//! Memory is bounded: a registry's entry exists while a lookup waits for it, and a few outcomes are kept longer.

use std::collections::VecDeque;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::keyed::Keyed;

/// Maximum number of outcomes kept for later lookups; the oldest is dropped first.
const KEPT_MAX: usize = 16;
/// Maximum time for which a failure is kept; a later lookup runs the program again.
pub(crate) const FAILURE_KEPT_MAX: Duration = Duration::from_secs(5);

/// Runs that lookups share.
pub(crate) struct SingleFlight<T> {
    registries: Keyed<String, Lane<T>>,
    kept: std::sync::Mutex<VecDeque<Kept<T>>>,
}

/// The queue of one registry, and its last run.
type Lane<T> = Mutex<Option<Landed<T>>>;

/// A finished run.
struct Landed<T> {
    key: String,
    outcome: Result<T, String>,
    ended: Instant,
    keep: Duration,
}

/// A lane whose last run is still valid.
struct Kept<T> {
    lane: Arc<Lane<T>>,
    until: Instant,
}

impl<T> Default for SingleFlight<T> {
    fn default() -> Self {
        Self {
            registries: Keyed::default(),
            kept: std::sync::Mutex::default(),
        }
    }
}

impl<T: Clone> SingleFlight<T> {
    /// The outcome of `run` for the key, of another lookup's run that this one waited for, or the `cached` value.
    ///
    /// Runs for one registry are sequential, because the first may fill the cache for the others. A success is kept for `keep`. A
    /// failure is kept for as long as it took, at most [`FAILURE_KEPT_MAX`], and for the whole registry, so that a program that
    /// hangs does not delay each image in turn. Dropping the future ends its run, and the next lookup in the queue starts its
    /// own.
    pub(crate) async fn share(
        &self,
        registry: &str,
        key: &str,
        keep: Duration,
        cached: impl FnOnce() -> Option<T>,
        run: impl Future<Output = Result<T, String>>,
    ) -> Result<T, String> {
        let arrived = Instant::now();
        self.forget(arrived);
        let lane = self.registries.get(registry.to_owned());
        let mut landed = lane.lock().await;
        if let Some(value) = cached() {
            return Ok(value);
        }
        if let Some(last) = landed.as_ref().filter(|last| last.serves(key, arrived)) {
            return last.outcome.clone();
        }
        let began = Instant::now();
        let outcome = run.await;
        let ended = Instant::now();
        let keep = match outcome {
            Ok(_) => keep,
            Err(_) => (ended - began).min(FAILURE_KEPT_MAX),
        };
        *landed = Some(Landed {
            key: key.to_owned(),
            outcome: outcome.clone(),
            ended,
            keep,
        });
        drop(landed);
        self.keep(lane, ended + keep);
        outcome
    }

    /// Keeps a lane after its last waiter has left.
    fn keep(&self, lane: Arc<Lane<T>>, until: Instant) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| !Arc::ptr_eq(&kept.lane, &lane));
        kept.push_back(Kept { lane, until });
        if kept.len() > KEPT_MAX {
            kept.pop_front();
        }
    }

    /// Drops the lanes whose last run is no longer valid for new lookups.
    fn forget(&self, now: Instant) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|kept| now < kept.until);
    }
}

impl<T> Landed<T> {
    /// Returns whether the outcome is valid for a lookup that arrived then. A failure applies to the whole registry.
    fn serves(&self, key: &str, arrived: Instant) -> bool {
        let same = self.outcome.is_err() || self.key == key;
        same && arrived < self.ended + self.keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    async fn ask(
        flights: &SingleFlight<u32>,
        runs: &AtomicU32,
        key: &str,
        keep: u64,
        fails: bool,
    ) -> Result<u32, String> {
        let run = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            let run = runs.fetch_add(1, Ordering::Relaxed);
            if fails {
                Err("broken".to_owned())
            } else {
                Ok(run)
            }
        };
        let keep = Duration::from_secs(keep);
        flights.share("r.example", key, keep, || None, run).await
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_lookups_share_one_run() {
        let (flights, runs) = (SingleFlight::default(), AtomicU32::new(0));
        let both = tokio::join!(
            ask(&flights, &runs, "a", 0, false),
            ask(&flights, &runs, "a", 0, false)
        );
        assert_eq!(both, (Ok(0), Ok(0)));
        assert_eq!(ask(&flights, &runs, "a", 0, false).await, Ok(1));
    }

    #[tokio::test(start_paused = true)]
    async fn keys_run_separately_and_keep_answers() {
        let (flights, runs) = (SingleFlight::default(), AtomicU32::new(0));
        let both = tokio::join!(
            ask(&flights, &runs, "a", 0, false),
            ask(&flights, &runs, "b", 30, false)
        );
        assert_eq!(both, (Ok(0), Ok(1)));
        assert_eq!(ask(&flights, &runs, "b", 30, false).await, Ok(1));
        tokio::time::sleep(Duration::from_secs(31)).await;
        assert_eq!(ask(&flights, &runs, "b", 30, false).await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn failure_is_shared_across_registry_briefly() {
        let (flights, runs) = (SingleFlight::default(), AtomicU32::new(0));
        assert!(ask(&flights, &runs, "a", 0, true).await.is_err());
        assert!(ask(&flights, &runs, "b", 0, true).await.is_err());
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        tokio::time::sleep(FAILURE_KEPT_MAX).await;
        assert!(ask(&flights, &runs, "b", 0, true).await.is_err());
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_run_passes_to_next_waiter() {
        let (flights, runs) = (SingleFlight::default(), AtomicU32::new(0));
        let brief = Duration::from_secs(1);
        let (dropped, next) = tokio::join!(
            tokio::time::timeout(brief, ask(&flights, &runs, "a", 0, false)),
            ask(&flights, &runs, "a", 0, false)
        );
        assert!(dropped.is_err());
        assert_eq!(next, Ok(0));
    }

    #[tokio::test(start_paused = true)]
    async fn kept_outcomes_are_bounded() {
        let flights = SingleFlight::default();
        for registry in 0..3 * KEPT_MAX {
            let run = async { Ok(registry) };
            let keep = Duration::from_secs(60);
            let name = registry.to_string();
            let shared = flights.share(&name, "a", keep, || None, run).await;
            assert_eq!(shared, Ok(registry));
        }
        let kept = || flights.kept.lock().map(|kept| kept.len());
        assert_eq!(kept().ok(), Some(KEPT_MAX));
        flights.forget(Instant::now() + Duration::from_secs(60));
        assert_eq!(kept().ok(), Some(0));
    }
}
