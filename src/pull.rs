//! Runs a plan on a runtime: so many at once, each attempt within its time, again where that can help, until the
//! deadline or until it is told to stop. Emits events while it runs.
//!
//! It decides nothing but retries, and knows no concrete runtime and no Kubernetes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::failure::FailureKind;
use crate::image::{Reference, StoredImage};
use crate::plan::{Plan, PlannedImage, Reason, Step};
use crate::registry::credential::Credential;
use crate::registry::keyring::{Found, Keyring};
use crate::report::{ImageReport, Outcome};
use crate::runtime::{ImageService, Progress, RuntimeError};

mod backoff;
use backoff::RateLimits;

/// How a plan is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Pulls at once; at least 1.
    pub concurrency: usize,
    /// The time limit of one attempt at one image.
    pub pull_timeout: Duration,
    /// When all has to be done.
    pub deadline: Option<Instant>,
    /// Further attempts after a retryable failure.
    pub retries: u32,
}

/// What happens while a plan is run.
#[derive(Debug)]
pub enum Event<'a> {
    /// An attempt at an image begins.
    Started {
        /// The image's place in the plan.
        index: usize,
        /// The image as written.
        image: &'a str,
        /// 1 for the first attempt.
        attempt: u32,
        /// How far the pull has come, to be read at any time.
        progress: Arc<Progress>,
    },
    /// An attempt failed, and there will be another.
    Retrying {
        /// The image's place in the plan.
        index: usize,
        /// The image as written.
        image: &'a str,
        /// The attempt that failed.
        attempt: u32,
        /// Why it failed.
        error: &'a RuntimeError,
        /// How long until the next attempt.
        wait: Duration,
    },
    /// An image is done with, one way or the other.
    Finished {
        /// The image's place in the plan.
        index: usize,
        /// What became of it.
        report: &'a ImageReport,
    },
}

/// Why a run ended before every image was tried.
#[derive(Debug, Clone)]
enum Halt {
    Told,
    Deadline,
    NoSpace { image: String, message: String },
}

/// Has the runtime pull what the plan says, and tells what became of each image of it, in the plan's order.
///
/// One image's failure is a value in its report and never ends the run; only `no_space`, the deadline and `stop` do.
/// Pulls that are under way then are cancelled.
pub async fn execute<S: ImageService>(
    plan: &Plan,
    service: &S,
    keyring: &Keyring,
    options: &Options,
    stop: &CancellationToken,
    observe: &(impl Fn(Event<'_>) + Sync),
) -> Vec<ImageReport> {
    let run = Run {
        service,
        keyring,
        options,
        observe,
        permits: Semaphore::new(options.concurrency.max(1)),
        limits: RateLimits::default(),
    };
    let states: Vec<State> = plan.images().iter().map(|_| State::default()).collect();
    let mut reports: Vec<Option<ImageReport>> = plan.images().iter().map(without_pull).collect();
    let mut pulls: FuturesUnordered<_> = plan
        .images()
        .iter()
        .enumerate()
        .filter_map(|(index, image)| match &image.step {
            Step::Pull(reference) => Some(run.image(index, image, reference, &states[index])),
            _ => None,
        })
        .collect();
    let halt = loop {
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => break Some(Halt::Told),
            () = until(options.deadline) => break Some(Halt::Deadline),
            next = pulls.next() => next,
        };
        let Some((index, report)) = next else {
            break None;
        };
        observe(Event::Finished {
            index,
            report: &report,
        });
        let full = report.reason == Some(Reason::Failure(FailureKind::NoSpace));
        let halt = full.then(|| Halt::NoSpace {
            image: report.image.clone(),
            message: report.message.clone().unwrap_or_default(),
        });
        reports[index] = Some(report);
        if halt.is_some() {
            break halt;
        }
    };
    drop(pulls);
    let unfinished = |(index, report): (usize, Option<ImageReport>)| {
        report.unwrap_or_else(|| {
            let image = &plan.images()[index];
            let report = states[index].halted(image, halt.as_ref());
            observe(Event::Finished {
                index,
                report: &report,
            });
            report
        })
    };
    reports.into_iter().enumerate().map(unfinished).collect()
}

/// The report of an image that is not to be pulled; `None` for one that is.
fn without_pull(image: &PlannedImage) -> Option<ImageReport> {
    match &image.step {
        Step::Pull(_) => None,
        Step::Present(stored) => {
            Some(ImageReport::new(image, Outcome::Present).stored(stored.clone()))
        }
        Step::Skip(reason, message) => {
            let outcome = match reason {
                Reason::Failure(_) => Outcome::Failed,
                _ => Outcome::Skipped,
            };
            Some(ImageReport::new(image, outcome).because(*reason, message.clone()))
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// What is known of an image's pull from outside, for when it is cut off.
#[derive(Default)]
struct State {
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
        let mut report = ImageReport::new(image, outcome);
        report.attempts = self.attempts.load(Ordering::Relaxed);
        report.seconds = self.started.get().map(|s| s.elapsed().as_secs_f64());
        report
    }

    fn halted(&self, image: &PlannedImage, halt: Option<&Halt>) -> ImageReport {
        let report = self.report(image, Outcome::Failed);
        let (kind, mut message) = match halt {
            Some(Halt::Deadline) => (
                FailureKind::Timeout,
                "not done by the deadline of the run".to_owned(),
            ),
            Some(Halt::NoSpace { image, message }) => (
                FailureKind::NoSpace,
                format!("the run ended because there was no space left for {image}: {message}"),
            ),
            Some(Halt::Told) | None => (
                FailureKind::Other,
                "the run was interrupted before the image was there".to_owned(),
            ),
        };
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

/// An image that came, and the credential that it took.
type Pulled = (StoredImage, Option<Credential>);

/// What all pulls of one run share.
struct Run<'a, S, O> {
    service: &'a S,
    keyring: &'a Keyring,
    options: &'a Options,
    observe: &'a O,
    permits: Semaphore,
    limits: RateLimits,
}

impl<S: ImageService, O: Fn(Event<'_>) + Sync> Run<'_, S, O> {
    /// Attempts one image until it is there or no further attempt makes sense.
    async fn image(
        &self,
        index: usize,
        image: &PlannedImage,
        reference: &Reference,
        state: &State,
    ) -> (usize, ImageReport) {
        loop {
            let (attempt, result) = self.attempt(index, image, reference, state).await;
            let error = match result {
                Ok((stored, credential)) => {
                    let mut report = state.report(image, Outcome::Pulled).stored(stored);
                    report.credential = credential.map(|c| c.source.to_string());
                    return (index, report);
                }
                Err(error) => error,
            };
            if !error.kind.is_retryable() || attempt > self.options.retries {
                let report = state
                    .report(image, Outcome::Failed)
                    .because(Reason::Failure(error.kind), error.message);
                return (index, report);
            }
            let wait = backoff::wait(error.kind, attempt, error.retry_after);
            if error.kind == FailureKind::RateLimited {
                self.limits.hold(reference.registry(), wait);
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
            // Waiting takes no permit: the other images go on.
            tokio::time::sleep(wait).await;
        }
    }

    async fn attempt(
        &self,
        index: usize,
        image: &PlannedImage,
        reference: &Reference,
        state: &State,
    ) -> (u32, Result<Pulled, RuntimeError>) {
        let _permit = loop {
            self.limits.released(reference.registry()).await;
            let permit = self.permits.acquire().await;
            if !self.limits.is_held(reference.registry()) {
                break permit;
            }
        };
        let attempt = state.begin();
        let progress = Arc::new(Progress::default());
        (self.observe)(Event::Started {
            index,
            image: &image.image,
            attempt,
            progress: Arc::clone(&progress),
        });
        let limit = self.options.pull_timeout;
        let pull = self.with_each_credential(reference, &progress);
        let result = match tokio::time::timeout(limit, pull).await {
            Ok(result) => result,
            Err(_) => Err(RuntimeError::new(
                FailureKind::Timeout,
                format!(
                    "not done within {} (--pull-timeout)",
                    humantime::format_duration(limit)
                ),
            )),
        };
        (attempt, result)
    }

    /// Tries the credentials for the image in order, anonymously last, until one is let in.
    ///
    /// Many registries say "not found" to those who may not see, and some have words of their own for a login that they
    /// refuse, so these answers are no end either.
    async fn with_each_credential(
        &self,
        reference: &Reference,
        progress: &Progress,
    ) -> Result<Pulled, RuntimeError> {
        let found = self.keyring.lookup(reference).await;
        let mut refusal: Option<RuntimeError> = None;
        for credential in found.credentials.iter().map(Some).chain([None]) {
            match self.service.pull(reference, credential, progress).await {
                Ok(stored) => return Ok((stored, credential.cloned())),
                Err(error) => match (error.kind, &refusal) {
                    (FailureKind::Unauthorized | FailureKind::Other, Some(_)) => {}
                    (FailureKind::Unauthorized | FailureKind::NotFound | FailureKind::Other, _) => {
                        refusal = Some(error)
                    }
                    _ => return Err(error),
                },
            }
        }
        let mut error = refusal.unwrap_or_else(|| {
            RuntimeError::new(FailureKind::Other, "no way to pull the image was tried")
        });
        error.message.push_str(&told(&found));
        Err(error)
    }
}

/// Which credentials were tried in vain, and which could not be, for the end of a message.
fn told(found: &Found) -> String {
    let mut text = String::new();
    if !found.credentials.is_empty() {
        let sources: Vec<&str> = found.credentials.iter().map(|c| &*c.source).collect();
        text = format!(
            " (tried with the credentials of {}, and anonymously)",
            sources.join(", ")
        );
    }
    for problem in &found.problems {
        text.push_str("; ");
        text.push_str(problem);
    }
    text
}

#[cfg(test)]
mod tests;
