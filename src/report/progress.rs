//! Shows a run in progress: bars on a terminal, otherwise a log line when an image starts, when it ends, and every 15 s in
//! between.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::Instant;
use tracing::{info, warn};

use super::text::seconds;
use super::{ImageReport, Outcome};
use crate::model::text::{sanitize, size};
use crate::pulling::executor::Event;
use crate::runtime::image_service::Progress;

/// Interval of log lines for a pull in progress.
const LOG_EVERY: Duration = Duration::from_secs(15);
/// Interval of redrawing bars.
const DRAW_EVERY: Duration = Duration::from_millis(100);

/// Standard error, shared by the logs and the bars, so that neither corrupts the other.
#[derive(Debug, Clone)]
pub struct Screen {
    bars: Option<MultiProgress>,
}

impl Screen {
    /// Standard error; with bars if it is a terminal that can draw them.
    pub fn new(with_bars: bool) -> Self {
        let bars = with_bars.then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { bars }
    }

    /// The group of bars, if it draws any.
    pub(super) fn bars(&self) -> Option<&MultiProgress> {
        self.bars.as_ref()
    }
}

impl Write for Screen {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let write = || io::stderr().lock().write_all(text);
        match &self.bars {
            Some(bars) => bars.suspend(write)?,
            None => write()?,
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Shows a run in progress. [`Watch::see`] receives its events, [`Watch::run`] draws.
pub struct Watch {
    view: View,
    active: Mutex<BTreeMap<usize, Active>>,
}

enum View {
    Bars {
        bars: MultiProgress,
        whole: ProgressBar,
    },
    Log,
}

struct Active {
    image: String,
    since: Instant,
    logged: Instant,
    progress: Arc<Progress>,
    bar: Option<(ProgressBar, Layout)>,
}

impl Watch {
    /// For a run that pulls this number of images.
    pub fn new(screen: &Screen, images: usize) -> Self {
        let view = match &screen.bars {
            Some(bars) => View::Bars {
                whole: bars.add(
                    ProgressBar::new(images as u64).with_style(whole_style(Layout::of(columns()))),
                ),
                bars: bars.clone(),
            },
            None => View::Log,
        };
        Self {
            view,
            active: Mutex::default(),
        }
    }

    /// Records an event of the run.
    pub fn see(&self, event: Event<'_>) {
        match event {
            Event::Started {
                index,
                image,
                attempt,
                progress,
            } => self.started(index, sanitize(image), attempt, progress),
            Event::Retrying {
                index,
                image,
                attempt,
                error,
                wait,
            } => {
                self.end(index);
                warn!(
                    image = sanitize(image),
                    attempt,
                    reason = error.kind.as_str(),
                    "failed to pull, next attempt in {}: {}",
                    seconds(wait),
                    sanitize(&error.message)
                );
            }
            Event::Finished { index, report } => {
                self.end(index);
                if let View::Bars { whole, .. } = &self.view {
                    whole.inc(1);
                }
                self.finished(report);
            }
        }
    }

    /// Draws or logs for as long as it is polled; never returns.
    pub async fn run(&self) {
        let every = match self.view {
            View::Bars { .. } => DRAW_EVERY,
            View::Log => Duration::from_secs(1),
        };
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            ticks.tick().await;
            for active in self.active().values_mut() {
                active.show();
            }
            if let View::Bars { whole, .. } = &self.view {
                whole.tick();
            }
        }
    }

    /// Removes the bars from the screen.
    pub fn close(&self) {
        if let View::Bars { bars, .. } = &self.view {
            // A closed terminal is not a failure.
            let _ = bars.clear();
        }
    }

    fn active(&self) -> MutexGuard<'_, BTreeMap<usize, Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn started(&self, index: usize, image: String, attempt: u32, progress: Arc<Progress>) {
        let bar = match &self.view {
            View::Bars { bars, whole } => {
                let layout = Layout::of(columns());
                // Everything is set before the bar is inserted, without drawing it: outside the group it would draw on a line of
                // its own.
                let bar = ProgressBar::new(0)
                    .with_style(silent_style(layout))
                    .with_message(layout.name(&image));
                Some((bars.insert_before(whole, bar), layout))
            }
            View::Log => {
                info!(image, attempt, "pulling");
                None
            }
        };
        let now = Instant::now();
        let active = Active {
            image,
            since: now,
            logged: now,
            progress,
            bar,
        };
        self.active().insert(index, active);
    }

    fn end(&self, index: usize) {
        if let Some((bar, _)) = self.active().remove(&index).and_then(|a| a.bar) {
            bar.finish_and_clear();
        }
    }

    fn finished(&self, report: &ImageReport) {
        let image = sanitize(&report.image);
        let took = seconds(Duration::from_secs_f64(report.seconds.unwrap_or_default()));
        let log = matches!(self.view, View::Log);
        match report.outcome {
            Outcome::Pulled if log => {
                let bytes = report.bytes.map_or("unknown".to_owned(), size);
                info!(image, size = bytes, "pulled in {took}");
            }
            Outcome::Failed => warn!(
                image,
                reason = report.reason.map_or("other", |r| r.as_str()),
                attempts = report.attempts,
                "failed to pull: {}",
                sanitize(report.message.as_deref().unwrap_or_default())
            ),
            _ => {}
        }
    }
}

impl Active {
    fn show(&mut self) {
        let (done, total) = self.progress.get();
        match &self.bar {
            Some((bar, layout)) if total > 0 => {
                if bar.length() == Some(0) {
                    bar.set_style(bytes_style(*layout));
                }
                bar.set_length(total);
                bar.set_position(done);
            }
            Some((bar, _)) => bar.tick(),
            None if self.logged.elapsed() >= LOG_EVERY => {
                self.logged = Instant::now();
                let image = &self.image;
                let elapsed = seconds(self.since.elapsed());
                if total > 0 {
                    info!(
                        image,
                        "still pulling after {elapsed}: {} of {}",
                        size(done),
                        size(total)
                    );
                } else {
                    info!(image, "still pulling after {elapsed}");
                }
            }
            None => {}
        }
    }
}

/// The width of a bar in columns: a line that wraps cannot be erased completely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    columns: usize,
    narrow: bool,
}

impl Layout {
    fn of(columns: usize) -> Self {
        Self {
            columns,
            narrow: columns < 80,
        }
    }

    /// An image's name, shortened to the columns that the numbers leave. Its end is kept, which distinguishes images of one
    /// registry.
    fn name(self, image: &str) -> String {
        let room = self
            .columns
            .saturating_sub(if self.narrow { 24 } else { 51 });
        let over = image.chars().count().saturating_sub(room);
        match over {
            0 => image.to_owned(),
            _ => std::iter::once('…')
                .chain(image.chars().skip(over + 1))
                .collect(),
        }
    }
}

/// The width of the terminal on standard error.
pub(super) fn columns() -> usize {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_col > 0 => size.ws_col.into(),
        _ => 80,
    }
}

/// The height of the terminal on standard error.
pub(super) fn rows() -> usize {
    match rustix::termios::tcgetwinsize(io::stderr()) {
        Ok(size) if size.ws_row > 0 => size.ws_row.into(),
        _ => 24,
    }
}

fn whole_style(layout: Layout) -> ProgressStyle {
    style(match layout.narrow {
        true => "{bar:10} {pos}/{len} images, {elapsed}",
        false => "{bar:24} {pos}/{len} images, {elapsed}",
    })
}

fn bytes_style(layout: Layout) -> ProgressStyle {
    style(match layout.narrow {
        true => "{decimal_bytes:>9} of {decimal_total_bytes:<9} {wide_msg}",
        false => "{bar:24} {decimal_bytes:>10} of {decimal_total_bytes:<10} {wide_msg}",
    })
}

fn silent_style(layout: Layout) -> ProgressStyle {
    style(match layout.narrow {
        true => "{spinner} {elapsed:<20} {wide_msg}",
        false => "{spinner} {elapsed:<47} {wide_msg}",
    })
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the templates are constants of this file")
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_name_keeps_its_end() {
        let image = "registry.example/team/with/a/long/name/service:v1.2.3";
        for columns in [100, 79, 40, 10] {
            let name = Layout::of(columns).name(image);
            assert!(
                name.chars().count() <= columns.saturating_sub(24).max(1),
                "{columns}: {name}"
            );
            assert!(image.ends_with(name.trim_start_matches('…')), "{name}");
        }
        assert_eq!(Layout::of(40).name("nginx:1.27"), "nginx:1.27");
    }
}
