//! Waits until a DaemonSet has a ready pod on each of its nodes: the end of the chart's clean-up after an uninstall.
//!
//! It reads one object and writes nothing.

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};

use super::shutdown::Shutdown;
use crate::kube_api::connect;
use crate::kube_api::error::message;
use crate::model::text::{clip, sanitize};
use crate::retry::polling::Polling;

/// The pauses between looks.
const POLLING: Polling = Polling {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(4),
};
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

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} nodes are done", self.done, self.nodes)
    }
}

/// The reason why it is not over.
#[derive(Debug, PartialEq, Eq)]
enum Pending {
    Nodes(Progress),
    /// Its controller has not seen it yet.
    Unseen,
    /// It cannot be read now.
    Unreadable(String),
    Missing,
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
    let mut last = None;
    let told = |pending: &Pending, _| {
        let text = match pending {
            Pending::Nodes(progress) => progress.to_string(),
            Pending::Unreadable(problem) => problem.clone(),
            Pending::Unseen | Pending::Missing => return,
        };
        if last.as_ref() != Some(&text) {
            match pending {
                Pending::Unreadable(_) => warn!("failed to read the DaemonSet: {text}; retrying"),
                _ => info!("{text}"),
            }
        }
        last = Some(text);
    };
    let passes = |pending: &Pending| *pending != Pending::Missing;
    let asked = POLLING.ask(
        Some(Instant::now() + longest),
        || look(&api, name),
        passes,
        told,
    );
    let ended = tokio::select! {
        () = stop.token().cancelled() => bail!("interrupted"),
        ended = asked => ended,
    };
    let longest = humantime::format_duration(longest);
    match ended {
        Ok(progress) => info!("{progress}"),
        Err(Pending::Missing) => bail!("the DaemonSet {namespace}/{name} does not exist"),
        Err(Pending::Nodes(progress)) => bail!("{progress} after {longest}"),
        Err(Pending::Unreadable(problem)) => bail!("not done after {longest}: {problem}"),
        Err(Pending::Unseen) => {
            bail!("the DaemonSet {namespace}/{name} has no status after {longest}")
        }
    }
    Ok(())
}

/// One look. A right that was granted a moment ago may not be known yet, so that a refusal passes.
async fn look(api: &Api<DaemonSet>, name: &str) -> Result<Progress, Pending> {
    let unreadable = |text: &str| Pending::Unreadable(sanitize(&clip(text, QUOTED_MAX)));
    let set = match timeout(LIMIT, api.get(name)).await {
        Ok(Ok(set)) => set,
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => return Err(Pending::Missing),
        Ok(Err(error)) => return Err(unreadable(&message(error))),
        Err(_) => return Err(unreadable("the API server does not respond")),
    };
    match progress(&set) {
        None => Err(Pending::Unseen),
        Some(progress) if progress.done < progress.nodes => Err(Pending::Nodes(progress)),
        Some(progress) => Ok(progress),
    }
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
