//! Folds workloads, one at a time, into the images that they use. Pure.
//!
//! What is kept is small: an image once, a workload once, and pairs of numbers for who uses what. Everything is only
//! ever appended, so that a page that broke off, or a list that expired, is taken back by cutting the ends off.

use std::sync::Arc;

use indexmap::{Equivalent, IndexSet};

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
    /// What can own others. What such a workload owns is not counted again.
    owners: IndexSet<Owner<Arc<str>>>,
    /// Workloads with an image reference too long to keep.
    oversized: Vec<Arc<Workload>>,
    /// With what the images may be pulled, if that is asked for.
    pulls: Option<Pulls>,
}

/// A workload that can own others.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Owner<Name> {
    /// An index into `namespaces`.
    namespace: u32,
    kind: WorkloadKind,
    name: Name,
}

impl Equivalent<Owner<Arc<str>>> for Owner<&str> {
    fn equivalent(&self, other: &Owner<Arc<str>>) -> bool {
        (self.namespace, self.kind, self.name) == (other.namespace, other.kind, &*other.name)
    }
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
    owners: usize,
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
            owners: self.owners.len(),
            oversized: self.oversized.len(),
            pulls: self.pulls.as_ref().map(Pulls::mark).unwrap_or_default(),
        }
    }

    /// Forgets everything that was folded in since `mark`.
    pub(super) fn take_back(&mut self, mark: Mark) {
        self.images.truncate(mark.images);
        self.workloads.truncate(mark.workloads);
        self.uses.truncate(mark.uses);
        self.owners.truncate(mark.owners);
        self.oversized.truncate(mark.oversized);
        if let Some(pulls) = &mut self.pulls {
            pulls.take_back(mark.pulls);
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
        let namespace = intern(&mut self.namespaces, namespace);
        let owned = self.owner_is_known(namespace, &facts.metadata);
        let name: Arc<str> = Arc::from(&**name);
        if kind.can_own() {
            let is_new = self.owners.insert(Owner {
                namespace,
                kind,
                name: Arc::clone(&name),
            });
            // It is here again.
            if !is_new {
                return;
            }
        }
        if owned || facts.finished || facts.metadata.deletion_timestamp.is_some() {
            return;
        }
        self.count(namespace, kind, name, facts);
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
        let used = self.uses.len() > first_use;
        if !used && !oversized {
            return;
        }
        let workload = Arc::new(Workload {
            namespace: Arc::clone(&self.namespaces[namespace as usize]),
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

    fn owner_is_known(&self, namespace: u32, metadata: &Metadata) -> bool {
        let Some(owner) = metadata.controller() else {
            return false;
        };
        let Some(kind) = WorkloadKind::of_owner(owner.api_version.as_str(), owner.kind.as_str())
        else {
            return false;
        };
        let is_known = |kind, name| {
            let owner = Owner {
                namespace,
                kind,
                name,
            };
            self.owners.contains(&owner)
        };
        is_known(kind, owner.name.as_str())
            || grand_owner(kind, owner, metadata).is_some_and(|(kind, name)| is_known(kind, name))
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
            images,
            workloads,
            uses,
            ..
        } = self;
        let mut counts = vec![0; images.len()];
        for pair in &uses {
            counts[pair.image as usize] += 1;
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
pub(super) type Strings = IndexSet<Arc<str>>;

/// The place of a text, which is added where it is new.
pub(super) fn intern(strings: &mut Strings, text: &str) -> u32 {
    let known = strings.get_index_of(text);
    index(known.unwrap_or_else(|| strings.insert_full(text.into()).0))
}

pub(super) fn index(len: usize) -> u32 {
    u32::try_from(len).expect("the lists are bounded far below four thousand million objects")
}

#[cfg(test)]
#[path = "accumulate_tests.rs"]
mod tests;
