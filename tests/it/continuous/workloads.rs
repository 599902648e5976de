//! Images of lists and of workloads, from the object to the node.
#![expect(clippy::print_stderr, reason = "the measured times are for people")]

use super::*;

#[test]
fn listed_image_is_pulled_soon() {
    let (stage, node) = Stage::shared();
    let (name, other) = (named("listed"), named("alone"));
    let image = bed::registry().push(&name);
    // How long the runtime alone takes for an image of the same size.
    let alone = bed::registry().push(&other);
    let before = Instant::now();
    let pulled = Harpoon::new([
        "pull",
        "--runtime-endpoint",
        node.containerd.endpoint(),
        &alone.reference,
    ]);
    pulled.run().expect(0);
    let pull = before.elapsed();
    let applied = stage.apply("release-42", &list(&[&image.reference]));
    stage.wait_for("the image is on the node", || node.has(&image.reference));
    let took = applied.elapsed();
    eprintln!("on the node {took:.2?} after its ImagePrefetch; the pull alone takes {pull:.2?}");
    let waited = stage.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "ipf/release-42",
        "--timeout=30s",
    ]);
    assert!(waited.contains("condition met"), "{waited}");
    let table = stage.kubectl(&["get", "ipf", "release-42"]);
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(
        row[..6],
        ["release-42", "True", "1", "1", "1", "0"],
        "{table}"
    );
    let table = stage.kubectl(&["get", "npf", "node-1"]);
    let row: Vec<_> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[0], "node-1", "{table}");
    assert_eq!(stage.status("release-42")["observedGeneration"], 1);
    let size = serde_json::to_vec(&stage.node_prefetch("node-1")["status"])
        .unwrap()
        .len();
    assert!(size <= 4096, "{size} bytes");
}

#[test]
fn changed_deployment_is_followed() {
    let (stage, node) = Stage::shared();
    let namespace = stage.cluster.namespace();
    let [old, new] = [named("old"), named("new")].map(|name| bed::registry().push(&name));
    stage
        .cluster
        .deployment(&namespace, "web", 3, &old.reference);
    stage.apply(
        "in-use",
        &json!({
            "source": {"workloads": {"namespaces": [&namespace]}}, "rollout": {"type": "Immediate"},
            "retention": {"keepAfterUnused": "5s"}
        }),
    );
    stage.wait_ready("in-use");
    assert!(node.has(&old.reference));
    assert_eq!(stage.planned()[&old.reference]["pods"], 3);
    let path = format!("/apis/apps/v1/namespaces/{namespace}/deployments/web");
    let containers = json!([{"name": "main", "image": &new.reference}]);
    let changed = Instant::now();
    stage.cluster.patch(
        &path,
        json!({"spec": {"template": {"spec": {"containers": containers}}}}),
    );
    stage.wait_for("the new image is planned", || {
        stage.planned().contains_key(&new.reference)
    });
    let planned = changed.elapsed();
    eprintln!("planned {planned:.2?} after the change of the Deployment");
    stage.wait_for("the new image is on the node", || node.has(&new.reference));
    stage.wait_ready("in-use");
    stage.wait_for("the old image is planned no longer", || {
        !stage.planned().contains_key(&old.reference)
    });
    let gone = changed.elapsed();
    assert!(gone > Duration::from_secs(5), "gone after {gone:?}");
    assert_eq!(stage.status("in-use")["images"], 1);
}

#[test]
fn hostile_prefetch_hurts_nobody() {
    let (stage, node) = Stage::shared();
    let image = bed::registry().push(&named("fine"));
    let ugly = |n: usize| format!("{}{n}!!:\"'$(reboot)`", "A".repeat(900));
    let mut images: Vec<String> = (0..500).map(ugly).collect();
    images[250].clone_from(&image.reference);
    stage.apply(
        "hostile",
        &json!({"source": {"images": images}, "rollout": {"type": "Immediate"}}),
    );
    stage.apply("fine", &list(&[&image.reference]));
    stage.wait_ready("fine");
    assert!(node.has(&image.reference));
    assert_eq!(
        stage.condition("hostile", "Degraded"),
        ("True".to_owned(), "InvalidSpec".to_owned())
    );
    let status = stage.status("hostile");
    let size = serde_json::to_vec(&status).unwrap().len();
    assert!(size < 32 << 10, "{size} bytes");
    let planned = stage.planned();
    assert!(
        planned.keys().all(|image| !image.contains("AAAA")),
        "{planned:?}"
    );
}

#[test]
fn suspended_prefetch_changes_nothing() {
    let (stage, node) = Stage::shared();
    let [first, second] = [named("first"), named("second")].map(|name| bed::registry().push(&name));
    stage.apply("pause", &list(&[&first.reference]));
    stage.wait_ready("pause");
    let path = format!("{API}/imageprefetches/pause");
    let images = [&first.reference, &second.reference];
    stage.cluster.patch(
        &path,
        json!({"spec": {"suspend": true, "source": {"images": images}}}),
    );
    stage.wait_for("the change is seen", || {
        stage.status("pause")["observedGeneration"] == 2
    });
    std::thread::sleep(Duration::from_secs(3));
    assert!(!stage.planned().contains_key(&second.reference));
    stage
        .cluster
        .patch(&path, json!({"spec": {"suspend": false}}));
    stage.wait_for("the second image is on the node", || {
        node.has(&second.reference)
    });
    stage.wait_ready("pause");
}
