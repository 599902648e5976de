//! The watches that make up what the controller observes: those that always run, and those of workloads and namespaces, which run
//! only while an ImagePrefetch needs them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::gate::GateNode;
use super::guard;
use super::observe::{Refusal, Seen};
use super::resolve::{Demand, MAX_NAMESPACES, Namespaces, Source};
use crate::app::continuous::watch;
use crate::discovery::workloads::inventory::WatchKey;
use crate::discovery::workloads::{Scope, Watched};
use crate::model::workload_kind::WorkloadKind;
use crate::retry::backoff;

/// Number of events that wait for the main loop; a watch waits when there are more.
const EVENTS: usize = 1024;
/// Time for which a watch of workloads may fail for a passing reason before its ImagePrefetches say so.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time without an error after which failures are forgotten: longer than the longest pause between two attempts.
const FORGOTTEN: Duration = Duration::from_secs(90);
/// The first and the longest pause after a refusal. It grows only with complete lists, which cost the API server: a list that is
/// refused costs it little, and is to end soon after the right is granted.
const RENEWAL: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// Time after which Nodes are tried again that cannot be watched, and that no gate needs.
const IDLE: Duration = Duration::from_secs(600);

/// The reason for a failure that may pass.
const UNAVAILABLE: &str = "Unavailable";

/// An event of a watch, or the reason why there is none.
type Outcome<K> = Result<Box<Event<K>>, Refusal>;

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
    /// True while an ImagePrefetch has a node gate.
    gated: tokio::sync::watch::Sender<bool>,
    namespaces: Option<AbortOnDropHandle<()>>,
    workloads: BTreeMap<WatchKey, (u64, AbortOnDropHandle<()>)>,
    started: u64,
}

impl Watches {
    /// Starts the watches that always run.
    pub(super) fn start(client: &Client) -> (Self, mpsc::Receiver<Seen>) {
        let (sender, receiver) = mpsc::channel(EVENTS);
        let (gated, is_gated) = tokio::sync::watch::channel(false);
        let nodes = watch_nodes(client.clone(), is_gated, sender.clone());
        let always = vec![
            AbortOnDropHandle::new(tokio::spawn(nodes)),
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
            gated,
            namespaces: None,
            workloads: BTreeMap::new(),
            started: 0,
        };
        (watches, receiver)
    }

    pub(super) fn is_current(&self, key: &WatchKey, start: u64) -> bool {
        self.workloads
            .get(key)
            .is_some_and(|(current, _)| *current == start)
    }

    /// Says whether an ImagePrefetch has a node gate: without one, a missing right to watch Nodes is no fault.
    pub(super) fn set_gated(&self, is_gated: bool) {
        self.gated
            .send_if_modified(|known| std::mem::replace(known, is_gated) != is_gated);
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
    let mut trouble = Trouble::default();
    let wrap = |outcome| Seen::Workload(key.clone(), start, outcome);
    loop {
        let resource = Watched::resource(key.kind, versions[at]);
        let api: Api<Watched> = match &key.scope {
            Scope::All => Api::all_with(client.clone(), &resource),
            Scope::Namespace(name) => Api::namespaced_with(client.clone(), name, &resource),
        };
        let events = watcher(api, watch::config_for_large());
        let resourced = Resourced::Workload(&key);
        let Some((status, refusal)) = follow(events, resourced, &mut trouble, &sender, &wrap).await
        else {
            return;
        };
        if status == Some(404) {
            // An older API server has the kind in an older version, and one that was upgraded only in a newer one.
            at = (at + 1) % versions.len();
            if trouble.missing < versions.len() {
                continue;
            }
        }
        if !trouble.refuse(refusal, &sender, &wrap).await {
            return;
        }
    }
}

async fn watch_namespaces(client: Client, sender: mpsc::Sender<Seen>) {
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
    let what = Resourced::Namespaces;
    let mut trouble = Trouble::default();
    loop {
        let events = watcher(api.clone(), watch::config());
        let end = follow(events, what, &mut trouble, &sender, &Seen::Namespace).await;
        let Some((_, refusal)) = end else {
            return;
        };
        if !trouble.refuse(refusal, &sender, &Seen::Namespace).await {
            return;
        }
    }
}

/// Watches Nodes wherever that is allowed, so that a taint is removed also if no ImagePrefetch has a gate any more.
async fn watch_nodes(
    client: Client,
    mut is_gated: tokio::sync::watch::Receiver<bool>,
    sender: mpsc::Sender<Seen>,
) {
    let api: Api<GateNode> = Api::all_with(client, &guard::resource());
    let what = Resourced::Nodes;
    let mut trouble = Trouble::default();
    loop {
        let events = watcher(api.clone(), watch::config_for_large());
        let end = follow(events, what, &mut trouble, &sender, &Seen::Machine).await;
        let Some((status, refusal)) = end else {
            return;
        };
        if is_given_up(*is_gated.borrow(), status) {
            tokio::select! {
                _ = is_gated.changed() => {}
                () = tokio::time::sleep(IDLE.mul_f64(0.8 + 0.4 * fastrand::f64())) => {}
            }
        } else if !trouble.refuse(refusal, &sender, &Seen::Machine).await {
            return;
        }
    }
}

/// Sends the events of a watch until it is refused: the HTTP status, and the refusal. `None` if nothing receives them any more.
async fn follow<K>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    what: Resourced<'_>,
    trouble: &mut Trouble,
    sender: &mpsc::Sender<Seen>,
    wrap: &impl Fn(Outcome<K>) -> Seen,
) -> Option<(Option<u16>, Refusal)> {
    let mut events = std::pin::pin!(events.default_backoff());
    loop {
        match events.next().await? {
            Ok(event) => {
                trouble.see(&event);
                sender.send(wrap(Ok(Box::new(event)))).await.ok()?;
            }
            Err(error) => {
                let status = watch::status(&error);
                if let Some(refusal) = trouble.tell(status, what) {
                    return Some((status, refusal));
                }
            }
        }
    }
}

/// True if Nodes are left alone for long: they cannot be watched, and no gate needs them. Any other error passes.
fn is_given_up(is_gated: bool, status: Option<u16>) -> bool {
    !is_gated && refusal(status, Resourced::Nodes).is_some()
}

/// The resource of a watch.
#[derive(Clone, Copy)]
enum Resourced<'a> {
    Workload(&'a WatchKey),
    Namespaces,
    Nodes,
}

/// The failures of the watches of a resource, of which each begins with a list.
#[derive(Default)]
struct Trouble {
    /// The first failure since a list was complete or an object changed.
    since: Option<Instant>,
    /// The time from which silence counts: a watch that works may have nothing to say.
    silent: Option<Instant>,
    /// The reason that was logged.
    said: Option<&'static str>,
    /// Number of complete lists after which the watch was refused each time.
    lists: u32,
    /// Number of answers that the API server does not have the version of the resource.
    missing: usize,
}

impl Trouble {
    /// Forgets the failures once the watch works. A complete list shows only that the list does: the right to watch may be missing.
    fn see<K>(&mut self, event: &Event<K>) {
        match event {
            Event::InitDone => {
                self.since = None;
                self.silent = Some(Instant::now());
                self.lists += 1;
            }
            event if watch::works(event) => *self = Self::default(),
            _ => {}
        }
    }

    /// The refusal that an error means; `None` for one that may pass.
    fn tell(&mut self, status: Option<u16>, what: Resourced<'_>) -> Option<Refusal> {
        let now = Instant::now();
        if self.silent.is_some_and(|from| now - from > FORGOTTEN) {
            // A watch that resumes tells nothing until an object changes.
            *self = Self::default();
        }
        self.silent = Some(now);
        self.missing += usize::from(status == Some(404));
        let since = *self.since.get_or_insert(now);
        match refusal(status, what) {
            // While the API server is away, nothing can be said anyway.
            None if now - since < PATIENCE => None,
            None => Some(unavailable(what)),
            refusal => refusal,
        }
    }

    /// Tells a refusal, and waits until the next watch may begin. Only a new watch takes the refusal back for certain, by its list: one
    /// that resumes may be silent for days. Returns false if nothing receives the refusal any more.
    async fn refuse<K>(
        &mut self,
        refusal: Refusal,
        sender: &mpsc::Sender<Seen>,
        wrap: &impl Fn(Outcome<K>) -> Seen,
    ) -> bool {
        // A connection that breaks is not for ever.
        let lists = if refusal.reason == UNAVAILABLE {
            0
        } else {
            self.lists
        };
        // Once, and not again for each attempt.
        if self.said.replace(refusal.reason) != Some(refusal.reason) {
            tracing::warn!("{}; retrying", refusal.message);
        }
        if sender.send(wrap(Err(refusal))).await.is_err() {
            return false;
        }
        let end = Instant::now() + backoff::pause(RENEWAL, lists);
        self.silent = Some(end);
        tokio::time::sleep_until(end).await;
        true
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
        Resourced::Nodes => ("nodes", "nodes", "", "nodeGate".to_owned()),
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
        Resourced::Nodes => ("nodes", "nodeGate".to_owned()),
    };
    Refusal {
        reason: UNAVAILABLE,
        message: format!("{scope}: failed to watch {resource}"),
    }
}

#[cfg(test)]
mod tests;
