//! The right images for this node, on a real API server with Nodes of different labels, taints and architectures.

use serde_json::{Value, json};

use super::bed::{Harpoon, Kubernetes, Output, kubernetes, unique};

mod new_nodes;
mod resources;

const DEPLOYMENTS: &str = "deployments";

/// Makes a Node of the test's own and returns its name. The API server adds the taint `node.kubernetes.io/not-ready`, as
/// it does to every new node (admission plugin TaintNodesByCondition).
fn node(cluster: &Kubernetes, labels: &Value, taints: &Value) -> String {
    let name = unique("node");
    cluster.create(
        "/api/v1/nodes",
        json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints}}),
    );
    name
}

/// Makes a workload `name` with the image `name:1`, whose pods have this in their spec.
fn workload(cluster: &Kubernetes, namespace: &str, kind: &str, name: &str, spec: Value) {
    uses(cluster, namespace, kind, name, &format!("{name}:1"), spec);
}

fn uses(
    cluster: &Kubernetes,
    namespace: &str,
    kind: &str,
    name: &str,
    image: &str,
    mut spec: Value,
) {
    spec["containers"] = json!([{"name": "main", "image": image}]);
    let labels = json!({"app": name});
    let object = json!({"metadata": {"name": name}, "spec": {"selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": spec}}});
    let collection = format!("/apis/apps/v1/namespaces/{namespace}/{kind}");
    cluster.create(&collection, object);
}

fn plan(cluster: &Kubernetes, token: &str, namespace: &str) -> Harpoon {
    let harpoon = Harpoon::new(["plan", "--output", "json"]);
    let file = harpoon.home().join("kubeconfig");
    cluster.write_kubeconfig(&file, cluster.server(), token, namespace);
    harpoon.env("KUBECONFIG", file).env("WORKLOADS", "all")
}

/// The images of the plan by name: `image action`, or `image skip reason message`, without the namespace.
#[track_caller]
fn rows(output: &Output, namespace: &str) -> Vec<String> {
    let plan = output.json();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let row = |image: &Value| {
        let parts = ["image", "action", "reason", "message"].map(|key| text(&image[key]));
        parts.join(" ").replace(&format!("{namespace}/"), "")
    };
    let images = plan["images"].as_array().unwrap().iter();
    // The message of an image to pull lists its workloads, which other tests cover.
    let mut rows: Vec<String> = images
        .map(row)
        .map(|row| match row.split_once(" pull ") {
            Some((image, _)) => format!("{image} pull"),
            None => row,
        })
        .collect();
    rows.sort();
    rows
}

#[track_caller]
fn check(cluster: &Kubernetes, namespace: &str, node: &str, expected: &[&str]) -> Output {
    let plan = plan(cluster, cluster.token(), namespace).args(["--node-name", node]);
    let output = plan.run().expect(0);
    assert_eq!(rows(&output, namespace), expected, "{node}: {output}");
    assert_eq!(warnings(&output), [] as [&str; 0], "{output}");
    output
}

fn warnings(output: &Output) -> Vec<&str> {
    let warnings = output.stderr.lines().filter(|line| line.contains("WARN"));
    warnings
        .filter(|line| !line.contains("planning without a runtime"))
        .collect()
}

fn required(terms: &Value) -> Value {
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}})
}

#[test]
fn labels_architecture_and_affinity_must_match() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let arm = node(
        cluster,
        &json!({"kubernetes.io/arch": "arm64", "disk": "ssd", "cores": "64"}),
        &json!([]),
    );
    let gpu = node(
        cluster,
        &json!({"kubernetes.io/arch": "amd64", "disk": "hdd", "cores": "8", "accelerator": "gpu"}),
        &json!([]),
    );
    let specs = [
        (
            "amd",
            json!({"nodeSelector": {"kubernetes.io/arch": "amd64"}}),
        ),
        ("anywhere", json!({})),
        (
            "large",
            required(
                &json!([{"matchExpressions": [{"key": "cores", "operator": "Gt", "values": ["16"]}]}]),
            ),
        ),
        (
            "named",
            required(
                &json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": [arm]}]}]),
            ),
        ),
        ("noble", json!({"nodeName": arm})),
        (
            "not-gpu",
            required(
                &json!([{"matchExpressions": [{"key": "accelerator", "operator": "DoesNotExist"}]}]),
            ),
        ),
        (
            "one-of",
            required(&json!([
            {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd", "nvme"]}]},
            {"matchExpressions": [{"key": "accelerator", "operator": "Exists"}]}])),
        ),
        ("train", json!({"nodeSelector": {"accelerator": "gpu"}})),
    ];
    for (name, spec) in specs {
        workload(cluster, &namespace, DEPLOYMENTS, name, spec);
    }
    let output = check(
        cluster,
        &namespace,
        &arm,
        &[
            "amd:1 skip node_mismatch Deployment/amd: node's label kubernetes.io/arch is arm64, not amd64",
            "anywhere:1 pull",
            "large:1 pull",
            "named:1 pull",
            "noble:1 pull",
            "not-gpu:1 pull",
            "one-of:1 pull",
            "train:1 skip node_mismatch Deployment/train: node has no label accelerator=gpu",
        ],
    );
    assert_eq!(output.json()["summary"]["skip"], json!(2));
    let elsewhere = format!("pods require node {arm}");
    check(
        cluster,
        &namespace,
        &gpu,
        &[
            "amd:1 pull",
            "anywhere:1 pull",
            "large:1 skip node_mismatch Deployment/large: node's label cores is 8, not greater than 16",
            &format!("named:1 skip node_mismatch Deployment/named: {elsewhere}"),
            &format!("noble:1 skip node_mismatch Deployment/noble: {elsewhere}"),
            "not-gpu:1 skip node_mismatch Deployment/not-gpu: node has the label accelerator",
            "one-of:1 pull",
            "train:1 pull",
        ],
    );
    // Without a node nothing is filtered.
    let output = plan(cluster, cluster.token(), &namespace).run().expect(0);
    assert_eq!(output.json()["summary"]["pull"], json!(8), "{output}");
}

#[test]
fn taints_exclude_images_unless_transient() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let taint = |key: &str, effect: &str| json!({"key": key, "effect": effect});
    let tainted = node(
        cluster,
        &json!({}),
        &json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"}, taint("slow", "PreferNoSchedule")]),
    );
    let troubled = node(
        cluster,
        &json!({}),
        &json!([
            taint("node.kubernetes.io/unreachable", "NoExecute"),
            taint("node.kubernetes.io/unschedulable", "NoSchedule"),
            taint("node.kubernetes.io/disk-pressure", "NoSchedule"),
            taint("node.kubernetes.io/network-unavailable", "NoSchedule"),
            taint(
                "node.cloudprovider.kubernetes.io/uninitialized",
                "NoSchedule"
            ),
        ]),
    );
    let fresh = cluster.get(&format!("/api/v1/nodes/{tainted}"));
    assert!(
        fresh.to_string().contains("node.kubernetes.io/not-ready"),
        "this API server taints new nodes: {fresh}"
    );
    let tolerate = |operator: &str, value: &str| {
        let mut toleration =
            json!({"key": "dedicated", "operator": operator, "effect": "NoSchedule"});
        if operator == "Equal" {
            toleration["value"] = json!(value);
        }
        json!({"tolerations": [toleration]})
    };
    workload(cluster, &namespace, "daemonsets", "agent", json!({}));
    workload(
        cluster,
        &namespace,
        "daemonsets",
        "everywhere",
        json!({"tolerations": [{"operator": "Exists"}]}),
    );
    workload(
        cluster,
        &namespace,
        DEPLOYMENTS,
        "db",
        tolerate("Equal", "db"),
    );
    workload(
        cluster,
        &namespace,
        DEPLOYMENTS,
        "exists",
        tolerate("Exists", ""),
    );
    workload(
        cluster,
        &namespace,
        DEPLOYMENTS,
        "web",
        tolerate("Equal", "web"),
    );
    let repelled = "node has the taint dedicated=db:NoSchedule, which is not tolerated";
    check(
        cluster,
        &namespace,
        &tainted,
        &[
            &format!("agent:1 skip node_mismatch DaemonSet/agent: {repelled}"),
            "db:1 pull",
            "everywhere:1 pull",
            "exists:1 pull",
            &format!("web:1 skip node_mismatch Deployment/web: {repelled}"),
        ],
    );
    let all = [
        "agent:1 pull",
        "db:1 pull",
        "everywhere:1 pull",
        "exists:1 pull",
        "web:1 pull",
    ];
    check(cluster, &namespace, &troubled, &all);
}

#[test]
fn runtime_class_constraints_apply() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let taints = json!([{"key": "sandbox", "effect": "NoExecute"}]);
    let here = node(cluster, &json!({"sandbox": "gvisor"}), &taints);
    let [gvisor, kata, missing] = ["gvisor", "kata", "missing"].map(unique);
    for (name, label) in [(&gvisor, "gvisor"), (&kata, "kata")] {
        cluster.create(
            "/apis/node.k8s.io/v1/runtimeclasses",
            json!({"metadata": {"name": name}, "handler": label, "scheduling": {
                "nodeSelector": {"sandbox": label}, "tolerations": [{"key": "sandbox", "operator": "Exists"}]}}),
        );
    }
    for (name, class) in [("gvisor", &gvisor), ("kata", &kata)] {
        workload(
            cluster,
            &namespace,
            DEPLOYMENTS,
            name,
            json!({"runtimeClassName": class}),
        );
    }
    workload(cluster, &namespace, DEPLOYMENTS, "plain", json!({}));
    let repelled = "node has the taint sandbox:NoExecute, which is not tolerated";
    let mut expected = vec![
        "gvisor:1 pull".to_owned(),
        "kata:1 skip node_mismatch Deployment/kata: node's label sandbox is gvisor, not kata"
            .into(),
        format!("plain:1 skip node_mismatch Deployment/plain: {repelled}"),
    ];
    let texts: Vec<&str> = expected.iter().map(String::as_str).collect();
    check(cluster, &namespace, &here, &texts);

    // A missing one is reported, and its workloads count as if they had none.
    workload(
        cluster,
        &namespace,
        DEPLOYMENTS,
        "lost",
        json!({"runtimeClassName": missing}),
    );
    expected.push(format!(
        "lost:1 skip node_mismatch Deployment/lost: {repelled}"
    ));
    expected.sort();
    let plan = plan(cluster, cluster.token(), &namespace).env("NODE_NAME", &here);
    let output = plan.run().expect(0);
    assert_eq!(rows(&output, &namespace), expected);
    let said = format!("RuntimeClass {missing}: does not exist");
    assert!(
        matches!(&warnings(&output)[..], [one] if one.contains(&said)),
        "{output}"
    );
}

#[test]
fn one_fitting_workload_keeps_image() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let here = node(cluster, &json!({}), &json!([]));
    let gpu = json!({"nodeSelector": {"accelerator": "gpu"}});
    uses(
        cluster,
        &namespace,
        DEPLOYMENTS,
        "plain",
        "shared:1",
        json!({}),
    );
    uses(
        cluster,
        &namespace,
        DEPLOYMENTS,
        "train",
        "docker.io/shared:1",
        gpu.clone(),
    );
    uses(
        cluster,
        &namespace,
        DEPLOYMENTS,
        "one",
        "gpu:1",
        gpu.clone(),
    );
    uses(cluster, &namespace, DEPLOYMENTS, "two", "gpu:1", gpu);
    let output = check(
        cluster,
        &namespace,
        &here,
        &[
            "gpu:1 skip node_mismatch Deployment/one: node has no label accelerator=gpu, and 1 more",
            "shared:1 pull",
        ],
    );
    let plan = output.json();
    let images = plan["images"].as_array().unwrap();
    let shared = images.iter().find(|i| i["image"] == "shared:1").unwrap();
    assert_eq!(shared["pods"], json!(1));
    assert_eq!(
        shared["workloads"],
        json!([format!("{namespace}/Deployment/plain")])
    );
}

#[test]
fn unreadable_node_filters_nothing() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let here = node(cluster, &json!({}), &json!([]));
    workload(
        cluster,
        &namespace,
        DEPLOYMENTS,
        "train",
        json!({"nodeSelector": {"accelerator": "gpu"}}),
    );
    let list = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    let rules = json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]}]);
    let token = cluster.account_with(&namespace, Some(&namespace), &rules, &list);
    let missing = unique("missing");
    for (token, node, parts) in [
        (
            token.as_str(),
            &here,
            ["not allowed", "\"get\" on \"nodes\""],
        ),
        (
            cluster.token(),
            &missing,
            ["does not exist", "node filtering disabled"],
        ),
    ] {
        let plan = plan(cluster, token, &namespace).env("WORKLOADS", "deployments");
        let plan = plan.args(["--node-name", node]);
        let output = plan.run().expect(0);
        assert_eq!(rows(&output, &namespace), ["train:1 pull"]);
        let warnings = warnings(&output);
        assert_eq!(warnings.len(), 1, "{output}");
        assert!(warnings[0].contains(node.as_str()), "{output}");
        assert!(
            parts.iter().all(|part| warnings[0].contains(part)),
            "{output}"
        );
    }
}

#[test]
fn images_file_is_never_filtered() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let here = node(
        cluster,
        &json!({}),
        &json!([{"key": "dedicated", "effect": "NoSchedule"}]),
    );
    let plan = plan(cluster, cluster.token(), &namespace).env("NODE_NAME", &here);
    let file = plan.home().join("images");
    std::fs::write(&file, "listed:1\n").unwrap();
    let output = plan.env("IMAGES_FILE", file).run().expect(0);
    assert_eq!(rows(&output, &namespace), ["listed:1 pull"]);
}
