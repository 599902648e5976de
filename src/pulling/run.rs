//! The machinery that pulls images: limits concurrent pulls and the time of each attempt, retries where that may help. Shared by
//! the run of a fixed plan and by continuous pulling.
//!
//! It decides only about retries, and enforces the disk budget, since others on the node may have used space after the plan was
//! made. It knows no concrete runtime and no Kubernetes.

use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::credentials::keyring::{self, Found, Keyring, SOURCE_PAUSE};
use crate::credentials::secret::Credential;
use crate::model::failure::FailureKind;
use crate::model::outcome::{ImageReport, Outcome, Reason};
use crate::model::reference::Reference;
use crate::model::stored_image::StoredImage;
use crate::model::text::{sanitize, size};
use crate::planning::disk_budget::on_disk;
use crate::planning::plan::{PlannedImage, Step};
use crate::planning::registry_probe::RegistryProbe;
use crate::pulling::disk_guard::{Denied, Store};
use crate::pulling::outage::Outage;
use crate::pulling::queue::{Limits, Queue};
use crate::retry::backoff;
use crate::runtime::image_service::{ImageService, Progress, RuntimeError};

/// Time without a received byte after which a registry counts as stalled.
const QUIET: Duration = Duration::from_secs(10);
/// The same while this cannot be observed: the runtime unpacks, or does not report progress.
const QUIET_UNTOLD: Duration = Duration::from_secs(60);

/// Time limit for requesting the size of an image for which there was no space.
const NEEDED_LIMIT: Duration = Duration::from_secs(5);

/// The settings of a run.
#[derive(Clone)]
pub struct Options<'a> {
    /// Maximum number of concurrent pulls; at least 1.
    pub concurrency: usize,
    /// Maximum number of concurrent pulls from one registry; at least 1.
    pub registry_concurrency: usize,
    /// The time limit of one attempt at one image.
    pub pull_timeout: Duration,
    /// The end of the run.
    pub deadline: Option<Instant>,
    /// Retries after a retryable failure.
    pub retries: u32,
    /// The probe for the size of an image for which there was no space.
    pub probe: Option<&'a RegistryProbe<'a>>,
}

/// An event of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// An attempt at an image begins.
    Started {
        /// The image's index in the plan.
        index: usize,
        /// The image as written.
        image: &'a str,
        /// 1 for the first attempt.
        attempt: u32,
        /// The progress of the pull, which can be read at any time.
        progress: Arc<Progress>,
    },
    /// An attempt failed and will be retried.
    Retrying {
        /// The image's index in the plan.
        index: usize,
        /// The image as written.
        image: &'a str,
        /// The attempt that failed.
        attempt: u32,
        /// The reason.
        error: &'a RuntimeError,
        /// Wait before the next attempt.
        wait: Duration,
    },
    /// An image is finished, successfully or not.
    Finished {
        /// The image's index in the plan.
        index: usize,
        /// Its outcome.
        report: &'a ImageReport,
    },
}

/// The state of an image's pull, kept for its report if it is interrupted.
#[derive(Default)]
pub(super) struct State {
    attempts: AtomicU32,
    started: OnceLock<Instant>,
    last_error: Mutex<Option<RuntimeError>>,
}

impl State {
    fn begin(&self) -> u32 {
        self.started.get_or_init(Instant::now);
        self.attempts.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn report(&self, image: &PlannedImage, outcome: Outcome) -> ImageReport {
        let mut report = image.report(outcome);
        report.attempts = self.attempts.load(Ordering::Relaxed);
        report.seconds = self.started.get().map(|s| s.elapsed().as_secs_f64());
        report
    }

    /// The report of an image that was interrupted, with the reason.
    pub(super) fn halted(&self, image: &PlannedImage, kind: FailureKind, why: &str) -> ImageReport {
        let report = self.report(image, Outcome::Failed);
        let mut message = why.to_owned();
        let last = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = last.as_ref() {
            message = format!("{message}; the last attempt failed: {error}");
        }
        report.because(Reason::Failure(kind), message)
    }
}

/// A pulled image, and the credential that was used.
type Pulled = (StoredImage, Option<Credential>);

/// The state that all pulls of one run share.
pub(super) struct Run<'a, S, O> {
    service: &'a S,
    keyring: &'a Keyring,
    pub(super) options: &'a Options<'a>,
    observe: &'a O,
    pub(super) queue: Queue,
    outage: Outage,
    pub(super) store: Store<'a>,
}

/// The result of an attempt.
enum Attempt {
    /// No attempt was made, since the image does not fit.
    Skipped(Reason, String),
    /// The attempt with this number ended.
    Ended(u32, Result<Pulled, RuntimeError>),
}

impl<'a, S: ImageService, O: Fn(Event<'_>) + Sync> Run<'a, S, O> {
    pub(super) fn new(
        service: &'a S,
        keyring: &'a Keyring,
        options: &'a Options<'a>,
        observe: &'a O,
        store: Store<'a>,
    ) -> Self {
        let queue = Queue::new(Limits {
            at_once: options.concurrency.max(1),
            of_one: options.registry_concurrency.max(1),
            quiet: match service.tells_progress() {
                true => QUIET,
                false => QUIET_UNTOLD,
            },
            unpacking: QUIET_UNTOLD,
        });
        // A rate limit that planning met applies to the pulls too.
        for registry in options.probe.iter().flat_map(|i| i.rate_limited()) {
            let wait = backoff::wait(FailureKind::RateLimited, 1, None);
            queue.hold(&registry, wait);
        }
        Self {
            service,
            keyring,
            options,
            observe,
            queue,
            outage: Outage::default(),
            store,
        }
    }

    pub(super) fn finished(&self, index: usize, report: &ImageReport) {
        (self.observe)(Event::Finished { index, report });
    }

    /// Attempts to pull one image until it is present or no retry makes sense.
    pub(super) async fn image(
        &self,
        index: usize,
        image: &PlannedImage,
        reference: &Reference,
        state: &State,
    ) -> (usize, ImageReport) {
        let report = self.until_done(index, image, reference, state).await;
        self.store.ended(index, report.outcome == Outcome::Pulled);
        (index, report)
    }

    async fn until_done(
        &self,
        index: usize,
        image: &PlannedImage,
        reference: &Reference,
        state: &State,
    ) -> ImageReport {
        loop {
            let (attempt, result) = match self.attempt(index, image, reference, state).await {
                Attempt::Ended(attempt, result) => (attempt, result),
                Attempt::Skipped(reason, message) => {
                    return image.report(Outcome::Skipped).because(reason, message);
                }
            };
            let error = match result {
                Ok((stored, credential)) => {
                    let mut report = state.report(image, Outcome::Pulled).stored(stored);
                    report.credential = credential.map(|c| c.source.to_string());
                    return report;
                }
                Err(error) => error,
            };
            if !error.is_retryable() || attempt > self.options.retries {
                return state
                    .report(image, Outcome::Failed)
                    .because(Reason::Failure(error.kind), error.message);
            }
            let wait = backoff::wait(error.kind, attempt, error.retry_after);
            if error.kind == FailureKind::RateLimited {
                self.queue.hold(reference.registry(), wait);
            }
            if error.kind == FailureKind::Unavailable {
                self.outage.suspect();
            }
            (self.observe)(Event::Retrying {
                index,
                image: &image.image,
                attempt,
                error: &error,
                wait,
            });
            *state
                .last_error
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(error);
            // Waiting holds no permit: the other images continue.
            tokio::time::sleep(wait).await;
        }
    }

    /// The size of an image for which there was no space, for the end of a message.
    pub(super) async fn needed(&self, image: &PlannedImage) -> String {
        let asked = match (image.size(), &image.step, self.options.probe) {
            (Some(size), _, _) => Ok(size.clone()),
            (None, Step::Pull(reference), Some(probe)) => {
                let asked = tokio::time::timeout(NEEDED_LIMIT, probe.size(reference)).await;
                asked.map_or_else(
                    |_| {
                        Err(format!(
                            "no response from {} within {} s",
                            reference.registry(),
                            NEEDED_LIMIT.as_secs()
                        ))
                    },
                    |size| size.map_err(|unknown| unknown.message),
                )
            }
            _ => Err("no registry was queried".to_owned()),
        };
        match asked {
            Ok(known) => {
                let bytes = on_disk(&known, self.service.layer_storage());
                format!("; the image needs about {} on disk", size(bytes))
            }
            Err(why) => format!("; image size unknown: {why}"),
        }
    }

    async fn attempt(
        &self,
        index: usize,
        image: &PlannedImage,
        reference: &Reference,
        state: &State,
    ) -> Attempt {
        let registry = reference.registry();
        let progress = Arc::new(Progress::default());
        let _slot = loop {
            let slot = self.queue.slot(index, registry, &progress).await;
            self.outage.over(self.service, reference).await;
            let mut change = pin!(self.store.change());
            change.as_mut().enable();
            let admit = self
                .store
                .admit(self.service, index, reference, image.size());
            match admit.await {
                Some(Ok(())) => break slot,
                Some(Err(Denied::Short(message))) => {
                    return Attempt::Skipped(Reason::DiskBudget, message);
                }
                Some(Err(Denied::Mark(message))) => {
                    return Attempt::Skipped(Reason::DiskPressure, message);
                }
                Some(Err(Denied::SizeUnknown(error))) => {
                    return Attempt::Ended(state.begin(), Err(error));
                }
                None => {
                    drop(slot);
                    change.await;
                }
            }
        };
        let attempt = state.begin();
        (self.observe)(Event::Started {
            index,
            image: &image.image,
            attempt,
            progress: Arc::clone(&progress),
        });
        let limit = self.options.pull_timeout;
        let pull = self.pull(reference, &progress);
        let result = match tokio::time::timeout(limit, pull).await {
            Ok(result) => result,
            Err(_) => Err(RuntimeError::new(
                FailureKind::Timeout,
                format!(
                    "not finished within {} (--pull-timeout)",
                    humantime::format_duration(limit)
                ),
            )),
        };
        Attempt::Ended(attempt, result)
    }

    /// Makes one attempt: pulls with each credential for the image in turn, last anonymously, until one is accepted.
    async fn pull(
        &self,
        reference: &Reference,
        progress: &Progress,
    ) -> Result<Pulled, RuntimeError> {
        let found = self.keyring.lookup(reference).await;
        let mut credentials = found.credentials.iter();
        let mut refusal = None;
        loop {
            let credential = credentials.next();
            let pulled = self.service.pull(reference, credential, progress).await;
            let error = match pulled {
                Ok(stored) => return Ok((stored, credential.cloned())),
                Err(error) => error,
            };
            if progress.came() || !keyring::is_refusal(error.kind) {
                return Err(error);
            }
            if let Some(credential) = credential {
                tracing::debug!(
                    image = reference.as_written(),
                    credential = &*credential.source,
                    "refused, trying the next credential: {}",
                    sanitize(&error.message)
                );
            }
            let error = keyring::more_telling(refusal, error, |error| error.kind);
            if credential.is_none() {
                return Err(refused(error, &found));
            }
            refusal = Some(error);
        }
    }
}

/// The error of a pull for which no credential was accepted.
fn refused(error: RuntimeError, found: &Found) -> RuntimeError {
    let pause = found.is_incomplete.then_some(SOURCE_PAUSE);
    RuntimeError {
        message: error.message + &found.tried(),
        retry_after: error.retry_after.max(pause),
        source_failed: found.is_incomplete,
        ..error
    }
}
