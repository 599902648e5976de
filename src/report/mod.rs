//! What became of each image, and how that is shown: bars or logs while it goes on, then text, JSON and the
//! termination message. Only prints; decides nothing.

use std::time::Duration;

use crate::model::outcome::{ImageReport, Outcome};
use crate::planning::plan::Plan;
use crate::runtime::image_service::RuntimeInfo;

pub mod json;
pub mod progress;
pub mod seals;
pub mod termination;
pub mod text;

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
pub struct PlanReport<'a> {
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
    /// The runtime that was asked to pull; `None` where the run ended before one was found.
    pub runtime: Option<RuntimeInfo>,
    /// The node's name, where it was given.
    pub node: Option<String>,
    /// The reason for the lack of a plan, if there was none to report on.
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
