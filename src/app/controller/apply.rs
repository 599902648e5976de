//! Apply: the differences between the PlannedImages that are and those that have to be, and their writes.
//!
//! The difference is pure. A write is a server-side apply of the whole object, so that it may be repeated; fields that another
//! version of harpoon wrote are part of it. An object is deleted only as it was seen.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime};

use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::json;

use super::merge::Desired;
use super::observe::{self, Planned};
use crate::api::v1alpha1::{PlannedImage, PlannedImageSpec, ROLLOUT_BRAKE, UNUSED_SINCE};
use crate::retry::backoff;

/// The field manager of all writes.
pub(super) const MANAGER: &str = "harpoon-controller";
/// Writes of PlannedImages a second.
const RATE: f64 = 10.0;
/// Events for agents that the writes of one burst may cause, and the most writes of a burst. A pause allows another one.
const BURST_EVENTS: f64 = 50_000.0;
const BURST_MAX: f64 = 500.0;
/// The time for which an image is kept if its object does not say so in a usable way.
const DEFAULT_KEEP: Duration = Duration::from_secs(24 * 3600);
/// The longest time that is added to a time, so that no sum overflows.
const LONGEST_KEEP: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// The first and the longest pause after a failed write.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Time limit of one write.
const WRITE_LIMIT: Duration = Duration::from_secs(10);

/// A difference.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Change {
    /// A new image.
    Add(String, Box<Desired>),
    /// An image whose object is not as it has to be.
    Update(String, Box<Desired>),
    /// An image that is not used any more; the time since when.
    Retire(String, Box<PlannedImageSpec>, String),
    /// An image that was unused for long enough: its uid and resource version.
    Delete(String, String, String),
}

impl Change {
    /// The name of the object.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Add(name, _)
            | Self::Update(name, _)
            | Self::Retire(name, ..)
            | Self::Delete(name, ..) => name,
        }
    }

    /// The names of the ImagePrefetches that have to have the image.
    pub(super) fn prefetches(&self) -> &[String] {
        match self {
            Self::Add(_, desired) | Self::Update(_, desired) => &desired.spec.prefetches,
            Self::Retire(..) | Self::Delete(..) => &[],
        }
    }

    fn pods(&self) -> i64 {
        match self {
            Self::Add(_, desired) | Self::Update(_, desired) => desired.spec.pods,
            Self::Retire(..) | Self::Delete(..) => 0,
        }
    }

    fn urgency(&self) -> u8 {
        match self {
            Self::Add(..) => 0,
            Self::Update(..) => 1,
            Self::Retire(..) => 2,
            Self::Delete(..) => 3,
        }
    }
}

/// The differences, the most urgent first, and the time of the next one that is due later. Pure.
pub(super) fn diff(
    existing: &BTreeMap<String, Planned>,
    desired: &BTreeMap<String, Desired>,
    now: SystemTime,
) -> (Vec<Change>, Option<SystemTime>) {
    let mut changes = Vec::new();
    let mut next = None;
    for (name, wanted) in desired {
        match existing.get(name) {
            None => changes.push(Change::Add(name.clone(), Box::new(wanted.clone()))),
            Some(known) if is_as_desired(known, wanted) => {}
            Some(_) => changes.push(Change::Update(name.clone(), Box::new(wanted.clone()))),
        }
    }
    for (name, known) in existing {
        if desired.contains_key(name) {
            continue;
        }
        let since = known.unused_since.as_deref();
        let since = since.and_then(|since| humantime::parse_rfc3339_weak(since).ok());
        match since.filter(|_| known.spec.prefetches.is_empty()) {
            None => {
                let mut spec = Box::new(known.spec.clone());
                spec.prefetches.clear();
                let since = humantime::format_rfc3339_millis(now).to_string();
                changes.push(Change::Retire(name.clone(), spec, since));
            }
            Some(since) => {
                let end = since + keep(&known.spec);
                if end <= now {
                    let version = known.resource_version.clone();
                    changes.push(Change::Delete(name.clone(), known.uid.clone(), version));
                } else {
                    next = Some(next.map_or(end, |next: SystemTime| next.min(end)));
                }
            }
        }
    }
    (in_turn(changes, existing), next)
}

/// The changes in the order of their writes: those of all ImagePrefetches in turn, so that one with many images delays no other;
/// of each, the most urgent first, then the image with the most pods.
fn in_turn(mut changes: Vec<Change>, existing: &BTreeMap<String, Planned>) -> Vec<Change> {
    changes.sort_by_key(|change| (change.urgency(), Reverse(change.pods())));
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut ranked = Vec::with_capacity(changes.len());
    for change in changes {
        let known = existing.get(change.name());
        let of_known = known.and_then(|known| known.spec.prefetches.first());
        let prefetch = change.prefetches().first().or(of_known);
        let count = counts.entry(prefetch.cloned().unwrap_or_default());
        let count = count.or_default();
        ranked.push((*count, change));
        *count += 1;
    }
    // The sort is stable.
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, change)| change).collect()
}

fn is_as_desired(known: &Planned, wanted: &Desired) -> bool {
    let spec = known.written.as_deref().unwrap_or(&known.spec);
    *spec == wanted.spec && known.brake == wanted.brake && known.unused_since.is_none()
}

/// The time for which an image is kept after its last use.
fn keep(spec: &PlannedImageSpec) -> Duration {
    let keep = humantime::parse_duration(&spec.retention.keep_after_unused);
    keep.unwrap_or(DEFAULT_KEEP).min(LONGEST_KEEP)
}

/// The result of a write.
pub(super) enum Written {
    /// The object as it is now.
    Applied(Box<Planned>),
    Deleted,
}

/// Writes one difference.
pub(super) async fn write(client: Client, change: Change) -> Result<Written, kube::Error> {
    let api: Api<PlannedImage> = Api::all(client);
    let write = async {
        match &change {
            Change::Add(name, desired) | Change::Update(name, desired) => {
                if desired.is_widened {
                    tracing::warn!(
                        image = crate::model::text::sanitize(&desired.spec.image),
                        "the placements of its workloads are too large for a PlannedImage: it goes to all nodes"
                    );
                }
                let mut annotations = BTreeMap::new();
                if desired.brake > 0 {
                    annotations.insert(ROLLOUT_BRAKE, desired.brake.to_string());
                }
                apply(&api, name, &desired.spec, &annotations).await
            }
            Change::Retire(name, spec, since) => {
                let annotations = BTreeMap::from([(UNUSED_SINCE, since.clone())]);
                apply(&api, name, spec, &annotations).await
            }
            Change::Delete(name, uid, version) => {
                let as_seen = DeleteParams::default().preconditions(Preconditions {
                    uid: Some(uid.clone()),
                    resource_version: Some(version.clone()),
                });
                match api.delete(name, &as_seen).await {
                    Ok(_) => Ok(Written::Deleted),
                    Err(kube::Error::Api(status)) if status.code == 404 => Ok(Written::Deleted),
                    Err(error) => Err(error),
                }
            }
        }
    };
    in_time(write).await
}

/// A write, or an error if the API server does not respond in time.
pub(super) async fn in_time<T>(
    write: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, kube::Error> {
    match tokio::time::timeout(WRITE_LIMIT, write).await {
        Ok(outcome) => outcome,
        Err(elapsed) => Err(kube::Error::Service(elapsed.into())),
    }
}

async fn apply(
    api: &Api<PlannedImage>,
    name: &str,
    spec: &PlannedImageSpec,
    annotations: &BTreeMap<&str, String>,
) -> Result<Written, kube::Error> {
    let object = json!({
        "apiVersion": "harpoon.dev/v1alpha1",
        "kind": "PlannedImage",
        "metadata": {"name": name, "annotations": annotations},
        "spec": spec,
    });
    let params = PatchParams::apply(MANAGER).force();
    let stored = api.patch(name, &params, &Patch::Apply(&object)).await?;
    let mut planned = observe::planned(&stored, None);
    // Otherwise it would be written again and again.
    if planned.spec != *spec {
        planned.written = Some(Box::new(spec.clone()));
    }
    Ok(Written::Applied(Box::new(planned)))
}

/// The pace of writes: ten a second, more at once where few agents watch, and a jittered back-off after a failure.
#[derive(Debug)]
pub(super) struct Pace {
    tokens: f64,
    refilled: Instant,
    /// After a failure that concerns all writes.
    paused: Option<(u32, Instant)>,
    /// After a failure that concerns one object.
    objects: BTreeMap<String, (u32, Instant)>,
}

impl Pace {
    /// Full speed.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tokens: BURST_MAX,
            refilled: now,
            paused: None,
            objects: BTreeMap::new(),
        }
    }

    /// The time at which the next write may be made, which this number of agents sees.
    pub(super) fn next(&mut self, now: Instant, agents: usize) -> Instant {
        let gained = now.saturating_duration_since(self.refilled).as_secs_f64() * RATE;
        let agents = u32::try_from(agents.max(1)).unwrap_or(u32::MAX);
        let burst = (BURST_EVENTS / f64::from(agents)).clamp(RATE, BURST_MAX);
        self.tokens = (self.tokens + gained).min(burst);
        self.refilled = now;
        let token = now + Duration::from_secs_f64((1.0 - self.tokens).max(0.0) / RATE);
        self.paused.map_or(token, |(_, end)| token.max(end))
    }

    /// Takes the right to one write.
    pub(super) fn take(&mut self) {
        self.tokens -= 1.0;
    }

    /// The end of the pause of an object; `None` if it may be written.
    pub(super) fn pause_of(&self, name: &str, now: Instant) -> Option<Instant> {
        let (_, end) = self.objects.get(name)?;
        (*end > now).then_some(*end)
    }

    /// Notes a success.
    pub(super) fn succeeded(&mut self, name: &str) {
        self.paused = None;
        self.objects.remove(name);
    }

    /// Notes a failure. Returns whether it is the first, which is worth a log line.
    pub(super) fn failed(&mut self, name: &str, is_about_object: bool, now: Instant) -> bool {
        let tried = match is_about_object {
            true => self
                .objects
                .get(name)
                .map_or(1, |(tried, _)| tried.saturating_add(1)),
            false => self.paused.map_or(1, |(tried, _)| tried.saturating_add(1)),
        };
        let end = now + backoff::pause(PAUSE, tried);
        match is_about_object {
            true => _ = self.objects.insert(name.to_owned(), (tried, end)),
            false => self.paused = Some((tried, end)),
        }
        tried == 1
    }

    /// Forgets objects that do not have to be written any more.
    pub(super) fn retain(&mut self, is_pending: impl Fn(&str) -> bool) {
        self.objects.retain(|name, _| is_pending(name));
    }
}

/// Returns whether a failed write is due to its object, so that others may succeed.
pub(super) fn is_about_object(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 404 | 409 | 413 | 422))
}

/// Returns whether the API server refused a write, which it will do again until somebody changes something.
pub(super) fn is_refused(error: &kube::Error) -> bool {
    is_about_object(error) || matches!(error, kube::Error::Api(status) if status.code == 403)
}
