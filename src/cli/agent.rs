//! `harpoon agent`: keeps the planned images on this node. The node side of continuous mode.

use std::ffi::OsString;

use anyhow::{Context, Result};

use super::Exit;
use super::args::AgentArgs;
use crate::app::shutdown::{GRACE, Shutdown};
use crate::app::{agent, keyring, node_run, telemetry};

/// Runs the command. A signal is its regular end, so it returns success.
pub(super) fn main(mut args: AgentArgs) -> Result<Exit> {
    let credentials = std::mem::take(&mut args.credentials);
    let credentials = credentials.settings(|name| std::env::var_os(name))?;
    telemetry::init(args.logs.settings());
    let keyring = keyring::keyring(&credentials)?;
    let settings = args.settings();
    node_run::block_on(async {
        let shutdown = Shutdown::on_signal(Some(GRACE)).context(node_run::NO_SIGNALS)?;
        Box::pin(agent::run(settings, keyring, &shutdown)).await
    })?;
    Ok(Exit::Done)
}

/// Runs the agent with these arguments, of which the first is the name of the program, until the future is dropped. For programs
/// that run many agents: logs go to the subscriber of the caller, and signals are not handled.
///
/// # Errors
/// If the arguments are invalid, or the agent cannot start.
pub async fn run_agent(arguments: Vec<OsString>) -> Result<()> {
    let mut args = AgentArgs::parse(arguments)?;
    let credentials = std::mem::take(&mut args.credentials);
    let keyring = keyring::keyring(&credentials.settings(|name| std::env::var_os(name))?)?;
    let never = Shutdown::default();
    Box::pin(agent::run(args.settings(), keyring, &never)).await
}
