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
use crate::planning::node_match::{Node, SETTLED_AGE};
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
    attempts: Attempts,
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

/// The attempts at an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempts {
    /// None yet, or its slot decides again.
    None,
    /// One is in progress: it may have made the name, and not yet the seal.
    Running,
    /// One has ended, and a slot that moves does not stop the next.
    Paused,
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

/// The facts beside the objects that decide about what the node needs, and when.
#[derive(Debug, PartialEq)]
struct Basis {
    node: Node,
    /// The time when it joined the cluster.
    created: Option<SystemTime>,
    is_first_fill: bool,
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
    /// An object has changed since the last decision.
    is_changed: bool,
    /// The facts beside the objects on which the last decision was based.
    basis: Option<Basis>,
    /// The images that the node needs, in the order of their pulls.
    images: Vec<Image>,
    /// Their places, by normalised reference.
    places: HashMap<Arc<str>, usize>,
    /// The images that no prefetch uses any more, which stay protected for a time.
    pub(super) kept: Vec<Arc<Planned>>,
    /// The revisions of the prefetches when that was decided; `None` before.
    revisions: Option<BTreeMap<String, String>>,
    /// The runtime that answers.
    pub(super) runtime: Option<RuntimeInfo>,
    /// The runtime that answered last.
    pub(super) last_runtime: Option<RuntimeInfo>,
    pub(super) usage: Option<u64>,
    /// The size of the image file system.
    pub(super) capacity: Option<u64>,
    /// The reason why nothing is pulled: the usage is above the high mark, or was and is not below the resume mark since.
    pub(super) yielding: Option<String>,
    /// The reason why pins have no effect, where images are to be pinned.
    pub(super) pins_ignored: Option<String>,
    /// An image was deleted: the runtime is to be compared soon.
    pub(super) is_stale: bool,
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
        self.is_changed = true;
    }

    /// Replaces all objects.
    pub(super) fn replace(&mut self, planned: impl IntoIterator<Item = Planned>) {
        let named = planned.into_iter().map(|p| (p.object.clone(), Arc::new(p)));
        self.objects = named.collect();
        self.is_synced = true;
        self.is_changed = true;
    }

    /// Removes an object.
    pub(super) fn delete(&mut self, object: &str) {
        self.is_changed |= self.objects.remove(object).is_some();
    }

    /// Returns whether enough is known to decide what the node needs.
    pub(super) fn can_decide(&self) -> bool {
        self.is_synced && self.node.is_some() && self.first_fill.is_known()
    }

    /// Decides again which images the node needs. Returns those whose pulls may succeed now though they failed before; `None` if
    /// nothing has changed on which that depends.
    pub(super) fn decide(&mut self) -> Option<Vec<String>> {
        let LocalNode { node, facts, .. } = self.node.as_mut()?;
        node.age = facts.age().map(|age| age.min(SETTLED_AGE));
        let basis = Basis {
            node: node.clone(),
            created: facts.created,
            is_first_fill: !self.first_fill.is_over(),
        };
        let is_changed = std::mem::take(&mut self.is_changed);
        if !is_changed && self.basis.as_ref() == Some(&basis) {
            return None;
        }
        let here = Here {
            node: &basis.node,
            created: basis.created,
            is_first_fill: basis.is_first_fill,
        };
        let desired = desired::desired(self.objects.values(), &here);
        self.revisions = Some(desired::revisions(self.objects.values()));
        self.kept = desired::kept(self.objects.values(), &basis.node);
        self.basis = Some(basis);
        let mut known: HashMap<Arc<str>, Image> = std::mem::take(&mut self.images)
            .into_iter()
            .map(|image| (Arc::clone(&image.planned.image), image))
            .collect();
        let mut chances = Vec::new();
        for Desired { planned, start } in desired {
            let image = match known.remove(&planned.image) {
                Some(image) => {
                    if planned.is_new_chance(&image.planned) {
                        chances.push(planned.image.to_string());
                    }
                    image.replanned(planned, start)
                }
                None => Image::new(planned, start),
            };
            self.images.push(image);
        }
        let names = self.images.iter().enumerate();
        let names = names.map(|(place, image)| (Arc::clone(&image.planned.image), place));
        self.places = names.collect();
        Some(chances)
    }

    /// The images that the node needs, in order.
    pub(super) fn images(&self) -> impl Iterator<Item = &Image> {
        self.images.iter()
    }

    fn image(&self, name: &str) -> Option<&Image> {
        self.images.get(*self.places.get(name)?)
    }

    fn image_mut(&mut self, name: &str) -> Option<&mut Image> {
        self.images.get_mut(*self.places.get(name)?)
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

    /// Returns whether the runtime was asked about every image that the node needs.
    pub(super) fn has_looked(&self) -> bool {
        let mut images = self.images();
        self.runtime.is_some() && images.all(|image| image.presence != Presence::Unknown)
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

    /// The plan of the images whose pulls may start by `now`. The pulls of all others end with it, without an event.
    pub(super) fn plan(&mut self, now: SystemTime, instant: Instant) -> Plan {
        let mut facts = Facts::default();
        let mut candidates = Vec::new();
        let is_yielding = self.yielding.is_some();
        for image in &mut self.images {
            if is_yielding || !image.may_start(now, instant) {
                image.left_out();
                continue;
            }
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
            slot.filter(|_| !image.is_started()).max(rest)
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
            let Some(image) = self.image_mut(reference.normalized()) else {
                continue;
            };
            image.is_fresh = false;
            // The end of an attempt tells more than the answer, and nothing must stop it before.
            if image.attempts == Attempts::Running || image.has_come_since(asked) {
                // Its pull goes on only if it is known to be needed.
                if image.presence == Presence::Unknown {
                    image.presence = match status {
                        Ok(Some(stored)) if image.moved.is_some() => {
                            Presence::Present(stored, asked)
                        }
                        _ => Presence::Absent,
                    };
                }
                continue;
            }
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
        if let Some(image) = self.image_mut(image) {
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

    /// The images whose seals are renewed: those that are there, and those that are only kept.
    pub(super) fn protected_by_seals(&self) -> Vec<Reference> {
        let kept = self.kept.iter();
        let kept = kept.filter_map(|planned| planned.reference.clone().ok());
        self.sealed().into_iter().chain(kept).collect()
    }

    /// The images that have a name and no seal of what it stands for, though they are to be sealed: all that always are, and
    /// those of these that may be.
    pub(super) fn to_hold(&self, has_seal: impl Fn(&str) -> bool) -> Vec<Reference> {
        let is_due = |image: &&Image| {
            let is_unsealed =
                matches!(&image.presence, Presence::Present(stored, _) if !stored.is_sealed);
            is_unsealed
                && match image.planned.seal {
                    SealPolicy::Always => true,
                    SealPolicy::Auto => has_seal(&image.planned.image),
                    SealPolicy::Never => false,
                }
        };
        let due = self.images().filter(is_due);
        due.filter_map(|image| image.planned.reference.clone().ok())
            .collect()
    }

    /// Returns whether the image is not to be sealed, and is not to be pulled under its name either: it is there, or was removed for
    /// good.
    pub(super) fn is_open(&self, image: &str) -> bool {
        let never = |image: &&Image| image.planned.seal == SealPolicy::Never;
        let image = self.image(image).filter(never);
        image.is_some_and(|image| !image.is_missing())
    }

    /// Returns whether an image of any node's plan has this normalised reference.
    pub(super) fn is_planned(&self, image: &str) -> bool {
        self.objects
            .values()
            .any(|planned| &*planned.image == image)
    }

    /// Returns whether the node needs the image.
    pub(super) fn needs(&self, image: &str) -> bool {
        self.places.contains_key(image)
    }

    /// Returns whether the image is being pulled, or what came of it is of use to the next attempt: not while the disk is full.
    pub(super) fn resumes(&self, image: &str) -> bool {
        let image = self.image(image);
        image.is_some_and(|image| {
            image.is_started() || (image.is_missing() && self.yielding.is_none())
        })
    }

    /// Returns whether no prefetch uses the image any more, and it is only kept.
    pub(super) fn keeps(&self, image: &str) -> bool {
        self.kept.iter().any(|kept| &*kept.image == image)
    }

    /// Nothing is pulled, for this reason: what is not there counts as failed. `None` ends that; returns the images that may be
    /// pulled again then.
    pub(super) fn set_yielding(&mut self, why: Option<String>) -> Vec<String> {
        let is_over = self.yielding.is_some() && why.is_none();
        if let Some(message) = &why {
            let held = self
                .images
                .iter_mut()
                .filter(|image| image.presence != Presence::Unknown && image.is_missing());
            for image in held.filter(|image| image.planned.reference.is_ok()) {
                image.attempts = Attempts::None;
                // Its tag has moved: what the tag was is still there.
                if image.is_here() {
                    continue;
                }
                image.has_failed = true;
                image.failure = Some(Failure {
                    reason: Reason::DiskPressure,
                    message: message.clone(),
                });
            }
        }
        self.yielding = why;
        match is_over {
            true => self.fits_again(),
            false => Vec::new(),
        }
    }

    /// There is space again: forgets the failures for lack of it, and returns their images.
    pub(super) fn fits_again(&mut self) -> Vec<String> {
        let mut again = Vec::new();
        for image in &mut self.images {
            let is_pressed = |failure: &mut Failure| failure.reason == Reason::DiskPressure;
            if image.failure.take_if(is_pressed).is_some() {
                again.push(image.planned.image.to_string());
            }
        }
        again
    }

    /// An attempt at the image begins.
    pub(super) fn started(&mut self, image: &str) {
        if let Some(image) = self.image_mut(image) {
            image.attempts = Attempts::Running;
        }
    }

    /// An attempt failed and is repeated soon.
    pub(super) fn retrying(&mut self, image: &str, kind: FailureKind, message: &str) {
        let Some(image) = self.image_mut(image) else {
            return;
        };
        image.attempt_ended();
        // The controller slows rollouts down when it sees this, so that it is told before the last attempt.
        if kind == FailureKind::RateLimited {
            image.failure = Some(Failure {
                reason: Reason::Failure(kind),
                message: message.to_owned(),
            });
        }
    }

    /// The image was pulled, or all its attempts failed.
    pub(super) fn finished(&mut self, report: &ImageReport, now: Instant) {
        let Some(place) = self.places.get(&report.image) else {
            return;
        };
        let image = &mut self.images[*place];
        image.attempt_ended();
        if report.outcome == Outcome::Pulled {
            let digest = report.digest.clone();
            let stored = StoredImage {
                known: digest.iter().cloned().collect(),
                digest,
                bytes: report.bytes,
                is_sealed: report.is_sealed,
            };
            image.moved = None;
            if stored.is_sealed && image.planned.seal == SealPolicy::Never {
                // That has changed during the pull: the next one makes the name.
                image.presence = Presence::Absent;
                image.failure = None;
            } else {
                image.is_present(stored, now);
                image.is_fresh = true;
            }
        } else {
            image.fail(report, &self.secret_problems);
            let unauthorized = Some(Reason::Failure(FailureKind::Unauthorized));
            self.is_refused |=
                report.reason == unauthorized && !image.planned.pull_secrets.is_empty();
        }
        self.end_first_fill();
    }

    /// The node is another one under its name: it is to be filled, and nothing was decided for it.
    pub(super) fn rejoined(&mut self) {
        self.first_fill.restart();
        self.revisions = None;
        self.basis = None;
        for image in &mut self.images {
            image.has_failed = image.failure.is_some();
        }
    }

    /// The runtime is away: nothing is being pulled.
    pub(super) fn lost_runtime(&mut self) {
        self.runtime = None;
        for image in self.images.iter_mut() {
            image.attempts = Attempts::None;
        }
    }

    /// A runtime answers: everything is checked again, and the failures that its absence caused count no more.
    pub(super) fn found_runtime(&mut self, info: RuntimeInfo) {
        self.last_runtime = Some(info.clone());
        self.runtime = Some(info);
        for image in self.images.iter_mut() {
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
            |image: &Image| image.start.is_some_and(|start| start > now) && !image.is_started();
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
            attempts: Attempts::None,
            presence: Presence::Unknown,
            is_fresh: false,
            moved: None,
            has_failed: failure.is_some(),
            failure,
            resting: None,
            gone: 0,
        }
    }

    /// The same image, planned otherwise.
    fn replanned(mut self, planned: Arc<Planned>, start: Option<SystemTime>) -> Self {
        // A seal counts as presence unless it is not wanted.
        if planned.seal != self.planned.seal {
            self.presence = Presence::Unknown;
        }
        Self {
            planned,
            start,
            ..self
        }
    }

    /// Returns whether its pull has been started.
    pub(super) fn is_started(&self) -> bool {
        self.attempts != Attempts::None
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
        let waits = self.start.is_some_and(|start| start > now) && !self.is_started();
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
            self.attempts = Attempts::None;
        }
    }

    /// It is not in the plan, which cancels its pull.
    fn left_out(&mut self) {
        self.attempt_ended();
        if !self.is_missing() && !self.is_here() {
            // It was removed for good: its pulls do not matter any more.
            self.attempts = Attempts::None;
            self.failure = None;
            self.resting = None;
        }
    }

    fn attempt_ended(&mut self) {
        if self.attempts == Attempts::Running {
            self.attempts = Attempts::Paused;
        }
    }

    /// Returns whether it came after this time.
    fn has_come_since(&self, asked: Instant) -> bool {
        matches!(&self.presence, Presence::Present(_, since) if *since > asked)
    }

    /// The runtime does not have the image, according to a question that was asked at `asked`.
    fn is_absent(&mut self, asked: Instant) {
        match &self.presence {
            Presence::Present(_, since) => {
                if asked.duration_since(*since) > SETTLED {
                    self.gone = 0;
                }
                self.gone += 1;
                self.presence = Presence::Removed;
                self.moved = None;
                if self.gone > 1 && self.is_missing() {
                    self.rest(asked);
                }
            }
            Presence::Unknown => self.presence = Presence::Absent,
            Presence::Absent | Presence::Removed => {}
        }
    }

    /// The image was removed repeatedly: it is pulled again after a pause.
    fn rest(&mut self, now: Instant) {
        let pause = backoff::pause(GONE, self.gone - 1);
        self.resting = Some(now + pause);
        self.has_failed = true;
        self.failure = Some(Failure {
            reason: Reason::Evicted,
            message: format!(
                "removed from the node {} times; pulled again in {}",
                self.gone,
                humantime::format_duration(Duration::from_secs(pause.as_secs().max(1)))
            ),
        });
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
