//! Candidates from the workloads of a Kubernetes cluster.
//!
//! [`discover`] lists the workloads and maps their pod templates to candidates. A long-lived process keeps an
//! [`inventory`] of what it watches instead, which maps them in the same way. It never writes to the cluster. The requests are
//! those of `kube_api`.
//!
//! | file | does | I/O |
//! | --- | --- | --- |
//! | `lists.rs` | one list, page by page, with retries | network |
//! | `node.rs` | reads this node and checks the workloads against it | network |
//! | `name.rs` | names and other texts of bounded length | none |
//! | `node_images.rs` | image sizes that other nodes report | network |
//! | `scheduling.rs` | the scheduling fields of templates and nodes | none |
//! | `watched_node.rs` | a Node as a watch reads it | none |
//! | `requirements.rs` | the requirements of a template on a node | none |
//! | `object.rs` | the fields that are read of an object, and their meaning | none |
//! | `watched.rs` | the same fields, as `kube`'s watcher decodes them | none |
//! | `inventory.rs` | the objects that a long-lived process watches | none |
//! | `accumulate.rs` | maps objects to images, their users and their owners | none |
//! | `sightings.rs` | images of a workload's pods that its template lacks | none |
//! | `strings.rs` | interned texts | none |
//! | `pulls.rs` | the pull secrets of each image | none |
//! | `pull_secrets.rs` | reads those secrets, each by its name | network |
//! | `error.rs` | warnings and errors | none |

mod accumulate;
pub mod inventory;
mod lists;
mod name;
mod node;
mod node_images;
mod object;
mod pull_secrets;
mod pulls;
mod requirements;
mod scheduling;
mod sightings;
mod watched;
mod watched_node;

pub use error::{DiscoverError, Scope, Warning};
pub use node::{NodeError, NodeWarning, read_classes};
pub use pull_secrets::{ImageSecret, SecretError, SecretWarning};
pub(crate) use pull_secrets::{NamedSecret, named_secret};
pub use watched::Watched;
pub(crate) use watched_node::WatchedNode;

#[cfg(any(test, fuzzing))]
mod fuzz;
#[cfg(any(test, fuzzing))]
pub(crate) use fuzz::fuzz_page;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::kube_api::connect::Cluster;
use crate::kube_api::error::ListError;
use crate::kube_api::request::ListFault;
use crate::model::candidate::Candidate;
use crate::model::image_size::Size;
use crate::model::node_facts::NodeFacts;
use crate::model::platform::Platform;
use crate::model::reference::Reference;
use crate::model::workload_kind::WorkloadKind;
use accumulate::Accumulator;
use lists::Query;
use node::LocalNode;
use pull_secrets::PullSecrets;

/// The namespaces to scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    /// All namespaces, with lists that span the cluster.
    All,
    /// The pod's own namespace, or that of the kubeconfig's context.
    Default,
    /// The listed namespaces.
    These(Vec<String>),
}

/// The settings of the scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The namespaces to scan.
    pub namespaces: Namespaces,
    /// The kinds to scan.
    pub workloads: Vec<WorkloadKind>,
    /// A label selector that the workloads must match, in the syntax of `kubectl -l`.
    pub selector: Option<String>,
    /// True if suspended CronJobs and Jobs count.
    pub include_idle: bool,
    /// True to read the workloads' pull secrets. Otherwise no request for secrets is made.
    pub pull_secrets: bool,
    /// The node to find images for: it is read, and workloads that cannot run on it are marked. `None` to read no node.
    pub node: Option<String>,
    /// Keys of additional taints to ignore, because they are removed once the node has started.
    pub startup_taints: Vec<String>,
    /// True to read the age of the node even with an images file.
    pub node_age: bool,
    /// True to read image sizes from the cluster's Nodes.
    pub sizes: bool,
    /// The platform that the images are for; `None` for the node's, otherwise this machine's.
    pub platform: Option<Platform>,
    /// True to list from the API server's watch cache (`resourceVersion=0`): no etcd reads, but not paginated and possibly
    /// seconds old.
    pub watch_cache: bool,
}

/// The result of discovery.
#[derive(Debug)]
pub struct Discovery {
    /// The images and the workloads that use them, in the order in which they were first seen.
    pub candidates: Vec<Candidate>,
    /// The pull secrets of the images, each for the images of the workloads that name it; empty unless requested. The secrets of
    /// one image are in the kubelet's order.
    pub pull_secrets: Vec<ImageSecret>,
    /// Image sizes by normalised reference, as far as Nodes report them; empty unless requested.
    pub sizes: HashMap<String, Size>,
    /// The problems of parts of discovery, such as an interrupted list. Logged already.
    pub warnings: Vec<Warning>,
}

/// The node to find images for, as far as it could be read.
#[derive(Default)]
pub struct ThisNode {
    here: Option<LocalNode>,
    unread: Option<NodeWarning>,
}

impl ThisNode {
    /// Reads the node that the settings name, if any. A failure is a warning.
    ///
    /// # Errors
    /// If the credentials are refused or the API server does not answer.
    pub async fn read(cluster: &Cluster, settings: &Settings) -> Result<Self, DiscoverError> {
        let Some(name) = &settings.node else {
            return Ok(Self::default());
        };
        let error = match LocalNode::read(cluster, name, &settings.startup_taints).await {
            Ok(here) => {
                return Ok(Self {
                    here: Some(here),
                    unread: None,
                });
            }
            Err(error) => error,
        };
        let server = cluster.server.clone();
        match error {
            NodeError::Unauthorized => Err(DiscoverError::Unauthorized {
                server,
                message: String::new(),
            }),
            NodeError::Failed(source) if source.is_unreachable() => {
                Err(DiscoverError::Unreachable { server, source })
            }
            error => {
                let name = name.clone();
                let warning = NodeWarning::Node { name, error };
                tracing::warn!("{warning}");
                Ok(Self {
                    here: None,
                    unread: Some(warning),
                })
            }
        }
    }

    /// The facts about the node.
    pub fn facts(&self) -> Option<&NodeFacts> {
        self.here.as_ref().map(|here| &here.facts)
    }
}

/// Lists the workloads and returns the images that they use.
///
/// With a node, each use says whether its pods could run there. A partial failure is a warning. Dropping the future ends all
/// requests.
///
/// # Errors
/// If the credentials or the selector are refused, the API server does not answer, or every list failed.
pub async fn discover(
    cluster: &Cluster,
    settings: &Settings,
    node: ThisNode,
) -> Result<Discovery, DiscoverError> {
    let platform = settings.platform.clone();
    let platform = platform.or_else(|| node.facts()?.platform.clone());
    let mut scan = Scan::new(cluster, settings, node.here);
    for scope in scopes(cluster, settings) {
        scan.list_all(&scope, &settings.workloads).await?;
    }
    let (pulls, gone) = (scan.found.take_pulls(), scan.gone);
    let judged = scan.here.take().map(|here| here.warnings);
    let mut discovery = scan.finish()?;
    let of_node = node.unread.into_iter().chain(judged.into_iter().flatten());
    discovery.warnings.extend(of_node.map(Warning::from));
    if let Some(pulls) = pulls {
        let read = pull_secrets::read(cluster, pulls, gone).await;
        discovery.add_pull_secrets(read);
    }
    if settings.sizes && !gone {
        let platform = platform.unwrap_or_else(Platform::current);
        discovery.sizes = node_images::sizes(cluster, &platform, &discovery.images()).await;
    }
    Ok(discovery)
}

impl Discovery {
    fn add_pull_secrets(&mut self, read: PullSecrets) {
        let candidates = &self.candidates;
        let secrets = read.of_images.into_iter();
        self.pull_secrets
            .extend(secrets.map(|(image, config)| ImageSecret {
                image: Arc::clone(&candidates[image as usize].image),
                config,
            }));
        self.warnings
            .extend(read.warnings.into_iter().map(Warning::from));
    }

    /// The normalised references of the images found.
    fn images(&self) -> HashSet<String> {
        let images = self.candidates.iter();
        let normalized = images.filter_map(|candidate| {
            let reference = Reference::of(&candidate.image).ok()?;
            Some(reference.normalized().to_owned())
        });
        normalized.collect()
    }
}

/// The namespaces to scan, each once, in the order given.
fn scopes(cluster: &Cluster, settings: &Settings) -> Vec<Scope> {
    let mut scopes = Vec::new();
    let names: &[String] = match &settings.namespaces {
        Namespaces::All => return vec![Scope::All],
        Namespaces::Default => std::slice::from_ref(&cluster.default_namespace),
        Namespaces::These(names) => names,
    };
    for name in names {
        let scope = Scope::Namespace(name.clone());
        if !scopes.contains(&scope) {
            scopes.push(scope);
        }
    }
    scopes
}

struct Scan<'a> {
    cluster: &'a Cluster,
    here: Option<LocalNode>,
    selector: Option<&'a str>,
    cached: bool,
    found: Accumulator,
    warnings: Vec<Warning>,
    /// Number of lists that were read to their end.
    succeeded: usize,
    /// True if the API server stopped answering.
    gone: bool,
    /// The version of CronJobs that this API server supports, as an index; determined once.
    cronjobs: usize,
}

impl<'a> Scan<'a> {
    fn new(cluster: &'a Cluster, settings: &'a Settings, here: Option<LocalNode>) -> Self {
        let kinds: HashSet<_> = settings.workloads.iter().collect();
        let found = match settings.pull_secrets {
            true => Accumulator::with_pull_secrets(),
            false => Accumulator::default(),
        };
        Self {
            cluster,
            here,
            selector: settings.selector.as_deref(),
            cached: settings.watch_cache,
            found: found
                .include_idle(settings.include_idle)
                .single_kind(kinds.len() == 1),
            warnings: Vec::new(),
            succeeded: 0,
            gone: false,
            cronjobs: 0,
        }
    }

    /// Reads the lists of these kinds.
    async fn list_all(
        &mut self,
        scope: &Scope,
        kinds: &[WorkloadKind],
    ) -> Result<(), DiscoverError> {
        // Owners are read before the objects that they own.
        let kinds = BTreeSet::from_iter(kinds);
        let mut listed = Some(0);
        for &kind in &kinds {
            let objects = self.list(scope, *kind).await?;
            listed = listed.and_then(|sum| Some(sum + objects?));
        }
        if listed == Some(0) {
            self.explain_emptiness(scope, kinds.len()).await;
        }
        Ok(())
    }

    /// Reads one list; `None` if it failed, which is a warning.
    async fn list(
        &mut self,
        scope: &Scope,
        kind: WorkloadKind,
    ) -> Result<Option<usize>, DiscoverError> {
        if self.gone {
            self.fail(scope, kind, ListError::NotAsked);
            return Ok(None);
        }
        let start = self.found.checkpoint();
        let outcome = self.read(scope, kind).await;
        for workload in self.found.oversized_since(start).to_vec() {
            self.warn(Warning::ImageTooLong(workload));
        }
        let fault = match outcome {
            Ok(objects) => {
                self.succeeded += 1;
                tracing::debug!(%scope, kind = kind.resource(), objects, "listed");
                return Ok(Some(objects));
            }
            Err(fault) => fault,
        };
        let scope_named = scope.clone();
        match fault {
            ListFault::Unauthorized(message) => {
                let server = self.cluster.server.clone();
                return Err(DiscoverError::Unauthorized { server, message });
            }
            ListFault::Forbidden => self.warn(Warning::Forbidden {
                scope: scope_named,
                kind,
            }),
            ListFault::NotFound => self.warn(Warning::NoSuchKind {
                scope: scope_named,
                kind,
            }),
            // A selector that was accepted for one page is valid.
            ListFault::Failed(ListError::Answer { code: 400, message })
                if self.selector.is_some() && self.succeeded == 0 && self.found.is_empty() =>
            {
                let selector = self.selector.unwrap_or_default().to_owned();
                return Err(DiscoverError::Selector { selector, message });
            }
            ListFault::Failed(error) => {
                let nothing = self.succeeded == 0 && self.warnings.is_empty();
                if error.is_unreachable() && nothing {
                    let server = self.cluster.server.clone();
                    let source = error;
                    return Err(DiscoverError::Unreachable { server, source });
                }
                self.gone = error.is_unreachable();
                self.fail(scope, kind, error);
            }
        }
        Ok(None)
    }

    /// Reads one list in the first API version that the API server supports.
    async fn read(&mut self, scope: &Scope, kind: WorkloadKind) -> Result<usize, ListFault> {
        let versions = kind.versions();
        let is_cronjobs = kind == WorkloadKind::CronJobs;
        let mut at = if is_cronjobs { self.cronjobs } else { 0 };
        loop {
            let query = Query {
                kind,
                version: versions[at],
                scope,
                selector: self.selector,
                cached: self.cached,
            };
            match lists::read(self.cluster, query, &mut self.here, &mut self.found).await {
                Err(ListFault::NotFound) if at + 1 < versions.len() => at += 1,
                outcome => {
                    if is_cronjobs && outcome.is_ok() {
                        self.cronjobs = at;
                    }
                    return outcome;
                }
            }
        }
    }

    /// Logs why the list is empty. The API server also returns an empty list for a namespace that does not exist.
    async fn explain_emptiness(&mut self, scope: &Scope, lists: usize) {
        if let Some(namespace) = scope.namespace()
            && lists::namespace_exists(self.cluster, namespace).await == Some(false)
        {
            self.succeeded -= lists;
            self.warn(Warning::NoNamespace(namespace.to_owned()));
        } else {
            tracing::info!("{scope}: no workloads found");
        }
    }

    fn fail(&mut self, scope: &Scope, kind: WorkloadKind, error: ListError) {
        self.warn(Warning::List {
            scope: scope.clone(),
            kind,
            error,
        });
    }

    fn warn(&mut self, warning: Warning) {
        tracing::warn!("{warning}");
        self.warnings.push(warning);
    }

    fn finish(self) -> Result<Discovery, DiscoverError> {
        let Self {
            found,
            warnings,
            succeeded,
            ..
        } = self;
        // If no list was read to its end, some pages are not a result: a run that pulled only their images and succeeded would
        // hide the failure of discovery.
        if succeeded == 0 && !warnings.is_empty() {
            return Err(DiscoverError::Nothing(warnings));
        }
        Ok(Discovery {
            candidates: found.into_candidates(),
            pull_secrets: Vec::new(),
            sizes: HashMap::new(),
            warnings,
        })
    }
}

#[cfg(test)]
impl Settings {
    /// Settings for all workloads of these kinds in all namespaces.
    fn all(kinds: &[WorkloadKind]) -> Self {
        Self {
            namespaces: Namespaces::All,
            workloads: kinds.to_vec(),
            selector: None,
            include_idle: false,
            pull_secrets: false,
            node: None,
            startup_taints: Vec::new(),
            node_age: false,
            sizes: false,
            platform: None,
            watch_cache: false,
        }
    }
}

/// Reads the node, then the workloads.
#[cfg(test)]
async fn read_and_discover(
    cluster: &Cluster,
    settings: &Settings,
) -> Result<Discovery, DiscoverError> {
    let node = ThisNode::read(cluster, settings).await?;
    discover(cluster, settings, node).await
}

#[cfg(test)]
mod decode_tests;
mod error;
mod strings;
#[cfg(test)]
mod wire_tests;
