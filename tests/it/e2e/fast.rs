//! The chart with fast fill, and pods of what it filled.

use super::*;

/// A pod with the chart's mounts and capabilities fills the node; a pod of the image starts without a pull.
pub(super) fn fills(turn: &Turn<'_>) {
    let cluster = turn.cluster;
    let name = format!("{}:1", unique("fast"));
    let image = cluster.image(&name).size(3_000_000).layers(3).push();
    turn.deployment("fast", &image.reference);
    let settings = json!({"FILL": "fast", "LOG_LEVEL": "debug"});
    let values = json!({"settings": settings, "fastFill": {"enabled": true}});
    let harpoon = turn.install(&chart(&values));
    let pod = harpoon.ready();
    let summary = summary(&pod);
    assert!(summary.starts_with("harpoon: pulled 1 ("), "{summary}");
    let log = harpoon.log(&pod);
    for other in ["the runtime pulls", "goes through containerd's socket"] {
        assert!(!log.contains(other), "{log}");
    }
    let started = turn.scale_up("fast");
    let events = turn.pulled(&started);
    let present = format!(
        "Pulled: Container image \"{}\" already present on machine",
        image.reference
    );
    assert!(events.contains(&present), "{events:?}");
    // Its entry point is in the lowest layer.
    let checked = cluster.ctr(&["images", "check"]);
    let is_whole = |line: &&str| line.starts_with(&image.reference);
    let line = checked.lines().find(is_whole).unwrap_or_default();
    assert!(line.contains("complete (4/4)"), "{checked}");
}
