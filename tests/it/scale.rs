//! A large cluster: 5,000 Deployments of 20 KB each and 10,000 pods on a real API server, read by a small program.
#![expect(
    clippy::print_stderr,
    reason = "the figures measured, for who asks with --nocapture"
)]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bed::faulty::{Fault, Proxy};
use super::bed::large::{self, DEPLOYMENT_BYTES, deployment, image, namespace, replicas};
use super::bed::{Harpoon, Kubernetes, Output};

const DEPLOYMENTS: usize = 5_000;
/// Of the Deployments, one each.
const OWNED_PODS: usize = 5_000;
/// Of something that is not scanned.
const OTHER_PODS: usize = 5_000;
/// The most memory that the program may have resident at any time, its own code and what it shares included.
const MEMORY: u64 = 20 << 20;
/// The resident part of the release program, which has 17 MB, in such a run, rounded up: `make bench ONLY=discovery` measures 14 MiB in all.
const RELEASE_CODE: u64 = 9 << 20;

/// The cluster, filled once. An API server of its own, for the others not to carry this load.
fn large() -> &'static Kubernetes {
    static SHARED: OnceLock<Kubernetes> = OnceLock::new();
    SHARED.get_or_init(|| {
        let cluster = Kubernetes::start();
        let began = Instant::now();
        large::namespaces(&cluster);
        let place = |base: &str, n: usize, plural: &str| {
            format!("{base}/namespaces/{}/{plural}", namespace(n))
        };
        cluster.create_each(
            (0..DEPLOYMENTS).map(|n| (place("/apis/apps/v1", n, "deployments"), deployment(n))),
        );
        cluster.create_each(
            (0..OWNED_PODS + OTHER_PODS).map(|n| (place("/api/v1", n, "pods"), pod(n))),
        );
        eprintln!("filled the large cluster in {:.1?}", began.elapsed());
        cluster
    })
}

/// The first ones belong to the Deployments' ReplicaSets, the others to something else, with images of the Deployments.
fn pod(n: usize) -> Value {
    let (name, mut owner, labels) = if n < OWNED_PODS {
        let set = format!("service-{n:05}-5d8f9c7b6");
        let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set});
        let labels = json!({"app": format!("service-{n:05}"), "pod-template-hash": "5d8f9c7b6"});
        (format!("{set}-x2x4z"), owner, labels)
    } else {
        let owner = json!({"apiVersion": "example.org/v1", "kind": "Batch", "name": "batch"});
        (format!("batch-{n:05}"), owner, json!({"app": "batch"}))
    };
    owner["uid"] = json!("8d6f2d6e-7c7d-4b8c-9d6e-0a1b2c3d4e5f");
    owner["controller"] = json!(true);
    json!({"metadata": {"name": name, "labels": labels, "ownerReferences": [owner]},
        "spec": {"containers": [{"name": "main", "image": image(n % OWNED_PODS)}]}})
}

fn plan(cluster: &Kubernetes, server: &str) -> Harpoon {
    let plan = Harpoon::new(["plan", "--output", "json", "--namespaces", "*"]);
    let plan = plan.args(["--workloads", "deployments,pods"]);
    let file = plan.home().join("kubeconfig");
    cluster.write_kubeconfig(&file, server, cluster.token(), "default");
    // Other tests may have the processors.
    plan.env("KUBECONFIG", file).limit(Duration::from_secs(240))
}

/// Every image is found, with exactly its pods and workloads.
fn check(output: &Output) {
    let plan = output.json();
    let images = plan["images"].as_array().unwrap();
    assert_eq!(images.len(), DEPLOYMENTS + 1);
    assert_eq!(
        images[0]["image"],
        json!("registry.example:5000/base/init:3")
    );
    let all: u64 = (0..DEPLOYMENTS).map(replicas).sum();
    assert_eq!(images[0]["pods"], json!(all));
    assert_eq!(
        images[0]["workloads"].as_array().unwrap().len(),
        DEPLOYMENTS
    );
    let mut known: Vec<_> = images[1..].iter().collect();
    known.sort_by_key(|image| {
        image["image"]
            .as_str()
            .map(|name| name.rsplit_once('.').unwrap().1.parse::<usize>().unwrap())
    });
    for (n, found) in known.into_iter().enumerate() {
        let deployment = format!("{}/Deployment/service-{n:05}", namespace(n));
        let pod = format!("{}/Pod/batch-{:05}", namespace(n), n + OWNED_PODS);
        assert_eq!(found["image"], json!(image(n)));
        assert_eq!(
            (&found["pods"], &found["workloads"]),
            (&json!(replicas(n) + 1), &json!([deployment, pod])),
            "{}",
            image(n)
        );
    }
}

#[test]
fn large_cluster_needs_little_memory() {
    let cluster = large();
    let output = plan(cluster, cluster.server()).run().expect_quietly(0);
    check(&output);
    let resident = resident(&output);
    eprintln!(
        "{} KiB resident at most, {} KiB without what is mapped from files, {:.1?}",
        output.peak_rss >> 10,
        output.peak_anonymous >> 10,
        output.elapsed
    );
    assert!(resident <= MEMORY, "{} KiB", resident >> 10);
}

/// The most memory resident of the program as it is released. Built for tests it has twice the code, and libraries of
/// its own: then the resident code of the other counts in place of it.
fn resident(output: &Output) -> u64 {
    assert!(output.peak_anonymous > 0 && output.peak_rss > output.peak_anonymous);
    if super::bed::is_test_build() {
        output.peak_anonymous + RELEASE_CODE
    } else {
        output.peak_rss
    }
}

#[test]
fn large_cluster_is_read_in_pages() {
    let cluster = large();
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), |_| Fault::Pass);
    check(&plan(cluster, &proxy.url()).run().expect_quietly(0));

    let seen = proxy.seen();
    let pages = |path: &str| seen.iter().filter(|seen| seen.path == path).count();
    assert_eq!(pages("/apis/apps/v1/deployments"), DEPLOYMENTS / 500);
    assert_eq!(pages("/api/v1/pods"), (OWNED_PODS + OTHER_PODS) / 500);
    assert_eq!(seen.len(), (DEPLOYMENTS + OWNED_PODS + OTHER_PODS) / 500);
    for seen in &seen {
        assert!(
            seen.query.split('&').any(|pair| pair == "limit=500"),
            "{}",
            seen.query
        );
        let accepted = seen.headers["accept-encoding"].to_str().unwrap();
        assert!(accepted.contains("gzip"), "{accepted}");
    }
    // The response was really compressed.
    let whole = (DEPLOYMENTS * DEPLOYMENT_BYTES) as u64;
    eprintln!("{} MB on the wire", proxy.bytes() / 1_000_000);
    assert!(
        proxy.bytes() < whole * 7 / 10,
        "{} of more than {whole}",
        proxy.bytes()
    );
}
