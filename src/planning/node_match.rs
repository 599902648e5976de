//! Whether a workload's pods could run on a node: the scheduler's rules for node names, labels and taints.
//!
//! Pure: plain values in, the first rule that fails out; no I/O, no Kubernetes types. What the scheduler weighs at the
//! moment (free resources, other pods, volumes, preferences) is left out, because it changes and an image stays.
//!
//! The rules are those of `k8s.io/component-helpers/scheduling/corev1` (node affinity) and of the toleration's
//! `ToleratesTaint`. What the scheduler cannot parse matches nothing there, and here. An operator that is not known
//! here counts as fitting: an image too many costs disk, a missing one costs a pod its start.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::text::one_line;

/// The node that the pods may come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its labels; operating system and architecture are among them (`kubernetes.io/os`, `kubernetes.io/arch`).
    pub labels: BTreeMap<String, String>,
    /// Its taints.
    pub taints: Vec<Taint>,
    /// Its operating system, such as `linux`; empty if unknown.
    pub os: String,
    /// The names of its allocatable resources.
    pub resources: BTreeSet<String>,
    /// The time since it joined the cluster; `None` if unknown.
    pub age: Option<Duration>,
    /// Keys of the user's own start-up taints (`--startup-taints`), beside those that are known.
    pub startup_taints: Vec<String>,
}

/// A node's taint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taint {
    /// What it is called.
    pub key: String,
    /// Often empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// What a pod template says about where its pods can run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requirements {
    /// The node that the pods go to without being scheduled; empty where none is named.
    pub node_name: String,
    /// Labels that the node must have. A key may be here twice, from the template and from its RuntimeClass.
    pub node_selector: Vec<(String, String)>,
    /// The required node affinity, where there is one: the node must match one of the terms.
    pub affinity: Option<Vec<Term>>,
    /// Which taints the pods bear.
    pub tolerations: Vec<Toleration>,
    /// The operating system that the pods are for (`spec.os`); empty for any.
    pub os: String,
    /// The extended resources, such as `nvidia.com/gpu`, without which no container of theirs starts.
    pub extended_resources: BTreeSet<String>,
}

/// A term of a required node affinity: everything in it must match. An empty one matches no node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Term {
    /// On labels (`matchExpressions`).
    pub labels: Vec<Expression>,
    /// On fields of the Node (`matchFields`), of which `metadata.name` is the only one.
    pub fields: Vec<Expression>,
}

/// A requirement on a label or a field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expression {
    /// The label or field.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    pub operator: String,
    /// Several for `In` and `NotIn`, one whole number for `Gt` and `Lt`, else none.
    pub values: Vec<String>,
}

/// A taint, or a set of them, that pods bear.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Toleration {
    /// The taint's key; empty for every key.
    pub key: String,
    /// `Equal`, which an empty one stands for, or `Exists`. Any other, such as the numeric `Gt` and `Lt` (KEP-5471),
    /// tolerates every value.
    pub operator: String,
    /// The taint's value, for `Equal`.
    pub value: String,
    /// The taint's effect; empty for every effect.
    pub effect: String,
}

/// Taints that say how the node is at the moment, not what it is for; they pass, and keep no image from it.
///
/// harpoon runs at the very time at which a new node has them: it is not ready, its network is not there, the cloud has
/// not initialised it. The pods that wait for that to pass are those whose images it is to fetch. A cordoned node is
/// uncordoned one day, and its daemons never cared. Among these are all that a DaemonSet's pods tolerate by themselves
/// (`not-ready`, `unreachable`, the pressures, `unschedulable`, `network-unavailable`).
const PASSING_TAINTS: &[&str] = &[
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/network-unavailable",
    "node.kubernetes.io/out-of-service",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "node.cloudprovider.kubernetes.io/shutdown",
    // Karpenter, until the node has registered.
    "karpenter.sh/unregistered",
    // Cluster API, until the machine's labels are on the node.
    "node.cluster.x-k8s.io/uninitialized",
    // Istio, until its CNI plugin runs on the node.
    "cni.istio.io/not-ready",
    // Gardener, until the pods run that it calls critical.
    "node.gardener.cloud/critical-components-not-ready",
];
/// Prefixes of taint keys that are kept for nodes that are starting.
const STARTUP_TAINTS: &[&str] = &[
    // Cluster Autoscaler's documentation.
    "startup-taint.cluster-autoscaler.kubernetes.io/",
    "status-taint.cluster-autoscaler.kubernetes.io/",
    "ignore-taint.cluster-autoscaler.kubernetes.io/",
    // The node readiness controller.
    "readiness.k8s.io/",
];
/// How a network's or a storage driver's taint ends until its agent runs on the node: Cilium, the CSI drivers for EBS and EFS.
const AGENT_TAINT: &str = "/agent-not-ready";
/// Taints that are removed only after all labels are on the node: the cloud's (zone, instance type), those of
/// Karpenter's NodeClaim, those of Cluster API's Machine.
const LABELS_PENDING_TAINTS: &[&str] = &[
    "node.cloudprovider.kubernetes.io/uninitialized",
    "karpenter.sh/unregistered",
    "node.cluster.x-k8s.io/uninitialized",
];

/// A node without an extended resource may still get it until it is this old. Device plugins start late, after drivers
/// are installed.
const RESOURCES_PENDING: Duration = Duration::from_secs(10 * 60);
/// The operating system of a node that names none. harpoon runs on no other.
const DEFAULT_OS: &str = "linux";

/// The one field that affinity can name.
const NAME_FIELD: &str = "metadata.name";
/// The longest message, in characters. Names and values come from whoever may write to the cluster.
const MAX_MESSAGE: usize = 300;

/// The first rule by which the pods could not run on the node, for people; `None` when they could.
pub fn mismatch(requirements: &Requirements, node: &Node) -> Option<String> {
    let message = named(requirements, node)
        .or_else(|| foreign(requirements, node))
        .or_else(|| selected(requirements, node))
        .or_else(|| attracted(requirements, node))
        .or_else(|| repelled(requirements, node))
        .or_else(|| unequipped(requirements, node))?;
    Some(one_line(&message, MAX_MESSAGE))
}

impl Node {
    /// Returns whether labels may be missing that the node will have once it has started.
    fn labels_pending(&self) -> bool {
        let pending = |taint: &Taint| LABELS_PENDING_TAINTS.contains(&taint.key.as_str());
        self.taints.iter().any(pending)
    }

    /// Returns whether the node will not have this taint once it has started.
    fn loses(&self, key: &str) -> bool {
        PASSING_TAINTS.contains(&key)
            || STARTUP_TAINTS.iter().any(|start| key.starts_with(start))
            || key.ends_with(AGENT_TAINT)
            || self.startup_taints.iter().any(|own| own == key)
    }

    /// Returns whether the resource is there, or a taint or a label says that the node is meant to have it.
    fn offers(&self, resource: &str) -> bool {
        self.resources.contains(resource)
            || self.taints.iter().any(|taint| taint.key == resource)
            || self.labels.iter().any(|(key, value)| {
                // Feature discovery writes `nvidia.com/gpu.present=true`, and `false` when the device is gone.
                let rest = key.strip_prefix(resource);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                    && value != "false"
            })
    }
}

fn named(requirements: &Requirements, node: &Node) -> Option<String> {
    let name = &requirements.node_name;
    (!name.is_empty() && *name != node.name).then(|| format!("pods go to node {name}"))
}

/// The scheduler leaves this to labels; the kubelet turns such pods away.
fn foreign(requirements: &Requirements, node: &Node) -> Option<String> {
    let wanted = &requirements.os;
    let own = match node.os.as_str() {
        "" => DEFAULT_OS,
        own => own,
    };
    (!wanted.is_empty() && wanted != own)
        .then(|| format!("node's operating system is {own}, not {wanted}"))
}

fn selected(requirements: &Requirements, node: &Node) -> Option<String> {
    let pending = node.labels_pending();
    let pairs = requirements.node_selector.iter();
    let failing = pairs.filter(|(key, value)| match node.labels.get(key) {
        Some(label) => label != value,
        None => !pending,
    });
    // The first by name, so that the message does not depend on the order of the template.
    let (key, value) = failing.min()?;
    Some(lacks(node, key, std::slice::from_ref(value)))
}

fn attracted(requirements: &Requirements, node: &Node) -> Option<String> {
    let terms = requirements.affinity.as_ref()?;
    let mut first = None;
    for term in terms {
        match unmatched(term, node) {
            None => return None,
            Some(message) => first.get_or_insert(message),
        };
    }
    Some(match (first, terms.len()) {
        (None, _) => "its node affinity has no terms, so it matches no node".to_owned(),
        (Some(first), 1) => first,
        (Some(first), 2) => format!("{first}, nor does the other term of its node affinity match"),
        (Some(first), n) => format!(
            "{first}, nor does any of the other {} terms of its node affinity match",
            n - 1
        ),
    })
}

/// The first expression of the term that fails.
fn unmatched(term: &Term, node: &Node) -> Option<String> {
    if term.labels.is_empty() && term.fields.is_empty() {
        return Some("its node affinity has an empty term, which matches no node".to_owned());
    }
    let labels = term.labels.iter().map(|e| unmatched_label(e, node));
    let fields = term.fields.iter().map(|e| unmatched_field(e, node));
    labels.chain(fields).flatten().next()
}

fn unmatched_label(expression: &Expression, node: &Node) -> Option<String> {
    let Expression {
        key,
        operator,
        values,
    } = expression;
    let label = node.labels.get(key);
    if label.is_none() && node.labels_pending() {
        return None;
    }
    match (operator.as_str(), values.as_slice()) {
        ("In", [_, ..]) => {
            let matches = label.is_some_and(|label| values.contains(label));
            (!matches).then(|| lacks(node, key, values))
        }
        ("NotIn", [_, ..]) => {
            let label = label.filter(|label| values.contains(label))?;
            Some(format!(
                "node's label {key} is {}, which its node affinity excludes",
                shown(label)
            ))
        }
        ("Exists", []) => label.is_none().then(|| format!("node has no label {key}")),
        ("DoesNotExist", []) => label.map(|_| format!("node has the label {key}")),
        ("Gt" | "Lt", [bound]) => {
            let Ok(limit) = bound.parse::<i64>() else {
                return Some(not_understood(expression));
            };
            let Some(label) = label else {
                return Some(format!("node has no label {key}"));
            };
            let greater = operator == "Gt";
            let matches = label.parse::<i64>().is_ok_and(|number| match greater {
                true => number > limit,
                false => number < limit,
            });
            let wanted = if greater { "greater" } else { "less" };
            (!matches).then(|| {
                format!(
                    "node's label {key} is {}, not {wanted} than {limit}",
                    shown(label)
                )
            })
        }
        _ => malformed(expression),
    }
}

fn unmatched_field(expression: &Expression, node: &Node) -> Option<String> {
    match (expression.operator.as_str(), expression.values.as_slice()) {
        ("In", [name]) if expression.key == NAME_FIELD => {
            (*name != node.name).then(|| format!("pods go to node {name}"))
        }
        ("NotIn", [name]) if expression.key == NAME_FIELD => {
            (*name == node.name).then(|| format!("pods go to any node but {name}"))
        }
        _ => malformed(expression),
    }
}

/// What the scheduler cannot parse matches no node. An operator of a later version may match this one.
fn malformed(expression: &Expression) -> Option<String> {
    let known = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"];
    let known = known.contains(&expression.operator.as_str());
    known.then(|| not_understood(expression))
}

fn not_understood(expression: &Expression) -> String {
    format!(
        "its node affinity has a term that no node matches: {} {} with {} values",
        expression.key,
        expression.operator,
        expression.values.len()
    )
}

fn repelled(requirements: &Requirements, node: &Node) -> Option<String> {
    let taint = node.taints.iter().find(|taint| {
        let counts = match taint.effect.as_str() {
            "NoExecute" => true,
            // Pods that name their node are not scheduled; the kubelet looks at `NoExecute` alone.
            "NoSchedule" => requirements.node_name.is_empty(),
            _ => false,
        };
        let tolerated = |toleration: &Toleration| tolerates(toleration, taint);
        counts && !node.loses(&taint.key) && !requirements.tolerations.iter().any(tolerated)
    })?;
    let equals = if taint.value.is_empty() { "" } else { "=" };
    Some(format!(
        "node has the taint {}{equals}{}:{}, which is not tolerated",
        taint.key, taint.value, taint.effect
    ))
}

fn unequipped(requirements: &Requirements, node: &Node) -> Option<String> {
    let young = node.age.is_none_or(|age| age < RESOURCES_PENDING);
    // Pods that name their node are not scheduled, and the kubelet disregards extended resources that its node lacks.
    if young || node.labels_pending() || !requirements.node_name.is_empty() {
        return None;
    }
    let mut wanted = requirements.extended_resources.iter();
    let missing = wanted.find(|resource| !node.offers(resource))?;
    Some(format!("node has no resource {missing}"))
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let effect = toleration.effect.is_empty() || toleration.effect == taint.effect;
    let key = toleration.key.is_empty() || toleration.key == taint.key;
    let value = match toleration.operator.as_str() {
        "" | "Equal" => toleration.value == taint.value,
        _ => true,
    };
    effect && key && value
}

/// That the label `key` has none of these values.
fn lacks(node: &Node, key: &str, values: &[String]) -> String {
    match (node.labels.get(key), values) {
        (None, [value]) if value.is_empty() => format!("node has no label {key}"),
        (None, [value]) => format!("node has no label {key}={value}"),
        (None, values) => format!("node has no label {key}, which must be {}", one_of(values)),
        (Some(label), values) => {
            format!(
                "node's label {key} is {}, not {}",
                shown(label),
                one_of(values)
            )
        }
    }
}

fn one_of(values: &[String]) -> String {
    match values {
        [value] => shown(value).to_owned(),
        values => {
            let values: Vec<&str> = values.iter().map(|value| shown(value)).collect();
            format!("one of {}", values.join(", "))
        }
    }
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "empty" } else { value }
}

#[cfg(test)]
mod tests;
