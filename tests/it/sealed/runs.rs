//! Sealing by the program: its reports, its second run, its commands.
#![expect(
    clippy::print_stderr,
    reason = "the figure, for who asks with --nocapture"
)]

use std::time::{Duration, Instant};

use serde_json::Value;

use super::{login, pull, visible};
use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{self, Containerd, Harpoon, PASSWORD, Runtime as _, USER, containerd, unique};
use crate::bed::{eventually, registry, registry_with_password};
use crate::credentials::{create_deployment, create_secret, docker_config};
use crate::pulling::{PATIENCE, entry};

/// Seals pushed by one test of the time that a second run takes.
const MANY: usize = 100;

/// `harpoon pull --seal always` with the shared registry's password, for these images of one host.
pub(super) fn always(containerd: &Containerd, host: &str, images: &[&str]) -> Harpoon {
    let harpoon = Harpoon::new(["pull", "--seal=always", "--runtime-endpoint"])
        .args([containerd.endpoint(), "--"])
        .args(images);
    let config = docker_config(&[(host, USER, PASSWORD)]);
    let file = harpoon.home().join("config.json");
    std::fs::write(&file, config).unwrap();
    harpoon.env("REGISTRY_CONFIG", file).env("OUTPUT", "json")
}

/// `harpoon seals` as JSON.
fn listed(containerd: &Containerd) -> Vec<Value> {
    let output = Harpoon::new(["seals", "--output=json", "--runtime-endpoint"])
        .arg(containerd.endpoint())
        .run()
        .expect(0);
    output.json()["seals"].as_array().unwrap().clone()
}

fn release(containerd: &Containerd, images: &[&str]) -> String {
    let output = Harpoon::new(["release", "--runtime-endpoint"])
        .args([containerd.endpoint(), "--"])
        .args(images)
        .run()
        .expect(0);
    output.stdout
}

/// The digests of all blobs that the store has.
pub(super) fn blobs(containerd: &Containerd) -> Vec<String> {
    let list = containerd.ctr(&["content", "list", "--quiet"]);
    list.lines().map(str::to_owned).collect()
}

/// Outcome of an image, and whether it is sealed.
fn told(report: &Value, image: &str) -> (String, bool) {
    let entry = entry(report, image);
    let outcome = entry["outcome"].as_str().unwrap().to_owned();
    (outcome, entry["sealed"] == true)
}

#[test]
fn second_run_asks_no_registry() {
    let name = format!("{}:1", unique("sealed-run"));
    let pushed = registry_with_password().push(&name);
    let proxy = Proxy::start(registry_with_password().url(), |_| Fault::Pass);
    let image = proxy.reference(&name);
    let harpoon = always(containerd(), &proxy.address(), &[&image]);
    let report = harpoon.run().expect(0).json();
    assert_eq!(told(&report, &image), ("pulled".to_owned(), true));
    assert_eq!(entry(&report, &image)["digest"], pushed.digest);
    assert!(entry(&report, &image)["bytes"].as_u64().unwrap() > pushed.bytes);

    let asked = proxy.seen().len();
    let output = harpoon.run().expect(0);
    assert_eq!(told(&output.json(), &image), ("present".to_owned(), true));
    assert_eq!(entry(&output.json(), &image)["digest"], pushed.digest);
    assert_eq!(proxy.seen().len(), asked);
    assert_eq!(visible(containerd(), &image), [""; 0]);

    let text = harpoon.env("OUTPUT", "text").run().expect(0).stdout;
    assert!(text.contains("sealed"), "{text}");

    let seals = listed(containerd());
    let seal = seals.iter().find(|seal| seal["image"] == image).unwrap();
    assert_eq!(seal["digest"], pushed.digest);
    assert_eq!(seal["complete"], true);
    assert!(release(containerd(), &[&image]).contains(&image));
    let gone = |seal: &Value| seal["image"] != image;
    assert!(listed(containerd()).iter().all(gone));
    assert!(!blobs(containerd()).contains(&pushed.digest));
}

#[test]
fn refused_seal_reports_the_reason() {
    let registry = registry_with_password();
    let pushed = registry.push(&format!("{}:1", unique("sealed-refused")));
    let missing = registry.reference("no/such/image:1");
    let config = docker_config(&[(registry.address(), USER, "not the password")]);
    let image = &*pushed.reference;
    let harpoon = always(containerd(), registry.address(), &[&missing]);
    let report = harpoon.run().expect(1).json();
    assert_eq!(entry(&report, &missing)["reason"], "not_found");
    let harpoon = always(containerd(), registry.address(), &[image]);
    std::fs::write(harpoon.home().join("config.json"), config).unwrap();
    let output = harpoon.run().expect(1);
    let report = output.json();
    assert_eq!(entry(&report, image)["reason"], "unauthorized", "{output}");
    assert_eq!(entry(&report, image)["attempts"], 1);
    assert!(
        !format!("{output}").contains("not the password"),
        "{output}"
    );
    let seals = listed(containerd());
    assert!(seals.iter().all(|seal| seal["image"] != image), "{seals:?}");
}

#[test]
fn incomplete_seal_is_pulled_again() {
    let name = format!("{}:1", unique("sealed-lost"));
    let pushed = registry_with_password().image(&name).layers(2).push();
    let image = &*pushed.reference;
    let harpoon = always(containerd(), registry_with_password().address(), &[image]);
    harpoon.run().expect(0);
    containerd().ctr(&["content", "rm", &pushed.digest]);
    let report = harpoon.run().expect(0).json();
    assert_eq!(told(&report, image), ("pulled".to_owned(), true));
    let report = harpoon.run().expect(0).json();
    assert_eq!(told(&report, image), ("present".to_owned(), true));
}

#[test]
fn moved_tag_is_sealed_anew() {
    let name = format!("{}:latest", unique("sealed-moved"));
    let registry = registry_with_password();
    let old = registry.image(&name).seed("old").push();
    let image = &*old.reference;
    let harpoon = always(containerd(), registry.address(), &[image]).env("REFRESH", "true");
    harpoon.run().expect(0);
    let new = registry.image(&name).seed("new").push();
    let report = harpoon.run().expect(0).json();
    assert_eq!(told(&report, image), ("pulled".to_owned(), true));
    assert_eq!(entry(&report, image)["digest"], new.digest);
    let report = harpoon.run().expect(0).json();
    assert_eq!(told(&report, image), ("present".to_owned(), true));
    let seals = listed(containerd());
    let of_image: Vec<_> = seals.iter().filter(|seal| seal["image"] == image).collect();
    assert_eq!(of_image.len(), 1);
    assert_eq!(of_image[0]["digest"], new.digest);
}

#[test]
fn expired_seal_frees_content() {
    let name = format!("{}:1", unique("sealed-expired"));
    let pushed = registry_with_password().push(&name);
    let image = &*pushed.reference;
    let address = registry_with_password().address();
    // On containerd 1.6 the names go after ten seconds.
    let harpoon = always(containerd(), address, &[image]).env("SEAL_TTL", "20s");
    harpoon.run().expect(0);
    assert!(blobs(containerd()).contains(&pushed.digest));
    eventually("the content is freed", Duration::from_secs(60), || {
        std::thread::sleep(Duration::from_millis(500));
        // Any change has containerd collect garbage, here at once.
        containerd().ctr(&["leases", "create", "--id", "sealed-expiry"]);
        containerd().ctr(&["leases", "delete", "--sync", "sealed-expiry"]);
        !blobs(containerd()).contains(&pushed.digest)
    });
    let report = harpoon.run().expect(0).json();
    assert_eq!(told(&report, image), ("pulled".to_owned(), true));
}

#[test]
fn seal_is_renewed_before_it_expires() {
    let name = format!("{}:1", unique("sealed-renewed"));
    let pushed = registry_with_password().push(&name);
    let image = &*pushed.reference;
    let expires = || {
        let seals = listed(containerd());
        let seal = seals.iter().find(|seal| seal["image"] == image).unwrap();
        seal["expires"].as_str().unwrap().to_owned()
    };
    let harpoon = always(containerd(), registry_with_password().address(), &[image]);
    harpoon.run().expect(0);
    let first = expires();
    harpoon.run().expect(0);
    assert_eq!(expires(), first, "it is less than half an hour old");
    let report = harpoon.env("SEAL_TTL", "72h").run().expect(0).json();
    assert_eq!(told(&report, image), ("present".to_owned(), true));
    assert!(expires() > first);
}

#[test]
fn shared_layers_outlive_a_release() {
    let (one, other) = (unique("shared-named"), unique("shared-sealed"));
    let seed = unique("seed");
    let image = |name: &str, layers: usize| {
        let image = registry_with_password().image(&format!("{name}:1"));
        let size = u64::try_from(layers).unwrap() * 5_000;
        image.layers(layers).size(size).seed(&seed).push()
    };
    let (named, sealed) = (image(&one, 2), image(&other, 3));
    let right = login(USER, PASSWORD);
    pull(containerd(), &named.reference, Some(&right)).unwrap();
    let before = blobs(containerd());
    let address = registry_with_password().address();
    let harpoon = always(containerd(), address, &[&sealed.reference]);
    harpoon.run().expect(0);
    release(containerd(), &[&sealed.reference]);
    let now = blobs(containerd());
    assert!(!now.contains(&sealed.digest) && now.contains(&named.digest));
    assert!(
        before
            .iter()
            .filter(|b| **b == named.digest)
            .all(|b| now.contains(b))
    );
    pull(containerd(), &named.reference, Some(&right)).unwrap();

    harpoon.run().expect(0);
    containerd().remove(&named.reference);
    let report = harpoon.run().expect(0).json();
    assert_eq!(
        told(&report, &sealed.reference),
        ("present".to_owned(), true)
    );
}

#[test]
fn pull_secret_decides_what_is_sealed() {
    let cluster = bed::kubernetes();
    let shop = cluster.namespace();
    let registry = registry_with_password();
    let private = registry
        .push(&format!("{}:1", unique("sealed-auto")))
        .reference;
    let public = bed::registry()
        .push(&format!("{}:1", unique("named-auto")))
        .reference;
    let config = docker_config(&[(registry.address(), USER, PASSWORD)]);
    create_secret(&shop, "registry", &config);
    create_deployment(&shop, "private", &private, "registry");
    create_deployment(&shop, "public", &public, "registry");
    let run = |command: &str, endpoint: &str| {
        let run = Harpoon::new([command, "--output=json"])
            .env("RUNTIME_ENDPOINT", endpoint)
            .env("NAMESPACES", &shop)
            .env("PULL_SECRETS", "true");
        run.env("KUBECONFIG", cluster.kubeconfig())
    };
    let plan = run("plan", containerd().endpoint()).run().expect(0).json();
    let reason = |image: &str| entry(&plan, image)["seal_reason"].clone();
    assert_eq!(reason(&private), format!("Secret {shop}/registry"));
    assert_eq!(reason(&public), Value::Null);

    let report = run("run", containerd().endpoint()).run().expect(0).json();
    assert_eq!(told(&report, &private), ("pulled".to_owned(), true));
    assert_eq!(told(&report, &public), ("pulled".to_owned(), false));
    assert_eq!(visible(containerd(), &private), [""; 0]);
    assert!(containerd().has(&public));

    let never = run("run", containerd().endpoint()).env("SEAL", "never");
    let report = never.run().expect(0).json();
    assert_eq!(told(&report, &private), ("pulled".to_owned(), false));
    assert!(containerd().has(&private));

    let output = run("run", bed::docker().endpoint()).run().expect(0);
    assert_eq!(told(&output.json(), &private), ("pulled".to_owned(), false));
    let warned = output.stderr.matches("docker cannot seal images").count();
    assert_eq!(warned, 1, "{output}");
}

#[test]
fn other_runtimes_refuse_always_seal() {
    let pushed = registry().push(&format!("{}:1", unique("unsealed")));
    let directory = bed::directory();
    let layout = format!("oci:{}", directory.path().display());
    for endpoint in [bed::docker().endpoint(), &layout] {
        let output = Harpoon::new(["pull", "--output=json", "--seal=always"])
            .args(["--runtime-endpoint", endpoint, "--", &pushed.reference])
            .run()
            .expect(1);
        let report = output.json();
        let entry = entry(&report, &pushed.reference);
        assert_eq!(
            (&entry["outcome"], &entry["reason"]),
            (&"failed".into(), &"other".into())
        );
        let message = entry["message"].as_str().unwrap();
        assert!(message.contains("cannot seal images"), "{message}");
        let output = Harpoon::new(["seals", "--runtime-endpoint", endpoint])
            .run()
            .expect(1);
        assert!(
            output.stderr.contains("sealing requires containerd"),
            "{output}"
        );
    }
}

#[test]
fn full_store_leaves_no_seal() {
    let containerd = Containerd::with_space(24_000_000);
    let name = format!("{}:1", unique("sealed-full"));
    let pushed = registry_with_password()
        .image(&name)
        .layers(4)
        .size(40_000_000)
        .push();
    let address = registry_with_password().address();
    let output = always(&containerd, address, &[&pushed.reference])
        .run()
        .expect(1);
    let report = output.json();
    assert_eq!(
        entry(&report, &pushed.reference)["reason"],
        "no_space",
        "{output}"
    );
    assert_eq!(listed(&containerd).len(), 0);
    eventually("the content is freed", PATIENCE, || {
        blobs(&containerd).is_empty()
    });
    let leases = containerd.leases();
    assert!(
        leases.iter().all(|id| !id.starts_with("harpoon/")),
        "{leases:?}"
    );
}

#[test]
fn sealed_bytes_count_in_the_budget() {
    let containerd = Containerd::start();
    let registry = registry_with_password();
    let push = |size| {
        registry
            .image(&format!("{}:1", unique("sealed-budget")))
            .size(size)
            .push()
    };
    let (first, second) = (push(4_000_000), push(1_000_000));
    always(&containerd, registry.address(), &[&first.reference])
        .run()
        .expect(0);
    let harpoon = always(&containerd, registry.address(), &[&second.reference]);
    let report = harpoon.env("DISK_BUDGET", "5M").run().expect(0).json();
    assert_eq!(entry(&report, &second.reference)["reason"], "disk_budget");
}

/// One image under many tags: each has a seal of its own.
#[test]
fn many_seals_are_found_at_once() {
    let repository = unique("sealed-many");
    registry().push(&format!("{repository}:0"));
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let url = format!("{}/v2/{repository}/manifests", registry().url());
    bed::block_on(async move {
        let client = bed::client(None);
        let manifest = client.get(format!("{url}/0"));
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = manifest.header("accept", kind).send().await.unwrap();
        let manifest = manifest.bytes().await.unwrap();
        for tag in 1..MANY {
            let put = client
                .put(format!("{url}/{tag}"))
                .header("content-type", kind);
            let put = put.body(manifest.clone()).send().await.unwrap();
            assert_eq!(put.status(), 201);
        }
    });
    let images: Vec<_> = (0..MANY)
        .map(|tag| proxy.reference(&format!("{repository}:{tag}")))
        .collect();
    let images: Vec<_> = images.iter().map(String::as_str).collect();
    let containerd = Containerd::start();
    let harpoon = always(&containerd, &proxy.address(), &images);
    let report = harpoon.run().expect(0).json();
    assert_eq!(report["summary"]["pulled"], MANY);
    assert_eq!(visible(&containerd, &repository), [""; 0]);
    assert_eq!(visible(&containerd, "sha256:"), [""; 0]);
    assert_eq!(listed(&containerd).len(), MANY);
    let asked = proxy.seen().len();
    let best = (0..3).map(|_| {
        let began = Instant::now();
        let report = harpoon.run().expect(0).json();
        assert_eq!(report["summary"]["present"], MANY);
        assert!(images.iter().all(|image| told(&report, image).1));
        began.elapsed()
    });
    let best = best.min().unwrap();
    assert_eq!(proxy.seen().len(), asked);
    // 50 ms is the goal of a release; this is a build for tests, beside other tests.
    assert!(best < Duration::from_secs(5), "{best:?}");
    eprintln!("a run over {MANY} sealed images: {best:?}");
}
