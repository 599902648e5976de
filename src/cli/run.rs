//! `harpoon run`: what the configuration selects, once. The init container.

use std::time::Instant;

use anyhow::{Context, Result};
use clap::ArgMatches;

use super::{Exit, args, flow};
use crate::config::{self, FailOn, Sources};
use crate::source::{self, Found};

/// Runs the command.
pub(super) fn main(matches: &ArgMatches, started: Instant) -> Result<Exit> {
    let raw = args::raw(matches);
    let sources = config::sources(&raw)?;
    let policy = config::policy(&raw)?;
    let run = flow::Run::new(&raw, FailOn::All, started)?;
    flow::block_on(run.main(candidates(&sources), &policy))
}

/// The images file's candidates where it exists, else the cluster's.
pub(super) async fn candidates(sources: &Sources) -> Result<Found> {
    source::candidates(&sources.images_file, &sources.cluster)
        .await
        .context("failed to find out which images to pull")
}
