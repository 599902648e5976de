//! Measures the benefit of harpoon: the time for a pod of a large image from scheduling to running, without and with it.

use super::*;
use crate::bed::{Logged, has_newer_runtimes, program, uptime};
use crate::pictures::draw_all;
use crate::pictures::results::{Column, Conditions, Line, Part, load, median, spread};

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

    let [mut loopback, mut linked, mut present] = [const { Vec::new() }; 3];
    for _ in 0..runs() {
        let (seconds, events) = measure(turn, "large");
        assert!(pulling(&events), "{events:?}");
        loopback.push(seconds);
        turn.cluster.forget(&image);
        let slow = turn.cluster.slow_network(LINK);
        let (seconds, events) = measure(turn, "large");
        assert!(pulling(&events), "{events:?}");
        linked.push(seconds);
        drop(slow);
        turn.cluster.forget(&image);
    }
    let harpoon = turn.install(&manifests("daemonset-auto.yaml"));
    summary(&harpoon.ready());
    for _ in 0..runs() {
        let (seconds, events) = measure(turn, "large");
        assert!(!pulling(&events), "{events:?}");
        present.push(seconds);
    }
    let table = Table {
        name: "pod-start",
        text: "Time from scheduled to running, for a pod with an image of 300 MB that does not compress, so that unpacking it costs almost \
               nothing: unpacking real images makes the wait longer. A registry on the same machine is what no cluster has.",
        what: "a public image",
    };
    table.told(
        turn,
        &[
            ("pulled by harpoon before", present),
            (LOOPBACK, loopback),
            (LINKED, linked),
        ],
    );
}

/// A pod of a private image: sealed it starts nearly as soon as with the name there, which lets any pod have it.
pub(super) fn private(turn: &Turn<'_>) {
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
    for _ in 0..runs() {
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
    let table = Table {
        name: "pod-start-private",
        text: "The same for a private image, whose pods have a pull secret. Not sealed, any pod on the node may run the image; sealed, only \
               pods with the secret. Meanwhile the registry gets two HEAD requests for the manifest of a sealed image, one without and one \
               with the credential, and no request for a layer. The kubelet is 1.20, which does not verify pulls (KEP-2535): once a pod with \
               the secret has pulled the image, any pod may run it until its name is removed.",
        what: "a private image",
    };
    table.told(
        turn,
        &[
            ("sealed by harpoon before", sealed),
            ("pulled by harpoon before, not sealed", named),
            (LOOPBACK, absent),
            (LINKED, linked),
        ],
    );
}

const LOOPBACK: &str = "pulled by the kubelet, registry on the same machine";
const LINKED: &str = "pulled by the kubelet, link of 400 Mbit/s";

/// The number of measurements of a case.
fn runs() -> usize {
    std::env::var("RUNS").map_or(1, |text| text.parse().expect("RUNS is a number"))
}

/// A table of starts of a pod: what it is called in the stored results.
struct Table {
    name: &'static str,
    text: &'static str,
    what: &'static str,
}

impl Table {
    /// Prints the medians; with `RECORD=1` the results are stored, for docs/benchmarks.md and its pictures.
    fn told(&self, turn: &Turn<'_>, rows: &[(&str, Vec<f64>)]) {
        let nodes = turn.cluster.api.get("/api/v1/nodes");
        let runtime = &nodes["items"][0]["status"]["nodeInfo"]["containerRuntimeVersion"];
        let runtime = runtime.as_str().unwrap().replace("://", " ");
        let version: Vec<_> = runtime.split('.').take(2).collect();
        let first = median(&rows[0].1);
        let lines = rows.iter().map(|(row, seconds)| Line::Row {
            row: (*row).to_owned(),
            cells: vec![spread(seconds, 2)],
            ratio: median(seconds) / first,
        });
        let newer = has_newer_runtimes();
        let mut part = Part {
            name: format!("{}{}", self.name, if newer { "-modern" } else { "" }),
            conditions: Conditions::now(program(), load()),
            lines: vec![
                Line::Text {
                    text: self.text.to_owned(),
                },
                Line::Table {
                    table: format!("{}, {}", self.what, version.join(".")),
                    columns: vec![Column {
                        title: "seconds".to_owned(),
                        decimals: 2,
                    }],
                },
            ],
        };
        part.lines.extend(lines);
        part.lines.push(Line::Text {
            text: format!(
                "Command: `make bench ONLY=pod-start`. Medians of {}; {runtime}.",
                runs(),
            ),
        });
        eprintln!("{}", part.section());
        if std::env::var("RECORD").is_ok_and(|value| !value.is_empty()) {
            part.record();
            draw_all();
        }
    }
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
