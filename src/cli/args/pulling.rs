//! Settings of pulling: limits, retries, and the start delay.

use std::time::Duration;

use clap::Args;

use super::RuntimeArgs;
use super::values::{Parsed, single, time, time_above_zero, whole};
use crate::app::settings::{PullSettings, SettingError, StartSettings};

/// Limits of pulls.
#[derive(Args)]
#[command(next_help_heading = "Pulling")]
pub(crate) struct LimitArgs {
    /// Maximum number of concurrent pulls
    #[arg(long, env, value_name = "N", default_value = "4", value_parser = single(concurrency))]
    concurrency: usize,

    /// Maximum number of concurrent pulls from one registry (default: the value of --concurrency)
    #[arg(long, env, value_name = "N", value_parser = single(concurrency))]
    registry_concurrency: Option<usize>,

    /// Time limit for one attempt to pull an image
    #[arg(long, env, value_name = "TIME", default_value = "15m", value_parser = single(time_above_zero))]
    pull_timeout: Duration,

    /// Maximum number of retries of an image after retryable failures
    #[arg(long, env, value_name = "N", default_value = "3", value_parser = single(retries))]
    retries: u32,
}

/// Limits of a run.
#[derive(Args)]
#[command(next_help_heading = "Pulling")]
pub(crate) struct PullingArgs {
    #[command(flatten)]
    limits: LimitArgs,

    /// Time limit for the whole run, excluding the delay of --stagger; unfinished images are reported as failed
    #[arg(long, env, value_name = "TIME", value_parser = single(time_above_zero))]
    deadline: Option<Duration>,

    /// Failed images that cause exit code 1: any, all or never (default: all for run, any for pull)
    #[arg(long, env, value_name = "WHEN", value_parser = single(fail_on))]
    pub(crate) fail_on: Option<FailOn>,
}

/// The failures that cause exit code 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FailOn {
    /// Any image failed.
    Any,
    /// Images failed, and none of the selected images is present.
    All,
    /// None.
    Never,
}

/// The start delay of a run.
#[derive(Args)]
#[command(next_help_heading = "Pulling")]
pub(crate) struct StartArgs {
    /// Delay the start by up to this long, spread by a hash of the node name; requires --node-name
    #[arg(long, env, value_name = "TIME", default_value = "0s", value_parser = single(time))]
    stagger: Duration,

    /// Minimum age of the node for the delay of --stagger; younger nodes start at once
    #[arg(long, env, value_name = "TIME", default_value = "10m", value_parser = single(time))]
    stagger_min_age: Duration,
}

impl LimitArgs {
    pub(crate) fn settings(&self) -> PullSettings {
        PullSettings {
            concurrency: self.concurrency,
            registry_concurrency: self.registry_concurrency.unwrap_or(self.concurrency),
            pull_timeout: self.pull_timeout,
            deadline: None,
            retries: self.retries,
        }
    }
}

impl PullingArgs {
    pub(crate) fn settings(&self) -> PullSettings {
        PullSettings {
            deadline: self.deadline,
            ..self.limits.settings()
        }
    }
}

impl StartArgs {
    /// The settings.
    ///
    /// # Errors
    /// An error if there is a delay and no node name to determine it.
    pub(crate) fn settings(&self, runtime: &RuntimeArgs) -> Result<StartSettings, SettingError> {
        if runtime.node_name.is_none() && !self.stagger.is_zero() {
            return Err(SettingError::new(
                "stagger",
                &humantime::format_duration(self.stagger).to_string(),
                "expected --node-name (NODE_NAME) as well, which determines the delay",
            ));
        }
        Ok(StartSettings {
            stagger: self.stagger,
            min_age: self.stagger_min_age,
            node: runtime.node_name.clone(),
        })
    }
}

fn concurrency(text: &str) -> Parsed<usize> {
    let number = whole(text, 1000).map(|n| n as usize);
    number.ok_or_else(|| "expected a whole number from 1 to 1000".into())
}

fn retries(text: &str) -> Parsed<u32> {
    match text {
        "0" => Ok(0),
        text => whole(text, 100)
            .map(|n| n as u32)
            .ok_or_else(|| "expected a whole number from 0 to 100".into()),
    }
}

fn fail_on(text: &str) -> Parsed<FailOn> {
    match text {
        "any" => Ok(FailOn::Any),
        "all" => Ok(FailOn::All),
        "never" => Ok(FailOn::Never),
        _ => Err("expected any, all or never".into()),
    }
}
