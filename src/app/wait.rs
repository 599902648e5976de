//! Waits until a DaemonSet has a ready pod on each of its nodes: the end of the chart's clean-up after an uninstall.
//!
//! It reads one object and writes nothing.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use tokio::time::{Instant, sleep, timeout};
use tracing::{info, warn};

use super::shutdown::Shutdown;
use crate::kube_api::connect;
use crate::kube_api::error::message;
use crate::model::text::{clip, sanitize};

/// The time between two looks.
const POLL: Duration = Duration::from_secs(1);
/// Time limit of one request.
const LIMIT: Duration = Duration::from_secs(10);
/// Characters of an error that is logged.
const QUOTED_MAX: usize = 300;

/// The nodes of a DaemonSet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Progress {
    done: i32,
    nodes: i32,
}

/// Waits until the DaemonSet with this name in the pod's own namespace is ready on all its nodes.
///
/// # Errors
/// If it does not exist, is not ready within this time, or a signal comes.
pub(crate) async fn for_daemon_set(name: &str, longest: Duration, stop: &Shutdown) -> Result<()> {
    let cluster = connect::connect().await;
    let cluster = cluster.context("failed to find the cluster")?;
    let namespace = cluster.default_namespace();
    let api: Api<DaemonSet> = Api::namespaced(cluster.client().clone(), namespace);
    let end = Instant::now() + longest;
    let mut last: Option<Progress> = None;
    let mut problem = None;
    while Instant::now() < end {
        match timeout(LIMIT, api.get(name)).await {
            Ok(Ok(set)) => {
                problem = None;
                let seen = progress(&set);
                if seen != last
                    && let Some(Progress { done, nodes }) = seen
                {
                    info!("{done} of {nodes} nodes are done");
                }
                last = seen;
                if seen.is_some_and(|seen| seen.done >= seen.nodes) {
                    return Ok(());
                }
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 404 => {
                bail!("the DaemonSet {namespace}/{name} does not exist");
            }
            // A right that was granted a moment ago may not be known yet.
            Ok(Err(error)) => told(&mut problem, &message(error)),
            Err(_) => told(&mut problem, "the API server does not respond"),
        }
        tokio::select! {
            () = stop.token().cancelled() => bail!("interrupted"),
            () = sleep(POLL) => {}
        }
    }
    let longest = humantime::format_duration(longest);
    match (problem, last) {
        (None, Some(Progress { done, nodes })) => {
            bail!("{done} of {nodes} nodes are done after {longest}")
        }
        (Some(problem), _) => bail!("not done after {longest}: {problem}"),
        (None, None) => bail!("the DaemonSet {namespace}/{name} has no status after {longest}"),
    }
}

fn told(problem: &mut Option<String>, text: &str) {
    let text = sanitize(&clip(text, QUOTED_MAX));
    if problem.as_ref() != Some(&text) {
        warn!("failed to read the DaemonSet: {text}; retrying");
    }
    *problem = Some(text);
}

/// The progress of a DaemonSet; `None` until its controller has seen it. Pure.
fn progress(set: &DaemonSet) -> Option<Progress> {
    let status = set.status.as_ref()?;
    let is_seen = status.observed_generation >= set.metadata.generation;
    let nodes = status.desired_number_scheduled;
    is_seen.then(|| Progress {
        done: status
            .number_ready
            .min(status.updated_number_scheduled.unwrap_or(0)),
        nodes,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_observed_status_counts() {
        let of = |status: Value| {
            let set = json!({"metadata": {"name": "a", "generation": 2}, "status": status});
            progress(&serde_json::from_value(set).unwrap())
        };
        let status = |generation: i64, nodes: i32, ready: i32, updated: i32| {
            json!({"observedGeneration": generation, "desiredNumberScheduled": nodes, "numberReady": ready,
                "updatedNumberScheduled": updated, "currentNumberScheduled": nodes, "numberMisscheduled": 0})
        };
        assert_eq!(of(Value::Null), None);
        assert_eq!(of(status(1, 3, 3, 3)), None);
        for (status, done, nodes) in [
            (status(2, 3, 2, 3), 2, 3),
            (status(2, 3, 3, 1), 1, 3),
            (status(2, 3, 3, 3), 3, 3),
            (status(2, 0, 0, 0), 0, 0),
        ] {
            assert_eq!(of(status), Some(Progress { done, nodes }));
        }
    }
}
