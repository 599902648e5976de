//! Settings of `harpoon agent`.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Command, FromArgMatches};

use super::cluster::TaintArgs;
use super::credentials::CredentialArgs;
use super::fill::FillArgs;
use super::output::LogArgs;
use super::pulling::LimitArgs;
use super::runtime::{EndpointArgs, node_name, platform};
use super::serve::ServingArgs;
use super::store::{BudgetArgs, DiskMarkArgs};
use super::values::{single, time_above_zero};
use crate::app::agent::Settings;
use crate::app::settings::RuntimeSettings;
use crate::model::platform::Platform;

/// The settings of `harpoon agent`.
#[derive(Args)]
pub(crate) struct AgentArgs {
    #[command(flatten)]
    taints: TaintArgs,
    #[command(flatten)]
    budget: BudgetArgs,
    #[command(flatten)]
    marks: DiskMarkArgs,
    #[command(flatten)]
    endpoint: EndpointArgs,
    #[command(flatten)]
    node: NodeArgs,
    #[command(flatten)]
    pub(crate) credentials: CredentialArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    fill: FillArgs,
    #[command(flatten)]
    serving: ServingArgs,
    #[command(flatten)]
    pub(crate) logs: LogArgs,
}

/// The node, and the comparison with its runtime.
#[derive(Args)]
#[command(next_help_heading = "Runtime")]
struct NodeArgs {
    /// Platform to pull for into oci:DIR (default: the node's, otherwise this machine's)
    #[arg(long, env, value_name = "OS/ARCH", value_parser = single(platform))]
    platform: Option<Platform>,

    /// Name of this node
    #[arg(long, env, value_name = "NAME", required = true, value_parser = single(node_name))]
    node_name: String,

    /// Interval of comparisons with the runtime; images that were removed are pulled again
    #[arg(long, env, value_name = "TIME", default_value = "60s", value_parser = single(time_above_zero))]
    resync: Duration,
}

impl AgentArgs {
    /// Parses the arguments of the command alone, of which the first is the name of the program.
    pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Self, clap::Error> {
        let command = Self::augment_args(Command::new("agent"));
        Self::from_arg_matches(&command.try_get_matches_from(arguments)?)
    }

    pub(crate) fn settings(self) -> Settings {
        Settings {
            runtime: RuntimeSettings {
                platform: self.node.platform,
                ..self.endpoint.settings()
            },
            node: self.node.node_name,
            startup_taints: self.taints.keys(),
            pull: self.limits.settings(),
            fill: self.fill.fill,
            disk_budget: self.budget.disk_budget,
            disk_high_percent: self.marks.high_percent(),
            metrics_address: self.serving.metrics_address,
            resync: self.node.resync,
        }
    }
}
