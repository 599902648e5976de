//! The rollout of a PlannedImage, in the terms of planning. Pure.
//!
//! A field that cannot be read gets its default.

use std::time::Duration;

use crate::api::v1alpha1::{PlannedRollout, RolloutType, WINDOW};
use crate::planning::rollout::Rollout;

/// The period of a doubling that says none.
const DOUBLING_PERIOD: Duration = Duration::from_secs(15);

/// The rollout of a PlannedImage.
pub(crate) fn rollout(rollout: &PlannedRollout) -> Rollout {
    let duration = |text: &str, default| humantime::parse_duration(text).unwrap_or(default);
    let window = duration(WINDOW, Duration::ZERO);
    match rollout.kind {
        RolloutType::Immediate => Rollout::Immediate,
        RolloutType::Linear => Rollout::Linear(duration(&rollout.window, window)),
        RolloutType::Doubling => Rollout::Doubling {
            nodes: count(rollout.nodes),
            start_nodes: count(rollout.start_nodes),
            period: duration(&rollout.doubling_period, DOUBLING_PERIOD),
        },
    }
}

/// A number of nodes; 1 if none is given.
pub(crate) fn count(number: Option<i64>) -> u32 {
    let number = number.unwrap_or(1).max(1);
    u32::try_from(number).unwrap_or(u32::MAX)
}
