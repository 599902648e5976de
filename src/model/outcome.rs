//! The outcome of each image, and the reason for it. No I/O.

use std::sync::Arc;

use crate::model::candidate::Workload;
use crate::model::failure::FailureKind;
use crate::model::stored_image::StoredImage;

/// The outcome of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The runtime pulled it in this run.
    Pulled,
    /// The runtime already had it.
    Present,
    /// It is not present; the reason is a failure kind.
    Failed,
    /// It was excluded; the reason says why.
    Skipped,
}

impl Outcome {
    /// The name used in JSON and in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pulled => "pulled",
            Self::Present => "present",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
        }
    }
}

/// The outcome of one image, with details.
#[derive(Debug, Clone)]
pub struct ImageReport {
    /// The image as first written.
    pub image: Arc<str>,
    /// The outcome.
    pub outcome: Outcome,
    /// The reason of a failure or exclusion.
    pub reason: Option<Reason>,
    /// The reason for people, with the runtime's own message.
    pub message: Option<String>,
    /// The desired number of pods that use it.
    pub pods: Option<u64>,
    /// The workloads that use it.
    pub workloads: Arc<[Arc<Workload>]>,
    /// Number of attempts that were started.
    pub attempts: u32,
    /// Time from the start of the first attempt to the end, in seconds; `None` without any attempt.
    pub seconds: Option<f64>,
    /// The image's size in bytes as the runtime reports it.
    pub bytes: Option<u64>,
    /// The digest that the reference resolves to on this node.
    pub digest: Option<String>,
    /// The source of the credential that it was pulled with; `None` for an anonymous pull.
    pub credential: Option<String>,
    /// harpoon keeps it by a seal.
    pub is_sealed: bool,
}

impl ImageReport {
    /// Adds the facts that the runtime reports about the image.
    #[must_use]
    pub fn stored(mut self, stored: StoredImage) -> Self {
        self.bytes = stored.bytes;
        self.digest = stored.digest;
        self.is_sealed = stored.is_sealed;
        self
    }

    /// Adds the reason why it is not present.
    #[must_use]
    pub fn because(mut self, reason: Reason, message: String) -> Self {
        self.reason = Some(reason);
        self.message = Some(message);
        self
    }
}

/// The reason why an image is not pulled, or why its pull failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It cannot be pulled, or its pull failed.
    Failure(FailureKind),
    /// Excluded by `--ignore`.
    Ignored,
    /// Not included by `--only`.
    NotOnly,
    /// None of the workloads that use it can run on this node.
    NodeMismatch,
    /// Over `--limit`.
    Limit,
    /// It exceeds `--disk-budget`.
    DiskBudget,
    /// The image file system would be above `--disk-high-percent`, or is.
    DiskPressure,
    /// It was removed from the node again and again.
    Evicted,
}

impl Reason {
    /// The reasons why an image that a node needs may not be there.
    pub fn of_nodes() -> impl Iterator<Item = Self> {
        let failures = FailureKind::ALL.into_iter().map(Self::Failure);
        failures.chain([Self::DiskBudget, Self::DiskPressure, Self::Evicted])
    }

    /// The name as the reason of a Kubernetes condition, in CamelCase.
    pub fn condition_reason(self) -> &'static str {
        match self {
            Self::Failure(kind) => kind.condition_reason(),
            Self::DiskBudget => "DiskBudget",
            Self::DiskPressure => "DiskPressure",
            Self::Evicted => "Evicted",
            Self::Ignored | Self::NotOnly | Self::NodeMismatch | Self::Limit => "Skipped",
        }
    }

    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failure(kind) => kind.as_str(),
            Self::Ignored => "ignored",
            Self::NotOnly => "not_only",
            Self::NodeMismatch => "node_mismatch",
            Self::Limit => "limit",
            Self::DiskBudget => "disk_budget",
            Self::DiskPressure => "disk_pressure",
            Self::Evicted => "evicted",
        }
    }
}
