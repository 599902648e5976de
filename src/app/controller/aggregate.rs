//! Aggregate: what the nodes report becomes the status of an ImagePrefetch. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::gate::Held;
use super::observe::{Node, Planned, Refusal};
use crate::api::v1alpha1::{
    Condition, ImageFailure, ImagePrefetchStatus, NodeCounts, NodePrefetchEntry,
};
use crate::app::continuous::names;
use crate::app::continuous::status::{condition, number};
use crate::model::text::{clip_bytes, clip_sanitized, sanitize};

/// Time without a report after which a node is unknown.
pub(super) const STALE: Duration = Duration::from_secs(300);
/// Maximum number of failures of a status.
const MAX_FAILURES: usize = 20;
/// Maximum size of a message in bytes, well below the 32 KiB of a condition.
const MESSAGE_MAX: usize = 1024;
/// Characters of an image's name that a status shows.
const IMAGE_MAX: usize = 512;

/// The state of an ImagePrefetch beside its nodes.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Standing {
    /// Its images are known; the number of them, and the malformed ones for people.
    Resolved { images: usize, malformed: String },
    /// Its workloads are being listed.
    Listing,
    /// Nothing is planned or removed on request.
    Suspended,
    /// Its spec cannot be used.
    Invalid(String),
    /// Its workloads cannot be read.
    Refused(Refusal),
}

/// The PlannedImages, looked at from the ImagePrefetches and the images.
#[derive(Debug, Default)]
pub(super) struct Index<'a> {
    by_prefetch: BTreeMap<&'a str, BTreeSet<&'a str>>,
    by_image: BTreeMap<&'a str, &'a [String]>,
    /// The revision of each ImagePrefetch.
    revisions: BTreeMap<&'a str, String>,
    /// The revision of one without images.
    empty: String,
}

impl<'a> Index<'a> {
    pub(super) fn new(planned: &'a BTreeMap<String, Planned>) -> Self {
        let mut index = Self::default();
        for (name, planned) in planned {
            let prefetches = &planned.spec.prefetches;
            index.by_image.insert(&planned.spec.image, prefetches);
            for prefetch in prefetches {
                index.by_prefetch.entry(prefetch).or_default().insert(name);
            }
        }
        let planned = planned.values();
        let planned = planned.map(|planned| (&*planned.spec.prefetches, &*planned.revised));
        index.revisions = names::revisions(planned);
        index.empty = names::revision([]);
        index
    }

    /// Number of PlannedImages that an ImagePrefetch uses.
    pub(super) fn in_use(&self) -> usize {
        let prefetches = self.by_image.values();
        prefetches
            .filter(|prefetches| !prefetches.is_empty())
            .count()
    }

    /// Number of PlannedImages of an ImagePrefetch.
    fn count(&self, prefetch: &str) -> usize {
        self.by_prefetch.get(prefetch).map_or(0, BTreeSet::len)
    }

    /// The revision of an ImagePrefetch's set of PlannedImages.
    pub(super) fn revision(&self, prefetch: &str) -> &str {
        self.revisions.get(prefetch).unwrap_or(&self.empty)
    }

    /// Returns whether an ImagePrefetch has an image.
    pub(super) fn has(&self, prefetch: &str, image: &str) -> bool {
        let prefetches = self.by_image.get(image).copied().unwrap_or_default();
        prefetches.iter().any(|name| name == prefetch)
    }
}

/// The state of a node for one ImagePrefetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NodeState {
    Unneeded,
    Complete,
    Updating,
    Failing,
    Unknown,
}

/// The sums over all nodes for one ImagePrefetch.
#[derive(Debug, Default)]
struct Sums {
    counts: NodeCounts,
    /// Number of nodes that have not seen the latest set.
    outdated: i64,
    reported: i64,
    failures: Vec<ImageFailure>,
    worst: Option<&'static str>,
}

/// An ImagePrefetch to be summed up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) name: &'a str,
    pub(super) generation: Option<i64>,
    pub(super) standing: &'a Standing,
    /// True if PlannedImages of it have to be written yet.
    pub(super) is_pending: bool,
    /// The answer of the API server that refused one of them.
    pub(super) refusal: Option<&'a str>,
    /// The state of its node gate, if it has one.
    pub(super) gate: Option<Held<'a>>,
}

/// The status of an ImagePrefetch. Conditions keep their time where their status is that of `before`.
pub(super) fn status(
    subject: Subject<'_>,
    index: &Index<'_>,
    nodes: &BTreeMap<String, Node>,
    before: &ImagePrefetchStatus,
    (now, now_text): (Instant, &str),
) -> ImagePrefetchStatus {
    let sums = sums(subject.name, index, nodes, now);
    let images = match subject.standing {
        Standing::Resolved { images, .. } => *images,
        _ => index.count(subject.name),
    };
    let mut verdict = Verdict::of(subject, images, &sums);
    if let Some(gate) = subject.gate {
        verdict.add_gate(gate);
    }
    let conditions = verdict.conditions().map(|(kind, status, reason, message)| {
        let message = clip_bytes(&sanitize(&message), MESSAGE_MAX);
        Condition {
            observed_generation: subject.generation,
            ..condition(
                &before.conditions,
                (kind, status),
                (reason, message),
                now_text,
            )
        }
    });
    ImagePrefetchStatus {
        observed_generation: subject.generation,
        images: number(images),
        nodes: sums.counts,
        conditions: conditions.into(),
        failures: sums.failures,
    }
}

/// Returns whether a node has not reported for too long.
pub(super) fn is_stale(node: &Node, now: Instant) -> bool {
    now.saturating_duration_since(node.changed) >= STALE
}

/// The numbers of nodes that are complete, updating, failing and unknown for all ImagePrefetches together.
pub(super) fn overall(
    index: &Index<'_>,
    nodes: &BTreeMap<String, Node>,
    now: Instant,
) -> [usize; 4] {
    let mut counts = [0; 4];
    for node in nodes.values() {
        let lacks = |(name, revision): (&&str, &String)| {
            let entry = node.entry(name);
            entry.is_none_or(|entry| entry.revision != *revision || entry.present < entry.desired)
        };
        let at = if is_stale(node, now) {
            3
        } else if node.entries().any(|entry| entry.failed > 0) {
            2
        } else {
            usize::from(index.revisions.iter().any(lacks))
        };
        counts[at] += 1;
    }
    counts
}

/// The number of nodes on which the image fails that fails on the most nodes.
pub(super) fn widest_failure(nodes: &BTreeMap<String, Node>, now: Instant) -> usize {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in nodes.values().filter(|node| !is_stale(node, now)) {
        let failures = node.failures.iter();
        let images: BTreeSet<&str> = failures.map(|failure| failure.image.as_str()).collect();
        for image in images {
            *counts.entry(image).or_default() += 1;
        }
    }
    counts.into_values().max().unwrap_or_default()
}

fn sums(prefetch: &str, index: &Index<'_>, nodes: &BTreeMap<String, Node>, now: Instant) -> Sums {
    let revision = index.revision(prefetch);
    let none = NodePrefetchEntry {
        revision: index.empty.clone(),
        ..NodePrefetchEntry::default()
    };
    let mut sums = Sums::default();
    let mut failures: BTreeMap<(&str, &'static str), ImageFailure> = BTreeMap::new();
    for (name, node) in nodes {
        let entry = node.entry(prefetch).unwrap_or(&none);
        let is_current = node.has_reported && entry.revision == revision;
        let stale = is_stale(node, now);
        sums.reported += i64::from(node.has_reported);
        sums.outdated += i64::from(!is_current);
        match state(entry, is_current, stale) {
            NodeState::Unneeded => continue,
            NodeState::Complete => sums.counts.complete += 1,
            NodeState::Updating => sums.counts.updating += 1,
            NodeState::Failing => sums.counts.failing += 1,
            NodeState::Unknown => sums.counts.unknown += 1,
        }
        sums.counts.desired += 1;
        if !stale {
            note_failures(&mut failures, prefetch, index, (name, node));
        }
    }
    let mut failures = Vec::from_iter(failures);
    failures.sort_by_key(|(_, failure)| std::cmp::Reverse(failure.nodes));
    sums.worst = failures.first().map(|((_, reason), _)| *reason);
    let shown = failures.into_iter().take(MAX_FAILURES);
    sums.failures = shown.map(|(_, failure)| failure).collect();
    sums
}

fn note_failures<'a>(
    failures: &mut BTreeMap<(&'a str, &'static str), ImageFailure>,
    prefetch: &str,
    index: &Index<'_>,
    (name, node): (&str, &'a Node),
) {
    let mut seen = BTreeSet::new();
    for failure in &node.failures {
        let key = (failure.image.as_str(), failure.reason.condition_reason());
        if !index.has(prefetch, &failure.image) || !seen.insert(key) {
            continue;
        }
        let known = failures.entry(key).or_insert_with(|| ImageFailure {
            image: clip_sanitized(&failure.image, IMAGE_MAX),
            reason: failure.reason.condition_reason().to_owned(),
            message: match failure.message.as_str() {
                "" => "no message".to_owned(),
                message => message.to_owned(),
            },
            nodes: 0,
            example_node: name.to_owned(),
        });
        known.nodes += 1;
    }
}

fn state(entry: &NodePrefetchEntry, is_current: bool, is_stale: bool) -> NodeState {
    match (is_current, is_stale) {
        (true, _) if entry.desired <= 0 => NodeState::Unneeded,
        (_, true) => NodeState::Unknown,
        _ if entry.failed > 0 => NodeState::Failing,
        (true, _) if entry.present >= entry.desired => NodeState::Complete,
        _ => NodeState::Updating,
    }
}

/// The content of the conditions.
struct Verdict {
    is_ready: bool,
    is_progressing: bool,
    /// The reason and the message, if something is wrong.
    degraded: Option<(String, String)>,
    reason: String,
    message: String,
    /// The addition of the node gate to the message of Progressing.
    held: String,
}

impl Verdict {
    /// Adds what the node gate lacks, unless something else is wrong, and the nodes that it holds.
    fn add_gate(&mut self, gate: Held<'_>) {
        if let (None, Some(refusal)) = (&self.degraded, gate.refusal) {
            self.degraded = Some((refusal.reason.to_owned(), refusal.message.clone()));
        }
        if gate.nodes > 0 {
            self.held = format!("; nodes held by the node gate: {}", gate.nodes);
        }
    }

    fn of(subject: Subject<'_>, images: usize, sums: &Sums) -> Self {
        let updates = subject.is_pending || sums.counts.updating > 0;
        let not_ready = |reason: &str, message: String, is_progressing: bool, is_degraded: bool| {
            let degraded = is_degraded.then(|| (reason.to_owned(), message.clone()));
            Self {
                is_ready: false,
                is_progressing,
                degraded,
                reason: reason.to_owned(),
                message,
                held: String::new(),
            }
        };
        let malformed = match subject.standing {
            Standing::Resolved { malformed, .. } => malformed,
            Standing::Listing => {
                let message = "the workloads are being listed".to_owned();
                return not_ready("Updating", message, true, false);
            }
            Standing::Suspended => {
                let message = "spec.suspend is true: no image is added or removed".to_owned();
                return not_ready("Suspended", message, false, false);
            }
            Standing::Invalid(message) => {
                return not_ready("InvalidSpec", message.clone(), false, true);
            }
            Standing::Refused(refusal) => {
                let message = format!("{}; its images stay as they are", refusal.message);
                return not_ready(refusal.reason, message, false, true);
            }
        };
        if !malformed.is_empty() {
            return not_ready("InvalidSpec", malformed.clone(), updates, true);
        }
        if let (Some(reason), Some(failure)) = (sums.worst, sums.failures.first()) {
            return not_ready(reason, failing(failure, sums), updates, true);
        }
        if let Some(refusal) = subject.refusal {
            let message = format!("a PlannedImage cannot be written: {refusal}");
            return not_ready("WriteRefused", message, updates, true);
        }
        if subject.is_pending {
            let message = "the images are being planned".to_owned();
            return not_ready("Updating", message, true, false);
        }
        if sums.reported == 0 {
            let message = "no agent has reported yet".to_owned();
            return not_ready("NoAgents", message, false, false);
        }
        Self::of_nodes(images, sums, not_ready)
    }

    /// The verdict if all images are planned and none fails with a known reason.
    fn of_nodes(
        images: usize,
        sums: &Sums,
        not_ready: impl Fn(&str, String, bool, bool) -> Self,
    ) -> Self {
        let counts = &sums.counts;
        let all = format!(
            "{} of {} nodes are complete",
            counts.complete, counts.desired
        );
        if counts.failing > 0 {
            let message = format!("{all}, images fail on {}", counts.failing);
            return not_ready("Other", message, counts.updating > 0, true);
        }
        let minutes = STALE.as_secs() / 60;
        let silent = format!(
            "{all}, {} have not reported for {minutes} minutes",
            counts.unknown
        );
        if counts.updating > 0 {
            let is_silent = counts.unknown > 0;
            return Self {
                degraded: is_silent.then(|| ("NodesUnknown".to_owned(), silent)),
                ..not_ready("Updating", all, true, false)
            };
        }
        if counts.unknown > 0 {
            return not_ready("NodesUnknown", silent, false, true);
        }
        if sums.outdated > 0 {
            return not_ready("Updating", all, true, false);
        }
        let (reason, message) = match (images, counts.desired) {
            (0, _) => ("NoImages", "no image is wanted".to_owned()),
            (_, 0) => ("NoMatchingNodes", "no node needs an image".to_owned()),
            _ => ("Complete", all),
        };
        Self {
            is_ready: true,
            is_progressing: false,
            degraded: None,
            reason: reason.to_owned(),
            message,
            held: String::new(),
        }
    }

    /// Type, status, reason and message of each condition.
    fn conditions(&self) -> [(&'static str, &'static str, String, String); 3] {
        let text = |is: bool| if is { "True" } else { "False" };
        let (degraded, why) = match &self.degraded {
            Some((reason, message)) => (true, (reason.clone(), message.clone())),
            None => (false, (self.reason.clone(), self.message.clone())),
        };
        let progress = match self.is_progressing {
            true => "Updating".to_owned(),
            false => self.reason.clone(),
        };
        // The message of each says why, also where nothing is wrong.
        [
            (
                "Ready",
                text(self.is_ready),
                self.reason.clone(),
                self.message.clone(),
            ),
            (
                "Progressing",
                text(self.is_progressing),
                progress,
                format!("{}{}", self.message, self.held),
            ),
            ("Degraded", text(degraded), why.0, why.1),
        ]
    }
}

/// The most frequent failure for people.
fn failing(failure: &ImageFailure, sums: &Sums) -> String {
    let others = match sums.failures.len() {
        1 => String::new(),
        n => format!("; {} more failures", n - 1),
    };
    format!(
        "{} of {} nodes are complete; image {} fails on {} nodes, such as {}: {}{others}",
        sums.counts.complete,
        sums.counts.desired,
        failure.image,
        failure.nodes,
        failure.example_node,
        failure.message
    )
}
