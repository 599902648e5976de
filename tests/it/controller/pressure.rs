//! Events on Nodes while harpoon yields their disk: few, and none twice.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use super::nodes::{current, entry, time_ago};
use super::{NODES, SOON, Shown, controller, images, list, prefetch, wait_for};
use crate::bed::{Kubernetes, eventually, unique};

const MESSAGE: &str = "83% of the image file system is used: pulls wait until it is below 75%";

/// Creates a Node and its NodePrefetch, and returns the Node's uid.
fn join(cluster: &Kubernetes, node: &str) -> Value {
    let created = cluster.create("/api/v1/nodes", json!({"metadata": {"name": node}}));
    let uid = created["metadata"]["uid"].clone();
    let owner = json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid});
    let object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "NodePrefetch",
        "metadata": {"name": node, "ownerReferences": [owner]}});
    cluster.create(NODES, object);
    uid
}

/// Writes what the agent of a node reports: its disk is above the mark since a time, or it is not.
fn report(cluster: &Kubernetes, node: &str, since: Option<&str>) {
    let condition = since.map(|since| {
        json!({"type": "DiskPressure", "status": "True", "reason": "AboveHighMark", "message": MESSAGE, "lastTransitionTime": since})
    });
    let conditions = Vec::from_iter(condition);
    let status = json!({"conditions": conditions, "desired": 0, "present": 0, "pulling": 0, "failed": 0, "prefetches": [],
        "failures": [], "heartbeatTime": time_ago(0)});
    cluster.patch(&format!("{NODES}/{node}/status"), json!({"status": status}));
}

/// The Events of this kind on Nodes.
fn events(cluster: &Kubernetes) -> Vec<Value> {
    let mut events = cluster.get("/apis/events.k8s.io/v1/events")["items"].take();
    let mut events = std::mem::take(events.as_array_mut().unwrap());
    events
        .retain(|event| event["reason"] == "DiskPressure" && event["regarding"]["kind"] == "Node");
    events
}

fn leads(cluster: &Kubernetes) -> Shown {
    let running = Shown(controller(cluster).start());
    eventually("it leads", SOON, || {
        running.stderr().contains("ImagePrefetches on")
    });
    running
}

#[test]
fn full_disk_is_told_once() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    let first = leads(&cluster);
    let uid = join(&cluster, "full");
    join(&cluster, "fine");
    report(&cluster, "fine", None);
    let since = time_ago(30);
    report(&cluster, "full", Some(&since));
    eventually("an Event", SOON, || events(&cluster).len() == 1);
    let event = events(&cluster).remove(0);
    let about = &event["regarding"];
    assert_eq!(
        (&about["kind"], &about["name"], &about["uid"]),
        (&json!("Node"), &json!("full"), &uid)
    );
    assert_eq!(
        (&event["type"], &event["note"]),
        (&json!("Warning"), &json!(MESSAGE))
    );

    // An image that waits is named with this reason.
    let (name, image) = (unique("shop"), "registry.example/shop:1");
    let path = prefetch(&cluster, &name, list(&[image]));
    eventually("planned", SOON, || images(&cluster, &name) == [image]);
    let entry = entry(&name, &current(&cluster, &name), [1, 0, 0, 1]);
    let failure = json!({"image": image, "reason": "disk_pressure", "message": MESSAGE});
    let status = json!({"prefetches": [entry], "failures": [failure], "desired": 1, "failed": 1});
    cluster.patch(&format!("{NODES}/full/status"), json!({"status": status}));
    wait_for(&cluster, &path, "Degraded", ("True", "DiskPressure"));

    // The next leader knows of it.
    first.signal(Signal::KILL);
    drop(first);
    let _second = leads(&cluster);
    report(&cluster, "full", Some(&since));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(events(&cluster).len(), 1);

    // A disk that fills up again within the hour is no news.
    report(&cluster, "full", None);
    std::thread::sleep(Duration::from_secs(1));
    report(&cluster, "full", Some(&time_ago(0)));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(events(&cluster).len(), 1);
}

#[test]
fn many_full_disks_are_told_slowly() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    let nodes: Vec<String> = (0..40).map(|n| format!("node-{n}")).collect();
    for node in &nodes {
        join(&cluster, node);
        report(&cluster, node, Some(&time_ago(0)));
    }
    let _running = leads(&cluster);
    eventually("all Events", SOON, || events(&cluster).len() == nodes.len());
    let mut seconds: BTreeMap<String, usize> = BTreeMap::new();
    for event in events(&cluster) {
        let time = event["eventTime"].as_str().unwrap();
        *seconds.entry(time[..19].to_owned()).or_default() += 1;
    }
    assert!(seconds.values().all(|count| *count <= 6), "{seconds:?}");
}
