//! The cluster as a source, on a real API server: the images in `harpoon plan`, permissions, and failures of the server.

use serde_json::{Value, json};

use super::bed::{Harpoon, Kubernetes, Output};

mod access;
mod faults;
mod owners;
mod workloads;

/// An image of a plan: its name, its pods, its workloads.
type Row = (String, u64, Vec<String>);

/// The expected images of one namespace: their pods, and their workloads as `Kind/name`.
type Expected<'a> = &'a [(&'a str, u64, &'a [&'a str])];

/// `harpoon plan` outside of the cluster, by a kubeconfig for this server, token and namespace.
fn plan(cluster: &Kubernetes, server: &str, token: &str, namespace: &str) -> Harpoon {
    by_kubeconfig(
        Harpoon::new(["plan", "--output", "json"]),
        cluster,
        server,
        token,
        namespace,
    )
}

fn by_kubeconfig(
    harpoon: Harpoon,
    cluster: &Kubernetes,
    server: &str,
    token: &str,
    namespace: &str,
) -> Harpoon {
    let file = harpoon.home().join("kubeconfig");
    cluster.write_kubeconfig(&file, server, token, namespace);
    harpoon.env("KUBECONFIG", file)
}

/// The images of the plan, in its order.
#[track_caller]
fn found(output: &Output) -> Vec<Row> {
    let plan = output.json();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let row = |image: &Value| {
        let workloads = image["workloads"].as_array().unwrap();
        (
            text(&image["image"]),
            image["pods"].as_u64().unwrap(),
            workloads.iter().map(text).collect(),
        )
    };
    plan["images"].as_array().unwrap().iter().map(row).collect()
}

/// The expected result of [`found`].
fn rows(namespace: &str, rows: Expected<'_>) -> Vec<Row> {
    let rows = rows.iter().map(|(image, pods, workloads)| {
        let workloads = workloads.iter().map(|name| format!("{namespace}/{name}"));
        ((*image).to_owned(), *pods, workloads.collect())
    });
    rows.collect()
}

/// The log lines of level WARN, except for the one about the missing runtime.
fn warnings(output: &Output) -> Vec<&str> {
    let warnings = output.stderr.lines().filter(|line| line.contains("WARN"));
    warnings
        .filter(|line| !line.contains("planning without a runtime"))
        .collect()
}

/// The one line with the reason of the failure.
#[track_caller]
fn error(output: &Output) -> &str {
    let mut errors = output
        .stderr
        .lines()
        .filter(|line| line.starts_with("error: "));
    let (Some(error), None) = (errors.next(), errors.next()) else {
        panic!("not one error: {output}");
    };
    error
}

/// A pod's spec with these containers.
fn spec(images: &[&str]) -> Value {
    let containers = images
        .iter()
        .enumerate()
        .map(|(n, image)| json!({"name": format!("c{n}"), "image": image}));
    json!({"containers": containers.collect::<Vec<_>>()})
}

/// An object whose spec has a pod template, and a selector for it.
fn templated(name: &str, image: &str, mut extra: Value) -> Value {
    let labels = json!({"app": name});
    extra["selector"] = json!({"matchLabels": labels});
    extra["template"] = json!({"metadata": {"labels": labels}, "spec": spec(&[image])});
    json!({"metadata": {"name": name, "labels": labels}, "spec": extra})
}

/// The rule that allows listing a resource: `("apps", "deployments")`.
fn may_list(group: &str, resource: &str) -> Value {
    json!([{"apiGroups": [group], "resources": [resource], "verbs": ["list"]}])
}

/// The path of a namespace's Deployments.
fn deployments(namespace: &str) -> String {
    format!("/apis/apps/v1/namespaces/{namespace}/deployments")
}
