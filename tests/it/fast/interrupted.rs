//! Kills in the middle of a fast fill.

use rustix::process::Signal;

use super::*;

/// An image whose blobs come slowly, and its proxy.
fn slow(name: &str) -> (Proxy, String) {
    let name = format!("{}:1", unique(name));
    registry().image(&name).layers(3).size(6_000_000).push();
    let proxy = Proxy::start(registry().url(), |seen| match seen.is_blob() {
        true => Fault::Throttle(1_500_000),
        false => Fault::Pass,
    });
    let image = proxy.reference(&name);
    (proxy, image)
}

#[test]
fn killed_harpoon_leaves_a_lease_alone() {
    let containerd = Containerd::start();
    for moment in [50, 300, 900, 1500] {
        let (proxy, image) = slow("killed");
        let harpoon = fast(&containerd, &[&image]).start();
        bed::eventually("a blob is requested", Duration::from_secs(20), || {
            proxy.count(|seen| seen.is_blob()) > 1
        });
        std::thread::sleep(Duration::from_millis(moment));
        harpoon.signal(Signal::KILL);
        harpoon.wait();
        let output = fast(&containerd, &[&image]).run().expect(0);
        filled(&output);
        // As when the leases have expired.
        for lease in containerd.leases() {
            assert!(lease.starts_with("harpoon/"), "{lease}");
            containerd.ctr(&["leases", "delete", "--sync", &lease]);
        }
        let odd: Vec<_> = snapshots(&containerd)
            .into_values()
            .filter(|info| info["Kind"] != "Committed")
            .collect();
        assert!(odd.is_empty(), "{odd:?}");
    }
    for name in containerd.images() {
        containerd.remove(&name);
    }
    assert_eq!(snapshots(&containerd), BTreeMap::new());
    assert_eq!(content(&containerd), BTreeMap::new());
}

#[test]
fn restarted_containerd_gets_the_image() {
    let containerd = Containerd::start();
    let (proxy, image) = slow("restarted");
    let harpoon = fast(&containerd, &[&image]).start();
    bed::eventually("a blob is requested", Duration::from_secs(20), || {
        proxy.count(|seen| seen.is_blob()) > 1
    });
    std::thread::sleep(Duration::from_millis(500));
    containerd.kill();
    std::thread::sleep(Duration::from_millis(500));
    containerd.restart();
    let output = harpoon.wait().expect(0);
    assert_eq!(
        entry(&output.json(), &image)["outcome"],
        "pulled",
        "{output}"
    );
    assert!(
        images(&containerd)
            .iter()
            .all(|line| line.contains("complete (4/4)"))
    );
}
