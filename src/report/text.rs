//! The tables and closing lines for people, readable in `kubectl logs` and without colours.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::Duration;

use super::{ImageReport, Outcome, PlanReport, Report};
use crate::model::text::{sanitize, size};
use crate::planning::plan::{Action, PlannedImage, Step};
use crate::runtime::image_service::RuntimeInfo;

/// Durations in readable form: `0.4s`, `12.3s`, `4m07s`.
pub fn seconds(duration: Duration) -> String {
    let tenths = (duration.as_secs_f64() * 10.0).round() / 10.0;
    if tenths < 60.0 {
        format!("{tenths:.1}s")
    } else {
        let whole = duration.as_secs_f64().round() as u64;
        format!("{}m{:02}s", whole / 60, whole % 60)
    }
}

/// Writes the outcome of each image, and one closing line.
///
/// # Errors
/// Those of the writer.
pub fn write_report(out: &mut impl Write, report: &Report) -> io::Result<()> {
    let mut table = Table::new(["IMAGE", "OUTCOME", "PODS", "TIME", "SIZE", "WHY"]);
    for image in &report.images {
        let time = image.seconds.map(Duration::from_secs_f64);
        table.row([
            sanitize(&image.image),
            image.outcome.as_str().to_owned(),
            or_dash(image.pods),
            or_dash(time.map(seconds)),
            or_dash(image.bytes.map(size)),
            why(image),
        ]);
    }
    table.write(out)?;
    writeln!(out, "{}", closing(report))
}

/// The summary in one line: `pulled 3 (210.4 MB), present 1, failed 1, skipped 2 in 4.2s with containerd 1.6.20`.
pub fn closing(report: &Report) -> String {
    let counts = report.counts();
    let pulled = report
        .images
        .iter()
        .filter(|i| i.outcome == Outcome::Pulled);
    let bytes: u64 = pulled.filter_map(|i| i.bytes).sum();
    let bytes = if bytes > 0 {
        format!(" ({})", size(bytes))
    } else {
        String::new()
    };
    let node = report.node.as_deref().map(sanitize);
    format!(
        "harpoon: pulled {}{bytes}, present {}, failed {}, skipped {} in {}{}{}{}",
        counts.pulled,
        counts.present,
        counts.failed,
        counts.skipped,
        seconds(report.elapsed),
        report
            .runtime
            .as_ref()
            .map_or(String::new(), |r| format!(" with {}", runtime_name(r))),
        node.map_or(String::new(), |n| format!(" on {n}")),
        report
            .error
            .as_deref()
            .map_or(String::new(), |e| format!(": {}", sanitize(e))),
    )
}

/// Writes the actions of a plan and their reasons; with sizes, also the download sizes.
///
/// # Errors
/// Those of the writer.
pub fn write_plan(out: &mut impl Write, outline: &PlanReport<'_>) -> io::Result<()> {
    let plan = outline.plan;
    match outline.requests {
        None => {
            let mut table = Table::new(["IMAGE", "ACTION", "PODS", "WHY"]);
            for image in plan.images() {
                let [name, action, pods] = planned(image);
                table.row([name, action, pods, plan_why(image)]);
            }
            table.write(out)?;
        }
        Some(_) => {
            let mut table = Table::new(["IMAGE", "ACTION", "PODS", "SIZE", "SHARED", "WHY"]);
            for image in plan.images() {
                let [name, action, pods] = planned(image);
                let whole = or_dash(image.size().map(|s| size(s.packed())));
                let shared = or_dash(image.download().and_then(|d| d.shared).map(size));
                table.row([name, action, pods, whole, shared, plan_why(image)]);
            }
            table.write(out)?;
        }
    }
    let runtime = match outline.runtime {
        Some(runtime) => format!("with {}", runtime_name(runtime)),
        None => "without a runtime; present images are unknown".to_owned(),
    };
    writeln!(
        out,
        "harpoon: to pull {}, present {}, to skip {} {runtime}{}",
        plan.count(Action::Pull),
        plan.count(Action::Present),
        plan.count(Action::Skip),
        outline
            .node
            .map_or(String::new(), |n| format!(" on {}", sanitize(n))),
    )?;
    if let Some(requests) = outline.requests {
        let sum = plan.downloads();
        let unknown = match sum.unknown {
            0 => String::new(),
            n => format!(", and {n} images of unknown size"),
        };
        writeln!(
            out,
            "harpoon: to download {}{unknown}; {} are shared and not downloaded again; {requests} requests to registries",
            size(sum.bytes),
            size(sum.shared),
        )?;
    }
    Ok(())
}

fn planned(image: &PlannedImage) -> [String; 3] {
    [
        sanitize(&image.image),
        image.step.action().as_str().to_owned(),
        or_dash(image.pods),
    ]
}

fn runtime_name(runtime: &RuntimeInfo) -> String {
    sanitize(&format!("{} {}", runtime.name, runtime.version))
}

fn why(image: &ImageReport) -> String {
    let message = image.message.as_deref().map(sanitize);
    let mut parts: Vec<String> = match (image.reason, message) {
        (Some(reason), Some(message)) => vec![format!("{}: {message}", reason.as_str())],
        (Some(reason), None) => vec![reason.as_str().to_owned()],
        (None, message) => message.into_iter().collect(),
    };
    if image.is_sealed {
        parts.push("sealed".to_owned());
    }
    if let Some(source) = &image.credential {
        parts.push(format!("credential: {}", sanitize(source)));
    }
    let mut why = parts.join("; ");
    if image.attempts > 1 {
        let _ = write!(why, " ({} attempts)", image.attempts);
    }
    why.trim_start().to_owned()
}

fn plan_why(image: &PlannedImage) -> String {
    let why = match &image.step {
        Step::Skip(reason, message) => format!("{}: {}", reason.as_str(), sanitize(message)),
        Step::Present(stored) if stored.is_sealed => "already present, sealed".to_owned(),
        Step::Present(_) => "already present".to_owned(),
        Step::Pull(_) => match &image.workloads[..] {
            [] => "listed".to_owned(),
            [one] => format!("used by {}", sanitize(&one.to_string())),
            [first, more @ ..] => format!(
                "used by {} and {} more",
                sanitize(&first.to_string()),
                more.len()
            ),
        },
    };
    let why = match &image.seal {
        Some(reason) => format!("{why}; to be sealed ({})", sanitize(reason)),
        None => why,
    };
    match (&image.step, &image.note) {
        (Step::Pull(_) | Step::Present(_), Some(note)) => format!("{why}; {}", sanitize(note)),
        _ => why,
    }
}

pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or("-".to_owned(), |v| v.to_string())
}

/// Maximum width of a column; a longer cell shifts the rest of its row only.
const WIDTH_MAX: usize = 80;

/// Columns as wide as their widest cell, up to a limit; the last one is unlimited.
pub(super) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(super) fn new(head: [&str; N]) -> Self {
        Self {
            rows: vec![head.map(str::to_owned)],
        }
    }

    pub(super) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut widths = [0; N];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count().min(WIDTH_MAX));
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                let _ = write!(line, "{cell:width$}   ");
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short() {
        for (duration, expected) in [
            (40, "0.0s"),
            (4_200, "4.2s"),
            (59_960, "1m00s"),
            (247_000, "4m07s"),
        ] {
            assert_eq!(seconds(Duration::from_millis(duration)), expected);
        }
    }
}
