//! The outcome of each image, and the reason for it. No I/O.

use std::sync::Arc;

use crate::model::candidate::Workload;
use crate::model::failure::FailureKind;
use crate::model::stored_image::StoredImage;

/// What became of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// The runtime pulled it in this run.
    Pulled,
    /// The runtime had it before.
    Present,
    /// It is not there; the reason is a failure kind.
    Failed,
    /// It was not to be pulled; the reason says why.
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

/// What became of one image.
#[derive(Debug, Clone)]
pub struct ImageReport {
    /// The image as it was first spelt.
    pub image: Arc<str>,
    /// What became of it.
    pub outcome: Outcome,
    /// Why, for what failed or was skipped.
    pub reason: Option<Reason>,
    /// The same for a person, with the runtime's own words.
    pub message: Option<String>,
    /// The pods that are meant to use it.
    pub pods: Option<u64>,
    /// The workloads that use it.
    pub workloads: Arc<[Arc<Workload>]>,
    /// Attempts that were begun.
    pub attempts: u32,
    /// From the first attempt's begin to the end, in seconds; `None` where there was no attempt.
    pub seconds: Option<f64>,
    /// The image's size in bytes as the runtime counts it.
    pub bytes: Option<u64>,
    /// The digest that the reference stands for on this node.
    pub digest: Option<String>,
    /// Where the credential that it was pulled with was found; `None` where it took none.
    pub credential: Option<String>,
    /// harpoon keeps it by a seal.
    pub is_sealed: bool,
}

impl ImageReport {
    /// Adds what the runtime has of the image.
    #[must_use]
    pub fn stored(mut self, stored: StoredImage) -> Self {
        self.bytes = stored.bytes;
        self.digest = stored.digest;
        self.is_sealed = stored.is_sealed;
        self
    }

    /// Adds why it is not there.
    #[must_use]
    pub fn because(mut self, reason: Reason, message: String) -> Self {
        self.reason = Some(reason);
        self.message = Some(message);
        self
    }
}

/// Why an image is not pulled, or why its pull failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// It cannot be pulled, or its pull failed.
    Failure(FailureKind),
    /// `--ignore` names it.
    Ignored,
    /// `--only` does not name it.
    NotOnly,
    /// None of the workloads that use it can run on this node.
    NodeMismatch,
    /// `--limit` images come before it.
    Limit,
    /// It does not fit into what `--disk-budget` leaves.
    DiskBudget,
}

impl Reason {
    /// The name used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failure(kind) => kind.as_str(),
            Self::Ignored => "ignored",
            Self::NotOnly => "not_only",
            Self::NodeMismatch => "node_mismatch",
            Self::Limit => "limit",
            Self::DiskBudget => "disk_budget",
        }
    }
}
