//! `harpoon pause`: sleeps until SIGTERM or SIGINT, reaps zombies, opens nothing. The DaemonSet's main container.

use anyhow::{Context, Result};
use rustix::process::{WaitOptions, wait};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::Exit;

/// Runs the command. A signal is its regular end, so it returns success.
pub(super) fn main() -> Result<Exit> {
    let mut signals =
        Signals::new([SIGTERM, SIGINT, SIGCHLD]).context("failed to listen for signals")?;
    for signal in signals.forever() {
        if signal != SIGCHLD {
            break;
        }
        // As process 1 of a container that shares its process namespace, it inherits the orphans.
        while matches!(wait(WaitOptions::NOHANG), Ok(Some(_))) {}
    }
    Ok(Exit::Done)
}
