//! `harpoon wait-for-daemonset`: the end of the chart's clean-up after an uninstall. Hidden, because only the chart uses it.

use std::time::Duration;

use anyhow::{Context, Result};
use tracing::Level;

use super::Exit;
use super::args::WaitArgs;
use crate::app::settings::LogSettings;
use crate::app::shutdown::Shutdown;
use crate::app::{node_run, telemetry, wait};

/// Runs the command.
pub(super) fn main(args: &WaitArgs) -> Result<Exit> {
    telemetry::init(LogSettings {
        json: false,
        level: Level::INFO,
    });
    let shutdown = Shutdown::on_signal(None).context("failed to listen for signals")?;
    let longest = Duration::from_secs(args.seconds);
    node_run::block_on(wait::for_daemon_set(&args.name, longest, &shutdown))?;
    Ok(Exit::Done)
}
