//! `harpoon pull IMAGE...`: pulls these images with this node's runtime.

use std::time::Instant;

use anyhow::Result;

use super::args::{FailOn, PullArgs};
use super::{Exit, outcome};
use crate::app::settings::StartSettings;
use crate::app::{keyring, node_run, telemetry};
use crate::discovery::Source;
use crate::model::candidate::Candidate;
use crate::planning::plan::Policy;

/// Runs the command.
pub(super) fn main(args: PullArgs, started: Instant) -> Result<Exit> {
    let credentials = args.credentials.settings(|name| std::env::var_os(name))?;
    let (output, fail_on) = (args.output.output, args.pulling.fail_on);
    let screen = telemetry::init(args.output.logs());
    let settings = node_run::Settings {
        node: args.runtime.node_name.clone(),
        runtime: args.runtime.settings(),
        store: args.store.settings(),
        seal: args.seal.settings(),
        fill: args.fill.fill,
        pull: args.pulling.settings(),
    };
    let run = node_run::Run::new(settings, keyring::keyring(&credentials)?, screen, started);
    let source = Source::listed(args.images.into_iter().map(Candidate::listed).collect());
    let start = StartSettings::at_once();
    let source = std::future::ready(Ok(source));
    let ended = node_run::block_on(run.main(source, &start, &Policy::default()))?;
    outcome::tell(&ended, output, fail_on.unwrap_or(FailOn::Any))
}
