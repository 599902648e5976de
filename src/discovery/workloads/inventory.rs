//! The workloads that a long-lived process watches, and the candidates among them. Pure.
//!
//! It keeps the facts of each object, grouped by the watch that they come from. It never sends a request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use kube::core::{Selector, SelectorExt};
use kube::runtime::watcher::Event;

use super::accumulate::Accumulator;
use super::error::Scope;
use super::object::Facts;
use super::requirements::workload_requirements;
use super::scheduling::Scheduling;
use super::watched::Watched;
use crate::model::candidate::{Candidate, Workload};
use crate::model::dns_name::is_subdomain;
use crate::model::workload_kind::WorkloadKind;
use crate::planning::node_match::Requirements;

/// The identity of a watch.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WatchKey {
    /// The kind that is watched.
    pub kind: WorkloadKind,
    /// The scope of the watch.
    pub scope: Scope,
}

/// The workloads to take candidates from.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Their kinds.
    pub kinds: BTreeSet<WorkloadKind>,
    /// Their namespaces; `None` for all.
    pub namespaces: Option<BTreeSet<String>>,
    /// The selector of their labels.
    pub selector: Selector,
}

/// The candidates of a filter.
#[derive(Debug, Default)]
pub struct Selected {
    /// The images and the workloads that use them, in the order in which they were first seen.
    pub candidates: Vec<Candidate>,
    /// Workloads with an image reference that is too long to be valid; only some are named.
    pub oversized: Vec<Arc<Workload>>,
}

/// The scheduling constraints of a RuntimeClass; `None` for one that does not exist, which then requires nothing.
#[derive(Debug, PartialEq)]
pub struct Class(pub(super) Option<Scheduling>);

/// The watched workloads.
#[derive(Default)]
pub struct Inventory {
    stores: BTreeMap<WatchKey, Store>,
    classes: HashMap<Box<str>, Class>,
    include_idle: bool,
}

/// The objects of one watch, by namespace and name.
///
/// The entries are boxed, because a map that is filled in order leaves almost half of its space unused.
type Objects = BTreeMap<(Box<str>, Box<str>), Box<Entry>>;

#[derive(Default)]
struct Store {
    objects: Objects,
    /// The objects of a list that is not complete yet.
    incoming: Objects,
    is_synced: bool,
}

#[derive(PartialEq)]
struct Entry {
    facts: Facts,
    /// Sorted by key. A map would take at least half a kilobyte for each workload.
    labels: Box<[(Box<str>, Box<str>)]>,
}

impl Entry {
    fn new((labels, facts): (BTreeMap<String, String>, Facts)) -> Self {
        let labels = labels.into_iter();
        let labels = labels.map(|(key, value)| (key.into_boxed_str(), value.into_boxed_str()));
        Self {
            facts,
            labels: labels.collect(),
        }
    }

    fn is_selected(&self, selector: &Selector) -> bool {
        let owned = |(key, value): &(Box<str>, Box<str>)| (key.to_string(), value.to_string());
        selector.selects_all() || selector.matches(&self.labels.iter().map(owned).collect())
    }
}

impl Inventory {
    /// An empty inventory. `include_idle`: suspended CronJobs and Jobs count.
    pub fn new(include_idle: bool) -> Self {
        Self {
            include_idle,
            ..Self::default()
        }
    }

    /// Handles an event of a watch. Returns whether the candidates may have changed.
    pub fn handle(&mut self, key: &WatchKey, event: Event<Watched>) -> bool {
        let store = self.stores.entry(key.clone()).or_default();
        match event {
            Event::Init => {
                store.incoming.clear();
                false
            }
            Event::InitApply(object) => {
                insert(&mut store.incoming, key.kind, object);
                false
            }
            Event::InitDone => {
                store.objects = std::mem::take(&mut store.incoming);
                store.is_synced = true;
                true
            }
            Event::Apply(object) => insert(&mut store.objects, key.kind, object),
            Event::Delete(object) => {
                let removed = identity(&object).and_then(|id| store.objects.remove(&id));
                removed.is_some()
            }
        }
    }

    /// Returns whether the list of the watch was complete once.
    pub fn is_synced(&self, key: &WatchKey) -> bool {
        self.stores.get(key).is_some_and(|store| store.is_synced)
    }

    /// Drops the objects of watches that are not in use any more.
    pub fn retain(&mut self, in_use: impl Fn(&WatchKey) -> bool) {
        self.stores.retain(|key, _| in_use(key));
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.stores.values().map(|store| store.objects.len()).sum()
    }

    /// Returns whether there is no object.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The images of the workloads that match the filter.
    pub fn select(&self, filter: &Filter) -> Selected {
        let mut found = Accumulator::default()
            .include_idle(self.include_idle)
            .single_kind(filter.kinds.len() == 1);
        let start = found.checkpoint();
        // Kinds are in the order in which owners come before the objects that they own.
        for &kind in &filter.kinds {
            for entry in self.matching(kind, filter) {
                found.fold(kind, &entry.facts);
            }
        }
        let oversized = found.oversized_since(start).to_vec();
        Selected {
            candidates: found.into_candidates(),
            oversized,
        }
    }

    fn matching<'a>(
        &'a self,
        kind: WorkloadKind,
        filter: &'a Filter,
    ) -> impl Iterator<Item = &'a Entry> {
        let everywhere = self.synced(kind, Scope::All);
        let of_all = match &filter.namespaces {
            None => everywhere.map(|store| store.objects.values().map(|entry| &**entry)),
            Some(_) => None,
        };
        let namespaces = filter.namespaces.iter().flatten();
        let of_some = namespaces.flat_map(move |namespace| {
            let own = self.synced(kind, Scope::Namespace(namespace.clone()));
            own.or(everywhere)
                .into_iter()
                .flat_map(|store| in_namespace(&store.objects, namespace))
        });
        let entries = of_all.into_iter().flatten().chain(of_some);
        entries.filter(|entry| entry.is_selected(&filter.selector))
    }

    fn synced(&self, kind: WorkloadKind, scope: Scope) -> Option<&Store> {
        let store = self.stores.get(&WatchKey { kind, scope })?;
        store.is_synced.then_some(store)
    }

    /// The requirements of a workload's pods on a node, with its RuntimeClass; `None` for a workload that is gone.
    pub fn requirements(&self, workload: &Workload) -> Option<Requirements> {
        let kind = WorkloadKind::ALL
            .into_iter()
            .find(|kind| kind.kind() == workload.kind)?;
        let id = (Box::from(&*workload.namespace), Box::from(&*workload.name));
        let scopes = [Scope::Namespace(workload.namespace.to_string()), Scope::All];
        let entry = scopes
            .into_iter()
            .find_map(|scope| self.synced(kind, scope)?.objects.get(&id))?;
        let class = entry.facts.template.runtime_class_name.as_str();
        let class = self.classes.get(class).and_then(|class| class.0.as_ref());
        Some(workload_requirements(kind, &entry.facts, class))
    }

    /// The names of the RuntimeClasses that the workloads use, at most `most`.
    pub fn classes_in_use(&self, most: usize) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for entry in self
            .stores
            .values()
            .flat_map(|store| store.objects.values())
        {
            let name = entry.facts.template.runtime_class_name.as_str();
            if is_subdomain(name) && names.len() < most && !names.contains(name) {
                names.insert(name.to_owned());
            }
        }
        names
    }

    /// The names of the RuntimeClasses that are known.
    pub fn known_classes(&self) -> BTreeSet<String> {
        self.classes.keys().map(|name| name.to_string()).collect()
    }

    /// Replaces the RuntimeClasses. `None`: it could not be read this time, so that what is known of it stays. Returns whether
    /// any requirement may have changed.
    pub fn set_classes(&mut self, classes: Vec<(String, Option<Class>)>) -> bool {
        let mut known = std::mem::take(&mut self.classes);
        let mut changed = false;
        for (name, class) in classes {
            let before = known.remove(name.as_str());
            let class = match (class, before) {
                (Some(class), before) => {
                    changed |= before.is_none_or(|before| before != class);
                    class
                }
                (None, before) => before.unwrap_or(Class(None)),
            };
            self.classes.insert(name.into_boxed_str(), class);
        }
        changed
    }
}

/// The entries of one namespace.
fn in_namespace<'a>(objects: &'a Objects, namespace: &'a str) -> impl Iterator<Item = &'a Entry> {
    let first = (Box::from(namespace), Box::from(""));
    objects
        .range(first..)
        .take_while(move |((of, _), _)| **of == *namespace)
        .map(|(_, entry)| &**entry)
}

fn identity(object: &Watched) -> Option<(Box<str>, Box<str>)> {
    let meta = kube::Resource::meta(object);
    let (namespace, name) = (meta.namespace.as_deref()?, meta.name.as_deref()?);
    Some((namespace.into(), name.into()))
}

/// Adds an object. Returns false for one that changes no candidate.
fn insert(into: &mut Objects, kind: WorkloadKind, object: Watched) -> bool {
    let Some(id) = identity(&object) else {
        tracing::debug!(kind = kind.kind(), "skipped an object without a valid name");
        return false;
    };
    let Some(entry) = object.into_parts(kind).map(Entry::new) else {
        return false;
    };
    // Most events are changes of a status that is not read.
    if into.get(&id).is_some_and(|known| **known == entry) {
        return false;
    }
    into.insert(id, Box::new(entry));
    true
}
