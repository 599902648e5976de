//! `harpoon run`: pulls the selected images once. The init container.

use std::time::Instant;

use anyhow::Result;

use super::args::{FailOn, RunArgs};
use super::{Exit, outcome};
use crate::app::{candidates, keyring, node_run, telemetry};

/// Runs the command.
pub(super) fn main(args: RunArgs, started: Instant) -> Result<Exit> {
    let start = args.start.settings(&args.runtime)?;
    let credentials = args.credentials.settings(|name| std::env::var_os(name))?;
    let mut sources = args
        .cluster
        .sources(&args.runtime, &args.cluster_credentials);
    let store = args.store.settings();
    sources.cluster.sizes = store.disk_budget.is_some();
    sources.cluster.node_age = !start.stagger.is_zero();
    let policy = args.selection.policy();
    let (output, fail_on) = (args.output.output, args.pulling.fail_on);
    let screen = telemetry::init(args.output.logs());
    let settings = node_run::Settings {
        node: args.runtime.node_name.clone(),
        runtime: args.runtime.settings(),
        store,
        seal: args.seal.settings(),
        fill: args.fill.fill,
        pull: args.pulling.settings(),
    };
    let run = node_run::Run::new(settings, keyring::keyring(&credentials)?, screen, started);
    let ended = node_run::block_on(run.main(candidates::open(&sources), &start, &policy))?;
    outcome::tell(&ended, output, fail_on.unwrap_or(FailOn::All))
}
