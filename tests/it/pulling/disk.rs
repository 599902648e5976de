//! The disk budget, and the sizes that it is based on.

use std::path::Path;
use std::process::Command;

use harpoon::model::platform::Platform;
use harpoon::runtime::detect;
use harpoon::runtime::image_service::ImageService;

use super::*;
use crate::bed::{self, kubernetes};

with_both! {
    budget_skips_large_keeps_smaller_images,
    percentage_is_of_the_file_system,
    foreign_images_count_against_budget,
    shared_layers_count_once_in_sizes,
    foreign_platform_is_planned_as_mismatch,
}

with_crio! {
    budget_skips_large_keeps_smaller_images,
    foreign_images_count_against_budget,
    foreign_platform_is_planned_as_mismatch,
}

const MB: u64 = 1_000_000;

fn push(prefix: &str, bytes: u64) -> String {
    let image = registry().image(&format!("{}:1", unique(prefix)));
    image.size(bytes).push().reference
}

/// What a directory takes on disk, in bytes.
fn on_disk(directory: &Path) -> u64 {
    let du = bed::run(
        Command::new("du")
            .args(["-s", "--block-size=1"])
            .arg(directory),
    );
    du.split_whitespace().next().unwrap().parse().unwrap()
}

/// The usage that the runtime reports for its store.
fn usage<R: Runtime>(runtime: &R) -> u64 {
    let endpoint = detect::Endpoint::parse(runtime.endpoint()).unwrap();
    bed::block_on(async move {
        let runtime = detect::find(Some(&endpoint), &Platform::current(), PATIENCE).await;
        runtime.unwrap().usage().await.unwrap().bytes
    })
}

/// Outcome and reason of an image.
#[track_caller]
fn outcome(report: &Value, image: &str) -> String {
    let text = |key: &str| entry(report, image)[key].as_str().unwrap_or("-");
    format!("{} {}", text("outcome"), text("reason"))
}

fn budget_skips_large_keeps_smaller_images<R: Runtime>() {
    let runtime = R::start();
    // An empty store has its databases already.
    let empty = on_disk(&runtime.store());
    // They are pulled in the order of their names. By any estimate those of 3 MB fit, and that of 20 MB does not.
    let images = [("a", 3 * MB), ("b", 20 * MB), ("c", 3 * MB), ("d", 3 * MB)];
    let images = images.map(|(name, bytes)| push(name, bytes));
    let lines = images.each_ref().map(String::as_str);
    let output = run(&runtime, &lines)
        .env("DISK_BUDGET", "60M")
        .run()
        .expect(0);
    let report = output.json();
    let outcomes = lines.map(|image| outcome(&report, image));
    let expected = ["pulled -", "skipped disk_budget", "pulled -", "pulled -"];
    assert_eq!(outcomes, expected, "{output}");
    let message = entry(&report, lines[1])["message"].as_str().unwrap();
    assert!(
        message.starts_with("over --disk-budget 60.00 MB: needs about ")
            && message.ends_with(" left"),
        "{message}"
    );
    assert!(runtime.has(lines[0]) && !runtime.has(lines[1]));
    let held = on_disk(&runtime.store()) - empty;
    assert!(held <= 60 * MB, "{held}");
}

fn percentage_is_of_the_file_system<R: Runtime>() {
    let runtime = R::with_space(200 * MB);
    let images = [("a", 3 * MB), ("b", 20 * MB), ("c", 3 * MB)];
    let images = images.map(|(name, bytes)| push(name, bytes));
    let lines = images.each_ref().map(String::as_str);
    let harpoon = run(&runtime, &lines);
    let output = harpoon.clone().env("DISK_BUDGET", "30%").run().expect(0);
    let report = output.json();
    let outcomes = lines.map(|image| outcome(&report, image));
    let expected = ["pulled -", "skipped disk_budget", "pulled -"];
    assert_eq!(outcomes, expected, "{output}");
    let message = entry(&report, lines[1])["message"].as_str().unwrap();
    let budget = message.strip_prefix("over --disk-budget ");
    let budget: f64 = budget
        .and_then(|m| m.split(' ').next())
        .unwrap()
        .parse()
        .unwrap();
    assert!((59.0..=60.0).contains(&budget), "{message}");
    let output = harpoon.env("DISK_BUDGET", "80%").run().expect(0);
    let outcomes = lines.map(|image| outcome(&output.json(), image));
    assert_eq!(outcomes, ["present -", "pulled -", "present -"], "{output}");
}

/// As in a pod that has the socket and nothing else of the node.
#[test]
fn percentage_names_directory_to_mount() {
    let containerd = <bed::Containerd as Runtime>::shared();
    let hidden = "mount -t tmpfs none \"$0\" && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", hidden];
    let store = containerd.store();
    let harpoon = run(containerd, &["registry.example/web:1"]);
    let wrapper = wrapper.map(String::from).into_iter();
    let harpoon = harpoon.under(wrapper.chain([store.display().to_string()]));
    let output = harpoon.env("DISK_BUDGET", "30%").run().expect(2);
    let expected = format!(
        "error: invalid value \"30%\" for --disk-budget (DISK_BUDGET): the image file system is not visible: mount {}/",
        store.display()
    );
    assert!(output.stderr.contains(&expected), "{output}");
    assert!(
        output.stderr.contains(" read-only at the same path"),
        "{output}"
    );
}

fn foreign_images_count_against_budget<R: Runtime>() {
    let runtime = R::start();
    let (before, here, next) = (usage(&runtime), push("here", 10 * MB), push("next", 10_000));
    assert!(before < MB, "an empty store holds {before} bytes");
    pull(&runtime, &[&here]).run().expect(0);
    // containerd counts what was unpacked up to ten seconds later.
    let expected = match R::NAME {
        "docker" if !bed::docker_has_containerds_store() => 10 * MB,
        _ => 20 * MB,
    };
    assert!(
        usage(&runtime) >= expected,
        "{} of {expected}",
        usage(&runtime)
    );
    eventually("the store counts just the image", PATIENCE, || {
        (expected..expected + MB).contains(&usage(&runtime))
    });
    assert!(usage(&runtime) <= on_disk(&runtime.store()));

    let harpoon = run(&runtime, &[&here, &next]);
    let output = harpoon.clone().env("DISK_BUDGET", "10M").run().expect(0);
    let report = output.json();
    assert_eq!(outcome(&report, &here), "present -", "{output}");
    assert_eq!(outcome(&report, &next), "skipped disk_budget", "{output}");
    let output = harpoon.env("DISK_BUDGET", "40M").run().expect(0);
    assert_eq!(outcome(&output.json(), &next), "pulled -", "{output}");
}

/// `harpoon plan --sizes` of these images, as JSON unless the flag says otherwise.
fn plan<R: Runtime>(runtime: &R, lines: &[&str]) -> Harpoon {
    let harpoon = Harpoon::new(["plan", "--sizes", "--runtime-endpoint", runtime.endpoint()]);
    std::fs::write(harpoon.home().join("images"), lines.join("\n")).unwrap();
    harpoon.env("IMAGES_FILE", "images").env("OUTPUT", "json")
}

fn shared_layers_count_once_in_sizes<R: Runtime>() {
    // Of one seed and with layers of one size, the second image has the layers of the first and one more.
    let seed = unique("seed");
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let push = |prefix: &str, layers: usize| {
        let name = format!("{}:1", unique(prefix));
        let image = registry().image(&name).seed(&seed).layers(layers);
        let pushed = image.size(100_000 * layers as u64).push();
        (proxy.reference(&name), pushed.bytes)
    };
    let ((first, small), (second, large)) = (push("a", 2), push("b", 3));
    let absent = proxy.reference(&format!("{}:1", unique("c")));
    let lines = [first.as_str(), &second, &absent];
    let output = plan(R::shared(), &lines).run().expect(0);
    let report = output.json();
    let bytes = |image: &str, key: &str| entry(&report, image)[key].as_u64();
    let close = |told: Option<u64>, pushed: u64| {
        // The configuration counts too.
        let told = told.unwrap_or_else(|| panic!("{output}"));
        assert!(
            (pushed..pushed + 2000).contains(&told),
            "{told} for {pushed}: {output}"
        );
    };
    close(bytes(&first, "bytes"), small);
    close(bytes(&second, "bytes"), large);
    assert_eq!(bytes(&first, "shared_bytes"), Some(0));
    assert_eq!(bytes(&second, "shared_bytes"), Some(small), "{output}");
    assert_eq!(bytes(&absent, "bytes"), None);
    let message = entry(&report, &absent)["message"].as_str().unwrap();
    assert!(message.contains("size unknown"), "{message}");
    let sum = |key: &str| report["summary"][key].as_u64();
    // Two configurations come.
    let fresh = sum("download_bytes").unwrap();
    assert!((large..large + 4000).contains(&fresh), "{output}");
    assert_eq!(sum("shared_bytes"), Some(small));
    assert_eq!(sum("unknown"), Some(1));
    assert_eq!(
        sum("registry_requests"),
        Some(proxy.count(|_| true) as u64),
        "{:?}",
        proxy.seen()
    );
    assert_eq!(proxy.count(|seen| seen.is_blob()), 0);

    let text = plan(R::shared(), &lines);
    let text = text.args(["--output=text"]).run().expect(0).stdout;
    assert!(
        text.contains(" SHARED ") && text.contains("harpoon: to download 3"),
        "{text}"
    );

    // A present image is not requested, and its layers count as shared only if the runtime knows them.
    pull(R::shared(), &[&first]).run().expect(0);
    let output = plan(R::shared(), &lines[..2]).run().expect(0);
    let report = output.json();
    assert_eq!(entry(&report, &first)["bytes"], Value::Null, "{output}");
    let shared = if R::NAME == "containerd" { small } else { 0 };
    assert_eq!(entry(&report, &second)["shared_bytes"], shared, "{output}");
}

fn foreign_platform_is_planned_as_mismatch<R: Runtime>() {
    let name = format!("{}:1", unique("foreign"));
    registry().image(&name).platforms(&["linux/s390x"]).push();
    let proxy = Proxy::start(registry().url(), |_| Fault::Pass);
    let image = proxy.reference(&name);
    let output = plan(R::shared(), &[&image]).run().expect(0);
    let told = entry(&output.json(), &image).clone();
    assert_eq!(
        (&told["action"], &told["reason"]),
        (&json!("skip"), &json!("platform_mismatch")),
        "{output}"
    );
    assert!(
        told["message"].as_str().unwrap().contains("linux/s390x"),
        "{output}"
    );
    // With a budget a run determines it likewise, and does not pull.
    let output = run(R::shared(), &[&image])
        .env("DISK_BUDGET", "1Ti")
        .run()
        .expect(1);
    check(&output, &[(&image, "failed platform_mismatch 0")]);
    assert_eq!(proxy.count(|_| true), 2, "{:?}", proxy.seen());
    // For another node it fits.
    let output = plan(R::shared(), &[&image])
        .env("PLATFORM", "linux/s390x")
        .run()
        .expect(0);
    assert_eq!(entry(&output.json(), &image)["action"], "pull", "{output}");
}

#[test]
fn node_sizes_replace_registry_requests() {
    let cluster = kubernetes();
    let (namespace, node) = (cluster.namespace(), unique("sized"));
    // No process listens there.
    let image = format!("127.0.0.1:1/{}:1", unique("told"));
    cluster.deployment(&namespace, "web", 3, &image);
    cluster.create("/api/v1/nodes", json!({"metadata": {"name": node}}));
    let platform = Platform::current();
    cluster.patch(
        &format!("/api/v1/nodes/{node}/status"),
        json!({"status": {
            "nodeInfo": {"operatingSystem": "linux", "architecture": platform.architecture,
                "containerRuntimeVersion": "containerd://1.7.2", "machineID": "", "systemUUID": "", "bootID": "",
                "kernelVersion": "", "osImage": "", "kubeletVersion": "", "kubeProxyVersion": ""},
            "images": [{"names": [image], "sizeBytes": 123_456_789}]}}),
    );
    let plan = |token: &str| {
        let harpoon = Harpoon::new(["plan", "--sizes", "--output=json"]);
        let file = harpoon.home().join("kubeconfig");
        cluster.write_kubeconfig(&file, cluster.server(), token, &namespace);
        harpoon.env("KUBECONFIG", file)
    };
    let output = plan(cluster.token()).run().expect(0);
    let report = output.json();
    assert_eq!(entry(&report, &image)["bytes"], 123_456_789, "{output}");
    assert_eq!(report["summary"]["download_bytes"], 123_456_789, "{output}");
    assert_eq!(report["summary"]["registry_requests"], 0, "{output}");
    // That is for images of its platform alone, and for those who may list nodes.
    let deployments =
        json!([{"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list"]}]);
    let proof = format!("/apis/apps/v1/namespaces/{namespace}/deployments");
    let token = cluster.account_with(&namespace, Some(&namespace), &deployments, &proof);
    let elsewhere = plan(cluster.token()).env("PLATFORM", "linux/s390x");
    for (harpoon, words) in [(elsewhere, ""), (plan(&token), "\"list\" on \"nodes\"")] {
        let output = harpoon.run().expect(0);
        let report = output.json();
        assert_eq!(entry(&report, &image)["bytes"], Value::Null, "{output}");
        let message = entry(&report, &image)["message"].as_str().unwrap();
        assert!(message.contains("failed to reach 127.0.0.1:1"), "{output}");
        assert!(output.stderr.contains(words), "{output}");
    }
}
