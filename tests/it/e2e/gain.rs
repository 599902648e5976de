//! Measures the benefit of harpoon: the time for a pod of a large image from scheduling to running, without and with it.

use super::*;
use crate::bed::uptime;

const BYTES: u64 = 300_000_000;
/// A usual share of a node's link, in bits per second.
const LINK: u64 = 400_000_000;

/// A pod starts without waiting for its image.
pub(super) fn measured(turn: &Turn<'_>) {
    let name = format!("{}:1", unique("large"));
    let image = turn
        .cluster
        .image(&name)
        .size(BYTES)
        .layers(3)
        .uncompressed()
        .push();
    turn.deployment("large", &image.reference);

    let (loopback, events) = measure(turn);
    assert!(pulling(&events), "{events:?}");
    turn.cluster.forget(&image);
    let slow = turn.cluster.slow_network(LINK);
    let (linked, events) = measure(turn);
    assert!(pulling(&events), "{events:?}");
    drop(slow);
    turn.cluster.forget(&image);

    let harpoon = turn.install(&manifests("daemonset-auto.yaml"));
    summary(&harpoon.ready());
    let (present, events) = measure(turn);
    assert!(!pulling(&events), "{events:?}");
    eprintln!(
        "a pod of a {} MB image, from scheduled to running:\n  \
         image present, by harpoon           {present:6.2} s\n  \
         pulled from a registry on loopback  {loopback:6.2} s   {:5.1} times as long\n  \
         pulled at {} Mbit/s                {linked:6.2} s   {:5.1} times as long",
        image.bytes / 1_000_000,
        loopback / present,
        LINK / 1_000_000,
        linked / present,
    );
}

/// Scales the Deployment up and down again; returns the seconds from the scheduling of its pod to the start of its process, and
/// the pod's events.
/// pod's events.
fn measure(turn: &Turn<'_>) -> (f64, Vec<String>) {
    let (cluster, namespace) = (turn.cluster, turn.namespace.as_str());
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/large");
    let scheduled = std::thread::scope(|scope| {
        let scheduled = scope.spawn(|| {
            loop {
                let pods = cluster.pods(namespace, "app=large");
                if pods.iter().any(|pod| pod["spec"]["nodeName"].is_string()) {
                    break uptime();
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        cluster.api.patch(&path, json!({"spec": {"replicas": 1}}));
        scheduled.join().unwrap()
    });
    let pod = turn.scale_up("large");
    let started = cluster
        .process(&pod["status"]["containerStatuses"][0])
        .started();
    let events = turn.pulled(&pod);
    cluster.api.patch(&path, json!({"spec": {"replicas": 0}}));
    let none = || {
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app%3Dlarge");
        let pods = cluster.api.get(&path);
        pods["items"].as_array().unwrap().is_empty().then_some(())
    };
    cluster.wait_for(namespace, "the pod is gone", none);
    (started - scheduled, events)
}

fn pulling(events: &[String]) -> bool {
    events.iter().any(|event| event.starts_with("Pulling: "))
}
