//! `harpoon agent`: keeps the planned images on this node. The node side of continuous mode.

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
