//! The views of `harpoon status` on continuous mode, and their JSON and YAML. Pure.
//!
//! All texts of a view are sanitized where it is made. Text for people is in `text.rs`, the lines of a watch in `bars.rs`.

use std::io::{self, Write};

use serde::Serialize;

use super::json::write_line;

pub mod bars;
mod table;
pub mod text;

/// Numbers of nodes by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct NodeSums {
    /// Nodes that need an image, or have not reported yet whether they do.
    pub desired: u64,
    /// Nodes that have all their images.
    pub complete: u64,
    /// Nodes that pull, wait for their start or have not seen the latest images.
    pub updating: u64,
    /// Nodes on which an image failed.
    pub failing: u64,
    /// Nodes that have not reported for five minutes.
    pub unknown: u64,
}

impl NodeSums {
    /// Adds a node in this state.
    pub fn add(&mut self, state: NodeState) {
        self.desired += 1;
        match state {
            NodeState::Complete => self.complete += 1,
            NodeState::Updating => self.updating += 1,
            NodeState::Failing => self.failing += 1,
            NodeState::Unknown => self.unknown += 1,
        }
    }
}

/// The state of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// An image failed.
    Failing,
    /// It has not reported for five minutes.
    Unknown,
    /// It pulls, waits for its start or has not seen the latest images.
    Updating,
    /// It has all its images.
    Complete,
}

impl NodeState {
    /// The name of the state.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Unknown => "unknown",
            Self::Updating => "updating",
            Self::Complete => "complete",
        }
    }
}

/// Numbers of images on a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ImageSums {
    /// Images that the node needs.
    pub desired: u64,
    /// Of these, present.
    pub present: u64,
    /// Of these, being pulled or waiting for it.
    pub pulling: u64,
    /// Of these, failed.
    pub failed: u64,
}

/// An ImagePrefetch.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PrefetchRow {
    /// Its name.
    pub name: String,
    /// Status of the condition Ready, empty without one: True, False or Unknown.
    pub ready: String,
    /// Reason of that condition.
    pub reason: String,
    /// Message of that condition.
    pub message: String,
    /// True if something is wrong that nodes alone do not explain: the condition Degraded.
    pub degraded: bool,
    /// Reason of that condition.
    pub degraded_reason: String,
    /// Message of that condition.
    pub degraded_message: String,
    /// True if nothing is planned on request.
    pub suspended: bool,
    /// Number of its images.
    pub images: u64,
    /// Numbers of nodes.
    pub nodes: NodeSums,
    /// Time since its creation.
    pub age_seconds: Option<u64>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeRow {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: NodeState,
    /// Numbers of its images.
    pub images: ImageSums,
    /// Time since its last report.
    pub heartbeat_seconds: Option<u64>,
    /// Duration of its first fill, once that is complete.
    pub first_fill_seconds: Option<f64>,
}

/// An image that failed for one reason on some nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FailureRow {
    /// The image.
    pub image: String,
    /// The kind of failure.
    pub reason: String,
    /// Number of nodes that report it.
    pub nodes: u64,
    /// One of these nodes.
    pub example_node: String,
    /// The message of one of these nodes.
    pub message: String,
}

/// An image of an ImagePrefetch. Nodes report numbers and failures, not all their images, so that the number of nodes that have it
/// is a range.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageRow {
    /// The image.
    pub image: String,
    /// Number of pods that use it.
    pub pods: u64,
    /// Maximum number of nodes that need it.
    pub nodes: u64,
    /// Minimum number of nodes that have it.
    pub present_min: u64,
    /// Maximum number of nodes that have it.
    pub present_max: u64,
    /// Number of nodes that report it as failed.
    pub failed: u64,
}

/// All ImagePrefetches and nodes.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Overview {
    /// The ImagePrefetches by name.
    pub prefetches: Vec<PrefetchRow>,
    /// Numbers of nodes over all ImagePrefetches; `desired` is the number of nodes with an agent.
    pub nodes: NodeSums,
    /// The nodes that are not complete, the worst first.
    pub incomplete: Vec<NodeRow>,
    /// The failures, those on the most nodes first.
    pub failures: Vec<FailureRow>,
}

/// One ImagePrefetch.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct PrefetchView {
    /// The ImagePrefetch itself.
    pub prefetch: PrefetchRow,
    /// Its images, those that the most nodes lack first.
    pub images: Vec<ImageRow>,
    /// The nodes that are not complete, the worst first.
    pub incomplete: Vec<NodeRow>,
    /// The nodes with the longest first fill, at most ten.
    pub slowest: Vec<NodeRow>,
    /// The failures of its images, those on the most nodes first.
    pub failures: Vec<FailureRow>,
}

/// The images of one ImagePrefetch on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryRow {
    /// The name of the ImagePrefetch.
    pub name: String,
    /// Numbers of images.
    pub images: ImageSums,
    /// True if the agent has seen its latest set of images.
    pub current: bool,
}

/// The image store of a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct StoreRow {
    /// Bytes of the images that harpoon keeps.
    pub harpoon_bytes: Option<u64>,
    /// Bytes of all images.
    pub used_bytes: Option<u64>,
    /// Capacity of the file system.
    pub capacity_bytes: Option<u64>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeView {
    /// The node itself.
    pub node: NodeRow,
    /// Status of its condition Ready, empty without one.
    pub ready: String,
    /// Reason of that condition.
    pub reason: String,
    /// Message of that condition.
    pub message: String,
    /// Name and version of the container runtime.
    pub runtime: String,
    /// The image store.
    pub image_store: StoreRow,
    /// Its images by ImagePrefetch.
    pub prefetches: Vec<EntryRow>,
    /// Its failures, at most ten.
    pub failures: Vec<FailureRow>,
}

/// A view that `harpoon status` shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum View {
    /// Everything.
    Overview(Overview),
    /// One ImagePrefetch.
    Prefetch(Box<PrefetchView>),
    /// One node.
    Node(Box<NodeView>),
}

impl View {
    /// Returns whether nothing is left to wait for.
    pub fn is_complete(&self) -> bool {
        let is_ready = |row: &PrefetchRow| {
            row.suspended || row.ready == "True" && row.nodes.complete == row.nodes.desired
        };
        match self {
            Self::Overview(all) => all.prefetches.iter().all(is_ready),
            Self::Prefetch(one) => {
                one.prefetch.ready == "True"
                    && one.prefetch.nodes.complete == one.prefetch.nodes.desired
            }
            // A node whose runtime is away has its images, and cannot start a pod.
            Self::Node(one) => one.node.state == NodeState::Complete && one.ready == "True",
        }
    }

    /// The progress in one line, such as `shop: 4987 of 5000 nodes complete, 10 updating, 3 failing`.
    pub fn summary(&self) -> String {
        match self {
            Self::Overview(all) => {
                let prefetches = all.prefetches.iter();
                let ready = prefetches.filter(|row| row.ready == "True").count();
                let of = all.prefetches.len();
                format!("{ready} of {of} prefetches ready, {}", nodes(&all.nodes))
            }
            Self::Prefetch(one) => {
                format!("{}: {}", one.prefetch.name, nodes(&one.prefetch.nodes))
            }
            Self::Node(one) => {
                let ImageSums {
                    desired,
                    present,
                    failed,
                    ..
                } = one.node.images;
                let failed = match failed {
                    0 => String::new(),
                    failed => format!(", {failed} failed"),
                };
                let name = &one.node.name;
                let state = one.node.state.as_str();
                format!("{name}: {state}, {present} of {desired} images present{failed}")
            }
        }
    }
}

fn nodes(sums: &NodeSums) -> String {
    let mut text = format!("{} of {} nodes complete", sums.complete, sums.desired);
    for (count, state) in [
        (sums.updating, "updating"),
        (sums.failing, "failing"),
        (sums.unknown, "unknown"),
    ] {
        if count > 0 {
            text.push_str(&format!(", {count} {state}"));
        }
    }
    text
}

/// Writes a view as one line of JSON.
///
/// # Errors
/// Those of the writer.
pub fn write_json(out: &mut impl Write, view: &View) -> io::Result<()> {
    write_line(out, view)
}

/// Writes a view as YAML.
///
/// # Errors
/// Those of the writer.
pub fn write_yaml(out: &mut impl Write, view: &View) -> io::Result<()> {
    let text = serde_saphyr::to_string(view).map_err(io::Error::other)?;
    out.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;
