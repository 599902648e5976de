//! Many runs with random faults: nothing is left behind in the runtime or on disk, and the resource use of runs does not grow.
//!
//! `make test` makes a few rounds, `make soak` 2,000 (`SOAK=N`), alone on the machine.
#![expect(
    clippy::print_stderr,
    reason = "the seed and the figures, for who asks with --nocapture"
)]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{Containerd, Harpoon, directory, eventually, registry, unique};
use crate::pulling::PATIENCE;

const ROUNDS: usize = 12;
const SEED: u64 = 20_261_125;
const IMAGES: usize = 8;
/// More than a run ever needs: the files and threads of one process.
const DESCRIPTORS: usize = 64;
const THREADS: usize = 24;

fn rounds() -> usize {
    std::env::var("SOAK").map_or(ROUNDS, |text| {
        text.parse().expect("SOAK is a number of rounds")
    })
}

/// The resources of a process.
fn count(pid: u32, what: &str) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/{what}")).map_or(0, Iterator::count)
}

fn rss(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

/// Possible remains in a runtime: open files, leases, incomplete downloads, images, blobs.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    leases: Vec<String>,
    downloads: Vec<String>,
    images: Vec<String>,
    blobs: usize,
}

fn held(containerd: &Containerd) -> Held {
    Held {
        leases: containerd.leases(),
        downloads: containerd.downloads(),
        images: containerd.images(),
        blobs: containerd
            .ctr(&["content", "list", "--quiet"])
            .lines()
            .count(),
    }
}

fn a_fault(random: &mut fastrand::Rng) -> Fault {
    match random.u8(0..24) {
        0 => Fault::Close,
        1 => Fault::status(500),
        2 => Fault::status(404),
        3 => Fault::status(401),
        4 => Fault::Stall,
        5 => Fault::StallAfter(random.usize(0..20_000)),
        6 | 7 => Fault::CutAfter(random.usize(0..20_000)),
        8 | 9 => Fault::Throttle(random.usize(10_000..500_000)),
        10 => Fault::Delay(Duration::from_millis(random.u64(0..500))),
        _ => Fault::Pass,
    }
}

/// Empties the store of all images; the last of them waits until what they were made of is cleared away.
fn empty(containerd: &Containerd) {
    for image in containerd.images() {
        containerd.remove(&image);
    }
}

#[test]
fn many_faulty_runs_leave_nothing_behind() {
    let (rounds, started) = (rounds(), Instant::now());
    eprintln!("seed {SEED}, {rounds} rounds");
    let mut random = fastrand::Rng::with_seed(SEED);
    let containerd = Containerd::start();
    let names: Vec<String> = (0..IMAGES)
        .map(|n| format!("{}:1", unique(&format!("soak{n}"))))
        .collect();
    for (n, name) in names.iter().enumerate() {
        registry()
            .image(name)
            .size(20_000 * (1 + n as u64))
            .layers(1 + n % 3)
            .push();
    }
    let faults = Arc::new(Mutex::new(Some(random.fork())));
    let shared = Arc::clone(&faults);
    let proxy = Proxy::start(registry().url(), move |_| {
        shared.lock().unwrap().as_mut().map_or(Fault::Pass, a_fault)
    });
    let images: Vec<String> = names.iter().map(|name| proxy.reference(name)).collect();
    let places = directory();
    let temporary = places.path().join("tmp");
    std::fs::create_dir(&temporary).unwrap();
    let store = places.path().join("store");
    let endpoint = format!("oci:{}", store.display());
    let pull = |endpoint: &str, images: &[&String]| {
        Harpoon::new(["pull", "--output=json", "--runtime-endpoint", endpoint])
            .args(images.iter().copied())
            .env("TMPDIR", &temporary)
    };
    let honest = |on: bool, random: &mut fastrand::Rng| {
        *faults.lock().unwrap() = (!on).then(|| random.fork());
    };
    // Once without faults, so that both daemons have what they keep for good.
    let all: Vec<&String> = images.iter().collect();
    honest(true, &mut random);
    pull(containerd.endpoint(), &all).run().expect(0);
    empty(&containerd);
    let before = held(&containerd);
    let pid = containerd.pid();
    let daemon_before = [count(pid, "fd"), count(pid, "task"), rss(pid)];
    honest(false, &mut random);

    let (mut codes, mut peaks) = (std::collections::BTreeMap::new(), Vec::new());
    let (mut most_files, mut most_threads) = (0, 0);
    for round in 0..rounds {
        let to_layout = random.u8(0..4) == 0;
        let endpoint = if to_layout {
            endpoint.as_str()
        } else {
            containerd.endpoint()
        };
        let mut chosen = all.clone();
        random.shuffle(&mut chosen);
        chosen.truncate(random.usize(1..=3));
        let run = pull(endpoint, &chosen)
            .env("RETRIES", if random.u8(0..4) == 0 { "1" } else { "0" })
            .env("PULL_TIMEOUT", format!("{}ms", random.u64(300..1500)))
            .env("FAIL_ON", "any")
            .start();
        let end = (random.u8(0..3) == 0).then(|| {
            let signal = *random
                .choice(&[Signal::TERM, Signal::INT, Signal::KILL])
                .unwrap();
            (Duration::from_millis(random.u64(0..500)), signal)
        });
        let began = Instant::now();
        while !run.has_ended() {
            most_files = most_files.max(count(run.pid(), "fd"));
            most_threads = most_threads.max(count(run.pid(), "task"));
            if let Some((after, signal)) = end
                && began.elapsed() >= after
            {
                run.try_signal(signal);
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = run.wait();
        let code = output
            .code
            .map_or("killed".to_owned(), |code| code.to_string());
        assert!(
            ["0", "1", "130", "143", "killed"].contains(&code.as_str()),
            "round {round}: {output}"
        );
        assert!(
            !output.stderr.contains("panicked"),
            "round {round}: {output}"
        );
        if matches!(output.code, Some(0 | 1)) {
            let told = output.json()["images"].as_array().unwrap().len();
            assert_eq!(told, chosen.len(), "round {round}: {output}");
            peaks.push(output.peak_anonymous);
        }
        *codes.entry(code).or_insert(0) += 1;
        if round % 4 == 3 {
            empty(&containerd);
            let _ = std::fs::remove_dir_all(&store);
        }
    }

    // A run without faults completes all images; then they are removed, and the state is as before.
    honest(true, &mut random);
    for endpoint in [containerd.endpoint(), &endpoint] {
        pull(endpoint, &all).run().expect(0);
    }
    assert_eq!(containerd.downloads(), Vec::<String>::new());
    assert_eq!(
        leftovers(&store.join(".harpoon/partial")),
        Vec::<String>::new()
    );
    assert_eq!(leftovers(&temporary), Vec::<String>::new());
    empty(&containerd);
    let mut after = held(&containerd);
    eventually("containerd clears away", PATIENCE, || {
        after = held(&containerd);
        after == before
    });
    // containerd keeps connections to registries for a while; what is left without a registry is for good.
    drop(proxy);
    eventually("containerd closes what it opened", PATIENCE, || {
        count(pid, "fd") <= daemon_before[0] + 10
    });
    let daemon_after = [count(pid, "fd"), count(pid, "task"), rss(pid)];
    eprintln!(
        "{rounds} rounds in {:.0?}: exit codes {codes:?}",
        started.elapsed()
    );
    eprintln!("harpoon: at most {most_files} descriptors, {most_threads} threads");
    eprintln!("containerd: descriptors, threads, KiB {daemon_before:?} -> {daemon_after:?}");
    eprintln!("containerd: {before:?} -> {after:?}");
    assert!(
        most_files <= DESCRIPTORS && most_threads <= THREADS,
        "{most_files} {most_threads}"
    );
    // Go's threads stay when they were needed once.
    assert!(
        daemon_after[1] <= daemon_before[1] + 40,
        "{daemon_before:?} {daemon_after:?}"
    );
    let [first, last] =
        ends(&peaks).map(|part| part.iter().max().copied().unwrap_or_default() >> 10);
    eprintln!(
        "harpoon: {first} KiB at most in the first quarter of the runs, {last} KiB in the last"
    );
    assert!(
        first > 0 && last < first + (4 << 10) && last < 32 << 10,
        "{first} {last} KiB"
    );
}

/// The first and the last quarter.
fn ends<T>(values: &[T]) -> [&[T]; 2] {
    let quarter = values.len().div_ceil(4);
    [&values[..quarter], &values[values.len() - quarter..]]
}

fn leftovers(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}
