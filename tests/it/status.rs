//! `harpoon status` against real API servers, with objects that the tests write in place of controller and agents.

use std::time::{Duration, SystemTime};

use reqwest::Method;
use serde_json::{Value, json};

use crate::bed::{self, Harpoon, Kubernetes, Output, Terminal};

const API: &str = "/apis/harpoon.dev/v1alpha1";

/// A cluster of the oldest API server, of the test's own.
fn old() -> Kubernetes {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    cluster
}

fn status(cluster: &Kubernetes, arguments: &[&str]) -> Harpoon {
    Harpoon::new(["status"])
        .args(arguments.iter().copied())
        .env("KUBECONFIG", cluster.kubeconfig())
}

#[track_caller]
fn shown(cluster: &Kubernetes, arguments: &[&str]) -> Output {
    status(cluster, arguments).run().expect(0)
}

/// The time so long ago.
fn ago(seconds: u64) -> String {
    let time = SystemTime::now() - Duration::from_secs(seconds);
    humantime::format_rfc3339_seconds(time).to_string()
}

fn set_status(cluster: &Kubernetes, plural: &str, name: &str, status: &Value) {
    let path = format!("{API}/{plural}/{name}/status");
    cluster.patch(&path, json!({"status": status}));
}

fn ready(cluster: &Kubernetes, name: &str, status: &str, reason: &str) {
    let object = cluster.get(&format!("{API}/imageprefetches/{name}"));
    let condition = |kind: &str, status: &str| {
        json!({"type": kind, "status": status, "reason": reason, "message": "as told",
            "lastTransitionTime": ago(1)})
    };
    let degraded = if reason == "NotFound" {
        "True"
    } else {
        "False"
    };
    let status = json!({
        "observedGeneration": object["metadata"]["generation"], "images": 0, "nodes": {},
        "conditions": [condition("Ready", status), condition("Degraded", degraded)]
    });
    set_status(cluster, "imageprefetches", name, &status);
}

fn prefetch(cluster: &Kubernetes, name: &str) {
    let object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch",
        "metadata": {"name": name}, "spec": {"source": {"images": ["registry.example/a:1"]}}});
    cluster.create(&format!("{API}/imageprefetches"), object);
}

fn planned(cluster: &Kubernetes, name: &str, prefetch: &str) {
    let image = format!("registry.example/{name}:1");
    let object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "PlannedImage",
        "metadata": {"name": name}, "spec": {"image": image, "pods": 3, "prefetches": [prefetch]}});
    cluster.create(&format!("{API}/plannedimages"), object);
}

/// The hash of the names of PlannedImages, as agent and controller make it.
fn revision(names: &[&str]) -> String {
    use sha2::Digest;
    let mut names = names.to_vec();
    names.sort_unstable();
    let digest = sha2::Sha256::digest(names.join("\n").as_bytes());
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// The report of a node with these numbers of one ImagePrefetch: desired, present, failed.
fn report(prefetch: &str, names: &[&str], [desired, present, failed]: [u64; 3]) -> Value {
    let pulling = desired - present - failed;
    let entry = json!({"name": prefetch, "revision": revision(names), "desired": desired,
        "present": present, "pulling": pulling, "failed": failed});
    let failures: Vec<Value> = (0..failed)
        .map(|n| {
            json!({"image": format!("registry.example/{}:1", names[usize::try_from(n).unwrap()]),
                "reason": "not_found", "message": "manifest \u{1b}[31munknown"})
        })
        .collect();
    let (is_ready, reason) = match present == desired {
        true => ("True", "Complete"),
        false => ("False", "Pulling"),
    };
    json!({
        "conditions": [{"type": "Ready", "status": is_ready, "reason": reason, "message": "waits"}],
        "desired": desired, "present": present, "pulling": pulling, "failed": failed,
        "prefetches": [entry], "failures": failures, "firstFillSeconds": 12.5,
        "runtime": "containerd 2.1.9",
        "imageStore": {"harpoonBytes": 1_000_000_000_u64, "usedBytes": 2_000_000_000_u64},
        "heartbeatTime": ago(10)
    })
}

fn node(cluster: &Kubernetes, name: &str, status: &Value) {
    let object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "NodePrefetch",
        "metadata": {"name": name}});
    cluster.create(&format!("{API}/nodeprefetches"), object);
    set_status(cluster, "nodeprefetches", name, status);
}

/// A prefetch of two images with one complete node, one that pulls, one that failed and one that is silent.
fn fill(cluster: &Kubernetes) {
    let names = ["one", "two"];
    prefetch(cluster, "shop");
    for name in names {
        planned(cluster, name, "shop");
    }
    node(cluster, "node-done", &report("shop", &names, [2, 2, 0]));
    node(cluster, "node-busy", &report("shop", &names, [2, 1, 0]));
    node(cluster, "node-sick", &report("shop", &names, [2, 1, 1]));
    let mut silent = report("shop", &names, [2, 2, 0]);
    silent["heartbeatTime"] = json!(ago(3600));
    node(cluster, "node-mute", &silent);
    ready(cluster, "shop", "False", "NotFound");
}

fn check_tables(cluster: &Kubernetes) {
    let output = shown(cluster, &[]);
    for part in [
        "NAME   READY   IMAGES   NODES   COMPLETE   UPDATING   FAILING   UNKNOWN   AGE\n",
        "shop   False   2        4       1          1          1         1 ",
        "\nshop       NotFound   as told\n",
        "\nnode-sick         failing    1/2       0         1        12.5s        1",
        "\nnode-mute         unknown    2/2 ",
        "\nregistry.example/one:1   not_found   1       node-sick   manifest \\u{1b}[31munknown\n",
        "\nharpoon: 0 of 1 prefetches ready, 1 of 4 nodes complete, 1 updating, 1 failing, 1 unknown\n",
    ] {
        assert!(output.stdout.contains(part), "{part}: {output}");
    }
    assert!(
        !output.stdout.contains('\u{1b}') && output.stderr.is_empty(),
        "{output}"
    );

    let output = shown(cluster, &["shop"]);
    for part in [
        "\nregistry.example/one:1   3      4       1-3       1\n",
        "\nregistry.example/two:1   3      4       2-4       0\n",
        "\nharpoon: shop: 1 of 4 nodes complete, 1 updating, 1 failing, 1 unknown\n",
    ] {
        assert!(output.stdout.contains(part), "{part}: {output}");
    }

    let output = shown(cluster, &["node/node-sick", "--no-headers"]);
    for part in [
        "Node:         node-sick\nState:        failing (Pulling: waits)\n",
        "Images:       1 of 2 present, 0 pulling, 1 failed\n",
        "Runtime:      containerd 2.1.9\nImage store:  1.00 GB by harpoon, 2.00 GB in all\n",
        "\n\nshop   2   1   0   1   yes\n",
        "\nregistry.example/one:1   not_found   manifest \\u{1b}[31munknown\n",
    ] {
        assert!(output.stdout.contains(part), "{part}: {output}");
    }
    assert!(!output.stdout.contains("PREFETCH"), "{output}");
    let output = shown(cluster, &["--no-headers"]);
    assert!(output.stdout.starts_with("shop "), "{output}");
    assert!(!output.stdout.contains("harpoon:"), "{output}");
}

/// The API server's time counts where an agent's clock is behind.
fn check_wrong_clock(cluster: &Kubernetes) {
    let names = ["one", "two"];
    let path =
        format!("{API}/nodeprefetches/node-late/status?fieldManager=harpoon-agent&force=true");
    let object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "NodePrefetch",
        "metadata": {"name": "node-late"}});
    cluster.create(&format!("{API}/nodeprefetches"), object.clone());
    let mut recorded = Vec::new();
    for behind in [7_200, 7_100] {
        let mut object = object.clone();
        object["status"] = report("shop", &names, [2, 1, 0]);
        object["status"]["heartbeatTime"] = json!(ago(behind));
        let (code, written) = cluster.request_as(&[], &Method::PATCH, &path, Some(object));
        assert_eq!(code, 200, "{written}");
        let written: Value = serde_json::from_str(&written).unwrap();
        let writes = written["metadata"]["managedFields"].as_array().unwrap();
        let times = writes.iter().map(|write| write["time"].to_string());
        recorded.push(times.max());
        std::thread::sleep(Duration::from_millis(1_100));
    }
    assert!(recorded[0] < recorded[1], "{recorded:?}");
    let shown = shown(cluster, &["-o", "json"]).json();
    let mut nodes = shown["incomplete"].as_array().unwrap().iter();
    let late = nodes.find(|node| node["name"] == "node-late").unwrap();
    assert_eq!(late["state"], "updating", "{shown}");
    assert!(late["heartbeat_seconds"].as_u64().unwrap() < 60, "{shown}");
}

#[test]
fn tables_show_written_objects() {
    let cluster = old();
    let output = shown(&cluster, &[]);
    assert_eq!(output.stderr, "No ImagePrefetches found\n", "{output}");
    let output = status(&cluster, &["--watch"]).run().expect(1);
    let error = "error: no ImagePrefetches found to wait for\n";
    assert!(output.stderr.ends_with(error), "{output}");
    fill(&cluster);
    check_tables(&cluster);
    let json = shown(&cluster, &["-o", "json"]).json();
    assert_eq!(json["nodes"]["failing"], 1, "{json}");
    let yaml = shown(&cluster, &["shop", "-o", "yaml"]).stdout;
    let yaml: Value = serde_saphyr::from_str(&yaml).unwrap();
    assert_eq!(yaml["prefetch"]["nodes"]["desired"], 4, "{yaml}");
    assert_eq!(yaml["images"][0]["present_min"], 1, "{yaml}");
    let wide = shown(&cluster, &["-o", "wide"]).stdout;
    assert!(wide.contains("AGE   REASON\n"), "{wide}");
    check_wrong_clock(&cluster);
}

#[test]
fn newer_server_shows_same_tables() {
    let cluster = Kubernetes::start_newer();
    cluster.install_definitions();
    fill(&cluster);
    check_tables(&cluster);
    check_wrong_clock(&cluster);
}

#[test]
fn unknown_subjects_are_refused() {
    let cluster = bed::apiserver();
    for (subject, error) in [
        ("nothing", "error: ImagePrefetch \"nothing\" not found\n"),
        (
            "node/nowhere",
            "error: node \"nowhere\" has no NodePrefetch: no agent has reported from it\n",
        ),
    ] {
        let output = status(cluster, &[subject]).run().expect(1);
        assert_eq!((&*output.stderr, &*output.stdout), (error, ""), "{output}");
    }
    let output = status(cluster, &["pod/x"]).run().expect(2);
    assert!(output.stderr.contains("or node/NAME"), "{output}");
}

#[test]
fn missing_definitions_and_rights_are_named() {
    // Others install the definitions on the shared one.
    let cluster = Kubernetes::start();
    let output = status(&cluster, &[]).run().expect(1);
    let error =
        "does not have the resource imageprefetches.harpoon.dev: continuous mode is not installed";
    assert!(output.stderr.contains(error), "{output}");
    assert!(
        output.stderr.contains("harpoon crds | kubectl apply -f -"),
        "{output}"
    );

    let directory = bed::directory();
    let config = directory.path().join("config");
    let denied = |token: &str| {
        cluster.write_kubeconfig(&config, cluster.server(), token, "default");
        let harpoon = Harpoon::new(["status"]).env("KUBECONFIG", &config);
        harpoon.run().expect(1).stderr
    };
    let error = denied(cluster.nobody());
    let expected = "not allowed to list imageprefetches.harpoon.dev: needs the RBAC verb \"list\" on \"imageprefetches\"";
    assert!(error.contains(expected), "{error}");
    let error = denied("wrong");
    assert!(
        error.contains("does not accept the credentials (401"),
        "{error}"
    );
    let output = Harpoon::new(["status"]).run().expect(1);
    assert!(output.stderr.contains("no cluster configured"), "{output}");
}

#[test]
fn flags_choose_the_cluster() {
    let (cluster, other) = (bed::apiserver(), "127.0.0.1:1");
    let directory = bed::directory();
    let config = directory.path().join("config");
    let server = |url: &str| json!({"server": url, "insecure-skip-tls-verify": true});
    let file = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "wrong",
        "clusters": [{"name": "wrong", "cluster": server(&format!("https://{other}"))},
            {"name": "right", "cluster": server(cluster.server())}],
        "users": [{"name": "admin", "user": {"token": cluster.token()}}],
        "contexts": [{"name": "wrong", "context": {"cluster": "wrong", "user": "admin"}},
            {"name": "right", "context": {"cluster": "right", "user": "admin"}}]
    });
    std::fs::write(&config, file.to_string()).unwrap();
    let path = config.to_str().unwrap();
    let run = |arguments: &[&str]| {
        let harpoon = Harpoon::new(["status"]).args(arguments.iter().copied());
        harpoon.run()
    };
    let output = run(&["--kubeconfig", path, "--context", "right"]).expect(0);
    assert!(output.stdout.starts_with("NAME"), "{output}");
    let by_variable = status(cluster, &["--context", "right"]).env("KUBECONFIG", path);
    by_variable.run().expect(0);
    let output = run(&["--kubeconfig", path, "--context", "none"]).expect(1);
    assert!(output.stderr.contains("none"), "{output}");
    let output = run(&["--kubeconfig", "/nowhere/config"]).expect(1);
    assert!(output.stderr.contains("/nowhere/config"), "{output}");
}

#[test]
fn watch_ends_when_complete() {
    let cluster = old();
    let names = ["one", "two"];
    prefetch(&cluster, "shop");
    let running = status(&cluster, &["shop", "--watch", "--timeout=60s"]).start();
    bed::eventually("the watch has begun", Duration::from_secs(20), || {
        running.stderr().contains("shop: 0 of 0 nodes complete")
    });
    for name in names {
        planned(&cluster, name, "shop");
    }
    node(&cluster, "node-1", &report("shop", &names, [2, 1, 0]));
    node(&cluster, "node-2", &report("shop", &names, [2, 2, 0]));
    ready(&cluster, "shop", "True", "Complete");
    std::thread::sleep(Duration::from_millis(700));
    assert!(!running.has_ended(), "{}", running.stderr());
    set_status(
        &cluster,
        "nodeprefetches",
        "node-1",
        &report("shop", &names, [2, 2, 0]),
    );
    let output = running.wait().expect(0);
    assert!(
        output.stderr.contains("shop: 2 of 2 nodes complete"),
        "{output}"
    );
    assert!(output.stdout.contains("SLOWEST NODE"), "{output}");

    // Everything is complete, so that further watches end at once.
    for subject in [&["--watch"][..], &["node/node-1", "-w"]] {
        let output = shown(&cluster, subject);
        assert!(output.elapsed < Duration::from_secs(20), "{output}");
    }
    // A node whose runtime is away has all its images, but is not complete.
    let mut away = report("shop", &names, [2, 2, 0]);
    away["conditions"][0]["status"] = json!("False");
    set_status(&cluster, "nodeprefetches", "node-1", &away);
    let waits = ["node/node-1", "-w", "--timeout=10s"];
    let output = status(&cluster, &waits).run().expect(1);
    assert!(output.stderr.contains("not complete after 10s"), "{output}");
    set_status(
        &cluster,
        "nodeprefetches",
        "node-1",
        &report("shop", &names, [2, 1, 1]),
    );
    let output = status(&cluster, &["-w", "--timeout=10s", "-o", "json"])
        .run()
        .expect(1);
    let error = "error: not complete after 10s (--timeout): 1 of 1 prefetches ready, 1 of 2 nodes complete, 1 failing\n";
    assert!(output.stderr.ends_with(error), "{output}");
    assert_eq!(output.json()["nodes"]["complete"], 1, "{output}");
}

#[test]
fn watch_draws_bars_on_terminal() {
    let cluster = old();
    fill(&cluster);
    let arguments = ["shop", "--watch", "--timeout=8s"];
    let harpoon = status(&cluster, &arguments).terminal(Terminal::Both);
    let output = harpoon.run().expect(1);
    for part in [
        "shop [=====>                  ] 1/4 nodes, 1 failing",
        "  [===========>            ]   1/2   failing node-sick",
        "\u{1b}[31m",
        "IMAGE   ",
    ] {
        assert!(output.stdout.contains(part), "{part:?}: {output}");
    }
    let plain = harpoon.env("NO_COLOR", "1").run().expect(1);
    assert!(!plain.stdout.contains("\u{1b}[31m"), "{plain}");
    let once = status(&cluster, &[])
        .terminal(Terminal::Both)
        .run()
        .expect(0);
    assert!(once.stdout.contains("\u{1b}[31mfailing\u{1b}[0m"), "{once}");
}

#[test]
fn watch_survives_restart_of_server() {
    let cluster = old();
    prefetch(&cluster, "shop");
    planned(&cluster, "one", "shop");
    node(&cluster, "node-1", &report("shop", &["one"], [1, 0, 0]));
    ready(&cluster, "shop", "True", "Complete");
    let running = status(&cluster, &["shop", "--watch"]);
    let running = running.limit(Duration::from_secs(180)).start();
    bed::eventually("the watch has begun", Duration::from_secs(20), || {
        running.stderr().contains("shop: 0 of 1 nodes complete")
    });
    cluster.kill();
    cluster.restart();
    let done = report("shop", &["one"], [1, 1, 0]);
    set_status(&cluster, "nodeprefetches", "node-1", &done);
    let output = running.wait().expect(0);
    assert!(
        output.stdout.contains("shop: 1 of 1 nodes complete"),
        "{output}"
    );
}

#[test]
fn refused_watch_ends() {
    let cluster = old();
    fill(&cluster);
    let kinds = ["imageprefetches", "plannedimages", "nodeprefetches"];
    let list = json!([{"apiGroups": ["harpoon.dev"], "resources": kinds, "verbs": ["list"]}]);
    let proof = format!("{API}/imageprefetches");
    let token = cluster.account_with("default", None, &list, &proof);
    let directory = bed::directory();
    let config = directory.path().join("config");
    cluster.write_kubeconfig(&config, cluster.server(), &token, "default");
    let harpoon = Harpoon::new(["status", "--watch"]).env("KUBECONFIG", &config);
    let error = harpoon.run().expect(1).stderr;
    let expected = "not allowed to watch";
    assert!(
        error.contains(expected) && error.contains("the RBAC verb \"watch\""),
        "{error}"
    );
}

#[test]
fn time_limit_covers_silent_servers() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", silent.local_addr().unwrap());
    let directory = bed::directory();
    let config = directory.path().join("config");
    bed::kubernetes().write_kubeconfig(&config, &server, "token", "default");
    let harpoon = Harpoon::new(["status", "--watch", "--timeout=1s"]).env("KUBECONFIG", &config);
    let output = harpoon.run().expect(1);
    assert!(
        output.stderr.contains("did not answer in time (--timeout)"),
        "{output}"
    );
    assert!(output.elapsed < Duration::from_secs(10), "{output}");
}

#[test]
fn interrupted_watch_exits_with_130() {
    let cluster = old();
    fill(&cluster);
    let running = status(&cluster, &["--watch"]).start();
    bed::eventually("the watch has begun", Duration::from_secs(20), || {
        running.stderr().contains("nodes complete")
    });
    running.signal(rustix::process::Signal::INT);
    running.wait().expect(130);
}

#[test]
#[expect(clippy::print_stdout, reason = "it prints what it measures")]
fn large_fleet_is_read_in_pages() {
    let cluster = old();
    let nodes = std::env::var("STATUS_NODES").map_or(1_200, |nodes| nodes.parse().unwrap());
    prefetch(&cluster, "shop");
    let names: Vec<String> = (0..200).map(|n| format!("image-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        planned(&cluster, name, "shop");
    }
    let objects = (0..nodes).map(|n| {
        json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "NodePrefetch",
            "metadata": {"name": format!("node-{n}")}})
    });
    cluster.create_all(&format!("{API}/nodeprefetches"), objects.collect());
    let status_of = report("shop", &names, [200, 190, 10]);
    cluster.patch_each((0..nodes).map(|n| {
        let path = format!("{API}/nodeprefetches/node-{n}/status");
        (path, json!({"status": status_of}))
    }));
    for arguments in [&[][..], &["shop"], &["node/node-7"]] {
        let output = shown(&cluster, arguments);
        println!(
            "{arguments:?}: {:?}, {} MB",
            output.elapsed,
            output.peak_rss / 1_000_000
        );
        assert!(output.peak_rss < 80_000_000, "{} bytes", output.peak_rss);
        if arguments.first() != Some(&"node/node-7") {
            let summary = format!("0 of {nodes} nodes complete, {nodes} failing");
            assert!(output.stdout.contains(&summary), "{output}");
        }
    }
}

#[test]
fn plugin_of_kubectl_shows_status() {
    let cluster = bed::apiserver();
    let directory = bed::directory();
    let plugin = directory.path().join("kubectl-harpoon");
    bed::copy_program(bed::program(), &plugin);
    let path = format!("{}:/usr/bin:/bin", directory.path().display());
    let mut kubectl = bed::tool("kubectl");
    kubectl
        .args(["harpoon", "status"])
        .env("PATH", &path)
        .env("KUBECONFIG", cluster.kubeconfig());
    let shown = bed::run(&mut kubectl);
    // Other tests have objects on this server.
    let is_status = |text: &str| text.split_whitespace().take(2).eq(["NAME", "READY"]);
    assert!(is_status(&shown), "{shown}");
    // Without a command it shows the status too, and never pulls.
    let mut plain = std::process::Command::new(&plugin);
    let plain = bed::run(plain.env("KUBECONFIG", cluster.kubeconfig()));
    assert!(is_status(&plain), "{plain}");
    let mut help = std::process::Command::new(&plugin);
    let help = bed::run(help.args(["status", "--help"]));
    assert!(help.contains("Usage: kubectl harpoon status"), "{help}");
}

#[test]
fn completions_offer_the_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = Harpoon::new(["completions", shell]).run().expect(0);
        assert!(output.stdout.contains("no-headers"), "{shell}");
    }
}

/// krew's rules for manifests, as its own validation has them.
#[test]
fn krew_manifest_is_valid() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join("deploy/krew.yaml")).unwrap();
    let manifest: Value = serde_saphyr::from_str(&text).unwrap();
    let keys = |value: &Value| {
        let keys = value.as_object().unwrap().keys().map(String::as_str);
        keys.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(keys(&manifest), ["apiVersion", "kind", "metadata", "spec"]);
    assert_eq!(
        manifest["apiVersion"],
        "krew.googlecontainertools.github.com/v1alpha2"
    );
    assert_eq!(manifest["kind"], "Plugin");
    assert_eq!(manifest["metadata"], json!({"name": "harpoon"}));
    let spec = &manifest["spec"];
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(spec["version"], format!("v{version}"));
    assert_eq!(spec["homepage"], env!("CARGO_PKG_REPOSITORY"));
    let short = spec["shortDescription"].as_str().unwrap();
    assert!(!short.is_empty() && short.len() <= 50, "{short}");
    assert!(!short.ends_with('.') && !short.to_lowercase().contains("kubectl"));
    assert!(spec["description"].as_str().unwrap().len() > 100);
    let platforms = spec["platforms"].as_array().unwrap();
    let mut selected = Vec::new();
    for platform in platforms {
        let mut names = keys(platform);
        names.sort();
        assert_eq!(names, ["bin", "files", "selector", "sha256", "uri"]);
        let labels = &platform["selector"]["matchLabels"];
        assert_eq!(labels["os"], "linux");
        let arch = labels["arch"].as_str().unwrap();
        // The name of the archive that image/release writes.
        let uri = format!(
            "{}/releases/v{version}/harpoon-{version}-linux-{arch}.tar.gz",
            env!("CARGO_PKG_REPOSITORY")
        );
        assert_eq!(platform["uri"], uri);
        let sum = platform["sha256"].as_str().unwrap();
        assert!(sum.len() == 64 && sum.bytes().all(|b| b.is_ascii_hexdigit()));
        // What image/release replaces.
        let placeholder = format!("sha256: \"{}\" # {arch}\n", "0".repeat(64));
        assert_eq!(text.matches(&placeholder).count(), 1, "{arch}");
        assert_eq!(platform["bin"], "harpoon");
        let files = json!([{"from": "harpoon", "to": "."}, {"from": "LICENSE", "to": "."}]);
        assert_eq!(platform["files"], files);
        selected.push(arch);
    }
    assert_eq!(selected, ["amd64", "arm64"]);
}
