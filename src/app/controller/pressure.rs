//! Events on Nodes while harpoon yields their disk: at most one an hour for each Node, and a few a second for all.
//!
//! The name of an Event follows from the Node, the start of its pressure and the hours since, so that the API server refuses a second
//! one of the same hour, whichever controller leads. Nothing is remembered for longer than an hour.

use std::collections::BTreeMap;
use std::future::pending;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::LocalBoxFuture;
use k8s_openapi::api::events::v1::Event;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use tracing::debug;

use super::aggregate::is_stale;
use super::apply;
use super::events::NAMESPACE;
use super::observe::Node;
use super::shown;
use crate::api::v1alpha1::Condition;
use crate::app::continuous::names;
use crate::app::continuous::status::DISK_PRESSURE;
use crate::model::text::{clip_bytes, clip_sanitized};
use crate::retry::backoff;

/// The least time between two Events of one Node.
const INTERVAL: Duration = Duration::from_secs(3600);
/// The least time between two Events of all Nodes: 5,000 Nodes at once take 17 minutes.
const GAP: Duration = Duration::from_millis(200);
/// The longest time without a look at the Nodes.
const TICK: Duration = Duration::from_secs(60);
/// The first and the longest pause after an Event that could not be written.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// Characters and bytes of the message of a condition that are kept. The API server takes 1024 bytes.
const MESSAGE_MAX: usize = 300;
const NOTE_MAX: usize = 1000;
/// Maximum size in bytes of the name of a controller, which the API server checks.
const INSTANCE_MAX: usize = 128;

/// The disk of a Node is above its high mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pressure {
    since: String,
    message: String,
}

impl Pressure {
    /// That of a Node whose agent reports these conditions.
    pub(super) fn of(conditions: &[Condition]) -> Option<Self> {
        let mut conditions = conditions.iter();
        let condition = conditions.find(|c| c.kind == DISK_PRESSURE && c.status == "True")?;
        Some(Self {
            since: condition.last_transition_time.clone(),
            message: clip_bytes(&clip_sanitized(&condition.message, MESSAGE_MAX), NOTE_MAX),
        })
    }

    /// The name of the Event of this hour.
    fn event_name(&self, node: &str, uid: &str, wall: SystemTime) -> String {
        let since = humantime::parse_rfc3339(&self.since).unwrap_or(SystemTime::UNIX_EPOCH);
        let lasts = wall.duration_since(since).unwrap_or_default();
        let hour = lasts.as_secs() / INTERVAL.as_secs();
        let text = format!("{node}\n{uid}\n{}\n{hour}", self.since);
        format!("harpoon-disk-pressure.{}", names::hash(&text))
    }
}

/// The Nodes of which an Event is due. Pure.
#[derive(Debug)]
struct Schedule {
    /// The time at which a Node was last told of, if that was less than an hour ago.
    told: BTreeMap<String, Instant>,
    /// The time of the next look at the Nodes if they do not change, and the time before which there is none.
    due: Instant,
    earliest: Instant,
    failures: u32,
}

impl Schedule {
    fn new(now: Instant) -> Self {
        Self {
            told: BTreeMap::new(),
            due: now,
            earliest: now,
            failures: 0,
        }
    }

    fn next(&self) -> Instant {
        self.due.max(self.earliest)
    }

    /// The first Node of which an Event is due. It counts as told of.
    fn take(&mut self, nodes: &BTreeMap<String, Node>, now: Instant) -> Option<String> {
        self.earliest = now + GAP;
        self.due = now + TICK;
        self.told
            .retain(|_, at| now.saturating_duration_since(*at) < INTERVAL);
        let (name, _) = nodes.iter().find(|(name, node)| {
            node.pressure.is_some() && !is_stale(node, now) && !self.told.contains_key(*name)
        })?;
        self.told.insert(name.clone(), now);
        // There may be others.
        self.due = now;
        Some(name.clone())
    }

    fn ended(&mut self, node: &str, is_written: bool, now: Instant) {
        if is_written {
            self.failures = 0;
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.earliest = now + backoff::pause(PAUSE, self.failures);
        self.told.remove(node);
        self.due = now;
    }
}

/// The outcome of writing the Event of a Node.
pub(super) struct Outcome(String, Result<(), kube::Error>);

/// Tells of Nodes whose disk is above the high mark.
pub(super) struct Teller {
    client: Client,
    identity: String,
    schedule: Schedule,
    write: Option<LocalBoxFuture<'static, Outcome>>,
}

impl Teller {
    pub(super) fn new(client: Client, identity: &str, now: Instant) -> Self {
        Self {
            client,
            identity: clip_bytes(identity, INSTANCE_MAX),
            schedule: Schedule::new(now),
            write: None,
        }
    }

    /// A Node has changed.
    pub(super) fn touch(&mut self, now: Instant) {
        self.schedule.due = self.schedule.due.min(now);
    }

    /// The time of the next look; `None` while an Event is written.
    pub(super) fn next(&self) -> Option<Instant> {
        self.write.is_none().then(|| self.schedule.next())
    }

    /// Starts to write the next Event that is due.
    pub(super) fn look(
        &mut self,
        nodes: &BTreeMap<String, Node>,
        is_leading: bool,
        (now, wall): (Instant, SystemTime),
    ) {
        if self.next().is_none_or(|next| next > now) {
            return;
        }
        if !is_leading {
            self.schedule.earliest = now + GAP;
            return;
        }
        let Some(name) = self.schedule.take(nodes, now) else {
            return;
        };
        let node = nodes.get(&name);
        if let Some((node, pressure)) = node.and_then(|n| Some((n, n.pressure.as_ref()?))) {
            let uid = node.owner.as_deref().unwrap_or_default();
            let event = event(&self.identity, (&name, uid), pressure, wall);
            let client = self.client.clone();
            self.write = Some(Box::pin(async move {
                Outcome(name, apply::in_time(create(client, event)).await)
            }));
        }
    }

    /// Waits for the Event that is written; for ever, if there is none.
    pub(super) async fn finished(&mut self) -> Outcome {
        let Some(write) = &mut self.write else {
            return pending().await;
        };
        let outcome = write.await;
        self.write = None;
        outcome
    }

    /// Takes in what was written.
    pub(super) fn take_in(&mut self, Outcome(node, outcome): Outcome, now: Instant) {
        self.schedule.ended(&node, outcome.is_ok(), now);
        if let Err(error) = outcome {
            debug!(
                "failed to write an Event on node {node}: {}; retrying",
                shown(error)
            );
        }
    }
}

/// The Event of a Node with this name and uid.
fn event(
    identity: &str,
    (node, uid): (&str, &str),
    pressure: &Pressure,
    wall: SystemTime,
) -> serde_json::Value {
    json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": pressure.event_name(node, uid, wall),
            "namespace": NAMESPACE,
        },
        "eventTime": humantime::format_rfc3339_micros(wall).to_string(),
        "type": "Warning",
        "reason": DISK_PRESSURE,
        "action": "Yield",
        "note": pressure.message,
        "regarding": {
            "apiVersion": "v1", "kind": "Node", "namespace": NAMESPACE, "name": node, "uid": uid,
        },
        "reportingController": apply::MANAGER,
        "reportingInstance": identity,
    })
}

/// Creates the Event, unless this or another controller has.
async fn create(client: Client, event: serde_json::Value) -> Result<(), kube::Error> {
    let api: Api<Event> = Api::namespaced(client, NAMESPACE);
    let event = serde_json::from_value(event).map_err(kube::Error::SerdeError)?;
    match api.create(&PostParams::default(), &event).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        outcome => outcome.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn pressure(since: SystemTime) -> Pressure {
        Pressure {
            since: humantime::format_rfc3339_seconds(since).to_string(),
            message: "83% used".to_owned(),
        }
    }

    fn nodes(count: usize, now: Instant) -> BTreeMap<String, Node> {
        let nodes = (0..count).map(|n| {
            let mut node = Node::new(&[], Vec::new(), now);
            node.pressure = Some(pressure(SystemTime::UNIX_EPOCH));
            (format!("node-{n}"), node)
        });
        nodes.collect()
    }

    #[test]
    fn thousands_of_nodes_are_spread() {
        let start = Instant::now();
        let mut now = start;
        let mut schedule = Schedule::new(now);
        let mut nodes = nodes(1200, now);
        let mut told: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
        while now < start + 2 * INTERVAL {
            match schedule.take(&nodes, now) {
                Some(node) => {
                    schedule.ended(&node, true, now);
                    told.entry(node).or_default().push(now);
                }
                // They report every ten seconds.
                None => {
                    nodes.values_mut().for_each(|node| node.changed = now);
                    schedule.due = now + Duration::from_secs(10);
                }
            }
            now = schedule.next();
            assert!(schedule.told.len() <= nodes.len());
        }
        assert_eq!(told.len(), nodes.len());
        for times in told.values() {
            assert_eq!(times.len(), 2);
            assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= INTERVAL));
        }
        let mut all: Vec<Instant> = told.into_values().flatten().collect();
        all.sort();
        assert!(all.windows(2).all(|pair| pair[1] - pair[0] >= GAP));
        // Nothing stays of those that are gone.
        schedule.take(&BTreeMap::new(), now + INTERVAL);
        assert!(schedule.told.is_empty());
    }

    #[test]
    fn flapping_node_is_told_once() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        let mut nodes = nodes(1, now);
        assert!(schedule.take(&nodes, now).is_some());
        nodes.values_mut().for_each(|node| node.pressure = None);
        assert!(schedule.take(&nodes, now + MINUTE).is_none());
        let later = now + 2 * MINUTE;
        let again = pressure(SystemTime::UNIX_EPOCH + 2 * MINUTE);
        for node in nodes.values_mut() {
            node.pressure = Some(again.clone());
        }
        assert!(schedule.take(&nodes, later).is_none());
        // A node that no longer reports may have space again.
        assert!(schedule.take(&nodes, now + INTERVAL).is_none());
        nodes
            .values_mut()
            .for_each(|node| node.changed = now + INTERVAL);
        assert!(schedule.take(&nodes, now + INTERVAL).is_some());
    }

    #[test]
    fn failed_event_is_retried_later() {
        let now = Instant::now();
        let mut schedule = Schedule::new(now);
        let nodes = nodes(2, now);
        let node = schedule.take(&nodes, now).unwrap();
        schedule.ended(&node, false, now);
        assert!(schedule.next() > now);
        assert_eq!(schedule.take(&nodes, schedule.next()), Some(node));
    }

    #[test]
    fn hour_and_pressure_name_event() {
        let start = SystemTime::UNIX_EPOCH + 1000 * INTERVAL;
        let first = pressure(start);
        let name = |pressure: &Pressure, at| pressure.event_name("node-1", "a", start + at);
        let known = name(&first, Duration::ZERO);
        assert_eq!(known, name(&first, 59 * MINUTE));
        assert_ne!(known, name(&first, INTERVAL));
        assert_ne!(known, name(&pressure(start + MINUTE), 2 * MINUTE));
        assert_ne!(known, first.event_name("node-1", "b", start));
        // A clock that is behind, and a time that is none.
        assert_eq!(known, first.event_name("node-1", "a", start - MINUTE));
        let broken = Pressure {
            since: "soon".to_owned(),
            ..first
        };
        assert_ne!(known, name(&broken, Duration::ZERO));
    }

    #[test]
    fn note_fits_into_an_event() {
        let condition = Condition {
            kind: DISK_PRESSURE.to_owned(),
            status: "True".to_owned(),
            message: "😀".repeat(400),
            ..Condition::default()
        };
        let pressure = Pressure::of(&[condition]).unwrap();
        assert!(pressure.message.len() <= 1024, "{}", pressure.message);
    }

    #[test]
    fn only_true_condition_counts() {
        let condition = |kind: &str, status: &str| Condition {
            kind: kind.to_owned(),
            status: status.to_owned(),
            message: format!("83%\u{1b}[31m{}", "x".repeat(1000)),
            ..Condition::default()
        };
        let conditions = [
            condition("Ready", "True"),
            condition(DISK_PRESSURE, "False"),
        ];
        assert_eq!(Pressure::of(&conditions), None);
        let pressure = Pressure::of(&[condition(DISK_PRESSURE, "True")]).unwrap();
        assert!(pressure.message.chars().count() <= MESSAGE_MAX + 1);
        assert!(!pressure.message.contains('\u{1b}'));
    }
}
