//! Runs that are stopped, killed, or share a directory.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use super::faults::from_byte;
use super::{Bundle, failed, is_one_of, layers, pulled, told};
use crate::bed::faulty::{Fault, Proxy, Seen, first};
use crate::bed::{eventually, registry, unique};

const SIZE: u64 = 3_000_000;
/// More than an image's configuration has, which comes before the layers.
const A_CONFIGURATION: u64 = 10_000;
/// Ten seconds and more for such a layer; tests do not wait for its end.
const VERY_SLOW: Fault = Fault::Throttle(300_000);
/// A second and a half for half of it.
const SLOW: Fault = Fault::Throttle(1_000_000);

/// An image behind a proxy that sends its layer slowly, once.
fn slow_once() -> (Proxy, String) {
    let name = format!("{}:1", unique("slow"));
    let pushed = registry().image(&name).size(SIZE).push();
    let is_layer = is_one_of(layers(&pushed.reference));
    let proxy = Proxy::start(registry().url(), first(1, VERY_SLOW, is_layer));
    let image = proxy.reference(&name);
    (proxy, image)
}

/// Waits until a pull is in the middle of a layer.
fn await_some_of_the_layer(bundle: &Bundle) {
    let there = || bundle.begun() > A_CONFIGURATION;
    eventually("some of the layer is there", Duration::from_secs(20), there);
}

/// Ends a run with a signal in the middle of a layer; returns its result and the number of bytes received.
fn interrupt(bundle: &Bundle, image: &str, signal: Signal) -> (crate::bed::Output, u64, Duration) {
    let running = bundle.pull(&[image]).start();
    await_some_of_the_layer(bundle);
    let told = Instant::now();
    running.signal(signal);
    let output = running.wait();
    let took = told.elapsed();
    let begun = bundle.begun();
    assert!(
        (A_CONFIGURATION..SIZE).contains(&begun),
        "{begun} bytes, too late"
    );
    assert_eq!(bundle.entries().len(), 0);
    (output, begun, took)
}

/// The next run resumes where the first one stopped.
fn goes_on(bundle: &Bundle, proxy: &Proxy, image: &str, begun: u64) {
    let output = bundle.pull(&[image]).run().expect(0);
    assert_eq!(told(&output, image), pulled(1));
    let is_layer = is_one_of(layers(image));
    let seen = proxy.seen();
    let ranges: Vec<u64> = seen.iter().filter(|s| is_layer(s)).map(from_byte).collect();
    assert_eq!(ranges, [0, begun]);
    assert_eq!(bundle.entries().len(), 1);
    assert_eq!(bundle.begun(), 0);
}

#[test]
fn stopped_run_keeps_layout_and_resumes() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let (proxy, image) = slow_once();
        let bundle = Bundle::new();
        let (output, begun, took) = interrupt(&bundle, &image, signal);
        let output = output.expect(code);
        assert!(took < Duration::from_secs(8), "{took:?}");
        assert_eq!(told(&output, &image), failed("other", 1));
        goes_on(&bundle, &proxy, &image, begun);
    }
}

#[test]
fn killed_run_keeps_layout_and_resumes() {
    let (proxy, image) = slow_once();
    let bundle = Bundle::new();
    let (output, begun, _) = interrupt(&bundle, &image, Signal::KILL);
    assert_eq!(output.signal, Some(9));
    goes_on(&bundle, &proxy, &image, begun);
}

#[test]
fn run_killed_during_parts_resumes() {
    let size = 30_000_000;
    let name = format!("{}:1", unique("parts"));
    let pushed = registry().image(&name).size(size).push();
    let is_layer = is_one_of(layers(&pushed.reference));
    let is_layer = move |seen: &Seen| is_layer(seen);
    let proxy = Proxy::start(registry().url(), move |seen| match is_layer(seen) {
        true => Fault::Throttle(1_000_000),
        false => Fault::Pass,
    });
    let image = proxy.reference(&name);
    for signal in [Signal::KILL, Signal::TERM] {
        let bundle = Bundle::new();
        let before = proxy.bytes();
        let running = bundle.pull(&[&image]).start();
        // So much that not all of it can be in parts with a gap before them.
        let parts = || proxy.most_at_once() >= 4 && proxy.bytes() - before > size * 2 / 3;
        eventually("parts come", Duration::from_secs(20), parts);
        running.signal(signal);
        running.wait();
        assert_eq!(bundle.entries().len(), 0);
        let before = proxy.bytes();
        bundle.pull(&[&image]).run().expect(0);
        let again = proxy.bytes() - before;
        assert!(again < size * 9 / 10, "{again} bytes came again of {size}");
        assert_eq!(bundle.entries().len(), 1);
        assert_eq!(bundle.begun(), 0);
    }
}

#[test]
fn run_resumes_after_its_deadline() {
    let (proxy, image) = slow_once();
    let quick = registry().push(&unique("quick")).reference;
    let bundle = Bundle::new();
    let pull = bundle.pull(&[&image, &quick]).arg("--deadline=6s");
    let output = pull.run().expect(1);
    assert_eq!(told(&output, &image), failed("timeout", 1));
    assert_eq!(told(&output, &quick), pulled(1));
    assert_eq!(bundle.names(), [format!("{quick}:latest")]);
    assert!(proxy.count(|seen| seen.is_blob()) > 0);
    bundle.pull(&[&image]).run().expect(0);
    assert_eq!(bundle.entries().len(), 2);
}

/// Two images that share two layers of `SIZE` bytes together.
fn relatives() -> [String; 2] {
    let seed = unique("seed");
    let image = |name: &str, layers: usize| {
        let size = SIZE / 2 * layers as u64;
        let image = registry().image(name).size(size).layers(layers);
        image.seed(&seed).push();
    };
    let names = ["two", "three"].map(|kind| format!("{}:1", unique(kind)));
    image(&names[0], 2);
    image(&names[1], 3);
    names
}

#[test]
fn concurrent_runs_fetch_shared_blobs_once() {
    let names = relatives();
    let shared = layers(&registry().reference(&names[0]));
    let all = layers(&registry().reference(&names[1]));
    assert!(
        shared.len() == 2 && shared.is_subset(&all),
        "{shared:?} {all:?}"
    );
    let is_shared = is_one_of(shared);
    let slow = is_shared.clone();
    let proxy = Proxy::start(registry().url(), move |seen| match slow(seen) {
        true => SLOW,
        false => Fault::Pass,
    });
    let bundle = Bundle::new();
    let images = names.map(|name| proxy.reference(&name));
    let first = bundle.pull(&images[..1]).start();
    eventually(
        "the first has asked for both",
        Duration::from_secs(20),
        || proxy.count(&is_shared) == 2,
    );
    let second = bundle.pull(&images[1..]).start();
    for (running, image) in [first, second].into_iter().zip(&images) {
        assert_eq!(told(&running.wait().expect(0), image), pulled(1));
    }
    assert_eq!(bundle.entries().len(), 2);
    assert_eq!(bundle.begun(), 0);
    for layer in all {
        let count = proxy.count(is_one_of([layer.clone()].into()));
        assert_eq!(count, 1, "{layer} was fetched {count} times");
    }
}

#[test]
fn run_resumes_blob_of_dead_run() {
    let (proxy, image) = slow_once();
    let is_layer = is_one_of(layers(&image));
    let bundle = Bundle::new();
    let first = bundle.pull(&[&image]).start();
    await_some_of_the_layer(&bundle);
    let second = bundle.pull(&[&image]).start();
    eventually("the second is at it", Duration::from_secs(20), || {
        proxy.count(|seen| seen.is_manifest()) >= 2
    });
    first.signal(Signal::KILL);
    assert_eq!(told(&second.wait().expect(0), &image), pulled(1));
    let seen = proxy.seen();
    let ranges: Vec<u64> = seen.iter().filter(|s| is_layer(s)).map(from_byte).collect();
    assert!(
        matches!(ranges[..], [0, begun] if begun > A_CONFIGURATION),
        "{ranges:?}"
    );
    assert_eq!(bundle.entries().len(), 1);
}

#[test]
fn concurrent_runs_create_one_layout() {
    let images: Vec<String> = (0..6)
        .map(|_| registry().image(&unique("small")).size(10).push().reference)
        .collect();
    let bundle = Bundle::new();
    let start = |image| bundle.pull(&[image]).start();
    let runs: Vec<_> = images.iter().map(start).collect();
    for (run, image) in runs.into_iter().zip(&images) {
        assert_eq!(told(&run.wait().expect(0), image), pulled(1));
    }
    let mut names: Vec<_> = images
        .iter()
        .map(|image| format!("{image}:latest"))
        .collect();
    names.sort();
    assert_eq!(bundle.names(), names);
    let index = std::fs::read(bundle.path().join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    let media_type = json!("application/vnd.oci.image.index.v1+json");
    assert_eq!(index["mediaType"], media_type);
}
