//! Runs a plan on a runtime, and ends when all its images are finished, at the deadline or at a request to stop. Emits events
//! while it runs.
//!
//! It knows no concrete runtime and no Kubernetes.

use std::pin::pin;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use crate::credentials::keyring::Keyring;
use crate::model::failure::FailureKind;
use crate::model::outcome::{ImageReport, Outcome, Reason};
use crate::planning::plan::{Plan, PlannedImage, Step};
use crate::pulling::disk_guard::Store;
use crate::pulling::queue::until;
use crate::pulling::run::{Run, State};
use crate::runtime::image_service::ImageService;

pub use super::run::{Event, Options};

/// The reason why a run ended before every image was tried.
#[derive(Debug, Clone, Copy)]
enum Halt {
    Told,
    Deadline,
    /// No space for the image with this index in the plan.
    NoSpace(usize),
}

/// Pulls the images of the plan and returns the outcome of each, in the plan's order.
///
/// One image's failure is a value in its report and never ends the run; only `no_space`, the deadline and `stop` do. Pulls in
/// progress are then cancelled.
pub async fn execute<S: ImageService>(
    plan: &Plan,
    service: &S,
    keyring: &Keyring,
    options: &Options<'_>,
    stop: &CancellationToken,
    observe: &(impl Fn(Event<'_>) + Sync),
) -> Vec<ImageReport> {
    let store = Store::new(plan.room().cloned(), options.probe);
    let run = Run::new(service, keyring, options, observe, store);
    let once = Once { plan, run };
    let states: Vec<State> = plan.images().iter().map(|_| State::default()).collect();
    let mut reports: Vec<Option<ImageReport>> = plan.images().iter().map(without_pull).collect();
    let halt = once.pull_until_halt(&states, &mut reports, stop).await;
    let (kind, why) = match halt {
        Some(Halt::Deadline) => (
            FailureKind::Timeout,
            "not finished by the deadline of the run (--deadline)".to_owned(),
        ),
        Some(Halt::NoSpace(index)) => (
            FailureKind::NoSpace,
            once.explain_no_space(index, &mut reports, stop).await,
        ),
        Some(Halt::Told) | None => (
            FailureKind::Other,
            "the run was interrupted before the image was pulled".to_owned(),
        ),
    };
    let unfinished = |(index, report): (usize, Option<ImageReport>)| {
        report.unwrap_or_else(|| {
            let report = states[index].halted(&plan.images()[index], kind, &why);
            once.run.finished(index, &report);
            report
        })
    };
    reports.into_iter().enumerate().map(unfinished).collect()
}

/// The report of an image that is not pulled; `None` for one that is.
fn without_pull(image: &PlannedImage) -> Option<ImageReport> {
    match &image.step {
        Step::Pull(_) => None,
        Step::Present(stored) => Some(image.report(Outcome::Present).stored((**stored).clone())),
        Step::Skip(reason, message) => {
            let outcome = match reason {
                Reason::Failure(_) => Outcome::Failed,
                _ => Outcome::Skipped,
            };
            Some(image.report(outcome).because(*reason, message.clone()))
        }
    }
}

/// A run of a plan.
struct Once<'a, S, O> {
    plan: &'a Plan,
    run: Run<'a, S, O>,
}

impl<S: ImageService, O: Fn(Event<'_>) + Sync> Once<'_, S, O> {
    /// Pulls the images and completes the reports, until all are finished or the run ends early.
    async fn pull_until_halt(
        &self,
        states: &[State],
        reports: &mut [Option<ImageReport>],
        stop: &CancellationToken,
    ) -> Option<Halt> {
        let images = self.plan.images().iter().zip(states).enumerate();
        let mut pulls: FuturesUnordered<_> = images
            .filter_map(|(index, (image, state))| match &image.step {
                Step::Pull(reference) => Some(self.run.image(index, image, reference, state)),
                _ => None,
            })
            .collect();
        let mut starting = pin!(self.run.queue.run());
        loop {
            let next = tokio::select! {
                biased;
                () = stop.cancelled() => return Some(Halt::Told),
                () = until(self.run.options.deadline) => return Some(Halt::Deadline),
                next = pulls.next() => next,
                never = &mut starting => match never {},
            };
            let (index, report) = next?;
            let is_full = report.reason == Some(Reason::Failure(FailureKind::NoSpace));
            if !is_full {
                self.run.finished(index, &report);
            }
            reports[index] = Some(report);
            if is_full {
                return Some(Halt::NoSpace(index));
            }
        }
    }

    /// Completes the report of the image for which there was no space. Returns the reason for the images that were not tried.
    async fn explain_no_space(
        &self,
        index: usize,
        reports: &mut [Option<ImageReport>],
        stop: &CancellationToken,
    ) -> String {
        let image = &self.plan.images()[index];
        // Pulling has ended by now, so this delays no pull.
        let needed = tokio::select! {
            () = stop.cancelled() => String::new(),
            () = until(self.run.options.deadline) => String::new(),
            needed = self.run.needed(image) => needed,
        };
        let mut message = String::new();
        if let Some(report) = &mut reports[index] {
            report.message.get_or_insert_default().push_str(&needed);
            self.run.finished(index, report);
            message = report.message.clone().unwrap_or_default();
        }
        let image = &image.image;
        format!("the run ended: no space left for {image}: {message}")
    }
}

#[cfg(test)]
mod tests;
