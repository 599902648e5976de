//! One new PlannedImage for a watch of each node, without an agent behind it: what the API server needs to tell all nodes.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::super::bed::{Kubernetes, client};
use super::API;
use super::server::{Cost, Counters};
use super::watch::objects;

/// The cost and the times of one new image.
pub struct Measured {
    /// The image.
    pub image: String,
    /// The time of the write.
    pub began: Instant,
    pub cost: Cost,
    /// Seconds until each watch has seen it, sorted.
    pub seen: Vec<f64>,
}

/// Starts a watch for each node, and then writes the image, whose object has this name.
pub fn measure(cluster: &Kubernetes, nodes: usize, name: &'static str) -> Measured {
    let collection = format!("{API}/plannedimages");
    let list = cluster.get(&format!("{collection}?limit=1"));
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let url = format!(
        "{}{collection}?watch=true&resourceVersion={version}&timeoutSeconds=3600",
        cluster.server()
    );
    let tokio = super::tokio(2);
    let (told, mut tells) = mpsc::unbounded_channel();
    for _ in 0..nodes {
        let request = client(Some(cluster.ca())).get(&url);
        let request = request.bearer_auth(cluster.token());
        tokio.spawn(see(request, name, told.clone()));
    }
    for _ in 0..nodes {
        assert_eq!(tells.blocking_recv().unwrap(), None, "a watch begins");
    }
    std::thread::sleep(Duration::from_secs(5));

    let before = Counters::read(cluster);
    let began = Instant::now();
    let image = format!("registry.example:5000/shop/{name}:1");
    cluster.create(&collection, object(name, &image));
    let seen = (0..nodes).map(|_| tells.blocking_recv().flatten());
    let seen = seen.map(|at| (at.expect("it is seen") - began).as_secs_f64());
    let mut seen: Vec<f64> = seen.collect();
    std::thread::sleep(Duration::from_secs(1));
    let cost = before.cost(cluster);
    tokio.shutdown_background();
    seen.sort_by(f64::total_cmp);
    Measured {
        image,
        began,
        cost,
        seen,
    }
}

/// Tells when the watch has begun, and the time when it sees the image.
async fn see(
    request: reqwest::RequestBuilder,
    name: &str,
    told: mpsc::UnboundedSender<Option<Instant>>,
) {
    let mut objects = pin!(objects(request.send().await.unwrap()));
    let _ = told.send(None);
    while let Some((now, object)) = objects.next().await {
        if object["metadata"]["name"] == name {
            let _ = told.send(Some(now));
        }
    }
}

fn object(name: &str, image: &str) -> Value {
    json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "PlannedImage", "metadata": {"name": name}, "spec": {
        "image": image, "pods": 12, "prefetches": ["release"],
        "placements": [{"nodeSelector": {"kubernetes.io/arch": "amd64"}}], "refresh": false, "seal": "Auto",
        "rollout": {"type": "Immediate", "startTime": "2026-01-01T00:00:00Z", "nodes": 5000}, "retention": {"policy": "Keep"}}})
}
