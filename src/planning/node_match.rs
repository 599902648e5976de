//! Matches a workload's pods with a node by the scheduler's rules for node names, labels and taints.
//!
//! Pure: takes plain values and returns the first rule that fails; no I/O, no Kubernetes types. Temporary conditions (free
//! resources, other pods, volumes, preferences) are ignored, because they change while an image stays.
//!
//! The rules are those of `k8s.io/component-helpers/scheduling/corev1` (node affinity) and of the toleration's `ToleratesTaint`.
//! As in the scheduler, an invalid value matches nothing. An unknown operator counts as matching: an unneeded image costs disk
//! space, a missing one delays a pod.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::model::text::one_line;

/// The node that the pods may run on.
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
    /// Keys of the user's own start-up taints (`--startup-taints`), in addition to the built-in ones.
    pub startup_taints: Vec<String>,
}

/// A node's taint.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value, often empty.
    pub value: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// The scheduling requirements of a pod template.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Requirements {
    /// The node that the pods run on without being scheduled; empty if none is named.
    pub node_name: String,
    /// Labels that the node must have. A key may occur twice, from the template and from its RuntimeClass.
    pub node_selector: Vec<(String, String)>,
    /// The required node affinity, if any: the node must match one of the terms.
    pub affinity: Option<Vec<Term>>,
    /// The tolerations of the pods.
    pub tolerations: Vec<Toleration>,
    /// The operating system that the pods are for (`spec.os`); empty for any.
    pub os: String,
    /// The extended resources that the containers require, such as `nvidia.com/gpu`.
    pub extended_resources: BTreeSet<String>,
}

/// A term of a required node affinity, which matches if all its expressions match. An empty one matches no node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Term {
    /// Expressions on labels (`matchExpressions`).
    pub labels: Vec<Expression>,
    /// Expressions on fields of the Node (`matchFields`); the only field is `metadata.name`.
    pub fields: Vec<Expression>,
}

/// A requirement on a label or a field.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expression {
    /// The label or field.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    pub operator: String,
    /// Several for `In` and `NotIn`, one whole number for `Gt` and `Lt`, otherwise none.
    pub values: Vec<String>,
}

/// A toleration of a taint or of a set of taints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Toleration {
    /// The taint's key; empty for every key.
    pub key: String,
    /// `Equal`, which is the default, or `Exists`. Any other, such as the numeric `Gt` and `Lt` (KEP-5471), tolerates every
    /// value.
    pub operator: String,
    /// The taint's value, for `Equal`.
    pub value: String,
    /// The taint's effect; empty for every effect.
    pub effect: String,
}

/// The key of the node gate's taint: the controller removes it once the node's images are there.
pub(crate) const GATE_TAINT: &str = "harpoon.dev/not-prefetched";

/// Taints for a temporary condition of the node; they are ignored.
///
/// harpoon runs exactly when a new node has them: the node is not ready, its network is missing, the cloud has not initialised
/// it. The pods that wait for the end of that condition are those whose images are needed. A cordoned node will be uncordoned,
/// and DaemonSets run on it anyway. The list includes all taints that a DaemonSet's pods tolerate automatically (`not-ready`,
/// `unreachable`, the pressures, `unschedulable`, `network-unavailable`).
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
    // Karpenter: until the node has registered.
    "karpenter.sh/unregistered",
    // Cluster API: until the machine's labels are on the node.
    "node.cluster.x-k8s.io/uninitialized",
    // Istio: until its CNI plugin runs on the node.
    "cni.istio.io/not-ready",
    // Gardener: until the critical pods run.
    "node.gardener.cloud/critical-components-not-ready",
    GATE_TAINT,
];
/// Prefixes of taint keys that are reserved for starting nodes.
const STARTUP_TAINTS: &[&str] = &[
    // Cluster Autoscaler's documentation.
    "startup-taint.cluster-autoscaler.kubernetes.io/",
    "status-taint.cluster-autoscaler.kubernetes.io/",
    "ignore-taint.cluster-autoscaler.kubernetes.io/",
    // The node readiness controller.
    "readiness.k8s.io/",
];
/// Suffix of the taints that network and storage drivers remove when their agent runs on the node: Cilium, the CSI drivers for
/// EBS and EFS.
const AGENT_TAINT: &str = "/agent-not-ready";
/// Taints that are removed only after all labels are on the node: the cloud's (zone, instance type), those of
/// Karpenter's NodeClaim, those of Cluster API's Machine.
const LABELS_PENDING_TAINTS: &[&str] = &[
    "node.cloudprovider.kubernetes.io/uninitialized",
    "karpenter.sh/unregistered",
    "node.cluster.x-k8s.io/uninitialized",
];

/// Age up to which a node without an extended resource may still get it. Device plugins start late, after drivers are installed.
/// Nothing depends on the age of an older node.
pub const SETTLED_AGE: Duration = Duration::from_secs(10 * 60);
/// The operating system of a node without this label. harpoon runs on Linux only.
const DEFAULT_OS: &str = "linux";

/// The only field that an affinity can name.
const NAME_FIELD: &str = "metadata.name";
/// Maximum length of a message in characters. Names and values are written by users of the cluster.
const MAX_MESSAGE: usize = 300;

/// The first rule that prevents the pods from running on the node, for people; `None` if they can run.
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
    /// Returns whether some labels are set only once the node has started.
    fn labels_pending(&self) -> bool {
        let pending = |taint: &Taint| LABELS_PENDING_TAINTS.contains(&taint.key.as_str());
        self.taints.iter().any(pending)
    }

    /// Returns whether this taint is removed once the node has started.
    fn loses(&self, key: &str) -> bool {
        PASSING_TAINTS.contains(&key)
            || STARTUP_TAINTS.iter().any(|start| key.starts_with(start))
            || key.ends_with(AGENT_TAINT)
            || self.startup_taints.iter().any(|own| own == key)
    }

    /// Returns whether the node has the resource, or a taint or a label indicates that it will.
    fn offers(&self, resource: &str) -> bool {
        self.resources.contains(resource)
            || self.taints.iter().any(|taint| taint.key == resource)
            || self.labels.iter().any(|(key, value)| {
                // Feature discovery writes `nvidia.com/gpu.present=true`, and `false` when the device has been removed.
                let rest = key.strip_prefix(resource);
                rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                    && value != "false"
            })
    }
}

fn named(requirements: &Requirements, node: &Node) -> Option<String> {
    let name = &requirements.node_name;
    (!name.is_empty() && *name != node.name).then(|| format!("pods require node {name}"))
}

/// Checks the operating system. The scheduler relies on labels; the kubelet rejects such pods.
fn foreign(requirements: &Requirements, node: &Node) -> Option<String> {
    let wanted = &requirements.os;
    let own = match node.os.as_str() {
        "" => DEFAULT_OS,
        own => own,
    };
    (!wanted.is_empty() && wanted != own)
        .then(|| format!("node OS is {own}, pods require {wanted}"))
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
        (Some(first), 2) => format!("{first}; 1 other node affinity term does not match"),
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
            (*name != node.name).then(|| format!("pods require node {name}"))
        }
        ("NotIn", [name]) if expression.key == NAME_FIELD => {
            (*name == node.name).then(|| format!("pods exclude node {name}"))
        }
        _ => malformed(expression),
    }
}

/// The scheduler matches no node with an invalid expression. A later version's operator may match this one.
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
            // Pods that name their node are not scheduled; the kubelet checks only `NoExecute`.
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
    let young = node.age.is_none_or(|age| age < SETTLED_AGE);
    // Pods that name their node are not scheduled, and the kubelet ignores extended resources that its node lacks.
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

/// The message that the label `key` has none of these values.
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
