//! `harpoon agent`: keeps on a node the images that the controller has planned for it.
//!
//! It never ends because the API server, the runtime or a registry is away, and never writes anything but its NodePrefetch.
//!
//! | file | does |
//! | --- | --- |
//! | `watches.rs` | follows the PlannedImages and the Node |
//! | `planned.rs` | a PlannedImage, decoded once; pure |
//! | `desired.rs` | which of them the node needs, in which order and from when on; pure |
//! | `state.rs` | what the agent knows of each image; no I/O |
//! | `first_fill.rs` | when the node's first fill is complete; no I/O |
//! | `connection.rs` | waits for the runtime, and notices when it goes away |
//! | `fill.rs` | plans, pulls and compares with the runtime while it responds |
//! | `retention.rs` | pins images, gives them up when the disk is full, releases what has left the plan |
//! | `secrets.rs` | reads the pull secrets that the planned images name |
//! | `status.rs` | the status of the NodePrefetch; pure |
//! | `publish.rs` | writes it |

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Notify;
use tracing::info;

use crate::app::metrics::AgentMetrics;
use crate::app::serve::{Check, Liveness, Readiness, Served, Server};
use crate::app::settings::{PullSettings, RuntimeSettings};
use crate::app::shutdown::Shutdown;
use crate::credentials::keyring::Keyring;
use crate::fill::FillMode;
use crate::kube_api::connect::{self, Cluster};
use crate::model::image_size::DiskLimit;
use crate::planning::disk_marks::DiskMarks;
use crate::runtime::containerd::Unsettled;

mod connection;
mod desired;
mod fill;
mod first_fill;
mod planned;
mod publish;
mod retention;
mod secrets;
mod state;
mod status;
mod watches;

use state::State;

/// The time after which an agent whose loop does not turn is stuck.
const STUCK: Duration = Duration::from_secs(120);
/// The time between two signs of life.
const BEAT: Duration = Duration::from_secs(20);

/// The settings of the agent.
pub(crate) struct Settings {
    pub(crate) runtime: RuntimeSettings,
    /// The name of this node.
    pub(crate) node: String,
    /// Keys of further taints that are gone once the node has started.
    pub(crate) startup_taints: Vec<String>,
    pub(crate) pull: PullSettings,
    /// Method of fetching and unpacking images.
    pub(crate) fill: FillMode,
    /// The maximum size of the runtime's image store.
    pub(crate) disk_budget: Option<DiskLimit>,
    /// Percentage of the image file system above which nothing is pulled or protected; 100 for none.
    pub(crate) disk_high_percent: u8,
    /// The address of metrics and health.
    pub(crate) metrics_address: SocketAddr,
    /// The time between two comparisons with the runtime.
    pub(crate) resync: Duration,
}

/// The state that the parts of the agent share.
struct Agent {
    settings: Settings,
    cluster: Cluster,
    keyring: Keyring,
    state: Mutex<State>,
    /// The marks of the image file system, for the life of the agent: they know what was lost.
    marks: Mutex<DiskMarks>,
    /// Names of sealed images that the last connection to the runtime has not removed.
    unsettled: Mutex<Unsettled>,
    metrics: AgentMetrics,
    checks: Checks,
    /// Something has changed that the plan depends on.
    planned: Notify,
    /// Something has changed that is reported.
    told: Notify,
    /// An image was pulled.
    pulled: Notify,
    /// An image was pulled and sealed.
    sealed: Notify,
}

/// The conditions of readiness.
struct Checks {
    first_fill: Check,
    runtime: Check,
}

/// Runs the agent until the request to stop.
///
/// # Errors
/// If no cluster is configured, or the address of the metrics cannot be used.
pub(crate) async fn run(settings: Settings, keyring: Keyring, shutdown: &Shutdown) -> Result<()> {
    let cluster = connect::connect()
        .await
        .context("failed to connect to the cluster")?;
    let server = Server::bind(settings.metrics_address).await?;
    let (metrics, registry) = AgentMetrics::new(cluster.requests());
    let readiness = Readiness::default();
    let checks = Checks {
        first_fill: readiness.check("first-fill", "the first fill is not complete"),
        runtime: readiness.check("runtime", "waiting for the container runtime"),
    };
    let liveness = Liveness::new(STUCK);
    info!(
        node = settings.node,
        server = cluster.server(),
        metrics = server.address().map(tracing::field::display),
        "agent started"
    );
    let marks = DiskMarks::new(settings.disk_high_percent);
    let agent = Agent {
        settings,
        cluster,
        keyring,
        state: Mutex::new(State::new()),
        marks: Mutex::new(marks),
        unsettled: Mutex::default(),
        metrics,
        checks,
        planned: Notify::new(),
        told: Notify::new(),
        pulled: Notify::new(),
        sealed: Notify::new(),
    };
    let served = Served {
        metrics: Arc::new(registry),
        readiness,
        liveness: liveness.clone(),
    };
    let serving = tokio::spawn(server.run(served, shutdown.token().clone()));
    tokio::select! {
        biased;
        () = shutdown.token().cancelled() => {}
        never = Box::pin(watches::images(&agent)) => match never {},
        never = Box::pin(watches::node(&agent)) => match never {},
        never = Box::pin(connection::keep(&agent)) => match never {},
        never = Box::pin(publish::publish(&agent)) => match never {},
        never = live(&liveness) => match never {},
    }
    serving.abort();
    info!("agent stopped");
    Ok(())
}

async fn live(liveness: &Liveness) -> Infallible {
    loop {
        liveness.beat();
        tokio::time::sleep(BEAT).await;
    }
}

impl Agent {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn marks(&self) -> MutexGuard<'_, DiskMarks> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsettled(&self) -> MutexGuard<'_, Unsettled> {
        self.unsettled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The marks, unless they are turned off.
    fn marks_in_use(&self) -> Option<&Mutex<DiskMarks>> {
        (self.settings.disk_high_percent < 100).then_some(&self.marks)
    }
}
