//! Logs on standard error, which they share with the progress bars.

use std::io::{self, IsTerminal, Write};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::prelude::*;

use crate::app::settings::LogSettings;
use crate::report::progress::Screen;

/// Sets up the logs of the whole process and returns the screen that they share.
///
/// Only harpoon's own lines are shown: those of the HTTP and gRPC crates would show headers at `trace`.
pub(crate) fn init(settings: LogSettings) -> Screen {
    let terminal = io::stderr().is_terminal();
    let screen = Screen::new(terminal && !is_dumb() && !settings.json);
    let writer = screen.clone();
    let filter = Targets::new()
        .with_default(LevelFilter::OFF)
        .with_target("harpoon", settings.level);
    let layer = fmt::layer()
        .with_writer(move || io::LineWriter::new(writer.clone()))
        .with_target(false)
        .with_ansi(has_colors(terminal));
    let registry = tracing_subscriber::registry().with(filter);
    // Only the first call in a process counts, and there is only one.
    let _ = if settings.json {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        registry.with(layer).try_init()
    };
    screen
}

/// Returns whether a stream is to have colours: a terminal that has some, unless `NO_COLOR` is set.
pub(crate) fn has_colors(terminal: bool) -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    terminal && !is_dumb() && !no_color
}

fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|t| t.is_empty() || t == "dumb")
}

/// Writes a line to standard error; ignores a closed one.
pub(crate) fn write_error(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
