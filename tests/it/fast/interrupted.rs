//! Kills in the middle of a fast fill, at seeded random moments: nothing stays but what a lease holds, and the next pull works.
//!
//! `make test` makes a few rounds; `FILL_ROUNDS=N` makes others, `FILL_SEED=N` other moments.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fastrand::Rng;
use rustix::process::Signal;

use super::*;

const ROUNDS: u64 = 6;
const SEED: u64 = 20_261_127;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |n| n.parse().expect("a number"))
}

/// An image that comes slowly as long as it is told to, and the tree that containerd makes of it.
struct Slow {
    proxy: Proxy,
    image: String,
    is_slow: Arc<AtomicBool>,
    tree: String,
}

impl Slow {
    fn new(name: &str) -> Self {
        let name = format!("{}:1", unique(name));
        let pushed = registry().image(&name).layers(4).size(4_000_000).push();
        let is_slow = Arc::new(AtomicBool::new(false));
        let throttled = is_slow.clone();
        let proxy = Proxy::start(registry().url(), move |seen| {
            match seen.is_blob() && throttled.load(Ordering::Relaxed) {
                true => Fault::Throttle(1_500_000),
                false => Fault::Pass,
            }
        });
        let theirs = bed::containerd();
        let image = pushed.reference;
        fast(theirs, &[&image])
            .env("FILL", "runtime")
            .run()
            .expect(0);
        let tree = tree(theirs, &image);
        let image = proxy.reference(&name);
        Self {
            proxy,
            image,
            is_slow,
            tree,
        }
    }

    fn slow(&self, is_slow: bool) -> &Self {
        self.is_slow.store(is_slow, Ordering::Relaxed);
        self
    }

    /// The time of an undisturbed slow fill, which it then removes.
    fn duration(&self, containerd: &Containerd) -> Duration {
        let began = Instant::now();
        self.slow(true);
        filled(&fast(containerd, &[&self.image]).run().expect(0));
        let took = began.elapsed();
        remove(containerd, &self.image);
        took
    }

    /// Pulls without any fault; the result is the whole image.
    #[track_caller]
    fn comes(&self, containerd: &Containerd) {
        self.slow(false);
        filled(&fast(containerd, &[&self.image]).run().expect(0));
        self.is_whole(containerd);
    }

    #[track_caller]
    fn is_whole(&self, containerd: &Containerd) {
        let checked = images(containerd);
        let is_whole = |line: &String| line.contains("complete (5/5)") && line.ends_with("true");
        assert!(checked.iter().all(is_whole), "{checked:?}");
        assert!(checked.iter().any(|line| line.starts_with(&self.image)));
        assert_eq!(tree(containerd, &self.image), self.tree);
    }
}

/// Ends the leases, as their expiry does: harpoon's, and those of a containerd that was killed during its own pull.
fn expire(containerd: &Containerd) {
    for lease in containerd.leases() {
        containerd.ctr(&["leases", "delete", "--sync", &lease]);
    }
}

#[track_caller]
fn leases_are_ours(containerd: &Containerd) {
    let leases = containerd.leases();
    let is_ours = |lease: &String| lease.starts_with("harpoon/");
    assert!(leases.iter().all(is_ours), "{leases:?}");
}

#[test]
fn killed_harpoon_leaves_leases_alone() {
    let containerd = Containerd::start();
    let slow = Slow::new("killed");
    let took = slow.duration(&containerd);
    empty(&containerd);
    let (seed, rounds) = (setting("FILL_SEED", SEED), setting("FILL_ROUNDS", ROUNDS));
    let mut random = Rng::with_seed(seed);
    for round in 0..rounds {
        let moment = took.mul_f64(random.f64() * 1.1);
        let harpoon = fast(&containerd, &[&slow.slow(true).image]).start();
        std::thread::sleep(moment);
        harpoon.try_signal(Signal::KILL);
        harpoon.wait();
        // Either the leases expire and all is gone, or the next pull comes first.
        if round % 2 == 0 && containerd.images().is_empty() {
            expire(&containerd);
            empty(&containerd);
        }
        slow.comes(&containerd);
        leases_are_ours(&containerd);
        expire(&containerd);
        slow.is_whole(&containerd);
        remove(&containerd, &slow.image);
        empty(&containerd);
    }
}

#[test]
fn killed_containerd_gets_the_image() {
    let containerd = Containerd::start();
    let slow = Slow::new("restarted");
    let took = slow.duration(&containerd);
    let seed = setting("FILL_SEED", SEED);
    let mut random = Rng::with_seed(seed);
    for _ in 0..setting("FILL_ROUNDS", ROUNDS / 2) {
        let moment = took.mul_f64(random.f64());
        let harpoon = fast(&containerd, &[&slow.slow(true).image]).start();
        std::thread::sleep(moment);
        containerd.kill();
        std::thread::sleep(Duration::from_millis(random.u64(0..1000)));
        slow.slow(false);
        containerd.restart();
        let output = harpoon.wait().expect(0);
        let report = output.json();
        let outcome = &entry(&report, &slow.image)["outcome"];
        assert!(outcome == "pulled" || outcome == "present", "{output}");
        slow.is_whole(&containerd);
        expire(&containerd);
        slow.is_whole(&containerd);
        remove(&containerd, &slow.image);
        empty(&containerd);
    }
}

#[test]
fn disk_full_midway_is_clean() {
    let containerd = Containerd::with_disk("100000000");
    let image = registry().image(&format!("{}:1", unique("full")));
    // Room for the layers or for their content, but not for both.
    let pushed = image.layers(2).size(60_000_000).uncompressed().push();
    let output = fast(&containerd, &[&pushed.reference]).run().expect(1);
    let report = output.json();
    assert_eq!(
        entry(&report, &pushed.reference)["reason"],
        "no_space",
        "{output}"
    );
    assert_eq!(containerd.leases(), [""; 0]);
    empty(&containerd);
    Slow::new("after-full").comes(&containerd);
}

#[test]
fn others_filling_disk_is_no_space() {
    let containerd = Containerd::with_disk("60000000");
    let slow = Slow::new("filled");
    let took = slow.duration(&containerd);
    empty(&containerd);
    let file = containerd.store().join("other");
    let mut random = Rng::with_seed(setting("FILL_SEED", SEED));
    for _ in 0..setting("FILL_ROUNDS", ROUNDS / 2) {
        let harpoon = fast(&containerd, &[&slow.slow(true).image]);
        let harpoon = harpoon.env("RETRIES", "0").start();
        std::thread::sleep(took.mul_f64(0.1 + 0.7 * random.f64()));
        // As much as there is.
        let _ = std::fs::write(&file, vec![1; 60_000_000]);
        let output = harpoon.wait();
        let report = output.json();
        let entry = entry(&report, &slow.image);
        let is_told = entry["outcome"] == "pulled" || entry["reason"] == "no_space";
        assert!(is_told, "{output}");
        std::fs::remove_file(&file).unwrap();
        slow.comes(&containerd);
        assert_eq!(containerd.leases(), [""; 0]);
        remove(&containerd, &slow.image);
        empty(&containerd);
    }
}

#[test]
fn filler_and_cri_pull_agree_anytime() {
    let containerd = Containerd::start();
    let slow = Slow::new("both");
    let took = slow.duration(&containerd);
    let mut random = Rng::with_seed(setting("FILL_SEED", SEED));
    for _ in 0..setting("FILL_ROUNDS", ROUNDS / 2) {
        let harpoon = fast(&containerd, &[&slow.slow(true).image]);
        let harpoon = harpoon.env("RETRIES", "0");
        let moment = took.mul_f64(random.f64());
        let is_first = random.bool();
        let late = |is_late: bool| {
            if is_late {
                std::thread::sleep(moment);
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                late(is_first);
                pull_by_cri(&containerd, &slow.image);
            });
            late(!is_first);
            harpoon.run().expect(0);
        });
        slow.is_whole(&containerd);
        assert_eq!(containerd.leases(), [""; 0]);
        remove(&containerd, &slow.image);
        empty(&containerd);
    }
    assert!(slow.proxy.count(|seen| seen.is_blob()) > 0);
}

#[test]
fn kills_at_any_moment_leave_nothing() {
    let containerd = Containerd::start();
    let image = registry().image(&format!("{}:1", unique("kills")));
    let image = image.layers(5).size(20_000_000).uncompressed().push();
    let mut random = Rng::with_seed(setting("FILL_SEED", SEED));
    for round in 0..setting("FILL_ROUNDS", ROUNDS) {
        let harpoon = fast(&containerd, &[&image.reference]).start();
        // From the first request to the end of the hand-over.
        std::thread::sleep(Duration::from_millis(random.u64(20..600)));
        harpoon.try_signal(Signal::KILL);
        harpoon.wait();
        match round % 2 {
            // The kubelet comes next.
            0 => pull_by_cri(&containerd, &image.reference),
            _ => filled(&fast(&containerd, &[&image.reference]).run().expect(0)),
        }
        let checked = images(&containerd);
        let of_image = |line: &&String| line.starts_with(&image.reference);
        let line = checked.iter().find(of_image).unwrap();
        assert!(line.contains("complete (6/6)"), "{line}");
        leases_are_ours(&containerd);
        expire(&containerd);
        remove(&containerd, &image.reference);
        empty(&containerd);
    }
}
