//! Measures the benefit of harpoon: the time for a pod of a large image from scheduling to running, without and with it.

use super::*;
use crate::bed::{Logged, uptime};

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

    let (loopback, events) = measure(turn, "large");
    assert!(pulling(&events), "{events:?}");
    turn.cluster.forget(&image);
    let slow = turn.cluster.slow_network(LINK);
    let (linked, events) = measure(turn, "large");
    assert!(pulling(&events), "{events:?}");
    drop(slow);
    turn.cluster.forget(&image);

    let harpoon = turn.install(&manifests("daemonset-auto.yaml"));
    summary(&harpoon.ready());
    let (present, events) = measure(turn, "large");
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

/// A pod of a private image: sealed it starts nearly as soon as with the name there, which lets any pod have it.
pub(super) fn private(turn: &Turn<'_>) {
    let runs = std::env::var("RUNS").map_or(1, |text| text.parse().expect("RUNS is a number"));
    let cluster = turn.cluster;
    let image = cluster.private_image(&format!("{}:1", unique("private-large")));
    let image = image.size(BYTES).layers(3).uncompressed().push();
    turn.private_deployment("private-large", &image.reference);

    let measure = || {
        let (seconds, events) = measure(turn, "private-large");
        cluster.collect(&image);
        (seconds, events)
    };
    let pull = |seal: &str| cluster.harpoon_runs(&["pull", "--seal", seal, &image.reference]);
    let [mut sealed, mut named, mut absent, mut linked] = [const { Vec::new() }; 4];
    for _ in 0..runs {
        let (seconds, events) = measure();
        assert!(pulling(&events), "{events:?}");
        absent.push(seconds);
        let slow = cluster.slow_network(LINK);
        let (seconds, events) = measure();
        assert!(pulling(&events), "{events:?}");
        linked.push(seconds);
        drop(slow);

        pull("never");
        let (seconds, events) = measure();
        assert!(!pulling(&events), "{events:?}");
        named.push(seconds);

        pull("always");
        assert!(!cluster.lists(&image));
        let asked = cluster.requests().len();
        let (seconds, events) = measure();
        assert!(pulling(&events), "{events:?}");
        let requests = cluster.requests().split_off(asked);
        assert!(!requests.iter().any(Logged::is_blob), "{requests:?}");
        sealed.push(seconds);
        cluster.harpoon_runs(&["release"]);
    }
    let [sealed, named, absent, linked] = [sealed, named, absent, linked].map(median);
    eprintln!(
        "a pod of a private image of {} MB, from scheduled to running, medians of {runs}:\n  \
         sealed by harpoon                   {sealed:6.2} s   for pods with the secret alone\n  \
         pulled before, not sealed           {named:6.2} s   for any pod on the node\n  \
         absent, from a registry on loopback {absent:6.2} s   {:5.1} times as long\n  \
         absent, at {} Mbit/s               {linked:6.2} s   {:5.1} times as long",
        image.bytes / 1_000_000,
        absent / sealed,
        LINK / 1_000_000,
        linked / sealed,
    );
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

/// Scales the Deployment up and down again; returns the seconds from the scheduling of its pod to the start of its process, and
/// the pod's events.
fn measure(turn: &Turn<'_>, name: &str) -> (f64, Vec<String>) {
    let (cluster, namespace) = (turn.cluster, turn.namespace.as_str());
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/{name}");
    let scheduled = std::thread::scope(|scope| {
        let scheduled = scope.spawn(|| {
            loop {
                let pods = cluster.pods(namespace, &format!("app={name}"));
                if pods.iter().any(|pod| pod["spec"]["nodeName"].is_string()) {
                    break uptime();
                }
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        });
        cluster.api.patch(&path, json!({"spec": {"replicas": 1}}));
        scheduled.join().unwrap()
    });
    let pod = turn.scale_up(name);
    let started = cluster
        .process(&pod["status"]["containerStatuses"][0])
        .started();
    let events = turn.pulled(&pod);
    cluster.api.patch(&path, json!({"spec": {"replicas": 0}}));
    turn.no_pods(name);
    (started - scheduled, events)
}

fn pulling(events: &[String]) -> bool {
    events.iter().any(|event| event.starts_with("Pulling: "))
}
