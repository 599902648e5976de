//! Faults of registries during fast fill.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::fill::unpack::tar::{Tar, file};
use crate::fill::unpack::{Blob, push};

/// Runs once against a registry with this fault at layers; returns outcome, reason, message.
fn told(fault: impl Fn(u64) -> Fault + Send + Sync + 'static, retries: u32) -> (String, Output) {
    told_of(2, fault, retries)
}

fn told_of(
    layers: usize,
    fault: impl Fn(u64) -> Fault + Send + Sync + 'static,
    retries: u32,
) -> (String, Output) {
    let containerd = bed::containerd();
    let name = format!("{}:1", unique("fault"));
    let pushed = registry().image(&name).layers(layers).size(600_000).push();
    let proxy = Proxy::start(registry().url(), move |seen| match seen.is_blob() {
        true => fault(pushed.bytes),
        false => Fault::Pass,
    });
    let image = proxy.reference(&name);
    let output = fast(containerd, &[&image])
        .env("RETRIES", retries.to_string())
        .run();
    let report = output.json();
    let text = |key: &str| {
        entry(&report, &image)[key]
            .as_str()
            .unwrap_or("-")
            .to_owned()
    };
    let told = format!("{} {} {}", text("outcome"), text("reason"), text("message"));
    assert!(!images(containerd).iter().any(|line| line.contains(&image)) || output.code == Some(0));
    (told, output)
}

#[test]
fn rate_limit_is_reported() {
    let (told, output) = told(|_| Fault::too_many(7), 0);
    assert!(told.starts_with("failed rate_limited"), "{told}: {output}");
}

fn wrong(bytes: usize) -> Fault {
    Fault::Answer {
        status: 200,
        headers: vec![("content-type", "application/octet-stream".into())],
        body: "x".repeat(bytes),
    }
}

#[test]
fn longer_content_is_refused() {
    let (told, output) = told(|_| wrong(1_000_000), 0);
    assert!(told.starts_with("failed other"), "{told}: {output}");
    assert!(told.contains("size mismatch"), "{told}");
}

#[test]
fn wrong_digest_is_refused() {
    // The configuration is requested first.
    let count = AtomicUsize::new(0);
    let fault = move |bytes: u64| match count.fetch_add(1, Ordering::Relaxed) {
        0 => Fault::Pass,
        _ => wrong(usize::try_from(bytes).unwrap()),
    };
    let (told, output) = told_of(1, fault, 0);
    assert!(told.starts_with("failed other"), "{told}: {output}");
    assert!(told.contains("mismatch"), "{told}");
}

#[test]
fn refused_blobs_are_reported() {
    let (refused, output) = told(|_| Fault::status(403), 0);
    assert!(
        refused.starts_with("failed unauthorized"),
        "{refused}: {output}"
    );
    let (broken, output) = told(|_| Fault::status(500), 0);
    assert!(
        broken.starts_with("failed unavailable"),
        "{broken}: {output}"
    );
}

#[test]
fn cut_download_is_resumed() {
    let containerd = bed::containerd();
    let name = format!("{}:1", unique("cut"));
    registry().image(&name).size(600_000).push();
    let large = |seen: &bed::faulty::Seen| seen.is_blob() && !seen.headers.contains_key("range");
    let proxy = Proxy::start(registry().url(), move |seen| match large(seen) {
        true => Fault::CutAfter(200_000),
        false => Fault::Pass,
    });
    let image = proxy.reference(&name);
    let output = fast(containerd, &[&image])
        .env("RETRIES", "0")
        .run()
        .expect(0);
    filled(&output);
    assert!(output.stderr.contains("resuming"), "{output}");
}

#[test]
fn full_disk_is_no_space_and_clean() {
    let containerd = Containerd::with_space(30_000_000);
    let image = registry().image(&format!("{}:1", unique("full")));
    let pushed = image.layers(2).size(60_000_000).uncompressed().push();
    let output = fast(&containerd, &[&pushed.reference]).run();
    let report = output.json();
    assert_eq!(
        entry(&report, &pushed.reference)["reason"],
        "no_space",
        "{output}"
    );
    assert_eq!(snapshots(&containerd), BTreeMap::new());
    assert_eq!(content(&containerd), BTreeMap::new());
    assert_eq!(containerd.leases(), [""; 0]);
}

#[test]
fn wrong_diff_id_is_refused() {
    let containerd = Containerd::start();
    let layer = |name: &str| Blob::gzip(Tar::new([file(name, "1")]).end());
    let blobs = [
        layer("one"),
        layer("two").with_wrong_diff_id(),
        layer("three"),
    ];
    let image = push(&blobs, &unique("diff-id"));
    let output = fast(&containerd, &[&image]).env("RETRIES", "0").run();
    let report = output.expect(1).json();
    let told = entry(&report, &image);
    assert_eq!(told["reason"], "other", "{told}");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("diff ID mismatch"), "{message}");
    // What is right of it is freed too.
    assert_eq!(containerd.leases(), [""; 0]);
    empty(&containerd);
}

#[test]
fn bomb_ends_at_the_free_space() {
    let containerd = Containerd::with_disk("100000000");
    // Some hundred kilobytes on their way.
    let bomb = Tar::new([file("zeros", vec![0; 200_000_000])]).end();
    let image = push(&[Blob::gzip(bomb)], &unique("bomb"));
    let output = fast(&containerd, &[&image]).run().expect(1);
    let report = output.json();
    let told = entry(&report, &image);
    assert_eq!(told["reason"], "no_space", "{output}");
    assert_eq!(told["attempts"], 1, "{output}");
    let message = told["message"].as_str().unwrap();
    assert!(message.contains("exceeds the limit"), "{message}");
    assert_eq!(containerd.leases(), [""; 0]);
    empty(&containerd);
}

#[test]
fn diff_id_is_told_when_verified() {
    // A blob that two images share, of which one names a wrong diff ID.
    let containerd = Containerd::start();
    let layer = Blob::gzip(Tar::new([file("shared", "1")]).end());
    let image = push(std::slice::from_ref(&layer), &unique("right"));
    fast(&containerd, &[&image]).run().expect(0);
    let before = content(&containerd)[&layer.digest()].clone();
    assert!(
        before.iter().any(|label| label.contains("uncompressed=")),
        "{before:?}"
    );
    let image = push(&[layer.clone().with_wrong_diff_id()], &unique("wrong"));
    fast(&containerd, &[&image])
        .env("RETRIES", "0")
        .run()
        .expect(1);
    let told = |labels: &[String]| {
        let is_told = |label: &&String| label.contains("uncompressed=");
        labels.iter().find(is_told).cloned()
    };
    assert_eq!(told(&content(&containerd)[&layer.digest()]), told(&before));
}

#[test]
fn lowest_of_many_layers_fails_soon() {
    // The others wait for it.
    let layer = |n: usize| Blob::gzip(Tar::new([file(n.to_string(), "1")]).end());
    let blobs: Vec<_> = (0..40).map(layer).collect();
    let lowest = blobs[0].digest();
    let image = push(&blobs, &unique("many"));
    let proxy = Proxy::start(registry().url(), move |seen| {
        match seen.path.ends_with(&lowest) {
            true => Fault::status(403),
            false => Fault::Pass,
        }
    });
    let (_, name) = image.split_once('/').unwrap();
    let image = proxy.reference(name);
    let harpoon = fast(bed::containerd(), &[&image]).env("PULL_TIMEOUT", "60s");
    let output = harpoon.env("RETRIES", "0").run().expect(1);
    assert_eq!(
        entry(&output.json(), &image)["reason"],
        "unauthorized",
        "{output}"
    );
}

#[test]
fn filled_image_is_not_fetched_again() {
    // The runtime's request at the end is refused once.
    let containerd = Containerd::start();
    let name = format!("{}:1", unique("refused-once"));
    registry().image(&name).layers(3).size(600_000).push();
    let count = AtomicUsize::new(0);
    let proxy = Proxy::start(registry().url(), move |seen| {
        match seen.is_by_containerd() && count.fetch_add(1, Ordering::Relaxed) == 0 {
            true => Fault::too_many(1),
            false => Fault::Pass,
        }
    });
    let image = proxy.reference(&name);
    let output = fast(&containerd, &[&image]).run().expect(0);
    filled(&output);
    let layers = proxy.count(|seen| seen.is_blob() && seen.nth > 1);
    assert_eq!(layers, 0, "{output}");
}

#[test]
fn broken_layer_is_the_runtimes_failure() {
    let containerd = bed::containerd();
    // Neither gzip nor tar: containerd, which is asked too, says so.
    let mut blob = Blob::gzip(Tar::new([file("one", "1")]).end());
    blob.truncate(40);
    let image = push(&[blob], &unique("broken"));
    let output = fast(containerd, &[&image]).env("RETRIES", "0").run();
    let output = output.expect(1);
    assert_eq!(entry(&output.json(), &image)["outcome"], "failed");
    assert!(
        output.stderr.contains("containerd unpacks the layer"),
        "{output}"
    );
    assert!(!containerd.has(&image));
}

#[test]
fn unreachable_registry_is_the_runtimes() {
    // A name behind a proxy that nobody answers at: containerd may have another way.
    let containerd = bed::containerd();
    let image = "registry.example/team/web:1";
    let harpoon = fast(containerd, &[image]).env("HTTPS_PROXY", "http://127.0.0.1:1");
    let output = harpoon.env("RETRIES", "0").run().expect(1);
    assert!(
        output.stderr.contains("the runtime pulls (--fill)"),
        "{output}"
    );
    assert_eq!(entry(&output.json(), image)["outcome"], "failed");
}

#[test]
fn proxy_of_the_environment_is_used() {
    let containerd = bed::containerd();
    let proxy = Proxy::start(registry().url(), |_| Fault::status(403));
    let image = "registry.example/team/web:1";
    let harpoon = fast(containerd, &[image]).env("HTTPS_PROXY", proxy.url());
    harpoon.env("RETRIES", "0").run().expect(1);
    let tunnels = proxy.count(|seen| seen.method == "CONNECT");
    assert!(tunnels > 0, "{:?}", proxy.seen());
}

#[test]
fn stalled_download_times_out_clean() {
    let containerd = Containerd::start();
    let name = format!("{}:1", unique("stalls"));
    registry().image(&name).layers(2).size(3_000_000).push();
    let stalls = Proxy::start(registry().url(), |seen| match seen.is_blob() {
        true => Fault::StallAfter(200_000),
        false => Fault::Pass,
    });
    let image = stalls.reference(&name);
    let output = fast(&containerd, &[&image])
        .env("RETRIES", "0")
        .env("PULL_TIMEOUT", "3s")
        .run();
    let report = output.json();
    assert_eq!(entry(&report, &image)["reason"], "timeout", "{output}");
    bed::eventually("the downloads end", PATIENCE, || stalls.now() == 0);
    for lease in containerd.leases() {
        containerd.ctr(&["leases", "delete", "--sync", &lease]);
    }
    assert_eq!(snapshots(&containerd), BTreeMap::new());
    assert_eq!(containerd.downloads(), [""; 0]);
}

#[test]
fn filling_disk_is_no_space() {
    let containerd = Containerd::with_space(60_000_000);
    // Each one fits, and not both: the second meets a full disk.
    for (name, reason) in [("first", Value::Null), ("second", "no_space".into())] {
        let image = registry().image(&format!("{}:1", unique(name)));
        let pushed = image.layers(3).size(17_000_000).uncompressed().push();
        let before = (snapshots(&containerd), content(&containerd));
        let output = fast(&containerd, &[&pushed.reference]).run();
        let report = output.json();
        assert_eq!(
            entry(&report, &pushed.reference)["reason"],
            reason,
            "{output}"
        );
        if !reason.is_null() {
            assert_eq!((snapshots(&containerd), content(&containerd)), before);
        }
    }
    assert_eq!(containerd.leases(), [""; 0]);
}
