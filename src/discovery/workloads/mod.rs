//! Candidates from the workloads of a Kubernetes cluster.
//!
//! [`discover`] lists the workloads and maps their pod templates to candidates. Nothing is ever written to the cluster, and
//! nothing is watched. The requests are those of `kube_api`.
//!
//! | file | does | I/O |
//! | --- | --- | --- |
//! | `lists.rs` | one list, page by page, with retries | network |
//! | `node.rs` | reads this node and judges the workloads by it | network |
//! | `name.rs` | names and other texts of bounded length | none |
//! | `node_images.rs` | what other nodes say that images weigh | network |
//! | `scheduling.rs` | what templates and nodes say of who runs where | none |
//! | `requirements.rs` | what a template requires of a node | none |
//! | `object.rs` | the fields that are read of an object, and what they mean | none |
//! | `accumulate.rs` | objects to images and their users; what owns what | none |
//! | `sightings.rs` | images that the pods of a workload have and its template lacks | none |
//! | `strings.rs` | texts that are kept once | none |
//! | `pulls.rs` | which workload's secrets are for which images | none |
//! | `pull_secrets.rs` | reads those secrets, each by its name | network |
//! | `error.rs` | what could not be found out | none |

mod accumulate;
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

pub use error::{DiscoverError, Scope, Warning};
pub use node::{NodeError, NodeWarning};
pub use pull_secrets::{ImageSecret, SecretError, SecretWarning};

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

/// Which namespaces to scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespaces {
    /// Every one, with lists that span the cluster.
    All,
    /// The pod's own, or that of the kubeconfig's context.
    Default,
    /// These.
    These(Vec<String>),
}

/// What to look for in the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub namespaces: Namespaces,
    /// What kinds.
    pub workloads: Vec<WorkloadKind>,
    /// A label selector that the workloads must match, as `kubectl -l` takes it.
    pub selector: Option<String>,
    /// True if suspended CronJobs and Jobs count.
    pub include_idle: bool,
    /// Whether to read the workloads' pull secrets. Without it no request is made for any.
    pub pull_secrets: bool,
    /// The node whose images these are to be: it is read, and who cannot run on it is noted. Without it nothing is asked.
    pub node: Option<String>,
    /// Keys of further taints that are gone once that node has started; they keep no image from it.
    pub startup_taints: Vec<String>,
    /// Whether the age of the node is wanted even where an images file makes the rest of it needless.
    pub node_age: bool,
    /// Whether to ask the cluster's Nodes what the images weigh.
    pub sizes: bool,
    /// The platform that the images are for; `None` for the node's, else this machine's.
    pub platform: Option<Platform>,
    /// Whether lists are read from the API server's watch cache (`resourceVersion=0`): without a read of etcd, but whole, and
    /// maybe some seconds old.
    pub watch_cache: bool,
}

/// What was found.
#[derive(Debug)]
pub struct Discovery {
    /// The images and who uses them, in the order in which they were first seen.
    pub candidates: Vec<Candidate>,
    /// The secrets that the images may be pulled with, each for the images of the workloads that name it; empty unless
    /// they were asked for. An image's own are in the order in which the kubelet tries them.
    pub pull_secrets: Vec<ImageSecret>,
    /// What the images weigh, by normalised reference, as far as Nodes say; empty unless it was asked for.
    pub sizes: HashMap<String, Size>,
    /// What could not be found out, such as the rest of a list that broke off. Logged already.
    pub warnings: Vec<Warning>,
}

/// The node whose images these are to be, as far as it could be read.
#[derive(Default)]
pub struct ThisNode {
    here: Option<LocalNode>,
    unread: Option<NodeWarning>,
}

impl ThisNode {
    /// Reads the node that the settings name, if they do. That it cannot be read is a warning.
    ///
    /// # Errors
    /// When the credentials are refused or the API server does not answer.
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

    /// What is known of it.
    pub fn facts(&self) -> Option<&NodeFacts> {
        self.here.as_ref().map(|here| &here.facts)
    }
}

/// Lists the workloads and gives back the images that they use.
///
/// With a node, each use says whether its pods could run there. What fails in part is a warning. Dropping the future ends all requests.
///
/// # Errors
/// When the credentials or the selector are refused, the API server does not answer, or every list failed.
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

    /// The normalised references of the images that were found.
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
    /// How many lists were read to their end.
    succeeded: usize,
    /// The API server stopped answering.
    gone: bool,
    /// Which version of CronJobs this API server has, as an index; found out once.
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
        // Owners are read before what they own.
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

    /// Reads one list; `None` when it failed, which is a warning.
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
            // A selector that one page was read with is good.
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

    /// Reads one list in the first API version that the API server has.
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

    /// Says why nothing is there. The API server gives an empty list for a namespace that does not exist, too.
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
        // Where no list was read to its end, some pages are no answer: a run that pulled just their images and ended
        // well would hide that the cluster did not tell.
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
    /// All workloads of these kinds in all namespaces, and nothing besides.
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

/// Reads the node, then all the rest.
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
