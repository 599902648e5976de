//! Sums up what was read. Pure, except for the clock of ages.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::Subject;
use super::state::{Entry, Failure, Node, Prefetch, State};
use crate::app::continuous::names;
use crate::report::status::{
    EntryRow, FailureRow, ImageRow, ImageSums, NodeRow, NodeState, NodeSums, NodeView, Overview,
    PrefetchRow, PrefetchView, View,
};

/// Time without a report after which a node is unknown, as in the controller.
const STALE: Duration = Duration::from_secs(300);
/// Number of nodes with the longest first fill.
const SLOWEST: usize = 10;

/// The subject does not exist.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotFound {
    #[error("ImagePrefetch {0:?} not found")]
    Prefetch(String),
    #[error("node {0:?} has no NodePrefetch: no agent has reported from it")]
    Node(String),
}

/// The view of the state.
pub(super) fn of(state: &State) -> Result<View, NotFound> {
    let sets = Sets::of(state);
    match state.subject() {
        Subject::All => Ok(View::Overview(overview(state, &sets))),
        Subject::Prefetch(name) => {
            let prefetch = state.prefetches.get(name);
            let prefetch = prefetch.ok_or_else(|| NotFound::Prefetch(name.clone()))?;
            let view = prefetch_view(state, &sets, name, prefetch);
            Ok(View::Prefetch(Box::new(view)))
        }
        Subject::Node(name) => {
            let node = state.nodes.get(name);
            let node = node.ok_or_else(|| NotFound::Node(name.clone()))?;
            let view = node_view(state, &sets, name, node);
            Ok(View::Node(Box::new(view)))
        }
    }
}

/// The images of each ImagePrefetch, and their revisions.
struct Sets<'a> {
    names: BTreeMap<&'a str, BTreeSet<&'a str>>,
    revisions: BTreeMap<&'a str, String>,
    none: String,
}

impl<'a> Sets<'a> {
    fn of(state: &'a State) -> Self {
        let planned = state.planned.values();
        let planned = planned.map(|planned| (&*planned.prefetches, &*planned.revised));
        Self {
            revisions: names::revisions(planned),
            none: names::revision([]),
            names: state.by_prefetch(),
        }
    }

    fn revision(&self, prefetch: &str) -> &str {
        self.revisions.get(prefetch).unwrap_or(&self.none)
    }

    fn is_current(&self, entry: &Entry) -> bool {
        entry.revision == self.revision(&entry.name)
    }
}

fn overview(state: &State, sets: &Sets<'_>) -> Overview {
    let now = state.now();
    let rows = state.prefetches.iter();
    let rows = rows.map(|(name, prefetch)| {
        let nodes = state.nodes.values();
        let states = nodes.filter_map(|node| of_prefetch(sets, name, node, now));
        row(
            state,
            sets,
            (name, prefetch),
            states.map(|(state, _)| state),
        )
    });
    let mut sums = NodeSums::default();
    let mut incomplete = Vec::new();
    for (name, node) in &state.nodes {
        let node_state = overall(sets, node, now);
        sums.add(node_state);
        if node_state != NodeState::Complete {
            incomplete.push(node_row(name, node, node_state, node.images, now));
        }
    }
    sort(&mut incomplete);
    Overview {
        prefetches: rows.collect(),
        nodes: sums,
        incomplete,
        failures: failures(state, |_| true),
    }
}

fn prefetch_view(state: &State, sets: &Sets<'_>, name: &str, prefetch: &Prefetch) -> PrefetchView {
    let now = state.now();
    let nodes = state.nodes.iter();
    let nodes: Vec<_> = nodes
        .filter_map(|(of, node)| {
            let (node_state, images) = of_prefetch(sets, name, node, now)?;
            Some(node_row(of, node, node_state, images, now))
        })
        .collect();
    let states = nodes.iter().map(|node| node.state);
    let prefetch = row(state, sets, (name, prefetch), states);
    let mut slowest: Vec<&NodeRow> = nodes.iter().collect();
    slowest.retain(|node| node.first_fill_seconds.is_some());
    let fill = |node: &NodeRow| node.first_fill_seconds.unwrap_or_default();
    slowest.sort_by(|one, other| fill(other).total_cmp(&fill(one)));
    let slowest = slowest.into_iter().take(SLOWEST).cloned().collect();
    let mut incomplete = nodes;
    incomplete.retain(|node| node.state != NodeState::Complete);
    sort(&mut incomplete);
    let own: BTreeSet<&str> = state.planned.values().map(|p| p.image.as_str()).collect();
    PrefetchView {
        prefetch,
        images: images(state, sets, name, now),
        incomplete,
        slowest,
        failures: failures(state, |image| own.contains(image)),
    }
}

fn node_view(state: &State, sets: &Sets<'_>, name: &str, node: &Node) -> NodeView {
    let now = state.now();
    let detail = node.detail.as_deref().cloned().unwrap_or_default();
    let entries = node.entries().iter().map(|entry| EntryRow {
        name: crate::model::text::sanitize(&entry.name),
        images: entry.images,
        current: sets.is_current(entry),
    });
    let failures = node.failures.iter().zip(detail.messages);
    let failures = failures.map(|(failure, message)| FailureRow {
        image: failure.image.clone(),
        reason: failure.reason.clone(),
        nodes: 1,
        example_node: name.to_owned(),
        message,
    });
    NodeView {
        node: node_row(name, node, overall(sets, node, now), node.images, now),
        ready: detail.ready.status,
        reason: detail.ready.reason,
        message: detail.ready.message,
        runtime: detail.runtime,
        image_store: detail.store,
        prefetches: entries.collect(),
        failures: failures.collect(),
    }
}

fn row(
    state: &State,
    sets: &Sets<'_>,
    (name, prefetch): (&str, &Prefetch),
    states: impl Iterator<Item = NodeState>,
) -> PrefetchRow {
    let mut nodes = NodeSums::default();
    states.for_each(|state| nodes.add(state));
    let (ready, degraded) = (prefetch.ready.clone(), prefetch.degraded.clone());
    let age = prefetch.created.map(|at| state.now().saturating_sub(at));
    PrefetchRow {
        name: name.to_owned(),
        ready: ready.status,
        reason: ready.reason,
        message: ready.message,
        degraded: degraded.status == "True",
        degraded_reason: degraded.reason,
        degraded_message: degraded.message,
        suspended: prefetch.is_suspended,
        images: sets.names.get(name).map_or(0, |set| set.len() as u64),
        nodes,
        age_seconds: age.map(|age| age.as_secs()),
    }
}

fn node_row(
    name: &str,
    node: &Node,
    state: NodeState,
    images: ImageSums,
    now: Duration,
) -> NodeRow {
    let heartbeat = node.heartbeat.map(|at| now.saturating_sub(at).as_secs());
    NodeRow {
        name: name.to_owned(),
        state,
        images,
        heartbeat_seconds: heartbeat,
        first_fill_seconds: node.first_fill,
    }
}

/// The worst first.
fn sort(rows: &mut [NodeRow]) {
    let missing = |row: &NodeRow| row.images.desired.saturating_sub(row.images.present);
    rows.sort_by_key(|row| (row.state, Reverse(missing(row))));
}

/// Returns whether a node has been silent, since its creation if it never reported.
fn is_stale(node: &Node, now: Duration) -> bool {
    let fresh = |at: Duration| now.saturating_sub(at) < STALE;
    !node.heartbeat.or(node.created).is_some_and(fresh)
}

/// The state of a node for one ImagePrefetch; `None` if it needs no image of it. The rules are those of the controller.
fn of_prefetch(
    sets: &Sets<'_>,
    prefetch: &str,
    node: &Node,
    now: Duration,
) -> Option<(NodeState, ImageSums)> {
    let entry = node.entry(prefetch);
    let images = entry.map(|entry| entry.images).unwrap_or_default();
    let revision = entry.map_or(sets.none.as_str(), |entry| entry.revision.as_str());
    let is_current = node.has_reported && revision == sets.revision(prefetch);
    let state = match is_current {
        true if images.desired == 0 => return None,
        _ if is_stale(node, now) => NodeState::Unknown,
        _ if images.failed > 0 => NodeState::Failing,
        true if images.present >= images.desired => NodeState::Complete,
        _ => NodeState::Updating,
    };
    Some((state, images))
}

/// The state of a node for all ImagePrefetches together.
fn overall(sets: &Sets<'_>, node: &Node, now: Duration) -> NodeState {
    let lacks = |name: &str| {
        node.entry(name).is_none_or(|entry| {
            !sets.is_current(entry) || entry.images.present < entry.images.desired
        })
    };
    if is_stale(node, now) {
        NodeState::Unknown
    } else if node.entries().iter().any(|entry| entry.images.failed > 0) {
        NodeState::Failing
    } else if !node.has_reported || sets.names.keys().any(|name| lacks(name)) {
        NodeState::Updating
    } else {
        NodeState::Complete
    }
}

fn failures(state: &State, counts: impl Fn(&str) -> bool) -> Vec<FailureRow> {
    let mut rows: BTreeMap<*const Failure, FailureRow> = BTreeMap::new();
    for (name, node) in &state.nodes {
        for failure in node.failures.iter().filter(|f| counts(&f.image)) {
            let row = rows.entry(Arc::as_ptr(failure));
            let row = row.or_insert_with(|| FailureRow {
                image: failure.image.clone(),
                reason: failure.reason.clone(),
                nodes: 0,
                example_node: name.clone(),
                message: failure.message.clone(),
            });
            row.nodes += 1;
        }
    }
    let mut rows: Vec<FailureRow> = rows.into_values().collect();
    rows.sort_by(|one, other| {
        let key = |row: &FailureRow| (Reverse(row.nodes), row.image.clone(), row.reason.clone());
        key(one).cmp(&key(other))
    });
    rows
}

/// The images of an ImagePrefetch that a node needs, as far as its numbers tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// All of them.
    All,
    /// Exactly those that every node needs.
    Everywhere,
    /// Those that every node needs, and some of the others.
    Some,
}

/// Numbers of nodes by need, and whether a node has all images that it does not report as failed.
#[derive(Debug, Clone, Copy, Default)]
struct Counts([[u64; 2]; 3]);

impl Counts {
    fn add(&mut self, need: Need, is_settled: bool) {
        self.0[need as usize][usize::from(is_settled)] += 1;
    }

    /// The numbers of the nodes that may need an image, and of those that certainly need it and are settled.
    fn of(&self, is_everywhere: bool) -> (u64, u64) {
        let sum = |need: Need| self.0[need as usize].iter().sum::<u64>();
        let settled = |need: Need| self.0[need as usize][1];
        let (all, everywhere, some) = (Need::All, Need::Everywhere, Need::Some);
        match is_everywhere {
            true => (
                sum(all) + sum(everywhere) + sum(some),
                settled(all) + settled(everywhere) + settled(some),
            ),
            false => (sum(all) + sum(some), settled(all)),
        }
    }
}

/// Numbers of nodes that have each image of an ImagePrefetch. A node reports the number of its images and those that failed, which
/// names its images where it has all, or all but those that failed.
fn images(state: &State, sets: &Sets<'_>, prefetch: &str, now: Duration) -> Vec<ImageRow> {
    let planned: Vec<_> = state.planned.values().collect();
    let own: BTreeSet<&str> = planned.iter().map(|p| p.image.as_str()).collect();
    let total = planned.len() as u64;
    let everywhere = planned.iter().filter(|p| p.is_everywhere).count() as u64;
    let mut counts = Counts::default();
    let mut failed: BTreeMap<&str, Counts> = BTreeMap::new();
    for node in state.nodes.values() {
        let Some((node_state, sums)) = of_prefetch(sets, prefetch, node, now) else {
            continue;
        };
        let entry = node.entry(prefetch);
        let is_current = entry.is_some_and(|entry| sets.is_current(entry));
        let need = match sums.desired {
            desired if is_current && desired == total => Need::All,
            desired if is_current && desired == everywhere => Need::Everywhere,
            _ => Need::Some,
        };
        let mut lacks: BTreeSet<&str> = node.failures.iter().map(|f| f.image.as_str()).collect();
        lacks.retain(|image| own.contains(image));
        let is_settled = is_current
            && node_state != NodeState::Unknown
            && sums.present + lacks.len() as u64 == sums.desired;
        counts.add(need, is_settled);
        for image in lacks {
            failed.entry(image).or_default().add(need, is_settled);
        }
    }
    let mut rows: Vec<ImageRow> = planned
        .iter()
        .map(|planned| {
            let failed = failed.get(planned.image.as_str());
            let failed = failed.copied().unwrap_or_default();
            let (nodes, settled) = counts.of(planned.is_everywhere);
            let (lacking, settled_lacking) = failed.of(planned.is_everywhere);
            ImageRow {
                image: planned.image.clone(),
                pods: planned.pods,
                nodes,
                present_min: settled - settled_lacking,
                present_max: nodes - lacking,
                failed: failed.of(true).0,
            }
        })
        .collect();
    rows.sort_by(|one, other| {
        let key = |row: &ImageRow| {
            let lacking = row.nodes - row.present_min;
            (Reverse(row.failed), Reverse(lacking), Reverse(row.pods))
        };
        key(one).cmp(&key(other)).then(one.image.cmp(&other.image))
    });
    rows
}
