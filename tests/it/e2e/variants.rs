//! The other variants of installation.

use super::*;

/// A list of images requires no service account and no token.
pub(super) fn list_of_images(turn: &Turn<'_>) {
    let images = ["one", "two"].map(|name| turn.cluster.push(&format!("{}:1", unique(name))));
    let listed: Vec<_> = images
        .iter()
        .map(|i| format!("    {}\n", i.reference))
        .collect();
    let manual = manifests("daemonset-manual.yaml");
    let (before, rest) = manual.split_once("  images: |\n").unwrap();
    let (_examples, after) = rest.split_once("\n---\n").unwrap();
    let manual = format!("{before}  images: |\n{}---\n{after}", listed.concat());
    let harpoon = turn.install(&manual);
    let pod = harpoon.ready();
    let summary = summary(&pod);
    assert!(summary.starts_with("harpoon: pulled 2 ("), "{summary}");
    assert!(
        images
            .iter()
            .all(|image| turn.cluster.has(&image.reference))
    );
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    let token = |volume: &Value| volume["projected"].is_object() || volume["secret"].is_object();
    assert!(!volumes.iter().any(token), "{volumes:?}");
}

/// The chart with values for the whole cluster.
pub(super) fn all_namespaces(turn: &Turn<'_>) {
    let elsewhere = turn.cluster.api.namespace();
    let image = turn
        .cluster
        .push(&format!("{}:1", unique("elsewhere")))
        .reference;
    turn.cluster.api.deployment(&elsewhere, "web", 0, &image);
    let stateful = turn
        .cluster
        .push(&format!("{}:1", unique("stateful")))
        .reference;
    let labels = json!({"app": "stateful"});
    let containers = json!([{"name": "main", "image": stateful}]);
    let spec = json!({"replicas": 0, "serviceName": "none", "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}});
    let sets = format!("/apis/apps/v1/namespaces/{}/statefulsets", turn.namespace);
    let set = json!({"metadata": {"name": "stateful"}, "spec": spec});
    turn.cluster.api.create(&sets, set);

    let settings = json!({"NAMESPACES": "*", "WORKLOADS": "deployments,statefulsets"});
    let harpoon = turn.install(&chart(&json!({"settings": settings})));
    let pod = harpoon.ready();
    let summary = summary(&pod);
    assert!(summary.starts_with("harpoon: pulled 2 ("), "{summary}");
    assert!(turn.cluster.has(&image) && turn.cluster.has(&stateful));
    turn.cluster
        .api
        .delete(&format!("/api/v1/namespaces/{elsewhere}"));
}

/// `kubectl kustomize` of an overlay.
pub(super) fn kustomized(turn: &Turn<'_>) {
    let image = turn.idle("kustomized");
    let overlay = "deploy/kustomize/overlays/containerd";
    let overlay = Path::new(env!("CARGO_MANIFEST_DIR")).join(overlay);
    let built = run(tool("kubectl").arg("kustomize").arg(overlay));
    let harpoon = turn.install(&built);
    let pod = harpoon.ready();
    let summary = summary(&pod);
    assert!(summary.starts_with("harpoon: pulled 1 ("), "{summary}");
    assert!(turn.cluster.has(&image));
}
