//! Who harpoon is to the API server, and what it may do there: no more than what is asked of it takes.

use serde_json::{Value, json};

use super::{Images, Options};
use crate::discovery::workloads::Namespaces;
use crate::model::workload_kind::WorkloadKind;

const API: &str = "rbac.authorization.k8s.io";

/// The service account and its rights; none for a list of images, which asks the API server nothing.
pub(super) fn objects(options: &Options) -> Vec<Value> {
    let Images::Cluster {
        namespaces,
        workloads,
        pull_secrets,
    } = &options.images
    else {
        return Vec::new();
    };
    let account = options.metadata(&options.name, Some(&options.namespace));
    let mut objects = vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account,
        "automountServiceAccountToken": false}),
    ];
    let own = [options.namespace.clone()];
    // None is the whole cluster.
    let mut scanned: Vec<Option<&String>> = match namespaces {
        Namespaces::All => vec![None],
        Namespaces::Default => own.iter().map(Some).collect(),
        Namespaces::These(names) => names.iter().map(Some).collect(),
    };
    scanned.sort_unstable();
    scanned.dedup();
    for namespace in scanned.iter().copied() {
        objects.extend(grant(options, "", namespace, &lists(workloads)));
    }
    if options.node_relevance {
        let node = json!([
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
            {"apiGroups": ["node.k8s.io"], "resources": ["runtimeclasses"], "verbs": ["get"]},
        ]);
        objects.extend(grant(options, "-node", None, &node));
    }
    if let Some(names) = pull_secrets {
        for namespace in scanned {
            objects.extend(grant(options, "-pull-secrets", namespace, &secrets(names)));
        }
    }
    objects
}

/// A role and its binding, in one namespace or in the whole cluster.
fn grant(options: &Options, suffix: &str, namespace: Option<&String>, rules: &Value) -> [Value; 2] {
    let name = format!("{}{suffix}", options.name);
    let kind = match namespace {
        Some(_) => "Role",
        None => "ClusterRole",
    };
    let metadata = options.metadata(&name, namespace.map(String::as_str));
    let version = format!("{API}/v1");
    [
        json!({"apiVersion": version, "kind": kind, "metadata": metadata, "rules": rules}),
        json!({"apiVersion": version, "kind": format!("{kind}Binding"), "metadata": metadata,
            "roleRef": {"apiGroup": API, "kind": kind, "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": options.name, "namespace": options.namespace}]}),
    ]
}

/// `list` on these kinds, one rule for each API group.
fn lists(workloads: &[WorkloadKind]) -> Value {
    let rule = |group: &str| {
        let kinds = WorkloadKind::ALL
            .iter()
            .filter(|k| k.group() == group && workloads.contains(k));
        let names: Vec<_> = kinds.map(|kind| kind.plural()).collect();
        let rule = json!({"apiGroups": [group], "resources": names, "verbs": ["list"]});
        (!names.is_empty()).then_some(rule)
    };
    ["apps", "batch", ""].into_iter().filter_map(rule).collect()
}

/// `get` on pull secrets, and on the service accounts that name some.
fn secrets(names: &[String]) -> Value {
    let mut secrets = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]});
    if !names.is_empty() {
        secrets["resourceNames"] = json!(names);
    }
    json!([secrets, {"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["get"]}])
}
