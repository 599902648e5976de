//! Runs the steps of the controller in one loop, while this process leads.
//!
//! At most one write of a PlannedImage and one of a status are in flight, so that no two writes of one object can overtake each
//! other. Everything is derived from what is observed; nothing but the pace of writes is remembered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::LocalBoxFuture;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::aggregate::{self, Index, Standing, Subject};
use super::apply::{self, Change, MANAGER, Pace, Written};
use super::brake::{self, Brakes};
use super::events::{self, Publisher};
use super::gate::{Gate, Held};
use super::guard::{Guard, Outcome};
use super::leader::Fence;
use super::merge::{self, Demanded, Desired, Planning};
use super::observe::{Changed, Planned, Seen, State};
use super::prefetch::AnyPrefetch;
use super::pressure::Teller;
use super::resolve::{self, Demand, Resolved};
use super::shown;
use super::status_pace::StatusPace;
use super::watches::{Needs, Watches};
use crate::api::v1alpha1::ImagePrefetchStatus;
use crate::app::metrics::{ControllerMetrics, NodeState};
use crate::app::serve::{Check, Liveness};
use crate::discovery::workloads;
use crate::discovery::workloads::inventory::Class;
use crate::kube_api::connect::Cluster;

/// The time in which further changes may follow a change before they are planned together.
const SETTLE: Duration = Duration::from_secs(1);
/// The least time between two sums over all nodes.
const AGGREGATE_INTERVAL: Duration = Duration::from_millis(500);
/// The longest time without a sum, because nodes may become stale without an event.
const TICK: Duration = Duration::from_secs(10);
/// The longest wait for a first list of workloads before the first plan.
const FIRST_LISTS: Duration = Duration::from_secs(30);
/// Maximum number of RuntimeClasses that are read.
const MAX_CLASSES: usize = 100;
/// The time after which RuntimeClasses are read again.
const CLASSES_REFRESH: Duration = Duration::from_secs(600);
/// The longest wait of a plan for RuntimeClasses.
const CLASSES_WAIT: Duration = Duration::from_secs(5);
/// Number of events that are taken in before anything else is done.
const BATCH: usize = 4096;

type InFlight<T> = Option<LocalBoxFuture<'static, T>>;
type WriteOutcome = (Change, Result<Written, kube::Error>);
/// The name and the uid of the ImagePrefetch first.
type StatusOutcome = (
    (String, String),
    Vec<events::Notice>,
    Result<AnyPrefetch, kube::Error>,
);

/// An ImagePrefetch as it was planned last.
struct PlannedPrefetch {
    /// Tells it from one that is created under its name later.
    uid: String,
    generation: Option<i64>,
    standing: Standing,
    /// Its images, if they are known.
    resolved: Option<Resolved>,
}

/// A PlannedImage that is not as it was planned last.
struct Unwritten {
    /// The ImagePrefetches that it concerns.
    prefetches: BTreeSet<String>,
    /// The answer of the API server that refused the last write.
    refusal: Option<String>,
}

/// The state of the loop.
pub(super) struct Reconciler {
    cluster: Arc<Cluster>,
    client: Client,
    fence: Fence,
    events: Publisher,
    state: State,
    watches: Watches,
    seen: mpsc::Receiver<Seen>,
    started: Instant,

    demands: BTreeMap<String, Result<Demand, String>>,
    are_demands_current: bool,
    needs: Needs,
    planned: BTreeMap<String, PlannedPrefetch>,
    plan_at: Option<Instant>,
    has_planned: bool,
    changes: VecDeque<Change>,
    /// The objects of all changes until they are written, also while failed ones rest.
    unwritten: BTreeMap<String, Unwritten>,
    pace: Pace,
    writing: Option<Change>,
    write: InFlight<WriteOutcome>,

    brakes: Brakes,
    aggregate_at: Instant,
    is_summed_up: bool,
    /// The time to look again at a status that may not be written yet.
    status_at: Option<Instant>,
    /// Statuses that differ from those of the objects, each with the name and the uid of its object, and the time from which it may
    /// be written.
    statuses: VecDeque<((String, String), ImagePrefetchStatus, Instant)>,
    status_pace: StatusPace,
    status_write: InFlight<StatusOutcome>,

    guard: Guard,
    teller: Teller,

    classes_read: Option<Instant>,
    classes: InFlight<Vec<(String, Option<Class>)>>,
}

impl Reconciler {
    /// Starts to watch.
    pub(super) fn new(
        cluster: Arc<Cluster>,
        include_idle: bool,
        fence: Fence,
        identity: &str,
    ) -> Self {
        let client = cluster.client().clone();
        let (watches, seen) = Watches::start(&client);
        let now = Instant::now();
        Self {
            cluster,
            events: Publisher::start(client.clone(), identity, fence.clone()),
            guard: Guard::new(client.clone(), now),
            teller: Teller::new(client.clone(), identity, now),
            client,
            fence,
            state: State::new(include_idle),
            watches,
            seen,
            started: now,
            demands: BTreeMap::new(),
            are_demands_current: false,
            needs: Needs::default(),
            planned: BTreeMap::new(),
            plan_at: None,
            has_planned: false,
            changes: VecDeque::new(),
            unwritten: BTreeMap::new(),
            pace: Pace::new(now),
            writing: None,
            write: None,
            brakes: Brakes::default(),
            aggregate_at: now,
            is_summed_up: true,
            status_at: None,
            statuses: VecDeque::new(),
            status_pace: StatusPace::default(),
            status_write: None,
            classes_read: None,
            classes: None,
        }
    }

    /// Runs without end.
    pub(super) async fn run(
        mut self,
        metrics: &ControllerMetrics,
        liveness: &Liveness,
        ready: &Check,
    ) {
        ready.fail("listing the objects to watch");
        loop {
            liveness.beat();
            let wake = tokio::time::Instant::from_std(self.next_turn());
            tokio::select! {
                Some(seen) = self.seen.recv() => self.take_in(seen),
                (change, outcome) = finished(&mut self.write) => self.wrote(&change, outcome),
                outcome = finished(&mut self.status_write) => self.wrote_status(outcome),
                outcome = self.guard.finished() => self.wrote_node(outcome),
                told = self.teller.finished() => self.teller.take_in(told, Instant::now()),
                classes = finished(&mut self.classes) => self.take_in(Seen::Classes(classes)),
                () = tokio::time::sleep_until(wake) => {}
            }
            let now = Instant::now();
            self.observe_demands(now);
            self.plan(now, metrics);
            self.start_write(now);
            self.guard_nodes(now, metrics);
            self.tell_of_pressure(now);
            self.aggregate(now, metrics);
            self.start_status_write(now);
            if self.has_planned {
                ready.pass();
            }
        }
    }

    /// The time at which something has to be done without any event.
    fn next_turn(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = self.aggregate_at;
        if self.is_summed_up || !self.has_planned {
            next = next.max(now + TICK);
        }
        next = next.min(self.guard.next(now));
        if let Some(look) = self.teller.next() {
            next = next.min(look);
        }
        if let Some(status) = self.status_at {
            next = next.min(status.max(self.aggregate_at));
        }
        if let Some(plan) = self.plan_at {
            next = next.min(
                plan.max(now + Duration::from_millis(if self.can_plan(now) { 0 } else { 100 })),
            );
        }
        if self.write.is_none() && !self.changes.is_empty() {
            next = next.min(self.pace.next(now, self.state.nodes.items.len()));
        }
        next.max(now + Duration::from_millis(10))
    }

    fn take_in(&mut self, first: Seen) {
        let mut next = Some(first);
        let mut taken = 0;
        while let Some(seen) = next {
            if matches!(seen, Seen::Prefetch(_)) {
                self.are_demands_current = false;
            }
            let refusals = self.state.refusals.len();
            let changed = self.state.handle(seen, &self.watches);
            if refusals != self.state.refusals.len() {
                self.are_demands_current = false;
            }
            if changed.demand || changed.planned {
                self.plan_within(SETTLE);
            }
            self.is_summed_up &= !(changed.nodes || changed.planned);
            if changed != Changed::default() {
                self.guard.touch();
            }
            if changed.nodes {
                self.teller.touch(Instant::now());
            }
            taken += 1;
            next = match taken < BATCH {
                true => self.seen.try_recv().ok(),
                false => None,
            };
        }
    }

    fn plan_within(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.plan_at = Some(self.plan_at.map_or(at, |planned| planned.min(at)));
    }

    /// Validates the ImagePrefetches and adjusts the watches to them.
    fn observe_demands(&mut self, now: Instant) {
        if !self.state.prefetches.is_synced {
            return;
        }
        if !self.are_demands_current {
            self.are_demands_current = true;
            let prefetches = self.state.prefetches.items.iter();
            self.demands = prefetches
                .map(|(name, prefetch)| {
                    let spec = prefetch.spec.as_ref().map_err(Clone::clone);
                    (name.clone(), spec.and_then(resolve::validate))
                })
                .collect();
            let active = self
                .demands
                .iter()
                .filter(|(name, _)| !self.is_suspended(name));
            let valid = active.filter_map(|(_, demand)| demand.as_ref().ok());
            let refusals = &self.state.refusals;
            self.needs = Needs::of(valid, |key| refusals.contains_key(&Some(key.clone())));
            self.watches.adjust(&self.needs);
            self.state.forget(&self.needs);
            self.plan_within(SETTLE);
        }
        self.read_classes(now);
    }

    fn is_suspended(&self, name: &str) -> bool {
        let prefetch = self.state.prefetches.items.get(name);
        let spec = prefetch.and_then(|prefetch| prefetch.spec.as_ref().ok());
        spec.is_some_and(|spec| spec.suspend)
    }

    /// Reads the RuntimeClasses that are not known yet, and all of them from time to time.
    fn read_classes(&mut self, now: Instant) {
        if self.classes.is_some() {
            return;
        }
        let is_due = self
            .classes_read
            .is_none_or(|at| now.duration_since(at) >= CLASSES_REFRESH);
        if self.plan_at.is_none() && !is_due {
            return;
        }
        let in_use = self.state.inventory.classes_in_use(MAX_CLASSES);
        if !is_due && in_use.is_subset(&self.state.inventory.known_classes()) {
            return;
        }
        self.classes_read = Some(now);
        let cluster = Arc::clone(&self.cluster);
        self.classes = Some(Box::pin(async move {
            workloads::read_classes(&cluster, in_use).await
        }));
    }

    /// Returns whether enough is known for a plan. The first one waits for all lists, so that no image looks unused because a
    /// list is missing.
    fn can_plan(&self, now: Instant) -> bool {
        let state = &self.state;
        let is_synced =
            state.prefetches.is_synced && state.planned.is_synced && state.nodes.is_synced;
        let has_waited = now.duration_since(self.started) >= FIRST_LISTS;
        let are_listed = self.has_planned
            || has_waited
            || self.demands.iter().all(|(name, demand)| match demand {
                Ok(demand) if !self.is_suspended(name) => state.availability(demand) != Err(None),
                _ => true,
            });
        let waits = self.classes.is_some()
            && self
                .classes_read
                .is_some_and(|at| now.duration_since(at) < CLASSES_WAIT);
        is_synced && are_listed && !waits
    }

    /// Resolves, merges and compares.
    fn plan(&mut self, now: Instant, metrics: &ControllerMetrics) {
        if self.plan_at.is_none_or(|at| at > now && self.has_planned) || !self.can_plan(now) {
            return;
        }
        self.plan_at = None;
        let prefetches = self.state.prefetches.items.iter();
        let planned = prefetches.map(|(name, prefetch)| {
            let (standing, resolved) = self.standing(name);
            let planned = PlannedPrefetch {
                uid: prefetch.uid.clone(),
                generation: prefetch.generation,
                standing,
                resolved,
            };
            (name.clone(), planned)
        });
        self.planned = planned.collect();
        let wall = SystemTime::now();
        let (changes, due) = apply::diff(&self.state.planned.items, &self.desired(wall), wall);
        let mut before = std::mem::take(&mut self.unwritten);
        let unwritten = changes.iter().map(|change| {
            let name = change.name().to_owned();
            let refusal = before.remove(&name).and_then(|before| before.refusal);
            let prefetches = self.concerned(change);
            (
                name,
                Unwritten {
                    prefetches,
                    refusal,
                },
            )
        });
        self.unwritten = unwritten.collect();
        let unwritten = &self.unwritten;
        self.pace.retain(|name| unwritten.contains_key(name));
        // What is being written is compared again when that is done.
        self.changes = changes.into();
        if let Some(due) = due {
            let time = due.duration_since(wall).unwrap_or_default();
            self.plan_within(time + Duration::from_millis(10));
        }
        if !self.has_planned {
            info!(
                "planned {} ImagePrefetches on {} nodes: {} writes",
                self.planned.len(),
                self.state.nodes.items.len(),
                self.changes.len()
            );
        }
        self.has_planned = true;
        self.is_summed_up = false;
        self.guard.touch();
        metrics.reconciled(now.elapsed());
    }

    /// The standing of an ImagePrefetch, and its images if they are known.
    fn standing(&self, name: &str) -> (Standing, Option<Resolved>) {
        let demand = match self.demands.get(name) {
            Some(Ok(demand)) => demand,
            Some(Err(message)) => return (Standing::Invalid(message.clone()), None),
            None => return (Standing::Listing, None),
        };
        if self.is_suspended(name) {
            return (Standing::Suspended, None);
        }
        match self.state.availability(demand) {
            Ok(()) => {}
            Err(None) => return (Standing::Listing, None),
            Err(Some(refusal)) => return (Standing::Refused(refusal), None),
        }
        let namespaces = &self.state.namespaces.items;
        let resolved = resolve::resolve(demand, &self.state.inventory, namespaces);
        let standing = Standing::Resolved {
            images: resolved.images.len(),
            malformed: resolved.malformed.clone(),
        };
        (standing, Some(resolved))
    }

    fn desired(&self, wall: SystemTime) -> BTreeMap<String, Desired> {
        let now = humantime::format_rfc3339_seconds(wall).to_string();
        let planning = Planning {
            now: &now,
            nodes: self.state.nodes.items.len().try_into().unwrap_or(i64::MAX),
        };
        let demanded = self.planned.iter().map(|(name, planned)| {
            let prefetch = self.state.prefetches.items.get(name);
            let spec = prefetch.and_then(|prefetch| prefetch.spec.as_ref().ok());
            let demanded = match (spec, &planned.resolved) {
                (Some(spec), Some(resolved)) => Demanded::Resolved(spec, resolved),
                _ => Demanded::Held,
            };
            (name.as_str(), demanded)
        });
        let existing = &self.state.planned.items;
        merge::merge(demanded, existing, &self.brakes.doublings, planning)
    }

    /// Starts the next write, if there is one and the pace allows it.
    fn start_write(&mut self, now: Instant) {
        let agents = self.state.nodes.items.len();
        if self.write.is_some() || self.changes.is_empty() || self.pace.next(now, agents) > now {
            return;
        }
        if !self.fence.is_leading() {
            return;
        }
        let pace = &self.pace;
        let free = self
            .changes
            .iter()
            .position(|change| pace.pause_of(change.name(), now).is_none());
        let Some(change) = free.and_then(|at| self.changes.remove(at)) else {
            // All of them failed a short time ago.
            let pauses = self
                .changes
                .iter()
                .filter_map(|change| pace.pause_of(change.name(), now));
            let first = pauses.min().unwrap_or(now + SETTLE);
            self.plan_within(first.duration_since(now));
            self.changes.clear();
            return;
        };
        self.pace.take();
        self.state.planned.write(change.name());
        self.writing = Some(change.clone());
        let client = self.client.clone();
        self.write = Some(Box::pin(async move {
            let outcome = apply::write(client, change.clone()).await;
            (change, outcome)
        }));
    }

    fn wrote(&mut self, change: &Change, outcome: Result<Written, kube::Error>) {
        let name = change.name();
        self.writing = None;
        match outcome {
            Ok(Written::Applied(object)) => {
                debug!(name, "wrote a PlannedImage");
                self.take_in_written(name, Some(*object));
                if let Change::Retire(..) = change {
                    // Its deletion is due later.
                    self.plan_within(SETTLE);
                }
            }
            Ok(Written::Deleted) => {
                debug!(name, "deleted a PlannedImage");
                self.take_in_written(name, None);
            }
            Err(error) => {
                let is_about_object = apply::is_about_object(&error);
                let is_refused = apply::is_refused(&error);
                let error = shown(error);
                if self.pace.failed(name, is_about_object, Instant::now()) {
                    warn!("failed to write the PlannedImage {name}: {error}; retrying");
                }
                if let Some(unwritten) = self.unwritten.get_mut(name) {
                    unwritten.refusal = is_refused.then_some(error);
                }
                self.plan_within(SETTLE);
            }
        }
        self.is_summed_up = false;
        self.guard.touch();
    }

    /// The node gates; one that stands for all while they are not known.
    fn gates(&self, index: &Index<'_>, pending: &BTreeSet<String>) -> Vec<Gate> {
        if !self.state.prefetches.is_synced {
            return vec![Gate::unknown()];
        }
        let gates = self.state.prefetches.items.iter();
        let gates = gates.filter_map(|(name, prefetch)| {
            let gate = prefetch.spec.as_ref().ok()?.node_gate.as_ref()?;
            // One that cannot be used holds nobody.
            if matches!(self.demands.get(name), Some(Err(_))) {
                return None;
            }
            let planned = self.planned.get(name);
            let is_settled = planned.is_some_and(|planned| {
                (&planned.uid, planned.generation) == (&prefetch.uid, prefetch.generation)
                    && planned.standing != Standing::Listing
            });
            let revision = index.revision(name).to_owned();
            let is_settled = is_settled && !pending.contains(name);
            Some(Gate::new(name, &gate.timeout, revision, is_settled))
        });
        gates.collect()
    }

    /// Removes the taints of nodes that have their images, or that have waited for too long.
    fn guard_nodes(&mut self, now: Instant, metrics: &ControllerMetrics) {
        if self.guard.next(now) > now {
            return;
        }
        if !self.fence.is_leading() {
            self.guard.rest(now);
            return;
        }
        let index = Index::new(&self.state.planned.items);
        let gates = self.gates(&index, &self.pending());
        let is_gated = self.state.prefetches.is_synced && !gates.is_empty();
        self.watches.set_gated(is_gated);
        let machines = &self.state.machines.items;
        let nodes = &self.state.nodes.items;
        let gates = (&*gates, self.has_planned);
        if self.guard.look(machines, nodes, gates, &index, now) {
            self.is_summed_up = false;
        }
        metrics.set_nodes_held(self.guard.held());
    }

    /// Tells of nodes whose disk is above the high mark.
    fn tell_of_pressure(&mut self, now: Instant) {
        let is_leading = self.fence.is_leading();
        let nodes = &self.state.nodes.items;
        self.teller
            .look(nodes, is_leading, (now, SystemTime::now()));
    }

    fn wrote_node(&mut self, outcome: Outcome) {
        let machines = &mut self.state.machines.items;
        if self.guard.take_in(outcome, machines, &self.events) {
            self.is_summed_up = false;
        }
    }

    /// The state of the node gate of an ImagePrefetch, if it has one.
    fn held(&self, name: &str) -> Option<Held<'_>> {
        let prefetch = self.state.prefetches.items.get(name)?;
        prefetch.spec.as_ref().ok()?.node_gate.as_ref()?;
        let refusal = self.state.machines_refusal.as_ref();
        Some(Held {
            nodes: self.guard.held_by(name),
            refusal: refusal.or_else(|| self.guard.refusal()),
        })
    }

    /// The object is written, unless a plan was made meanwhile, which did not know the result, or the watch knows better.
    fn take_in_written(&mut self, name: &str, stored: Option<Planned>) {
        self.pace.succeeded(name);
        let before = self.changes.len();
        self.changes.retain(|change| change.name() != name);
        if !self.state.planned.wrote(name, stored) {
            self.plan_within(SETTLE);
        } else if self.changes.len() < before {
            self.plan_within(Duration::ZERO);
        } else {
            self.unwritten.remove(name);
        }
    }

    /// Sums up what the nodes report, and decides on the brake.
    fn aggregate(&mut self, now: Instant, metrics: &ControllerMetrics) {
        let waits = self.status_at.is_some_and(|at| at <= now);
        let is_due = self.aggregate_at <= now && (!self.is_summed_up || waits);
        let is_late = now.saturating_duration_since(self.aggregate_at) >= TICK;
        if !self.has_planned || !(is_due || is_late) {
            return;
        }
        self.aggregate_at = now + AGGREGATE_INTERVAL;
        self.is_summed_up = true;
        self.status_at = None;
        let pending: BTreeSet<String> = self.pending();
        let prefetches = &self.state.prefetches.items;
        let uids = pending.iter().filter_map(|name| prefetches.get(name));
        let uids = uids.map(|prefetch| prefetch.uid.clone()).collect();
        self.status_pace.note_pending(&uids, now);
        let index = Index::new(&self.state.planned.items);
        let nodes = &self.state.nodes.items;
        let text = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        self.statuses.clear();
        for (name, planned) in &self.planned {
            let prefetch = prefetches.get(name);
            // What was planned for a deleted one says nothing about its successor.
            let Some(prefetch) = prefetch.filter(|prefetch| prefetch.uid == planned.uid) else {
                continue;
            };
            let uid = &prefetch.uid;
            let known = match (&prefetch.spec, self.status_pace.written(uid)) {
                // The status of an object that cannot be decoded is not known otherwise.
                (Err(_), Some(written)) => written,
                _ => &prefetch.status,
            };
            let subject = Subject {
                name,
                generation: planned.generation,
                standing: &planned.standing,
                is_pending: pending.contains(name),
                refusal: self.refusal(name),
                gate: self.held(name),
            };
            let status = aggregate::status(subject, &index, nodes, known, (now, &text));
            if status != *known {
                let due = self.status_pace.due(uid, known, &status, now);
                let key = (name.clone(), uid.clone());
                self.statuses.push_back((key, status, due));
            }
        }
        for (state, count) in NodeState::ALL
            .into_iter()
            .zip(aggregate::overall(&index, nodes, now))
        {
            metrics.set_nodes(state, count);
        }
        metrics.set_planned_images(index.in_use());
        metrics.set_failing_image_nodes(aggregate::widest_failure(nodes, now));
        let fresh = nodes
            .values()
            .filter(|node| !aggregate::is_stale(node, now));
        let limited: BTreeSet<&str> = fresh.flat_map(brake::limited).collect();
        let planned = &self.state.planned.items;
        if self
            .brakes
            .decide(planned, |image| limited.contains(image), now)
        {
            self.plan_within(Duration::ZERO);
        }
        let prefetches = self.state.prefetches.items.values();
        let uids: BTreeSet<&str> = prefetches.map(|prefetch| &*prefetch.uid).collect();
        self.status_pace.retain(|uid| uids.contains(uid));
    }

    /// The ImagePrefetches of which a PlannedImage has to be written, or of which a later generation has to be planned.
    fn pending(&self) -> BTreeSet<String> {
        let unwritten = self.unwritten.values();
        let unwritten = unwritten.flat_map(|unwritten| unwritten.prefetches.iter().cloned());
        let writing = self.writing.iter();
        unwritten
            .chain(writing.flat_map(|change| self.concerned(change)))
            .collect()
    }

    /// The ImagePrefetches that a change concerns: also one that loses an image, because its set changes when that is written.
    fn concerned(&self, change: &Change) -> BTreeSet<String> {
        let known = self.state.planned.items.get(change.name());
        let known = known.into_iter().flat_map(|known| &known.spec.prefetches);
        change.prefetches().iter().chain(known).cloned().collect()
    }

    /// The answer of the API server that refused a PlannedImage of an ImagePrefetch.
    fn refusal(&self, name: &str) -> Option<&str> {
        let mut unwritten = self.unwritten.values();
        unwritten.find_map(|unwritten| {
            let refusal = unwritten.refusal.as_deref()?;
            unwritten.prefetches.contains(name).then_some(refusal)
        })
    }

    /// Starts the next write of a status that is due.
    fn start_status_write(&mut self, now: Instant) {
        if self.status_write.is_some() || self.statuses.is_empty() || !self.fence.is_leading() {
            return;
        }
        let due = self.statuses.iter().position(|(.., due)| *due <= now);
        let Some(((name, uid), status, _)) = due.and_then(|at| self.statuses.remove(at)) else {
            // They are summed up again when the first of them may be written.
            self.status_at = self.statuses.iter().map(|(.., due)| *due).min();
            self.statuses.clear();
            return;
        };
        // The watch may tell of the new status before the response to the write is here.
        let known = self.state.prefetches.items.get(&name);
        let known = known.map_or_else(ImagePrefetchStatus::default, |known| known.status.clone());
        self.status_pace.write(&uid, &known, &status, now);
        let before = known.conditions;
        let api: Api<AnyPrefetch> = Api::all(self.client.clone());
        self.status_write = Some(Box::pin(async move {
            let object = json!({
                "apiVersion": "harpoon.dev/v1alpha1",
                "kind": "ImagePrefetch",
                // The uid is a precondition.
                "metadata": {"name": name, "uid": uid},
                "status": status,
            });
            let params = PatchParams::apply(MANAGER).force();
            let patch = Patch::Apply(&object);
            let write = api.patch_status(&name, &params, &patch);
            let outcome = apply::in_time(write).await;
            let notices = events::notices(&before, &status.conditions);
            ((name, uid), notices, outcome)
        }));
    }

    fn wrote_status(&mut self, ((name, uid), notices, outcome): StatusOutcome) {
        // Further ones may be due.
        self.is_summed_up = false;
        let known = self.state.prefetches.items.get_mut(&name);
        match (outcome, known.filter(|known| known.uid == uid)) {
            (Ok(object), Some(known)) => {
                self.status_pace.succeeded(&uid);
                self.events.publish(notices, &name, &uid);
                known.status = object.read().status;
            }
            // It was deleted meanwhile, or the watch is about to say so.
            (_, None) => {}
            (Err(kube::Error::Api(status)), _) if matches!(status.code, 404 | 409) => {}
            (Err(error), _) => {
                let failures = self.status_pace.failed(&uid);
                let error = shown(error);
                if failures.is_power_of_two() {
                    warn!(
                        "failed to write the status of the ImagePrefetch {name}: {error}; retrying"
                    );
                } else {
                    debug!(
                        "failed to write the status of the ImagePrefetch {name}: {error}; retrying"
                    );
                }
            }
        }
    }
}

/// The result of what is in flight; never, if nothing is.
async fn finished<T>(slot: &mut InFlight<T>) -> T {
    match slot {
        Some(work) => {
            let result = work.await;
            *slot = None;
            result
        }
        None => pending().await,
    }
}
