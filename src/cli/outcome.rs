//! Prints the report of a run, leaves the termination message, and picks the exit code.

use std::io::{self, Write};
use std::path::Path;

use anyhow::{Context, Result};
use tracing::warn;

use super::Exit;
use super::args::{FailOn, Format};
use crate::app::node_run::Ended;
use crate::app::shutdown::Interrupted;
use crate::report::{Report, json, termination, text};

/// Prints the result of a run.
///
/// # Errors
/// [`Interrupted`] if a signal ended it before there was a plan.
pub(super) fn tell(ended: &Ended, output: Format, fail_on: FailOn) -> Result<Exit> {
    let report = &ended.report;
    show(report, output);
    match ended.interrupt {
        Some(interrupt) if report.error.is_some() => Err(Interrupted(interrupt).into()),
        Some(interrupt) => Ok(Exit::Interrupted(interrupt)),
        None => Ok(judge(report, fail_on)),
    }
}

/// Prints a report and writes it as the termination message. A failure to write does not fail any image.
fn show(report: &Report, output: Format) {
    let printed = print(|out| match output {
        Format::Text => text::write_report(out, report),
        Format::Json => json::write_report(out, report),
    });
    if let Err(error) = printed {
        warn!("failed to write the report: {error:#}");
    }
    let message = termination::message(report);
    if let Err(error) = termination::write(Path::new(termination::PATH), &message) {
        warn!("failed to write {}: {error}", termination::PATH);
    }
}

fn judge(report: &Report, fail_on: FailOn) -> Exit {
    let counts = report.counts();
    let failed = match fail_on {
        FailOn::Any => counts.failed > 0,
        FailOn::All => counts.failed > 0 && counts.pulled + counts.present == 0,
        FailOn::Never => false,
    };
    if failed { Exit::Failed } else { Exit::Done }
}

/// Writes to standard output. A closed reader does not fail the run.
pub(super) fn print(
    write: impl FnOnce(&mut io::BufWriter<io::StdoutLock<'_>>) -> io::Result<()>,
) -> Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    match write(&mut out).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("failed to write to standard output")
        }
        _ => Ok(()),
    }
}
