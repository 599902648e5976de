//! `harpoon controller`: the cluster side of continuous mode. A signal is its regular end, so it returns success.

use anyhow::{Context, Result};

use super::Exit;
use super::args::ControllerArgs;
use crate::app::shutdown::Shutdown;
use crate::app::{controller, node_run, telemetry};

/// Runs the command.
pub(super) fn main(args: ControllerArgs) -> Result<Exit> {
    telemetry::init(args.logs.settings());
    let settings = args.settings();
    let shutdown = Shutdown::on_signal(None).context("failed to listen for signals")?;
    node_run::block_on(controller::run(&settings, &shutdown))?;
    Ok(Exit::Done)
}
