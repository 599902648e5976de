//! What became of each image, and how that is shown: bars or logs while it goes on, then text, JSON and the
//! termination message. Only prints; decides nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::model::candidate::Workload;
use crate::model::reference::StoredImage;
use crate::planning::plan::{Plan, PlannedImage, Reason};
use crate::runtime::RuntimeInfo;

pub mod json;
pub mod progress;
pub mod termination;
pub mod text;

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
}

impl ImageReport {
    /// A report of an image of which no attempt was made.
    pub fn new(image: &PlannedImage, outcome: Outcome) -> Self {
        Self {
            image: Arc::clone(&image.image),
            outcome,
            reason: None,
            message: image.note.clone(),
            pods: image.pods,
            workloads: Arc::clone(&image.workloads),
            attempts: 0,
            seconds: None,
            bytes: None,
            digest: None,
            credential: None,
        }
    }

    /// Adds what the runtime has of the image.
    #[must_use]
    pub fn stored(mut self, stored: StoredImage) -> Self {
        self.bytes = stored.bytes;
        self.digest = stored.digest;
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

/// How many images had which outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pulled in this run.
    pub pulled: usize,
    /// There before.
    pub present: usize,
    /// Not there, though they were to be.
    pub failed: usize,
    /// Not to be pulled.
    pub skipped: usize,
}

/// A plan, and what is printed with it.
#[derive(Debug, Clone, Copy)]
pub struct Outline<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Who would be asked to pull; `None` where no runtime is at hand.
    pub runtime: Option<&'a RuntimeInfo>,
    /// The node's name, where it was given.
    pub node: Option<&'a str>,
    /// The requests that registries were sent to find out sizes; `None` where sizes are not shown.
    pub requests: Option<u64>,
}

/// What became of a plan.
#[derive(Debug, Clone)]
pub struct Report {
    /// Who was asked to pull; `None` where the run ended before a runtime was found.
    pub runtime: Option<RuntimeInfo>,
    /// The node's name, where it was given.
    pub node: Option<String>,
    /// Why there is no plan of which this could tell.
    pub error: Option<String>,
    /// The images in the plan's order.
    pub images: Vec<ImageReport>,
    /// How long the whole run took.
    pub elapsed: Duration,
}

impl Report {
    /// The sums.
    pub fn counts(&self) -> Counts {
        let count = |outcome| self.images.iter().filter(|i| i.outcome == outcome).count();
        Counts {
            pulled: count(Outcome::Pulled),
            present: count(Outcome::Present),
            failed: count(Outcome::Failed),
            skipped: count(Outcome::Skipped),
        }
    }
}
