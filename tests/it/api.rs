//! The kinds of continuous mode on real API servers: definitions, validation, columns.

use std::io::Write;
use std::process::{Output, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::bed::{self, Kubernetes};

fn kubectl(cluster: &Kubernetes, arguments: &[&str], input: &str) -> Output {
    let mut command = bed::tool("kubectl");
    command
        .args(arguments)
        .env("KUBECONFIG", cluster.kubeconfig());
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|e| panic!("{command:?}: {e}: run testbed/install"));
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn prefetch(name: &str, spec: &Value) -> String {
    let object = json!({
        "apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch", "metadata": {"name": name}, "spec": spec
    });
    object.to_string()
}

/// Specs that are refused, and what the message has to name.
fn invalid() -> Vec<(Value, &'static str)> {
    let list = json!({"images": ["registry.example/a:1"]});
    let with = |field: &str, value: Value| {
        let mut spec = json!({"source": list.clone()});
        spec[field] = value;
        spec
    };
    vec![
        (json!({"source": {}}), "exactly one of images and workloads"),
        (
            json!({"source": {"images": ["a"], "workloads": {}}}),
            "exactly one of images and workloads",
        ),
        (
            json!({"source": {"workloads": {"namespaces": ["a"], "namespaceSelector": {"matchLabels": {"a": "b"}}}}}),
            "namespaces and namespaceSelector exclude each other",
        ),
        (
            with("rollout", json!({"window": "48h"})),
            "must be at most 24h",
        ),
        (
            with("nodeGate", json!({"timeout": "1s"})),
            "must be between 10s and 24h",
        ),
        (
            with("retention", json!({"keepAfterUnused": "9000h"})),
            "must be at most 8760h",
        ),
    ]
}

/// Specs that the schema alone refuses, on every version.
fn malformed() -> Vec<(Value, &'static str)> {
    let list = |images: Value| json!({"source": {"images": images}});
    vec![
        (list(json!(vec!["registry.example/a:1"; 501])), "500"),
        (list(json!(["a\u{7}b"])), "spec.source.images"),
        (list(json!(["x".repeat(4096)])), "1024"),
        (list(json!([])), "spec.source.images"),
        (
            json!({"source": {"workloads": {"kinds": ["Deploymint"]}}}),
            "Deploymint",
        ),
        (
            json!({"source": {"images": ["a"]}, "rollout": {"window": "2 minutes"}}),
            "spec.rollout.window",
        ),
        (
            json!({"source": {"images": ["a"]}, "rollout": {"type": "Sideways"}}),
            "Sideways",
        ),
        (
            json!({"source": {"images": ["a"]}, "limit": 0}),
            "spec.limit",
        ),
    ]
}

fn refuses(cluster: &Kubernetes, spec: &Value, named: &str) {
    let name = bed::unique("bad");
    // The API server's own validation is asked, not kubectl's.
    let output = kubectl(
        cluster,
        &["create", "--validate=false", "-f", "-"],
        &prefetch(&name, spec),
    );
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains(named),
        "{spec}: {said}"
    );
}

#[test]
fn newer_server_refuses_invalid_prefetches() {
    let cluster = bed::apiserver();
    for (spec, named) in invalid().into_iter().chain(malformed()) {
        refuses(cluster, &spec, named);
    }
}

#[test]
fn older_server_applies_the_schema() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    for (spec, named) in malformed() {
        refuses(&cluster, &spec, named);
    }
    // It does not know CEL, so the controller has to say what is wrong.
    for (number, (spec, _)) in invalid().into_iter().enumerate() {
        let output = kubectl(
            &cluster,
            &["create", "-f", "-"],
            &prefetch(&format!("cel-{number}"), &spec),
        );
        assert!(output.status.success(), "{spec}: {output:?}");
    }
}

#[test]
fn kinds_have_names_and_columns() {
    let cluster = bed::apiserver();
    let name = bed::unique("columns");
    let spec = json!({"source": {"images": ["registry.example/a:1"]}});
    let created = kubectl(cluster, &["create", "-f", "-"], &prefetch(&name, &spec));
    assert!(created.status.success(), "{created:?}");
    let status = json!({"status": {
        "observedGeneration": 1, "images": 212, "nodes": {"desired": 5000, "complete": 4987, "updating": 10, "failing": 3, "unknown": 0},
        "conditions": [{"type": "Ready", "status": "False", "reason": "Updating", "message": "", "lastTransitionTime": "2026-11-27T00:00:00Z"}]
    }});
    let path = format!("/apis/harpoon.dev/v1alpha1/imageprefetches/{name}/status");
    cluster.patch(&path, status);
    let shown =
        |arguments: &[&str]| String::from_utf8(kubectl(cluster, arguments, "").stdout).unwrap();
    let columns = |line: &str| {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let table = shown(&["get", "ipf", &name]);
    let rows: Vec<_> = table.lines().map(columns).collect();
    assert_eq!(
        rows[0],
        [
            "NAME", "READY", "IMAGES", "NODES", "COMPLETE", "FAILING", "AGE"
        ]
    );
    assert_eq!(
        rows[1][..6],
        [name.as_str(), "False", "212", "5000", "4987", "3"]
    );
    bed::eventually("the category", Duration::from_secs(10), || {
        shown(&["get", "harpoon"]).contains(&name)
    });
    let waited = kubectl(
        cluster,
        &[
            "wait",
            "--for=condition=Ready=false",
            &format!("ipf/{name}"),
            "--timeout=5s",
        ],
        "",
    );
    assert!(waited.status.success(), "{waited:?}");
}
