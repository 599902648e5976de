//! Images that leave the plan: their pins and seals last for `keepAfterUnused`, and then they are gone.

use super::*;
use crate::pins::names;

#[test]
fn unused_images_are_released_later() {
    const KEPT: Duration = Duration::from_secs(8);
    let (stage, node) = Stage::shared();
    let [pinned, sealed] = [named("left-pinned"), named("left-sealed")]
        .map(|name| bed::registry().push(&name).reference);
    let with = |image: &str, policy: &str, seal: &str| {
        let mut spec = list(&[image]);
        spec["retention"] = json!({"policy": policy, "keepAfterUnused": "8s"});
        spec["seal"] = json!(seal);
        spec
    };
    let is_pinned = || {
        let names = names(&node.containerd);
        let own = names.get(&pinned);
        own.is_some_and(|name| name.is_pinned && name.is_marked)
    };
    let is_sealed = || node.containerd.ctr(&["leases", "list"]).contains(&sealed);
    let prefetches = ["left-pinned", "left-sealed"];
    stage.apply(prefetches[0], &with(&pinned, "Pin", "Never"));
    stage.apply(prefetches[1], &with(&sealed, "Keep", "Always"));
    stage.wait_for("one is pinned, one is sealed", || {
        is_pinned() && is_sealed()
    });

    let began = Instant::now();
    for prefetch in prefetches {
        let path = format!("{API}/imageprefetches/{prefetch}");
        stage.cluster.delete(&path);
    }
    let deleted = Instant::now();
    stage.wait_for("they are not used any more", || {
        let planned = stage.planned();
        let unused = |image: &String| {
            let planned = planned.get(image);
            planned.is_none_or(|planned| planned["prefetches"] == json!([]))
        };
        unused(&pinned) && unused(&sealed)
    });
    std::thread::sleep(Duration::from_secs(4));
    let is_kept = is_pinned() && is_sealed();
    assert!(is_kept || began.elapsed() > KEPT, "{}", stage.explain());

    stage.wait_for("they are planned no longer", || {
        let planned = stage.planned();
        !planned.contains_key(&pinned) && !planned.contains_key(&sealed)
    });
    stage.wait_for("pin and lease are gone", || !is_pinned() && !is_sealed());
    assert!(deleted.elapsed() > KEPT, "{:?}", deleted.elapsed());
    // It is the kubelet's now.
    assert!(node.has(&pinned));
    let left = names(&node.containerd);
    let marked: Vec<_> = left.iter().filter(|(_, name)| name.is_marked).collect();
    assert!(
        !marked.iter().any(|(name, _)| name.contains("left-pinned")),
        "{:?}",
        left.keys()
    );
}
