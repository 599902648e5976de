//! Failures during a pull: registries that refuse, stall and close connections, runtimes that die, stores that are full.

use super::*;
use crate::bed;
use crate::bed::faulty::first;

with_both! {
    failing_registry_reports_its_reason,
    transient_faults_are_retried,
    truncated_body_is_fetched_again,
    pull_survives_runtime_restart,
    planning_survives_runtime_restart,
    full_store_ends_the_run,
    registry_message_never_ends_run,
    read_only_store_fails_only_missing,
    foreign_platform_is_reported_as_mismatch,
}

with_crio! {
    failing_registry_reports_its_reason,
    transient_faults_are_retried,
    truncated_body_is_fetched_again,
    pull_survives_runtime_restart,
    full_store_ends_the_run,
    foreign_platform_is_reported_as_mismatch,
}

/// An image behind a proxy that makes its manifests fail while the switch is on.
struct Faulty {
    _proxy: Proxy,
    image: String,
    on: Arc<AtomicBool>,
}

impl Faulty {
    fn start(fault: Fault) -> Self {
        let name = format!("{}:1", unique("faulty"));
        registry().push(&name);
        let on = Arc::new(AtomicBool::new(true));
        let is_on = Arc::clone(&on);
        let proxy = Proxy::start(registry().url(), move |seen| {
            if seen.is_manifest() && is_on.load(Ordering::Relaxed) {
                fault.clone()
            } else {
                Fault::Pass
            }
        });
        let image = proxy.reference(&name);
        Self {
            _proxy: proxy,
            image,
            on,
        }
    }
}

/// The response of a registry to an unauthorised client.
fn denied() -> Fault {
    let body =
        r#"{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}"#;
    let headers = vec![("content-type", "application/json".into())];
    Fault::Answer {
        status: 403,
        headers,
        body: body.into(),
    }
}

fn failing_registry_reports_its_reason<R: Runtime>() {
    // A registry that says 429 by the status alone: the Engine passes on its words, and not the status.
    let without_words = match R::NAME {
        "docker" if !bed::docker_has_containerds_store() => "failed other 1",
        _ => "failed rate_limited 1",
    };
    let cases = [
        (Fault::status(503), "0", "failed unavailable 1", "503"),
        (Fault::status(503), "1", "failed unavailable 2", "503"),
        (Fault::status(500), "0", "failed unavailable 1", "500"),
        (denied(), "2", "failed unauthorized 1", ""),
        (Fault::too_many(1), "0", "failed rate_limited 1", "oo"),
        (Fault::status(429), "0", without_words, ""),
        (Fault::Close, "0", "failed unavailable 1", "EOF"),
        (
            Fault::Stall,
            "0",
            "failed timeout 1",
            "not finished within 2s (--pull-timeout)",
        ),
    ];
    std::thread::scope(|scope| {
        for (fault, retries, expected, words) in cases {
            scope.spawn(move || {
                let faulty = Faulty::start(fault.clone());
                let harpoon = pull(R::shared(), &[&faulty.image]).env("RETRIES", retries);
                // Only what stalls is cut off; a slow machine's patience is not tested here.
                let limit = if matches!(fault, Fault::Stall) {
                    "2s"
                } else {
                    "5m"
                };
                let output = harpoon.env("PULL_TIMEOUT", limit).run().expect(1);
                let report = check(&output, &[(&faulty.image, expected)]);
                let message = entry(&report, &faulty.image)["message"].as_str().unwrap();
                assert!(message.contains(words), "{fault:?}: {message}");
            });
        }
    });
}

fn transient_faults_are_retried<R: Runtime>() {
    let cases = [
        (Fault::too_many(1), "rate_limited"),
        (Fault::status(500), "unavailable"),
        (Fault::status(503), "unavailable"),
        (Fault::Stall, "timeout"),
    ];
    std::thread::scope(|scope| {
        for (fault, reason) in cases {
            scope.spawn(move || {
                let faulty = Faulty::start(fault.clone());
                let limit = if matches!(fault, Fault::Stall) {
                    "5s"
                } else {
                    "5m"
                };
                let running = pull(R::shared(), &[&faulty.image])
                    .env("PULL_TIMEOUT", limit)
                    .start();
                running.wait_for("next attempt in", PATIENCE);
                faulty.on.store(false, Ordering::Relaxed);
                let output = running.wait().expect(0);
                assert!(
                    output.stderr.contains(&format!("reason=\"{reason}\"")),
                    "{output}"
                );
                let report = output.json();
                let told = entry(&report, &faulty.image);
                assert_eq!(told["outcome"], "pulled", "{output}");
                // The pause may be over before the fault is.
                assert!(told["attempts"].as_u64().unwrap() >= 2, "{output}");
                assert!(R::shared().has(&faulty.image));
            });
        }
    });
}

/// Both runtimes go on with a blob by themselves; where one does not, harpoon does.
fn truncated_body_is_fetched_again<R: Runtime>() {
    let name = format!("{}:1", unique("torn"));
    let pushed = registry().image(&name).size(300_000).push();
    // The configuration is shorter than this, so it is the layer that is cut.
    let cut = first(2, Fault::CutAfter(100_000), |seen| seen.is_blob());
    let proxy = Proxy::start(registry().url(), cut);
    let image = proxy.reference(&name);
    let output = pull(R::shared(), &[&image]).run().expect(0);
    let report = output.json();
    assert_eq!(entry(&report, &image)["outcome"], "pulled", "{output}");
    assert_eq!(entry(&report, &image)["digest"], pushed.digest);
    assert!(proxy.count(|seen| seen.is_blob()) > 2, "{:?}", proxy.seen());
}

/// Longer than a run that waits for a runtime, which it does for up to 45 s.
const AN_OUTAGE: Duration = Duration::from_secs(180);

fn pull_survives_runtime_restart<R: Runtime>() {
    let runtime = R::start();
    let push = |prefix: &str| {
        let name = format!("{}:1", unique(prefix));
        registry().image(&name).size(100_000).push();
        name
    };
    let (name, other) = (push("survivor"), push("survivor"));
    let stall = first(1, Fault::StallAfter(10), |seen| seen.is_blob());
    let proxy = Proxy::start(registry().url(), stall);
    let image = proxy.reference(&name);
    // Patience enough for a slow machine to start a daemon.
    let running = pull(&runtime, &[&image]).env("RETRIES", "30");
    let running = running.limit(AN_OUTAGE).start();
    eventually("a blob is asked for", PATIENCE, || {
        proxy.count(|seen| seen.is_blob()) > 0
    });
    runtime.kill();
    running.wait_for("next attempt in", PATIENCE);
    runtime.restart();
    let output = running.wait().expect(0);
    let report = output.json();
    let told = entry(&report, &image);
    assert_eq!(told["outcome"], "pulled", "{output}");
    assert!(told["attempts"].as_u64().unwrap() >= 2, "{output}");
    assert!(output.stderr.contains("reason=\"unavailable\""), "{output}");
    assert!(runtime.has(&image));

    // An unavailable runtime is reported as the failure, with its own path.
    let proxy = Proxy::start(registry().url(), |seen| {
        if seen.is_blob() {
            Fault::Stall
        } else {
            Fault::Pass
        }
    });
    let image = proxy.reference(&other);
    let running = pull(&runtime, &[&image]).env("RETRIES", "1");
    let running = running.limit(AN_OUTAGE).start();
    eventually("a blob is asked for", PATIENCE, || {
        proxy.count(|seen| seen.is_blob()) > 0
    });
    runtime.kill();
    let output = running.wait().expect(1);
    let report = check(&output, &[(&image, "failed unavailable 2")]);
    let message = entry(&report, &image)["message"].as_str().unwrap();
    let named = ["container runtime", "Docker Engine"]
        .iter()
        .any(|name| message.contains(name));
    assert!(named, "{message}");
}

/// The question for what the store holds comes while the runtime is away.
fn planning_survives_runtime_restart<R: Runtime>() {
    let runtime = R::start();
    let name = format!("{}:latest", unique("restart"));
    registry().push(&name);
    let (gate, armed) = (Gate::new(), Arc::new(AtomicBool::new(false)));
    let (held, is_armed) = (gate.clone(), Arc::clone(&armed));
    let proxy = Proxy::start(registry().url(), move |seen| {
        match seen.is_manifest() && is_armed.load(Ordering::Relaxed) {
            true => Fault::Hold(held.clone()),
            false => Fault::Pass,
        }
    });
    let image = proxy.reference(&name);
    pull(&runtime, &[&image]).run().expect(0);
    armed.store(true, Ordering::Relaxed);
    let asked = proxy.count(|seen| seen.is_manifest());
    let running = run(&runtime, &[&image])
        .arg("--refresh")
        .env("DISK_BUDGET", "1Ti")
        .limit(AN_OUTAGE)
        .start();
    eventually("the tag is asked for", PATIENCE, || {
        proxy.count(|seen| seen.is_manifest()) > asked
    });
    runtime.kill();
    gate.open();
    running.wait_for("disk usage from the runtime, retrying in", PATIENCE);
    runtime.restart();
    let output = running.wait().expect(0);
    check(&output, &[(&image, "present 0")]);
}

fn full_store_ends_the_run<R: Runtime>() {
    let runtime = R::with_space(12 << 20);
    let push = |prefix: &str, bytes| {
        registry()
            .image(&format!("{}:1", unique(prefix)))
            .size(bytes)
            .push()
            .reference
    };
    // They are pulled in the order of their names.
    let (small, large, next) = (push("a", 10_000), push("b", 14 << 20), push("c", 10_000));
    let images = [small.as_str(), &large, &next];
    let output = pull(&runtime, &images)
        .env("CONCURRENCY", "1")
        .run()
        .expect(1);
    let expected = [
        (small.as_str(), "pulled 1"),
        (&large, "failed no_space 1"),
        (&next, "failed no_space 0"),
    ];
    let report = check(&output, &expected);
    let message = |image: &str| {
        entry(&report, image)["message"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert!(
        message(&large).contains("no space left on device"),
        "{output}"
    );
    assert!(
        message(&large).contains("; the image needs about "),
        "{output}"
    );
    assert!(message(&next).contains(&large), "{output}");
    assert!(runtime.has(&small) && !runtime.has(&large) && !runtime.has(&next));
    // A later run finds the present images.
    check(
        &run(&runtime, &[&small]).run().expect(0),
        &[(&small, "present 0")],
    );
}

/// A registry may write anything into its error bodies, including a runtime's text for a full disk.
fn registry_message_never_ends_run<R: Runtime>() {
    const PROSE: [&str; 3] = [
        "no space left on device",
        "write /var/lib/registry/blob: no space left on device",
        "open /data/upload: disk quota exceeded",
    ];
    let at_fault = |status, body: String, of_blobs: bool| {
        let name = format!("{}:1", unique("prose"));
        registry().push(&name);
        let media_type = if body.starts_with('{') {
            "application/json"
        } else {
            "text/plain"
        };
        let fault = Fault::Answer {
            status,
            headers: vec![("content-type", media_type.into())],
            body,
        };
        let proxy = Proxy::start(registry().url(), move |seen| {
            if of_blobs && seen.is_blob() || !of_blobs && seen.is_manifest() {
                fault.clone()
            } else {
                Fault::Pass
            }
        });
        (proxy.reference(&name), status, proxy)
    };
    let mut bad = Vec::new();
    for (status, of_blobs) in [(500, false), (500, true), (403, false), (403, true)] {
        for (code, prose) in ["UNKNOWN", "DENIED", "FAULT"].into_iter().zip(PROSE) {
            let body = json!({"errors": [{"code": code, "message": prose, "detail": prose}]});
            bad.push(at_fault(status, body.to_string(), of_blobs));
        }
        bad.push(at_fault(status, PROSE[1].to_owned(), of_blobs));
    }
    // Another registry, whose images are under way until all of those have failed.
    let gate = Gate::new();
    let proxy = Proxy::holding_blobs(registry().url(), &gate);
    let good = [(); 6].map(|()| {
        let name = format!("{}:1", unique("good"));
        registry().push(&name);
        proxy.reference(&name)
    });
    let images: Vec<&str> = bad.iter().map(|(image, ..)| image.as_str()).collect();
    let images = [&good.each_ref().map(String::as_str)[..], &images].concat();
    let running = pull(R::shared(), &images)
        .env("CONCURRENCY", images.len().to_string())
        .env("RETRIES", "0")
        .start();
    eventually("the bad images have failed", PATIENCE, || {
        let stderr = running.stderr();
        stderr.matches("failed to pull: ").count() >= bad.len() || stderr.contains("no_space")
    });
    gate.open();
    let output = running.wait();
    let report = output.json();
    let told = |image: &str| {
        let entry = entry(&report, image);
        let reason = entry["reason"].as_str().unwrap_or("-");
        format!("{} {reason}", entry["outcome"].as_str().unwrap())
    };
    for image in &good {
        assert_eq!(told(image), "pulled -", "{output}");
    }
    for (image, status, _) in &bad {
        // Docker passes on the words of a body, and not its status.
        let kinds = match (R::NAME, status) {
            ("containerd", 500) => &["failed unavailable"][..],
            ("containerd", _) => &["failed unauthorized"],
            _ => &["failed unavailable", "failed unauthorized", "failed other"],
        };
        let message = &entry(&report, image)["message"];
        assert!(kinds.contains(&&*told(image)), "{}: {message}", told(image));
    }
}

/// A disk that the kernel has made read-only after an error: here, a mount above where downloads go.
fn read_only_store_fails_only_missing<R: Runtime>() {
    let runtime = R::start();
    let push = |prefix: &str| registry().push(&format!("{}:1", unique(prefix))).reference;
    let (there, missing) = (push("there"), push("missing"));
    pull(&runtime, &[&there]).run().expect(0);
    let place = match R::NAME {
        "containerd" => runtime
            .store()
            .join("io.containerd.content.v1.content/ingest"),
        _ if bed::docker_has_containerds_store() => runtime
            .store()
            .join("containerd/daemon/io.containerd.content.v1.content/ingest"),
        _ => runtime.store().join("tmp"),
    };
    let mount = |words: &[&str]| {
        bed::run(
            std::process::Command::new(words[0])
                .args(&words[1..])
                .arg(&place),
        );
    };
    let path = place.to_str().unwrap();
    mount(&["mount", "--bind", path]);
    mount(&["mount", "-o", "remount,bind,ro"]);
    let images = [there.as_str(), &missing];
    let output = run(&runtime, &images).env("RETRIES", "0").run();
    mount(&["umount"]);
    // An image that is there is no failure, so that not all failed.
    let output = output.expect(0);
    let expected = [(there.as_str(), "present 0"), (&missing, "failed other 1")];
    let report = check(&output, &expected);
    let message = entry(&report, &missing)["message"].as_str().unwrap();
    assert!(message.contains("read-only file system"), "{message}");
    let expected = [(there.as_str(), "present 0"), (&missing, "pulled 1")];
    check(&run(&runtime, &images).run().expect(0), &expected);
}

fn foreign_platform_is_reported_as_mismatch<R: Runtime>() {
    let push = |prefix: &str, platforms: &[&str]| {
        let image = registry().image(&format!("{}:1", unique(prefix)));
        image.platforms(platforms).push()
    };
    let foreign = push("foreign", &["linux/s390x", "windows/amd64"]);
    let common = push("common", &["linux/s390x", "linux/amd64", "linux/arm64"]);
    let images = [foreign.reference.as_str(), &common.reference];
    let output = pull(R::shared(), &images).run().expect(1);
    let expected = [
        (foreign.reference.as_str(), "failed platform_mismatch 1"),
        (&common.reference, "pulled 1"),
    ];
    let report = check(&output, &expected);
    // The index's digest, not that of the platform's manifest.
    assert_eq!(entry(&report, &common.reference)["digest"], common.digest);
}
