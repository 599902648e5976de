//! `harpoon run`: what the configuration selects, once. The init container.

use std::time::Instant;

use anyhow::{Context, Result};
use clap::ArgMatches;

use super::{Exit, args, flow};
use crate::config::{self, FailOn, Sources};
use crate::source::Source;

/// Runs the command.
pub(super) fn main(matches: &ArgMatches, started: Instant) -> Result<Exit> {
    let raw = args::raw(matches);
    let mut sources = config::sources(&raw)?;
    let start = config::start(&raw)?;
    sources.cluster.sizes = config::store(&raw)?.disk_budget.is_some();
    sources.cluster.node_age = !start.stagger.is_zero();
    let policy = config::policy(&raw)?;
    let run = flow::Run::new(&raw, FailOn::All, started)?;
    flow::block_on(run.main(open(&sources), &start, &policy))
}

/// The images file where it exists, else the cluster.
pub(super) async fn open(sources: &Sources) -> Result<Source> {
    Source::open(&sources.images_file, &sources.cluster)
        .await
        .context(flow::NO_CANDIDATES)
}
