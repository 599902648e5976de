//! `harpoon pull IMAGE...`: these images, with this node's runtime.

use std::time::Instant;

use anyhow::Result;
use clap::ArgMatches;

use super::{Exit, args, outcome};
use crate::app::config::{self, FailOn, StartSettings};
use crate::app::node_run;
use crate::discovery::Source;
use crate::model::candidate::Candidate;
use crate::planning::plan::Policy;

/// Runs the command.
pub(super) fn main(matches: &ArgMatches, started: Instant) -> Result<Exit> {
    let raw = args::raw(matches);
    let run = node_run::Run::new(&raw, FailOn::Any, started)?;
    let (output, fail_on) = (config::output(&raw)?, run.fail_on());
    let images = matches.get_many::<String>("images").unwrap_or_default();
    let source = Source::listed(images.map(|image| Candidate::listed(&**image)).collect());
    let start = StartSettings::at_once();
    let source = std::future::ready(Ok(source));
    let ended = node_run::block_on(run.main(source, &start, &Policy::default()))?;
    outcome::tell(&ended, output, fail_on)
}
