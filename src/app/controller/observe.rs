//! Observe: watches become the state of the cluster that the other steps work on.
//!
//! No I/O: the watches themselves are in `watches.rs`.

use std::collections::BTreeMap;
use std::time::Instant;

use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};

use super::gate::{GateNode, Machine};
use super::prefetch::AnyPrefetch;
use super::pressure::Pressure;
use super::resolve::{Demand, Namespaces, Source};
use super::watches::{Needs, Watches};
use crate::api::v1alpha1::{
    ImagePrefetchSpec, ImagePrefetchStatus, NodePrefetch, NodePrefetchEntry, PlannedImage,
    PlannedImageSpec, ROLLOUT_BRAKE, UNUSED_SINCE,
};
use crate::app::continuous::names;
use crate::app::continuous::watch::works;
use crate::discovery::workloads::inventory::{Class, Inventory, WatchKey};
use crate::discovery::workloads::{Scope, Watched};
use crate::model::failure::FailureKind;
use crate::model::outcome::Reason;
use crate::model::text::clip_sanitized;
use crate::model::workload_kind::WorkloadKind;

/// Characters of a message of a node that are kept.
const MESSAGE_MAX: usize = 300;
/// Number of failures that are read of one node, as the API documents it.
const FAILURES_MAX: usize = 10;
/// Number of entries that are read of one node.
const ENTRIES_MAX: usize = 1000;

/// An ImagePrefetch.
#[derive(Debug, Clone)]
pub(super) struct Prefetch {
    pub(super) uid: String,
    pub(super) generation: Option<i64>,
    /// The error of an object that cannot be decoded.
    pub(super) spec: Result<ImagePrefetchSpec, String>,
    pub(super) status: ImagePrefetchStatus,
}

/// A PlannedImage.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Planned {
    pub(super) uid: String,
    pub(super) resource_version: String,
    pub(super) spec: PlannedImageSpec,
    /// The object as revisions count it.
    pub(super) revised: String,
    /// Number of doublings of its window by the brake.
    pub(super) brake: u32,
    pub(super) unused_since: Option<String>,
    /// The spec that was written, if the API server stores another one for it.
    pub(super) written: Option<Box<PlannedImageSpec>>,
}

/// A NodePrefetch.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// Sorted by the name of the ImagePrefetch. A map would take at least a kilobyte for each node.
    entries: Vec<NodePrefetchEntry>,
    pub(super) failures: Vec<Failure>,
    /// The time at which it changed last.
    pub(super) changed: Instant,
    resource_version: String,
    /// True if its agent has reported.
    pub(super) has_reported: bool,
    /// The uid of the Node that owns the object.
    pub(super) owner: Option<String>,
    /// Its disk is above the high mark.
    pub(super) pressure: Option<Pressure>,
}

impl Node {
    /// The node's entry of an ImagePrefetch.
    pub(super) fn entry(&self, prefetch: &str) -> Option<&NodePrefetchEntry> {
        let at = self
            .entries
            .binary_search_by(|entry| entry.name.as_str().cmp(prefetch));
        self.entries.get(at.ok()?)
    }

    /// The entries of all ImagePrefetches.
    pub(super) fn entries(&self) -> impl Iterator<Item = &NodePrefetchEntry> {
        self.entries.iter()
    }
}

#[cfg(test)]
impl Node {
    /// A node that has reported.
    pub(super) fn new(
        entries: &[NodePrefetchEntry],
        failures: Vec<Failure>,
        changed: Instant,
    ) -> Self {
        Self {
            entries: sorted(entries),
            failures,
            changed,
            resource_version: String::new(),
            has_reported: true,
            owner: None,
            pressure: None,
        }
    }

    /// Adds a failure.
    pub(super) fn fail(&mut self, image: &str, kind: FailureKind, message: &str) {
        self.failures.push(Failure {
            image: image.to_owned(),
            reason: Reason::Failure(kind),
            message: message.to_owned(),
        });
    }
}

/// An image that failed on a node.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) image: String,
    pub(super) reason: Reason,
    pub(super) message: String,
}

/// The reason why workloads cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// In CamelCase.
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The objects of one kind, by name.
#[derive(Debug)]
pub(super) struct Table<T> {
    pub(super) items: BTreeMap<String, T>,
    incoming: BTreeMap<String, T>,
    /// True once its list was complete.
    pub(super) is_synced: bool,
    /// The object that is being written, until the watch tells of it.
    writing: Option<String>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            items: BTreeMap::new(),
            incoming: BTreeMap::new(),
            is_synced: false,
            writing: None,
        }
    }
}

impl<T: Clone> Table<T> {
    /// Handles an event. `convert` gets the object, what is known of it and whether it comes from a list. Returns whether
    /// anything may have changed.
    pub(super) fn handle<K: Resource>(
        &mut self,
        event: Event<K>,
        convert: impl Fn(&K, Option<&T>, bool) -> T,
    ) -> bool {
        match event {
            Event::Init => self.incoming.clear(),
            Event::InitApply(object) => {
                let name = object.name_any();
                let item = convert(&object, self.items.get(&name), true);
                self.incoming.insert(name, item);
            }
            Event::InitDone => {
                self.items = std::mem::take(&mut self.incoming);
                self.is_synced = true;
                self.writing = None;
                return true;
            }
            Event::Apply(object) => {
                let name = object.name_any();
                self.writing.take_if(|writing| *writing == name);
                let item = convert(&object, self.items.get(&name), false);
                self.items.insert(name, item);
                return true;
            }
            Event::Delete(object) => {
                let name = object.name_any();
                self.writing.take_if(|writing| *writing == name);
                return self.items.remove(&name).is_some();
            }
        }
        false
    }
}

impl Table<Planned> {
    /// Notes that a write of an object begins.
    pub(super) fn write(&mut self, name: &str) {
        self.writing = Some(name.to_owned());
    }

    /// Takes in the object as the response to the write has it; `None` if it is gone. Returns false if the watch has told of another
    /// one since the write began: that is newer, or is about to be followed by what was written.
    pub(super) fn wrote(&mut self, name: &str, stored: Option<Planned>) -> bool {
        let was_told = self.writing.take().is_none();
        let version = |planned: &Planned| planned.resource_version.clone();
        if was_told && self.items.get(name).map(version) != stored.as_ref().map(version) {
            return false;
        }
        match stored {
            Some(stored) => self.items.insert(name.to_owned(), stored),
            None => self.items.remove(name),
        };
        true
    }
}

/// The observed state of the cluster.
pub(super) struct State {
    pub(super) prefetches: Table<Prefetch>,
    pub(super) planned: Table<Planned>,
    pub(super) nodes: Table<Node>,
    pub(super) namespaces: Table<BTreeMap<String, String>>,
    /// The Nodes, for the node gate.
    pub(super) machines: Table<Machine>,
    /// Why Nodes cannot be watched.
    pub(super) machines_refusal: Option<Refusal>,
    pub(super) inventory: Inventory,
    /// Watches of workloads that fail, and those of namespaces under the key `None`.
    pub(super) refusals: BTreeMap<Option<WatchKey>, Refusal>,
}

/// The parts of the state that a change concerns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// The images that are wanted.
    pub(super) demand: bool,
    /// The PlannedImages.
    pub(super) planned: bool,
    /// The reports of nodes.
    pub(super) nodes: bool,
    /// The Nodes.
    pub(super) machines: bool,
}

/// A message of a watch.
pub(super) enum Seen {
    Prefetch(Box<Event<AnyPrefetch>>),
    Planned(Box<Event<PlannedImage>>),
    Node(Box<Event<NodePrefetch>>),
    Machine(Result<Box<Event<GateNode>>, Refusal>),
    Namespace(Result<Box<Event<PartialObjectMeta<Namespace>>>, Refusal>),
    Workload(WatchKey, u64, Result<Box<Event<Watched>>, Refusal>),
    Classes(Vec<(String, Option<Class>)>),
}

impl State {
    /// Nothing is known yet.
    pub(super) fn new(include_idle: bool) -> Self {
        Self {
            prefetches: Table::default(),
            planned: Table::default(),
            nodes: Table::default(),
            namespaces: Table::default(),
            machines: Table::default(),
            machines_refusal: None,
            inventory: Inventory::new(include_idle),
            refusals: BTreeMap::new(),
        }
    }

    /// Takes in a message, unless it is from a watch that was stopped.
    pub(super) fn handle(&mut self, seen: Seen, watches: &Watches) -> Changed {
        let mut changed = Changed::default();
        match seen {
            Seen::Prefetch(event) => {
                changed.demand = self
                    .prefetches
                    .handle(*event, |prefetch, _, _| prefetch.read());
            }
            Seen::Planned(event) => {
                changed.planned = self
                    .planned
                    .handle(*event, |image, known, _| planned(image, known));
            }
            Seen::Node(event) => {
                changed.nodes = self.nodes.handle(*event, |object, known, listed| {
                    node(object, known, listed, Instant::now())
                });
            }
            Seen::Machine(Ok(event)) => {
                if works(&event) {
                    changed.nodes = self.machines_refusal.take().is_some();
                }
                changed.machines = self.machines.handle(*event, |node, known, _| {
                    Machine::of(node, known, Instant::now())
                });
            }
            Seen::Machine(Err(refusal)) => {
                let known = self.machines_refusal.replace(refusal.clone());
                changed.nodes = known != Some(refusal);
            }
            Seen::Namespace(Ok(event)) => {
                changed.demand = works(&event) && self.refusals.remove(&None).is_some();
                changed.demand |= self.namespaces.handle(*event, |namespace, _, _| {
                    namespace.metadata.labels.clone().unwrap_or_default()
                });
            }
            Seen::Namespace(Err(refusal)) => changed.demand = self.refuse(None, refusal),
            Seen::Workload(key, start, outcome) if watches.is_current(&key, start) => match outcome
            {
                Ok(event) => {
                    let works = works(&event);
                    changed.demand = self.inventory.handle(&key, *event);
                    changed.demand |= works && self.refusals.remove(&Some(key)).is_some();
                }
                Err(refusal) => changed.demand = self.refuse(Some(key), refusal),
            },
            Seen::Workload(..) => {}
            Seen::Classes(classes) => changed.demand = self.inventory.set_classes(classes),
        }
        changed
    }

    fn refuse(&mut self, key: Option<WatchKey>, refusal: Refusal) -> bool {
        let known = self.refusals.insert(key, refusal.clone());
        known != Some(refusal)
    }

    /// Forgets what watches that are not needed have seen.
    pub(super) fn forget(&mut self, needs: &Needs) {
        self.inventory.retain(|key| needs.keys.contains(key));
        self.refusals.retain(|key, _| match key {
            Some(key) => needs.keys.contains(key),
            None => needs.namespaces,
        });
        if !needs.namespaces {
            self.namespaces = Table::default();
        }
    }

    /// The first reason why the workloads of a demand are not all known, if there is one: `Err(None)` while they are listed.
    pub(super) fn availability(&self, demand: &Demand) -> Result<(), Option<Refusal>> {
        let Source::Workloads {
            kinds, namespaces, ..
        } = &demand.source
        else {
            return Ok(());
        };
        if matches!(namespaces, Namespaces::Selected(_)) {
            if let Some(refusal) = self.refusals.get(&None) {
                return Err(Some(refusal.clone()));
            }
            if !self.namespaces.is_synced {
                return Err(None);
            }
        }
        for &kind in kinds {
            match namespaces {
                Namespaces::These(names) => {
                    for name in names {
                        let own = self.is_readable(kind, Scope::Namespace(name.clone()));
                        own.or_else(|why| self.is_readable(kind, Scope::All).map_err(|_| why))?;
                    }
                }
                Namespaces::All | Namespaces::Selected(_) => self.is_readable(kind, Scope::All)?,
            }
        }
        Ok(())
    }

    fn is_readable(&self, kind: WorkloadKind, scope: Scope) -> Result<(), Option<Refusal>> {
        let key = WatchKey { kind, scope };
        let is_synced = self.inventory.is_synced(&key);
        match self.refusals.get(&Some(key)) {
            Some(refusal) => Err(Some(refusal.clone())),
            None if is_synced => Ok(()),
            None => Err(None),
        }
    }
}

/// The part of a PlannedImage that matters.
pub(super) fn planned(image: &PlannedImage, known: Option<&Planned>) -> Planned {
    let annotation = |key: &str| image.annotations().get(key).cloned();
    let resource_version = image.resource_version().unwrap_or_default();
    let same = known.filter(|known| known.resource_version == resource_version);
    Planned {
        uid: image.uid().unwrap_or_default(),
        spec: image.spec.clone(),
        revised: names::revised(&image.name_any(), &image.spec.placements),
        brake: annotation(ROLLOUT_BRAKE)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        unused_since: annotation(UNUSED_SINCE),
        written: same.and_then(|known| known.written.clone()),
        resource_version,
    }
}

/// The entries sorted by name, the last of each name.
fn sorted(entries: &[NodePrefetchEntry]) -> Vec<NodePrefetchEntry> {
    let mut sorted: Vec<_> = entries.iter().rev().cloned().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    sorted.dedup_by(|a, b| a.name == b.name);
    sorted
}

/// The part of a NodePrefetch that matters.
fn node(object: &NodePrefetch, known: Option<&Node>, is_listed: bool, now: Instant) -> Node {
    let resource_version = object.resource_version().unwrap_or_default();
    let none = crate::api::v1alpha1::NodePrefetchStatus::default();
    let status = object.status.as_ref().unwrap_or(&none);
    let changed = match known {
        Some(known) if known.resource_version == resource_version => known.changed,
        None if is_listed => {
            let beat = humantime::parse_rfc3339(&status.heartbeat_time).ok();
            let age = beat
                .and_then(|beat| beat.elapsed().ok())
                .unwrap_or_default();
            now.checked_sub(age).unwrap_or(now)
        }
        _ => now,
    };
    let failures = status.failures.iter().take(FAILURES_MAX);
    let entries = status.prefetches.len().min(ENTRIES_MAX);
    Node {
        entries: sorted(&status.prefetches[..entries]),
        failures: failures
            .map(|failure| Failure {
                image: failure.image.clone(),
                reason: Reason::of_nodes()
                    .find(|reason| reason.as_str() == failure.reason)
                    .unwrap_or(Reason::Failure(FailureKind::Other)),
                message: clip_sanitized(&failure.message, MESSAGE_MAX),
            })
            .collect(),
        changed,
        owner: object
            .owner_references()
            .iter()
            .find(|owner| owner.kind == "Node")
            .map(|owner| owner.uid.clone()),
        pressure: Pressure::of(&status.conditions),
        has_reported: !status.heartbeat_time.is_empty() || !status.prefetches.is_empty(),
        resource_version,
    }
}
