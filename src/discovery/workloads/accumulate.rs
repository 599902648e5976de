//! Folds workloads, one at a time, into the images that they use. Pure.
//!
//! It keeps each image once, each workload once, and pairs of indices that relate them. All collections are append-only, so that
//! an interrupted page or an expired list is rolled back by truncating them.
//!
//! Objects that a known workload owns are attributed to that workload: its live pods count if they have an image that the
//! workload's template lacks, such as an injected sidecar or the version before a rollout.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use indexmap::IndexMap;

use super::object::{Facts, Image, Metadata, OwnerReference};
use super::pulls::{Pulls, PullsCheckpoint};
use super::sightings::{Key, Sightings};
use super::strings::{Strings, index, intern};
use crate::model::candidate::{Candidate, Use, Workload};
use crate::model::workload_kind::WorkloadKind;

/// Maximum number of workloads with an oversized image that are named; the others are only counted.
const MAX_OVERSIZED: usize = 20;

/// The images found so far and the workloads that use them.
#[derive(Debug, Default)]
pub(super) struct Accumulator {
    images: Strings,
    /// Namespaces by index, which is a cheap key.
    namespaces: Strings,
    /// The workloads that use an image, and those that may own an object that does.
    workloads: Vec<User>,
    /// Images and their users according to the users' templates, grouped by workload.
    uses: Vec<Pair>,
    /// Images that only objects owned by the workloads use.
    sightings: Sightings,
    /// The workloads that an owner's objects are attributed to, as indices into `workloads`, by fingerprints of the owner's uid
    /// and of its name. `None` for an owner that has ended or is being deleted.
    owners: IndexMap<u64, Option<u32>>,
    /// Computes the fingerprints, with a secret random key.
    hasher: RandomState,
    /// True if suspended CronJobs and Jobs count.
    include_idle: bool,
    /// True if only one kind is listed, so that no object owns another and uids are not kept.
    single_kind: bool,
    /// Workloads with an image reference too long to keep.
    oversized: Vec<Arc<Workload>>,
    /// The pull secrets of the images, if requested.
    pulls: Option<Pulls>,
}

/// The identity of an object.
#[derive(Debug, Hash)]
enum Id<'a> {
    Name(&'a str),
    Uid(&'a str),
}

/// A workload's use of an image.
#[derive(Debug, Clone, Copy)]
struct Pair {
    /// An index into `images`.
    image: u32,
    /// An index into `workloads`.
    workload: u32,
    /// True if a container has the pull policy `Always`.
    always: bool,
}

#[derive(Debug)]
struct User {
    workload: Arc<Workload>,
    /// The desired number of pods.
    pods: u64,
    /// The reason why they cannot run on this node.
    mismatch: Option<Arc<str>>,
    /// Index of its first pair in `uses`.
    first_use: u32,
}

/// A state that an accumulator can be rolled back to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Checkpoint {
    images: usize,
    workloads: usize,
    uses: usize,
    sightings: usize,
    owners: usize,
    oversized: usize,
    pulls: PullsCheckpoint,
}

impl Accumulator {
    /// An accumulator that also records the workloads' pull secrets.
    pub(super) fn with_pull_secrets() -> Self {
        Self {
            pulls: Some(Pulls::default()),
            ..Self::default()
        }
    }

    /// Returns whether suspended CronJobs and Jobs count. By default they do not.
    pub(super) fn include_idle(self, include_idle: bool) -> Self {
        Self {
            include_idle,
            ..self
        }
    }

    /// Declares that only one kind is listed, which takes less memory.
    pub(super) fn single_kind(self, single_kind: bool) -> Self {
        Self {
            single_kind,
            ..self
        }
    }

    /// True if no workload has been folded in.
    pub(super) fn is_empty(&self) -> bool {
        self.workloads.is_empty()
    }

    /// The current state.
    pub(super) fn checkpoint(&mut self) -> Checkpoint {
        Checkpoint {
            images: self.images.len(),
            workloads: self.workloads.len(),
            uses: self.uses.len(),
            sightings: self.sightings.checkpoint(),
            owners: self.owners.len(),
            oversized: self.oversized.len(),
            pulls: self
                .pulls
                .as_ref()
                .map(Pulls::checkpoint)
                .unwrap_or_default(),
        }
    }

    /// Removes everything that was added since `mark`.
    pub(super) fn rollback(&mut self, mark: Checkpoint) {
        self.images.truncate(mark.images);
        self.workloads.truncate(mark.workloads);
        self.uses.truncate(mark.uses);
        self.sightings.rollback(mark.sightings);
        self.owners.truncate(mark.owners);
        self.oversized.truncate(mark.oversized);
        if let Some(pulls) = &mut self.pulls {
            pulls.rollback(mark.pulls);
        }
    }

    /// Adds one workload.
    pub(super) fn fold(&mut self, kind: WorkloadKind, facts: &Facts) {
        let (Some(namespace), Some(name)) = (&facts.metadata.namespace.0, &facts.metadata.name.0)
        else {
            tracing::debug!(kind = kind.kind(), "skipped an object without a valid name");
            return;
        };
        let namespace = intern(&mut self.namespaces, namespace);
        let owner = self.owner_of(namespace, &facts.metadata);
        let gone = facts.finished || facts.metadata.deletion_timestamp.is_some();
        if !kind.can_own() {
            match owner {
                _ if gone => {}
                Some(owner) => self.sight(owner, kind, facts),
                None => _ = self.count(namespace, kind, name, facts),
            }
            return;
        }
        let by_name = self.fingerprint(namespace, kind, Id::Name(name));
        if self.owners.contains_key(&by_name) {
            // The same object was listed again.
            return;
        }
        let workload = match owner {
            Some(owner) => {
                if !gone {
                    self.sight(owner, kind, facts);
                }
                owner
            }
            None if gone => None,
            // Objects of a workload that does not count are counted themselves, such as a Job that was started by hand.
            None if self.is_idle(kind, facts) => return,
            None => Some(self.count(namespace, kind, name, facts)),
        };
        self.owners.insert(by_name, workload);
        if !self.single_kind {
            self.note_uids(namespace, kind, facts, workload);
        }
    }

    /// Attributes the object's own objects to the workload, and those of the running Jobs of a CronJob.
    fn note_uids(
        &mut self,
        namespace: u32,
        kind: WorkloadKind,
        facts: &Facts,
        workload: Option<u32>,
    ) {
        let uid = (kind, &facts.metadata.uid);
        let jobs = facts.active.iter().map(|uid| (WorkloadKind::Jobs, uid));
        for (kind, uid) in std::iter::once(uid).chain(jobs) {
            if let Some(uid) = &uid.0 {
                let by_uid = self.fingerprint(namespace, kind, Id::Uid(uid));
                self.owners.entry(by_uid).or_insert(workload);
            }
        }
    }

    /// Returns whether a workload has no pods and is therefore skipped. A Deployment that is scaled to zero is not skipped, since
    /// its pods come back. A controlled ReplicaSet without pods is skipped: its controller keeps it as history.
    fn is_idle(&self, kind: WorkloadKind, facts: &Facts) -> bool {
        let is_history = kind == WorkloadKind::ReplicaSets
            && facts.pods == 0
            && facts.metadata.controller().is_some();
        is_history || (facts.suspended && !self.include_idle)
    }

    /// Adds a workload with the images of its template, and returns its index.
    fn count(&mut self, namespace: u32, kind: WorkloadKind, name: &str, facts: &Facts) -> u32 {
        let workload = index(self.workloads.len());
        let first_use = self.uses.len();
        let mut oversized = false;
        for (image, always) in facts.template.images() {
            match image {
                Image::Absent => {
                    tracing::debug!(%name, kind = kind.kind(), "container without an image")
                }
                Image::TooLong => oversized = true,
                Image::Named(image) => {
                    let image = intern(&mut self.images, image);
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
        self.workloads.push(User {
            workload: Arc::new(Workload {
                namespace: Arc::clone(&self.namespaces[namespace as usize]),
                kind: kind.kind(),
                name: name.into(),
            }),
            pods: facts.pods,
            mismatch: facts.mismatch.clone(),
            first_use: index(first_use),
        });
        if oversized {
            self.note_oversized(workload);
        }
        let images = self.uses[first_use..].iter().map(|pair| pair.image);
        let images = images.collect();
        self.note_pulls(workload, kind, facts, images);
        workload
    }

    /// Counts the images of an owned object that the workload's template lacks. Images of the template count too if only the
    /// owned pods can run on this node: an admission plugin may have added a toleration.
    fn sight(&mut self, owner: Option<u32>, kind: WorkloadKind, facts: &Facts) {
        let Some(workload) = owner.filter(|_| facts.pods > 0) else {
            return;
        };
        let at = workload as usize;
        let fits = facts.mismatch.is_none();
        let first = self.workloads[at].first_use as usize;
        let next = self.workloads.get(at + 1);
        let end = next.map_or(self.uses.len(), |next| next.first_use as usize);
        let is_better = fits && self.workloads[at].mismatch.is_some();
        let mut seen: Vec<u32> = Vec::new();
        for (image, always) in facts.template.images() {
            match image {
                Image::Absent => {}
                Image::TooLong => self.note_oversized(workload),
                Image::Named(image) => {
                    let image = intern(&mut self.images, image);
                    let has = self.uses[first..end].iter().any(|pair| pair.image == image);
                    if (has && !is_better) || seen.contains(&image) {
                        continue;
                    }
                    seen.push(image);
                    let key = Key {
                        image,
                        workload,
                        by: kind,
                    };
                    let mismatch = facts.mismatch.as_ref();
                    self.sightings.add(key, facts.pods, always, mismatch);
                }
            }
        }
        self.note_pulls(workload, kind, facts, seen);
    }

    fn note_oversized(&mut self, workload: u32) {
        let workload = &self.workloads[workload as usize].workload;
        if self.oversized.len() < MAX_OVERSIZED && !self.oversized.contains(workload) {
            self.oversized.push(Arc::clone(workload));
        }
    }

    /// Records the pull secrets of the images. Nothing is pulled for a workload that cannot run on this node, so its secrets are
    /// left out.
    fn note_pulls(&mut self, workload: u32, kind: WorkloadKind, facts: &Facts, images: Vec<u32>) {
        if let Some(pulls) = &mut self.pulls
            && facts.mismatch.is_none()
            && !images.is_empty()
        {
            let namespace = &self.workloads[workload as usize].workload.namespace;
            pulls.fold(namespace, kind, &facts.template, images.into_iter());
        }
    }

    /// The workload that an object's controller is attributed to, if the controller is known.
    fn owner_of(&self, namespace: u32, metadata: &Metadata) -> Option<Option<u32>> {
        let owner = metadata.controller()?;
        let kind = WorkloadKind::of_owner(owner.api_version.as_str(), owner.kind.as_str())?;
        let known = |kind, id| self.owners.get(&self.fingerprint(namespace, kind, id));
        let uid = owner.uid.0.as_deref();
        let direct = uid.and_then(|uid| known(kind, Id::Uid(uid)));
        let found = direct.or_else(|| {
            let deployment = deployment_of(kind, owner, metadata)?;
            known(WorkloadKind::Deployments, Id::Name(deployment))
        });
        found.copied()
    }

    fn fingerprint(&self, namespace: u32, kind: WorkloadKind, id: Id<'_>) -> u64 {
        self.hasher.hash_one((namespace, kind, id))
    }

    /// Workloads with an oversized image reference, since `mark`.
    pub(super) fn oversized_since(&self, mark: Checkpoint) -> &[Arc<Workload>] {
        self.oversized.get(mark.oversized..).unwrap_or_default()
    }

    /// The pull secrets of the images, by their index among the candidates.
    pub(super) fn take_pulls(&mut self) -> Option<Pulls> {
        self.pulls.take()
    }

    /// The candidates, in the order in which their images were first seen.
    pub(super) fn into_candidates(self) -> Vec<Candidate> {
        let Self {
            images,
            workloads,
            uses,
            sightings,
            ..
        } = self;
        let mut counts = vec![0; images.len()];
        let seen = sightings.iter().map(|(key, _)| key.image);
        for image in uses.iter().map(|pair| pair.image).chain(seen) {
            counts[image as usize] += 1;
        }
        let images = images.into_iter().zip(counts);
        let mut candidates: Vec<Candidate> = images
            .map(|(image, count)| Candidate {
                image,
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
        for (key, sighting) in sightings.iter() {
            if let Some(uses) = &mut candidates[key.image as usize].uses {
                uses.push(Use {
                    workload: Arc::clone(&workloads[key.workload as usize].workload),
                    pods: sighting.pods(),
                    mismatch: sighting.mismatch(),
                    always: sighting.always,
                });
            }
        }
        candidates
    }
}

/// The Deployment that owns a ReplicaSet which may not have been listed. Pods refer only to the ReplicaSet, so it is derived from
/// its name and the pods' label: the Deployment controller names the ReplicaSet `<deployment>-<pod-template-hash>` and labels its
/// pods with the hash.
fn deployment_of<'a>(
    kind: WorkloadKind,
    owner: &'a OwnerReference,
    metadata: &Metadata,
) -> Option<&'a str> {
    let hash = metadata.labels.pod_template_hash.0.as_deref()?;
    let name = owner.name.as_str().strip_suffix(hash)?;
    name.strip_suffix('-')
        .filter(|_| kind == WorkloadKind::ReplicaSets)
}

#[cfg(test)]
mod tests;
