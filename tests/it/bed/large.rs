//! The objects of a large cluster, for scale tests.

use serde_json::{Value, json};

use super::Kubernetes;

const NAMESPACES: usize = 10;
/// How long a Deployment is as JSON, at least: `kubectl apply` keeps a second copy of it in an annotation.
pub const DEPLOYMENT_BYTES: usize = 20_000;

/// Creates the namespaces of all Deployments.
pub fn namespaces(cluster: &Kubernetes) {
    for n in 0..NAMESPACES {
        cluster.create(
            "/api/v1/namespaces",
            json!({"metadata": {"name": namespace(n)}}),
        );
    }
}

/// The namespace of the workload with this number.
pub fn namespace(n: usize) -> String {
    format!("team-{}", n % NAMESPACES)
}

/// Each Deployment has an image of its own, as is usual where each team builds its own.
pub fn image(n: usize) -> String {
    format!(
        "registry.example:5000/team-{}/service-{n:05}:1.{}.{n}",
        n % NAMESPACES,
        n % 7
    )
}

/// The number of pods of a Deployment.
pub fn replicas(n: usize) -> u64 {
    1 + n as u64 % 3
}

/// As long as with `kubectl apply`, and compressible to the same degree.
fn padding(n: usize) -> String {
    let mut random = fastrand::Rng::with_seed(n as u64);
    let mut text = String::with_capacity(DEPLOYMENT_BYTES);
    while text.len() < DEPLOYMENT_BYTES {
        let value: String = std::iter::repeat_with(|| random.alphanumeric())
            .take(20)
            .collect();
        text.push_str(&format!(
            r#"{{"name":"SETTING_{}","value":"{value}"}},"#,
            text.len()
        ));
    }
    text
}

/// The Deployment with this number.
pub fn deployment(n: usize) -> Value {
    let labels = json!({"app": format!("service-{n:05}")});
    let template = json!({"metadata": {"labels": labels}, "spec": {
        "initContainers": [{"name": "init", "image": "registry.example:5000/base/init:3"}],
        "containers": [{"name": "main", "image": image(n)}]}});
    json!({"metadata": {"name": format!("service-{n:05}"), "labels": labels,
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": padding(n)}},
        "spec": {"replicas": replicas(n), "selector": {"matchLabels": labels}, "template": template}})
}
