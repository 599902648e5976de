//! Outages of the runtime, such as its restart: no attempt is used up before it answers again.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::model::failure::FailureKind;
use crate::model::reference::Reference;
use crate::model::text::sanitize;
use crate::retry::polling::Polling;
use crate::runtime::image_service::{ImageService, RuntimeError};

/// Maximum wait for the end of one outage. After it, attempts are made again and report the error.
const LONGEST: Duration = Duration::from_secs(45);
const POLLING: Polling = Polling {
    first: Duration::from_millis(500),
    longest: Duration::from_millis(500),
};

/// The time since when the runtime may be unavailable.
#[derive(Default)]
pub(crate) struct Outage(Mutex<Option<Doubt>>);

#[derive(Clone, Copy)]
struct Doubt {
    since: Instant,
    told: bool,
}

impl Outage {
    /// Records that an attempt failed as it does when the runtime stops or its registry cannot be reached.
    pub(crate) fn suspect(&self) {
        self.lock().get_or_insert(Doubt {
            since: Instant::now(),
            told: false,
        });
    }

    /// Waits until the runtime answers a request, at most for the limit of an outage; sends no request unless an outage is
    /// suspected.
    pub(crate) async fn over(&self, service: &impl ImageService, image: &Reference) {
        let Some(since) = self.since() else {
            return;
        };
        let ask = || async {
            if self.since().is_none() {
                return Ok(());
            }
            match service.status(image).await {
                Err(error) if is_silence(error.kind) => Err(error),
                // It answers; the content does not matter.
                _ => {
                    *self.lock() = None;
                    Ok(())
                }
            }
        };
        let tell = |error: &RuntimeError, _| {
            if self.is_news() {
                warn!(
                    "the container runtime is not responding, waiting up to {}: {}",
                    humantime::format_duration(LONGEST),
                    sanitize(&error.message)
                );
            }
        };
        // If it stays unavailable, the following attempts report the error.
        let _ = POLLING
            .ask(Some(since + LONGEST), ask, |_| true, tell)
            .await;
    }

    fn since(&self) -> Option<Instant> {
        self.lock().map(|doubt| doubt.since)
    }

    /// Returns whether this outage has not been reported yet.
    fn is_news(&self) -> bool {
        let mut doubt = self.lock();
        let told = doubt.as_mut().map(|doubt| &mut doubt.told);
        told.is_some_and(|told| !std::mem::replace(told, true))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Doubt>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_silence(kind: FailureKind) -> bool {
    matches!(kind, FailureKind::Unavailable | FailureKind::Timeout)
}
