//! Behaviour specific to the Docker Engine.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::join_all;
use harpoon::model::platform::Platform;
use harpoon::runtime::detect;
use harpoon::runtime::image_service::ImageService;
use serde_json::{Value, json};

use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{self, Harpoon, docker, registry, unique};
use crate::pulling::{PATIENCE, check, entry, pull};

#[test]
fn untagged_name_pulls_latest_only() {
    let name = unique("tags");
    for tag in ["latest", "1", "2"] {
        registry().push(&format!("{name}:{tag}"));
    }
    let image = registry().reference(&name);
    check(
        &pull(docker(), &[&image]).run().expect(0),
        &[(&image, "pulled 1")],
    );
    assert!(docker().has(&format!("{image}:latest")));
    for tag in ["1", "2"] {
        assert!(!docker().has(&format!("{image}:{tag}")));
    }
}

#[test]
fn digest_reference_is_pulled_and_found() {
    let name = unique("pinned");
    let pushed = registry().push(&format!("{name}:1"));
    let by_digest = registry().reference(&format!("{name}@{}", pushed.digest));
    let by_both = format!("{}@{}", pushed.reference, pushed.digest);
    let report = check(
        &pull(docker(), &[&by_both, &by_digest]).run().expect(0),
        &[(&by_both, "pulled 1")],
    );
    assert_eq!(entry(&report, &by_both)["digest"], pushed.digest);
    check(
        &pull(docker(), &[&by_digest]).run().expect(0),
        &[(&by_digest, "present 0")],
    );
    check(
        &pull(docker(), &[&pushed.reference]).run().expect(0),
        &[(&pushed.reference, "pulled 1")],
    );
}

#[test]
fn id_prefix_never_names_image() {
    let pushed = registry().push(&format!("{}:1", unique("hex")));
    check(
        &pull(docker(), &[&pushed.reference]).run().expect(0),
        &[(&pushed.reference, "pulled 1")],
    );
    let inspect = docker().ask("GET", &format!("/images/{}/json", pushed.reference));
    let inspect: Value = serde_json::from_str(&inspect).unwrap();
    let id = inspect["Id"]
        .as_str()
        .unwrap()
        .trim_start_matches("sha256:")[..12]
        .to_owned();
    assert!(
        docker()
            .ask("GET", &format!("/images/{id}/json"))
            .contains(&pushed.reference)
    );

    // The Engine itself would report this name as present.
    let harpoon = Harpoon::new([
        "plan",
        "--output=json",
        "--runtime-endpoint",
        docker().endpoint(),
    ]);
    std::fs::write(harpoon.home().join("images"), &id).unwrap();
    let plan = harpoon.env("IMAGES_FILE", "images").run().expect(0).json();
    assert_eq!(
        (&plan["images"][0]["image"], &plan["images"][0]["action"]),
        (&json!(id), &json!("pull"))
    );
}

#[test]
fn shared_layers_are_pulled_once() {
    let names = [unique("shared"), unique("shared")];
    for name in &names {
        registry()
            .image(&format!("{name}:1"))
            .seed(&names[0])
            .layers(3)
            .push();
    }
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let images = names
        .each_ref()
        .map(|name| proxy.reference(&format!("{name}:1")));
    check(
        &pull(docker(), &[&images[0], &images[1]]).run().expect(0),
        &[(&images[0], "pulled 1"), (&images[1], "pulled 1")],
    );
    let layers = proxy
        .seen()
        .into_iter()
        .filter(|seen| seen.is_blob() && seen.nth == 1);
    let blobs: std::collections::BTreeSet<_> = layers
        .filter_map(|seen| Some(seen.path.rsplit_once('/')?.1.to_owned()))
        .collect();
    assert_eq!(blobs.len(), 4, "three layers and one configuration");
}

/// The Engine refuses a second question for its disk usage while it answers one.
#[test]
fn disk_usage_survives_concurrent_requests() {
    let endpoint = detect::Endpoint::parse(docker().endpoint()).unwrap();
    let done = AtomicBool::new(false);
    let answers = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                let mut other = Command::new("curl");
                other.args(["--silent", "--unix-socket"]);
                other.arg(docker().socket()).arg("http://docker/system/df");
                other.stdout(Stdio::null()).status().unwrap();
            }
        });
        let answers = bed::block_on(async move {
            let runtime = detect::find(Some(&endpoint), &Platform::current(), PATIENCE).await;
            let runtime = runtime.unwrap();
            let mut answers = Vec::new();
            for _ in 0..20 {
                answers.extend(join_all((0..8).map(|_| runtime.usage())).await);
            }
            answers
        });
        done.store(true, Ordering::SeqCst);
        answers
    });
    let failed: Vec<_> = answers.iter().filter_map(|a| a.as_ref().err()).collect();
    assert!(
        failed.is_empty(),
        "{} of {}: {}",
        failed.len(),
        answers.len(),
        failed[0]
    );
}
