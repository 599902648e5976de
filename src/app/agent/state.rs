//! The knowledge of the agent: the planned images, its node, and the state of each image that the node needs. No I/O.
//!
//! Nothing is kept of an image that the node no longer needs.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::desired::{self, Desired, Here};
use super::first_fill::FirstFill;
use super::planned::Planned;
use crate::api::v1alpha1::{PullSecret, RetentionPolicy};
use crate::model::candidate::{Candidate, Use, Workload};
use crate::model::failure::FailureKind;
use crate::model::image_size::Usage;
use crate::model::node_facts::NodeFacts;
use crate::model::outcome::{ImageReport, Outcome, Reason};
use crate::model::reference::Reference;
use crate::model::seal::SealPolicy;
use crate::model::stored_image::StoredImage;
use crate::planning::node_match::Node;
use crate::planning::plan::{Facts, Moved, Plan, Policy, select};
use crate::retry::backoff;
use crate::runtime::image_service::{RuntimeInfo, Status};

/// The first and the longest pause before an image is pulled again that was removed repeatedly.
const GONE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(600));
/// An image that stayed present for so long was not removed repeatedly.
const SETTLED: Duration = Duration::from_secs(600);

/// This node, from its Node object.
#[derive(Debug, Clone)]
pub(super) struct LocalNode {
    pub(super) node: Node,
    pub(super) facts: NodeFacts,
    /// Identifies the object: a node that joins again under its name is another.
    pub(super) uid: String,
    /// The object was deleted. What it said is still used.
    pub(super) is_deleted: bool,
}

/// The reason why an image is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) message: String,
}

/// An image that the node needs.
#[derive(Debug)]
pub(super) struct Image {
    pub(super) planned: Arc<Planned>,
    /// The time from which its pull may start; `None` for at once.
    start: Option<SystemTime>,
    /// It is being pulled, or pauses between attempts: a slot that moves does not stop it.
    is_started: bool,
    pub(super) presence: Presence,
    /// It was pulled, and the runtime was not asked since.
    is_fresh: bool,
    /// Its tag has moved in the registry; the text says from where to where.
    moved: Option<String>,
    pub(super) failure: Option<Failure>,
    /// All attempts of a pull have failed.
    has_failed: bool,
    /// The time before which it is not pulled again, after it was removed repeatedly.
    resting: Option<Instant>,
    /// Number of times that it was removed.
    gone: u32,
}

/// The presence of an image in the runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Presence {
    /// The runtime was not asked yet.
    Unknown,
    /// It had the image at this time; since when.
    Present(StoredImage, Instant),
    /// It does not have the image, but had it before.
    Removed,
    /// It does not have the image.
    Absent,
}

/// The knowledge of the agent.
#[derive(Debug, Default)]
pub(super) struct State {
    /// All planned images, by the name of their object.
    objects: HashMap<String, Arc<Planned>>,
    /// The objects are complete: the first list was read to its end.
    pub(super) is_synced: bool,
    pub(super) node: Option<LocalNode>,
    pub(super) first_fill: FirstFill,
    /// The images that the node needs, by normalised reference.
    images: HashMap<Arc<str>, Image>,
    /// Those images in the order of their pulls.
    order: Vec<Arc<str>>,
    /// The revisions of the prefetches when that was decided; `None` before.
    revisions: Option<BTreeMap<String, String>>,
    /// The runtime that answers.
    pub(super) runtime: Option<RuntimeInfo>,
    /// The runtime that answered last.
    pub(super) last_runtime: Option<RuntimeInfo>,
    pub(super) usage: Option<u64>,
    /// A pull was refused though a pull secret is named for its image: the Secret may have changed.
    pub(super) is_refused: bool,
    /// Pull secrets that cannot be used, each with the reason.
    pub(super) secret_problems: HashMap<PullSecret, String>,
}

impl State {
    /// Nothing is known yet, and the node is to be filled.
    pub(super) fn new() -> Self {
        Self {
            first_fill: FirstFill::begin(),
            ..Self::default()
        }
    }

    /// Adds or replaces an object.
    pub(super) fn apply(&mut self, planned: Planned) {
        self.objects
            .insert(planned.object.clone(), Arc::new(planned));
    }

    /// Replaces all objects.
    pub(super) fn replace(&mut self, planned: impl IntoIterator<Item = Planned>) {
        let named = planned.into_iter().map(|p| (p.object.clone(), Arc::new(p)));
        self.objects = named.collect();
        self.is_synced = true;
    }

    /// Removes an object.
    pub(super) fn delete(&mut self, object: &str) {
        self.objects.remove(object);
    }

    /// Returns whether enough is known to decide what the node needs.
    pub(super) fn can_decide(&self) -> bool {
        self.is_synced && self.node.is_some() && self.first_fill.is_known()
    }

    /// Decides again which images the node needs. Returns those whose pulls may succeed now though they failed before.
    pub(super) fn decide(&mut self) -> Vec<String> {
        let Some(LocalNode { node, facts, .. }) = &mut self.node else {
            return Vec::new();
        };
        node.age = facts.age();
        let here = Here {
            node,
            created: facts.created,
            is_first_fill: !self.first_fill.is_over(),
        };
        let desired = desired::desired(self.objects.values(), &here);
        self.revisions = Some(desired::revisions(self.objects.values()));
        self.order = desired
            .iter()
            .map(|d| Arc::clone(&d.planned.image))
            .collect();
        let mut known = std::mem::take(&mut self.images);
        let mut chances = Vec::new();
        for Desired { planned, start } in desired {
            let name = Arc::clone(&planned.image);
            let image = match known.remove(&name) {
                Some(image) => {
                    if planned.is_new_chance(&image.planned) {
                        chances.push(name.to_string());
                    }
                    Image {
                        planned,
                        start,
                        ..image
                    }
                }
                None => Image::new(planned, start),
            };
            self.images.insert(name, image);
        }
        chances
    }

    /// The images that the node needs, in order.
    pub(super) fn images(&self) -> impl Iterator<Item = &Image> {
        self.order.iter().filter_map(|name| self.images.get(name))
    }

    /// The references of the images, in order; only those about which the runtime is to be asked now, unless `all`.
    pub(super) fn references(&self, all: bool) -> Vec<Reference> {
        let asks = |image: &&Image| image.is_fresh || image.presence == Presence::Unknown;
        let images = self.images().filter(|image| all || asks(image));
        let references = images.filter_map(|image| image.planned.reference.clone().ok());
        references.collect()
    }

    /// The revision of each prefetch, of the images that the rest is about.
    pub(super) fn revisions(&self) -> BTreeMap<String, String> {
        self.revisions.clone().unwrap_or_default()
    }

    /// Returns whether it was decided what the node needs.
    pub(super) fn has_decided(&self) -> bool {
        self.revisions.is_some()
    }

    /// The largest number of nodes that an image tells; 1 if none does.
    pub(super) fn nodes(&self) -> u32 {
        let nodes = self.objects.values().map(|planned| planned.nodes);
        nodes.max().unwrap_or(1)
    }

    /// The sealing policies of the images, by normalised reference.
    pub(super) fn seal_policies(&self) -> HashMap<String, SealPolicy> {
        let images = self.images();
        let policies = images.map(|image| (image.planned.image.to_string(), image.planned.seal));
        policies.collect()
    }

    /// The pull secrets of the images, each with the normalised references that it is for.
    pub(super) fn pull_secrets(&self) -> BTreeMap<PullSecret, Vec<Arc<str>>> {
        let mut secrets: BTreeMap<PullSecret, Vec<Arc<str>>> = BTreeMap::new();
        for image in self.images() {
            for secret in &image.planned.pull_secrets {
                let images = secrets.entry(secret.clone()).or_default();
                images.push(Arc::clone(&image.planned.image));
            }
        }
        secrets
    }

    /// The images whose pulls have failed.
    pub(super) fn failed(&self) -> Vec<String> {
        let failed = self.images().filter(|image| image.failure.is_some());
        failed
            .map(|image| image.planned.image.to_string())
            .collect()
    }

    /// The plan of the images whose pulls may start by `now`.
    pub(super) fn plan(&self, now: SystemTime, instant: Instant) -> Plan {
        let mut facts = Facts::default();
        let mut candidates = Vec::new();
        for image in self.images().filter(|image| image.may_start(now, instant)) {
            let name = image.planned.image.to_string();
            if let Presence::Present(stored, _) = &image.presence {
                facts.presence.insert(name.clone(), stored.clone());
                if let Some(moved) = &image.moved {
                    facts.moved.insert(name, Moved::Yes(moved.clone()));
                }
            }
            candidates.push(image.candidate());
        }
        select(candidates, &Policy::default()).against(facts)
    }

    /// The next time at which another pull may start, in the time that is left.
    pub(super) fn next_start(&self, now: SystemTime, instant: Instant) -> Option<Duration> {
        let slots = self.images().filter(|image| image.is_missing());
        let left = slots.filter_map(|image| {
            let slot = image.start.and_then(|start| start.duration_since(now).ok());
            let rest = image
                .resting
                .and_then(|end| end.checked_duration_since(instant));
            slot.filter(|_| !image.is_started).max(rest)
        });
        left.filter(|left| !left.is_zero()).min()
    }

    /// Takes over what the runtime answered to a question that was asked at `asked`.
    pub(super) fn looked_up(
        &mut self,
        references: &[Reference],
        found: Vec<Status>,
        asked: Instant,
    ) {
        for (reference, status) in references.iter().zip(found) {
            let Some(image) = self.images.get_mut(reference.normalized()) else {
                continue;
            };
            image.is_fresh = false;
            match status {
                Ok(Some(stored)) => image.is_present(stored, asked),
                Ok(None) => image.is_absent(asked),
                // The runtime is away; it is asked again.
                Err(error)
                    if matches!(error.kind, FailureKind::Unavailable | FailureKind::Timeout) => {}
                // The pull decides, unless the image was there.
                Err(_) if image.is_here() => {}
                Err(_) => image.is_absent(asked),
            }
        }
        self.end_first_fill();
    }

    /// The images that are there and whose tags may move.
    pub(super) fn movable(&self) -> Vec<(Reference, StoredImage)> {
        let images = self
            .images()
            .filter(|i| i.planned.refresh && i.moved.is_none());
        let present =
            images.filter_map(|image| match (&image.presence, &image.planned.reference) {
                (Presence::Present(stored, _), Ok(reference)) if reference.tag().is_some() => {
                    Some((reference.clone(), stored.clone()))
                }
                _ => None,
            });
        present.collect()
    }

    /// The tag of the image has moved.
    pub(super) fn moved(&mut self, image: &str, how: String) {
        if let Some(image) = self.images.get_mut(image) {
            image.moved = Some(how);
        }
    }

    /// The images that are there by a seal.
    pub(super) fn sealed(&self) -> Vec<Reference> {
        let sealed = self.images().filter_map(|image| match &image.presence {
            Presence::Present(stored, _) if stored.is_sealed => {
                image.planned.reference.clone().ok()
            }
            _ => None,
        });
        sealed.collect()
    }

    /// An attempt at the image begins.
    pub(super) fn started(&mut self, image: &str) {
        if let Some(image) = self.images.get_mut(image) {
            image.is_started = true;
        }
    }

    /// An attempt failed and is repeated soon.
    pub(super) fn retrying(&mut self, image: &str, kind: FailureKind, message: &str) {
        // The controller slows rollouts down when it sees this, so that it is told before the last attempt.
        if kind == FailureKind::RateLimited
            && let Some(image) = self.images.get_mut(image)
        {
            image.failure = Some(Failure {
                reason: Reason::Failure(kind),
                message: message.to_owned(),
            });
        }
    }

    /// The image was pulled, or all its attempts failed.
    pub(super) fn finished(&mut self, report: &ImageReport, now: Instant) {
        let Some(image) = self.images.get_mut(&report.image) else {
            return;
        };
        if report.outcome == Outcome::Pulled {
            let digest = report.digest.clone();
            let stored = StoredImage {
                known: digest.iter().cloned().collect(),
                digest,
                bytes: report.bytes,
                is_sealed: report.is_sealed,
            };
            image.moved = None;
            image.is_present(stored, now);
            image.is_fresh = true;
        } else {
            image.fail(report, &self.secret_problems);
            let unauthorized = Some(Reason::Failure(FailureKind::Unauthorized));
            self.is_refused |=
                report.reason == unauthorized && !image.planned.pull_secrets.is_empty();
        }
        self.end_first_fill();
    }

    /// The runtime is away: nothing is being pulled.
    pub(super) fn lost_runtime(&mut self) {
        self.runtime = None;
        for image in self.images.values_mut() {
            image.is_started = false;
        }
    }

    /// A runtime answers: everything is checked again, and the failures that its absence caused count no more.
    pub(super) fn found_runtime(&mut self, info: RuntimeInfo) {
        self.last_runtime = Some(info.clone());
        self.runtime = Some(info);
        for image in self.images.values_mut() {
            let unavailable = Reason::Failure(FailureKind::Unavailable);
            image
                .failure
                .take_if(|failure| failure.reason == unavailable);
        }
    }

    /// The bytes of the images that are there.
    pub(super) fn bytes(&self) -> u64 {
        let bytes = self.images().filter_map(|image| match &image.presence {
            Presence::Present(stored, _) => stored.bytes,
            _ => None,
        });
        bytes.fold(0, u64::saturating_add)
    }

    pub(super) fn used(&mut self, usage: &Usage) {
        self.usage = Some(usage.bytes);
    }

    /// Returns whether pulls are in progress or wait for their turn.
    pub(super) fn is_busy(&self, now: SystemTime) -> bool {
        let waits =
            |image: &Image| image.start.is_some_and(|start| start > now) && !image.is_started;
        self.images()
            .any(|i| i.is_missing() && i.failure.is_none() && i.resting.is_none() && !waits(i))
    }

    /// Ends the first fill once every image is there or has failed.
    pub(super) fn end_first_fill(&mut self) {
        let is_open = |image: &Image| image.is_missing() && !image.has_failed;
        if self.has_decided() && self.runtime.is_some() && !self.images().any(is_open) {
            self.first_fill.end();
        }
    }
}

impl Image {
    fn new(planned: Arc<Planned>, start: Option<SystemTime>) -> Self {
        let failure = planned.reference.as_ref().err().map(|error| Failure {
            reason: Reason::Failure(FailureKind::InvalidReference),
            message: error.to_string(),
        });
        Self {
            planned,
            start,
            is_started: false,
            presence: Presence::Unknown,
            is_fresh: false,
            moved: None,
            has_failed: failure.is_some(),
            failure,
            resting: None,
            gone: 0,
        }
    }

    /// Returns whether its pull has been started.
    pub(super) fn is_started(&self) -> bool {
        self.is_started
    }

    /// Returns whether the runtime has it.
    pub(super) fn is_here(&self) -> bool {
        matches!(self.presence, Presence::Present(..))
    }

    /// Returns whether it is to be pulled, now or later. Retention: an image that was removed is pulled again unless its policy
    /// is `None`.
    pub(super) fn is_missing(&self) -> bool {
        match self.presence {
            Presence::Present(..) => self.moved.is_some(),
            Presence::Removed => self.planned.retention != RetentionPolicy::None,
            Presence::Unknown | Presence::Absent => true,
        }
    }

    /// Returns whether its pull may start. What the runtime was not asked about is not pulled, and what was started goes on.
    fn may_start(&self, now: SystemTime, instant: Instant) -> bool {
        let is_resting = self.resting.is_some_and(|end| end > instant);
        let waits = self.start.is_some_and(|start| start > now) && !self.is_started;
        self.planned.reference.is_ok()
            && self.presence != Presence::Unknown
            && self.is_missing()
            && !is_resting
            && !waits
    }

    fn candidate(&self) -> Candidate {
        let workload = Workload {
            namespace: Arc::from(""),
            kind: "ImagePrefetch",
            name: self
                .planned
                .prefetches
                .first()
                .map_or("", String::as_str)
                .into(),
        };
        Candidate {
            image: Arc::clone(&self.planned.image),
            uses: Some(vec![Use {
                workload: workload.into(),
                pods: self.planned.pods,
                mismatch: None,
                always: self.planned.refresh,
            }]),
        }
    }

    fn is_present(&mut self, stored: StoredImage, at: Instant) {
        let since = match &self.presence {
            Presence::Present(_, since) => *since,
            _ => at,
        };
        if at.duration_since(since) > SETTLED {
            self.gone = 0;
        }
        self.presence = Presence::Present(stored, since);
        self.resting = None;
        if self.moved.is_none() {
            self.failure = None;
            self.is_started = false;
        }
    }

    /// The runtime does not have the image, according to a question that was asked at `asked`.
    fn is_absent(&mut self, asked: Instant) {
        match &self.presence {
            // It has come since.
            Presence::Present(_, since) if *since > asked => {}
            Presence::Present(_, since) => {
                if asked.duration_since(*since) > SETTLED {
                    self.gone = 0;
                }
                self.gone += 1;
                self.resting = (self.gone > 1).then(|| asked + backoff::pause(GONE, self.gone - 1));
                self.presence = Presence::Removed;
                self.moved = None;
            }
            Presence::Unknown => self.presence = Presence::Absent,
            Presence::Absent | Presence::Removed => {}
        }
    }

    fn fail(&mut self, report: &ImageReport, problems: &HashMap<PullSecret, String>) {
        let reason = report.reason.unwrap_or(Reason::Failure(FailureKind::Other));
        let mut message = report.message.clone().unwrap_or_default();
        let refused = [
            FailureKind::Unauthorized,
            FailureKind::NotFound,
            FailureKind::Other,
        ];
        if refused.map(Reason::Failure).contains(&reason) {
            let secrets = self.planned.pull_secrets.iter();
            // First, because it says what to do, and a status has little space.
            for problem in secrets.filter_map(|secret| problems.get(secret)) {
                message = format!("{problem}; {message}");
            }
        }
        self.failure = Some(Failure { reason, message });
        self.has_failed = true;
    }
}

#[cfg(test)]
mod tests;
