//! Seals while others pull, and when harpoon is killed.

use std::collections::BTreeSet;
use std::time::Duration;

use rustix::process::Signal;

use harpoon::model::reference::Reference;
use harpoon::runtime::image_service::{ImageService, Progress};

use super::runs::{always, blobs};
use super::{KEEP, connect, login, pull, visible};
use crate::bed::faulty::{Fault, Proxy};
use crate::bed::has_newer_runtimes;
use crate::bed::{
    Containerd, PASSWORD, USER, block_on, eventually, registry_with_password, unique,
};
use crate::pulling::PATIENCE;

/// Images that are pulled at once in each round.
const AT_ONCE: usize = 8;
const KILLS: usize = 8;
const LAYER: u64 = 200_000;

/// Rounds of a test, `fewer` in `make test`; `SEAL_ROUNDS` says otherwise.
fn rounds(fewer: usize) -> usize {
    std::env::var("SEAL_ROUNDS").map_or(fewer, |text| {
        text.parse().expect("SEAL_ROUNDS is a number of rounds")
    })
}

/// A containerd for the rest of the process.
fn leaked() -> &'static Containerd {
    Box::leak(Box::new(Containerd::start()))
}

/// Acts as the kubelet does for a pod: pulls, then makes a container by the image's name.
fn start_pod(containerd: &'static Containerd, image: &str, id: &str) {
    let right = login(USER, PASSWORD);
    pull(containerd, image, Some(&right)).unwrap();
    containerd.ctr(&["containers", "create", image, id]);
}

#[test]
fn simultaneous_pulls_lose_no_name() {
    let containerd = leaked();
    let registry = registry_with_password();
    let repository = unique("sealed-race");
    let images: Vec<_> = (0..AT_ONCE)
        .map(|number| registry.push(&format!("{repository}-{number}:1")).reference)
        .collect();
    for round in 0..rounds(AT_ONCE).div_ceil(AT_ONCE) {
        let names: Vec<_> = images.iter().map(String::as_str).collect();
        let harpoon = always(containerd, registry.address(), &names);
        let harpoon = harpoon.env("CONCURRENCY", AT_ONCE.to_string()).start();
        std::thread::scope(|scope| {
            for (number, image) in images.iter().enumerate() {
                scope.spawn(move || {
                    std::thread::sleep(Duration::from_millis(fastrand::u64(..150)));
                    start_pod(containerd, image, &format!("pod-{round}-{number}"));
                });
            }
        });
        harpoon.wait().expect(0);
        let there: BTreeSet<_> = containerd.images().into_iter().collect();
        for (number, image) in images.iter().enumerate() {
            assert!(there.contains(image), "round {round}: {image} of {there:?}");
            containerd.ctr(&["containers", "delete", &format!("pod-{round}-{number}")]);
        }
        for name in there {
            containerd.ctr(&["images", "remove", "--sync", &name]);
        }
        let release = ["release", "--runtime-endpoint", containerd.endpoint()];
        crate::bed::Harpoon::new(release).run().expect(0);
        assert_eq!(blobs(containerd).len(), 0, "round {round}");
    }
}

#[test]
fn two_harpoons_seal_the_same() {
    let containerd = leaked();
    let registry = registry_with_password();
    let repository = unique("sealed-twice");
    let images: Vec<_> = (0..4)
        .map(|number| registry.push(&format!("{repository}-{number}:1")).reference)
        .collect();
    let names: Vec<_> = images.iter().map(String::as_str).collect();
    let start = || always(containerd, registry.address(), &names).start();
    for harpoon in [start(), start(), start()] {
        harpoon.wait().expect(0);
    }
    let report = always(containerd, registry.address(), &names)
        .run()
        .expect(0);
    let report = report.json();
    assert_eq!(report["summary"]["present"], 4);
    let images = report["images"].as_array().unwrap();
    assert!(
        images.iter().all(|image| image["sealed"] == true),
        "{report}"
    );
    assert_eq!(visible(containerd, &repository), [""; 0]);
    let leases = containerd.leases();
    let seals = leases.iter().filter(|id| id.starts_with("harpoon/"));
    assert_eq!(seals.count(), 4, "{leases:?}");
}

/// Two that have not seen each other pull the same image, in each order in which one finds the other's name.
#[test]
fn pulls_that_overlap_leave_no_name() {
    let containerd = leaked();
    let registry = registry_with_password();
    let repository = unique("sealed-overlap");
    let images = ["sealed", "adopts-first", "adopts-last"].map(|order| {
        let pushed = registry.push(&format!("{repository}-{order}:1"));
        Reference::parse(&pushed.reference).unwrap()
    });
    block_on(async move {
        let (one, other) = (connect(containerd).await, connect(containerd).await);
        let (first, second) = (one.seals().unwrap(), other.seals().unwrap());
        let right = login(USER, PASSWORD);
        for (order, image) in images.iter().enumerate() {
            let progress = Progress::default();
            let before = first.before().await.unwrap();
            one.pull(image, Some(&right), &progress).await.unwrap();
            let adopt = first.adopt(before, image, KEEP);
            let mut adopt = Some(adopt);
            if order == 0 {
                adopt.take().unwrap().await.unwrap();
            }
            let before = second.before().await.unwrap();
            other.pull(image, Some(&right), &progress).await.unwrap();
            if order == 1 {
                adopt.take().unwrap().await.unwrap();
            }
            second.adopt(before, image, KEEP).await.unwrap();
            if let Some(adopt) = adopt {
                adopt.await.unwrap();
            }
        }
        tokio::join!(first.settle(), second.settle());
    });
    assert_eq!(visible(containerd, &repository), [""; 0]);
}

#[test]
fn outage_leaves_no_name() {
    let containerd = leaked();
    let registry = registry_with_password();
    let repository = unique("sealed-outage");
    let pushed = registry.push(&format!("{repository}:1"));
    let image = Reference::parse(&pushed.reference).unwrap();
    block_on(async move {
        let cri = connect(containerd).await;
        let seals = cri.seals().unwrap();
        let (right, progress) = (login(USER, PASSWORD), Progress::default());
        let before = seals.before().await.unwrap();
        cri.pull(&image, Some(&right), &progress).await.unwrap();
        seals.adopt(before, &image, KEEP).await.unwrap();
        containerd.kill();
        seals.settle().await;
        assert!(seals.forget_kept());
        containerd.restart();
        let again = connect(containerd).await;
        let names = again.seals().unwrap();
        names.resume(seals.unsettled());
        names.settle().await;
        assert!(!names.forget_kept());
    });
    assert_eq!(visible(containerd, &repository), [""; 0]);
}

/// Every lease has an expiry, and nothing but leases holds what is there.
#[test]
fn kills_leave_nothing_for_ever() {
    let containerd = leaked();
    let registry = registry_with_password();
    for round in 0..rounds(KILLS) {
        let name = format!("{}:1", unique("sealed-killed"));
        registry.image(&name).layers(4).size(4 * LAYER).push();
        let proxy = Proxy::start(registry.url(), |seen| match seen.is_blob() {
            true => Fault::Throttle(200_000),
            false => Fault::Pass,
        });
        let image = proxy.reference(&name);
        let harpoon = always(containerd, &proxy.address(), &[&image]).start();
        std::thread::sleep(Duration::from_millis(fastrand::u64(..2_000)));
        harpoon.try_signal(Signal::KILL);
        eventually("harpoon has ended", PATIENCE, || harpoon.has_ended());
        drop(harpoon);
        let leases = containerd.ctr(&["leases", "list"]);
        for lease in leases.lines().skip(1) {
            let ours = lease.starts_with("harpoon/");
            let expires = lease.contains("containerd.io/gc.expire=");
            assert!(expires || !ours, "round {round}: {lease}");
        }
        if has_newer_runtimes() {
            assert_eq!(containerd.images(), [""; 0], "round {round}");
        }
    }
    if !has_newer_runtimes() {
        // There a pull through the CRI that is killed in time leaves the image as any other.
        return;
    }
    eventually("without leases, all is freed", PATIENCE, || {
        for lease in containerd.leases() {
            if lease.starts_with("harpoon/") {
                containerd.ctr(&["leases", "delete", "--sync", &lease]);
            }
        }
        blobs(containerd).is_empty()
    });
}
