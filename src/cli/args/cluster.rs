//! Settings of discovery: the cluster's workloads, and the images file that takes their place.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use super::values::{List, Parsed, all, is_key, items, list, path, single, switch, text};
use super::{ClusterCredentialArgs, RuntimeArgs};
use crate::app::settings::Sources;
use crate::discovery::workloads::{Namespaces, Settings as ClusterSettings};
use crate::model::dns_name::is_label;
use crate::model::workload_kind::WorkloadKind;

/// The sources of candidates.
#[derive(Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct ClusterArgs {
    /// Namespaces to scan, or * for all (default: the pod's own; outside a cluster, the kubeconfig context's)
    #[arg(long, env, value_name = "NAMES", value_parser = list(namespaces))]
    namespaces: Option<Namespaces>,

    /// Kinds of workloads to scan: deployments, statefulsets, daemonsets, replicasets, jobs, cronjobs, pods; or all
    #[arg(long, env, value_name = "KINDS", default_value = "deployments", value_parser = list(workloads))]
    workloads: List<WorkloadKind>,

    /// Label selector that the workloads must match, such as app=web,tier!=test
    #[arg(long, env, value_name = "SELECTOR", value_parser = single(text))]
    selector: Option<String>,

    /// Include suspended CronJobs and Jobs
    #[arg(long, env, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", action = ArgAction::Set, value_parser = single(switch))]
    include_idle: bool,

    /// List from the API server's watch cache (resourceVersion=0): no etcd reads, but not paginated and possibly seconds old
    #[arg(long, env, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value = "false",
        default_missing_value = "true", action = ArgAction::Set, value_parser = single(switch))]
    watch_cache: bool,

    #[command(flatten)]
    taints: TaintArgs,

    /// File with one image per line, # for comments; if it exists, the cluster is not scanned
    #[arg(long, env, value_name = "PATH", default_value = "/config/images", value_parser = single(path))]
    images_file: PathBuf,

    /// True if the user named the images file, which then must exist.
    #[arg(skip)]
    pub(crate) images_file_given: bool,
}

/// Taints of starting nodes.
#[derive(Args)]
#[command(next_help_heading = "Images")]
pub(crate) struct TaintArgs {
    /// Keys of additional taints to ignore, because they are removed once the node has started
    #[arg(long, env, value_name = "KEYS", value_parser = list(startup_taints))]
    startup_taints: Option<List<String>>,
}

impl TaintArgs {
    pub(crate) fn keys(self) -> Vec<String> {
        self.startup_taints.map(|keys| keys.0).unwrap_or_default()
    }
}

impl ClusterArgs {
    pub(crate) fn sources(
        self,
        runtime: &RuntimeArgs,
        credentials: &ClusterCredentialArgs,
    ) -> Sources {
        Sources {
            images_file: self.images_file,
            images_file_given: self.images_file_given,
            cluster: ClusterSettings {
                namespaces: self.namespaces.unwrap_or(Namespaces::Default),
                workloads: kinds(self.workloads),
                selector: self.selector.filter(|s| !s.is_empty()),
                include_idle: self.include_idle,
                pull_secrets: credentials.pull_secrets,
                node: runtime.node_name.clone(),
                startup_taints: self.taints.keys(),
                node_age: false,
                sizes: false,
                platform: runtime.platform.clone(),
                watch_cache: self.watch_cache,
            },
        }
    }
}

fn namespaces(text: &str) -> Parsed<Namespaces> {
    let expected = "expected namespaces separated by commas (lower-case letters, digits and -, at most 63 characters), or *";
    let List(names) = all(text, expected, |name| {
        (name == "*" || is_label(name)).then(|| name.to_owned())
    })?;
    Ok(match names {
        names if names.is_empty() => Namespaces::Default,
        names if names.iter().any(|name| name == "*") => Namespaces::All,
        names => Namespaces::These(names),
    })
}

fn workloads(text: &str) -> Parsed<List<WorkloadKind>> {
    let expected = "expected a comma-separated list of deployments, statefulsets, daemonsets, replicasets, jobs, cronjobs and pods, or all";
    let listed = all(text, expected, |item| match item {
        "all" => Some(WorkloadKind::ALL.to_vec()),
        item => WorkloadKind::parse(item).map(|kind| vec![kind]),
    })?;
    if items(text).any(|item| item == "all") {
        return Ok(List(WorkloadKind::ALL.to_vec()));
    }
    let mut kinds = Vec::new();
    for kind in listed.0.into_iter().flatten() {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(List(kinds))
}

/// The kinds, or the default where a variable lists none.
pub(crate) fn kinds(List(kinds): List<WorkloadKind>) -> Vec<WorkloadKind> {
    match kinds.is_empty() {
        true => vec![WorkloadKind::Deployments],
        false => kinds,
    }
}

fn startup_taints(text: &str) -> Parsed<List<String>> {
    let expected = "expected comma-separated taint keys without value and effect, such as example.com/starting";
    all(text, expected, |key| is_key(key).then(|| key.to_owned()))
}
