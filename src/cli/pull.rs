//! `harpoon pull IMAGE...`: these images, with this node's runtime.

use std::time::Instant;

use anyhow::Result;
use clap::ArgMatches;

use super::{Exit, args, flow};
use crate::candidate::Candidate;
use crate::config::FailOn;
use crate::plan::Policy;
use crate::source::Found;

/// Runs the command.
pub(super) fn main(matches: &ArgMatches, started: Instant) -> Result<Exit> {
    let run = flow::Run::new(&args::raw(matches), FailOn::Any, started)?;
    let images = matches.get_many::<String>("images").unwrap_or_default();
    let found = Found {
        candidates: images.map(Candidate::listed).collect(),
        pull_secrets: Vec::new(),
    };
    flow::block_on(run.main(std::future::ready(Ok(found)), &Policy::default()))
}
