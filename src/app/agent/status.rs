//! The status of the node's NodePrefetch. Pure.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use super::state::{Failure, Image, State};
use crate::api::v1alpha1::{
    Condition, ImageStore, NodeFailure, NodePrefetchEntry, NodePrefetchStatus,
};
use crate::app::continuous::status::{DISK_PRESSURE, condition, number};
use crate::model::text::clip_sanitized;

/// The most failures in a status.
const MAX_FAILURES: usize = 10;
/// The most characters of a failure's image and message.
const MAX_IMAGE: usize = 300;
const MAX_MESSAGE: usize = 240;
/// The size of a status in bytes beyond which failures are left out.
const MAX_BYTES: usize = 4000;
/// The condition that is always there, and first.
const READY: &str = "Ready";
/// The condition of a node whose runtime does not pin images that are to be pinned.
const PINS_IGNORED: &str = "PinsIgnored";
/// Its reason while no runtime responds.
pub(super) const RUNTIME_UNAVAILABLE: &str = "RuntimeUnavailable";

/// The numbers of images in each state. Every image is in one of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) present: usize,
    pub(super) pulling: usize,
    pub(super) waiting: usize,
    pub(super) failed: usize,
}

impl Counts {
    fn add(&mut self, image: &Image) {
        let count = match () {
            () if image.is_here() => &mut self.present,
            () if image.failure.is_some() => &mut self.failed,
            () if image.is_started() => &mut self.pulling,
            () if image.is_missing() => &mut self.waiting,
            // Removed, and not to be pulled again.
            () => return,
        };
        *count += 1;
    }

    pub(super) fn desired(self) -> usize {
        self.present + self.pulling + self.waiting + self.failed
    }
}

/// The counts of all images that the node needs.
pub(super) fn counts(state: &State) -> Counts {
    let mut counts = Counts::default();
    state.images().for_each(|image| counts.add(image));
    counts
}

/// The status. The time of the last transition is `now` unless `before` has the same condition.
pub(super) fn status(
    state: &State,
    before: Option<&NodePrefetchStatus>,
    now: SystemTime,
) -> NodePrefetchStatus {
    let all = counts(state);
    let runtime = state.last_runtime.as_ref();
    let first_fill = state.first_fill.duration();
    let mut status = NodePrefetchStatus {
        conditions: conditions(state, all, before, now),
        desired: number(all.desired()),
        present: number(all.present),
        pulling: number(all.pulling + all.waiting),
        failed: number(all.failed),
        prefetches: entries(state),
        failures: failures(state),
        first_fill_seconds: first_fill.map(|fill| (fill.as_secs_f64() * 1000.0).round() / 1000.0),
        runtime: runtime.map_or_else(String::new, |info| {
            clip_sanitized(&format!("{} {}", info.name, info.version), MAX_IMAGE)
        }),
        image_store: state.usage.map(|used| ImageStore {
            harpoon_bytes: Some(number(state.bytes())),
            used_bytes: Some(number(used)),
            capacity_bytes: state.capacity.map(number),
        }),
        heartbeat_time: time(now),
    };
    while status.failures.len() > 1 && size(&status) > MAX_BYTES {
        status.failures.pop();
    }
    status
}

/// The counts of each prefetch, also of those of which the node needs nothing.
fn entries(state: &State) -> Vec<NodePrefetchEntry> {
    let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
    for image in state.images() {
        for prefetch in &image.planned.prefetches {
            counts.entry(prefetch).or_default().add(image);
        }
    }
    let revisions = state.revisions().into_iter();
    let entries = revisions.map(|(name, revision)| {
        let counts = counts.get(name.as_str()).copied().unwrap_or_default();
        NodePrefetchEntry {
            name,
            revision,
            desired: number(counts.desired()),
            present: number(counts.present),
            pulling: number(counts.pulling + counts.waiting),
            failed: number(counts.failed),
        }
    });
    entries.collect()
}

/// The failures in the order of the images, but one of each reason before the second of any.
fn failures(state: &State) -> Vec<NodeFailure> {
    let mut seen: HashMap<&'static str, usize> = HashMap::new();
    let failed = state
        .images()
        .filter_map(|image| Some((image, image.failure.as_ref()?)));
    let mut ranked: Vec<(usize, NodeFailure)> = failed
        .map(|(image, failure)| {
            let rank = seen.entry(failure.reason.as_str()).or_default();
            *rank += 1;
            (*rank, shown(image, failure))
        })
        .collect();
    ranked.sort_by_key(|(rank, _)| *rank);
    let first = ranked.into_iter().take(MAX_FAILURES);
    first.map(|(_, failure)| failure).collect()
}

fn shown(image: &Image, failure: &Failure) -> NodeFailure {
    NodeFailure {
        image: clip_sanitized(&image.planned.image, MAX_IMAGE),
        reason: failure.reason.as_str().to_owned(),
        message: clip_sanitized(&failure.message, MAX_MESSAGE),
    }
}

fn ready(
    state: &State,
    counts: Counts,
    before: Option<&NodePrefetchStatus>,
    now: SystemTime,
) -> Condition {
    let first = state.images().find_map(|image| image.failure.as_ref());
    let missing = counts.pulling + counts.waiting;
    let (is_ready, reason, message) = match first {
        _ if state.runtime.is_none() => {
            let message = "the container runtime does not respond".to_owned();
            (false, RUNTIME_UNAVAILABLE, message)
        }
        Some(failure) if counts.failed > 0 => {
            let message = format!("{} images failed", counts.failed);
            (false, failure.reason.condition_reason(), message)
        }
        _ if missing > 0 => (
            false,
            "Pulling",
            format!("{missing} images are not there yet"),
        ),
        _ => (true, "Complete", "all images are present".to_owned()),
    };
    let status = if is_ready { "True" } else { "False" };
    let why = (reason.to_owned(), message);
    let before = before.map_or(&[][..], |status| &status.conditions);
    condition(before, (READY, status), why, &time(now))
}

/// All conditions; those of special states only while they last.
fn conditions(
    state: &State,
    counts: Counts,
    before: Option<&NodePrefetchStatus>,
    now: SystemTime,
) -> Vec<Condition> {
    let mut conditions = vec![ready(state, counts, before, now)];
    let before = before.map_or(&[][..], |status| &status.conditions);
    for (kind, reason, message) in [
        (DISK_PRESSURE, "AboveHighMark", &state.yielding),
        (PINS_IGNORED, "NotSupported", &state.pins_ignored),
    ] {
        if let Some(message) = message {
            let why = (reason.to_owned(), clip_sanitized(message, MAX_MESSAGE));
            conditions.push(condition(before, (kind, "True"), why, &time(now)));
        }
    }
    conditions
}

/// A time as the API server writes it.
pub(super) fn time(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

fn size(status: &NodePrefetchStatus) -> usize {
    serde_json::to_vec(status).map_or(0, |json| json.len())
}

#[cfg(test)]
mod tests {
    use crate::model::failure::FailureKind;
    use serde_json::json;
    use tokio::time::Instant;

    use super::*;
    use crate::app::agent::planned::Planned;
    use crate::app::agent::state::LocalNode;
    use crate::model::node_facts::NodeFacts;
    use crate::model::outcome::{ImageReport, Outcome, Reason};
    use crate::planning::node_match::Node;

    /// A node with these images and prefetches, all of which have failed.
    fn failing(images: usize, prefetches: usize, message: &str) -> State {
        let mut state = State::new();
        state.node = Some(LocalNode {
            node: Node::default(),
            facts: NodeFacts {
                created: None,
                platform: None,
            },
            uid: String::new(),
            is_deleted: false,
        });
        state.first_fill.earlier(None);
        let prefetches: Vec<String> = (0..prefetches).map(|n| format!("prefetch-{n}")).collect();
        state.replace((0..images).map(|n| {
            let object = json!({
                "apiVersion": "harpoon.dev/v1alpha1", "kind": "PlannedImage", "metadata": {"name": format!("i-{n}")},
                "spec": {"image": format!("r.io/{}/{n:03}:1", "x".repeat(200)), "prefetches": prefetches}
            });
            Planned::of(serde_json::from_value(object).unwrap())
        }));
        state.decide();
        let names: Vec<_> = state.images().map(|i| i.planned.image.clone()).collect();
        for (n, image) in names.into_iter().enumerate() {
            let kind = match n {
                30 => FailureKind::RateLimited,
                _ => FailureKind::NotFound,
            };
            let report = ImageReport {
                image,
                outcome: Outcome::Failed,
                reason: Some(Reason::Failure(kind)),
                message: Some(message.to_owned()),
                pods: None,
                workloads: [].into(),
                attempts: 1,
                seconds: None,
                bytes: None,
                digest: None,
                credential: None,
                is_sealed: false,
            };
            state.finished(&report, Instant::now());
        }
        state
    }

    #[test]
    fn status_is_small_and_tells_reasons() {
        let state = failing(500, 12, &format!("\u{1b}[31m{}", "é".repeat(5000)));
        let status = status(&state, None, SystemTime::now());
        assert!(size(&status) <= 4096, "{}", size(&status));
        assert_eq!((status.desired, status.failed), (500, 500));
        assert_eq!(status.prefetches.len(), 12);
        assert_eq!(status.prefetches[0].failed, 500);
        // The one that others wait for is not lost among many.
        let reasons: Vec<_> = status.failures.iter().map(|f| &*f.reason).collect();
        assert!(
            reasons.len() > 1 && reasons[..2] == ["not_found", "rate_limited"],
            "{reasons:?}"
        );
        assert!(!status.failures[0].message.contains('\u{1b}'));
        let few = super::status(&failing(50, 1, "short"), None, SystemTime::now());
        assert_eq!(few.failures.len(), MAX_FAILURES);
    }

    #[test]
    fn transition_time_changes_with_status() {
        let state = failing(1, 1, "no");
        let start = SystemTime::UNIX_EPOCH;
        let before = status(&state, None, start);
        let later = start + std::time::Duration::from_secs(60);
        let after = status(&state, Some(&before), later);
        assert_eq!(after.conditions[0].last_transition_time, time(start));
        assert_eq!(after.heartbeat_time, time(later));
    }
}
