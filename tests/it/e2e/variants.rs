//! The other ways to install it.

use super::*;

/// A list of images takes no account and no token.
pub(super) fn list_of_images(turn: &Turn<'_>) {
    let images = ["one", "two"].map(|name| turn.cluster.push(&format!("{}:1", unique(name))));
    let listed: Vec<_> = images
        .iter()
        .map(|i| format!("    {}\n", i.reference))
        .collect();
    let manual = manifests("daemonset-manual.yaml");
    let (before, rest) = manual.split_once("  images: |\n").unwrap();
    let (_examples, after) = rest.split_once("\nkind: ConfigMap\n").unwrap();
    let manual = format!(
        "{before}  images: |\n{}kind: ConfigMap\n{after}",
        listed.concat()
    );
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

/// What `harpoon manifests` prints is applied as it is.
pub(super) fn printed(turn: &Turn<'_>) {
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

    let kinds = "--workloads=deployments,statefulsets";
    let printed = Harpoon::new(["manifests", "--image", turn.cluster.harpoon()]);
    let printed = printed.args(["--namespaces=*", kinds]).run().expect(0);
    let harpoon = turn.install(&printed.stdout);
    let pod = harpoon.ready();
    let summary = summary(&pod);
    assert!(summary.starts_with("harpoon: pulled 2 ("), "{summary}");
    assert!(turn.cluster.has(&image) && turn.cluster.has(&stateful));
    turn.cluster
        .api
        .delete(&format!("/api/v1/namespaces/{elsewhere}"));
}

/// The chart with nothing set but the image.
pub(super) fn chart(turn: &Turn<'_>) {
    let image = turn.idle("charted");
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/chart");
    let rendered = run(tool("helm").args(["template", "harpoon"]).arg(chart));
    let harpoon = turn.install(&rendered);
    let pod = harpoon.ready();
    let summary = summary(&pod);
    assert!(summary.starts_with("harpoon: pulled 1 ("), "{summary}");
    assert!(turn.cluster.has(&image));
}
