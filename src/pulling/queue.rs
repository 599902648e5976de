//! The queue of pulls: the first of the plan that may start is next, with so many at once in all and from one registry.
//!
//! A registry that sends nothing must not keep the images of others from coming. One from which nothing has come for
//! [`Limits::quiet`] counts as hanging, and its pulls then take no room from those of other registries. Hanging pulls may wake, so there is a
//! bound on all of them together: twice the limit, and beyond it one for each registry that has none under way. While registries
//! send, pulls start in the plan's order and never exceed the limit.

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
    /// In all; at least 1.
    pub at_once: usize,
    /// From one registry; at least 1.
    pub of_one: usize,
    /// A registry from which nothing has come for so long counts as hanging.
    pub quiet: Duration,
    /// The same for a pull that has all its bytes, since the runtime unpacks them.
    pub unpacking: Duration,
}

/// The pulls that wait and those that are under way.
pub(crate) struct Queue {
    limits: Limits,
    lanes: Mutex<Lanes>,
    changed: Notify,
}

type Lanes = HashMap<String, Lane>;

/// The pulls from one registry, by their places in the plan.
struct Lane {
    waiting: BTreeMap<usize, Waiting>,
    running: BTreeMap<usize, Running>,
    /// When something last came, or was last asked for.
    heard: Instant,
    /// No pull is to start before, because the registry answered `rate_limited`.
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

/// The right to pull, until it is dropped.
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

    /// Waits until the pull at this place of the plan may start; [`Queue::run`] says when.
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
        // Made now, so that one who stops waiting leaves the queue.
        let slot = Slot {
            queue: self,
            registry,
            place,
        };
        self.changed.notify_one();
        // The other end goes only with the slot.
        let _ = started.await;
        slot
    }

    /// Holds the registry back for so long from now, unless it is held back for longer already.
    pub(crate) fn hold(&self, registry: &str, wait: Duration) {
        let mut lanes = self.lock();
        let lane = lane(&mut lanes, registry);
        lane.held = lane.held.max(Instant::now().checked_add(wait));
    }

    /// Starts pulls, for as long as it is polled.
    pub(crate) async fn run(&self) -> Infallible {
        loop {
            let again = self.start(Instant::now());
            tokio::select! {
                () = self.changed.notified() => {}
                () = until(again) => {}
            }
        }
    }

    /// Starts what may start; returns when that may be more although nobody says so.
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
            // To its own registry a pull that hangs is one like any other.
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

/// Sleeps until then; for ever where there is no end.
pub(crate) async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Lane {
    /// Notes whether anything has come.
    fn listen(&mut self, now: Instant) {
        for pull in self.running.values_mut() {
            let seen = pull.progress.get();
            if seen != pull.seen {
                pull.seen = seen;
                self.heard = now;
            }
        }
    }

    /// The number of its pulls that take room from those of other registries.
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
