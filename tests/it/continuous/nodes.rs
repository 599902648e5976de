//! Several nodes: which of them need an image, and what becomes of the status when one of them fails.

use super::*;

#[test]
fn selectors_and_taints_choose_nodes() {
    let stage = Stage::start();
    let gpu = stage.add(
        "gpu",
        &json!({"pool": "gpu"}),
        &json!([{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]),
        Containerd::start(),
    );
    let arm = stage.add(
        "arm",
        &json!({"kubernetes.io/arch": "arm64"}),
        &json!([]),
        Containerd::start(),
    );
    let plain = stage.plain("plain");
    let [everywhere, selected, tolerating, amd64] =
        ["everywhere", "selected", "tolerating", "amd64"]
            .map(|name| bed::registry().push(&named(name)).reference);
    stage.apply("everywhere", &list(&[&everywhere]));
    let mut spec = list(&[&selected]);
    spec["nodeSelector"] = json!({"matchLabels": {"pool": "gpu"}});
    stage.apply("selected", &spec);
    let namespace = stage.cluster.namespace();
    let deployment = |name: &str, pod: Value| {
        json!({"metadata": {"name": name}, "spec": {
            "selector": {"matchLabels": {"app": name}}, "template": {"metadata": {"labels": {"app": name}}, "spec": pod}
        }})
    };
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    let tolerations = json!([{"key": "gpu", "operator": "Exists"}]);
    let containers = |image: &str| json!([{"name": "main", "image": image}]);
    stage.cluster.create(
        &path,
        deployment(
            "tolerating",
            json!({"tolerations": tolerations, "containers": containers(&tolerating)}),
        ),
    );
    let selector = json!({"kubernetes.io/arch": "amd64"});
    stage.cluster.create(
        &path,
        deployment(
            "amd64",
            json!({"nodeSelector": selector, "containers": containers(&amd64)}),
        ),
    );
    stage.apply("workloads", &json!({"source": {"workloads": {"namespaces": [namespace]}}, "rollout": {"type": "Immediate"}}));
    for prefetch in ["everywhere", "selected", "workloads"] {
        stage.wait_ready(prefetch);
    }
    let has = |machine: &Machine| {
        [&everywhere, &selected, &tolerating, &amd64].map(|image| machine.has(image))
    };
    assert_eq!(has(&gpu), [true, true, true, false]);
    assert_eq!(has(&arm), [true, false, true, false]);
    assert_eq!(has(&plain), [true, false, true, true]);
    let nodes = |prefetch: &str| stage.status(prefetch)["nodes"]["complete"].clone();
    assert_eq!(
        [nodes("everywhere"), nodes("selected"), nodes("workloads")],
        [3, 1, 3]
    );
    // The selected pool loses its label: the image is needed nowhere.
    stage.cluster.patch(
        "/api/v1/nodes/gpu",
        json!({"metadata": {"labels": {"pool": null}}}),
    );
    stage.wait_for("no node is selected", || nodes("selected") == 0);
    stage.wait_ready("selected");
}

#[test]
fn added_node_fills_at_once() {
    let stage = Stage::start();
    let old = stage.plain("old");
    stage.wait_for("the agent reports", || {
        stage.node_prefetch("old")["status"]["firstFillSeconds"].is_number()
    });
    let image = bed::registry().push(&named("slow-rollout")).reference;
    stage.apply(
        "slow",
        &json!({"source": {"images": [&image]}, "rollout": {"type": "Linear", "window": "24h"}}),
    );
    stage.wait_for("the image is planned", || {
        stage.planned().contains_key(&image)
    });
    let new = stage.plain("new");
    stage.wait_for("the new node has it", || new.has(&image));
    stage.wait_for("the new node reports its first fill", || {
        stage.node_prefetch("new")["status"]["firstFillSeconds"].is_number()
    });
    // Its slot would have to be within the first seconds of a day.
    assert!(!old.has(&image), "{}", old.log());
    assert_eq!(stage.condition("slow", "Ready").0, "False");
}

#[test]
fn failing_runtime_and_agent_recover() {
    let stage = Stage::start();
    let machines = ["node-1", "node-2", "node-3"].map(|name| stage.plain(name));
    let [first, second] =
        ["before", "after"].map(|name| bed::registry().push(&named(name)).reference);
    stage.apply("all", &list(&[&first]));
    stage.wait_ready("all");
    machines[0].containerd.kill();
    machines[1].stop_agent(Signal::KILL);
    let path = format!("{API}/imageprefetches/all");
    stage.cluster.patch(
        &path,
        json!({"spec": {"source": {"images": [&first, &second]}}}),
    );
    stage.wait_for("the third node has it", || machines[2].has(&second));
    stage.wait_for("two nodes are not complete", || {
        let nodes = stage.status("all")["nodes"].clone();
        nodes["complete"] == 1 && nodes["desired"] == 3
    });
    machines[0].containerd.restart();
    stage.start_agent(&machines[1]);
    stage.wait_ready("all");
    assert!(machines.iter().all(|machine| machine.has(&second)));
}

/// Takes six minutes: `LONG=1` runs it.
#[test]
fn silent_node_counts_as_unknown() {
    if std::env::var_os("LONG").is_none() {
        return;
    }
    let stage = Stage::start();
    let [kept, silent] = ["node-1", "node-2"].map(|name| stage.plain(name));
    let image = bed::registry().push(&named("heartbeat")).reference;
    stage.apply("all", &list(&[&image]));
    stage.wait_ready("all");
    silent.stop_agent(Signal::KILL);
    let limit = Duration::from_secs(400);
    eventually("a node is unknown", limit, || {
        stage.status("all")["nodes"]["unknown"] == 1
    });
    let nodes = stage.status("all")["nodes"].clone();
    assert_eq!(
        (nodes["complete"].clone(), nodes["desired"].clone()),
        (json!(1), json!(2))
    );
    assert_eq!(
        stage.condition("all", "Ready"),
        ("False".to_owned(), "NodesUnknown".to_owned())
    );
    assert!(kept.has(&image));
    stage.start_agent(&silent);
    stage.wait_ready("all");
}
