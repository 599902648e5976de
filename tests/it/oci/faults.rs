//! Registries that limit the rate, fail, stall, close connections and send false content.

use std::time::Duration;

use serde_json::json;

use super::{Bundle, failed, is_one_of, layers, pulled, told};
use crate::bed::faulty::{Fault, Proxy, Seen, first};
use crate::bed::{registry, unique};

/// The result of one run with an image of one layer, behind a proxy with faults.
struct Faulty {
    proxy: Proxy,
    image: String,
    bundle: Bundle,
}

impl Faulty {
    /// `fault` receives the requests for the layer.
    fn new<D: Fn(&Seen) -> Fault + Send + Sync + 'static>(
        bytes: u64,
        fault: impl FnOnce(Box<dyn Fn(&Seen) -> bool + Send + Sync>) -> D,
    ) -> Self {
        let name = format!("{}:1", unique("faulty"));
        let pushed = registry().image(&name).size(bytes).push();
        let is_layer = is_one_of(layers(&pushed.reference));
        let proxy = Proxy::start(registry().url(), fault(Box::new(is_layer)));
        Self {
            image: proxy.reference(&name),
            proxy,
            bundle: Bundle::new(),
        }
    }

    /// The `Range` headers of the requests for the layer: from which byte on.
    fn ranges(&self) -> Vec<u64> {
        let layer = is_one_of(layers(&self.image));
        let seen = self.proxy.seen();
        let asked = seen.iter().filter(|seen| layer(seen));
        asked.map(from_byte).collect()
    }
}

impl Faulty {
    /// The image comes at the first attempt, whole and under its digest.
    fn comes_whole(&self) {
        let output = self.bundle.pull(&[&self.image]).run().expect(0);
        assert_eq!(told(&output, &self.image), pulled(1));
        assert_eq!(self.bundle.names().len(), 1);
    }

    /// The `Range` headers of the requests for the layer, as they are.
    fn parts(&self) -> Vec<String> {
        let layer = is_one_of(layers(&self.image));
        let seen = self.proxy.seen();
        let asked = seen.iter().filter(|seen| layer(seen));
        asked
            .map(|seen| {
                seen.headers
                    .get("range")
                    .map_or("-", |range| range.to_str().unwrap())
                    .to_owned()
            })
            .collect()
    }
}

/// The first requested byte of the blob.
pub(super) fn from_byte(seen: &Seen) -> u64 {
    let range = seen
        .headers
        .get("range")
        .map(|value| value.to_str().unwrap());
    let from = range.map(|range| range.strip_prefix("bytes=").unwrap());
    from.map_or(0, |from| from.strip_suffix('-').unwrap().parse().unwrap())
}

#[test]
fn rate_limit_waits_for_retry_after() {
    let test = Faulty::new(1000, |_| first(1, Fault::too_many(1), Seen::is_manifest));
    let output = test.bundle.pull(&[&test.image]).run().expect(0);
    assert_eq!(told(&output, &test.image), pulled(2));
    assert!(output.elapsed >= Duration::from_secs(1), "{output}");
    assert!(
        output.stderr.contains("reason=\"rate_limited\""),
        "{output}"
    );
    assert!(
        output
            .stderr
            .contains("You have reached your pull rate limit"),
        "{output}"
    );
    assert_eq!(test.bundle.entries().len(), 1);
}

#[test]
fn lasting_rate_limit_is_reported() {
    // With a Retry-After and without.
    for fault in [Fault::too_many(1), Fault::status(429)] {
        let test = Faulty::new(1000, |_| move |_: &Seen| fault.clone());
        let pull = test.bundle.pull(&[&test.image]).arg("--retries=0");
        let output = pull.run().expect(1);
        assert_eq!(told(&output, &test.image), failed("rate_limited", 1));
    }
}

#[test]
fn registry_error_is_retried() {
    let test = Faulty::new(1000, |_| first(1, Fault::status(500), |_| true));
    let output = test.bundle.pull(&[&test.image]).run().expect(0);
    assert_eq!(told(&output, &test.image), pulled(2));

    let test = Faulty::new(1000, |is_layer| {
        move |seen: &Seen| match is_layer(seen) {
            true => Fault::status(503),
            false => Fault::Pass,
        }
    });
    let output = test
        .bundle
        .pull(&[&test.image])
        .arg("--retries=1")
        .run()
        .expect(1);
    assert_eq!(told(&output, &test.image), failed("unavailable", 2));
    let message = output.json()["images"][0]["message"].to_string();
    assert!(
        message.contains("503") && message.contains("made by the test"),
        "{message}"
    );
    assert_eq!(test.ranges(), [0, 0]);
    assert_eq!(test.bundle.entries().len(), 0);
}

#[test]
fn closed_connection_is_unavailable() {
    let test = Faulty::new(1000, |_| |_: &Seen| Fault::Close);
    let output = test
        .bundle
        .pull(&[&test.image])
        .arg("--retries=0")
        .run()
        .expect(1);
    assert_eq!(told(&output, &test.image), failed("unavailable", 1));
}

#[test]
fn stalled_download_times_out_and_resumes() {
    let stalls = Fault::StallAfter(200_000);
    let test = Faulty::new(600_000, |is_layer| first(1, stalls, is_layer));
    let pull = test.bundle.pull(&[&test.image]);
    let limits = ["--pull-timeout=6s", "--retries=0"];
    let output = pull.clone().args(limits).run().expect(1);
    assert_eq!(told(&output, &test.image), failed("timeout", 1));
    assert_eq!(test.bundle.entries().len(), 0);
    let begun = test.bundle.begun();
    assert!((1..=200_000).contains(&begun), "{begun}");
    let output = pull.run().expect(0);
    assert_eq!(told(&output, &test.image), pulled(1));
    assert_eq!(test.ranges(), [0, begun]);
    assert_eq!(test.bundle.entries().len(), 1);
}

#[test]
fn silent_registry_times_out() {
    let test = Faulty::new(1000, |_| |_: &Seen| Fault::Stall);
    let pull = test.bundle.pull(&[&test.image]).arg("--pull-timeout=500ms");
    let output = pull.arg("--retries=1").run().expect(1);
    assert_eq!(told(&output, &test.image), failed("timeout", 2));
}

#[test]
fn cut_download_resumes_at_offset() {
    let cut = Fault::CutAfter(300_000);
    let test = Faulty::new(900_000, |is_layer| first(2, cut, is_layer));
    let output = test.bundle.pull(&[&test.image]).run().expect(0);
    assert_eq!(told(&output, &test.image), pulled(1));
    let ranges = test.ranges();
    assert_eq!(ranges.len(), 3, "{ranges:?}");
    assert!((1..=300_000).contains(&ranges[1]), "{ranges:?}");
    assert!(
        (1..=300_000).contains(&(ranges[2] - ranges[1])),
        "{ranges:?}"
    );
    assert_eq!(test.bundle.entries().len(), 1);
    assert_eq!(test.bundle.begun(), 0);
}

#[test]
fn download_cut_every_time_fails() {
    let test = Faulty::new(900_000, |is_layer| {
        move |seen: &Seen| match is_layer(seen) {
            true => Fault::CutAfter(50_000),
            false => Fault::Pass,
        }
    });
    let output = test
        .bundle
        .pull(&[&test.image])
        .arg("--retries=0")
        .run()
        .expect(1);
    assert_eq!(told(&output, &test.image), failed("unavailable", 1));
    assert_eq!(test.bundle.entries().len(), 0);
}

#[test]
fn wrong_content_is_never_kept() {
    // As many bytes as there should be, fewer, more.
    for bytes in [600_000, 10, 900_000] {
        let name = format!("{}:1", unique("lying"));
        let pushed = registry().image(&name).size(600_000).push();
        let is_layer = is_one_of(layers(&pushed.reference));
        let length = usize::try_from(if bytes == 600_000 {
            pushed.bytes
        } else {
            bytes
        })
        .unwrap();
        let body = "x".repeat(length);
        let proxy = Proxy::start(registry().url(), move |seen| match is_layer(seen) {
            true => Fault::Answer {
                status: 200,
                headers: Vec::new(),
                body: body.clone(),
            },
            false => Fault::Pass,
        });
        let image = proxy.reference(&name);
        let bundle = Bundle::new();
        let output = bundle.pull(&[&image]).arg("--retries=0").run().expect(1);
        let reason = &told(&output, &image)[1];
        // An answer that is too short may be the wire's fault.
        let expected = if bytes == 10 { "unavailable" } else { "other" };
        assert_eq!(*reason, json!(expected), "{bytes}: {output}");
        assert_eq!(bundle.entries().len(), 0);
        assert!(
            !layers(&image)
                .iter()
                .any(|layer| bundle.blobs().contains_key(layer))
        );

        // What was left of it, if anything, does no harm.
        drop(proxy);
        let direct = bundle.pull(&[&pushed.reference]).run().expect(0);
        assert_eq!(told(&direct, &pushed.reference), pulled(1));
        assert_eq!(bundle.entries().len(), 1);
    }
}

#[test]
fn manifest_with_other_digest_is_refused() {
    let [asked, other] = ["1", "2"].map(|tag| {
        let name = unique("swapped");
        (registry().push(&format!("{name}:{tag}")), name)
    });
    let body = super::raw(&other.0.reference);
    let proxy = Proxy::start(registry().url(), move |seen| match seen.is_manifest() {
        true => Fault::Answer {
            status: 200,
            headers: vec![(
                "content-type",
                "application/vnd.oci.image.manifest.v1+json".into(),
            )],
            body: body.clone(),
        },
        false => Fault::Pass,
    });
    let image = proxy.reference(&format!("{}@{}", asked.1, asked.0.digest));
    let bundle = Bundle::new();
    let output = bundle.pull(&[&image]).arg("--retries=0").run().expect(1);
    assert_eq!(told(&output, &image), failed("other", 1));
    let message = output.json()["images"][0]["message"].to_string();
    assert!(
        message.contains(&asked.0.digest) && message.contains(&other.0.digest),
        "{message}"
    );
    assert!(!bundle.path().exists());
}

/// A layer of this size is fetched in parts if the registry is slow.
const LARGE: u64 = 20_000_000;
/// Bytes per second of one connection.
const SLOW: usize = 4_000_000;

#[test]
fn slow_large_layer_comes_in_parts() {
    let test = Faulty::new(LARGE, |_| |_: &Seen| Fault::Throttle(SLOW));
    test.comes_whole();
    let parts = test.parts();
    assert!(parts.len() >= 9, "{parts:?}");
    assert_eq!(parts[0], "-", "the first answer shows that it is slow");
    assert!(
        parts[1..].iter().all(|part| !part.ends_with('-')),
        "{parts:?}"
    );
    assert!(
        test.proxy.most_at_once() >= 4,
        "{}",
        test.proxy.most_at_once()
    );
}

#[test]
fn layer_continues_unsplit_after_failed_part() {
    for fault in [Fault::status(503), Fault::Close] {
        let test = Faulty::new(LARGE, |is_layer| {
            move |seen: &Seen| match seen.nth {
                3 if is_layer(seen) => fault.clone(),
                _ => Fault::Throttle(SLOW),
            }
        });
        test.comes_whole();
        let parts = test.parts();
        // Not the last that the proxy has seen: other parts may still have been on their way to it.
        let rest = |part: &String| part.ends_with('-');
        assert!(parts[1..].iter().any(rest), "{parts:?}");
    }
}

#[test]
fn cut_part_resumes_at_offset() {
    let test = Faulty::new(LARGE, |is_layer| {
        move |seen: &Seen| match seen.nth {
            3 if is_layer(seen) => Fault::CutAfter(500_000),
            _ => Fault::Throttle(SLOW),
        }
    });
    test.comes_whole();
    let parts = test.parts();
    assert!(
        parts[1..].iter().all(|part| !part.ends_with('-')),
        "{parts:?}"
    );
}
