//! Records the pull secrets of each image: those of the workloads that use it, and no others. Pure.
//!
//! A secret is identified by its namespace and name. Most workloads of a namespace use the same secrets, so each set is kept
//! once, together with pairs of indices. As in the accumulator, collections are append-only and rolled back by truncation.

use indexmap::IndexSet;

use super::object::PodSpec;
use super::strings::{Strings, index, intern};
use crate::model::dns_name::is_subdomain;
use crate::model::workload_kind::WorkloadKind;

/// Maximum number of Secrets and ServiceAccounts that are read. No known cluster has more namespaces than this; more names are
/// probably made up.
pub(super) const MAX_NAMED: usize = 10_000;

/// The pull secrets of a workload's images.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Means {
    /// The Secrets that the template lists, as indices.
    Secrets(Box<[u32]>),
    /// The Secrets that its ServiceAccount lists, by the account's index.
    Account(u32),
}

/// The pull secrets of each image.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    /// `namespace/name` of Secrets.
    pub(super) secrets: Strings,
    /// `namespace/name` of ServiceAccounts.
    pub(super) accounts: Strings,
    pub(super) means: IndexSet<Means>,
    /// Pairs of an image's index in the accumulator and an index into `means`.
    pub(super) uses: IndexSet<(u32, u32)>,
    /// True if a name was left out because there are too many.
    pub(super) overflown: bool,
}

/// A state that [`Pulls`] can be rolled back to.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct PullsCheckpoint {
    secrets: usize,
    accounts: usize,
    means: usize,
    uses: usize,
}

impl Pulls {
    /// The current state.
    pub(super) fn checkpoint(&self) -> PullsCheckpoint {
        PullsCheckpoint {
            secrets: self.secrets.len(),
            accounts: self.accounts.len(),
            means: self.means.len(),
            uses: self.uses.len(),
        }
    }

    /// Removes everything that was added since `mark`.
    pub(super) fn rollback(&mut self, mark: PullsCheckpoint) {
        self.secrets.truncate(mark.secrets);
        self.accounts.truncate(mark.accounts);
        self.means.truncate(mark.means);
        self.uses.truncate(mark.uses);
    }

    /// Records the pull secrets of a workload's images.
    pub(super) fn fold(
        &mut self,
        namespace: &str,
        kind: WorkloadKind,
        template: &PodSpec,
        images: impl Iterator<Item = u32>,
    ) {
        if !is_subdomain(namespace) {
            return;
        }
        let Some(means) = self.means_of(namespace, kind, template) else {
            return;
        };
        let place = index(self.means.insert_full(means).0);
        self.uses.extend(images.map(|image| (image, place)));
    }

    /// The template's own list replaces its account's, even if its entries are invalid: the API server copies the account's list
    /// into a pod that has none when the pod is created (the ServiceAccount admission plugin), and the kubelet reads only the
    /// pod. So an existing pod does not need its account.
    fn means_of(
        &mut self,
        namespace: &str,
        kind: WorkloadKind,
        template: &PodSpec,
    ) -> Option<Means> {
        let own = &template.image_pull_secrets;
        if own.listed {
            let names = own.names.iter();
            let secrets: Box<[u32]> = names
                .filter_map(|name| self.secret(namespace, name))
                .collect();
            return (!secrets.is_empty()).then_some(Means::Secrets(secrets));
        }
        let account = template.account();
        if kind == WorkloadKind::Pods || !is_subdomain(account) {
            return None;
        }
        named(&mut self.accounts, &mut self.overflown, namespace, account).map(Means::Account)
    }

    /// The index of a Secret; `None` if there are too many.
    pub(super) fn secret(&mut self, namespace: &str, name: &str) -> Option<u32> {
        named(&mut self.secrets, &mut self.overflown, namespace, name)
    }
}

fn named(into: &mut Strings, overflown: &mut bool, namespace: &str, name: &str) -> Option<u32> {
    let full = format!("{namespace}/{name}");
    if into.len() >= MAX_NAMED && !into.contains(&*full) {
        *overflown = true;
        return None;
    }
    Some(intern(into, &full))
}

#[cfg(test)]
mod tests;
