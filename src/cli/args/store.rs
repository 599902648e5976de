//! Settings of the image store: its budget, and tags that have moved.

use clap::{ArgAction, Args};

use super::quantity;
use super::values::{Parsed, single, switch, whole};
use crate::app::settings::StoreSettings;
use crate::model::image_size::DiskLimit;

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
    /// Maximum size of the runtime's image store, such as 20Gi, or 30% of its file system; images that would exceed it are not
    /// pulled
    #[arg(long, env, value_name = "SIZE", value_parser = single(limit))]
    pub(crate) disk_budget: Option<DiskLimit>,
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

/// The high mark of the image file system.
#[derive(Args)]
#[command(next_help_heading = "Selection")]
pub(crate) struct DiskMarkArgs {
    /// Percentage of the image file system above which harpoon pulls nothing and gives up pins and seals
    #[arg(long, env, value_name = "PERCENT", default_value = "80", value_parser = single(high_percent))]
    disk_high_percent: u8,
}

impl DiskMarkArgs {
    /// The high mark in percent.
    pub(crate) fn high_percent(&self) -> u8 {
        self.disk_high_percent
    }
}

fn limit(text: &str) -> Parsed<DiskLimit> {
    let limit = match text.strip_suffix('%') {
        Some(number) => whole(number, 100)
            .and_then(|n| u8::try_from(n).ok())
            .map(DiskLimit::Percent),
        None => quantity::bytes(text).map(DiskLimit::Bytes),
    };
    limit.ok_or_else(|| quantity::EXPECTED.into())
}

/// A lower mark would be crossed by the operating system's own files.
const HIGH_PERCENT_MIN: u64 = 10;

fn high_percent(text: &str) -> Parsed<u8> {
    let percent = whole(text, 100).filter(|percent| *percent >= HIGH_PERCENT_MIN);
    let percent = percent.and_then(|percent| u8::try_from(percent).ok());
    percent.ok_or_else(|| "expected a whole percentage from 10 to 100, without the sign".into())
}
