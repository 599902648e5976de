//! The other design: one object for each node, which a controller writes and the node's agent watches, as in OpenKruise.
//!
//! Only its writes are made: the spec of each object for a new image, and one status by each node that has seen it.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::bed::{Kubernetes, client, eventually};
use super::fleet::node;
use super::server::{Cost, Counters};
use super::watch::objects;

const COLLECTION: &str = "/apis/bench.harpoon.dev/v1/nodeimagelists";
/// Number of images of each node: its object has 3 KB. A node of 500 images would have 75 KB, in each write.
pub const IMAGES: usize = 20;
/// Number of writes that the controller has in flight.
const IN_FLIGHT: usize = 64;

/// The cost and the times of one new image.
pub struct Measured {
    pub cost: Cost,
    /// Seconds until each node has seen it, sorted.
    pub seen: Vec<f64>,
    /// Seconds until the status of all nodes is written.
    pub told: f64,
}

/// Makes the objects and the watches, and then gives a new image to all nodes.
pub fn measure(cluster: &Kubernetes, nodes: usize) -> Measured {
    define(cluster);
    let objects = (0..nodes).map(|n| (COLLECTION.to_owned(), object(n)));
    cluster.create_each(objects);
    let tokio = super::tokio(2);
    let (seen, mut told) = mpsc::unbounded_channel();
    let given = Given {
        server: cluster.server().to_owned(),
        token: cluster.token().to_owned(),
    };
    let given = Arc::new(given);
    for n in 0..nodes {
        let client = client(Some(cluster.ca()));
        tokio.spawn(agent(Arc::clone(&given), client, n, seen.clone()));
    }
    let mut watching = 0;
    while watching < nodes {
        watching += usize::from(told.blocking_recv() == Some(Told::Watching));
    }
    std::thread::sleep(Duration::from_secs(5));

    let before = Counters::read(cluster);
    let began = Instant::now();
    let writer = client(Some(cluster.ca()));
    let writes = async move {
        let write = |n| write(&given, &writer, n);
        let writes = futures_util::stream::iter(0..nodes).map(write);
        let mut writes = writes.buffer_unordered(IN_FLIGHT);
        while writes.next().await.is_some() {}
    };
    tokio.spawn(writes);
    let (mut seen, mut last) = (Vec::new(), 0);
    while last < nodes {
        match told.blocking_recv() {
            Some(Told::Seen(at)) => seen.push((at - began).as_secs_f64()),
            Some(Told::Reported) => last += 1,
            Some(Told::Watching) | None => {}
        }
    }
    let told = began.elapsed().as_secs_f64();
    std::thread::sleep(Duration::from_secs(1));
    let cost = before.cost(cluster);
    tokio.shutdown_background();
    seen.sort_by(f64::total_cmp);
    Measured { cost, seen, told }
}

struct Given {
    server: String,
    token: String,
}

#[derive(Debug, PartialEq)]
enum Told {
    Watching,
    Seen(Instant),
    Reported,
}

/// Watches a node's object and writes its status once it has the new image.
async fn agent(
    given: Arc<Given>,
    client: reqwest::Client,
    n: usize,
    told: mpsc::UnboundedSender<Told>,
) {
    let name = node(n);
    let url = format!(
        "{}{COLLECTION}?watch=true&resourceVersion=0&fieldSelector=metadata.name={name}&timeoutSeconds=3600",
        given.server
    );
    let answer = client.get(url).bearer_auth(&given.token).send();
    let mut objects = pin!(objects(answer.await.unwrap()));
    let mut is_watching = false;
    while let Some((now, object)) = objects.next().await {
        if !std::mem::replace(&mut is_watching, true) {
            let _ = told.send(Told::Watching);
        }
        let images = object["spec"]["images"].as_array();
        if images.map_or(0, Vec::len) > IMAGES && object["status"].is_null() {
            let _ = told.send(Told::Seen(now));
            let url = format!("{}{COLLECTION}/{name}/status", given.server);
            let status = json!({"status": {"present": IMAGES + 1, "time": "2026-01-01T00:00:00Z"}});
            patch(&given, &client, url, &status).await;
            let _ = told.send(Told::Reported);
        }
    }
}

async fn write(given: &Given, client: &reqwest::Client, n: usize) {
    let url = format!("{}{COLLECTION}/{}", given.server, node(n));
    let images: Vec<_> = (0..=IMAGES).map(image).collect();
    patch(given, client, url, &json!({"spec": {"images": images}})).await;
}

async fn patch(given: &Given, client: &reqwest::Client, url: String, patch: &Value) {
    let request = client.patch(url).bearer_auth(&given.token);
    let request = request.header("content-type", "application/merge-patch+json");
    let answer = request.body(patch.to_string()).send().await.unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
}

fn image(n: usize) -> Value {
    json!({"image": format!("registry.example:5000/team-{n}/service-{n:05}:1.2.{n}"), "pullPolicy": "IfNotPresent",
        "pullSecrets": [{"namespace": "shop", "name": "regcred"}], "createdAt": "2026-01-01T00:00:00Z"})
}

fn object(n: usize) -> Value {
    let images: Vec<_> = (0..IMAGES).map(image).collect();
    json!({"apiVersion": "bench.harpoon.dev/v1", "kind": "NodeImageList", "metadata": {"name": node(n)}, "spec": {"images": images}})
}

fn define(cluster: &Kubernetes) {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let schema = json!({"type": "object", "properties": {"spec": open, "status": open}});
    let definition = json!({
        "metadata": {"name": "nodeimagelists.bench.harpoon.dev"},
        "spec": {"group": "bench.harpoon.dev", "scope": "Cluster",
            "names": {"plural": "nodeimagelists", "singular": "nodeimagelist", "kind": "NodeImageList", "listKind": "NodeImageListList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": schema}}]}
    });
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    cluster.create(definitions, definition);
    eventually("the resource is served", Duration::from_secs(30), || {
        cluster.status(COLLECTION, cluster.token()) == 200
    });
}
