//! `harpoon plan`: what `run` would do, and why; pulls nothing.

use anyhow::{Context, Result};
use clap::ArgMatches;
use tracing::warn;

use super::run::candidates;
use super::signals::Signals;
use super::{Exit, args, flow, logs};
use crate::config::{self, Output};
use crate::plan::{Presence, select};
use crate::report::{json, text};
use crate::runtime::ImageService;

/// Runs the command. Without a runtime at hand the plan is made all the same, unless one was asked for by its endpoint.
pub(super) fn main(matches: &ArgMatches) -> Result<Exit> {
    let raw = args::raw(matches);
    let mut sources = config::sources(&raw)?;
    // A plan pulls nothing, so it reads no secret.
    sources.cluster.pull_secrets = false;
    let policy = config::policy(&raw)?;
    let settings = config::runtime(&raw)?;
    let node = config::node_name(&raw)?;
    let output = config::output(&raw)?;
    logs::init(config::logs(&raw)?);
    flow::block_on(async {
        let signals = Signals::listen().context("failed to listen for signals")?;
        let prepare = async {
            let runtime = match flow::find_runtime(&settings).await {
                Ok(runtime) => Some(runtime),
                Err(error) if settings.endpoint.is_some() => return Err(error.into()),
                Err(error) => {
                    warn!("planning without a runtime: {error:#}");
                    None
                }
            };
            let selection = select(candidates(&sources).await?.candidates, &policy);
            let presence = match &runtime {
                Some(runtime) => flow::presence(runtime, &selection).await,
                None => Presence::new(),
            };
            anyhow::Ok((runtime, selection.against(&presence)))
        };
        let (runtime, plan) = signals.or(prepare).await??;
        let (runtime, node) = (runtime.as_ref().map(ImageService::info), node.as_deref());
        flow::print(|out| match output {
            Output::Text => text::write_plan(out, &plan, runtime, node),
            Output::Json => json::write_plan(out, &plan, runtime, node),
        })?;
        Ok(Exit::Done)
    })
}
