//! The requirements of a pod template on a node, including its RuntimeClass. Pure.

use std::collections::BTreeSet;

use super::object::{Facts, PodSpec};
use super::scheduling::{Resources, Scheduling, Toleration};
use crate::model::workload_kind::WorkloadKind;
use crate::planning::node_match::{self, Requirements};

/// The requirements of a template on a node, merged with its RuntimeClass. The RuntimeClass admission plugin merges the two when
/// a pod is created. It refuses a key that both have with different values; here no node matches such a key.
pub(super) fn requirements(template: &PodSpec, class: Option<&Scheduling>) -> Requirements {
    let none = Scheduling::default();
    let class = class.unwrap_or(&none);
    let pairs = template.node_selector.iter().chain(&class.node_selector);
    let tolerations = template.tolerations.iter().chain(&class.tolerations);
    let extended = || template.resources().flat_map(Resources::extended);
    let requested: BTreeSet<&str> = extended().map(|(name, _)| name).collect();
    let needed = extended().filter(|(_, quantity)| !quantity.is_zero());
    Requirements {
        node_name: template.node_name.as_str().to_owned(),
        node_selector: pairs.map(|(k, v)| (k.clone(), v.clone())).collect(),
        affinity: template.affinity.required(),
        tolerations: tolerations
            .map(Toleration::plain)
            .chain(requested.into_iter().map(tolerated_for))
            .collect(),
        os: template.os.name.as_str().to_owned(),
        extended_resources: needed.map(|(name, _)| name.to_owned()).collect(),
    }
}

/// The requirements of a workload's next pods on a node.
pub(super) fn workload_requirements(
    kind: WorkloadKind,
    facts: &Facts,
    class: Option<&Scheduling>,
) -> Requirements {
    let mut requirements = requirements(&facts.template, class);
    // The node of a pod says nothing about the node of its controller's next pod. A static pod's controller is its Node.
    let controller = facts.metadata.controller().map(|c| c.kind.as_str());
    if kind == WorkloadKind::Pods && controller.is_some_and(|kind| kind != "Node") {
        requirements.node_name.clear();
    }
    if kind == WorkloadKind::Pods && controller == Some("DaemonSet") {
        unpin(&mut requirements);
    }
    requirements
}

/// Drops the fields of the required node affinity with which the DaemonSet controller assigns each pod to its node. A term with
/// no other field then requires nothing.
fn unpin(requirements: &mut Requirements) {
    let Some(terms) = &mut requirements.affinity else {
        return;
    };
    let was_pinned = terms.iter().any(|term| !term.fields.is_empty());
    terms.iter_mut().for_each(|term| term.fields.clear());
    if was_pinned && terms.iter().any(|term| term.labels.is_empty()) {
        requirements.affinity = None;
    }
}

/// The toleration that the admission plugin ExtendedResourceToleration adds to a pod that requests an extended resource. Without
/// the plugin such pods cannot run on tainted nodes; a template does not show whether the plugin is enabled.
fn tolerated_for(resource: &str) -> node_match::Toleration {
    node_match::Toleration {
        key: resource.to_owned(),
        operator: "Exists".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..node_match::Toleration::default()
    }
}
