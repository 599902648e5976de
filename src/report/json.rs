//! The JSON of `run`, `pull` and `plan`: one object, all keys always present, unknown values null.

use std::io::{self, Write};
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{PlanReport, Report};
use crate::model::candidate::Workload;
use crate::model::image_size::Size;
use crate::planning::plan::{Action, Step};
use crate::runtime::image_service::RuntimeInfo;

#[derive(Serialize)]
struct RunJson<'a, I> {
    runtime: Option<&'a RuntimeInfo>,
    node: Option<&'a str>,
    images: I,
    summary: SummaryJson,
    /// Set for a run that ended before its plan was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_false(value: &bool) -> bool {
    !value
}

#[derive(Serialize)]
struct ImageJson<'a> {
    image: &'a str,
    outcome: &'static str,
    reason: Option<&'static str>,
    message: Option<&'a str>,
    pods: Option<u64>,
    workloads: Workloads<'a>,
    attempts: u32,
    seconds: Option<f64>,
    bytes: Option<u64>,
    digest: Option<&'a str>,
    credential: Option<&'a str>,
    #[serde(skip_serializing_if = "is_false")]
    sealed: bool,
}

#[derive(Serialize)]
struct SummaryJson {
    pulled: usize,
    present: usize,
    failed: usize,
    skipped: usize,
    seconds: f64,
}

#[derive(Serialize)]
struct PlanJson<'a, I> {
    runtime: Option<&'a RuntimeInfo>,
    node: Option<&'a str>,
    images: I,
    summary: PlanSummaryJson,
}

#[derive(Serialize)]
struct PlannedJson<'a> {
    image: &'a str,
    action: &'static str,
    reason: Option<&'static str>,
    message: Option<&'a str>,
    pods: Option<u64>,
    workloads: Workloads<'a>,
    /// True if it is sealed, or its pull will seal it.
    #[serde(skip_serializing_if = "is_false")]
    sealed: bool,
    /// Reason for which its pull will seal it.
    #[serde(skip_serializing_if = "Option::is_none")]
    seal_reason: Option<&'a str>,
    #[serde(flatten)]
    sizes: Option<SizesJson>,
}

/// Sizes of the images to pull; null if unknown.
#[derive(Serialize)]
struct SizesJson {
    bytes: Option<u64>,
    shared_bytes: Option<u64>,
}

#[derive(Serialize)]
struct PlanSummaryJson {
    pull: usize,
    present: usize,
    skip: usize,
    #[serde(flatten)]
    sizes: Option<SumJson>,
}

#[derive(Serialize)]
struct SumJson {
    download_bytes: u64,
    shared_bytes: u64,
    unknown: usize,
    registry_requests: u64,
}

/// Workloads as they are shown, `namespace/Kind/name`.
struct Workloads<'a>(&'a [Arc<Workload>]);

impl Serialize for Workloads<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.0.iter().map(AsRef::as_ref))
    }
}

/// A list whose items are written as the iterator yields them: the whole list would take as much memory again as the plan.
struct Each<F>(F);

impl<I: Iterator<Item: Serialize>, F: Fn() -> I> Serialize for Each<F> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq((self.0)())
    }
}

/// Rounds to milliseconds, the useful precision of a pull.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

/// Writes a run's report as one line of JSON.
///
/// # Errors
/// Those of the writer.
pub fn write_report(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let counts = report.counts();
    let images = report.images.iter().map(|i| ImageJson {
        image: &i.image,
        outcome: i.outcome.as_str(),
        reason: i.reason.map(|r| r.as_str()),
        message: i.message.as_deref(),
        pods: i.pods,
        workloads: Workloads(&i.workloads),
        attempts: i.attempts,
        seconds: i.seconds.map(rounded),
        bytes: i.bytes,
        digest: i.digest.as_deref(),
        credential: i.credential.as_deref(),
        sealed: i.is_sealed,
    });
    let json = RunJson {
        runtime: report.runtime.as_ref(),
        error: report.error.as_deref(),
        node: report.node.as_deref(),
        images: Each(|| images.clone()),
        summary: SummaryJson {
            pulled: counts.pulled,
            present: counts.present,
            failed: counts.failed,
            skipped: counts.skipped,
            seconds: rounded(report.elapsed.as_secs_f64()),
        },
    };
    write_line(out, &json)
}

/// Writes a plan as one line of JSON; with sizes, their keys are included.
///
/// # Errors
/// Those of the writer.
pub fn write_plan(out: &mut impl Write, outline: &PlanReport<'_>) -> io::Result<()> {
    let plan = outline.plan;
    let images = plan.images().iter().map(|i| {
        let (reason, message) = match &i.step {
            Step::Skip(reason, message) => (Some(reason.as_str()), Some(message.as_str())),
            Step::Pull(_) | Step::Present(_) => (None, i.note.as_deref()),
        };
        PlannedJson {
            image: &i.image,
            action: i.step.action().as_str(),
            reason,
            message,
            pods: i.pods,
            workloads: Workloads(&i.workloads),
            sealed: match &i.step {
                Step::Present(stored) => stored.is_sealed,
                _ => i.seal.is_some(),
            },
            seal_reason: i.seal.as_deref(),
            sizes: outline.requests.map(|_| SizesJson {
                bytes: i.size().map(Size::packed),
                shared_bytes: i.download().and_then(|d| d.shared),
            }),
        }
    });
    let json = PlanJson {
        runtime: outline.runtime,
        node: outline.node,
        images: Each(|| images.clone()),
        summary: PlanSummaryJson {
            pull: plan.count(Action::Pull),
            present: plan.count(Action::Present),
            skip: plan.count(Action::Skip),
            sizes: outline.requests.map(|requests| {
                let sum = plan.downloads();
                SumJson {
                    download_bytes: sum.bytes,
                    shared_bytes: sum.shared,
                    unknown: sum.unknown,
                    registry_requests: requests,
                }
            }),
        },
    };
    write_line(out, &json)
}

/// Writes one line of JSON.
///
/// # Errors
/// Those of the writer.
pub(super) fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value).map_err(io::Error::from)?;
    out.write_all(b"\n")
}
