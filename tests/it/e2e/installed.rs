//! `kubectl apply -f deploy/daemonset-auto.yaml`: images are present on the node before any pod needs them.

use super::*;

/// Images of Deployments are there before any pod of theirs.
pub(super) fn before_pods(turn: &Turn<'_>) {
    let idle = turn.idle("idle");
    // Its pod fits on no node: it stays pending.
    let waiting = turn
        .cluster
        .push(&format!("{}:1", unique("waiting")))
        .reference;
    let labels = json!({"app": "waiting"});
    let containers =
        json!([{"name": "main", "image": waiting, "resources": {"requests": {"cpu": "1000"}}}]);
    let deployment = json!({"metadata": {"name": "waiting"}, "spec": {"selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}}}});
    let deployments = format!("/apis/apps/v1/namespaces/{}/deployments", turn.namespace);
    turn.cluster.api.create(&deployments, deployment);
    assert!(!turn.cluster.has(&idle) && !turn.cluster.has(&waiting));

    let harpoon = turn.install(&manifests("daemonset-auto.yaml"));
    let pod = harpoon.ready();
    assert!(turn.cluster.has(&idle) && turn.cluster.has(&waiting));

    // What is shown of it.
    let summary = summary(&pod);
    assert!(summary.starts_with("harpoon: pulled 2 ("), "{summary}");
    assert!(summary.contains("failed 0, skipped 0 in "), "{summary}");
    let name = text(&pod["metadata"]["name"]);
    let described = turn
        .cluster
        .kubectl(&["describe", "pod", name, "-n", &turn.namespace]);
    assert!(described.contains(summary.trim_end()), "{described}");
    let log = harpoon.log(&pod);
    for told in [&idle, &waiting] {
        assert!(log.contains(told.as_str()), "{log}");
    }
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");

    // And that was the use of it.
    let started = turn.scale_up("idle");
    let events = turn.pulled(&started);
    let present = format!("Pulled: Container image \"{idle}\" already present on machine");
    assert!(events.contains(&present), "{events:?}");
    assert!(
        !events.iter().any(|event| event.starts_with("Pulling: ")),
        "{events:?}"
    );
}

/// An image that cannot be pulled keeps nothing back, and is shown.
pub(super) fn broken_image(turn: &Turn<'_>) {
    let good = turn.idle("good");
    let broken = turn.cluster.reference("there/is/none:1");
    turn.deployment("broken", &broken);
    let harpoon = turn.install(&manifests("daemonset-auto.yaml"));
    let pod = harpoon.ready();
    assert!(turn.cluster.has(&good));
    let summary = summary(&pod);
    assert!(summary.contains("pulled 1 ("), "{summary}");
    assert!(summary.contains("failed 1, "), "{summary}");
    let failure = format!("\n{broken}: not_found: ");
    assert!(summary.contains(&failure), "{summary}");
    let name = text(&pod["metadata"]["name"]);
    let described = turn
        .cluster
        .kubectl(&["describe", "pod", name, "-n", &turn.namespace]);
    assert!(described.contains(failure.trim()), "{described}");
    let log = harpoon.log(&pod);
    assert!(log.contains(&broken), "{log}");
}
