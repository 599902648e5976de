//! Behaviour specific to containerd.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Signal;

use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{Harpoon, containerd, eventually, registry, unique};
use crate::pulling::{PATIENCE, check, entry, pull};

#[test]
fn cancelled_download_stops() {
    let name = unique("cancelled");
    registry()
        .image(&format!("{name}:1"))
        .size(1_000_000)
        .push();
    let proxy = Proxy::start(registry().url(), |seen| {
        if seen.is_blob() {
            Fault::Throttle(20_000)
        } else {
            Fault::Pass
        }
    });
    let image = proxy.reference(&format!("{name}:1"));
    // Names and sizes of this image's downloads, regardless of other tests.
    let downloads = || -> BTreeMap<String, String> {
        let blobs = proxy.seen().into_iter().filter(|seen| seen.is_blob());
        let blobs: Vec<_> = blobs
            .filter_map(|seen| Some(seen.path.rsplit_once('/')?.1.to_owned()))
            .collect();
        let active = containerd().downloads().into_iter().filter_map(|line| {
            let mut columns = line.split_whitespace().map(str::to_owned);
            Some((columns.next()?, columns.next()?))
        });
        active
            .filter(|(name, _)| blobs.iter().any(|blob| name.contains(blob)))
            .collect()
    };
    let running = pull(containerd(), &[&image]).start();
    eventually("the layer is on its way", PATIENCE, || {
        downloads().keys().any(|name| name.starts_with("layer-"))
    });
    running.signal(Signal::TERM);
    running.wait().expect(143);
    eventually("the registry's connections are closed", PATIENCE, || {
        proxy.now() == 0
    });
    let left = downloads();
    let asked = proxy.seen().len();
    // At this rate `ctr`, which rounds to a tenth of a kibibyte, would see it grow at once. It may be cleared away.
    std::thread::sleep(Duration::from_secs(1));
    let now = downloads();
    assert!(
        now.iter().all(|(name, size)| left.get(name) == Some(size)),
        "{left:?} {now:?}"
    );
    assert_eq!(proxy.seen().len(), asked);
    assert!(!containerd().has(&image));
}

#[test]
fn digest_reference_is_pulled_and_found() {
    let name = unique("pinned");
    let pushed = registry().push(&format!("{name}:1"));
    let by_digest = registry().reference(&format!("{name}@{}", pushed.digest));
    let by_both = format!("{}@{}", pushed.reference, pushed.digest);
    // The digest overrides the tag, so both are one image.
    let report = check(
        &pull(containerd(), &[&by_both, &by_digest]).run().expect(0),
        &[(&by_both, "pulled 1")],
    );
    assert_eq!(entry(&report, &by_both)["digest"], pushed.digest);
    assert!(containerd().has(&by_digest));
    check(
        &pull(containerd(), &[&by_digest]).run().expect(0),
        &[(&by_digest, "present 0")],
    );
    // Its tag is another name, which containerd does not know.
    check(
        &pull(containerd(), &[&pushed.reference]).run().expect(0),
        &[(&pushed.reference, "pulled 1")],
    );
}

#[test]
fn presence_requires_the_whole_reference() {
    let name = unique("similar");
    let [one, longer, deeper] =
        ["", "-more", "/deeper"].map(|end| registry().push(&format!("{name}{end}:1")).reference);
    let other_tag = registry().push(&format!("{name}:12")).reference;
    check(
        &pull(containerd(), &[&longer, &deeper, &other_tag])
            .run()
            .expect(0),
        &[
            (&longer, "pulled 1"),
            (&deeper, "pulled 1"),
            (&other_tag, "pulled 1"),
        ],
    );
    check(
        &pull(containerd(), &[&one, &longer]).run().expect(0),
        &[(&one, "pulled 1"), (&longer, "present 0")],
    );
}

#[test]
fn text_report_matches_json() {
    let pushed = registry()
        .image(&format!("{}:1", unique("readable")))
        .size(50_000)
        .push();
    let missing = registry().reference(&format!("{}:1", unique("missing")));
    let harpoon = Harpoon::new([
        "pull",
        "--runtime-endpoint",
        containerd().endpoint(),
        &pushed.reference,
        &missing,
    ]);
    let output = harpoon.run().expect(1);
    let line = |start: &str| {
        output
            .stdout
            .lines()
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{output}"))
    };
    let words = |start: &str| line(start).split_whitespace().collect::<Vec<_>>();
    assert_eq!(
        words("IMAGE"),
        ["IMAGE", "OUTCOME", "PODS", "TIME", "SIZE", "WHY"]
    );
    assert_eq!(words(&pushed.reference)[1..3], ["pulled", "-"]);
    assert_eq!(words(&missing)[1], "failed");
    assert!(line(&missing).contains("not_found: "), "{output}");
    assert!(
        line("harpoon: pulled 1 (").contains("failed 1, skipped 0 in "),
        "{output}"
    );
    assert!(
        output
            .stdout
            .trim_end()
            .lines()
            .last()
            .unwrap()
            .contains(" with containerd "),
        "{output}"
    );
}
