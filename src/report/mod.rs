//! Shows the outcome of each image: bars or logs during a run, then text, JSON and the termination message. Only prints; decides
//! nothing.

use std::time::Duration;

use crate::model::outcome::{ImageReport, Outcome};
use crate::planning::plan::Plan;
use crate::runtime::image_service::RuntimeInfo;

pub mod json;
pub mod progress;
pub mod seals;
pub mod status;
pub mod termination;
pub mod text;

/// Number of images with each outcome.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pulled in this run.
    pub pulled: usize,
    /// Present before.
    pub present: usize,
    /// Wanted, but not present.
    pub failed: usize,
    /// Excluded.
    pub skipped: usize,
}

/// A plan, and the facts that are printed with it.
#[derive(Debug, Clone, Copy)]
pub struct PlanReport<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The runtime that would pull; `None` if there is none.
    pub runtime: Option<&'a RuntimeInfo>,
    /// The node's name, if given.
    pub node: Option<&'a str>,
    /// Number of requests sent to registries for sizes; `None` if sizes are not shown.
    pub requests: Option<u64>,
}

/// The outcome of a plan.
#[derive(Debug, Clone)]
pub struct Report {
    /// The runtime that pulled; `None` if the run ended before one was found.
    pub runtime: Option<RuntimeInfo>,
    /// The node's name, if given.
    pub node: Option<String>,
    /// The error, if the run ended before there was a plan.
    pub error: Option<String>,
    /// The images in the plan's order.
    pub images: Vec<ImageReport>,
    /// Duration of the whole run.
    pub elapsed: Duration,
}

impl Report {
    /// The number of images by outcome.
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
