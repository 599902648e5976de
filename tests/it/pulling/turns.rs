//! Pulls beside blocked ones: stalled registries, restarting runtimes, credentials that cannot help.

use std::sync::{Mutex, OnceLock};

use super::*;
use crate::bed::faulty::Seen;
use crate::bed::{block_on, client, token};
use harpoon::registry::digest::sha256;

with_both! {
    hanging_registry_leaves_room_for_others,
    pulls_start_in_plan_order,
    restarting_runtime_loses_no_image,
    broken_layer_ends_the_credentials,
}

/// Two proxies in front of the shared registry, in the order in which a plan has their images.
fn two_in_order(decide: impl Fn(&Seen, &str) -> Fault + Send + Sync + 'static) -> [Proxy; 2] {
    let decide = Arc::new(decide);
    let proxy = || {
        let (decide, address) = (Arc::clone(&decide), Arc::new(OnceLock::<String>::new()));
        let own = Arc::clone(&address);
        let proxy = Proxy::start(registry().url(), move |seen| {
            decide(seen, own.get().map_or("", String::as_str))
        });
        address.set(proxy.address()).unwrap();
        proxy
    };
    let mut both = [proxy(), proxy()];
    both.sort_by_key(Proxy::address);
    both
}

fn several(prefix: &str, count: usize, bytes: u64) -> Vec<String> {
    let name = |_| {
        let name = format!("{}:1", unique(prefix));
        registry().image(&name).size(bytes).push();
        name
    };
    (0..count).map(name).collect()
}

fn hanging_registry_leaves_room_for_others<R: Runtime>() {
    let hangs = Arc::new(OnceLock::<String>::new());
    let which = Arc::clone(&hangs);
    let [first, second] = two_in_order(move |seen, address| {
        if seen.is_manifest() && which.get().is_some_and(|hangs| hangs == address) {
            Fault::Stall
        } else {
            Fault::Pass
        }
    });
    hangs.set(first.address()).unwrap();
    for concurrency in ["4", "1"] {
        let of = |proxy: &Proxy, prefix: &str| -> Vec<_> {
            let names = several(prefix, 5, 10_000);
            names.iter().map(|name| proxy.reference(name)).collect()
        };
        let (stuck, healthy) = (of(&first, "stuck"), of(&second, "healthy"));
        let images: Vec<_> = stuck.iter().chain(&healthy).map(String::as_str).collect();
        let running = pull(R::shared(), &images)
            .env("CONCURRENCY", concurrency)
            .env("PULL_TIMEOUT", "10m")
            .start();
        eventually("the healthy registry's images come", PATIENCE, || {
            running.stderr().matches(" pulled in ").count() == healthy.len()
        });
        running.signal(Signal::TERM);
        let report = running.wait().expect(143).json();
        for image in &stuck {
            assert_eq!(entry(&report, image)["outcome"], "failed");
        }
        for image in &healthy {
            assert_eq!(entry(&report, image)["outcome"], "pulled", "{concurrency}");
        }
    }
}

fn pulls_start_in_plan_order<R: Runtime>() {
    let asked = Arc::new(Mutex::new(Vec::<String>::new()));
    let record = Arc::clone(&asked);
    let [first, second] = two_in_order(move |seen, address| {
        let mut asked = record.lock().unwrap();
        let image = format!("{address}/{}", seen.repository().unwrap_or_default());
        if seen.is_manifest() && !asked.contains(&image) {
            asked.push(image);
        }
        Fault::Pass
    });
    let names = several("order", 4, 10_000);
    let of = |proxy: &Proxy| -> Vec<_> { names.iter().map(|name| proxy.reference(name)).collect() };
    let mut planned: Vec<String> = [of(&first), of(&second)].concat();
    planned.sort();
    let images: Vec<_> = planned.iter().rev().map(String::as_str).collect();
    let harpoon = pull(R::shared(), &images).env("CONCURRENCY", "1");
    harpoon.run().expect(0);
    let planned: Vec<_> = planned.iter().map(|i| i.trim_end_matches(":1")).collect();
    assert_eq!(*asked.lock().unwrap(), planned);
}

/// Duration of a runtime's restart; `RUNTIME_AWAY=30` for an experiment.
fn away() -> Duration {
    let seconds = std::env::var("RUNTIME_AWAY")
        .ok()
        .map(|s| s.parse().unwrap());
    Duration::from_secs(seconds.unwrap_or(10))
}

fn restarting_runtime_loses_no_image<R: Runtime>() {
    let runtime = R::start();
    let gate = Gate::new();
    let proxy = Proxy::holding_blobs(registry().url(), &gate);
    let names = several("restart", 24, 10_000);
    let images: Vec<_> = names.iter().map(|name| proxy.reference(name)).collect();
    let images: Vec<_> = images.iter().map(String::as_str).collect();
    let running = pull(&runtime, &images)
        .env("CONCURRENCY", "16")
        .limit(Duration::from_secs(180))
        .start();
    // The Engine downloads three layers at once, whatever it is asked for.
    eventually("blobs are asked for", PATIENCE, || proxy.now() >= 3);
    std::thread::sleep(Duration::from_secs(1));
    runtime.kill();
    gate.open();
    std::thread::sleep(away());
    runtime.restart();
    let output = running.wait().expect(0);
    let report = output.json();
    for image in images {
        assert_eq!(entry(&report, image)["outcome"], "pulled", "{output}");
    }
}

/// Pushes an image whose only layer is no archive; returns the layer's digest.
fn push_broken(name: &str) -> String {
    let url = format!("{}/v2/{name}", registry().url());
    block_on(async move {
        let client = client(None);
        let blob = async |content: Vec<u8>| {
            let digest = sha256(&content).to_string();
            let begun = client.post(format!("{url}/blobs/uploads/")).send().await;
            let begun = begun.unwrap();
            let place = begun.headers()["location"].to_str().unwrap().to_owned();
            let put = client.put(format!("{place}&digest={digest}"));
            let put = put.body(content).send().await.unwrap();
            assert!(put.status().is_success(), "{put:?}");
            digest
        };
        let layer = blob(b"this is no archive ".repeat(5_000)).await;
        let config = json!({"architecture": machine(), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer]}})
        .to_string();
        let size = config.len();
        let config = blob(config.into_bytes()).await;
        let oci = "application/vnd.oci.image";
        let manifest = json!({"schemaVersion": 2, "mediaType": format!("{oci}.manifest.v1+json"),
            "config": {"mediaType": format!("{oci}.config.v1+json"), "size": size, "digest": config},
            "layers": [{"mediaType": format!("{oci}.layer.v1.tar"), "size": 95_000, "digest": layer}]});
        let put = client
            .put(format!("{url}/manifests/1"))
            .header("content-type", format!("{oci}.manifest.v1+json"))
            .body(manifest.to_string());
        let put = put.send().await.unwrap();
        assert!(put.status().is_success(), "{put:?}");
        layer
    })
}

fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn broken_layer_ends_the_credentials<R: Runtime>() {
    let name = unique("broken");
    let layer = push_broken(&name);
    let users = [
        ("one", "first pass"),
        ("two", "second pass"),
        ("three", "third pass"),
    ];
    let guarded = token::Registry::start(registry().url(), &users, &[]);
    let image = guarded.reference(&format!("{name}:1"));
    let pull = pull(R::shared(), &[&image])
        .env("RETRIES", "1")
        .env("LOG_LEVEL", "debug");
    for (user, password) in users {
        let config =
            json!({"auths": {guarded.address(): {"username": user, "password": password}}});
        std::fs::write(pull.home().join(format!("{user}.json")), config.to_string()).unwrap();
    }
    let output = pull
        .env("REGISTRY_CONFIG", "one.json, two.json, three.json")
        .run()
        .expect(1);
    let report = check(&output, &[(&image, "failed other 2")]);
    let message = entry(&report, &image)["message"].as_str().unwrap();
    let downloads = guarded
        .seen()
        .iter()
        .filter(|seen| seen.is_blob() && seen.path.ends_with(&layer))
        .count();
    // Otherwise each of the two attempts downloads it for each user. The runtime may send a request again by itself.
    assert!(
        downloads < 2 * users.len(),
        "{downloads} downloads: {output}"
    );
    assert!(!message.contains("(tried: "), "{message}");
}
