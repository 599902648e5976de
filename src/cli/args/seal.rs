//! Settings of sealing.

use std::time::Duration;

use clap::Args;

use super::values::{Parsed, single, time_above_zero};
use crate::app::settings::SealSettings;
use crate::model::seal::SealPolicy;

/// Sealing of images.
#[derive(Args)]
#[command(next_help_heading = "Pulling")]
pub(crate) struct SealArgs {
    /// Images to seal, so that only pods that may pull them can use them: auto (those of pull secrets), never or always
    #[arg(long, env, value_name = "WHEN", default_value = "auto", value_parser = single(policy))]
    seal: SealPolicy,

    /// Lifetime of a seal, after which the runtime may delete the image; each run renews it
    #[arg(long, env, value_name = "TIME", default_value = "24h", value_parser = single(time_above_zero))]
    seal_ttl: Duration,
}

impl SealArgs {
    pub(crate) fn settings(&self) -> SealSettings {
        SealSettings {
            policy: self.seal,
            lifetime: self.seal_ttl,
        }
    }
}

fn policy(text: &str) -> Parsed<SealPolicy> {
    match text {
        "auto" => Ok(SealPolicy::Auto),
        "never" => Ok(SealPolicy::Never),
        "always" => Ok(SealPolicy::Always),
        _ => Err("expected auto, never or always".into()),
    }
}
