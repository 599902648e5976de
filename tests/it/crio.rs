//! Behaviour specific to CRI-O, with a mock server that responds like CRI-O 1.37.

use serde_json::Value;

use crate::bed::{CrioStandIn, Harpoon, containerd, registry, unique};
use crate::pulling::{check, entry, pull};

const GB: u64 = 1_000_000_000;

fn harpoon(crio: &CrioStandIn, command: &str, images: &[&str]) -> Harpoon {
    let harpoon = Harpoon::new([command, "--output=json", "--runtime-endpoint"]);
    let harpoon = harpoon.arg(crio.endpoint());
    match command {
        "pull" => harpoon.args(images),
        _ => {
            std::fs::write(harpoon.home().join("images"), images.join("\n")).unwrap();
            harpoon.env("IMAGES_FILE", "images")
        }
    }
}

#[test]
fn budget_counts_listed_images() {
    let crio = CrioStandIn::start(&["docker.io"]);
    crio.add("registry.example/large:1", 2 * GB);
    let image = registry().push(&format!("{}:1", unique("more"))).reference;
    crio.offer(&image, 10_000);
    let run = |budget| {
        let harpoon = harpoon(&crio, "run", &[&image]);
        harpoon.env("DISK_BUDGET", budget).run().expect(0)
    };
    let output = run("1G");
    let report = check(&output, &[(&image, "skipped disk_budget 0")]);
    let message = entry(&report, &image)["message"].as_str().unwrap();
    assert!(
        message.contains("over --disk-budget 1.00 GB: ") && message.contains(", 0 B left"),
        "{message}"
    );
    check(&run("3G"), &[(&image, "pulled 1")]);
}

#[test]
fn short_names_stay_apart() {
    let crio = CrioStandIn::start(&["registry.example", "docker.io"]);
    let (short, full) = ("nginx:1.27", "docker.io/library/nginx:1.27");
    crio.offer("registry.example/nginx:1.27", 10_000);
    crio.offer(full, 10_000);
    let output = harpoon(&crio, "pull", &[short, full]).run().expect(0);
    check(&output, &[(short, "pulled 1"), (full, "pulled 1")]);
    assert_eq!(crio.images(), [full, "registry.example/nginx:1.27"]);
    let output = harpoon(&crio, "pull", &[full, short]).run().expect(0);
    check(&output, &[(short, "present 0"), (full, "present 0")]);
}

#[test]
fn failure_is_reported_once() {
    let crio = CrioStandIn::start(&["docker.io"]);
    let image = "registry.example/missing:1";
    let output = harpoon(&crio, "pull", &[image]).run().expect(1);
    let report = check(&output, &[(image, "failed not_found 1")]);
    assert_eq!(
        entry(&report, image)["message"],
        "initializing source docker://registry.example/missing:1: reading manifest 1 in registry.example/missing: manifest unknown"
    );
}

/// The plan for one name, alone and together with others.
#[track_caller]
fn planned(plan: impl Fn(&[&str]) -> Harpoon, name: &str) -> [String; 2] {
    let others = ["a", "b", "c", "d", "e"].map(|name| format!("registry.example/{name}:1"));
    let many: Vec<_> = others.iter().map(String::as_str).chain([name]).collect();
    [&[name][..], &many].map(|images| {
        let report = plan(images).run().expect(0).json();
        let image = entry(&report, name);
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        format!("{} {}", text(&image["action"]), text(&image["reason"]))
    })
}

#[test]
fn id_prefix_never_names_image() {
    let crio = CrioStandIn::start(&["docker.io"]);
    let id = crio.add("registry.example/here:1", 10_000);
    let plan = |images: &[&str]| harpoon(&crio, "plan", images);
    assert_eq!(planned(plan, &id[..12]), ["pull -", "pull -"]);
    assert_eq!(planned(plan, "registry.example/here:1"), ["present -"; 2]);
}

#[test]
fn containerd_image_id_never_names_image() {
    let pushed = registry().push(&format!("{}:1", unique("by-id")));
    let image = pushed.reference.as_str();
    check(
        &pull(containerd(), &[image]).run().expect(0),
        &[(image, "pulled 1")],
    );
    let manifest = containerd().ctr(&["content", "get", &pushed.digest]);
    let manifest: Value = serde_json::from_str(&manifest).unwrap();
    let id = manifest["config"]["digest"].as_str().unwrap();
    let plan = |images: &[&str]| {
        let harpoon = Harpoon::new(["plan", "--output=json", "--runtime-endpoint"]);
        let harpoon = harpoon.arg(containerd().endpoint());
        std::fs::write(harpoon.home().join("images"), images.join("\n")).unwrap();
        harpoon.env("IMAGES_FILE", "images")
    };
    let (_, hex) = id.split_once(':').unwrap();
    for name in [&hex[..12], &id[.."sha256:".len() + 12]] {
        assert_eq!(planned(plan, name), ["pull -"; 2], "{name}");
    }
    for name in [hex, id] {
        assert_eq!(planned(plan, name), ["skip invalid_reference"; 2], "{name}");
    }
    assert_eq!(planned(plan, image), ["present -"; 2]);
}
