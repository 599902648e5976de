//! The start of a run, and its requests to the API server by then.

use std::time::Duration;

use harpoon::app::start_delay;
use rustix::process::Signal;
use serde_json::json;

use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{self, Harpoon, Kubernetes, containerd, kubernetes, registry, unique};
use crate::pulling::PATIENCE;

/// `harpoon run` on this node, for the namespace's Deployments.
fn run(cluster: &Kubernetes, namespace: &str, node: &str) -> Harpoon {
    let harpoon = Harpoon::new(["run", "--output=json", "--node-name", node]);
    let file = harpoon.home().join("kubeconfig");
    cluster.write_kubeconfig(&file, cluster.server(), cluster.token(), namespace);
    harpoon
        .env("KUBECONFIG", file)
        .env("RUNTIME_ENDPOINT", containerd().endpoint())
}

#[test]
fn only_old_node_waits_before_start() {
    let cluster = kubernetes();
    let (namespace, node) = (cluster.namespace(), unique("node"));
    cluster.create("/api/v1/nodes", json!({"metadata": {"name": node}}));
    let image = registry().push(&format!("{}:1", unique("web"))).reference;
    cluster.deployment(&namespace, "web", 1, &image);
    let harpoon = run(cluster, &namespace, &node).env("STAGGER", "1000h");
    let output = harpoon.run().expect(0);
    assert!(
        output.stderr.contains("starting at once: this node is "),
        "{output}"
    );
    assert_eq!(output.json()["summary"]["pulled"], 1, "{output}");

    // No node is younger than zero seconds. It has requested only its Node by then.
    let longest = Duration::from_secs(3_600_000);
    let delay = start_delay::delay(&node, longest, None, Duration::ZERO);
    assert!(
        delay > Duration::from_secs(600),
        "try another name: {delay:?}"
    );
    let running = harpoon.clone().env("STAGGER_MIN_AGE", "0s").start();
    running.wait_for("starting in ", PATIENCE);
    assert!(
        !running.stderr().contains("the cluster's workloads"),
        "{}",
        running.stderr()
    );
    running.signal(Signal::TERM);
    running.wait().expect(143);

    // After the delay, the deadline and the reported time begin.
    let short = Duration::from_secs(3);
    let delay = start_delay::delay(&node, short, None, Duration::ZERO);
    let harpoon = harpoon.env("STAGGER", "3s").env("STAGGER_MIN_AGE", "0s");
    let began = std::time::Instant::now();
    let output = harpoon.run().expect(0);
    assert!(began.elapsed() >= delay, "{output}");
    assert_eq!(output.json()["summary"]["present"], 1, "{output}");
}

#[test]
fn node_of_unknown_age_waits() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let image = registry().push(&format!("{}:1", unique("web"))).reference;
    // The cluster has no such node; and with a list there may be no cluster at all.
    let missing = run(cluster, &namespace, "no-such-node");
    let listed = Harpoon::new(["run", "--output=json", "--node-name=n1"]);
    std::fs::write(listed.home().join("images"), &image).unwrap();
    let listed = listed
        .env("IMAGES_FILE", "images")
        .env("RUNTIME_ENDPOINT", containerd().endpoint());
    for harpoon in [missing, listed] {
        let output = harpoon.env("STAGGER", "100ms").run().expect(0);
        assert!(
            output.stderr.contains("(--stagger); node age unknown"),
            "{output}"
        );
    }
}

#[test]
fn watch_cache_gives_the_same_list() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    for name in ["a", "b", "c"] {
        cluster.deployment(&namespace, name, 1, &format!("{name}.example/x:1"));
    }
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), |_| Fault::Pass);
    let plan = |arguments: &[&str]| {
        let harpoon = Harpoon::new(["plan", "--output=json"]).args(arguments.iter().copied());
        let file = harpoon.home().join("kubeconfig");
        cluster.write_kubeconfig(&file, &proxy.url(), cluster.token(), &namespace);
        harpoon.env("KUBECONFIG", file).run().expect(0).json()["images"].clone()
    };
    let paged = plan(&[]);
    assert_eq!(paged.as_array().unwrap().len(), 3);
    // The watch cache may be some moments behind.
    bed::eventually("the watch cache has them too", PATIENCE, || {
        plan(&["--watch-cache"]) == paged
    });
    let seen = proxy.seen();
    let queries: Vec<_> = seen.iter().map(|s| s.query.as_str()).collect();
    assert_eq!(
        (queries[0], *queries.last().unwrap()),
        ("limit=500", "resourceVersion=0")
    );
}
