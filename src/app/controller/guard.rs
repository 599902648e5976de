//! The writes of the node gate: taints are removed, conditions are set, and what is refused is remembered until it works.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use futures_util::StreamExt;
use futures_util::future::LocalBoxFuture;
use futures_util::stream::FuturesUnordered;
use kube::Client;
use tracing::{debug, info, warn};

use super::aggregate::Index;
use super::events::{Notice, Publisher};
use super::gate::{self, Action, Clock, Gate, Machine};
use super::observe::{Node, Refusal};
use super::shown;
use pace::Pace;
pub(super) use write::{Outcome, resource};

mod pace;
mod write;

/// Number of nodes that are written at a time, and of those whose gate stays as it is.
const WRITES: usize = 16;
const TOLD_WRITES: usize = 4;
/// The least time between two looks at all nodes.
const INTERVAL: Duration = Duration::from_millis(250);
/// The longest time without a look.
const TICK: Duration = Duration::from_secs(10);
/// Time for which a missing right is told after it was missing last.
const REMEMBERED: Duration = Duration::from_secs(600);

/// The state of the node gate.
pub(super) struct Guard {
    client: Client,
    writes: FuturesUnordered<LocalBoxFuture<'static, Outcome>>,
    writing: BTreeSet<String>,
    pace: Pace,
    /// The rights that a write lacked, and when it did so last.
    refusals: BTreeMap<&'static str, (Refusal, Instant)>,
    /// Number of tainted nodes, and of those that wait for each ImagePrefetch.
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
            pace: Pace::new(now),
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

    /// Number of nodes that have the taint, also if it could not be removed.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Number of nodes that wait for an ImagePrefetch.
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
        self.pace.retain(|name| machines.contains_key(name), now);
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
            held += usize::from(!machine.taints.is_empty());
            for prefetch in &decision.waits_for {
                *held_by.entry((*prefetch).to_owned()).or_default() += 1;
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
        let most = if action.opens() { WRITES } else { TOLD_WRITES };
        // The rest follows when one of these has ended.
        if self.writes.len() >= most {
            return;
        }
        if let Some(at) = self.pace.wait(&action, now) {
            self.due = self.due.min(at);
            return;
        }
        self.pace.take(&action, now);
        self.writing.insert(action.name.clone());
        self.writes
            .push(Box::pin(write::write(self.client.clone(), action)));
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
        let has_failed = opened.is_err() || told.is_err();
        let failures = self.pace.rest(&action, has_failed, Instant::now());
        if matches!(opened, Ok(true)) {
            info!(
                "removed the taint of the node gate from node {}",
                action.name
            );
        }
        if (matches!(opened, Ok(true)) || matches!(told, Ok(true)))
            && action.opens()
            && let Some((reason, message)) = &action.complaint
        {
            warn!("node {}: {message}", action.name);
            let notice = Notice::warning(reason, message);
            events.publish_on_node(notice, &action.name, &action.uid);
        }
        if let Some(machine) = machines.get_mut(&action.name) {
            machine.written(&action, opened.is_ok(), told.is_ok());
        }
        let before: Vec<_> = self.refusals.keys().copied().collect();
        for (resource, outcome) in [("nodes", opened), ("nodes/status", told)] {
            match outcome {
                Ok(true) => _ = self.refusals.remove(resource),
                Ok(false) => {}
                Err(error) => self.failed(resource, &action.name, error, failures),
            }
        }
        !self.refusals.keys().eq(&before)
    }

    fn failed(&mut self, resource: &'static str, node: &str, error: kube::Error, failures: u32) {
        let code = match &error {
            kube::Error::Api(status) => status.code,
            _ => 0,
        };
        let text = shown(error);
        if failures.is_power_of_two() {
            warn!("failed to write {resource} of node {node}: {text}; retrying");
        } else {
            debug!("failed to write {resource} of node {node}: {text}; retrying");
        }
        // A policy of the cluster may refuse it too.
        if matches!(code, 400 | 401 | 403) {
            let (_, at) = self.refusals.entry(resource).or_insert_with(|| {
                let message = match code == 400 || text.contains("denied the request") {
                    true => format!("nodeGate: writing to {resource} is refused: {text}"),
                    false => format!(
                        "nodeGate: not allowed to write to nodes: needs the RBAC verb \"patch\" on \"{resource}\" in apiGroup \"\""
                    ),
                };
                let reason = "Forbidden";
                (Refusal { reason, message }, Instant::now())
            });
            *at = Instant::now();
        }
    }
}
