//! Behaviour that containerd and the Docker Engine share: each case is written once and runs with both.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bed::faulty::{Fault, Gate, Proxy};
use crate::bed::{Harpoon, Output, Runtime, eventually, registry, registry_with_password, unique};

/// Makes a test of each case for each runtime.
macro_rules! with_both {
    ($($case:ident),+ $(,)?) => {
        mod containerd {
            $(#[test] fn $case() { super::$case::<crate::bed::Containerd>(); })+
        }
        mod docker {
            $(#[test] fn $case() { super::$case::<crate::bed::Docker>(); })+
        }
    };
}

/// Makes a test of each case for CRI-O, which `make crio` runs: it is not in Debian.
macro_rules! with_crio {
    ($($case:ident),+ $(,)?) => {
        mod on_crio {
            $(#[test] #[ignore = "needs CRI-O: make crio"] fn $case() { super::$case::<crate::bed::Crio>(); })+
        }
    };
}

mod disk;
mod faults;
mod progress;
mod refresh;
mod turns;

/// How long anything may take that takes a second on an idle machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// `harpoon pull` of these images with this runtime, reporting as JSON. Further settings go into its environment.
pub(crate) fn pull<R: Runtime>(runtime: &R, images: &[&str]) -> Harpoon {
    Harpoon::new(["pull", "--output=json", "--runtime-endpoint"])
        .args([runtime.endpoint(), "--"])
        .args(images)
}

/// `harpoon run` with an images file of these lines, reporting as JSON.
pub(crate) fn run<R: Runtime>(runtime: &R, lines: &[&str]) -> Harpoon {
    let harpoon = Harpoon::new([
        "run",
        "--output=json",
        "--runtime-endpoint",
        runtime.endpoint(),
    ]);
    std::fs::write(harpoon.home().join("images"), lines.join("\n")).unwrap();
    harpoon.env("IMAGES_FILE", "images")
}

/// The report's facts about one image.
#[track_caller]
pub(crate) fn entry<'a>(report: &'a Value, image: &str) -> &'a Value {
    let mut images = report["images"].as_array().unwrap().iter();
    let found = images.find(|entry| entry["image"] == image);
    found.unwrap_or_else(|| panic!("no {image:?} in {report:#}"))
}

/// The report has just these images, each with its outcome, reason and attempts, such as `pulled 1` or
/// `failed not_found 1`; and it has all else that belongs to these.
#[track_caller]
pub(crate) fn check(output: &Output, expected: &[(&str, &str)]) -> Value {
    let report = output.json();
    let images = report["images"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let told = images.iter().map(|image| {
        let reason = image["reason"]
            .as_str()
            .map_or(String::new(), |r| format!("{r} "));
        let line = format!("{} {reason}{}", text(&image["outcome"]), image["attempts"]);
        (text(&image["image"]), line)
    });
    let expected = expected
        .iter()
        .map(|(image, line)| ((*image).to_owned(), (*line).to_owned()));
    assert_eq!(
        told.collect::<BTreeMap<_, _>>(),
        expected.collect::<BTreeMap<_, _>>(),
        "{output}"
    );
    for image in images {
        check_entry(image);
    }
    let count = |outcome: &str| images.iter().filter(|i| i["outcome"] == outcome).count();
    for outcome in ["pulled", "present", "failed", "skipped"] {
        assert_eq!(report["summary"][outcome], count(outcome), "{output}");
    }
    report
}

fn check_entry(image: &Value) {
    let keys: Vec<_> = image
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let all =
        "attempts bytes credential digest image message outcome pods reason seconds workloads";
    assert_eq!(keys.join(" "), all);
    let there = ["pulled", "present"].contains(&image["outcome"].as_str().unwrap());
    let digest = image["digest"]
        .as_str()
        .is_some_and(|d| d.starts_with("sha256:"));
    let bytes = image["bytes"].as_u64().is_some_and(|bytes| bytes > 0);
    assert_eq!((digest, bytes), (there, there), "{image:#}");
    let explained = image["message"]
        .as_str()
        .is_some_and(|message| !message.is_empty());
    assert_eq!(
        (explained, image["reason"].is_string()),
        (!there, !there),
        "{image:#}"
    );
    assert_eq!(
        image["seconds"].is_f64(),
        image["attempts"] != 0,
        "{image:#}"
    );
}

with_both! {
    spellings_of_one_image_pull_once,
    failed_images_do_not_stop_others,
    malformed_references_are_only_reported,
    second_run_pulls_nothing,
    sigterm_ends_run_cleanly,
    sigint_ends_run_cleanly,
    concurrency_limit_of_one_holds,
    concurrency_limit_of_three_holds,
    deadline_ends_unfinished_pulls,
}

with_crio! {
    failed_images_do_not_stop_others,
    malformed_references_are_only_reported,
    second_run_pulls_nothing,
    sigterm_ends_run_cleanly,
    sigint_ends_run_cleanly,
    concurrency_limit_of_one_holds,
    concurrency_limit_of_three_holds,
    deadline_ends_unfinished_pulls,
}

fn spellings_of_one_image_pull_once<R: Runtime>() {
    let name = unique("spelt");
    let pushed = registry().push(&format!("library/{name}:latest"));
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let runtime = R::with_hub(&proxy.url());
    let spellings = [
        name.clone(),
        format!("{name}:latest"),
        format!("docker.io/library/{name}:latest"),
        format!("index.docker.io/{name}"),
        format!("library/{name}"),
        name,
    ];
    let spellings: Vec<&str> = spellings.iter().map(String::as_str).collect();
    let output = run(&runtime, &spellings).run().expect(0);
    let report = check(&output, &[(spellings[0], "pulled 1")]);
    assert_eq!(report["images"].as_array().unwrap().len(), 1, "{output}");
    assert_eq!(entry(&report, spellings[0])["digest"], pushed.digest);
    let asked = proxy.seen();
    let twice = asked
        .iter()
        .find(|seen| seen.nth > 1 && seen.repository().is_some());
    assert!(twice.is_none(), "{twice:?}");

    for spelling in &spellings {
        check(
            &pull(&runtime, &[spelling]).run().expect(0),
            &[(spelling, "present 0")],
        );
    }
    assert_eq!(proxy.seen().len(), asked.len());
}

fn failed_images_do_not_stop_others<R: Runtime>() {
    let runtime = R::shared();
    let (one, two) = (unique("good"), unique("good"));
    let good = [one, two].map(|name| registry().push(&format!("{name}:1")).reference);
    let missing = registry().reference(&format!("{}:1", unique("missing")));
    let denied = registry_with_password()
        .push(&format!("{}:1", unique("denied")))
        .reference;
    let images = [&good[0], &missing, "UPPER/case", &denied, &good[1]];
    let failed = [
        (missing.as_str(), "failed not_found 1"),
        ("UPPER/case", "failed invalid_reference 0"),
        (&denied, "failed unauthorized 1"),
    ];
    let with_good = |line| [&failed[..], &[(&good[0], line), (&good[1], line)]].concat();

    // The defaults: a run fails when all images do, a pull when any does.
    let output = run(runtime, &images).run().expect(0);
    let report = check(&output, &with_good("pulled 1"));
    assert!(good.iter().all(|image| runtime.has(image)), "{output}");
    assert_eq!(report["runtime"]["name"], R::NAME);
    assert_eq!(report["runtime"]["endpoint"], runtime.endpoint());
    for (image, words) in [
        (missing.as_str(), &["not found", "unknown"][..]),
        ("UPPER/case", &["must be lower case"]),
        (&denied, &["no basic auth credentials", "401 Unauthorized"]),
    ] {
        let message = entry(&report, image)["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(
            words.iter().any(|words| message.contains(words)),
            "{image}: {message}"
        );
    }
    // The log contains it too, for images that were tried.
    for image in [&missing, &denied] {
        let message = entry(&report, image)["message"].as_str().unwrap();
        let told = |line: &str| line.contains("failed to pull: ") && line.contains(message);
        assert!(output.stderr.lines().any(told), "{output}");
    }
    let output = pull(runtime, &images).run().expect(1);
    check(&output, &with_good("present 0"));
    for (fail_on, code) in [("any", 1), ("all", 0), ("never", 0)] {
        let output = run(runtime, &images)
            .env("FAIL_ON", fail_on)
            .run()
            .expect(code);
        check(&output, &with_good("present 0"));
    }
    let bad = [missing.as_str(), "UPPER/case", &denied];
    for (fail_on, code) in [("any", 1), ("all", 1), ("never", 0)] {
        let output = pull(runtime, &bad)
            .env("FAIL_ON", fail_on)
            .run()
            .expect(code);
        check(&output, &failed);
    }
}

fn malformed_references_are_only_reported<R: Runtime>() {
    let host = registry().address();
    let long = format!("{host}/{}:1", "a".repeat(300));
    let malformed = [
        (format!("{host}/UPPER/case:1"), "lower case"),
        (format!("{host}/name:"), "the tag is malformed"),
        ("-leading/dash".into(), "the repository name is malformed"),
        (format!("{host}/inner blank:1"), "blanks"),
        (format!("{host}/tab\there:1"), "blanks"),
        (long, "more than 255"),
        (format!("{host}/name@sha256:12"), "the digest is malformed"),
        ("a".repeat(64), "image ID"),
        ("..".into(), "malformed"),
    ];
    let images: Vec<&str> = malformed.iter().map(|(image, _)| image.as_str()).collect();
    let expected: Vec<_> = images
        .iter()
        .map(|image| (*image, "failed invalid_reference 0"))
        .collect();
    for harpoon in [run(R::shared(), &images), pull(R::shared(), &images)] {
        let report = check(&harpoon.run().expect(1), &expected);
        for (image, words) in &malformed {
            let message = entry(&report, image)["message"].as_str().unwrap();
            assert!(message.contains(words), "{image}: {message}");
        }
    }
}

fn second_run_pulls_nothing<R: Runtime>() {
    let runtime = R::shared();
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let pushed = [unique("again"), unique("again")].map(|name| {
        let pushed = registry().image(&format!("{name}:1")).size(50_000).push();
        (proxy.reference(&format!("{name}:1")), pushed.digest)
    });
    let images = [pushed[0].0.as_str(), &pushed[1].0];
    let first = check(
        &run(runtime, &images).run().expect(0),
        &images.map(|image| (image, "pulled 1")),
    );
    let asked = proxy.seen().len();
    let output = run(runtime, &images).run().expect(0);
    let second = check(&output, &images.map(|image| (image, "present 0")));
    assert_eq!(proxy.seen().len(), asked, "{:?}", &proxy.seen()[asked..]);
    assert_eq!(second["summary"]["pulled"], 0);
    for (image, digest) in &pushed {
        for report in [&first, &second] {
            let entry = entry(report, image);
            assert_eq!(entry["digest"], json!(digest));
            // containerd counts the layers as they were sent, Docker as they are unpacked.
            let bytes = entry["bytes"].as_u64().unwrap();
            assert!((50_000..60_000).contains(&bytes), "{entry:#}");
        }
    }
}

fn sigterm_ends_run_cleanly<R: Runtime>() {
    check_interrupted::<R>(Signal::TERM, 143);
}

fn sigint_ends_run_cleanly<R: Runtime>() {
    check_interrupted::<R>(Signal::INT, 130);
}

fn check_interrupted<R: Runtime>(signal: Signal, code: i32) {
    let runtime = R::shared();
    let present = registry()
        .push(&format!("{}:1", unique("present")))
        .reference;
    check(
        &pull(runtime, &[&present]).run().expect(0),
        &[(&present, "pulled 1")],
    );

    let name = unique("cut");
    registry()
        .image(&format!("{name}:1"))
        .size(1_000_000)
        .push();
    let slow = Arc::new(AtomicBool::new(true));
    let is_slow = Arc::clone(&slow);
    let proxy = Proxy::start(registry().url(), move |seen| {
        if seen.is_blob() && is_slow.load(Ordering::Relaxed) {
            Fault::Throttle(20_000)
        } else {
            Fault::Pass
        }
    });
    let image = proxy.reference(&format!("{name}:1"));
    let running = pull(runtime, &[&present, &image]).start();
    eventually("the layer is asked for", PATIENCE, || {
        proxy.count(|seen| seen.is_blob()) >= 2
    });
    let told = Instant::now();
    running.signal(signal);
    let output = running.wait().expect(code);
    assert!(
        told.elapsed() < Duration::from_secs(20),
        "{:?}: {output}",
        told.elapsed()
    );
    let report = check(
        &output,
        &[(&present, "present 0"), (&image, "failed other 1")],
    );
    let message = entry(&report, &image)["message"].as_str().unwrap();
    assert!(message.contains("interrupted"), "{message}");

    // The runtime has closed the connection to the registry: the download does not continue.
    eventually("the registry's connections are closed", PATIENCE, || {
        proxy.now() == 0
    });
    assert!(!runtime.has(&image));
    slow.store(false, Ordering::Relaxed);
    check(
        &pull(runtime, &[&image]).run().expect(0),
        &[(&image, "pulled 1")],
    );
}

fn concurrency_limit_of_one_holds<R: Runtime>() {
    check_concurrency::<R>(1);
}

fn concurrency_limit_of_three_holds<R: Runtime>() {
    check_concurrency::<R>(3);
}

fn check_concurrency<R: Runtime>(at_once: usize) {
    let gate = Gate::new();
    let proxy = Proxy::holding_blobs(registry().url(), &gate);
    let images: Vec<String> = (0..5)
        .map(|_| format!("{}:1", unique("many")))
        .inspect(|name| _ = registry().push(name))
        .map(|name| proxy.reference(&name))
        .collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let running = pull(R::shared(), &images)
        .env("CONCURRENCY", at_once.to_string())
        .start();
    let started = || running.stderr().matches(" pulling ").count();
    eventually("pulls are under way", PATIENCE, || {
        proxy.most_repositories_at_once() >= at_once && started() >= at_once
    });
    assert_eq!(started(), at_once, "{}", running.stderr());
    gate.open();
    let output = running.wait().expect(0);
    check(
        &output,
        &images
            .iter()
            .map(|image| (*image, "pulled 1"))
            .collect::<Vec<_>>(),
    );
    assert_eq!(proxy.most_repositories_at_once(), at_once);
}

fn deadline_ends_unfinished_pulls<R: Runtime>() {
    let runtime = R::shared();
    let proxy = Proxy::start(registry().url(), |seen| {
        if seen.is_blob() && seen.path.contains("slow") {
            Fault::Throttle(20_000)
        } else {
            Fault::Pass
        }
    });
    let push = |prefix: &str| {
        let name = format!("{}:1", unique(prefix));
        registry().image(&name).size(1_000_000).push();
        proxy.reference(&name)
    };
    // They are pulled in the order of their names.
    let (present, slow, waiting) = (push("present"), push("slow"), push("waiting"));
    check(
        &pull(runtime, &[&present]).run().expect(0),
        &[(&present, "pulled 1")],
    );
    let images = [present.as_str(), &slow, &waiting];
    let expected = [
        (present.as_str(), "present 0"),
        (&slow, "failed timeout 1"),
        (&waiting, "failed timeout 0"),
    ];
    for (harpoon, code) in [(run(runtime, &images), 0), (pull(runtime, &images), 1)] {
        let harpoon = harpoon.env("DEADLINE", "10s").env("CONCURRENCY", "1");
        let output = harpoon.run().expect(code);
        let report = check(&output, &expected);
        assert!(output.elapsed >= Duration::from_secs(10), "{output}");
        for image in [&slow, &waiting] {
            let message = entry(&report, image)["message"].as_str().unwrap();
            assert!(message.contains("the deadline of the run"), "{message}");
        }
        eventually("the registry's connections are closed", PATIENCE, || {
            proxy.now() == 0
        });
    }
    assert_eq!(proxy.count(|seen| seen.path.contains("waiting")), 0);
}
