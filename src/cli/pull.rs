//! `harpoon pull IMAGE...`: these images, with this node's runtime.

use std::time::Instant;

use anyhow::Result;
use clap::ArgMatches;

use super::{Exit, args};
use crate::app::config::{FailOn, StartSettings};
use crate::app::node_run;
use crate::discovery::Source;
use crate::model::candidate::Candidate;
use crate::planning::plan::Policy;

/// Runs the command.
pub(super) fn main(matches: &ArgMatches, started: Instant) -> Result<Exit> {
    let run = node_run::Run::new(&args::raw(matches), FailOn::Any, started)?;
    let images = matches.get_many::<String>("images").unwrap_or_default();
    let source = Source::listed(images.map(|image| Candidate::listed(&**image)).collect());
    let start = StartSettings::at_once();
    node_run::block_on(run.main(std::future::ready(Ok(source)), &start, &Policy::default()))
}
