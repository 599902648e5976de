//! Folds workloads, one at a time, into the images that they use. Pure.
//!
//! What is kept is small: an image once, a workload once, and pairs of numbers for who uses what. Everything is only
//! ever appended, so that a page that broke off, or a list that expired, is taken back by cutting the ends off.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::kind::WorkloadKind;
use super::object::{Facts, Image, Metadata, OwnerReference};
use super::pulls::{Pulls, PullsMark};
use crate::candidate::{Candidate, Use, Workload};

/// How many workloads with an oversized image are named; the rest is only counted as found.
const MAX_OVERSIZED: usize = 20;

/// The images found so far and who uses them.
#[derive(Debug, Default)]
pub(super) struct Accumulator {
    images: Strings,
    /// As an index, a namespace is a cheap key.
    namespaces: Strings,
    /// Those that use an image.
    workloads: Vec<User>,
    /// Who uses what.
    uses: Vec<Pair>,
    /// Names that can be owners. What such a workload owns is not counted again.
    covered: HashMap<(u32, WorkloadKind), HashSet<Arc<str>>>,
    /// Every insertion into `covered`, oldest first.
    journal: Vec<(u32, WorkloadKind, Arc<str>)>,
    /// Workloads with an image reference too long to keep.
    oversized: Vec<Arc<Workload>>,
    /// With what the images may be pulled, if that is asked for.
    pulls: Option<Pulls>,
}

/// That a workload uses an image.
#[derive(Debug, Clone, Copy)]
struct Pair {
    /// An index into `images`.
    image: u32,
    /// An index into `workloads`.
    workload: u32,
    /// Whether a container of it wants the image asked for at every start.
    always: bool,
}

#[derive(Debug)]
struct User {
    workload: Arc<Workload>,
    /// The pods that it is meant to have.
    pods: u64,
    /// Why they cannot run on this node.
    mismatch: Option<Arc<str>>,
}

/// A state to which an accumulator can be taken back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    images: usize,
    workloads: usize,
    uses: usize,
    journal: usize,
    oversized: usize,
    pulls: PullsMark,
}

impl Accumulator {
    /// One that notes the workloads' pull secrets too.
    pub(super) fn with_pull_secrets() -> Self {
        Self {
            pulls: Some(Pulls::default()),
            ..Self::default()
        }
    }

    /// The present state.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            images: self.images.len(),
            workloads: self.workloads.len(),
            uses: self.uses.len(),
            journal: self.journal.len(),
            oversized: self.oversized.len(),
            pulls: self.pulls.as_ref().map(Pulls::mark).unwrap_or_default(),
        }
    }

    /// Forgets everything that was folded in since `mark`.
    pub(super) fn take_back(&mut self, mark: Mark) {
        self.images.truncate(mark.images);
        self.workloads.truncate(mark.workloads);
        self.uses.truncate(mark.uses);
        self.oversized.truncate(mark.oversized);
        if let Some(pulls) = &mut self.pulls {
            pulls.take_back(mark.pulls);
        }
        for (namespace, kind, name) in self.journal.drain(mark.journal..) {
            if let Some(names) = self.covered.get_mut(&(namespace, kind)) {
                names.remove(&name);
            }
        }
    }

    /// Folds in one workload.
    pub(super) fn fold(&mut self, kind: WorkloadKind, facts: &Facts) {
        let (Some(namespace), Some(name)) = (&facts.metadata.namespace.0, &facts.metadata.name.0)
        else {
            tracing::debug!(
                kind = kind.kind(),
                "skipped an object without a proper name"
            );
            return;
        };
        let namespace = self.namespaces.intern(namespace);
        let owned = self.owner_is_covered(namespace, &facts.metadata);
        let covered = match kind.can_own() {
            true => match self.cover(namespace, kind, name) {
                Some(name) => Some(name),
                None => return,
            },
            false => None,
        };
        if owned || facts.finished || facts.metadata.deletion_timestamp.is_some() {
            return;
        }
        let name = covered.unwrap_or_else(|| Arc::from(&**name));
        self.count(namespace, kind, name, facts);
    }

    /// Notes that what this workload owns is not to be counted; `None` if that was known, so that it is here again.
    fn cover(&mut self, namespace: u32, kind: WorkloadKind, name: &str) -> Option<Arc<str>> {
        let names = self.covered.entry((namespace, kind)).or_default();
        if names.contains(name) {
            return None;
        }
        let name: Arc<str> = Arc::from(name);
        names.insert(Arc::clone(&name));
        self.journal.push((namespace, kind, Arc::clone(&name)));
        Some(name)
    }

    fn count(&mut self, namespace: u32, kind: WorkloadKind, name: Arc<str>, facts: &Facts) {
        let workload = index(self.workloads.len());
        let first_use = self.uses.len();
        let mut oversized = false;
        for (image, always) in facts.template.images() {
            match image {
                Image::Absent => {
                    tracing::debug!(%name, kind = kind.kind(), "a container names no image")
                }
                Image::TooLong => oversized = true,
                Image::Named(image) => {
                    let image = self.images.intern(image);
                    let mut known = self.uses[first_use..].iter_mut();
                    match known.find(|known| known.image == image) {
                        Some(known) => known.always |= always,
                        None => self.uses.push(Pair {
                            image,
                            workload,
                            always,
                        }),
                    }
                }
            }
        }
        let used = self.uses.len() > first_use;
        if !used && !oversized {
            return;
        }
        let workload = Arc::new(Workload {
            namespace: Arc::clone(self.namespaces.get(namespace)),
            kind: kind.kind(),
            name,
        });
        if oversized && self.oversized.len() < MAX_OVERSIZED {
            self.oversized.push(Arc::clone(&workload));
        }
        if used {
            // Nothing is pulled for a workload that cannot run here, so its secrets are none of this node's business.
            if let Some(pulls) = &mut self.pulls
                && facts.mismatch.is_none()
            {
                let images = self.uses[first_use..].iter().map(|pair| pair.image);
                pulls.fold(&workload.namespace, kind, &facts.template, images);
            }
            self.workloads.push(User {
                workload,
                pods: facts.pods,
                mismatch: facts.mismatch.clone(),
            });
        }
    }

    fn owner_is_covered(&self, namespace: u32, metadata: &Metadata) -> bool {
        let Some(owner) = metadata.controller() else {
            return false;
        };
        let Some(kind) = WorkloadKind::of_owner(owner.api_version.as_str(), owner.kind.as_str())
        else {
            return false;
        };
        let covers = |kind, name: &str| {
            let names = self.covered.get(&(namespace, kind));
            names.is_some_and(|names| names.contains(name))
        };
        covers(kind, owner.name.as_str())
            || grand_owner(kind, owner, metadata).is_some_and(|(kind, name)| covers(kind, name))
    }

    /// Workloads with an image too long to keep, since `mark`.
    pub(super) fn oversized_since(&self, mark: Mark) -> &[Arc<Workload>] {
        self.oversized.get(mark.oversized..).unwrap_or_default()
    }

    /// With what the images may be pulled, by their places among the candidates.
    pub(super) fn take_pulls(&mut self) -> Option<Pulls> {
        self.pulls.take()
    }

    /// The candidates, in the order in which their images were first seen.
    pub(super) fn into_candidates(self) -> Vec<Candidate> {
        let Self {
            images: Strings { list, places },
            workloads,
            uses,
            covered,
            journal,
            ..
        } = self;
        // A large cluster's are large: the candidates can have their room.
        drop((places, covered, journal));
        let mut counts = vec![0; list.len()];
        for pair in &uses {
            counts[pair.image as usize] += 1;
        }
        let images = list.into_iter().zip(counts);
        let mut candidates: Vec<Candidate> = images
            .map(|(image, count)| Candidate {
                image: image.as_ref().to_owned(),
                uses: Some(Vec::with_capacity(count)),
            })
            .collect();
        for pair in uses {
            let user = &workloads[pair.workload as usize];
            if let Some(uses) = &mut candidates[pair.image as usize].uses {
                uses.push(Use {
                    workload: Arc::clone(&user.workload),
                    pods: user.pods,
                    mismatch: user.mismatch.clone(),
                    always: pair.always,
                });
            }
        }
        candidates
    }
}

/// Who owns the owner, told by the owner's name alone: the owner itself may not have been scanned.
///
/// The Deployment controller names its ReplicaSets `<deployment>-<pod-template-hash>` and repeats the hash as a label of
/// the pods; the CronJob controller names its Jobs `<cronjob>-<scheduled time as a number>`.
fn grand_owner<'a>(
    kind: WorkloadKind,
    owner: &'a OwnerReference,
    metadata: &Metadata,
) -> Option<(WorkloadKind, &'a str)> {
    let name = owner.name.as_str();
    match kind {
        WorkloadKind::ReplicaSets => {
            let hash = metadata.labels.pod_template_hash.0.as_deref()?;
            let deployment = name.strip_suffix(hash)?.strip_suffix('-')?;
            Some((WorkloadKind::Deployments, deployment))
        }
        WorkloadKind::Jobs => {
            let (cron, time) = name.rsplit_once('-')?;
            let number = !time.is_empty() && time.bytes().all(|byte| byte.is_ascii_digit());
            number.then_some((WorkloadKind::CronJobs, cron))
        }
        _ => None,
    }
}

/// Strings, each kept once, in the order of first appearance.
#[derive(Debug, Default)]
pub(super) struct Strings {
    list: Vec<Arc<str>>,
    places: HashMap<Arc<str>, u32>,
}

impl Strings {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        self.list.iter()
    }

    pub(super) fn contains(&self, text: &str) -> bool {
        self.places.contains_key(text)
    }

    pub(super) fn intern(&mut self, text: &str) -> u32 {
        if let Some(place) = self.places.get(text) {
            return *place;
        }
        let place = index(self.list.len());
        let text: Arc<str> = Arc::from(text);
        self.list.push(Arc::clone(&text));
        self.places.insert(text, place);
        place
    }

    pub(super) fn get(&self, place: u32) -> &Arc<str> {
        &self.list[place as usize]
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn truncate(&mut self, len: usize) {
        for text in self.list.drain(len..) {
            self.places.remove(&text);
        }
    }
}

pub(super) fn index(len: usize) -> u32 {
    u32::try_from(len).expect("the lists are bounded far below four thousand million objects")
}

#[cfg(test)]
#[path = "accumulate_tests.rs"]
mod tests;
