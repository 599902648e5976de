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
    let dumb = std::env::var_os("TERM").is_none_or(|t| t.is_empty() || t == "dumb");
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let screen = Screen::new(terminal && !dumb && !settings.json);
    let writer = screen.clone();
    let filter = Targets::new()
        .with_default(LevelFilter::OFF)
        .with_target("harpoon", settings.level);
    let layer = fmt::layer()
        .with_writer(move || io::LineWriter::new(writer.clone()))
        .with_target(false)
        .with_ansi(terminal && !dumb && !no_color);
    let registry = tracing_subscriber::registry().with(filter);
    // Only the first call in a process counts, and there is only one.
    let _ = if settings.json {
        registry.with(layer.json().flatten_event(true)).try_init()
    } else {
        registry.with(layer).try_init()
    };
    screen
}

/// Writes a line to standard error; ignores a closed one.
pub(crate) fn write_error(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
