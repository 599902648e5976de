//! Faults of layers that come over several connections because a single one is slow.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::bed::faulty::Seen;

/// Slow enough for parts.
const SLOW: usize = 15_000_000;
const BYTES: u64 = 12_000_000;

/// The range of a request for a part.
fn part(seen: &Seen) -> Option<std::ops::Range<u64>> {
    let range = seen.headers.get("range").filter(|_| seen.is_blob())?;
    let range = range.to_str().unwrap().strip_prefix("bytes=")?;
    let (from, to) = range.split_once('-')?;
    Some(from.parse().unwrap()..to.parse::<u64>().ok()? + 1)
}

/// One run with faults of parts.
struct Parted {
    containerd: Containerd,
    proxy: Proxy,
    image: String,
    output: Output,
}

impl Parted {
    fn new(fault: impl Fn(&Seen, std::ops::Range<u64>) -> Fault + Send + Sync + 'static) -> Self {
        let containerd = Containerd::start();
        let name = format!("{}:1", unique("parted"));
        registry().image(&name).size(BYTES).uncompressed().push();
        let proxy = Proxy::start(registry().url(), move |seen| match part(seen) {
            Some(range) => fault(seen, range),
            None if seen.is_blob() => Fault::Throttle(SLOW),
            None => Fault::Pass,
        });
        let image = proxy.reference(&name);
        let output = fast(&containerd, &[&image]).env("RETRIES", "0").run();
        Self {
            containerd,
            proxy,
            image,
            output,
        }
    }

    /// The image is there, as containerd has it.
    #[track_caller]
    fn comes(&self) {
        assert_eq!(self.output.code, Some(0), "{}", self.output);
        filled(&self.output);
        let theirs = bed::containerd();
        let (_, name) = self.image.split_once('/').unwrap();
        let image = registry().reference(name);
        fast(theirs, &[&image])
            .env("FILL", "runtime")
            .run()
            .expect(0);
        let [our, their] = [(&self.containerd, &self.image), (theirs, &image)]
            .map(|(containerd, image)| tree(containerd, image));
        assert_eq!(our, their);
        assert!(self.proxy.count(|seen| part(seen).is_some()) > 0);
    }

    /// The image fails for this reason, and nothing of it stays.
    #[track_caller]
    fn fails(&self, reason: &str, message: &str) {
        let report = self.output.json();
        let told = entry(&report, &self.image);
        assert_eq!(told["reason"], reason, "{}", self.output);
        let text = told["message"].as_str().unwrap();
        assert!(text.contains(message), "{}", self.output);
        assert_eq!(self.containerd.downloads(), [""; 0]);
        for lease in self.containerd.leases() {
            self.containerd.ctr(&["leases", "delete", "--sync", &lease]);
        }
        empty(&self.containerd);
    }
}

/// Answers the range, with these bytes.
fn answer(range: &std::ops::Range<u64>, body: String) -> Fault {
    let range = format!("bytes {}-{}/{BYTES}", range.start, range.end - 1);
    Fault::Answer {
        status: 206,
        headers: vec![("content-range", range)],
        body,
    }
}

#[test]
fn parts_make_the_whole_layer() {
    let parted = Parted::new(|_, _| Fault::Throttle(SLOW));
    parted.comes();
    assert!(parted.proxy.count(|seen| part(seen).is_some()) > 2);
}

#[test]
fn cut_part_is_resumed() {
    let count = AtomicUsize::new(0);
    let parted = Parted::new(
        move |_, _| match count.fetch_add(1, Ordering::Relaxed) % 2 {
            0 => Fault::CutAfter(700_000),
            _ => Fault::Pass,
        },
    );
    parted.comes();
}

#[test]
fn part_without_an_end_fails() {
    let parted = Parted::new(|_, _| Fault::CutAfter(1000));
    parted.fails("unavailable", "failed to read the response");
}

#[test]
fn short_part_needs_one_response() {
    let count = AtomicUsize::new(0);
    let parted = Parted::new(
        move |_, range| match count.fetch_add(1, Ordering::Relaxed) {
            0 => answer(&range, "x".repeat(1000)),
            _ => Fault::Pass,
        },
    );
    parted.comes();
}

#[test]
fn registry_without_ranges_sends_all() {
    let parted = Parted::new(|_, _| Fault::WholeAt(200_000_000));
    // It is asked for several parts at once before the first answer tells.
    let all = Parted::new(|_, _| Fault::Pass);
    parted.comes();
    all.comes();
}

#[test]
fn wrong_part_is_a_digest_mismatch() {
    let parted = Parted::new(|_, range| {
        let bytes = usize::try_from(range.end - range.start).unwrap();
        answer(&range, "x".repeat(bytes))
    });
    parted.fails("other", "mismatch");
}

#[test]
fn stalled_part_is_retried() {
    let containerd = Containerd::start();
    let name = format!("{}:1", unique("stalled"));
    registry().image(&name).size(BYTES).uncompressed().push();
    let count = AtomicUsize::new(0);
    let proxy = Proxy::start(registry().url(), move |seen| match part(seen) {
        Some(_) if count.fetch_add(1, Ordering::Relaxed) == 1 => Fault::StallAfter(100_000),
        None if seen.is_blob() => Fault::Throttle(SLOW),
        _ => Fault::Pass,
    });
    let image = proxy.reference(&name);
    let harpoon = fast(&containerd, &[&image]).env("PULL_TIMEOUT", "30s");
    let harpoon = harpoon.limit(Duration::from_secs(180));
    let output = harpoon.env("RETRIES", "1").run().expect(0);
    filled(&output);
    let report = output.json();
    assert_eq!(entry(&report, &image)["attempts"], 2, "{output}");
    assert!(output.stderr.contains("reason=\"timeout\""), "{output}");
    // Nothing incomplete is left of the first attempt.
    assert_eq!(containerd.downloads(), [""; 0]);
    let snapshots = snapshots(&containerd);
    assert_eq!(snapshots.len(), 1, "{snapshots:?}");
}

#[test]
fn redirects_are_followed_anew_for_parts() {
    let containerd = Containerd::start();
    let name = format!("{}:1", unique("redirected"));
    registry().image(&name).size(BYTES).uncompressed().push();
    // An object store, whose addresses are good for one request each.
    let store = Proxy::start(registry().url(), |seen| {
        let is_expired = seen.nth > 1 && {
            static USED: std::sync::Mutex<Vec<String>> = std::sync::Mutex::new(Vec::new());
            let mut used = USED.lock().unwrap();
            let is_used = used.contains(&seen.query);
            used.push(seen.query.clone());
            is_used
        };
        match (is_expired, part(seen)) {
            (true, _) => Fault::status(403),
            // The first connection is slow, and some parts are cut.
            (false, None) => Fault::Throttle(SLOW),
            (false, Some(range)) if range.start % 3 == 0 => Fault::CutAfter(500_000),
            (false, Some(_)) => Fault::Pass,
        }
    });
    let (target, count) = (store.url(), AtomicUsize::new(0));
    let proxy = Proxy::start(registry().url(), move |seen| {
        if !seen.is_blob() {
            return Fault::Pass;
        }
        let signature = count.fetch_add(1, Ordering::Relaxed);
        let location = format!("{target}{}?signature={signature}", seen.path);
        Fault::Answer {
            status: 307,
            headers: vec![("location", location)],
            body: String::new(),
        }
    });
    let image = proxy.reference(&name);
    let output = fast(&containerd, &[&image]).env("RETRIES", "0").run();
    filled(&output.expect(0));
    assert!(store.count(|seen| part(seen).is_some()) > 2);
}
