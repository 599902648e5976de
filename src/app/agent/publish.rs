//! Writes the node's NodePrefetch: when the node has settled or its failures have changed, and now and then to show that the
//! agent lives.

use std::convert::Infallible;
use std::time::{Duration, SystemTime};

use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use super::Agent;
use super::state::LocalNode;
use super::status::{Counts, RUNTIME_UNAVAILABLE, counts, status};
use crate::api::v1alpha1::{Condition, NodePrefetch, NodePrefetchStatus};
use crate::app::continuous::names::AGENT;
use crate::app::metrics::ImageState;
use crate::kube_api::error::TransportError;
use crate::model::text::one_line;
use crate::retry::backoff;

/// The shortest time between two writes, to which up to half of it is added as jitter.
const SHORTEST: Duration = Duration::from_secs(10);
/// The time between two writes without news, more or less up to a fifth.
const HEARTBEAT: Duration = Duration::from_secs(120);
/// The time in which the nodes of a cluster write that have the same news, for each node: 500 writes a second.
const SPREAD: Duration = Duration::from_millis(2);
/// The longest of those times.
const SPREAD_MAX: Duration = Duration::from_secs(30);
/// A node that has joined so recently is filled before it waits for others.
const YOUNG: Duration = Duration::from_secs(600);
/// The longest time for which an agent that starts says nothing while it looks at its node.
const LOOK: Duration = Duration::from_secs(10);
/// News of one moment are written together.
const BURST: Duration = Duration::from_millis(20);
/// The time limit for a request.
const LIMIT: Duration = Duration::from_secs(30);
/// The first and the longest pause after a failed write.
const RETRY: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(120));
/// The characters of an error that are logged.
const QUOTED_MAX: usize = 300;

/// Writes the NodePrefetch, without end.
pub(super) async fn publish(agent: &Agent) -> Infallible {
    let mut writer = Writer::new(agent);
    loop {
        let news = writer.news();
        let now = Instant::now();
        let due = writer.due(news.as_ref(), now);
        if let Some(status) = news.filter(|_| due <= now) {
            writer.write(status.status).await;
            continue;
        }
        tokio::select! {
            () = agent.told.notified() => sleep(BURST).await,
            () = sleep_until(due) => {}
        }
    }
}

/// A status that could be written.
struct News {
    status: NodePrefetchStatus,
    /// It says something that others wait for.
    is_urgent: bool,
}

struct Writer<'a> {
    agent: &'a Agent,
    api: Api<NodePrefetch>,
    /// The Node that owns the object which was written.
    owner: Option<String>,
    /// The status that was written last.
    written: Option<NodePrefetchStatus>,
    /// No write before this.
    earliest: Instant,
    /// A write at the latest at this time.
    heartbeat: Instant,
    /// The end of the time for which the agent looks at its node before it says anything.
    looks_until: Instant,
    /// The time chosen for the urgent news, among the nodes that have the same.
    chosen: Option<Instant>,
    failures: u32,
}

impl<'a> Writer<'a> {
    fn new(agent: &'a Agent) -> Self {
        let now = Instant::now();
        Self {
            agent,
            api: Api::all(agent.cluster.client().clone()),
            owner: None,
            written: None,
            earliest: now,
            heartbeat: now,
            looks_until: now + LOOK,
            chosen: None,
            failures: 0,
        }
    }

    /// The current status; `None` until enough is known, and without a Node that owns it. Updates the metrics.
    fn news(&mut self) -> Option<News> {
        let state = self.agent.state();
        let node = state.node.as_ref().filter(|node| !node.is_deleted)?;
        if self.owner.as_ref() != Some(&node.uid) {
            self.written = None;
        }
        let is_first = !state.first_fill.is_known();
        if !is_first && !state.has_decided() {
            return None;
        }
        let now = SystemTime::now();
        let status = status(&state, self.written.as_ref(), now);
        if state.has_decided() {
            self.agent
                .measured(counts(&state), state.usage.map(|all| (state.bytes(), all)));
        }
        let is_busy = state.is_busy(now);
        let has_looked = state.has_looked();
        drop(state);
        self.agent.tell_first_fill();
        // An agent that has started knows less than the object that an earlier one has written.
        if !is_first && !has_looked && Instant::now() < self.looks_until {
            return None;
        }
        let is_urgent = match &self.written {
            None => true,
            Some(written) => is_urgent(written, &status, is_busy),
        };
        Some(News { status, is_urgent })
    }

    /// The time of the next write.
    fn due(&mut self, news: Option<&News>, now: Instant) -> Instant {
        let Some(news) = news else {
            return match now < self.looks_until {
                true => self.looks_until,
                false => now + HEARTBEAT,
            };
        };
        if !news.is_urgent {
            self.chosen = None;
            return self.heartbeat.max(self.earliest);
        }
        let state = self.agent.state();
        let (nodes, is_synced) = (state.nodes(), state.is_synced);
        let waits = self.owner.is_some() || !is_young(state.node.as_ref(), SystemTime::now());
        drop(state);
        // The number of nodes is in the planned images.
        if waits && !is_synced && now < self.looks_until {
            return self.looks_until;
        }
        let chosen = *self.chosen.get_or_insert_with(|| match waits {
            true => now + spread(nodes),
            false => now,
        });
        chosen.max(self.earliest)
    }

    /// Goes on from the status that an earlier agent of this node has written.
    fn resume(&mut self, status: NodePrefetchStatus, now: (Instant, SystemTime)) {
        let nodes = self.agent.state().nodes();
        let late = || now.0 + spread(nodes);
        self.heartbeat = next_heartbeat(&status, now).unwrap_or_else(late);
        self.written = Some(status);
    }

    async fn write(&mut self, status: NodePrefetchStatus) {
        self.chosen = None;
        let wrote = tokio::time::timeout(LIMIT, self.try_write(&status)).await;
        let now = Instant::now();
        let problem = match wrote {
            Ok(Ok(is_written)) => {
                self.failures = 0;
                if is_written {
                    self.written = Some(status);
                    self.earliest = now + SHORTEST.mul_f64(1.0 + fastrand::f64() / 2.0);
                    self.heartbeat = now + backoff::around(HEARTBEAT, 0.2);
                }
                return;
            }
            Ok(Err(kube::Error::Api(answer))) => {
                // It was deleted: it is made again.
                if answer.code == 404 {
                    self.owner = None;
                }
                format!(
                    "the API server returned {}: {}",
                    answer.code, answer.message
                )
            }
            Ok(Err(error)) => TransportError(error).to_string(),
            Err(_) => format!("no response within {}", humantime::format_duration(LIMIT)),
        };
        self.failures += 1;
        self.earliest = now + backoff::pause(RETRY, self.failures);
        let problem = one_line(&problem, QUOTED_MAX);
        if self.failures.is_power_of_two() {
            warn!(
                "failed to write nodeprefetches/{}: {problem}",
                self.agent.settings.node
            );
        } else {
            debug!("failed to write the NodePrefetch: {problem}");
        }
        // Without an answer about an earlier first fill, the node counts as new: it is filled all the same.
        if self.failures > 1 && !self.agent.state().first_fill.is_known() {
            self.agent.knows_first_fill(None);
        }
    }

    /// Makes the object or writes its status; returns whether it was the status.
    async fn try_write(&mut self, status: &NodePrefetchStatus) -> Result<bool, kube::Error> {
        let uid = self
            .agent
            .state()
            .node
            .as_ref()
            .map(|node| node.uid.clone());
        let name = self.agent.settings.node.as_str();
        let parameters = PatchParams::apply(AGENT).force();
        let mut object = json!({
            "apiVersion": "harpoon.dev/v1alpha1",
            "kind": "NodePrefetch",
            "metadata": {"name": name},
        });
        if self.owner != uid {
            let owner = json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid});
            object["metadata"]["ownerReferences"] = json!([owner]);
            let made = self
                .api
                .patch(name, &parameters, &Patch::Apply(&object))
                .await?;
            self.owner = uid;
            let earlier = self.agent.earlier_status(made);
            self.agent.knows_first_fill(earlier.as_ref());
            if let Some(earlier) = earlier {
                self.resume(earlier, (Instant::now(), SystemTime::now()));
            }
            return Ok(false);
        }
        object["status"] = json!(status);
        self.api
            .patch_status(name, &parameters, &Patch::Apply(&object))
            .await?;
        Ok(true)
    }
}

/// A random time in which the nodes of a cluster write that have the same news.
fn spread(nodes: u32) -> Duration {
    let spread = SPREAD.saturating_mul(nodes).min(SPREAD_MAX);
    spread.mul_f64(fastrand::f64())
}

/// Returns whether the node has joined the cluster a short time ago.
fn is_young(node: Option<&LocalNode>, now: SystemTime) -> bool {
    let created = node.and_then(|node| node.facts.created);
    // A clock that is behind makes it no older.
    created.is_some_and(|at| now.duration_since(at).unwrap_or_default() < YOUNG)
}

/// The time of the next sign of life after this status; `None` if it is late.
fn next_heartbeat(
    status: &NodePrefetchStatus,
    (now, wall): (Instant, SystemTime),
) -> Option<Instant> {
    let last = humantime::parse_rfc3339(&status.heartbeat_time).ok()?;
    let age = wall.duration_since(last).unwrap_or_default();
    let left = backoff::around(HEARTBEAT, 0.2).checked_sub(age)?;
    Some(now + left)
}

/// The status of the object, unless it is that of an earlier node of the name, which is about to be deleted.
fn own_status(made: NodePrefetch, joined: Option<SystemTime>) -> Option<NodePrefetchStatus> {
    let created = made.metadata.creation_timestamp.as_ref();
    let created = created.and_then(|at| humantime::parse_rfc3339(&at.0.to_string()).ok());
    let is_own = joined.is_none_or(|joined| created.is_some_and(|at| at >= joined));
    made.status.filter(|_| is_own)
}

/// Returns whether the status says something that others wait for: the node has settled, its failures have changed, or its
/// runtime has gone or come. Whatever a busy node has to say otherwise, it says when it has settled: one write for each change of
/// the plan.
fn is_urgent(written: &NodePrefetchStatus, status: &NodePrefetchStatus, is_busy: bool) -> bool {
    let failures = |status: &NodePrefetchStatus| {
        let failures = status.failures.iter();
        let failures = failures.map(|failure| (failure.image.clone(), failure.reason.clone()));
        failures.collect::<Vec<_>>()
    };
    let is_away = |status: &NodePrefetchStatus| {
        let ready = status.conditions.first();
        ready.is_some_and(|ready| ready.reason == RUNTIME_UNAVAILABLE)
    };
    let counts = |status: &NodePrefetchStatus| {
        let entries = status.prefetches.clone();
        (status.desired, status.present, status.failed, entries)
    };
    let is_settled_news = || {
        counts(written) != counts(status)
            || !Condition::verdicts(&written.conditions).eq(Condition::verdicts(&status.conditions))
            || written.first_fill_seconds != status.first_fill_seconds
            || written.runtime != status.runtime
    };
    failures(written) != failures(status)
        || is_away(written) != is_away(status)
        || !is_busy && is_settled_news()
}

impl Agent {
    /// The status that an earlier agent of this node has written.
    fn earlier_status(&self, made: NodePrefetch) -> Option<NodePrefetchStatus> {
        let state = self.state();
        let joined = state.node.as_ref().and_then(|node| node.facts.created);
        own_status(made, joined)
    }

    /// Takes over the first fill that an earlier agent of this node has reported, if it has.
    fn knows_first_fill(&self, earlier: Option<&NodePrefetchStatus>) {
        let mut state = self.state();
        if !state.first_fill.is_known() {
            let seconds = earlier.and_then(|status| status.first_fill_seconds);
            state.first_fill.earlier(seconds);
        }
        drop(state);
        self.planned.notify_one();
        self.told.notify_one();
    }

    /// Shows the first fill's end.
    fn tell_first_fill(&self) {
        if let Some(duration) = self.state().first_fill.duration() {
            self.checks.first_fill.pass();
            self.metrics.set_first_fill(duration);
        }
    }

    fn measured(&self, counts: Counts, store: Option<(u64, u64)>) {
        for (state, images) in [
            (ImageState::Present, counts.present),
            (ImageState::Pulling, counts.pulling),
            (ImageState::Waiting, counts.waiting),
            (ImageState::Failed, counts.failed),
        ] {
            self.metrics.set_images(state, images);
        }
        if let Some((by_harpoon, by_all)) = store {
            self.metrics.set_image_store(by_harpoon, by_all);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::v1alpha1::NodeFailure;

    fn status(present: i64, failures: &[&str]) -> NodePrefetchStatus {
        let failure = |reason: &&str| NodeFailure {
            image: "r.io/a:1".to_owned(),
            reason: (*reason).to_owned(),
            message: format!("attempt {present}"),
        };
        NodePrefetchStatus {
            conditions: vec![Condition::default()],
            desired: 9,
            present,
            failures: failures.iter().map(failure).collect(),
            heartbeat_time: present.to_string(),
            ..NodePrefetchStatus::default()
        }
    }

    fn with_reason(status: &NodePrefetchStatus, reason: &str) -> NodePrefetchStatus {
        NodePrefetchStatus {
            conditions: vec![Condition {
                status: "False".to_owned(),
                reason: reason.to_owned(),
                ..Condition::default()
            }],
            ..status.clone()
        }
    }

    #[test]
    fn only_young_nodes_report_at_once() {
        let now = SystemTime::now();
        let joined = |created: Option<SystemTime>| LocalNode {
            node: crate::planning::node_match::Node::default(),
            facts: crate::model::node_facts::NodeFacts {
                created,
                platform: None,
            },
            uid: "1".to_owned(),
            is_deleted: false,
        };
        let ago = |seconds| Some(now - Duration::from_secs(seconds));
        assert!(is_young(Some(&joined(ago(30))), now));
        assert!(is_young(Some(&joined(Some(now + YOUNG))), now));
        for created in [ago(601), None] {
            assert!(!is_young(Some(&joined(created)), now));
        }
        assert!(spread(5000) <= Duration::from_secs(10) && spread(u32::MAX) <= SPREAD_MAX);
    }

    #[test]
    fn heartbeat_goes_on_after_restart() {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let next = |age: u64| {
            let beat = wall - Duration::from_secs(age);
            let heartbeat_time = humantime::format_rfc3339_seconds(beat).to_string();
            let status = NodePrefetchStatus {
                heartbeat_time,
                ..status(1, &[])
            };
            next_heartbeat(&status, (now, wall)).map(|at| (at - now).as_secs())
        };
        assert!(next(60).is_some_and(|left| (34..=85).contains(&left)));
        assert_eq!(next(200), None);
        assert_eq!(next_heartbeat(&status(1, &[]), (now, wall)), None);
    }

    #[test]
    fn status_of_former_node_is_ignored() {
        let made = |created: &str| {
            let object = serde_json::json!({
                "apiVersion": "harpoon.dev/v1alpha1", "kind": "NodePrefetch",
                "metadata": {"name": "node-1", "creationTimestamp": created}, "status": status(3, &[])
            });
            serde_json::from_value::<NodePrefetch>(object).unwrap()
        };
        let joined = humantime::parse_rfc3339("2026-01-02T00:00:00Z").ok();
        let own = own_status(made("2026-01-02T00:00:01Z"), joined);
        assert_eq!(own, Some(status(3, &[])));
        assert_eq!(own_status(made("2026-01-01T00:00:00Z"), joined), None);
        assert_eq!(own_status(made("2026-01-01T00:00:00Z"), None), own);
    }

    #[test]
    fn settled_nodes_and_failures_are_urgent() {
        let written = status(3, &["not_found"]);
        for (news, is_busy, expected) in [
            // Only the time and a message.
            (
                NodePrefetchStatus {
                    heartbeat_time: "4".to_owned(),
                    ..written.clone()
                },
                false,
                false,
            ),
            // Progress waits until the node has settled.
            (status(4, &["not_found"]), true, false),
            (status(4, &["not_found"]), false, true),
            (status(4, &["rate_limited"]), true, true),
            (status(4, &[]), true, true),
            (with_reason(&written, "Pulling"), true, false),
            (with_reason(&written, "Pulling"), false, true),
            (with_reason(&written, RUNTIME_UNAVAILABLE), true, true),
        ] {
            assert_eq!(is_urgent(&written, &news, is_busy), expected, "{news:?}");
        }
    }
}
