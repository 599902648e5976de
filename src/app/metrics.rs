//! The metrics of agent and controller. Labels come from fixed sets, never from the name of an object.
//!
//! The text has the crate's suffix `_total` for counters, so that counters are registered without it.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

use crate::kube_api::counted::RequestCounts;
use crate::model::failure::FailureKind;

/// Upper bounds of the durations of pulls in seconds: a present layer takes tenths, a large model tens of minutes.
const PULL_SECONDS: [f64; 12] = [
    0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0,
];
/// Upper bounds of the durations of one reconciliation in seconds.
const RECONCILE_SECONDS: [f64; 9] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];

/// The label `outcome` of `harpoon_pulls_total`.
const PULLED: &str = "pulled";
const FAILED: &str = "failed";
const RETRIED: &str = "retried";

type Number = Gauge<f64, AtomicU64>;
/// A gauge that is absent until it is set.
type LateGauge = Family<[(&'static str, &'static str); 0], Number>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Owner {
    owner: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Cause {
    cause: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PullLabels {
    outcome: &'static str,
    reason: &'static str,
}

/// The label `state` of `harpoon_images`. Every image that the node needs has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ImageState {
    /// The runtime has it, or it is sealed.
    Present,
    /// It is being pulled.
    Pulling,
    /// It waits for its rollout slot or its turn.
    Waiting,
    /// Its last pull failed.
    Failed,
}

impl ImageState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Pulling => "pulling",
            Self::Waiting => "waiting",
            Self::Failed => "failed",
        }
    }
}

/// The label `cause` of `harpoon_released_total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReleaseCause {
    /// No prefetch needs the image any more.
    Unused,
    /// The disk is above the high mark.
    Disk,
}

impl ReleaseCause {
    /// Every cause.
    pub(crate) const ALL: [Self; 2] = [Self::Unused, Self::Disk];

    fn as_str(self) -> &'static str {
        match self {
            Self::Unused => "unused",
            Self::Disk => "disk",
        }
    }
}

/// The label `state` of `harpoon_controller_nodes`. Every node has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeState {
    /// It has all its images.
    Complete,
    /// It pulls, or has not seen the latest images.
    Updating,
    /// At least one image failed.
    Failing,
    /// Its agent has not reported for 5 minutes.
    Unknown,
}

impl NodeState {
    /// Every state.
    pub(crate) const ALL: [Self; 4] =
        [Self::Complete, Self::Updating, Self::Failing, Self::Unknown];

    fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Updating => "updating",
            Self::Failing => "failing",
            Self::Unknown => "unknown",
        }
    }
}

/// The metrics of `harpoon agent`, shared by all clones.
#[derive(Debug, Clone)]
pub(crate) struct AgentMetrics {
    /// Absent until it is known what the node needs.
    images: Family<State, Gauge>,
    pulls: Family<PullLabels, Counter>,
    pull_duration: Histogram,
    pulled_bytes: Counter,
    first_fill: LateGauge,
    image_store: Family<Owner, Gauge>,
    released: Family<Cause, Counter>,
    disk_pressure: Gauge,
}

impl AgentMetrics {
    /// The metrics, and the registry with these and the requests to the API server.
    pub(crate) fn new(requests: &RequestCounts) -> (Self, Registry) {
        let metrics = Self {
            images: Family::default(),
            pulls: Family::default(),
            pull_duration: Histogram::new(PULL_SECONDS),
            pulled_bytes: Counter::default(),
            first_fill: Family::default(),
            image_store: Family::default(),
            released: Family::default(),
            disk_pressure: Gauge::default(),
        };
        let mut to = registry(requests);
        to.register(
            "harpoon_images",
            "Images that the node needs, by state",
            metrics.images.clone(),
        );
        to.register(
            "harpoon_pulls",
            "Ended pulls, and failed attempts that are repeated, by outcome and reason of a failure",
            metrics.pulls.clone(),
        );
        to.register(
            "harpoon_pull_duration_seconds",
            "Duration of successful pulls, with their retries",
            metrics.pull_duration.clone(),
        );
        to.register(
            "harpoon_pulled_bytes",
            "Size of the pulled images as the runtime reports it",
            metrics.pulled_bytes.clone(),
        );
        to.register(
            "harpoon_first_fill_seconds",
            "Duration of the node's first fill; absent before its end",
            metrics.first_fill.clone(),
        );
        to.register(
            "harpoon_image_store_bytes",
            "Bytes of the image store, used by images of harpoon and by all images",
            metrics.image_store.clone(),
        );
        to.register(
            "harpoon_released",
            "Pins and seals that were given up, by cause",
            metrics.released.clone(),
        );
        to.register(
            "harpoon_disk_pressure",
            "1 while the disk is above the high mark or has not fallen to the resume mark, otherwise 0",
            metrics.disk_pressure.clone(),
        );
        // What did not occur is 0, not absent: Prometheus sees no increase in a series that begins with 1.
        metrics.pull_count(PULLED, "").inc_by(0);
        for kind in FailureKind::ALL {
            metrics.pull_count(FAILED, kind.as_str()).inc_by(0);
            metrics.pull_count(RETRIED, kind.as_str()).inc_by(0);
        }
        for cause in ReleaseCause::ALL {
            metrics.cause(cause).inc_by(0);
        }
        (metrics, to)
    }

    /// The number of images in this state.
    pub(crate) fn set_images(&self, state: ImageState, images: usize) {
        let state = state.as_str();
        set(&self.images.get_or_create(&State { state }), images);
    }

    /// A pull succeeded. `bytes` is the image's size, if known.
    pub(crate) fn pulled(&self, duration: Duration, bytes: Option<u64>) {
        self.pull_count(PULLED, "").inc();
        self.pull_duration.observe(duration.as_secs_f64());
        self.pulled_bytes.inc_by(bytes.unwrap_or(0));
    }

    /// A pull failed, after all its attempts.
    pub(crate) fn pull_failed(&self, kind: FailureKind) {
        self.pull_count(FAILED, kind.as_str()).inc();
    }

    /// An attempt of a pull failed, and is repeated.
    pub(crate) fn pull_retried(&self, kind: FailureKind) {
        self.pull_count(RETRIED, kind.as_str()).inc();
    }

    fn pull_count(&self, outcome: &'static str, reason: &'static str) -> Counter {
        let labels = PullLabels { outcome, reason };
        self.pulls.get_or_create_owned(&labels)
    }

    /// The node's first fill ended after this time.
    pub(crate) fn set_first_fill(&self, duration: Duration) {
        let gauge = self.first_fill.get_or_create(&[]);
        gauge.set(duration.as_secs_f64());
    }

    /// The bytes of the image store that images of harpoon and all images use.
    pub(crate) fn set_image_store(&self, by_harpoon: u64, by_all: u64) {
        for (owner, bytes) in [("harpoon", by_harpoon), ("all", by_all)] {
            let gauge = self.image_store.get_or_create(&Owner { owner });
            gauge.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }

    /// Sets whether harpoon yields the disk.
    pub(crate) fn set_disk_pressure(&self, is_yielding: bool) {
        self.disk_pressure.set(i64::from(is_yielding));
    }

    /// A pin or a seal was given up.
    pub(crate) fn released(&self, cause: ReleaseCause) {
        self.cause(cause).inc();
    }

    fn cause(&self, cause: ReleaseCause) -> Counter {
        let cause = cause.as_str();
        self.released.get_or_create_owned(&Cause { cause })
    }
}

/// The metrics of `harpoon controller`, shared by all clones.
#[derive(Debug, Clone)]
pub(crate) struct ControllerMetrics {
    leader: Gauge,
    planned_images: Gauge,
    nodes: Family<State, Gauge>,
    failing_image_nodes: Gauge,
    nodes_held: Gauge,
    reconcile: Histogram,
}

impl ControllerMetrics {
    /// The metrics, and the registry with these and the requests to the API server.
    pub(crate) fn new(requests: &RequestCounts) -> (Self, Registry) {
        let metrics = Self {
            leader: Gauge::default(),
            planned_images: Gauge::default(),
            nodes: Family::default(),
            failing_image_nodes: Gauge::default(),
            nodes_held: Gauge::default(),
            reconcile: Histogram::new(RECONCILE_SECONDS),
        };
        let mut to = registry(requests);
        to.register(
            "harpoon_controller_leader",
            "1 if this controller leads, else 0",
            metrics.leader.clone(),
        );
        to.register(
            "harpoon_controller_failing_image_nodes",
            "Nodes on which the image fails that fails on the most nodes",
            metrics.failing_image_nodes.clone(),
        );
        to.register(
            "harpoon_controller_planned_images",
            "PlannedImages that a prefetch uses",
            metrics.planned_images.clone(),
        );
        to.register(
            "harpoon_controller_nodes",
            "Nodes with an agent, by state over all prefetches",
            metrics.nodes.clone(),
        );
        to.register(
            "harpoon_controller_nodes_held",
            "Nodes that the node gate keeps tainted",
            metrics.nodes_held.clone(),
        );
        to.register(
            "harpoon_controller_reconcile_seconds",
            "Duration of one reconciliation: resolve, merge, apply",
            metrics.reconcile.clone(),
        );
        metrics.set_leader(false);
        (metrics, to)
    }

    /// This controller leads, or no longer does. One that does not lead knows no numbers, so that they become 0.
    pub(crate) fn set_leader(&self, leads: bool) {
        self.leader.set(leads.into());
        if !leads {
            self.set_planned_images(0);
            self.set_failing_image_nodes(0);
            self.set_nodes_held(0);
            for state in NodeState::ALL {
                self.set_nodes(state, 0);
            }
        }
    }

    /// The number of nodes on which the image fails that fails on the most nodes.
    pub(crate) fn set_failing_image_nodes(&self, nodes: usize) {
        set(&self.failing_image_nodes, nodes);
    }

    /// The number of PlannedImages that a prefetch uses.
    pub(crate) fn set_planned_images(&self, images: usize) {
        set(&self.planned_images, images);
    }

    /// The number of nodes in this state.
    pub(crate) fn set_nodes(&self, state: NodeState, nodes: usize) {
        let state = state.as_str();
        set(&self.nodes.get_or_create(&State { state }), nodes);
    }

    /// The number of nodes that the node gate keeps tainted.
    pub(crate) fn set_nodes_held(&self, nodes: usize) {
        set(&self.nodes_held, nodes);
    }

    /// A reconciliation took this time.
    pub(crate) fn reconciled(&self, duration: Duration) {
        self.reconcile.observe(duration.as_secs_f64());
    }
}

fn set(gauge: &Gauge, number: usize) {
    gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
}

/// A registry with what both processes have: the build and the requests to the API server.
fn registry(requests: &RequestCounts) -> Registry {
    let mut registry = Registry::default();
    registry.register(
        "harpoon_build",
        "Version of harpoon",
        Info::new([("version", env!("CARGO_PKG_VERSION"))]),
    );
    registry.register(
        "harpoon_api_requests",
        "Requests to the Kubernetes API server, by verb, kind and status code",
        requests.family(),
    );
    registry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        text
    }

    #[test]
    fn agent_metrics_have_documented_names() {
        let (metrics, registry) = AgentMetrics::new(&RequestCounts::default());
        for absent in ["harpoon_first_fill_seconds ", "harpoon_images{"] {
            assert!(
                !text(&registry).contains(&format!("\n{absent}")),
                "{absent}"
            );
        }
        metrics.set_images(ImageState::Present, 3);
        metrics.set_images(ImageState::Waiting, 0);
        metrics.pull_retried(FailureKind::RateLimited);
        metrics.pulled(Duration::from_secs(2), Some(100));
        metrics.pull_failed(FailureKind::NotFound);
        metrics.set_first_fill(Duration::from_millis(1500));
        metrics.set_image_store(1 << 30, 2 << 30);
        metrics.released(ReleaseCause::Disk);
        assert!(text(&registry).contains("\nharpoon_disk_pressure 0\n"));
        metrics.set_disk_pressure(true);
        let text = text(&registry);
        for line in [
            concat!(
                "harpoon_build_info{version=\"",
                env!("CARGO_PKG_VERSION"),
                "\"} 1"
            ),
            "harpoon_images{state=\"present\"} 3",
            "harpoon_images{state=\"waiting\"} 0",
            "harpoon_pulls_total{outcome=\"pulled\",reason=\"\"} 1",
            "harpoon_pulls_total{outcome=\"failed\",reason=\"not_found\"} 1",
            "harpoon_pulls_total{outcome=\"failed\",reason=\"rate_limited\"} 0",
            "harpoon_pulls_total{outcome=\"retried\",reason=\"rate_limited\"} 1",
            "harpoon_pull_duration_seconds_bucket{le=\"2.5\"} 1",
            "harpoon_pull_duration_seconds_sum 2.0",
            "harpoon_pulled_bytes_total 100",
            "harpoon_first_fill_seconds 1.5",
            "harpoon_image_store_bytes{owner=\"harpoon\"} 1073741824",
            "harpoon_image_store_bytes{owner=\"all\"} 2147483648",
            "harpoon_released_total{cause=\"disk\"} 1",
            "harpoon_released_total{cause=\"unused\"} 0",
            "harpoon_disk_pressure 1",
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}: {text}");
        }
    }

    #[test]
    fn controller_metrics_have_documented_names() {
        let (metrics, registry) = ControllerMetrics::new(&RequestCounts::default());
        metrics.set_leader(true);
        metrics.set_planned_images(7);
        metrics.set_failing_image_nodes(2);
        metrics.set_nodes(NodeState::Complete, 5);
        metrics.reconciled(Duration::from_millis(2));
        let shown = text(&registry);
        for line in [
            "harpoon_controller_leader 1",
            "harpoon_controller_failing_image_nodes 2",
            "harpoon_controller_planned_images 7",
            "harpoon_controller_nodes{state=\"complete\"} 5",
            "harpoon_controller_nodes{state=\"unknown\"} 0",
            "harpoon_controller_nodes_held 0",
            "harpoon_controller_reconcile_seconds_count 1",
        ] {
            assert!(shown.contains(&format!("\n{line}\n")), "{line}: {shown}");
        }
        metrics.set_leader(false);
        let shown = text(&registry);
        assert!(shown.contains("\nharpoon_controller_nodes{state=\"complete\"} 0\n"));
        assert!(shown.contains("\nharpoon_controller_leader 0\n"), "{shown}");
    }
}
