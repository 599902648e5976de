//! The node gate: the tests create tainted Nodes and write what their agents would.

use std::time::{Duration, Instant};

use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

use super::nodes::{current, entry, time_ago};
use super::{
    Controlled, NODES, SOON, Shown, controller, images, list, planned, prefetch, wait_for,
};
use crate::bed::{Kubernetes, eventually, unique};

const GATE: &str = "harpoon.dev/not-prefetched";
const AUTOSCALER: &str = "startup-taint.cluster-autoscaler.kubernetes.io/harpoon";

fn taint(key: &str) -> Value {
    json!({"key": key, "effect": "NoSchedule"})
}

/// Creates a Node with these taints, and its NodePrefetch.
fn join(cluster: &Kubernetes, node: &str, taints: Value) {
    let created = cluster.create(
        "/api/v1/nodes",
        json!({"metadata": {"name": node}, "spec": {"taints": taints}}),
    );
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": created["metadata"]["uid"]});
    cluster.create(
        NODES,
        json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "NodePrefetch",
            "metadata": {"name": node, "ownerReferences": [owner]}}),
    );
}

/// Writes what the agent of a node reports.
fn report(cluster: &Kubernetes, node: &str, entries: Value, failures: Value) {
    let status = json!({"conditions": [], "desired": 0, "present": 0, "pulling": 0, "failed": 0, "prefetches": entries,
        "failures": failures, "heartbeatTime": time_ago(0)});
    cluster.patch(&format!("{NODES}/{node}/status"), json!({"status": status}));
}

/// The keys of a node's taints, without those that the API server adds to new nodes.
fn taints(cluster: &Kubernetes, node: &str) -> Vec<String> {
    let taints = cluster.get(&format!("/api/v1/nodes/{node}"))["spec"]["taints"].take();
    let keys = taints.as_array().into_iter().flatten();
    keys.map(|taint| taint["key"].as_str().unwrap().to_owned())
        .filter(|key| !key.starts_with("node.kubernetes.io/"))
        .collect()
}

/// Status, reason and message of the node's condition.
fn told(cluster: &Kubernetes, node: &str) -> (String, String) {
    let conditions = cluster.get(&format!("/api/v1/nodes/{node}"))["status"]["conditions"].take();
    let all = conditions.as_array().cloned().unwrap_or_default();
    let found = all.iter().find(|c| c["type"] == "ImagesPrefetched");
    let text = |field: &str| found.map_or("", |c| c[field].as_str().unwrap());
    (
        format!("{} {}", text("status"), text("reason")),
        text("message").to_owned(),
    )
}

#[track_caller]
fn wait_told(cluster: &Kubernetes, node: &str, expected: &str) -> String {
    eventually(expected, SOON, || told(cluster, node).0 == expected);
    told(cluster, node).1
}

/// An ImagePrefetch of one image with a gate, once it is planned.
fn gated(cluster: &Kubernetes, name: &str, timeout: &str) -> String {
    let mut spec = list(&[&format!("registry.example/{name}:1")]);
    spec["nodeGate"] = json!({"timeout": timeout});
    let path = prefetch(cluster, name, spec);
    eventually("planned", SOON, || images(cluster, name).len() == 1);
    path
}

fn opens_when_complete(cluster: Controlled) {
    let name = unique("shop");
    let path = gated(&cluster, &name, "1h");
    // A prefetch without a gate, whose image is broken, holds nobody.
    let free = unique("free");
    prefetch(&cluster, &free, list(&["registry.example/broken:1"]));
    eventually("planned", SOON, || images(&cluster, &free).len() == 1);
    let before = [
        taint("other"),
        taint(GATE),
        taint("more"),
        taint(AUTOSCALER),
    ];
    join(&cluster, "new", json!(before));
    join(&cluster, "plain", json!([taint("other")]));
    let message = wait_told(&cluster, "new", "False Pulling");
    assert!(message.contains(&name), "{message}");
    let revision = current(&cluster, &name);
    let broken =
        json!([{"image": "registry.example/broken:1", "reason": "not_found", "message": "no"}]);
    let of = |present| {
        json!([
            entry(&name, &revision, [1, present, 0, 0]),
            entry(&free, &current(&cluster, &free), [1, 0, 0, 1])
        ])
    };
    report(&cluster, "new", of(0), broken.clone());
    // A number of nodes that changes without a condition is written every 30 s.
    eventually("reported", 2 * SOON, || {
        let progressing = super::condition(&cluster, &path, "Progressing").2;
        progressing.contains("nodes held by the node gate: 1")
    });
    assert_eq!(taints(&cluster, "new").len(), 4);
    let complete = Instant::now();
    report(&cluster, "new", of(1), broken);
    eventually("opened", SOON, || {
        taints(&cluster, "new") == ["other", "more"]
    });
    eprintln!("complete to open: {:?}", complete.elapsed());
    wait_told(&cluster, "new", "True Complete");
    assert_eq!(taints(&cluster, "plain"), ["other"]);
    assert_eq!(told(&cluster, "plain").0, " ");
    // A node that needs none of the images.
    join(&cluster, "unneeded", json!([taint(GATE)]));
    let none = json!([entry(&name, &revision, [0, 0, 0, 0])]);
    report(&cluster, "unneeded", none, json!([]));
    eventually("opened", SOON, || taints(&cluster, "unneeded").is_empty());
}

#[test]
fn gate_opens_once_images_are_present() {
    opens_when_complete(Controlled::start(Kubernetes::start()));
}

#[test]
fn gate_opens_on_newer_api_server() {
    opens_when_complete(Controlled::start(Kubernetes::start_newer()));
}

#[test]
fn timeout_opens_and_names_image() {
    let cluster = Controlled::start(Kubernetes::start());
    let name = unique("broken");
    gated(&cluster, &name, "30s");
    join(&cluster, "late", json!([taint(GATE), taint("other")]));
    let joined = Instant::now();
    let image = format!("registry.example/{name}:1");
    let failure = json!([{"image": image, "reason": "not_found", "message": "no"}]);
    let entries = json!([entry(&name, &current(&cluster, &name), [1, 0, 0, 1])]);
    report(&cluster, "late", entries, failure);
    let message = wait_told(&cluster, "late", "False ImageFailed");
    assert!(message.contains(&image), "{message}");
    eventually("opened", SOON, || taints(&cluster, "late") == ["other"]);
    let held = joined.elapsed();
    eprintln!("opened after {held:?} with a timeout of 30s");
    assert!(held > Duration::from_secs(27), "{held:?}");
    let message = wait_told(&cluster, "late", "True TimedOut");
    assert!(
        message.contains(&image) && message.contains("NotFound"),
        "{message}"
    );
    eventually("the event", SOON, || {
        let events = cluster.get("/apis/events.k8s.io/v1/events")["items"].take();
        events.as_array().unwrap().iter().any(|event| {
            event["regarding"]["kind"] == "Node"
                && event["regarding"]["name"] == "late"
                && event["reason"] == "TimedOut"
                && event["note"].as_str().unwrap().contains(&image)
        })
    });
}

#[test]
fn nodes_without_gate_are_opened() {
    let cluster = Controlled::start(Kubernetes::start());
    // No ImagePrefetch at all.
    join(&cluster, "free", json!([taint(GATE), taint("other")]));
    eventually("opened", SOON, || taints(&cluster, "free") == ["other"]);
    // The gate goes while a node is held.
    let name = unique("shop");
    let path = gated(&cluster, &name, "1h");
    join(&cluster, "held", json!([taint(AUTOSCALER)]));
    wait_told(&cluster, "held", "False Pulling");
    cluster.patch(&path, json!({"spec": {"nodeGate": null}}));
    eventually("opened", SOON, || taints(&cluster, "held").is_empty());
    wait_told(&cluster, "held", "True NoGate");
    // It comes back, and its object is deleted.
    cluster.patch(&path, json!({"spec": {"nodeGate": {"timeout": "1h"}}}));
    join(&cluster, "again", json!([taint(GATE)]));
    wait_told(&cluster, "again", "False Pulling");
    cluster.delete(&path);
    eventually("opened", SOON, || taints(&cluster, "again").is_empty());
}

#[test]
fn standby_opens_for_killed_controller() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    let harpoon = controller(&cluster);
    let first = harpoon.start();
    first.wait_for("leading", SOON);
    let standby = Shown(harpoon.start());
    let name = unique("shop");
    gated(&cluster, &name, "15s");
    join(&cluster, "silent", json!([taint(GATE)]));
    join(&cluster, "complete", json!([taint(GATE)]));
    wait_told(&cluster, "complete", "False Pulling");
    first.signal(Signal::KILL);
    drop(first);
    // Nobody leads now: what is complete meanwhile, and what times out, is opened by the standby.
    let entries = json!([entry(&name, &current(&cluster, &name), [1, 1, 0, 0])]);
    report(&cluster, "complete", entries, json!([]));
    let killed = Instant::now();
    standby.wait_for("leading", SOON);
    eventually("opened", SOON, || {
        taints(&cluster, "complete").is_empty() && taints(&cluster, "silent").is_empty()
    });
    eprintln!("killed to open: {:?}", killed.elapsed());
    wait_told(&cluster, "silent", "True TimedOut");
    wait_told(&cluster, "complete", "True Complete");
}

#[test]
fn late_controller_opens_overdue_nodes() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    let harpoon = controller(&cluster);
    let pair = [harpoon.start(), harpoon.start()];
    let name = unique("shop");
    gated(&cluster, &name, "1h");
    join(&cluster, "overdue", json!([taint(GATE), taint("other")]));
    wait_told(&cluster, "overdue", "False Pulling");
    for running in &pair {
        running.signal(Signal::KILL);
    }
    drop(pair);
    // Nodes join and become old while no controller runs; an agent reports all the same.
    for node in ["filled", "silent", "young"] {
        join(&cluster, node, json!([taint(GATE)]));
    }
    let entries = json!([entry(&name, &current(&cluster, &name), [1, 1, 0, 0])]);
    report(&cluster, "filled", entries, json!([]));
    for node in ["overdue", "silent"] {
        cluster.age_node(node, Duration::from_secs(3600));
    }
    assert_eq!(taints(&cluster, "overdue"), [GATE, "other"]);
    let late = Shown(harpoon.start());
    let started = Instant::now();
    late.wait_for("leading", SOON);
    let leads = started.elapsed();
    eventually("opened", SOON, || {
        ["filled", "silent"].map(|node| taints(&cluster, node).len()) == [0, 0]
            && taints(&cluster, "overdue") == ["other"]
    });
    eprintln!(
        "leads after {leads:?}, opened after {:?}",
        started.elapsed()
    );
    wait_told(&cluster, "overdue", "True TimedOut");
    wait_told(&cluster, "silent", "True TimedOut");
    wait_told(&cluster, "filled", "True Complete");
    wait_told(&cluster, "young", "False Pulling");
    assert_eq!(taints(&cluster, "young"), [GATE]);
}

#[test]
fn recreated_node_needs_new_report() {
    let cluster = Controlled::start(Kubernetes::start());
    let name = unique("shop");
    gated(&cluster, &name, "1h");
    let entries = json!([entry(&name, &current(&cluster, &name), [1, 1, 0, 0])]);
    join(&cluster, "spot", json!([taint(GATE)]));
    report(&cluster, "spot", entries, json!([]));
    eventually("opened", SOON, || taints(&cluster, "spot").is_empty());
    wait_told(&cluster, "spot", "True Complete");
    // The object of the earlier Node stays for a while.
    cluster.delete("/api/v1/nodes/spot");
    let node = json!({"metadata": {"name": "spot"}, "spec": {"taints": [taint(GATE)]}});
    let created = cluster.create("/api/v1/nodes", node);
    wait_told(&cluster, "spot", "False Pulling");
    assert_eq!(taints(&cluster, "spot"), [GATE]);
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": "spot", "uid": created["metadata"]["uid"]});
    let adopted = json!({"metadata": {"ownerReferences": [owner]}});
    cluster.patch(&format!("{NODES}/spot"), adopted);
    eventually("opened", SOON, || taints(&cluster, "spot").is_empty());
}

#[test]
fn many_nodes_are_opened_at_a_pace() {
    let count: u32 = std::env::var("HARPOON_GATED_NODES").map_or(200, |n| n.parse().unwrap());
    let cluster = Controlled::start(Kubernetes::start());
    let name = unique("shop");
    let path = gated(&cluster, &name, "1h");
    let node =
        |n| json!({"metadata": {"name": format!("node-{n}")}, "spec": {"taints": [taint(GATE)]}});
    cluster.create_all("/api/v1/nodes", (0..count).map(node).collect());
    let seconds = Duration::from_secs(u64::from(count / 50));
    let held = format!("nodes held by the node gate: {count}");
    eventually("all are held", SOON + seconds, || {
        super::condition(&cluster, &path, "Progressing")
            .2
            .contains(&held)
    });
    // All of them open at the same moment.
    cluster.patch(&path, json!({"spec": {"nodeGate": null}}));
    let began = Instant::now();
    eventually("opened", SOON + seconds * 3, || {
        let nodes = cluster.get("/api/v1/nodes")["items"].take();
        let mut nodes = nodes.as_array().unwrap().iter();
        nodes.all(|node| !node["spec"]["taints"].to_string().contains(GATE))
    });
    eprintln!("{count} nodes: opened after {:?}", began.elapsed());
    assert!(began.elapsed() + Duration::from_secs(1) > seconds);
}

#[test]
fn others_changes_of_taints_stay() {
    let cluster = Controlled::start(Kubernetes::start());
    let name = unique("busy");
    gated(&cluster, &name, "1h");
    let nodes: Vec<String> = (0..10).map(|n| format!("node-{n}")).collect();
    for node in &nodes {
        join(&cluster, node, json!([taint("first"), taint(GATE)]));
    }
    let entries = json!([entry(&name, &current(&cluster, &name), [1, 1, 0, 0])]);
    for (n, node) in nodes.iter().enumerate() {
        report(&cluster, node, entries.clone(), json!([]));
        // Somebody else changes the list at the same time, as it was when they read it.
        let path = format!("/api/v1/nodes/{node}");
        loop {
            let mut object = cluster.get(&path);
            let list = object["spec"]["taints"].as_array_mut().unwrap();
            list.insert(0, taint(&format!("added-{n}")));
            let (status, _) = cluster.request_as(
                &[],
                &Method::PATCH,
                &path,
                Some(json!({
                "metadata": {"resourceVersion": object["metadata"]["resourceVersion"]},
                "spec": {"taints": object["spec"]["taints"]}})),
            );
            if status == 200 {
                break;
            }
        }
    }
    for (n, node) in nodes.iter().enumerate() {
        eventually("opened", SOON, || {
            taints(&cluster, node) == [format!("added-{n}"), "first".to_owned()]
        });
    }
}

#[test]
fn fought_over_taint_goes_ever_slower() {
    let cluster = Controlled::start(Kubernetes::start());
    join(&cluster, "fought", json!([taint(GATE)]));
    let began = Instant::now();
    let mut removals = 0;
    while began.elapsed() < Duration::from_secs(12) {
        if taints(&cluster, "fought").is_empty() {
            removals += 1;
            let again = json!({"spec": {"taints": [taint(GATE)]}});
            cluster.patch("/api/v1/nodes/fought", again);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    eprintln!("removed {removals} times in 12 s");
    assert!((2..=6).contains(&removals), "{removals}");
    eventually("opened", SOON * 2, || taints(&cluster, "fought").is_empty());
}

#[test]
fn missing_right_degrades_gated_prefetch() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    let (namespace, name) = (cluster.namespace(), unique("controller"));
    let token = cluster.service_account(&namespace, &name);
    let account = (namespace.as_str(), name.as_str());
    cluster.grant(
        account,
        None,
        &json!([
            {"apiGroups": ["harpoon.dev"], "resources": ["*"], "verbs": ["*"]},
            {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]},
            {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        ]),
    );
    let harpoon = controller(&cluster);
    let config = harpoon.home().join("kubeconfig");
    cluster.write_kubeconfig(&config, cluster.server(), &token, &namespace);
    let _running = Shown(harpoon.env("KUBECONFIG", &config).start());
    let free = prefetch(&cluster, "free", list(&["registry.example/free:1"]));
    let path = gated(&cluster, "gated", "10s");
    join(&cluster, "held", json!([taint(GATE)]));
    let message = wait_for(&cluster, &path, "Degraded", ("True", "Forbidden"));
    assert!(
        message.contains("\"list\" and \"watch\" on \"nodes\""),
        "{message}"
    );
    wait_for(&cluster, &free, "Degraded", ("False", "NoAgents"));
    assert_eq!(planned(&cluster, "gated").len(), 1);
    let rule = |resource: &str, verbs: Value| json!([{"apiGroups": [""], "resources": [resource], "verbs": verbs}]);
    cluster.grant(
        account,
        None,
        &rule("nodes", json!(["get", "list", "watch"])),
    );
    eventually("the verb to patch", SOON * 3, || {
        let message = super::condition(&cluster, &path, "Degraded").2;
        message.contains("\"patch\" on \"nodes\" ")
    });
    cluster.grant(account, None, &rule("nodes", json!(["patch"])));
    // The condition is refused, and the taint goes nevertheless.
    eventually("opened", SOON * 2, || taints(&cluster, "held").is_empty());
    assert_eq!(told(&cluster, "held").0, " ");
    eventually("the verb for the condition", SOON, || {
        let message = super::condition(&cluster, &path, "Degraded").2;
        message.contains("\"nodes/status\"")
    });
}
