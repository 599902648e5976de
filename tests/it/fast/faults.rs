//! Faults of registries during fast fill.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

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
    assert_eq!(stalls.now(), 0);
    for lease in containerd.leases() {
        containerd.ctr(&["leases", "delete", "--sync", &lease]);
    }
    assert_eq!(snapshots(&containerd), BTreeMap::new());
    assert_eq!(containerd.downloads(), [""; 0]);
}

#[test]
fn disk_that_fills_up_is_no_space() {
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
