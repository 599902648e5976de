//! Settings of `harpoon controller`.

use clap::{ArgAction, Args};

use super::output::LogArgs;
use super::serve::ServingArgs;
use super::values::{Parsed, single, switch};
use crate::app::controller::ControllerSettings;
use crate::model::dns_name::is_subdomain;

/// The settings of `harpoon controller`.
#[derive(Args)]
pub(crate) struct ControllerArgs {
    #[command(flatten)]
    workloads: WatchedArgs,
    #[command(flatten)]
    election: ElectionArgs,
    #[command(flatten)]
    serving: ServingArgs,
    #[command(flatten)]
    pub(crate) logs: LogArgs,
}

/// The workloads that are watched.
#[derive(Args)]
#[command(next_help_heading = "Images")]
struct WatchedArgs {
    /// Include suspended CronJobs and Jobs
    #[arg(long, env, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", action = ArgAction::Set, value_parser = single(switch))]
    include_idle: bool,
}

/// The election of the leader.
#[derive(Args)]
#[command(next_help_heading = "Leader election")]
struct ElectionArgs {
    /// Name of the Lease by which one of several controllers is elected, in the controller's own namespace
    #[arg(long, env, value_name = "NAME", default_value = "harpoon-controller", value_parser = single(lease))]
    leader_election_lease: String,
}

impl ControllerArgs {
    pub(crate) fn settings(self) -> ControllerSettings {
        ControllerSettings {
            metrics_address: self.serving.metrics_address,
            lease: self.election.leader_election_lease,
            include_idle: self.workloads.include_idle,
        }
    }
}

fn lease(text: &str) -> Parsed<String> {
    match is_subdomain(text) {
        true => Ok(text.to_owned()),
        false => Err(
            "expected the name of a Lease (lower-case letters, digits, - and ., at most 253 characters)"
                .into(),
        ),
    }
}
