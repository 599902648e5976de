//! Fast fill on a real node, installed by the chart: pods of filled images start, and the kubelet's garbage collection frees all.

use std::time::Duration;

use super::*;
use crate::bed::eventually;

/// The capabilities that the chart adds, by their numbers.
const CAPABILITIES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 27 | 1 << 31;

/// The node's registry listens on its loopback address. The configuration of registries is not where it usually is, which
/// containerd 2 does not tell.
fn values(turn: &Turn<'_>) -> Value {
    let mut fast = json!({"enabled": true, "hostNetwork": true});
    if !crate::bed::has_newer_runtimes() {
        fast["configPath"] = json!(turn.cluster.api.file("certs.d"));
    }
    json!({"fastFill": fast, "settings": {"FILL": "fast", "LOG_LEVEL": "debug"}})
}

/// All snapshots and blobs of the node that images have.
fn stored(turn: &Turn<'_>) -> Vec<String> {
    let snapshots = turn.cluster.ctr(&["snapshots", "list"]);
    let blobs = turn.cluster.ctr(&["content", "list", "--quiet"]);
    let of_images = snapshots.lines().filter(|line| line.contains("Committed"));
    let mut all: Vec<_> = of_images.chain(blobs.lines()).collect();
    all.sort_unstable();
    all.into_iter().map(str::to_owned).collect()
}

/// A pod of a filled image starts without a pull, and the image goes as any other.
pub(super) fn whole_life(turn: &Turn<'_>) {
    let cluster = turn.cluster;
    let image = cluster.image(&format!("{}:1", unique("filled")));
    let image = image.layers(4).size(2_000_000).push();
    turn.deployment("filled", &image.reference);
    cluster.harpoon();

    // While the registry is frozen, the fill continues.
    let frozen = cluster.freeze_registry();
    let harpoon = turn.install(&chart(&values(turn)));
    let running = cluster.wait_for(&turn.namespace, "the init container runs", || {
        let pod = harpoon.pods().pop()?;
        let status = &pod["status"]["initContainerStatuses"][0];
        let is_running = status["state"]["running"].is_object();
        is_running.then(|| status.clone())
    });
    // harpoon's own image is unpacked by now.
    let before = stored(turn);
    let process = cluster.process(&running);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(process.status(set), format!("{CAPABILITIES:016x}"), "{set}");
    }
    assert_eq!(process.status("NoNewPrivs"), "1");
    assert_eq!(process.status("Seccomp"), "2");
    drop(frozen);
    let pod = harpoon.ready();
    let summary = summary(&pod);
    assert!(summary.starts_with("harpoon: pulled 1 ("), "{summary}");
    let log = harpoon.log(&pod);
    for other in ["the runtime pulls", "goes through containerd's socket"] {
        assert!(!log.contains(other), "{log}");
    }
    // It ends with the init container.
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(cluster.process(status).status("CapEff"), "0000000000000000");

    let started = turn.scale_up("filled");
    let events = turn.pulled(&started);
    let present = format!(
        "Pulled: Container image \"{}\" already present on machine",
        image.reference
    );
    assert!(events.contains(&present), "{events:?}");
    let asked = |event: &String| event.starts_with("Pulling: ");
    assert!(!events.iter().any(asked), "{events:?}");
    assert_eq!(started["status"]["containerStatuses"][0]["restartCount"], 0);

    let path = format!(
        "/apis/apps/v1/namespaces/{}/deployments/filled",
        turn.namespace
    );
    cluster.api.patch(&path, json!({"spec": {"replicas": 0}}));
    turn.no_pods("filled");
    cluster.collect(&image);
    let left = || {
        let mut now = stored(turn);
        now.retain(|one| !before.contains(one));
        now
    };
    let limit = Duration::from_secs(60);
    eventually("all of the image is freed", limit, || left().is_empty());
}
