//! The node gate: which nodes keep their taint, and what their condition says. Pure.
//!
//! A gate fails open: whatever is missing or wrong, a node is held no longer than the timeout, by the node's age and by the time for
//! which this process has known the node, whichever is longer.

use std::time::{Duration, Instant, SystemTime};

use kube::ResourceExt;
use kube::core::Object;
use serde::Deserialize;
use serde_json::Value;

use super::aggregate::Index;
use super::observe::{Node, Refusal};
use crate::app::continuous::names;
use crate::model::text::{clip_bytes, sanitize};
use crate::planning::node_match::GATE_TAINT;

/// The keys of the taints that the gate removes.
const TAINTS: [&str; 2] = [
    GATE_TAINT,
    "startup-taint.cluster-autoscaler.kubernetes.io/harpoon",
];
/// The effect of these taints. One with another effect is somebody else's.
const EFFECT: &str = "NoSchedule";
/// Prefix of the taints of node-readiness-controller, which waits for conditions.
const READINESS: &str = "readiness.k8s.io/";
/// The type of the node's condition.
pub(super) const CONDITION: &str = "ImagesPrefetched";
/// The longest timeout, and that of a gate whose own is not known.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
const DEFAULT: Duration = Duration::from_secs(600);
/// Maximum size of a message in bytes, and of a reason that is read.
const MESSAGE_MAX: usize = 1000;
const REASON_MAX: usize = 100;
/// Maximum number of failed images of an ImagePrefetch, and of ImagePrefetches, that a message names.
const MAX_NAMED: usize = 3;
const MAX_GATES: usize = 10;

/// The images are there.
const COMPLETE: &str = "Complete";
/// No ImagePrefetch has a gate.
const NO_GATE: &str = "NoGate";
/// The gate opened although images are missing.
const TIMED_OUT: &str = "TimedOut";

/// The parts of a Node that are read.
pub(super) type GateNode = Object<GateSpec, GateStatus>;

/// The taints.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct GateSpec {
    taints: Option<Vec<Value>>,
}

/// The conditions.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct GateStatus {
    conditions: Option<Vec<Value>>,
}

/// The condition of a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) is_open: bool,
    pub(super) reason: String,
    pub(super) message: String,
    /// The time of its last transition, if it has one.
    pub(super) since: Option<String>,
}

/// A Node. What is observed of it by an agent is the controller's `Node`.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) uid: String,
    /// The resource version that the watch told last.
    version: Option<String>,
    created: Option<SystemTime>,
    /// The time at which this process saw it first.
    seen: Instant,
    /// The taints of the gate, with their positions.
    pub(super) taints: Vec<(usize, Value)>,
    awaits_condition: bool,
    pub(super) condition: Option<Told>,
}

impl Machine {
    pub(super) fn of(node: &GateNode, known: Option<&Self>, now: Instant) -> Self {
        let uid = node.uid().unwrap_or_default();
        let created = node.creation_timestamp().map(|at| at.0.to_string());
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref());
        let mut conditions = conditions.unwrap_or_default().iter();
        Self {
            version: node.resource_version(),
            created: created.and_then(|at| humantime::parse_rfc3339(&at).ok()),
            seen: known
                .filter(|known| known.uid == uid)
                .map_or(now, |known| known.seen),
            taints: taints(node),
            awaits_condition: all_taints(node)
                .iter()
                .any(|taint| text(taint, "key").starts_with(READINESS)),
            condition: conditions
                .find(|condition| text(condition, "type") == CONDITION)
                .map(|condition| Told {
                    is_open: text(condition, "status") == "True",
                    reason: clip_bytes(text(condition, "reason"), REASON_MAX),
                    message: clip_bytes(text(condition, "message"), MESSAGE_MAX),
                    since: condition["lastTransitionTime"].as_str().map(str::to_owned),
                }),
            uid,
        }
    }

    /// Takes in what was written, until the watch tells the same. What the watch has told since the write began is newer, or is
    /// about to be followed by it: somebody may have put a taint back before the answer came.
    pub(super) fn written(&mut self, action: &Action, is_opened: bool, is_told: bool) {
        if (&self.uid, &self.version) != (&action.uid, &action.version) {
            return;
        }
        if is_opened && !action.taints.is_empty() {
            self.taints.clear();
        }
        if is_told && action.condition.is_some() {
            self.condition.clone_from(&action.condition);
        }
    }

    /// Returns whether anything may have to be written to the node.
    pub(super) fn is_concerned(&self) -> bool {
        let is_final =
            |told: &Told| told.is_open && [COMPLETE, NO_GATE].contains(&told.reason.as_str());
        let settled = self.condition.as_ref().map(is_final);
        !self.taints.is_empty()
            || settled == Some(false)
            || (self.awaits_condition && settled.is_none())
    }

    /// Returns whether the node was let in, and nobody has put a taint back.
    fn was_opened(&self) -> bool {
        self.taints.is_empty() && self.condition.as_ref().is_some_and(|told| told.is_open)
    }

    /// The rest of a timeout.
    fn left(&self, gate: &Gate, clock: Clock) -> Duration {
        let known = clock.now.saturating_duration_since(self.seen);
        let age = self
            .created
            .and_then(|created| clock.wall.duration_since(created).ok());
        let timeout = gate.timeout.min(LONGEST);
        // No gate that is not known yet is longer.
        let by_age = if gate.is_known { timeout } else { LONGEST };
        let by_age = by_age.saturating_sub(age.unwrap_or_default());
        timeout.saturating_sub(known).min(by_age)
    }
}

/// The taints of the gate, with their positions among all taints.
pub(super) fn taints(node: &GateNode) -> Vec<(usize, Value)> {
    let all = all_taints(node).iter().enumerate();
    all.filter(|(_, taint)| TAINTS.contains(&text(taint, "key")) && text(taint, "effect") == EFFECT)
        .map(|(at, taint)| (at, taint.clone()))
        .collect()
}

fn all_taints(node: &GateNode) -> &[Value] {
    node.spec.taints.as_deref().unwrap_or_default()
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap_or_default()
}

/// Both clocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    pub(super) now: Instant,
    pub(super) wall: SystemTime,
}

/// The gate of an ImagePrefetch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gate {
    pub(super) name: String,
    timeout: Duration,
    revision: String,
    /// True if its images are known and written.
    is_settled: bool,
    /// False for the gates that have not been listed yet.
    is_known: bool,
}

impl Gate {
    /// The gate of an ImagePrefetch whose PlannedImages have this revision. A timeout that is none opens it.
    pub(super) fn new(name: &str, timeout: &str, revision: String, is_settled: bool) -> Self {
        Self {
            name: name.to_owned(),
            timeout: humantime::parse_duration(timeout).unwrap_or_default(),
            revision,
            is_settled,
            is_known: true,
        }
    }

    /// Stands for all gates until the ImagePrefetches are listed.
    pub(super) fn unknown() -> Self {
        Self {
            name: "(not listed yet)".to_owned(),
            timeout: DEFAULT,
            revision: String::new(),
            is_settled: false,
            is_known: false,
        }
    }

    /// Returns whether the node has all images that it needs.
    fn is_complete(&self, report: Option<&Node>) -> bool {
        let has_all = |node: &Node| {
            let entry = node.entry(&self.name);
            node.has_reported
                && entry.is_some_and(|entry| {
                    entry.revision == self.revision && entry.present >= entry.desired
                })
        };
        self.is_settled && (self.revision == names::revision([]) || report.is_some_and(has_all))
    }
}

/// The state of a node as it has to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decision<'a> {
    pub(super) is_held: bool,
    reason: &'static str,
    message: String,
    /// The ImagePrefetches for which the node waits.
    pub(super) waits_for: Vec<&'a str>,
    /// The time after which the node waits for fewer of them in any case.
    pub(super) left: Option<Duration>,
}

/// Decides on a node. `report` is what its agent wrote.
pub(super) fn decide<'a>(
    machine: &Machine,
    gates: &'a [Gate],
    report: Option<&Node>,
    index: &Index<'_>,
    clock: Clock,
) -> Decision<'a> {
    // An object of an earlier Node of this name tells nothing about this one.
    let report = report.filter(|node| node.owner.as_ref().is_none_or(|uid| *uid == machine.uid));
    let missing = gates.iter().filter(|gate| !gate.is_complete(report));
    // A later gate or a longer timeout does not hold a node that has its pods already.
    let was_opened = machine.was_opened();
    let (waiting, expired): (Vec<&Gate>, Vec<&Gate>) =
        missing.partition(|gate| !was_opened && !machine.left(gate, clock).is_zero());
    let open = |reason, message: String| Decision {
        is_held: false,
        reason,
        message,
        waits_for: Vec::new(),
        left: None,
    };
    if waiting.is_empty() {
        let said: Vec<String> = expired
            .iter()
            .take(MAX_GATES)
            .map(|gate| said(gate, report, index))
            .collect();
        return match gates {
            [] => open(NO_GATE, "no ImagePrefetch has a nodeGate".to_owned()),
            _ if said.is_empty() => open(
                COMPLETE,
                "the images of all ImagePrefetches with a nodeGate are present".to_owned(),
            ),
            _ => open(
                TIMED_OUT,
                bounded(&format!("opened at the timeout: {}", said.join("; "))),
            ),
        };
    }
    let failed = waiting
        .iter()
        .any(|gate| !failures(gate, report, index).is_empty());
    let said: Vec<String> = waiting
        .iter()
        .take(MAX_GATES)
        .map(|gate| match failures(gate, report, index).is_empty() {
            // Counts change too often.
            true => format!("ImagePrefetch {}", gate.name),
            false => said(gate, report, index),
        })
        .collect();
    let lefts = waiting.iter().map(|gate| machine.left(gate, clock));
    Decision {
        is_held: true,
        reason: if failed { "ImageFailed" } else { "Pulling" },
        message: bounded(&format!("waits for images: {}", said.join("; "))),
        waits_for: waiting.iter().map(|gate| gate.name.as_str()).collect(),
        left: lefts.min(),
    }
}

fn bounded(text: &str) -> String {
    clip_bytes(&sanitize(text), MESSAGE_MAX)
}

/// The part of an ImagePrefetch that a node lacks, for people.
fn said(gate: &Gate, report: Option<&Node>, index: &Index<'_>) -> String {
    let failures = failures(gate, report, index);
    let entry = report.and_then(|node| node.entry(&gate.name));
    let what = match (report, entry) {
        _ if !failures.is_empty() => failures.join(", "),
        _ if !gate.is_settled => "the images are not planned yet".to_owned(),
        (None, _) => "the agent has not reported".to_owned(),
        (_, Some(entry)) if entry.revision == gate.revision => {
            format!("{} of {} images are present", entry.present, entry.desired)
        }
        _ => "the agent has not seen the latest images".to_owned(),
    };
    format!("ImagePrefetch {}: {what}", gate.name)
}

/// The failed images of an ImagePrefetch on a node, for people.
fn failures(gate: &Gate, report: Option<&Node>, index: &Index<'_>) -> Vec<String> {
    let all = report.into_iter().flat_map(|node| &node.failures);
    let own = all.filter(|failure| index.has(&gate.name, &failure.image));
    own.take(MAX_NAMED)
        .map(|failure| {
            format!(
                "image {} failed ({})",
                clip_bytes(&failure.image, MESSAGE_MAX / 4),
                failure.reason.condition_reason()
            )
        })
        .collect()
}

/// The write that a decision needs.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Action {
    pub(super) name: String,
    pub(super) uid: String,
    /// The resource version of the Node that asked for it.
    pub(super) version: Option<String>,
    /// The taints to remove.
    pub(super) taints: Vec<(usize, Value)>,
    /// The condition to write.
    pub(super) condition: Option<Told>,
    /// The reason and message of a gate that opened without all images.
    pub(super) complaint: Option<(&'static str, String)>,
}

impl Action {
    /// Returns whether it lets pods onto the node.
    pub(super) fn opens(&self) -> bool {
        !self.taints.is_empty() || self.condition.as_ref().is_some_and(|told| told.is_open)
    }
}

/// The write for a decision; `None` if the node is as it has to be.
pub(super) fn action(name: &str, machine: &Machine, decision: &Decision<'_>) -> Option<Action> {
    let is_open = !decision.is_held;
    let known = machine.condition.as_ref();
    let is_told = known.is_some_and(|told| {
        told.is_open == is_open
            && told.reason == decision.reason
            && (is_open || told.message == decision.message)
    });
    let condition = (!is_told).then(|| Told {
        is_open,
        reason: decision.reason.to_owned(),
        message: decision.message.clone(),
        since: known
            .filter(|told| told.is_open == is_open)
            .and_then(|told| told.since.clone()),
    });
    let taints = match is_open {
        true => machine.taints.clone(),
        false => Vec::new(),
    };
    if taints.is_empty() && condition.is_none() {
        return None;
    }
    let complaint = (decision.reason == TIMED_OUT).then(|| (TIMED_OUT, decision.message.clone()));
    Some(Action {
        name: name.to_owned(),
        uid: machine.uid.clone(),
        version: machine.version.clone(),
        taints,
        condition,
        complaint,
    })
}

#[cfg(test)]
mod tests;

/// What the gate of an ImagePrefetch adds to its status.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    /// The number of nodes that wait for its images.
    pub(super) nodes: usize,
    /// The right that is missing.
    pub(super) refusal: Option<&'a Refusal>,
}
