//! `harpoon plan`: shows the actions of `run` and their reasons; pulls nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use tracing::warn;

use super::args::{Format, PlanArgs};
use super::{Exit, outcome};
use crate::app::settings::RuntimeSettings;
use crate::app::shutdown::{GRACE, Shutdown};
use crate::app::{candidates, keyring, node_run, telemetry};
use crate::credentials::keyring::Keyring;
use crate::model::seal::SealPolicy;
use crate::planning::registry_probe::RegistryProbe;
use crate::report::{PlanReport, json, text};
use crate::runtime::detect::Runtime;
use crate::runtime::image_service::ImageService;
use crate::runtime::sealing::SealingRuntime;

/// Maximum number of concurrent requests to one registry.
const QUESTIONS: usize = 4;

/// Runs the command. The plan is made without a runtime if none is found, unless an endpoint was given.
pub(super) fn main(args: PlanArgs) -> Result<Exit> {
    let credentials = args.credentials.settings(|name| std::env::var_os(name))?;
    let mut sources = args
        .cluster
        .sources(&args.runtime, &args.cluster_credentials);
    let policy = args.selection.policy();
    let seal = args.seal.settings();
    let questions = node_run::Questions {
        store: args.store.settings(),
        seal: seal.policy,
        sizes: args.sizes.sizes,
    };
    let node = args.runtime.node_name.clone();
    let settings = args.runtime.settings();
    let output = args.output.output;
    telemetry::init(args.output.logs());
    sources.cluster.sizes = questions.need_sizes();
    // A plan that queries no registry reads no secret, unless secrets decide what is sealed.
    let mut keyring = Keyring::default();
    let asks_for_seals = seal.policy == SealPolicy::Auto && sources.cluster.pull_secrets;
    if questions.need_registries() || asks_for_seals {
        keyring = keyring::keyring(&credentials)?;
    } else {
        sources.cluster.pull_secrets = false;
    }
    node_run::block_on(async {
        let shutdown = Shutdown::on_signal(Some(GRACE)).context(node_run::NO_SIGNALS)?;
        let end = shutdown.or_deadline(None);
        let prepare = async {
            let runtime = runtime_at_hand(&settings).await?;
            let source = candidates::open(&sources).await?;
            let platform = node_run::platform(&settings, source.node());
            let runtime = runtime.map(|runtime| {
                let runtime = runtime.for_platform(&platform);
                SealingRuntime::new(runtime, seal.policy, seal.keep(Duration::ZERO))
            });
            let found = candidates::find(source).await?;
            keyring::set_pull_secrets(&keyring, found.pull_secrets);
            let probe = RegistryProbe::new(&keyring, platform, QUESTIONS);
            let selection = node_run::select(found.candidates, &policy, runtime.as_ref());
            let (runtime_ref, sizes) = (runtime.as_ref(), found.sizes);
            let plan = node_run::plan(selection, runtime_ref, questions, &probe, sizes, end);
            let plan = Box::pin(plan).await?;
            anyhow::Ok((runtime, plan, probe.requests()))
        };
        let (runtime, plan, requests) = end.before(Box::pin(prepare)).await??;
        let outline = PlanReport {
            plan: &plan,
            runtime: runtime.as_ref().map(ImageService::info),
            node: node.as_deref(),
            requests: questions.sizes.then_some(requests),
        };
        print(output, &outline)
    })
}

fn print(format: Format, report: &PlanReport<'_>) -> Result<Exit> {
    outcome::print(|out| match format {
        Format::Text => text::write_plan(out, report),
        Format::Json => json::write_plan(out, report),
    })?;
    Ok(Exit::Done)
}

/// The runtime of this node. Without one, a plan is made all the same, unless its endpoint was set.
async fn runtime_at_hand(settings: &RuntimeSettings) -> Result<Option<Runtime>> {
    match node_run::find_runtime(settings).await {
        Ok(runtime) => Ok(Some(runtime)),
        Err(error) if settings.endpoint.is_some() => Err(error.into()),
        Err(error) => {
            warn!("planning without a runtime: {error:#}");
            Ok(None)
        }
    }
}
