//! Makes the plan from candidates, the policy and the images that the runtime has: pulls, their order, and exclusions.
//!
//! Pure: no I/O, no clock, no async, no network, no Kubernetes. The same candidates and facts give the same plan on every node,
//! regardless of their order.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::model::candidate::{Candidate, Use, Workload};
use crate::model::failure::FailureKind;
use crate::model::image_size::Size;
use crate::model::outcome::{ImageReport, Outcome, Reason};
use crate::model::reference::{Prefix, Reference};
use crate::model::stored_image::StoredImage;
use crate::model::text::size;
use crate::planning::disk_budget::{DiskBudget, Download, InsufficientSpace, Tally};

/// The settings that select candidates.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// If not empty, images without any of these prefixes are skipped.
    pub only: Vec<Prefix>,
    /// Images with any of these prefixes are skipped.
    pub ignore: Vec<Prefix>,
    /// Maximum number of images, including those that the runtime already has.
    pub limit: Option<usize>,
    /// True if a name without a registry is an image of its own, because the runtime resolves its registry.
    pub short_names_apart: bool,
}

/// The planned action for an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The runtime will pull it.
    Pull,
    /// The runtime already has it.
    Present,
    /// It is not pulled; the reason says why.
    Skip,
}

impl Action {
    /// The name used in JSON and in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Present => "present",
            Self::Skip => "skip",
        }
    }
}

/// One image of a plan.
#[derive(Debug, Clone)]
pub struct PlannedImage {
    /// The image as first written.
    pub image: Arc<str>,
    /// The desired number of pods that use it; `None` if its source does not know them.
    pub pods: Option<u64>,
    /// The workloads that use it, sorted.
    pub workloads: Arc<[Arc<Workload>]>,
    /// The planned action with its data.
    pub step: Step,
    /// Additional information for people: that its tag has moved, or why a fact is unknown.
    pub note: Option<String>,
    /// Its size, if requested and known.
    pub weight: Option<Box<Weighed>>,
    /// The reason why its pull will seal it; `None` where it will not.
    pub seal: Option<Arc<str>>,
}

impl PlannedImage {
    /// A report of the image without any attempt.
    pub fn report(&self, outcome: Outcome) -> ImageReport {
        ImageReport {
            image: Arc::clone(&self.image),
            outcome,
            reason: None,
            message: self.note.clone(),
            pods: self.pods,
            workloads: Arc::clone(&self.workloads),
            attempts: 0,
            seconds: None,
            bytes: None,
            digest: None,
            credential: None,
            is_sealed: false,
        }
    }

    /// Its size, if requested and known.
    pub fn size(&self) -> Option<&Size> {
        Some(&self.weight.as_ref()?.size)
    }

    /// The download size of its pull, if known.
    pub fn download(&self) -> Option<Download> {
        self.weight.as_ref()?.download
    }
}

/// The known sizes of an image.
#[derive(Debug, Clone)]
pub struct Weighed {
    /// Its size.
    pub size: Size,
    /// The download size of its pull; `None` if it is not pulled.
    pub download: Option<Download>,
}

/// The planned action for one image, with its data.
#[derive(Debug, Clone)]
pub enum Step {
    /// Pull it with the runtime.
    Pull(Reference),
    /// The runtime already has it; these are its facts.
    Present(Box<StoredImage>),
    /// Skip it for this reason; the text explains it to people.
    Skip(Reason, String),
}

impl Step {
    /// The action without its data.
    pub fn action(&self) -> Action {
        match self {
            Self::Pull(_) => Action::Pull,
            Self::Present(_) => Action::Present,
            Self::Skip(..) => Action::Skip,
        }
    }
}

/// The images in the order of their pulls. Created only by [`Selection::against`].
#[derive(Debug, Clone)]
pub struct Plan {
    images: Vec<PlannedImage>,
    room: Option<DiskBudget>,
}

impl Plan {
    /// The images, in order.
    pub fn images(&self) -> &[PlannedImage] {
        &self.images
    }

    /// The disk budget before the pulls; `None` without a budget.
    pub fn room(&self) -> Option<&DiskBudget> {
        self.room.as_ref()
    }

    /// The download size of all pulls.
    pub fn downloads(&self) -> Downloads {
        let mut sum = Downloads::default();
        for image in &self.images {
            match (&image.step, image.download()) {
                (Step::Pull(_), Some(download)) => {
                    let shared = download.shared.unwrap_or(0);
                    sum.bytes = sum.bytes.saturating_add(download.bytes - shared);
                    sum.shared = sum.shared.saturating_add(shared);
                }
                (Step::Pull(_), None) => sum.unknown += 1,
                _ => {}
            }
        }
        sum
    }

    /// Number of images with this action.
    pub fn count(&self, action: Action) -> usize {
        self.images
            .iter()
            .filter(|i| i.step.action() == action)
            .count()
    }
}

/// The download size of a plan's pulls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Downloads {
    /// Compressed bytes to download.
    pub bytes: u64,
    /// Compressed bytes that are not downloaded, because they are present or come with another image.
    pub shared: u64,
    /// Number of images of unknown size.
    pub unknown: usize,
}

/// Images of a selection that a runtime has, by [`Selection::key`].
pub type Presence = HashMap<String, StoredImage>;

/// Facts about a selection's images: from the runtime by [`Selection::key`], from registries by normalised reference.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// The images that the runtime has; empty without a runtime.
    pub presence: Presence,
    /// The check of present images whose tag may have moved.
    pub moved: HashMap<String, Moved>,
    /// The sizes of the other images, or why they are unknown.
    pub sizes: HashMap<String, Result<Size, Unknown>>,
    /// The blobs of the runtime's images, which are not downloaded again.
    pub tally: Tally,
    /// The remaining disk budget; `None` without one.
    pub room: Option<DiskBudget>,
    /// Images whose pulls will seal them, each with the reason.
    pub seals: HashMap<String, Arc<str>>,
    /// The reason why nothing can be pulled: all images are to be sealed, and the runtime cannot.
    pub cannot_seal: Option<String>,
}

/// The result of comparing a present image with its tag in the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// The tag has not moved.
    No,
    /// The tag has moved; the text is its current digest.
    Yes(String),
    /// The registry did not answer the request.
    Unknown(Unknown),
}

/// The reason why a registry did not provide a fact about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The kind of failure.
    pub kind: FailureKind,
    /// The registry's message.
    pub message: String,
    /// Wait that the registry, or a source of credentials, requested.
    pub retry_after: Option<Duration>,
    /// True if a later request can succeed without any change by a user.
    pub is_retryable: bool,
}

impl Unknown {
    /// A failure that its kind alone describes.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
            is_retryable: kind.is_retryable(),
        }
    }
}

/// Merged, ordered and filtered candidates, before the comparison with the runtime's images.
#[derive(Debug, Clone)]
pub struct Selection {
    images: Vec<Selected>,
    short_names_apart: bool,
}

#[derive(Debug, Clone)]
struct Selected {
    /// The image, to be pulled or skipped; its presence is not known yet.
    planned: PlannedImage,
    /// True if one of its workloads has the pull policy `Always`.
    always: bool,
    /// The reason why it is not needed on this node.
    mismatch: Option<String>,
}

impl Selected {
    fn wanted(&self) -> Option<&Reference> {
        match &self.planned.step {
            Step::Pull(reference) => Some(reference),
            _ => None,
        }
    }
}

/// Merges the spellings of each image, orders the images by use, and applies the policy.
///
/// The order is: pods, most first; then workloads, most first; then the normalised name. A malformed image is kept, so that it is
/// reported, and does not count against the limit. An image that several workloads use is kept if one of them can run on this
/// node; then only workloads that can run here are counted and named.
pub fn select(candidates: Vec<Candidate>, policy: &Policy) -> Selection {
    // They are ordered by name, and the stable sort keeps that order among equals.
    let short_names_apart = policy.short_names_apart;
    let mut images = merge(candidates, short_names_apart);
    images.sort_by_cached_key(|Selected { planned, .. }| {
        Reverse((planned.pods.unwrap_or(0), planned.workloads.len()))
    });
    let mut taken = 0;
    for image in &mut images {
        let mismatch = image.mismatch.take();
        if let Some(reference) = image.wanted()
            && let Some((reason, message)) = refused(reference, mismatch, policy, &mut taken)
        {
            image.planned.step = Step::Skip(reason, message);
        }
    }
    Selection {
        images,
        short_names_apart,
    }
}

impl Selection {
    /// A key that is equal for one image of the selection in all its spellings, and for no other.
    pub fn key<'a>(&self, image: &'a Reference) -> Cow<'a, str> {
        key(image, self.short_names_apart)
    }

    /// The images to look up in a runtime.
    pub fn wanted(&self) -> impl Iterator<Item = &Reference> {
        self.images.iter().filter_map(Selected::wanted)
    }

    /// The runtime's images whose tag may have moved: the tag is `latest`, or a workload's pull policy is `Always`. A reference
    /// with a digest never moves.
    pub fn movable<'a>(
        &'a self,
        presence: &'a Presence,
    ) -> impl Iterator<Item = (&'a Reference, &'a StoredImage)> {
        self.images.iter().filter_map(|image| {
            let reference = image.wanted()?;
            let stored = presence.get(&*self.key(reference))?;
            let tag = reference.tag()?;
            (tag == "latest" || image.always).then_some((reference, stored))
        })
    }

    /// Makes the plan from the facts about the images.
    ///
    /// With a budget, an image is pulled if it fits into the space that the images before it leave; an image that does not fit
    /// does not block smaller ones after it. An image of unknown size fails for the same reason, unless a later request may
    /// succeed: then its size is requested again, and it is pulled if it fits.
    pub fn against(self, facts: Facts) -> Plan {
        let room = facts.room.clone();
        let mut planner = Planner {
            facts,
            short_names_apart: self.short_names_apart,
        };
        let images = self.images.into_iter().enumerate();
        let images = images.map(|(place, selected)| planner.image(place, selected));
        Plan {
            images: images.collect(),
            room,
        }
    }
}

/// The facts that earlier images have not used yet.
struct Planner {
    facts: Facts,
    short_names_apart: bool,
}

impl Planner {
    fn image(&mut self, place: usize, selected: Selected) -> PlannedImage {
        let mut image = selected.planned;
        let step = std::mem::replace(&mut image.step, Step::Skip(Reason::Limit, String::new()));
        image.step = match step {
            Step::Pull(reference) => self.step(place, reference, &mut image),
            step => step,
        };
        image
    }

    fn step(&mut self, place: usize, reference: Reference, image: &mut PlannedImage) -> Step {
        let name = reference.normalized();
        let apart = self.short_names_apart;
        if let Some(stored) = take(&mut self.facts.presence, &key(&reference, apart), false) {
            match take(&mut self.facts.moved, name, apart) {
                Some(Moved::Yes(message)) => image.note = Some(message),
                Some(Moved::Unknown(unknown)) => {
                    image.note = Some(format!(
                        "failed to check whether the tag has moved: {}",
                        unknown.message
                    ));
                    return Step::Present(Box::new(stored));
                }
                Some(Moved::No) | None => return Step::Present(Box::new(stored)),
            }
        }
        if let Some(why) = &self.facts.cannot_seal {
            return Step::Skip(Reason::Failure(FailureKind::Other), why.clone());
        }
        image.seal = take(&mut self.facts.seals, name, apart);
        let size = match take(&mut self.facts.sizes, name, apart) {
            None => None,
            Some(Ok(size)) => Some(size),
            Some(Err(unknown)) if unknown.kind == FailureKind::PlatformMismatch => {
                return Step::Skip(Reason::Failure(unknown.kind), unknown.message);
            }
            Some(Err(unknown)) => {
                let has_budget = self.facts.room.is_some();
                if has_budget && !unknown.is_retryable {
                    let why = size_unknown(&unknown.message);
                    return Step::Skip(Reason::Failure(unknown.kind), why);
                }
                image.note = Some(format!("size unknown: {}", unknown.message));
                if has_budget {
                    return Step::Pull(reference);
                }
                None
            }
        };
        let download = None;
        image.weight = size.map(|size| Box::new(Weighed { size, download }));
        if let Some(room) = &mut self.facts.room
            && let Err(short) = fits(room, place, image.size())
        {
            return Step::Skip(Reason::DiskBudget, short);
        }
        if let Some(weight) = &mut image.weight {
            weight.download = Some(self.facts.tally.add(&weight.size));
        }
        Step::Pull(reference)
    }
}

/// The fact about an image, which is looked up once unless several images share the name. Usually the map is empty, and then the
/// name need not be hashed.
fn take<T: Clone>(known: &mut HashMap<String, T>, name: &str, several: bool) -> Option<T> {
    match (known.is_empty(), several) {
        (true, _) => None,
        (false, true) => known.get(name).cloned(),
        (false, false) => known.remove(name),
    }
}

/// Reserves space for the image, or returns why this is not possible.
fn fits(room: &mut DiskBudget, place: usize, size: Option<&Size>) -> Result<(), String> {
    match size {
        Some(size) => match room.promise(place, size) {
            Ok(_) => Ok(()),
            Err(short) => Err(too_large(short, room.budget())),
        },
        None => Err("size unknown; cannot enforce --disk-budget".to_owned()),
    }
}

/// The message for an image of unknown size under a budget.
pub fn size_unknown(why: &str) -> String {
    format!("size unknown; cannot enforce --disk-budget: {why}")
}

/// The message for an image that does not fit.
pub fn too_large(short: InsufficientSpace, budget: u64) -> String {
    format!(
        "over --disk-budget {2}: needs about {0}, {1} left",
        size(short.need),
        size(short.left),
        size(budget)
    )
}

/// Merges candidates into images, ordered by name.
fn merge(mut candidates: Vec<Candidate>, short_names_apart: bool) -> Vec<Selected> {
    // Names are parsed here and again for the images that stay. This takes less memory than keeping the results, and a large
    // cluster has many. The first of equals comes first.
    let names = candidates.iter().enumerate();
    let names = names.map(|(place, c)| (name(c, short_names_apart), place));
    let mut names: Vec<(Arc<str>, usize)> = names.collect();
    names.sort_unstable();
    let images = names.chunk_by(|a, b| a.0 == b.0);
    let mut merged = Vec::with_capacity(images.clone().count());
    for same in images {
        let mut same = same
            .iter()
            .map(|(_, place)| std::mem::take(&mut candidates[*place]));
        merged.extend(same.next().map(|first| merge_one(first, same)));
    }
    merged
}

/// The key is equal for equal images: the normalised reference, or the text as written if the runtime resolves its registry.
/// These never collide: a normalised reference starts with a registry.
fn key(image: &Reference, short_names_apart: bool) -> Cow<'_, str> {
    match short_names_apart && !image.names_registry() {
        true => image.tagged(),
        false => image.normalized().into(),
    }
}

/// The key of a candidate, or its text if it is malformed.
fn name(candidate: &Candidate, short_names_apart: bool) -> Arc<str> {
    match Reference::of(&candidate.image) {
        Ok(reference) if short_names_apart => key(&reference, true).into(),
        Ok(reference) => reference.into_normalized(),
        Err(_) => Arc::clone(&candidate.image),
    }
}

/// Merges all spellings of one image.
fn merge_one(first: Candidate, others: impl Iterator<Item = Candidate>) -> Selected {
    let step = match Reference::of(&first.image) {
        Ok(reference) => Step::Pull(reference),
        Err(error) => Step::Skip(
            Reason::Failure(FailureKind::InvalidReference),
            error.to_string(),
        ),
    };
    // Whether any source knows its workloads, and whether it was listed explicitly, in which case it is wanted on any node.
    let mut known = first.uses.is_some();
    let mut listed = !known;
    let mut uses = first.uses.unwrap_or_default();
    for other in others {
        known |= other.uses.is_some();
        listed |= other.uses.is_none();
        uses.extend(other.uses.unwrap_or_default());
    }
    let mismatch = count_uses(&mut uses).filter(|_| !listed);
    let pods = uses.iter().map(|u| u.pods).fold(0, u64::saturating_add);
    Selected {
        always: uses.iter().any(|u| u.always),
        mismatch,
        planned: PlannedImage {
            image: first.image,
            pods: known.then_some(pods),
            workloads: uses.into_iter().map(|u| u.workload).collect(),
            step,
            note: None,
            weight: None,
            seal: None,
        },
    }
}

/// Reduces the uses to those on this node, without duplicates. If some of its workloads can run here, only these are counted. If
/// none can, all are kept for the message, and the reason is returned.
fn count_uses(uses: &mut Vec<Use>) -> Option<String> {
    // A workload that writes one image in two ways still has the same pods.
    uses.sort_by(|a, b| {
        a.workload
            .cmp(&b.workload)
            .then(a.mismatch.cmp(&b.mismatch))
            .then(b.pods.cmp(&a.pods))
    });
    uses.dedup_by(|a, b| {
        let same = a.workload == b.workload;
        b.always |= same && a.always;
        same
    });
    if uses.iter().any(|u| u.mismatch.is_none()) {
        uses.retain(|u| u.mismatch.is_none());
        return None;
    }
    explain(uses)
}

/// The reason why the first of the workloads cannot run on this node, and the number of others.
fn explain(uses: &[Use]) -> Option<String> {
    let first = uses.first()?;
    let mut message = format!("{}: {}", first.workload, first.mismatch.as_ref()?);
    if uses.len() > 1 {
        message.push_str(&format!(", and {} more", uses.len() - 1));
    }
    Some(message)
}

/// The reason why the image is skipped. An image that is not skipped counts against the limit.
fn refused(
    reference: &Reference,
    mismatch: Option<String>,
    policy: &Policy,
    taken: &mut usize,
) -> Option<(Reason, String)> {
    if let Some(prefix) = policy.ignore.iter().find(|p| p.matches(reference)) {
        return Some((Reason::Ignored, format!("excluded by --ignore {prefix}")));
    }
    if !policy.only.is_empty() && !policy.only.iter().any(|p| p.matches(reference)) {
        let message = format!("not matched by --only {}", List(&policy.only));
        return Some((Reason::NotOnly, message));
    }
    if let Some(message) = mismatch {
        return Some((Reason::NodeMismatch, message));
    }
    if let Some(limit) = policy.limit
        && *taken >= limit
    {
        let message = format!("over --limit {limit}");
        return Some((Reason::Limit, message));
    }
    *taken += 1;
    None
}

struct List<'a>(&'a [Prefix]);

impl fmt::Display for List<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, prefix) in self.0.iter().enumerate() {
            write!(f, "{}{prefix}", if i == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
