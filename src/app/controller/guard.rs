//! The writes of the node gate: taints are removed, conditions are set, and what is refused is remembered until it works.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use http::header::CONTENT_TYPE;
use k8s_openapi::api::core::v1::Node as CoreNode;
use kube::api::{Patch, PatchParams};
use kube::core::ApiResource;
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{info, warn};

use super::aggregate::Index;
use super::apply::MANAGER;
use super::events::{Notice, Publisher};
use super::gate::{self, Action, CONDITION, Clock, Gate, GateNode, Machine, Told};
use super::observe::{Node, Refusal};
use super::shown;

/// Number of nodes that are written at a time.
const WRITES: usize = 8;
/// The time between the starts of two writes on average, and how much of it a burst may be ahead.
const GAP: Duration = Duration::from_millis(50);
const BURST: Duration = Duration::from_millis(500);
/// Time limit of one write.
const LIMIT: Duration = Duration::from_secs(10);
/// Attempts to remove a taint while others change the node's taints.
const ATTEMPTS: u32 = 5;
/// The least time between two looks at all nodes.
const INTERVAL: Duration = Duration::from_millis(250);
/// The longest time without a look.
const TICK: Duration = Duration::from_secs(10);
/// Time for which a missing right is told after it was missing last.
const REMEMBERED: Duration = Duration::from_secs(600);
/// The first and the longest pause after a write that failed.
const PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The outcome of the writes of one node.
pub(super) struct Outcome {
    action: Action,
    opened: Result<(), kube::Error>,
    told: Result<(), kube::Error>,
}

/// The state of the node gate.
pub(super) struct Guard {
    client: Client,
    writes: FuturesUnordered<LocalBoxFuture<'static, Outcome>>,
    writing: BTreeSet<String>,
    /// The time up to which writes have used the pace.
    paced: Instant,
    /// When a node may be written again after a failure, and the pause; apart for writes that open its gate, which nothing delays.
    pauses: BTreeMap<(String, bool), (Instant, Duration)>,
    /// The rights that a write lacked, and when it did so last.
    refusals: BTreeMap<&'static str, (Refusal, Instant)>,
    /// Number of nodes that are held, and for each ImagePrefetch.
    held: usize,
    held_by: BTreeMap<String, usize>,
    looked: Option<Instant>,
    is_current: bool,
    due: Instant,
}

impl Guard {
    pub(super) fn new(client: Client, now: Instant) -> Self {
        Self {
            client,
            writes: FuturesUnordered::new(),
            writing: BTreeSet::new(),
            paced: now,
            pauses: BTreeMap::new(),
            refusals: BTreeMap::new(),
            held: 0,
            held_by: BTreeMap::new(),
            looked: None,
            is_current: false,
            due: now,
        }
    }

    /// Something has changed.
    pub(super) fn touch(&mut self) {
        self.is_current = false;
    }

    /// The time of the next look.
    pub(super) fn next(&self, now: Instant) -> Instant {
        let earliest = self.looked.map_or(now, |at| at + INTERVAL);
        match self.is_current {
            true => self.due.max(earliest),
            false => earliest,
        }
    }

    /// Does nothing for a while.
    pub(super) fn rest(&mut self, now: Instant) {
        self.looked = Some(now);
    }

    /// Number of nodes that are held.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Number of nodes that are held by an ImagePrefetch.
    pub(super) fn held_by(&self, prefetch: &str) -> usize {
        self.held_by.get(prefetch).copied().unwrap_or(0)
    }

    /// A right that a write lacked.
    pub(super) fn refusal(&self) -> Option<&Refusal> {
        self.refusals.values().map(|(refusal, _)| refusal).next()
    }

    /// Looks at all nodes and starts what has to be written. `may_tell` is false while little is known: then gates are opened at their
    /// timeout, and nothing else is written. Returns whether the numbers of held nodes or the missing rights have changed.
    pub(super) fn look(
        &mut self,
        machines: &BTreeMap<String, Machine>,
        nodes: &BTreeMap<String, Node>,
        (gates, may_tell): (&[Gate], bool),
        index: &Index<'_>,
        now: Instant,
    ) -> bool {
        let wall = SystemTime::now();
        self.looked = Some(now);
        self.is_current = true;
        self.due = now + TICK;
        self.pauses
            .retain(|(name, _), _| machines.get(name).is_some_and(Machine::is_concerned));
        let refusals = self.refusals.len();
        self.refusals
            .retain(|_, (_, at)| now.saturating_duration_since(*at) < REMEMBERED);
        let has_forgotten = refusals != self.refusals.len();
        let mut held = 0;
        let mut held_by: BTreeMap<String, usize> = BTreeMap::new();
        let mut actions = Vec::new();
        for (name, machine) in machines.iter().filter(|(_, m)| m.is_concerned()) {
            let clock = Clock { now, wall };
            let decision = gate::decide(machine, gates, nodes.get(name), index, clock);
            if decision.is_held {
                held += usize::from(!machine.taints.is_empty());
                for prefetch in &decision.waits_for {
                    *held_by.entry((*prefetch).to_owned()).or_default() += 1;
                }
            }
            if let Some(left) = decision.left {
                self.due = self.due.min(now + left + Duration::from_millis(1));
            }
            if !self.writing.contains(name)
                && let Some(action) = gate::action(name, machine, &decision)
                && (may_tell || action.opens())
            {
                actions.push(action);
            }
        }
        actions.sort_by_key(|action| !action.opens());
        for action in actions {
            self.start(action, now);
        }
        let before = (self.held, std::mem::replace(&mut self.held_by, held_by));
        self.held = held;
        has_forgotten || (self.held, &self.held_by) != (before.0, &before.1)
    }

    fn start(&mut self, action: Action, now: Instant) {
        let key = (action.name.clone(), action.opens());
        if let Some((until, _)) = self.pauses.get(&key)
            && *until > now
        {
            self.due = self.due.min(*until);
            return;
        }
        // The rest follows when one of these has ended.
        if self.writes.len() >= WRITES {
            return;
        }
        if self.paced > now + BURST {
            self.due = self.due.min(now + GAP);
            return;
        }
        self.paced = self.paced.max(now) + GAP;
        self.writing.insert(action.name.clone());
        self.writes
            .push(Box::pin(write(self.client.clone(), action)));
    }

    /// Waits for a write to end; for ever, if there is none.
    pub(super) async fn finished(&mut self) -> Outcome {
        match self.writes.next().await {
            Some(outcome) => outcome,
            None => std::future::pending().await,
        }
    }

    /// Takes in what was written. Returns whether the missing rights have changed.
    pub(super) fn take_in(
        &mut self,
        outcome: Outcome,
        machines: &mut BTreeMap<String, Machine>,
        events: &Publisher,
    ) -> bool {
        let Outcome {
            action,
            opened,
            told,
        } = outcome;
        self.is_current = false;
        self.writing.remove(&action.name);
        let opens = action.opens();
        let is_opened = opened.is_ok() && !action.taints.is_empty();
        let is_told = told.is_ok() && action.condition.is_some();
        let before: Vec<_> = self.refusals.keys().copied().collect();
        let mut has_failed = false;
        for (resource, is_asked, outcome) in [
            ("nodes", !action.taints.is_empty(), opened),
            ("nodes/status", action.condition.is_some(), told),
        ] {
            match outcome {
                Ok(()) if is_asked => {
                    self.refusals.remove(resource);
                }
                Ok(()) => {}
                Err(error) => {
                    has_failed = true;
                    self.failed(resource, &action.name, error);
                }
            }
        }
        let key = (action.name.clone(), opens);
        if has_failed {
            let pause = self.pauses.get(&key).map_or(PAUSE, |(_, pause)| *pause * 2);
            let pause = pause.min(LONGEST_PAUSE);
            let jittered = pause.mul_f64(0.8 + 0.4 * fastrand::f64());
            self.pauses.insert(key, (Instant::now() + jittered, pause));
        } else {
            self.pauses.remove(&key);
        }
        if is_opened {
            info!(
                "removed the taint of the node gate from node {}",
                action.name
            );
        }
        if (is_opened || is_told)
            && opens
            && let Some((reason, message)) = action.complaint
        {
            warn!("node {}: {message}", action.name);
            let notice = Notice::warning(reason, &message);
            events.publish_on_node(notice, &action.name, &action.uid);
        }
        // Until the watch tells the same.
        if let Some(machine) = machines.get_mut(&action.name)
            && machine.uid == action.uid
        {
            if is_opened {
                machine.taints.clear();
            }
            if is_told {
                machine.condition = action.condition;
            }
        }
        !self.refusals.keys().eq(&before)
    }

    fn failed(&mut self, resource: &'static str, node: &str, error: kube::Error) {
        if let kube::Error::Api(status) = &error
            && matches!(status.code, 401 | 403)
        {
            let message = format!(
                "nodeGate: not allowed to write to nodes: needs the RBAC verb \"patch\" on \"{resource}\" in apiGroup \"\""
            );
            let refusal = Refusal {
                reason: "Forbidden",
                message,
            };
            if !self.refusals.contains_key(resource) {
                warn!("{}; retrying", refusal.message);
            }
            self.refusals.insert(resource, (refusal, Instant::now()));
            return;
        }
        warn!(
            "failed to write {resource} of node {node}: {}; retrying",
            shown(error)
        );
    }
}

/// Removes the taints, then sets the condition: what lets pods in depends on nothing else.
async fn write(client: Client, action: Action) -> Outcome {
    let opened = limited(open(&client, &action)).await;
    let told = match &action.condition {
        Some(told) => limited(tell(&client, &action.name, told)).await,
        None => Ok(()),
    };
    Outcome {
        action,
        opened,
        told,
    }
}

async fn limited(write: impl Future<Output = Result<(), kube::Error>>) -> Result<(), kube::Error> {
    match timeout(LIMIT, write).await {
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(()),
        Ok(outcome) => outcome,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
    }
}

/// Removes exactly these taints, wherever others have moved them meanwhile.
async fn open(client: &Client, action: &Action) -> Result<(), kube::Error> {
    let api: Api<GateNode> = Api::all_with(client.clone(), &resource());
    let mut taints = action.taints.clone();
    for attempt in 1.. {
        if taints.is_empty() {
            break;
        }
        match remove(client, &action.name, &action.uid, &taints).await {
            Ok(()) => break,
            // A test of the patch failed, or another write came in between.
            Err(kube::Error::Api(status))
                if matches!(status.code, 409 | 422) && attempt < ATTEMPTS => {}
            Err(error) => return Err(error),
        }
        let node = api.get(&action.name).await?;
        if node.uid().unwrap_or_default() != action.uid {
            break;
        }
        taints = gate::taints(&node);
    }
    Ok(())
}

/// The resource of Nodes that are decoded in part.
pub(super) fn resource() -> ApiResource {
    ApiResource::erase::<CoreNode>(&())
}

async fn remove(
    client: &Client,
    name: &str,
    uid: &str,
    taints: &[(usize, Value)],
) -> Result<(), kube::Error> {
    let mut patch = vec![json!({"op": "test", "path": "/metadata/uid", "value": uid})];
    // From the last one on, so that the others keep their positions.
    for (at, taint) in taints.iter().rev() {
        let path = format!("/spec/taints/{at}");
        patch.push(json!({"op": "test", "path": path, "value": taint}));
        patch.push(json!({"op": "remove", "path": path}));
    }
    let request = http::Request::patch(format!("/api/v1/nodes/{name}?fieldManager={MANAGER}"))
        .header(CONTENT_TYPE, "application/json-patch+json")
        .body(Value::from(patch).to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request::<GateNode>(request).await.map(drop)
}

async fn tell(client: &Client, name: &str, told: &Told) -> Result<(), kube::Error> {
    let api: Api<GateNode> = Api::all_with(client.clone(), &resource());
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let condition = json!({
        "type": CONDITION,
        "status": if told.is_open { "True" } else { "False" },
        "reason": told.reason,
        "message": told.message,
        "lastHeartbeatTime": now,
        "lastTransitionTime": told.since.as_ref().unwrap_or(&now),
    });
    // Merged by type, so that the conditions of others stay.
    let patch = Patch::Strategic(json!({"status": {"conditions": [condition]}}));
    let params = PatchParams {
        field_manager: Some(MANAGER.to_owned()),
        ..PatchParams::default()
    };
    api.patch_status(name, &params, &patch).await.map(drop)
}
