//! `harpoon run`: what the configuration selects, once. The init container.

use std::time::Instant;

use anyhow::{Context, Result};
use clap::ArgMatches;

use super::{Exit, args, outcome};
use crate::app::config::{self, FailOn, Sources, settings};
use crate::app::node_run;
use crate::discovery::{Source, SourceError};

/// Runs the command.
pub(super) fn main(matches: &ArgMatches, started: Instant) -> Result<Exit> {
    let raw = args::raw(matches);
    let mut sources = config::sources(&raw)?;
    let start = config::start(&raw)?;
    sources.cluster.sizes = config::store(&raw)?.disk_budget.is_some();
    sources.cluster.node_age = !start.stagger.is_zero();
    let policy = config::policy(&raw)?;
    let run = node_run::Run::new(&raw, FailOn::All, started)?;
    let (output, fail_on) = (config::output(&raw)?, run.fail_on());
    let ended = node_run::block_on(run.main(open(&sources), &start, &policy))?;
    outcome::tell(&ended, output, fail_on)
}

/// The images file where it exists, else the cluster.
///
/// # Errors
/// Those of [`Source::open`]; that a file which the user named does not exist is a wrong setting.
pub(super) async fn open(sources: &Sources) -> Result<Source> {
    let file = &sources.images_file;
    match Source::open(file, sources.images_file_given, &sources.cluster).await {
        Err(SourceError::NoFile(path)) => {
            let accepted = "expected an images file, and this one does not exist";
            Err(settings::IMAGES_FILE
                .refuse(&path.to_string_lossy(), accepted)
                .into())
        }
        opened => opened.context(node_run::NO_CANDIDATES),
    }
}
