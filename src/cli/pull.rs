//! `harpoon pull IMAGE...`: these images, with this node's runtime.

use std::time::Instant;

use anyhow::Result;
use clap::ArgMatches;

use super::{Exit, args, flow};
use crate::candidate::Candidate;
use crate::config::{FailOn, StartSettings};
use crate::plan::Policy;
use crate::source::Source;

/// Runs the command.
pub(super) fn main(matches: &ArgMatches, started: Instant) -> Result<Exit> {
    let run = flow::Run::new(&args::raw(matches), FailOn::Any, started)?;
    let images = matches.get_many::<String>("images").unwrap_or_default();
    let source = Source::listed(images.map(|image| Candidate::listed(&**image)).collect());
    let start = StartSettings::at_once();
    flow::block_on(run.main(std::future::ready(Ok(source)), &start, &Policy::default()))
}
