//! Notes with what each image may be pulled: the secrets of the workloads that use it, and of no other. Pure.
//!
//! A secret is known by its namespace and name, so that one of the same name elsewhere is another one. Most workloads
//! of a namespace pull with the same secrets, so what is kept is each such set once, and pairs of numbers. As in the
//! accumulator, things are only appended, and taken back by cutting the ends off.

use indexmap::IndexSet;

use super::object::PodSpec;
use super::strings::{Strings, index, intern};
use crate::model::dns_name::is_subdomain;
use crate::model::workload_kind::WorkloadKind;

/// The most different Secrets and ServiceAccounts that are read. A cluster with more namespaces than that is unknown;
/// one in which somebody made up names is not.
pub(super) const MAX_NAMED: usize = 10_000;

/// With what a workload's images are pulled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Means {
    /// The Secrets that the template lists, as indices.
    Secrets(Box<[u32]>),
    /// Those that its ServiceAccount lists, by the account's index.
    Account(u32),
}

/// Which images may be pulled with what.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    /// `namespace/name` of Secrets.
    pub(super) secrets: Strings,
    /// `namespace/name` of ServiceAccounts.
    pub(super) accounts: Strings,
    pub(super) means: IndexSet<Means>,
    /// Pairs of an image, as the accumulator numbers them, and an index into `means`.
    pub(super) uses: IndexSet<(u32, u32)>,
    /// Whether a name was left out because there are too many.
    pub(super) overflown: bool,
}

/// A state to which [`Pulls`] can be taken back.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct PullsCheckpoint {
    secrets: usize,
    accounts: usize,
    means: usize,
    uses: usize,
}

impl Pulls {
    /// The present state.
    pub(super) fn checkpoint(&self) -> PullsCheckpoint {
        PullsCheckpoint {
            secrets: self.secrets.len(),
            accounts: self.accounts.len(),
            means: self.means.len(),
            uses: self.uses.len(),
        }
    }

    /// Forgets everything that was folded in since `mark`.
    pub(super) fn rollback(&mut self, mark: PullsCheckpoint) {
        self.secrets.truncate(mark.secrets);
        self.accounts.truncate(mark.accounts);
        self.means.truncate(mark.means);
        self.uses.truncate(mark.uses);
    }

    /// Notes with what a workload's images are pulled.
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

    /// The template's own list wins over its account's, however useless it is: the API server copies the account's list
    /// into a pod that has none when the pod is made (the ServiceAccount admission plugin), and the kubelet only looks
    /// at the pod. So a pod that is there already needs nothing of its account.
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

    /// The index of a Secret; `None` when there are too many.
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
