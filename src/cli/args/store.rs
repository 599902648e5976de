//! Settings of the image store: its budget, and tags that have moved.

use clap::{ArgAction, Args};

use super::quantity;
use super::values::{Parsed, single, switch};
use crate::app::settings::StoreSettings;

/// The lookups in stores and registries before the pulls.
#[derive(Args)]
#[command(next_help_heading = "Selection")]
pub(crate) struct StoreArgs {
    #[command(flatten)]
    budget: BudgetArgs,

    /// Pull images again if their tag has moved in the registry, for tag latest and imagePullPolicy Always
    #[arg(long, env, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", action = ArgAction::Set, value_parser = single(switch))]
    refresh: bool,
}

impl StoreArgs {
    pub(crate) fn settings(&self) -> StoreSettings {
        StoreSettings {
            disk_budget: self.budget.disk_budget,
            refresh: self.refresh,
        }
    }
}

/// The disk budget.
#[derive(Args)]
#[command(next_help_heading = "Selection")]
pub(crate) struct BudgetArgs {
    /// Maximum size of the runtime's image store, such as 20Gi; images that would exceed it are not pulled
    #[arg(long, env, value_name = "BYTES", value_parser = single(bytes))]
    pub(crate) disk_budget: Option<u64>,
}

/// Additional output of `plan`.
#[derive(Args)]
#[command(next_help_heading = "Selection")]
pub(crate) struct SizeArgs {
    /// Show the sizes of images that are not present, as reported by Nodes and registries
    #[arg(long, env, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", action = ArgAction::Set, value_parser = single(switch))]
    pub(crate) sizes: bool,
}

fn bytes(text: &str) -> Parsed<u64> {
    quantity::bytes(text).ok_or_else(|| quantity::EXPECTED.into())
}
