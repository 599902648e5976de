//! Merge: one image under several ImagePrefetches is one PlannedImage. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::observe::Planned;
use super::resolve::Resolved;
use crate::api::v1alpha1::{
    ImagePrefetchSpec, Placement, PlannedImageSpec, PlannedRollout, Retention, RetentionPolicy,
    Rollout, RolloutType, Seal,
};
use crate::app::continuous::{names, rollout};

/// Maximum size of the JSON of a spec; a larger one goes without its placements, to all nodes.
const MAX_SPEC_BYTES: usize = 1536;
/// The number of first nodes of a rollout that does not say.
const START_NODES: i64 = 5;
/// The period of a rollout that does not say.
const DOUBLING_PERIOD: &str = "15s";
/// The longest window that the brake makes.
const LONGEST_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// The demand of one ImagePrefetch.
pub(super) enum Demanded<'a> {
    /// These images.
    Resolved(&'a ImagePrefetchSpec, &'a Resolved),
    /// The images that it has: nothing of it is planned or removed for now.
    Held,
}

/// The desired PlannedImage of an image.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Desired {
    pub(super) spec: PlannedImageSpec,
    /// Number of doublings of the window, which the spec contains.
    pub(super) brake: u32,
    /// True if its placements were dropped because they are too large.
    pub(super) is_widened: bool,
}

/// The values that newly planned images get.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planning<'a> {
    /// The time in RFC 3339.
    pub(super) now: &'a str,
    /// Number of nodes in the cluster.
    pub(super) nodes: i64,
}

/// The PlannedImages of all ImagePrefetches, by name. `brakes` has the number of doublings of images whose object does not say so
/// yet.
pub(super) fn merge<'a>(
    demanded: impl IntoIterator<Item = (&'a str, Demanded<'a>)>,
    existing: &BTreeMap<String, Planned>,
    brakes: &BTreeMap<String, u32>,
    planning: Planning<'_>,
) -> BTreeMap<String, Desired> {
    let mut merged: BTreeMap<String, PlannedImageSpec> = BTreeMap::new();
    for (prefetch, demanded) in demanded {
        let of_one = match demanded {
            Demanded::Resolved(spec, resolved) => of_resolved(prefetch, spec, resolved),
            Demanded::Held => of_held(prefetch, existing),
        };
        for (name, one) in of_one {
            match merged.remove(&name) {
                None => merged.insert(name, one),
                Some(other) => merged.insert(name, both(other, one)),
            };
        }
    }
    let merged = merged.into_iter();
    let finished = merged.map(|(name, spec)| {
        let known = existing.get(&name);
        let brake = known.map_or(0, |known| known.brake);
        let brake = brake.max(brakes.get(&name).copied().unwrap_or(0));
        let desired = finish(spec, known, brake, planning);
        (name, desired)
    });
    finished.collect()
}

fn of_resolved(
    prefetch: &str,
    spec: &ImagePrefetchSpec,
    resolved: &Resolved,
) -> Vec<(String, PlannedImageSpec)> {
    let mut secrets = spec.pull_secrets.clone();
    secrets.sort();
    secrets.dedup();
    let images = resolved.images.iter().map(|(image, wanted)| {
        let planned = PlannedImageSpec {
            image: image.to_string(),
            pods: wanted.pods,
            prefetches: vec![prefetch.to_owned()],
            placements: wanted.placements.clone(),
            rollout: planned_rollout(&spec.rollout),
            retention: spec.retention.clone(),
            seal: spec.seal,
            pull_secrets: secrets.clone(),
            refresh: wanted.refresh,
            other: BTreeMap::new(),
        };
        (names::planned_image(image), planned)
    });
    images.collect()
}

fn of_held(
    prefetch: &str,
    existing: &BTreeMap<String, Planned>,
) -> Vec<(String, PlannedImageSpec)> {
    let used = existing.iter().filter(|(_, planned)| {
        let names = &planned.spec.prefetches;
        names.iter().any(|name| name == prefetch)
    });
    let held = used.map(|(name, planned)| {
        let mut spec = planned.spec.clone();
        spec.prefetches = vec![prefetch.to_owned()];
        slow_down(
            &mut spec.rollout,
            -i32::try_from(planned.brake).unwrap_or(0),
        );
        (name.clone(), spec)
    });
    held.collect()
}

fn planned_rollout(rollout: &Rollout) -> PlannedRollout {
    let kind = rollout.kind;
    match kind {
        RolloutType::Linear => PlannedRollout {
            kind,
            window: rollout.window().to_owned(),
            ..PlannedRollout::default()
        },
        RolloutType::Doubling => PlannedRollout {
            kind,
            start_nodes: Some(rollout.start_nodes.unwrap_or(START_NODES)),
            doubling_period: rollout
                .doubling_period
                .clone()
                .unwrap_or(DOUBLING_PERIOD.to_owned()),
            ..PlannedRollout::default()
        },
        RolloutType::Immediate => PlannedRollout {
            kind,
            ..PlannedRollout::default()
        },
    }
}

/// One image that two ImagePrefetches ask for.
fn both(mut one: PlannedImageSpec, other: PlannedImageSpec) -> PlannedImageSpec {
    one.pods = one.pods.max(other.pods);
    one.prefetches.extend(other.prefetches);
    if one.placements.is_empty() || other.placements.is_empty() {
        one.placements.clear();
    } else {
        for placement in other.placements {
            if !one.placements.contains(&placement) {
                one.placements.push(placement);
            }
        }
    }
    if speed(&other.rollout) < speed(&one.rollout) {
        one.rollout = other.rollout;
    }
    one.retention = longer(one.retention, other.retention);
    one.seal = stricter(one.seal, other.seal);
    one.pull_secrets.extend(other.pull_secrets);
    one.refresh |= other.refresh;
    one
}

/// A rank of rollouts, the fastest first.
fn speed(rollout: &PlannedRollout) -> (u8, Duration, i64) {
    match rollout.kind {
        RolloutType::Immediate => (0, Duration::ZERO, 0),
        RolloutType::Linear => (1, time(&rollout.window), 0),
        RolloutType::Doubling => {
            let first = rollout.start_nodes.unwrap_or(START_NODES);
            (2, time(&rollout.doubling_period), first.saturating_neg())
        }
    }
}

fn longer(one: Retention, other: Retention) -> Retention {
    let rank = |policy| match policy {
        RetentionPolicy::None => 0,
        RetentionPolicy::Keep => 1,
        RetentionPolicy::Pin => 2,
    };
    let policy = match rank(other.policy) > rank(one.policy) {
        true => other.policy,
        false => one.policy,
    };
    let is_longer = time(&other.keep_after_unused) > time(&one.keep_after_unused);
    Retention {
        policy,
        keep_after_unused: match is_longer {
            true => other.keep_after_unused,
            false => one.keep_after_unused,
        },
    }
}

fn stricter(one: Seal, other: Seal) -> Seal {
    match (one, other) {
        (Seal::Always, _) | (_, Seal::Always) => Seal::Always,
        (Seal::Auto, _) | (_, Seal::Auto) => Seal::Auto,
        (Seal::Never, Seal::Never) => Seal::Never,
    }
}

/// A duration of an object; zero if it is none. Valid specs have only valid ones.
pub(super) fn time(text: &str) -> Duration {
    humantime::parse_duration(text).unwrap_or_default()
}

fn finish(
    mut spec: PlannedImageSpec,
    known: Option<&Planned>,
    brake: u32,
    planning: Planning<'_>,
) -> Desired {
    spec.prefetches.sort();
    spec.prefetches.dedup();
    spec.pull_secrets.sort();
    spec.pull_secrets.dedup();
    spec.placements
        .sort_by_cached_key(|placement| serde_json::to_string(placement).unwrap_or_default());
    if let Some(known) = known {
        spec.other = known.spec.other.clone();
    }
    // An image that comes back after it was unused starts a rollout of its own, as nodes may have lost it.
    let known = known.filter(|known| !known.spec.prefetches.is_empty());
    let brake = if known.is_some() { brake } else { 0 };
    if let Some(known) = known
        && is_similar(known.spec.pods, spec.pods)
    {
        spec.pods = known.spec.pods;
    }
    spec.rollout.start_time = match known {
        Some(known) if !known.spec.rollout.start_time.is_empty() => {
            known.spec.rollout.start_time.clone()
        }
        _ => planning.now.to_owned(),
    };
    let at_start = known.and_then(|known| known.spec.rollout.nodes);
    spec.rollout.nodes = Some(at_start.unwrap_or(planning.nodes));
    slow_down(&mut spec.rollout, i32::try_from(brake).unwrap_or(0));
    let is_widened = !spec.placements.is_empty() && is_too_large(&spec);
    if is_widened {
        spec.placements.clear();
    }
    if let Some(known) = known {
        let before = known.written.as_deref().unwrap_or(&known.spec);
        // Nodes that come to need it start in turn too. A rollout in progress has slots for them, and starting it anew would move those of
        // nodes that wait.
        if reaches_more(&before.placements, &spec.placements)
            && is_over(&spec.rollout, planning.now)
        {
            planning.now.clone_into(&mut spec.rollout.start_time);
        }
    }
    Desired {
        spec,
        brake,
        is_widened,
    }
}

/// Returns whether the placements make a spec too large. Of one that other fields make too large, they stay: without them it would go
/// to all nodes for nothing.
fn is_too_large(spec: &PlannedImageSpec) -> bool {
    let all = length(spec);
    if all <= MAX_SPEC_BYTES {
        return false;
    }
    let placements = length(&spec.placements);
    placements > MAX_SPEC_BYTES || all.saturating_sub(placements) <= MAX_SPEC_BYTES
}

/// The bytes of a value as JSON.
fn length(value: &impl Serialize) -> usize {
    serde_json::to_string(value).map_or(usize::MAX, |json| json.len())
}

/// Returns whether nodes may come to need an image whose placements have changed.
fn reaches_more(before: &[Placement], now: &[Placement]) -> bool {
    let is_new = |placement| !before.contains(placement);
    !before.is_empty() && (now.is_empty() || now.iter().any(is_new))
}

/// Returns whether all nodes that needed the image from its start have started by `now`.
fn is_over(rollout: &PlannedRollout, now: &str) -> bool {
    let at = |text| humantime::parse_rfc3339_weak(text).ok();
    match (at(&rollout.start_time), at(now)) {
        (Some(start), Some(now)) => {
            let age = now.duration_since(start);
            age.is_ok_and(|age| age >= rollout::rollout(rollout).length())
        }
        _ => true,
    }
}

/// Returns whether two numbers of pods are alike, so that the order of images stays: an autoscaler changes the number all day,
/// and each write is sent to all nodes.
fn is_similar(one: i64, other: i64) -> bool {
    let (least, most) = (one.min(other), one.max(other));
    least > 0 && most < least.saturating_mul(2)
}

/// Doubles the times of a rollout so many times; a negative number halves them.
fn slow_down(rollout: &mut PlannedRollout, doublings: i32) {
    let text = match rollout.kind {
        _ if doublings == 0 => return,
        RolloutType::Linear => &mut rollout.window,
        RolloutType::Doubling => &mut rollout.doubling_period,
        RolloutType::Immediate => return,
    };
    let seconds = time(text).as_secs_f64() * f64::from(doublings.clamp(-32, 32)).exp2();
    let slower = Duration::from_secs_f64(seconds).min(LONGEST_WINDOW);
    *text = match slower.subsec_millis() {
        0 => format!("{}s", slower.as_secs()),
        _ => format!("{}ms", slower.as_millis()),
    };
}
