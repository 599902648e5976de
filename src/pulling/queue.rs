//! The queue of pulls: starts the first pull of the plan that may start, within the limits in total and for each registry.
//!
//! A stalled registry must not block the images of others. A registry that sent nothing for [`Limits::quiet`] counts as stalled,
//! and its pulls do not count against the limit for other registries. Stalled pulls may resume, so all of them together are
//! bounded too: twice the limit, and beyond it one for each registry without any pull in progress. While registries send, pulls
//! start in the plan's order and never exceed the limit. The order of waiting pulls can change.

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
    state: Mutex<State>,
    changed: Notify,
}

/// The pulls and their order.
#[derive(Default)]
struct State {
    lanes: Lanes,
    /// The places of pulls whose number is not their place.
    places: HashMap<usize, usize>,
    /// Time before which no pull starts.
    held: Option<Instant>,
}

/// By registry; only those with pulls, and those that are held.
type Lanes = HashMap<String, Lane>;

/// The pulls from one registry, by their numbers.
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
    number: usize,
}

impl Queue {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Waits until the pull with this number may start; [`Queue::run`] decides that. The number is also the pull's place, unless
    /// [`Queue::reorder`] gives it another.
    pub(crate) async fn slot<'q>(
        &'q self,
        number: usize,
        registry: &'q str,
        progress: &Arc<Progress>,
    ) -> Slot<'q> {
        let (start, started) = oneshot::channel();
        let waiting = Waiting {
            progress: Arc::clone(progress),
            start,
        };
        lane(&mut self.lock().lanes, registry)
            .waiting
            .insert(number, waiting);
        // Created now, so that a waiter that is dropped leaves the queue.
        let slot = Slot {
            queue: self,
            registry,
            number,
        };
        self.changed.notify_one();
        // The other end is dropped only with the slot.
        let _ = started.await;
        slot
    }

    /// Delays pulls from the registry by this time from now, unless they are delayed longer already.
    pub(crate) fn hold(&self, registry: &str, wait: Duration) {
        let mut state = self.lock();
        let lane = lane(&mut state.lanes, registry);
        lane.held = lane.held.max(Instant::now().checked_add(wait));
    }

    /// Delays all pulls by this time from now, unless they are delayed longer already.
    pub(crate) fn hold_all(&self, wait: Duration) {
        let mut state = self.lock();
        state.held = state.held.max(Instant::now().checked_add(wait));
    }

    /// Replaces the places of pulls, by their numbers.
    pub(crate) fn reorder(&self, places: HashMap<usize, usize>) {
        self.lock().places = places;
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
        let mut state = self.lock();
        let State {
            lanes,
            places,
            held,
        } = &mut *state;
        for lane in lanes.values_mut() {
            lane.listen(now);
        }
        lanes.retain(|_, lane| lane.is_used(now));
        let held = held.filter(|end| *end > now);
        if held.is_none() {
            while let Some((number, lane)) = self.next(lanes, places, now) {
                lane.start(number, now);
            }
        }
        let waiting = lanes.values().filter(|lane| !lane.waiting.is_empty());
        let again = waiting.map(|lane| lane.held.filter(|end| *end > now).unwrap_or(now + TICK));
        again.min().map(|again| match held {
            Some(end) => again.max(end),
            None => again.min(now + TICK),
        })
    }

    /// The next pull to start, and its registry.
    fn next<'l>(
        &self,
        lanes: &'l mut Lanes,
        places: &HashMap<usize, usize>,
        now: Instant,
    ) -> Option<(usize, &'l mut Lane)> {
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
            .filter_map(|lane| Some((lane.first(places)?, lane)))
            .min_by_key(|((place, _), _)| *place)
            .map(|((_, number), lane)| (number, lane))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// The place and the number of its first waiting pull.
    fn first(&self, places: &HashMap<usize, usize>) -> Option<(usize, usize)> {
        if places.is_empty() {
            let number = *self.waiting.first_key_value()?.0;
            return Some((number, number));
        }
        let numbers = self.waiting.keys();
        let placed = numbers.map(|number| (*places.get(number).unwrap_or(number), *number));
        placed.min()
    }

    /// Returns whether it has pulls, or is held.
    fn is_used(&self, now: Instant) -> bool {
        let is_held = self.held.is_some_and(|end| end > now);
        is_held || !self.waiting.is_empty() || !self.running.is_empty()
    }

    fn start(&mut self, number: usize, now: Instant) {
        if let Some(Waiting { progress, start }) = self.waiting.remove(&number) {
            let seen = progress.get();
            self.running.insert(number, Running { progress, seen });
            self.heard = now;
            let _ = start.send(());
        }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some(lane) = self.queue.lock().lanes.get_mut(self.registry) {
            lane.waiting.remove(&self.number);
            lane.running.remove(&self.number);
        }
        self.queue.changed.notify_one();
    }
}
