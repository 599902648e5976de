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

#[test]
fn kills_at_any_moment_leave_nothing() {
    let containerd = Containerd::start();
    let image = registry().image(&format!("{}:1", unique("kills")));
    let image = image.layers(5).size(20_000_000).uncompressed().push();
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..8 {
        let harpoon = fast(&containerd, &[&image.reference]).start();
        // From the first request to the end of the hand-over.
        std::thread::sleep(Duration::from_millis(random.u64(20..600)));
        harpoon.signal(Signal::KILL);
        harpoon.wait();
        match round % 2 {
            // The kubelet comes next.
            0 => drop(containerd.ctr(&["images", "pull", "--plain-http", &image.reference])),
            _ => filled(&fast(&containerd, &[&image.reference]).run().expect(0)),
        }
        let checked = images(&containerd);
        let of_image = |line: &&String| line.starts_with(&image.reference);
        let line = checked.iter().find(of_image).unwrap();
        assert!(line.contains("complete (6/6)"), "{line}");
        for lease in containerd.leases() {
            containerd.ctr(&["leases", "delete", "--sync", &lease]);
        }
        for name in containerd.images() {
            containerd.remove(&name);
        }
        assert_eq!(containerd.downloads(), [""; 0]);
        assert_eq!(snapshots(&containerd), BTreeMap::new());
        assert_eq!(content(&containerd), BTreeMap::new());
    }
    let content = containerd.store().join("io.containerd.content.v1.content");
    let left = std::fs::read_dir(content.join("ingest"));
    assert_eq!(left.unwrap().count(), 0);
}
