//! Extended resources, such as GPUs, and the taints that keep other pods off the nodes that have them.

use std::time::Duration;

use serde_json::{Value, json};

use super::{check, node, plan, rows};
use crate::bed::{Kubernetes, kubernetes};

const GPU: &str = "nvidia.com/gpu";
/// Device plugins have registered by then.
const SETTLED: Duration = Duration::from_secs(11 * 60);

/// Makes a Node that is no longer new.
fn old_node(cluster: &Kubernetes, labels: &Value, taints: &Value, allocatable: &Value) -> String {
    let name = node(cluster, labels, taints);
    let status = format!("/api/v1/nodes/{name}/status");
    cluster.patch(&status, json!({"status": {"allocatable": allocatable}}));
    cluster.age_node(&name, SETTLED);
    name
}

/// A pod spec with one container that has these limits.
fn limits(name: &str, limits: &Value) -> Value {
    json!({"containers": [{"name": "main", "image": format!("{name}:1"), "resources": {"limits": limits}}]})
}

fn deployment(cluster: &Kubernetes, namespace: &str, name: &str, spec: &Value) {
    let labels = json!({"app": name});
    cluster.create(
        &format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
        json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec}}}),
    );
}

/// Makes Deployments that need a GPU, in a container and in an init container, and some that need none.
fn workloads(cluster: &Kubernetes) -> String {
    let namespace = cluster.namespace();
    let prepared = json!({
        "initContainers": [{"name": "prepare", "image": "prepare:1", "resources": {"requests": {GPU: "1"}, "limits": {GPU: "1"}}}],
        "containers": [{"name": "main", "image": "prepared:1"}]});
    deployment(cluster, &namespace, "prepared", &prepared);
    for (name, quantities) in [
        ("native", json!({"cpu": "1", "hugepages-2Mi": "4Mi"})),
        ("train", json!({"cpu": "1", GPU: 1})),
        ("zero", json!({GPU: "0"})),
    ] {
        deployment(cluster, &namespace, name, &limits(name, &quantities));
    }
    namespace
}

#[test]
fn gpu_images_go_to_gpu_nodes() {
    let cluster = kubernetes();
    let namespace = workloads(cluster);
    let taint = json!([{"key": GPU, "value": "present", "effect": "NoSchedule"}]);
    let tainted = old_node(cluster, &json!({}), &taint, &json!({GPU: "8"}));
    let repelled = "node has the taint nvidia.com/gpu=present:NoSchedule, which is not tolerated";
    check(
        cluster,
        &namespace,
        &tainted,
        &[
            &format!("native:1 skip node_mismatch Deployment/native: {repelled}"),
            "prepare:1 pull",
            "prepared:1 pull",
            "train:1 pull",
            "zero:1 pull",
        ],
    );
    let all = [
        "native:1 pull",
        "prepare:1 pull",
        "prepared:1 pull",
        "train:1 pull",
        "zero:1 pull",
    ];
    let allocatable = old_node(
        cluster,
        &json!({}),
        &json!([]),
        &json!({"cpu": "4", GPU: "8"}),
    );
    let labelled = old_node(
        cluster,
        &json!({GPU: "present"}),
        &json!([]),
        &json!({"cpu": "4"}),
    );
    let discovered = json!({"nvidia.com/gpu.present": "true"});
    let discovered = old_node(cluster, &discovered, &json!([]), &json!({"cpu": "4"}));
    for fitting in [allocatable, labelled, discovered] {
        check(cluster, &namespace, &fitting, &all);
    }
}

#[test]
fn gpu_images_skip_settled_cpu_nodes() {
    let cluster = kubernetes();
    let namespace = workloads(cluster);
    let missing = "node has no resource nvidia.com/gpu";
    let expected = [
        "native:1 pull",
        &format!("prepare:1 skip node_mismatch Deployment/prepared: {missing}"),
        &format!("prepared:1 skip node_mismatch Deployment/prepared: {missing}"),
        &format!("train:1 skip node_mismatch Deployment/train: {missing}"),
        "zero:1 pull",
    ];
    let old = old_node(cluster, &json!({}), &json!([]), &json!({"cpu": "4"}));
    check(cluster, &namespace, &old, &expected);
    // A device plugin may still come to a node that is new.
    let new = node(cluster, &json!({}), &json!([]));
    let output = check(
        cluster,
        &namespace,
        &new,
        &[
            "native:1 pull",
            "prepare:1 pull",
            "prepared:1 pull",
            "train:1 pull",
            "zero:1 pull",
        ],
    );
    assert_eq!(output.json()["summary"]["skip"], json!(0));
}

/// What the API server's admission plugin lets a pod tolerate is what harpoon takes its template to tolerate.
#[test]
fn pods_and_templates_tolerate_alike() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    for (name, resource) in [("fpga", "example.com/fpga"), ("huge", "hugepages-2Mi")] {
        let (pod, template) = (format!("{name}-pod"), format!("{name}-template"));
        let spec = |image: &str| limits(image, &json!({"cpu": "1", resource: "2Mi"}));
        let pods = format!("/api/v1/namespaces/{namespace}/pods");
        let object = json!({"metadata": {"name": pod}, "spec": spec(&pod)});
        let made = cluster.create(&pods, object);
        deployment(cluster, &namespace, &template, &spec(&template));

        let empty = Vec::new();
        let tolerations = made["spec"]["tolerations"].as_array().unwrap_or(&empty);
        let added: Vec<_> = tolerations
            .iter()
            .filter(|t| t["key"] == resource)
            .collect();
        let expected = json!({"key": resource, "operator": "Exists", "effect": "NoSchedule"});
        let extended = name == "fpga";
        assert_eq!(
            added,
            Vec::from_iter(extended.then_some(&expected)),
            "{made}"
        );

        for effect in ["NoSchedule", "NoExecute"] {
            let taints = json!([{"key": resource, "effect": effect}]);
            let here = node(cluster, &json!({}), &taints);
            let plan = plan(cluster, cluster.token(), &namespace).args(["--node-name", &here]);
            let rows = rows(&plan.run().expect(0), &namespace);
            let fits = extended && effect == "NoSchedule";
            for image in [format!("{pod}:1 pull"), format!("{template}:1 pull")] {
                assert_eq!(rows.contains(&image), fits, "{effect}: {rows:?}");
            }
        }
    }
}
