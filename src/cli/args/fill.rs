//! Settings of fast fill.

use clap::Args;

use super::values::{Parsed, single};
use crate::fill::FillMode;

/// Method of fetching and unpacking images.
#[derive(Args)]
#[command(next_help_heading = "Pulling")]
pub(crate) struct FillArgs {
    /// Method of fetching and unpacking images: auto (by harpoon where containerd's root directory is mounted writable, else by the runtime), runtime or fast
    #[arg(long, env, value_name = "HOW", default_value = "auto", value_parser = single(mode))]
    pub(crate) fill: FillMode,
}

fn mode(text: &str) -> Parsed<FillMode> {
    match text {
        "auto" => Ok(FillMode::Auto),
        "runtime" => Ok(FillMode::Runtime),
        "fast" => Ok(FillMode::Fast),
        _ => Err("expected auto, runtime or fast".into()),
    }
}
