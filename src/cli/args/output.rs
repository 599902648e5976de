//! Settings of the output.

use clap::Args;
use tracing::Level;

use super::values::{Parsed, single};
use crate::app::settings::LogSettings;

/// Formats of the output.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// Format of the report on standard output: text or json
    #[arg(long, env, value_name = "FORMAT", default_value = "text", value_parser = single(format))]
    pub(crate) output: Format,

    #[command(flatten)]
    logs: LogArgs,
}

/// Formats of the logs.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct LogArgs {
    /// Format of the logs on standard error: text or json
    #[arg(long, env, value_name = "FORMAT", default_value = "text", value_parser = single(format))]
    log_format: Format,

    /// Minimum level of log messages: error, warn, info, debug or trace
    #[arg(long, env, value_name = "LEVEL", default_value = "info", value_parser = single(level))]
    log_level: Level,
}

/// Text for people, or JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Text for people.
    Text,
    /// JSON.
    Json,
}

impl OutputArgs {
    pub(crate) fn logs(&self) -> LogSettings {
        self.logs.settings()
    }
}

impl LogArgs {
    pub(crate) fn settings(&self) -> LogSettings {
        LogSettings {
            json: self.log_format == Format::Json,
            level: self.log_level,
        }
    }
}

fn format(text: &str) -> Parsed<Format> {
    match text {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        _ => Err("expected text or json".into()),
    }
}

fn level(text: &str) -> Parsed<Level> {
    match text {
        "error" => Ok(Level::ERROR),
        "warn" => Ok(Level::WARN),
        "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        "trace" => Ok(Level::TRACE),
        _ => Err("expected error, warn, info, debug or trace".into()),
    }
}
