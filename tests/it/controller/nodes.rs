//! The reports of many nodes become one status.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    Controlled, NODES, PLANNED, SOON, controller, images, list, planned, prefetch, redefine,
    wait_for,
};
use crate::bed::{Kubernetes, eventually, unique};

/// The revision as the agents compute it.
fn revision(names: BTreeSet<String>) -> String {
    let text = Vec::from_iter(names).join("\n");
    let digest = Sha256::digest(text.as_bytes());
    digest
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub(super) fn current(cluster: &Kubernetes, prefetch: &str) -> String {
    let objects = planned(cluster, prefetch).into_values();
    let names = objects.map(|object| {
        assert!(object["spec"]["placements"].is_null(), "{object}");
        object["metadata"]["name"].as_str().unwrap().to_owned()
    });
    revision(names.collect())
}

pub(super) fn time_ago(seconds: u64) -> String {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

fn create_nodes(cluster: &Kubernetes, nodes: usize) {
    let nodes = (0..nodes).map(|n| {
        json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "NodePrefetch", "metadata": {"name": format!("node-{n}")}})
    });
    cluster.create_all(NODES, nodes.collect());
}

/// Writes the status of a node: the counts of one ImagePrefetch, and the failures.
fn report(cluster: &Kubernetes, node: usize, entry: &Value, failures: &Value, beat: &str) {
    let status = json!({"conditions": [], "desired": entry["desired"], "present": entry["present"], "pulling": 0,
        "failed": entry["failed"], "prefetches": [entry], "failures": failures, "heartbeatTime": beat});
    cluster.patch(
        &format!("{NODES}/node-{node}/status"),
        json!({"status": status}),
    );
}

pub(super) fn entry(name: &str, revision: &str, counts: [u32; 4]) -> Value {
    let [desired, present, pulling, failed] = counts;
    json!({"name": name, "revision": revision, "desired": desired, "present": present, "pulling": pulling, "failed": failed})
}

#[test]
fn status_sums_up_nodes() {
    let cluster = Controlled::start(Kubernetes::start());
    let count = 200;
    let name = unique("sum");
    let image = |tag: u32| format!("registry.example/{name}:{tag}");
    let path = prefetch(&cluster, &name, list(&[&image(1), &image(2)]));
    eventually("planned", SOON, || images(&cluster, &name).len() == 2);
    create_nodes(&cluster, count);
    let revision = current(&cluster, &name);
    let counts = |expected: [usize; 5]| {
        let names = ["desired", "complete", "updating", "failing", "unknown"];
        let expected: Value = names
            .iter()
            .map(|name| (*name).to_owned())
            .zip(expected.map(Value::from))
            .collect::<serde_json::Map<_, _>>()
            .into();
        let started = std::time::Instant::now();
        // While nodes fill, other counts alone are written half a minute after the last write.
        eventually(&expected.to_string(), 2 * SOON, || {
            cluster.get(&path)["status"]["nodes"] == expected
        });
        eprintln!("{expected} after {:?}", started.elapsed());
    };
    counts([count, 0, count, 0, 0]);
    // Half of the nodes need nothing.
    for node in 0..count {
        let wanted = if node % 2 == 0 { [2, 2, 0, 0] } else { [0; 4] };
        report(
            &cluster,
            node,
            &entry(&name, &revision, wanted),
            &json!([]),
            &time_ago(0),
        );
    }
    counts([count / 2, count / 2, 0, 0, 0]);
    wait_for(&cluster, &path, "Ready", ("True", "Complete"));
    wait_for(&cluster, &path, "Degraded", ("False", "Complete"));
    // Failures: one image on three nodes, another on one, and what no ImagePrefetch has is ignored.
    let failure = |image: &str, reason: &str| json!({"image": image, "reason": reason, "message": "said\u{1b}[31m the registry"});
    for node in [0, 2, 4] {
        let failures = json!([
            failure(&image(1), "not_found"),
            failure("registry.example/foreign:1", "other")
        ]);
        report(
            &cluster,
            node,
            &entry(&name, &revision, [2, 1, 0, 1]),
            &failures,
            &time_ago(0),
        );
    }
    let failures = json!([failure(&image(2), "no_space")]);
    report(
        &cluster,
        6,
        &entry(&name, &revision, [2, 1, 0, 1]),
        &failures,
        &time_ago(0),
    );
    report(
        &cluster,
        8,
        &entry(&name, "old", [2, 2, 0, 0]),
        &json!([]),
        &time_ago(0),
    );
    counts([count / 2, count / 2 - 5, 1, 4, 0]);
    let message = wait_for(&cluster, &path, "Ready", ("False", "NotFound"));
    assert!(
        message.contains(&image(1)) && message.contains("node-0") && !message.contains('\u{1b}'),
        "{message}"
    );
    wait_for(&cluster, &path, "Degraded", ("True", "NotFound"));
    wait_for(&cluster, &path, "Progressing", ("True", "Updating"));
    let failures = cluster.get(&path)["status"]["failures"].take();
    assert_eq!(failures.as_array().unwrap().len(), 2, "{failures}");
    assert_eq!(
        (
            &failures[0]["reason"],
            &failures[0]["nodes"],
            &failures[0]["exampleNode"]
        ),
        (&json!("NotFound"), &json!(3), &json!("node-0"))
    );
    assert_eq!(
        (&failures[1]["reason"], &failures[1]["nodes"]),
        (&json!("NoSpace"), &json!(1))
    );
    // A new image: nobody has seen it yet.
    cluster.patch(
        &path,
        json!({"spec": {"source": {"images": [image(1), image(2), image(3)]}}}),
    );
    counts([count, 0, count - 4, 4, 0]);
    let revision = current(&cluster, &name);
    for node in 0..count {
        report(
            &cluster,
            node,
            &entry(&name, &revision, [3, 3, 0, 0]),
            &json!([]),
            &time_ago(0),
        );
    }
    counts([count, count, 0, 0, 0]);
    wait_for(&cluster, &path, "Ready", ("True", "Complete"));
    let events = cluster.get("/apis/events.k8s.io/v1/events")["items"].take();
    let about: Vec<&Value> = events
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["regarding"]["name"] == name.as_str())
        .collect();
    assert!(
        about.iter().any(|event| event["reason"] == "Complete"),
        "{about:?}"
    );
    assert!(about.len() <= 10, "{about:?}");
}

/// The writes that a controller makes, as the API server has counted them: of PlannedImages, statuses and Events.
fn writes(cluster: &Kubernetes) -> BTreeMap<String, u64> {
    let metrics = cluster.text("/metrics");
    let mut writes = BTreeMap::new();
    for line in metrics.lines() {
        let Some(series) = line.strip_prefix("apiserver_request_total{") else {
            continue;
        };
        let (labels, count) = series.rsplit_once("} ").unwrap();
        let has = |label: &str| labels.contains(label);
        let resource = match () {
            () if ["GET", "LIST", "WATCH"]
                .iter()
                .any(|verb| has(&format!("verb=\"{verb}\""))) =>
            {
                continue;
            }
            () if has("resource=\"plannedimages\"") => "plannedimages",
            () if has("resource=\"events\"") => "events",
            () if has("resource=\"imageprefetches\"") && has("subresource=\"status\"") => {
                "imageprefetches/status"
            }
            () => continue,
        };
        *writes.entry(resource.to_owned()).or_default() += count.parse::<f64>().unwrap() as u64;
    }
    writes
}

#[test]
fn new_image_costs_five_writes() {
    let cluster = Controlled::start(Kubernetes::start());
    let (name, count) = (unique("cheap"), 50);
    let spec = |tag: u32| json!({"source": {"images": [format!("registry.example/{name}:{tag}")]}});
    let path = prefetch(&cluster, &name, spec(1));
    eventually("planned", SOON, || images(&cluster, &name).len() == 1);
    create_nodes(&cluster, count);
    let settle = |pause: Duration| {
        let entry = entry(&name, &current(&cluster, &name), [1, 1, 0, 0]);
        for node in 0..count {
            report(&cluster, node, &entry, &json!([]), &time_ago(0));
            std::thread::sleep(pause);
        }
        wait_for(&cluster, &path, "Ready", ("True", "Complete"));
    };
    settle(Duration::ZERO);
    std::thread::sleep(Duration::from_secs(8));
    let (before, began) = (writes(&cluster), Instant::now());
    cluster.patch(&path, json!({"spec": spec(2)}));
    wait_for(&cluster, &path, "Ready", ("False", "Updating"));
    assert_eq!(cluster.get(&path)["status"]["nodes"]["updating"], count);
    // Each node has the image at another time.
    settle(Duration::from_millis(100));
    std::thread::sleep(Duration::from_secs(8));
    let after = writes(&cluster);
    let mut made: BTreeMap<&str, u64> = after
        .iter()
        .map(|(of, writes)| (of.as_str(), writes - before.get(of).unwrap_or(&0)))
        .collect();
    // Progress is told every 30 s, if it takes that long.
    let statuses = made.remove("imageprefetches/status").unwrap_or(0);
    let most = 2 + began.elapsed().as_secs() / 30;
    assert!((2..=most).contains(&statuses), "{statuses} of {most}");
    assert_eq!(made, [("events", 1), ("plannedimages", 2)].into());
}

#[test]
fn silent_nodes_are_unknown_until_heard() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    let name = unique("silent");
    let image = format!("registry.example/{name}:1");
    let path = prefetch(&cluster, &name, list(&[&image]));
    let first = controller(&cluster).start();
    eventually("planned", SOON, || images(&cluster, &name).len() == 1);
    drop(first);
    create_nodes(&cluster, 2);
    let revision = current(&cluster, &name);
    report(
        &cluster,
        0,
        &entry(&name, &revision, [1, 1, 0, 0]),
        &json!([]),
        &time_ago(0),
    );
    report(
        &cluster,
        1,
        &entry(&name, &revision, [1, 1, 0, 0]),
        &json!([]),
        &time_ago(600),
    );
    let _second = controller(&cluster).start();
    let message = wait_for(&cluster, &path, "Ready", ("False", "NodesUnknown"));
    assert!(message.contains("1 of 2 nodes are complete"), "{message}");
    let nodes = || cluster.get(&path)["status"]["nodes"].take();
    assert_eq!(
        (&nodes()["complete"], &nodes()["unknown"]),
        (&json!(1), &json!(1))
    );
    report(
        &cluster,
        1,
        &entry(&name, &revision, [1, 1, 0, 0]),
        &json!([]),
        &time_ago(0),
    );
    wait_for(&cluster, &path, "Ready", ("True", "Complete"));
    // A node that is gone does not count.
    cluster.delete(&format!("{NODES}/node-1"));
    eventually("forgotten", SOON, || nodes()["desired"] == 1);
}

#[test]
fn rate_limit_doubles_window() {
    let cluster = Controlled::start(Kubernetes::start());
    let name = unique("brake");
    let image = |tag: u32| format!("registry.example/{name}:{tag}");
    prefetch(&cluster, &name, list(&[&image(1), &image(2)]));
    eventually("planned", SOON, || images(&cluster, &name).len() == 2);
    create_nodes(&cluster, 1);
    let failure = json!([{"image": image(1), "reason": "rate_limited", "message": "429"}]);
    let entry = entry(&name, &current(&cluster, &name), [2, 1, 0, 1]);
    report(&cluster, 0, &entry, &failure, &time_ago(0));
    eventually("braked", SOON, || {
        planned(&cluster, &name)[&image(1)]["spec"]["rollout"]["window"] == "240s"
    });
    let objects = planned(&cluster, &name);
    assert_eq!(
        objects[&image(1)]["metadata"]["annotations"]["harpoon.dev/rollout-brake"],
        "1"
    );
    assert_eq!(objects[&image(2)]["spec"]["rollout"]["window"], "2m");
    // Once a minute, and only that.
    let version = objects[&image(1)]["metadata"]["resourceVersion"].clone();
    report(&cluster, 0, &entry, &failure, &time_ago(1));
    std::thread::sleep(Duration::from_secs(5));
    let object = format!(
        "{PLANNED}/{}",
        objects[&image(1)]["metadata"]["name"].as_str().unwrap()
    );
    assert_eq!(cluster.get(&object)["metadata"]["resourceVersion"], version);
}

/// Fails if an ImagePrefetch, whichever has the name now, is ready within some time. Its only node keeps reporting this entry.
fn assert_never_ready(cluster: &Kubernetes, path: &str, entry: &Value, time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        report(cluster, 0, entry, &json!([]), &time_ago(0));
        let object = cluster.get(path);
        let conditions = object["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        assert!(
            !conditions.any(|c| c["type"] == "Ready" && c["status"] == "True"),
            "{object}"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn refused_planned_image_is_not_ready() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    // As a policy of the cluster would refuse it, or the definition of another version.
    redefine(&cluster, |properties| {
        properties["image"]["maxLength"] = json!(30);
    });
    let _running = controller(&cluster).start();
    create_nodes(&cluster, 1);
    let good = "registry.example/good:1";
    let bad = format!("registry.example/{}:1", unique("refused-image"));
    let path = prefetch(&cluster, "shop", list(&[good, &bad]));
    eventually("planned", SOON, || images(&cluster, "shop") == [good]);
    // The node has all that it is told of.
    let entry = entry("shop", &current(&cluster, "shop"), [1, 1, 0, 0]);
    assert_never_ready(&cluster, &path, &entry, Duration::from_secs(10));
    let message = wait_for(&cluster, &path, "Degraded", ("True", "WriteRefused"));
    assert!(message.contains("spec.image"), "{message}");
}

#[test]
fn recreated_prefetch_starts_anew() {
    let cluster = Controlled::start(Kubernetes::start());
    create_nodes(&cluster, 1);
    let image = |tag: u32| format!("registry.example/shop:{tag}");
    let path = prefetch(&cluster, "shop", list(&[&image(42)]));
    eventually("planned", SOON, || images(&cluster, "shop") == [image(42)]);
    let entry = entry("shop", &current(&cluster, "shop"), [1, 1, 0, 0]);
    report(&cluster, 0, &entry, &json!([]), &time_ago(0));
    wait_for(&cluster, &path, "Ready", ("True", "Complete"));
    // So that the pace of statuses delays nothing.
    std::thread::sleep(Duration::from_secs(6));
    cluster.delete(&path);
    prefetch(&cluster, "shop", list(&[&image(43)]));
    assert_never_ready(&cluster, &path, &entry, Duration::from_secs(8));
    wait_for(&cluster, &path, "Ready", ("False", "Updating"));
}
