//! Observe: watches become the state of the cluster that the other steps work on.
//!
//! A watch of workloads runs only while an ImagePrefetch needs it. It never writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::prefetch::AnyPrefetch;
use super::resolve::{Demand, MAX_NAMESPACES, Namespaces, Source};
use crate::api::v1alpha1::{
    ImagePrefetchSpec, ImagePrefetchStatus, NodePrefetch, NodePrefetchEntry, PlannedImage,
    PlannedImageSpec, ROLLOUT_BRAKE, UNUSED_SINCE,
};
use crate::app::continuous::watch;
use crate::discovery::workloads::inventory::{Class, Inventory, WatchKey};
use crate::discovery::workloads::{Scope, Watched};
use crate::model::failure::FailureKind;
use crate::model::text::{clip, sanitize};
use crate::model::workload_kind::WorkloadKind;

/// Number of events that wait for the main loop; a watch waits when there are more.
const EVENTS: usize = 1024;
/// Characters of a message of a node that are kept.
const MESSAGE_MAX: usize = 300;
/// Number of failures that are read of one node, as the API documents it.
const FAILURES_MAX: usize = 10;
/// Number of entries that are read of one node.
const ENTRIES_MAX: usize = 1000;
/// Time for which a watch of workloads may fail for a passing reason before its ImagePrefetches say so.
const PATIENCE: Duration = Duration::from_secs(30);

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
    /// Number of doublings of its window by the brake.
    pub(super) brake: u32,
    pub(super) unused_since: Option<String>,
    /// The spec that was written, if the API server stores another one for it.
    pub(super) written: Option<Box<PlannedImageSpec>>,
}

/// A NodePrefetch.
#[derive(Debug, Clone)]
pub(super) struct Node {
    /// By the name of the ImagePrefetch.
    pub(super) entries: BTreeMap<String, NodePrefetchEntry>,
    pub(super) failures: Vec<Failure>,
    /// The time at which it changed last.
    pub(super) changed: Instant,
    resource_version: String,
    /// True if its agent has reported.
    pub(super) has_reported: bool,
}

#[cfg(test)]
impl Node {
    /// A node that has reported.
    pub(super) fn new(
        entries: BTreeMap<String, NodePrefetchEntry>,
        failures: Vec<Failure>,
        changed: Instant,
    ) -> Self {
        Self {
            entries,
            failures,
            changed,
            resource_version: String::new(),
            has_reported: true,
        }
    }

    /// Adds a failure.
    pub(super) fn fail(&mut self, image: &str, kind: FailureKind, message: &str) {
        self.failures.push(Failure {
            image: image.to_owned(),
            kind,
            message: message.to_owned(),
        });
    }
}

/// An image that failed on a node.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) image: String,
    pub(super) kind: FailureKind,
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
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self {
            items: BTreeMap::new(),
            incoming: BTreeMap::new(),
            is_synced: false,
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
                return true;
            }
            Event::Apply(object) => {
                let name = object.name_any();
                let item = convert(&object, self.items.get(&name), false);
                self.items.insert(name, item);
                return true;
            }
            Event::Delete(object) => return self.items.remove(&object.name_any()).is_some(),
        }
        false
    }
}

/// What is known of the cluster.
pub(super) struct State {
    pub(super) prefetches: Table<Prefetch>,
    pub(super) planned: Table<Planned>,
    pub(super) nodes: Table<Node>,
    pub(super) namespaces: Table<BTreeMap<String, String>>,
    pub(super) inventory: Inventory,
    /// Watches of workloads that fail, and those of namespaces under the key `None`.
    pub(super) refusals: BTreeMap<Option<WatchKey>, Refusal>,
}

/// What a change concerns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// The images that are wanted.
    pub(super) demand: bool,
    /// The PlannedImages.
    pub(super) planned: bool,
    /// What nodes report.
    pub(super) nodes: bool,
}

/// A message of a watch.
pub(super) enum Seen {
    Prefetch(Box<Event<AnyPrefetch>>),
    Planned(Box<Event<PlannedImage>>),
    Node(Box<Event<NodePrefetch>>),
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

/// Returns whether an event shows that the watch works: each attempt to list starts with [`Event::Init`].
fn works<K>(event: &Event<K>) -> bool {
    !matches!(event, Event::Init | Event::InitApply(_))
}

/// The part of a PlannedImage that matters.
pub(super) fn planned(image: &PlannedImage, known: Option<&Planned>) -> Planned {
    let annotation = |key: &str| image.annotations().get(key).cloned();
    let resource_version = image.resource_version().unwrap_or_default();
    let same = known.filter(|known| known.resource_version == resource_version);
    Planned {
        uid: image.uid().unwrap_or_default(),
        spec: image.spec.clone(),
        brake: annotation(ROLLOUT_BRAKE)
            .and_then(|text| text.parse().ok())
            .unwrap_or(0),
        unused_since: annotation(UNUSED_SINCE),
        written: same.and_then(|known| known.written.clone()),
        resource_version,
    }
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
    let bounded = |text: &str, most: usize| clip(&sanitize(&clip(text, most)), most);
    let failures = status.failures.iter().take(FAILURES_MAX);
    let entries = status.prefetches.iter().take(ENTRIES_MAX);
    Node {
        entries: entries
            .map(|entry| (entry.name.clone(), entry.clone()))
            .collect(),
        failures: failures
            .map(|failure| Failure {
                image: failure.image.clone(),
                kind: FailureKind::ALL
                    .into_iter()
                    .find(|kind| kind.as_str() == failure.reason)
                    .unwrap_or(FailureKind::Other),
                message: bounded(&failure.message, MESSAGE_MAX),
            })
            .collect(),
        changed,
        has_reported: !status.heartbeat_time.is_empty() || !status.prefetches.is_empty(),
        resource_version,
    }
}

/// The watches that the ImagePrefetches need.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Needs {
    pub(super) keys: BTreeSet<WatchKey>,
    /// True if a selector of namespaces is in use.
    pub(super) namespaces: bool,
}

impl Needs {
    /// The needs of these demands. Namespaces are watched one by one only where all of them are not watched anyway, or cannot be:
    /// then those who named their namespaces go on.
    pub(super) fn of<'a>(
        demands: impl IntoIterator<Item = &'a Demand>,
        is_refused: impl Fn(&WatchKey) -> bool,
    ) -> Self {
        let mut everywhere: BTreeSet<WorkloadKind> = BTreeSet::new();
        let mut some: BTreeMap<WorkloadKind, BTreeSet<&String>> = BTreeMap::new();
        let mut needs = Self::default();
        for demand in demands {
            let Source::Workloads {
                kinds, namespaces, ..
            } = &demand.source
            else {
                continue;
            };
            match namespaces {
                Namespaces::These(names) => {
                    for kind in kinds {
                        some.entry(*kind).or_default().extend(names);
                    }
                }
                Namespaces::All => everywhere.extend(kinds),
                Namespaces::Selected(_) => {
                    everywhere.extend(kinds);
                    needs.namespaces = true;
                }
            }
        }
        let many = some
            .iter()
            .filter(|(_, names)| names.len() > MAX_NAMESPACES);
        everywhere.extend(many.map(|(kind, _)| *kind));
        for kind in everywhere {
            let key = WatchKey {
                kind,
                scope: Scope::All,
            };
            if !is_refused(&key) {
                some.remove(&kind);
            }
            needs.keys.insert(key);
        }
        for (kind, names) in some {
            needs.keys.extend(names.into_iter().map(|name| WatchKey {
                kind,
                scope: Scope::Namespace(name.clone()),
            }));
        }
        needs
    }
}

/// The running watches. Dropping it ends them.
pub(super) struct Watches {
    client: Client,
    sender: mpsc::Sender<Seen>,
    _always: Vec<AbortOnDropHandle<()>>,
    namespaces: Option<AbortOnDropHandle<()>>,
    workloads: BTreeMap<WatchKey, (u64, AbortOnDropHandle<()>)>,
    started: u64,
}

impl Watches {
    /// Starts the watches that always run.
    pub(super) fn start(client: &Client) -> (Self, mpsc::Receiver<Seen>) {
        let (sender, receiver) = mpsc::channel(EVENTS);
        let always = vec![
            forward(client, "imageprefetches", &sender, |event| {
                Seen::Prefetch(Box::new(event))
            }),
            forward(client, "plannedimages", &sender, |event| {
                Seen::Planned(Box::new(event))
            }),
            forward(client, "nodeprefetches", &sender, |event| {
                Seen::Node(Box::new(event))
            }),
        ];
        let watches = Self {
            client: client.clone(),
            sender,
            _always: always,
            namespaces: None,
            workloads: BTreeMap::new(),
            started: 0,
        };
        (watches, receiver)
    }

    fn is_current(&self, key: &WatchKey, start: u64) -> bool {
        self.workloads
            .get(key)
            .is_some_and(|(current, _)| *current == start)
    }

    /// Starts and stops watches of workloads and namespaces.
    pub(super) fn adjust(&mut self, needs: &Needs) {
        self.workloads.retain(|key, _| needs.keys.contains(key));
        for key in &needs.keys {
            if self.workloads.contains_key(key) {
                continue;
            }
            self.started += 1;
            let watched = watch_workloads(
                self.client.clone(),
                key.clone(),
                self.started,
                self.sender.clone(),
            );
            let task = AbortOnDropHandle::new(tokio::spawn(watched));
            tracing::debug!(kind = key.kind.resource(), scope = %key.scope, "watching workloads");
            self.workloads.insert(key.clone(), (self.started, task));
        }
        if !needs.namespaces {
            self.namespaces = None;
        } else if self.namespaces.is_none() {
            let task = watch_namespaces(self.client.clone(), self.sender.clone());
            self.namespaces = Some(AbortOnDropHandle::new(tokio::spawn(task)));
        }
    }
}

/// Forwards the events of a kind of our own.
fn forward<K>(
    client: &Client,
    resource: &'static str,
    sender: &mpsc::Sender<Seen>,
    wrap: impl Fn(Event<K>) -> Seen + Send + 'static,
) -> AbortOnDropHandle<()>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Clone + Default + Debug + Send + 'static,
{
    let api: Api<DeserializeGuard<K>> = Api::all(client.clone());
    let sender = sender.clone();
    let task = async move {
        let mut events = std::pin::pin!(watch::objects(api, watch::config(), resource));
        while let Some(event) = events.next().await {
            if sender.send(wrap(event)).await.is_err() {
                return;
            }
        }
    };
    AbortOnDropHandle::new(tokio::spawn(task))
}

async fn watch_workloads(client: Client, key: WatchKey, start: u64, sender: mpsc::Sender<Seen>) {
    let versions = key.kind.versions();
    let mut at = 0;
    loop {
        let resource = Watched::resource(key.kind, versions[at]);
        let api: Api<Watched> = match &key.scope {
            Scope::All => Api::all_with(client.clone(), &resource),
            Scope::Namespace(name) => Api::namespaced_with(client.clone(), name, &resource),
        };
        let mut trouble = Trouble::default();
        let mut events = std::pin::pin!(watcher(api, watch::config()).default_backoff());
        while let Some(event) = events.next().await {
            let outcome = match event {
                Ok(event) => {
                    trouble.end(&event);
                    Ok(Box::new(event))
                }
                Err(error) if watch::status(&error) == Some(404) && at + 1 < versions.len() => {
                    break;
                }
                Err(error) => match trouble.tell(&error, Resourced::Workload(&key)) {
                    Some(refusal) => Err(refusal),
                    None => continue,
                },
            };
            if sender
                .send(Seen::Workload(key.clone(), start, outcome))
                .await
                .is_err()
            {
                return;
            }
        }
        // An older API server has the kind in an older version.
        at = (at + 1) % versions.len();
    }
}

async fn watch_namespaces(client: Client, sender: mpsc::Sender<Seen>) {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
    let events = watcher(api, watch::config()).default_backoff();
    let mut events = std::pin::pin!(events);
    let mut trouble = Trouble::default();
    while let Some(event) = events.next().await {
        let outcome = match event {
            Ok(event) => {
                trouble.end(&event);
                Ok(Box::new(event))
            }
            Err(error) => match trouble.tell(&error, Resourced::Namespaces) {
                Some(refusal) => Err(refusal),
                None => continue,
            },
        };
        if sender.send(Seen::Namespace(outcome)).await.is_err() {
            return;
        }
    }
}

/// The resource of a watch.
#[derive(Clone, Copy)]
enum Resourced<'a> {
    Workload(&'a WatchKey),
    Namespaces,
}

/// The failures of a watch since its last event.
#[derive(Default)]
struct Trouble {
    since: Option<Instant>,
    said: Option<&'static str>,
}

impl Trouble {
    /// Forgets the failures once the watch works.
    fn end<K>(&mut self, event: &Event<K>) {
        if works(event) {
            *self = Self::default();
        }
    }

    /// The refusal that an error means; `None` for one that may pass. The first is logged.
    fn tell(&mut self, error: &watcher::Error, what: Resourced<'_>) -> Option<Refusal> {
        let refusal = refusal(watch::status(error), what);
        let since = *self.since.get_or_insert_with(Instant::now);
        let refusal = match refusal {
            Some(refusal) => refusal,
            // While the API server is away, nothing can be said anyway.
            None if since.elapsed() < PATIENCE => return None,
            None => unavailable(what),
        };
        if self.said.replace(refusal.reason) != Some(refusal.reason) {
            tracing::warn!("{}; retrying", refusal.message);
        }
        Some(refusal)
    }
}

/// The refusal that an HTTP status means; `None` for one that may pass.
fn refusal(status: Option<u16>, what: Resourced<'_>) -> Option<Refusal> {
    let (resource, plural, group, scope) = match what {
        Resourced::Workload(key) => (
            key.kind.resource(),
            key.kind.plural(),
            key.kind.group(),
            key.scope.to_string(),
        ),
        Resourced::Namespaces => ("namespaces", "namespaces", "", Scope::All.to_string()),
    };
    match status? {
        401 | 403 => Some(Refusal {
            reason: "Forbidden",
            message: format!(
                "{scope}: not allowed to watch {resource}: needs the RBAC verbs \"list\" and \"watch\" on \"{plural}\" in apiGroup \"{group}\""
            ),
        }),
        404 => Some(Refusal {
            reason: "NotServed",
            message: format!("{scope}: the API server has no {resource}"),
        }),
        _ => None,
    }
}

fn unavailable(what: Resourced<'_>) -> Refusal {
    let (resource, scope) = match what {
        Resourced::Workload(key) => (key.kind.resource(), key.scope.to_string()),
        Resourced::Namespaces => ("namespaces", Scope::All.to_string()),
    };
    Refusal {
        reason: "Unavailable",
        message: format!("{scope}: failed to watch {resource}"),
    }
}
