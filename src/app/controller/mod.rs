//! `harpoon controller`: the cluster side of continuous mode.
//!
//! It watches ImagePrefetches and the workloads that they ask for, writes one PlannedImage for each image, and sums up what the
//! agents report. One of several controllers leads; the others wait for its Lease and watch nothing else. It never talks to a
//! container runtime or a registry.
//!
//! | step | file | does | pure |
//! | --- | --- | --- | --- |
//! | 0 | `leader.rs` | leader election by a Lease | |
//! | 1 | `watches.rs`, `observe.rs`, `prefetch.rs` | watches -> state | |
//! | 2 | `resolve.rs` | one ImagePrefetch -> its images | yes |
//! | 3 | `merge.rs` | images of all ImagePrefetches -> PlannedImages | yes |
//! | 4 | `apply.rs` | what differs, and its writes | the difference |
//! | 5 | `aggregate.rs`, `status_pace.rs` | what nodes report -> status, and the time of its write | yes |
//! | 6 | `brake.rs` | rate limits -> longer windows | yes |
//! | 7 | `events.rs` | changes of conditions -> Events | what is worth one |
//! | 8 | `gate.rs`, `guard.rs` | nodes and what they report -> taints and conditions of nodes | `gate.rs` |
//! | 9 | `pressure.rs` | nodes whose disk is above the high mark -> Events | the schedule |
//!
//! `reconcile.rs` runs the steps.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tracing::{info, warn};

use crate::app::metrics::ControllerMetrics;
use crate::app::serve::{Liveness, Readiness, Served, Server};
use crate::app::shutdown::Shutdown;
use crate::kube_api::connect;
use crate::kube_api::error::message;
use crate::model::text::{clip, sanitize};

mod aggregate;
mod apply;
mod brake;
mod events;
mod gate;
mod guard;
mod leader;
mod merge;
mod observe;
mod prefetch;
mod pressure;
mod reconcile;
mod resolve;
mod status_pace;
#[cfg(test)]
mod tests;
mod watches;

use leader::Election;
use reconcile::Reconciler;

/// The time without progress after which the process counts as stuck.
const STUCK: Duration = Duration::from_secs(120);
/// Characters of an error that is logged.
const QUOTED_MAX: usize = 300;

/// The settings of the controller.
#[derive(Debug, Clone)]
pub(crate) struct ControllerSettings {
    /// The address of metrics and health.
    pub(crate) metrics_address: SocketAddr,
    /// The name of the Lease.
    pub(crate) lease: String,
    /// True if suspended CronJobs and Jobs count.
    pub(crate) include_idle: bool,
}

/// Runs the controller until it is asked to stop.
///
/// # Errors
/// If no cluster is configured, or the address cannot be listened on.
pub(crate) async fn run(settings: &ControllerSettings, shutdown: &Shutdown) -> Result<()> {
    let server = Server::bind(settings.metrics_address).await?;
    let cluster = connect::connect().await;
    let cluster = Arc::new(cluster.context("failed to find the cluster")?);
    let (metrics, registry) = ControllerMetrics::new(cluster.requests());
    let served = Served {
        metrics: Arc::new(registry),
        readiness: Readiness::default(),
        liveness: Liveness::new(STUCK),
    };
    let ready = served.readiness.check("watches", "starting");
    let liveness = served.liveness.clone();
    if let Some(address) = server.address() {
        info!("serving metrics and health on {address}");
    }
    let stop = shutdown.token().clone();
    let serving = tokio::spawn(server.run(served, stop.clone()));

    let namespace = own_namespace(&cluster);
    let mut election = Election::new(cluster.client().clone(), &namespace, &settings.lease);
    info!(
        "{} waits for the Lease {namespace}/{} on {}",
        election.identity(),
        settings.lease,
        cluster.server()
    );
    while !stop.is_cancelled() {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = election.acquire(&liveness, &ready) => info!("leading"),
        }
        let (fence, identity) = (election.fence(), election.identity().to_owned());
        let reconciler = Reconciler::new(
            Arc::clone(&cluster),
            settings.include_idle,
            fence,
            &identity,
        );
        metrics.set_leader(true);
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = election.hold() => warn!("no longer leading: the Lease could not be renewed"),
            () = reconciler.run(&metrics, &liveness, &ready) => {}
        }
        metrics.set_leader(false);
    }
    election.release().await;
    info!("stopped");
    let _ = serving.await;
    Ok(())
}

/// The pod's namespace, or that of the kubeconfig's context.
fn own_namespace(cluster: &connect::Cluster) -> String {
    let of_pod = std::env::var("POD_NAMESPACE").unwrap_or_default();
    let names = [of_pod.as_str(), cluster.default_namespace(), "default"];
    let named = names.into_iter().find(|name| !name.is_empty());
    named.unwrap_or_default().to_owned()
}

/// An error of a request for a log. It contains no credential.
fn shown(error: kube::Error) -> String {
    sanitize(&clip(&message(error), QUOTED_MAX))
}
