//! Nodes that have just joined: temporary taints, and labels that are set late.

use serde_json::json;

use super::{DEPLOYMENTS, check, node, plan, required, rows, workload};
use crate::bed::kubernetes;

#[test]
fn startup_taints_exclude_no_image() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    workload(cluster, &namespace, DEPLOYMENTS, "web", json!({}));
    for key in [
        "node.cluster.x-k8s.io/uninitialized",
        "cni.istio.io/not-ready",
        "readiness.k8s.io/network",
        "node.gardener.cloud/critical-components-not-ready",
        "startup-taint.cluster-autoscaler.kubernetes.io/driver",
        "ignore-taint.cluster-autoscaler.kubernetes.io/driver",
        "karpenter.sh/unregistered",
    ] {
        let here = node(
            cluster,
            &json!({}),
            &json!([{"key": key, "effect": "NoExecute"}]),
        );
        check(cluster, &namespace, &here, &["web:1 pull"]);
    }
}

#[test]
fn startup_taints_setting_adds_keys() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    workload(cluster, &namespace, DEPLOYMENTS, "web", json!({}));
    let taint = |key: &str| json!({"key": key, "value": "true", "effect": "NoSchedule"});
    let taints = json!([taint("example.com/booting"), taint("warming-up")]);
    let here = node(cluster, &json!({}), &taints);
    let skipped = |key: &str| {
        format!(
            "web:1 skip node_mismatch Deployment/web: node has the taint {key}=true:NoSchedule, which is not tolerated"
        )
    };
    for (keys, expected) in [
        ("", skipped("example.com/booting")),
        ("example.com/booting", skipped("warming-up")),
        (
            "example.com/boot, warming-up",
            skipped("example.com/booting"),
        ),
        ("example.com/booting, warming-up", "web:1 pull".to_owned()),
    ] {
        let plan = plan(cluster, cluster.token(), &namespace).args(["--node-name", &here]);
        let output = plan.env("STARTUP_TAINTS", keys).run().expect(0);
        assert_eq!(rows(&output, &namespace), [expected], "{keys}: {output}");
    }
}

#[test]
fn missing_labels_fit_uninitialized_nodes() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let zone = "topology.kubernetes.io/zone";
    let selected = json!({"nodeSelector": {zone: "a"}});
    workload(cluster, &namespace, DEPLOYMENTS, "selected", selected);
    let term = |operator: &str, values: &[&str]| json!({"key": zone, "operator": operator, "values": values});
    let terms = json!([{"matchExpressions": [term("In", &["a", "b"]), term("Exists", &[])]}]);
    workload(
        cluster,
        &namespace,
        DEPLOYMENTS,
        "attracted",
        required(&terms),
    );
    let arm = json!({"nodeSelector": {"kubernetes.io/arch": "arm64"}});
    workload(cluster, &namespace, DEPLOYMENTS, "arm", arm);
    let labels = json!({"kubernetes.io/arch": "amd64"});
    let other = "arm:1 skip node_mismatch Deployment/arm: node's label kubernetes.io/arch is amd64, not arm64";
    let taint = json!([{"key": "node.cloudprovider.kubernetes.io/uninitialized", "value": "true", "effect": "NoSchedule"}]);
    let starting = node(cluster, &labels, &taint);
    check(
        cluster,
        &namespace,
        &starting,
        &[other, "attracted:1 pull", "selected:1 pull"],
    );
    let started = node(cluster, &labels, &json!([]));
    check(
        cluster,
        &namespace,
        &started,
        &[
            other,
            "attracted:1 skip node_mismatch Deployment/attracted: node has no label topology.kubernetes.io/zone, which must be one of a, b",
            "selected:1 skip node_mismatch Deployment/selected: node has no label topology.kubernetes.io/zone=a",
        ],
    );
}
