//! `harpoon status`: what the objects of continuous mode tell about prefetches and nodes. It only reads.
//!
//! `read.rs` reads lists page by page, `state.rs` keeps the few fields that are shown, `view.rs` sums them up.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, stream};
use kube::core::ClusterResourceScope;
use kube::runtime::watcher::{Config, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use crate::api::v1alpha1::{ImagePrefetch, NodePrefetch, PlannedImage};
use crate::app::continuous::watch;
use crate::kube_api::connect::{self, Cluster, ClusterChoice};
use crate::report::status::View;

mod read;
mod state;
mod view;

use read::ReadError;
use state::State;

/// The time between two looks at what changed.
const REDRAW: Duration = Duration::from_millis(250);
/// The time after which ages are shown anew though nothing has changed.
const AGES: Duration = Duration::from_secs(1);
/// The time for which a watch may be refused.
const REFUSED: Duration = Duration::from_secs(20);
/// The time after which a refusal is over, if no other followed: longer than the longest pause between two attempts.
const FORGOTTEN: Duration = Duration::from_secs(90);

/// The objects that are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// All ImagePrefetches and nodes.
    All,
    /// The ImagePrefetch of this name.
    Prefetch(String),
    /// The node of this name.
    Node(String),
}

/// The outcome of a watch.
#[derive(Debug)]
pub(crate) struct Watched {
    /// The last view.
    pub(crate) view: View,
    /// False if the time limit came first.
    pub(crate) is_complete: bool,
}

/// Reads the objects once.
///
/// # Errors
/// If no cluster is configured, a list cannot be read, or the subject does not exist.
pub(crate) async fn once(choice: ClusterChoice, subject: &Subject) -> Result<View> {
    let cluster = connect(choice).await?;
    let mut state = State::new(subject.clone());
    read::all(&cluster, &mut state).await?;
    Ok(view::of(&state)?)
}

/// Follows the objects until everything is complete or the time limit passes. `see` gets the first view and each further one that
/// differs.
///
/// # Errors
/// Those of [`once`].
pub(crate) async fn follow(
    choice: ClusterChoice,
    subject: &Subject,
    limit: Option<Duration>,
    mut see: impl FnMut(&View),
) -> Result<Watched> {
    let end = limit.map(|limit| Instant::now() + limit);
    let mut state = State::new(subject.clone());
    let cluster = tokio::select! {
        () = passed(end) => bail!("the API server did not answer in time (--timeout)"),
        cluster = Box::pin(begin(choice, &mut state)) => cluster?,
    };
    let mut view = view::of(&state)?;
    see(&view);
    let mut changes = std::pin::pin!(changes(&cluster, subject));
    let mut ticks = interval(REDRAW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut relists = Relists::default();
    let mut refusals = Refusals::default();
    let (mut is_changed, mut looked) = (false, Instant::now());
    while !view.is_complete() {
        tokio::select! {
            () = passed(end) => return Ok(Watched { view, is_complete: false }),
            Some((resource, outcome)) = changes.next() => match outcome {
                Ok(change) => {
                    if change.works() {
                        refusals.clear(resource);
                    }
                    is_changed = true;
                    relists.apply(&mut state, change);
                }
                Err(code) => refusals.note(&cluster, resource, code)?,
            },
            _ = ticks.tick(), if !relists.is_pending() => {
                if !std::mem::take(&mut is_changed) && looked.elapsed() < AGES {
                    continue;
                }
                looked = Instant::now();
                state.forget_failures();
                let now = view::of(&state)?;
                if now != view {
                    view = now;
                    see(&view);
                }
            }
        }
    }
    Ok(Watched {
        view,
        is_complete: true,
    })
}

/// Connects, and reads the objects.
async fn begin(choice: ClusterChoice, state: &mut State) -> Result<Cluster> {
    let cluster = connect(choice).await?;
    read::all(&cluster, state).await?;
    Ok(cluster)
}

async fn connect(choice: ClusterChoice) -> Result<Cluster> {
    let cluster = connect::connect_to(choice).await;
    cluster.context("failed to find the cluster")
}

async fn passed(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

/// The watches that are refused: the times of the first and of the last refusal.
#[derive(Default)]
struct Refusals(BTreeMap<&'static str, (Instant, Instant)>);

impl Refusals {
    fn clear(&mut self, resource: &str) {
        self.0.remove(resource);
    }

    /// Returns the refusal as an error once it has lasted. An API server that has just started refuses for a moment what it does
    /// not know yet.
    fn note(
        &mut self,
        cluster: &Cluster,
        resource: &'static str,
        code: u16,
    ) -> Result<(), ReadError> {
        let Some(refusal) = ReadError::of_watch(cluster, resource, code) else {
            return Ok(());
        };
        let now = Instant::now();
        let (since, last) = self.0.entry(resource).or_insert((now, now));
        // A watch that was taken up again tells nothing until an object changes.
        if now.duration_since(*last) > FORGOTTEN {
            *since = now;
        }
        *last = now;
        match now.duration_since(*since) < REFUSED {
            true => Ok(()),
            false => Err(refusal),
        }
    }
}

/// A change of an object.
enum Change {
    Prefetch(Box<Event<ImagePrefetch>>),
    Planned(Box<Event<PlannedImage>>),
    Node(Box<Event<NodePrefetch>>),
}

impl Change {
    /// Returns whether it shows that the watch works.
    fn works(&self) -> bool {
        match self {
            Self::Prefetch(event) => watch::works(event),
            Self::Planned(event) => watch::works(event),
            Self::Node(event) => watch::works(event),
        }
    }
}

fn changes(
    cluster: &Cluster,
    subject: &Subject,
) -> impl stream::Stream<Item = (&'static str, Result<Change, u16>)> + Send + use<> {
    let client = || cluster.client().clone();
    let named = |name: &str| watch::config().fields(&format!("metadata.name={name}"));
    let (of_prefetches, of_nodes) = match subject {
        Subject::All => (watch::config(), watch::config()),
        Subject::Prefetch(name) => (named(name), watch::config()),
        Subject::Node(name) => (watch::config(), named(name)),
    };
    let prefetches = told(client(), of_prefetches, read::PREFETCHES, Change::Prefetch);
    let planned = told(client(), watch::config(), read::PLANNED, Change::Planned);
    let nodes = told(client(), of_nodes, read::NODES, Change::Node);
    stream::select(stream::select(prefetches, planned), nodes)
}

/// The changes of one resource, or the HTTP status of an answer that is an error.
fn told<K>(
    client: Client,
    config: Config,
    resource: &'static str,
    change: fn(Box<Event<K>>) -> Change,
) -> impl stream::Stream<Item = (&'static str, Result<Change, u16>)> + Send
where
    K: Resource<Scope = ClusterResourceScope> + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Clone + Default + Debug + Send + 'static,
{
    let outcomes = watch::outcomes(Api::all(client), config, resource);
    outcomes.map(move |outcome| (resource, outcome.map(|event| change(Box::new(event)))))
}

/// The lists that are being read again, with the names that they have so far.
#[derive(Default)]
struct Relists {
    prefetches: Option<BTreeSet<String>>,
    planned: Option<BTreeSet<String>>,
    nodes: Option<BTreeSet<String>>,
}

impl Relists {
    fn is_pending(&self) -> bool {
        self.prefetches.is_some() || self.planned.is_some() || self.nodes.is_some()
    }

    fn apply(&mut self, state: &mut State, change: Change) {
        match change {
            Change::Prefetch(event) => {
                let list = &mut self.prefetches;
                apply(
                    *event,
                    list,
                    state,
                    State::prefetch,
                    State::retain_prefetches,
                );
            }
            Change::Planned(event) => {
                let list = &mut self.planned;
                apply(*event, list, state, State::planned, State::retain_planned);
            }
            Change::Node(event) => {
                let list = &mut self.nodes;
                apply(*event, list, state, State::node, State::retain_nodes);
            }
        }
    }
}

/// Keeps the objects of some names.
type Retain = fn(&mut State, &dyn Fn(&str) -> bool);

fn apply<K: ResourceExt>(
    event: Event<K>,
    list: &mut Option<BTreeSet<String>>,
    state: &mut State,
    put: fn(&mut State, K),
    retain: Retain,
) {
    match event {
        Event::Init => *list = Some(BTreeSet::new()),
        Event::InitApply(object) => {
            if let Some(names) = list {
                names.insert(object.name_any());
            }
            put(state, object);
        }
        Event::InitDone => {
            if let Some(names) = list.take() {
                retain(state, &|name| names.contains(name));
            }
        }
        Event::Apply(object) => put(state, object),
        Event::Delete(object) => {
            let gone = object.name_any();
            retain(state, &|name| name != gone);
        }
    }
}

#[cfg(test)]
mod tests;
