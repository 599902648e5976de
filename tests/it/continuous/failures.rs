//! Failures of images on nodes, as the ImagePrefetch tells them.

use super::*;
use crate::bed::faulty::{Fault, Proxy};

fn failure(stage: &Stage, prefetch: &str, image: &str) -> Value {
    let status = stage.status(prefetch);
    let failures = status["failures"].as_array().cloned().unwrap_or_default();
    failures
        .into_iter()
        .find(|f| f["image"] == image)
        .unwrap_or_default()
}

#[test]
fn failures_name_image_and_reason() {
    let stage = Stage::start();
    let machines = ["node-1", "node-2"].map(|name| stage.plain(name));
    let fine = bed::registry().push(&named("fine")).reference;
    let missing = bed::registry().reference(&named("missing"));
    let denied = bed::registry_with_password()
        .push(&named("denied"))
        .reference;
    stage.apply("mixed", &list(&[&missing, &fine, &denied]));
    stage.apply("other", &list(&[&fine]));
    for (image, reason) in [(&missing, "NotFound"), (&denied, "Unauthorized")] {
        stage.wait_for(&format!("{image} fails on both nodes"), || {
            let failure = failure(&stage, "mixed", image);
            failure["reason"] == reason && failure["nodes"] == 2
        });
        let failure = failure(&stage, "mixed", image);
        let node = failure["exampleNode"].as_str().unwrap();
        assert!(["node-1", "node-2"].contains(&node), "{failure}");
        assert!(
            !failure["message"].as_str().unwrap().is_empty(),
            "{failure}"
        );
    }
    stage.wait_ready("other");
    assert!(machines.iter().all(|machine| machine.has(&fine)));
    assert_eq!(stage.status("mixed")["nodes"]["failing"], 2);
    assert_eq!(stage.condition("mixed", "Ready").0, "False");
}

#[test]
fn full_disk_fails_one_node() {
    let stage = Stage::start();
    let full = stage.add(
        "full",
        &json!({}),
        &json!([]),
        Containerd::with_space(40 << 20),
    );
    let machines = ["node-2", "node-3"].map(|name| stage.plain(name));
    let small = bed::registry().push(&named("small")).reference;
    let large = bed::registry()
        .image(&named("large"))
        .size(120 << 20)
        .push()
        .reference;
    stage.apply("large", &list(&[&large]));
    stage.apply("small", &list(&[&small]));
    stage.wait_for("the full disk is told", || {
        let failure = failure(&stage, "large", &large);
        failure["reason"] == "NoSpace" && failure["exampleNode"] == "full" && failure["nodes"] == 1
    });
    stage.wait_for("the others are complete", || {
        let nodes = stage.status("large")["nodes"].clone();
        nodes["complete"] == 2 && nodes["failing"] == 1
    });
    assert!(
        machines
            .iter()
            .all(|machine| machine.has(&large) && machine.has(&small))
    );
    // A small image is not held up for ever by one that does not fit.
    stage.wait_for("the small image is on the full node", || full.has(&small));
}

#[test]
fn rate_limit_slows_the_rollout() {
    let stage = Stage::start();
    let proxy = Proxy::start(bed::registry().url(), |seen| match seen.is_manifest() {
        true => Fault::too_many(5),
        false => Fault::Pass,
    });
    let node = stage.plain("node-1");
    node.containerd.map_host(&proxy.address(), &proxy.url());
    let name = named("limited");
    bed::registry().push(&name);
    let image = proxy.reference(&name);
    stage.apply(
        "limited",
        &json!({"source": {"images": [&image]}, "rollout": {"type": "Linear", "window": "1s"}}),
    );
    stage.wait_for("the rate limit is told", || {
        failure(&stage, "limited", &image)["reason"] == "RateLimited"
    });
    let window = || stage.planned()[&image]["rollout"]["window"].clone();
    let end = Instant::now() + Duration::from_secs(150);
    while window() == "1s" {
        assert!(Instant::now() < end, "no brake: {}", stage.explain());
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(window(), "2s");
}
