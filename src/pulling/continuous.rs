//! Pulls continuously what a plan that changes names, until it is dropped: a new plan changes the order of what waits, cancels
//! what left it and adds what is new. What is being pulled and still wanted goes on.
//!
//! No failure is final: a failed image is retried with back-off for as long as it is in the plan. It knows no concrete runtime
//! and no Kubernetes.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::credentials::keyring::Keyring;
use crate::model::failure::FailureKind;
use crate::model::outcome::{ImageReport, Outcome, Reason};
use crate::model::reference::Reference;
use crate::planning::disk_budget::DiskBudget;
use crate::planning::disk_marks::DiskMarks;
use crate::planning::plan::{Plan, PlannedImage, Step};
use crate::pulling::disk_guard::Store;
use crate::pulling::run::{Event, Options, Run, State};
use crate::retry::backoff;
use crate::runtime::image_service::ImageService;

/// The first and the longest pause after the failure of an image that may pass by itself.
const PASSING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// The same for a failure that someone has to mend: a missing image, credentials that are refused, a full disk.
const LASTING: (Duration, Duration) = (Duration::from_secs(120), Duration::from_secs(1800));
/// The first and the longest pause of all pulls after one that found no space.
const NO_SPACE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));

/// The plan to follow, which can be replaced at any time.
#[derive(Debug, Default)]
pub struct Feed {
    inbox: Mutex<Inbox>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inbox {
    plan: Option<Plan>,
    retry: HashSet<String>,
}

impl Feed {
    /// Replaces the plan. Images that are to be pulled according to both plans are not disturbed.
    pub fn set(&self, plan: Plan) {
        self.lock().plan = Some(plan);
        self.changed.notify_one();
    }

    /// Ends the pauses of these images after failures, by normalised reference: their credentials have changed, for example.
    pub fn retry(&self, images: impl IntoIterator<Item = String>) {
        self.lock().retry.extend(images);
        self.changed.notify_one();
    }

    async fn news(&self) -> Inbox {
        self.changed.notified().await;
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pulls what the feed's plan names. Never ends; dropping the future cancels all pulls.
///
/// The `index` of an event is a number of its own for each image, not its place in a plan. [`Event::Finished`] is emitted for each
/// failure too, after the quick retries of [`Options::retries`].
pub async fn keep_pulling<S: ImageService>(
    feed: &Feed,
    service: &S,
    keyring: &Keyring,
    options: &Options<'_>,
    budget: Option<DiskBudget>,
    marks: Option<&Mutex<DiskMarks>>,
    observe: &(impl Fn(Event<'_>) + Sync),
) -> Infallible {
    let store = Store::lasting(budget, options.probe).with_marks(marks);
    let pulling = Pulling {
        run: Run::new(service, keyring, options, observe, store),
        full: AtomicU32::new(0),
    };
    let mut starting = pin!(pulling.run.queue.run());
    let mut items = Items::default();
    let mut pulls = FuturesUnordered::new();
    loop {
        tokio::select! {
            // What is planned no longer must not start.
            biased;
            news = feed.news() => {
                if let Some(plan) = news.plan {
                    let new = items.follow(&plan);
                    pulling.run.queue.reorder(items.places(&plan));
                    pulls.extend(new.into_iter().map(|item| pulling.item(item)));
                }
                items.retry(&news.retry);
            }
            Some(item) = pulls.next() => items.ended(&item),
            never = &mut starting => match never {},
        }
    }
}

/// An image that is being pulled, waits, or pauses after a failure.
#[derive(Debug)]
struct Item {
    number: usize,
    image: PlannedImage,
    reference: Reference,
    cancelled: CancellationToken,
    retry: Notify,
}

/// The images that are not pulled yet, by normalised reference.
#[derive(Debug, Default)]
struct Items {
    next: usize,
    known: HashMap<String, Arc<Item>>,
}

impl Items {
    /// Cancels what the plan does not pull, and returns what it pulls in addition.
    fn follow(&mut self, plan: &Plan) -> Vec<Arc<Item>> {
        let wanted: HashSet<&str> = pulled(plan).map(|(_, r)| r.normalized()).collect();
        self.known.retain(|name, item| {
            let stays = wanted.contains(name.as_str());
            if !stays {
                item.cancelled.cancel();
            }
            stays
        });
        let mut new = Vec::new();
        for (image, reference) in pulled(plan) {
            if self.known.contains_key(reference.normalized()) {
                continue;
            }
            let item = Arc::new(Item {
                number: self.next,
                image: image.clone(),
                reference: reference.clone(),
                cancelled: CancellationToken::new(),
                retry: Notify::new(),
            });
            self.next += 1;
            let name = reference.normalized().to_owned();
            self.known.insert(name, Arc::clone(&item));
            new.push(item);
        }
        new
    }

    /// The place of each in the plan, by number.
    fn places(&self, plan: &Plan) -> HashMap<usize, usize> {
        let places = pulled(plan).enumerate();
        let places = places.filter_map(|(place, (_, reference))| {
            let item = self.known.get(reference.normalized())?;
            Some((item.number, place))
        });
        places.collect()
    }

    fn retry(&self, images: &HashSet<String>) {
        let items = images.iter().filter_map(|name| self.known.get(name));
        items.for_each(|item| item.retry.notify_one());
    }

    fn ended(&mut self, item: &Item) {
        let name = item.reference.normalized();
        if self
            .known
            .get(name)
            .is_some_and(|k| k.number == item.number)
        {
            self.known.remove(name);
        }
    }
}

/// The images that the plan pulls, in its order.
fn pulled(plan: &Plan) -> impl Iterator<Item = (&PlannedImage, &Reference)> {
    plan.images().iter().filter_map(|image| match &image.step {
        Step::Pull(reference) => Some((image, reference)),
        _ => None,
    })
}

/// The state that all pulls share.
struct Pulling<'a, S, O> {
    run: Run<'a, S, O>,
    /// Number of pulls that found no space since the last successful one.
    full: AtomicU32,
}

impl<S: ImageService, O: Fn(Event<'_>) + Sync> Pulling<'_, S, O> {
    /// Pulls one image, or ends when it is cancelled.
    async fn item(&self, item: Arc<Item>) -> Arc<Item> {
        tokio::select! {
            biased;
            () = item.cancelled.cancelled() => self.run.store.ended(item.number, false),
            () = self.until_pulled(&item) => {}
        }
        item
    }

    async fn until_pulled(&self, item: &Item) {
        let mut failures = 0;
        loop {
            let state = State::default();
            let pulled = self
                .run
                .image(item.number, &item.image, &item.reference, &state);
            let (_, mut report) = pulled.await;
            if report.outcome == Outcome::Pulled {
                self.full.store(0, Ordering::Relaxed);
                self.run.finished(item.number, &report);
                return;
            }
            failures += 1;
            self.hold(item, &mut report, failures).await;
            let wait = backoff::pause(limits(&report), failures);
            self.run.finished(item.number, &report);
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = item.retry.notified() => failures = 0,
            }
        }
    }

    /// Holds the pulls that would fail for the same reason.
    async fn hold(&self, item: &Item, report: &mut ImageReport, failures: u32) {
        match report.reason {
            Some(Reason::Failure(FailureKind::RateLimited)) => {
                let wait = backoff::wait(FailureKind::RateLimited, failures, None);
                self.run.queue.hold(item.reference.registry(), wait);
            }
            Some(Reason::Failure(FailureKind::NoSpace)) => {
                // Smaller images are tried after the pause, before this one: its own is longer.
                let times = self.full.fetch_add(1, Ordering::Relaxed) + 1;
                self.run.queue.hold_all(backoff::pause(NO_SPACE, times));
                let needed = self.run.needed(&item.image).await;
                report.message.get_or_insert_default().push_str(&needed);
            }
            _ => {}
        }
    }
}

/// The first and the longest pause after this failure.
fn limits(report: &ImageReport) -> (Duration, Duration) {
    match report.reason {
        Some(Reason::Failure(kind)) if kind.is_retryable() => PASSING,
        _ => LASTING,
    }
}

#[cfg(test)]
mod tests;
