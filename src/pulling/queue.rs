//! The queue of pulls: starts the first pull of the plan that may start, within the limits in total and for each registry.
//!
//! A stalled registry must not block the images of others. A registry that sent nothing for [`Limits::quiet`] counts as stalled,
//! and its pulls do not count against the limit for other registries. Stalled pulls may resume, so all of them together are
//! bounded too: twice the limit, and beyond it one for each registry without any pull in progress. While registries send, pulls
//! start in the plan's order and never exceed the limit.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::runtime::image_service::Progress;

/// Interval of checks for the progress of pulls, while others wait.
const TICK: Duration = Duration::from_secs(1);

/// Limits of concurrent pulls.
pub(crate) struct Limits {
    /// Maximum number in total; at least 1.
    pub at_once: usize,
    /// Maximum number from one registry; at least 1.
    pub of_one: usize,
    /// Time without a received byte after which a registry counts as stalled.
    pub quiet: Duration,
    /// The same for a pull that has received all its bytes, since the runtime unpacks them.
    pub unpacking: Duration,
}

/// The waiting pulls and those in progress.
pub(crate) struct Queue {
    limits: Limits,
    lanes: Mutex<Lanes>,
    changed: Notify,
}

type Lanes = HashMap<String, Lane>;

/// The pulls from one registry, by their index in the plan.
struct Lane {
    waiting: BTreeMap<usize, Waiting>,
    running: BTreeMap<usize, Running>,
    /// Time of the last received byte or the last start.
    heard: Instant,
    /// Time before which no pull starts, because the registry answered `rate_limited`.
    held: Option<Instant>,
}

struct Waiting {
    progress: Arc<Progress>,
    start: oneshot::Sender<()>,
}

struct Running {
    progress: Arc<Progress>,
    seen: (u64, u64),
}

/// The permission to pull, until it is dropped.
pub(crate) struct Slot<'q> {
    queue: &'q Queue,
    registry: &'q str,
    place: usize,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            lanes: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Waits until the pull with this index in the plan may start; [`Queue::run`] decides that.
    pub(crate) async fn slot<'q>(
        &'q self,
        place: usize,
        registry: &'q str,
        progress: &Arc<Progress>,
    ) -> Slot<'q> {
        let (start, started) = oneshot::channel();
        let waiting = Waiting {
            progress: Arc::clone(progress),
            start,
        };
        lane(&mut self.lock(), registry)
            .waiting
            .insert(place, waiting);
        // Created now, so that a waiter that is dropped leaves the queue.
        let slot = Slot {
            queue: self,
            registry,
            place,
        };
        self.changed.notify_one();
        // The other end is dropped only with the slot.
        let _ = started.await;
        slot
    }

    /// Delays pulls from the registry by this time from now, unless they are delayed longer already.
    pub(crate) fn hold(&self, registry: &str, wait: Duration) {
        let mut lanes = self.lock();
        let lane = lane(&mut lanes, registry);
        lane.held = lane.held.max(Instant::now().checked_add(wait));
    }

    /// Starts pulls for as long as it is polled.
    pub(crate) async fn run(&self) -> Infallible {
        loop {
            let again = self.start(Instant::now());
            tokio::select! {
                () = self.changed.notified() => {}
                () = until(again) => {}
            }
        }
    }

    /// Starts the pulls that may start; returns the time at which more may start without an event.
    fn start(&self, now: Instant) -> Option<Instant> {
        let mut lanes = self.lock();
        for lane in lanes.values_mut() {
            lane.listen(now);
        }
        while let Some(lane) = self.next(&mut lanes, now) {
            lane.start_first(now);
        }
        let waiting = lanes.values().filter(|lane| !lane.waiting.is_empty());
        let again = waiting.map(|lane| lane.held.filter(|end| *end > now).unwrap_or(now + TICK));
        again.min().map(|again| again.min(now + TICK))
    }

    /// The registry whose first waiting pull is the next to start.
    fn next<'l>(&self, lanes: &'l mut Lanes, now: Instant) -> Option<&'l mut Lane> {
        let Limits {
            at_once, of_one, ..
        } = self.limits;
        let all: usize = lanes.values().map(|lane| lane.running.len()).sum();
        let busy: usize = lanes
            .values()
            .map(|lane| lane.busy(now, &self.limits))
            .sum();
        let may_start = |lane: &Lane| {
            let own = lane.running.len();
            // For its own registry, a stalled pull counts like any other.
            let counted = busy - lane.busy(now, &self.limits) + own;
            let bounded = all < at_once.saturating_mul(2) || own == 0;
            own < of_one && counted < at_once && bounded && lane.held.is_none_or(|end| end <= now)
        };
        lanes
            .values_mut()
            .filter(|lane| may_start(lane))
            .filter_map(|lane| Some((*lane.waiting.first_key_value()?.0, lane)))
            .min_by_key(|(place, _)| *place)
            .map(|(_, lane)| lane)
    }

    fn lock(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lane<'l>(lanes: &'l mut Lanes, registry: &str) -> &'l mut Lane {
    lanes.entry(registry.to_owned()).or_insert_with(|| Lane {
        waiting: BTreeMap::new(),
        running: BTreeMap::new(),
        heard: Instant::now(),
        held: None,
    })
}

/// Sleeps until the deadline; forever without one.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Lane {
    /// Records whether bytes were received.
    fn listen(&mut self, now: Instant) {
        for pull in self.running.values_mut() {
            let seen = pull.progress.get();
            if seen != pull.seen {
                pull.seen = seen;
                self.heard = now;
            }
        }
    }

    /// The number of its pulls that count against the limit for other registries.
    fn busy(&self, now: Instant, limits: &Limits) -> usize {
        let silence = now.duration_since(self.heard);
        let is_busy = |pull: &&Running| {
            let is_whole = pull.seen.1 > 0 && pull.seen.0 == pull.seen.1;
            silence < limits.quiet || is_whole && silence < limits.unpacking
        };
        self.running.values().filter(is_busy).count()
    }

    fn start_first(&mut self, now: Instant) {
        if let Some((place, Waiting { progress, start })) = self.waiting.pop_first() {
            let seen = progress.get();
            self.running.insert(place, Running { progress, seen });
            self.heard = now;
            let _ = start.send(());
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some(lane) = self.queue.lock().get_mut(self.registry) {
            lane.waiting.remove(&self.place);
            lane.running.remove(&self.place);
        }
        self.queue.changed.notify_one();
    }
}
