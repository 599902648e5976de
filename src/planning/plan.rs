//! Candidates, policy and what the runtime has already, made into a plan: what to pull, in which order, and why not.
//!
//! Pure: no I/O, no clock, no async, no network, no Kubernetes. The same candidates and facts give the same plan on every
//! node, in whatever order they came.

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

/// The selection settings: which of the candidates are to be pulled.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// Where this is not empty, images outside of these prefixes are skipped.
    pub only: Vec<Prefix>,
    /// Images under these prefixes are skipped.
    pub ignore: Vec<Prefix>,
    /// At most so many images, those that the runtime has already included.
    pub limit: Option<usize>,
    /// True if a name without a registry is an image of its own, since the runtime decides which registry it is for.
    pub short_names_apart: bool,
}

/// What is to be done with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The runtime is to pull it.
    Pull,
    /// The runtime has it.
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
    /// The image as it was first spelt.
    pub image: Arc<str>,
    /// The pods that are meant to use it; `None` where its source does not know.
    pub pods: Option<u64>,
    /// The workloads that use it, sorted.
    pub workloads: Arc<[Arc<Workload>]>,
    /// What is to be done, with all that it takes.
    pub step: Step,
    /// What else a person should know: that its tag has moved, or why something is not known of it.
    pub note: Option<String>,
    /// What it costs, where that was asked for and found out.
    pub weight: Option<Box<Weighed>>,
    /// The reason why its pull will seal it; `None` where it will not.
    pub seal: Option<Arc<str>>,
}

impl PlannedImage {
    /// A report of the image of which no attempt was made.
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

    /// What it weighs, where that was asked for and found out.
    pub fn size(&self) -> Option<&Size> {
        Some(&self.weight.as_ref()?.size)
    }

    /// What its pull downloads, under the same condition.
    pub fn download(&self) -> Option<Download> {
        self.weight.as_ref()?.download
    }
}

/// What is known of what an image costs.
#[derive(Debug, Clone)]
pub struct Weighed {
    /// What it weighs.
    pub size: Size,
    /// What its pull downloads; `None` where it is not pulled.
    pub download: Option<Download>,
}

/// What is to be done with one image.
#[derive(Debug, Clone)]
pub enum Step {
    /// Have the runtime pull it.
    Pull(Reference),
    /// The runtime has it, and says this of it.
    Present(Box<StoredImage>),
    /// Leave it, for this reason, which the text explains to a person.
    Skip(Reason, String),
}

impl Step {
    /// The step without what it takes.
    pub fn action(&self) -> Action {
        match self {
            Self::Pull(_) => Action::Pull,
            Self::Present(_) => Action::Present,
            Self::Skip(..) => Action::Skip,
        }
    }
}

/// The images in the order in which to pull them. Only [`Selection::against`] makes one.
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

    /// The room that the store had before anything was pulled; `None` without a budget.
    pub fn room(&self) -> Option<&DiskBudget> {
        self.room.as_ref()
    }

    /// What the pulls download in all.
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

    /// How many images have this action.
    pub fn count(&self, action: Action) -> usize {
        self.images
            .iter()
            .filter(|i| i.step.action() == action)
            .count()
    }
}

/// The sum of what a plan's pulls download.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Downloads {
    /// Compressed bytes that come.
    pub bytes: u64,
    /// Compressed bytes that need not come, since they are there or come with another image.
    pub shared: u64,
    /// Images of which the size is not known.
    pub unknown: usize,
}

/// Images of a selection that a runtime has, by [`Selection::key`].
pub type Presence = HashMap<String, StoredImage>;

/// Facts about a selection's images: from the runtime by [`Selection::key`], from registries by normalised reference.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// What the runtime has; empty where no runtime is at hand.
    pub presence: Presence,
    /// Of what the runtime has and may have moved: whether it has.
    pub moved: HashMap<String, Moved>,
    /// What the others weigh, or why that is not known.
    pub sizes: HashMap<String, Result<Size, Unknown>>,
    /// The blobs of the runtime's images, which do not come again.
    pub tally: Tally,
    /// What the disk budget leaves; `None` without one.
    pub room: Option<DiskBudget>,
    /// Images whose pulls will seal them, each with the reason.
    pub seals: HashMap<String, Arc<str>>,
    /// The reason why nothing can be pulled: all images are to be sealed, and the runtime cannot.
    pub cannot_seal: Option<String>,
}

/// Whether an image that is here is still what its tag stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Moved {
    /// It is.
    No,
    /// It is not, and the text says what the tag stands for now.
    Yes(String),
    /// The registry did not tell.
    Unknown(Unknown),
}

/// Why a registry did not tell something of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown {
    /// The kind of failure.
    pub kind: FailureKind,
    /// The registry's words.
    pub message: String,
    /// Time for which the registry, or a source of credentials, wants to be left alone.
    pub retry_after: Option<Duration>,
    /// True if the same question can be answered later without anybody changing anything.
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

/// Candidates that are merged, ordered and filtered: a plan but for what the runtime has.
#[derive(Debug, Clone)]
pub struct Selection {
    images: Vec<Selected>,
    short_names_apart: bool,
}

#[derive(Debug, Clone)]
struct Selected {
    /// To be pulled or to be skipped; of what is here nothing is known yet.
    planned: PlannedImage,
    /// Whether one of its workloads wants it asked for at every start.
    always: bool,
    /// Why it is of no use on this node.
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

/// Merges the spellings of each image, orders them by use, and applies the policy.
///
/// The order is: pods, most first; then workloads, most first; then the normalised name. A malformed image is kept, so
/// that it is reported, and does not count against the limit. An image that several workloads use stays if one of them
/// can run on this node, and then only those that can are counted and named.
pub fn select(candidates: Vec<Candidate>, policy: &Policy) -> Selection {
    // They come in the order of their names, and the sort keeps it among equals.
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

    /// The images that a runtime has to be asked for.
    pub fn wanted(&self) -> impl Iterator<Item = &Reference> {
        self.images.iter().filter_map(Selected::wanted)
    }

    /// Those of the images that the runtime has whose tag may stand for something else by now: the tag is `latest`, or a
    /// workload's pull policy is `Always`. A reference with a digest stands for the same for ever.
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

    /// The plan, given what is known of the images.
    ///
    /// With a budget, an image is pulled if what it needs fits into what those before it leave; one that does not fit keeps
    /// no smaller one behind it from coming. One whose size could not be found out fails for the same reason, unless a later
    /// question can be answered: then it is pulled if it fits when its size has been asked for again.
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

/// The facts, with what the images so far have used of them.
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

/// What is known of an image, which is asked once unless several have the name. Mostly nothing is, of no image: then its
/// name need not be hashed.
fn take<T: Clone>(known: &mut HashMap<String, T>, name: &str, several: bool) -> Option<T> {
    match (known.is_empty(), several) {
        (true, _) => None,
        (false, true) => known.get(name).cloned(),
        (false, false) => known.remove(name),
    }
}

/// Takes the image's room, or says why not.
fn fits(room: &mut DiskBudget, place: usize, size: Option<&Size>) -> Result<(), String> {
    match size {
        Some(size) => match room.promise(place, size) {
            Ok(_) => Ok(()),
            Err(short) => Err(too_large(short, room.budget())),
        },
        None => Err("size unknown; cannot enforce --disk-budget".to_owned()),
    }
}

/// The message for an image whose size nobody could tell, under a budget.
pub fn size_unknown(why: &str) -> String {
    format!("size unknown; cannot enforce --disk-budget: {why}")
}

/// What is said of an image that does not fit.
pub fn too_large(short: InsufficientSpace, budget: u64) -> String {
    format!(
        "needs about {} on disk, and {} are left of {} (--disk-budget)",
        size(short.need),
        size(short.left),
        size(budget)
    )
}

/// The images in the order of their names.
fn merge(mut candidates: Vec<Candidate>, short_names_apart: bool) -> Vec<Selected> {
    // What is parsed here is not kept, and parsed again for those that stay: this takes less memory than anything that holds it,
    // and a large cluster has many. Of equals the first comes first.
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

/// What is equal for equal images: the normalised reference, and as it is written where the runtime decides which registry it
/// is for. No normalised reference is like that: it begins with a registry.
fn key(image: &Reference, short_names_apart: bool) -> Cow<'_, str> {
    match short_names_apart && !image.names_registry() {
        true => image.tagged(),
        false => image.normalized().into(),
    }
}

/// The key of a candidate, or its text where that is malformed.
fn name(candidate: &Candidate, short_names_apart: bool) -> Arc<str> {
    match Reference::of(&candidate.image) {
        Ok(reference) if short_names_apart => key(&reference, true).into(),
        Ok(reference) => reference.into_normalized(),
        Err(_) => Arc::clone(&candidate.image),
    }
}

/// One image of all its spellings.
fn merge_one(first: Candidate, others: impl Iterator<Item = Candidate>) -> Selected {
    let step = match Reference::of(&first.image) {
        Ok(reference) => Step::Pull(reference),
        Err(error) => Step::Skip(
            Reason::Failure(FailureKind::InvalidReference),
            error.to_string(),
        ),
    };
    // Whether any source knows who uses it, and whether it is wanted whoever uses it, since somebody listed it.
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

/// Leaves those that use an image on this node, each once. Where some of its workloads can run here they alone count; where none
/// can, all are kept, to say who it is that wants the image elsewhere, and why they cannot run here is returned.
fn count_uses(uses: &mut Vec<Use>) -> Option<String> {
    // A workload that spells one image in two ways still runs it in the same pods.
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

/// Why the first of the workloads cannot run on this node, and how many others there are.
fn explain(uses: &[Use]) -> Option<String> {
    let first = uses.first()?;
    let mut message = format!("{}: {}", first.workload, first.mismatch.as_ref()?);
    if uses.len() > 1 {
        message.push_str(&format!(", and {} more", uses.len() - 1));
    }
    Some(message)
}

/// Why the image is not wanted. One that is takes one of the places that the limit leaves.
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
