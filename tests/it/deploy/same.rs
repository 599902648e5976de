//! The chart and the kustomizations are the same objects as `harpoon manifests` prints.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::{chart, deploy, manifests, parse};
use crate::bed;

/// Objects by kind, namespace and name, with lists in order that Kubernetes takes for sets.
fn canonical(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let mut canonical = BTreeMap::new();
    for mut object in objects {
        if let Some(pod) = object.pointer_mut("/spec/template/spec") {
            sort(&mut pod["volumes"], "name");
            sort(&mut pod["initContainers"][0]["volumeMounts"], "mountPath");
            if let Some(variables) = pod["initContainers"][0].get_mut("env") {
                sort(variables, "name");
            }
        }
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or("-").to_owned();
        let key = format!(
            "{} {} {}",
            object["kind"].as_str().unwrap(),
            text("namespace"),
            text("name")
        );
        assert!(
            canonical.insert(key.clone(), object).is_none(),
            "{key} twice"
        );
    }
    canonical
}

fn sort(list: &mut Value, key: &str) {
    let list = list.as_array_mut().expect("a list");
    list.sort_by_key(|item| item[key].as_str().unwrap().to_owned());
}

#[track_caller]
fn assert_same(what: &str, objects: Vec<Value>, flags: &[&str]) {
    let (found, expected) = (canonical(objects), canonical(manifests(flags)));
    assert_eq!(
        found.keys().collect::<Vec<_>>(),
        expected.keys().collect::<Vec<_>>(),
        "{what}"
    );
    for (key, object) in &expected {
        assert_eq!(&found[key], object, "{what}: {key}");
    }
}

#[track_caller]
fn check_chart(flags: &[&str], name: &str, arguments: &[&str], values: &Value) {
    let output = chart(name, arguments, values);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{values}: {stderr}");
    let objects = parse(&String::from_utf8(output.stdout).unwrap());
    assert_same(&values.to_string(), objects, flags);
}

#[test]
fn the_charts_defaults_are_daemonset_auto() {
    let output = chart("harpoon", &[], &json!({}));
    let objects = parse(&String::from_utf8(output.stdout).unwrap());
    let committed = parse(&std::fs::read_to_string(deploy("daemonset-auto.yaml")).unwrap());
    assert_eq!(canonical(objects), canonical(committed));
}

#[test]
fn the_charts_values_are_the_flags() {
    let check = |flags: &[&str], values: Value| check_chart(flags, "harpoon", &[], &values);
    for runtime in [
        "containerd",
        "crio",
        "k3s",
        "rke2",
        "microk8s",
        "k0s",
        "dockershim",
        "cri-dockerd",
        "docker",
    ] {
        check(&["--runtime", runtime], json!({"runtime": runtime}));
    }
    for cloud in ["eks", "gke", "aks"] {
        check(&["--cloud", cloud], json!({"cloud": cloud}));
    }
    check(
        &["--runtime=docker", "--socket-group=1000000"],
        json!({"runtime": "docker", "socketGroup": 1_000_000}),
    );
    check(&["--socket-group=0"], json!({"socketGroup": 0}));
    check(&["--node-relevance=false"], json!({"nodeRelevance": false}));
    check(
        &["--images=nginx:1.27,registry.example/a:1"],
        json!({"images": ["nginx:1.27", "registry.example/a:1"]}),
    );
    check(
        &[
            "--images=a",
            "--runtime=crio",
            "--cloud=gke",
            "--limit=3",
            "--node-relevance=false",
        ],
        json!({"images": ["a"], "runtime": "crio", "cloud": "gke", "settings": {"LIMIT": 3}, "nodeRelevance": false}),
    );
    check(
        &["--namespaces=*", "--workloads=all"],
        json!({"settings": {"NAMESPACES": "*", "WORKLOADS": "all"}}),
    );
    check(
        &["--namespaces=shop, web,shop", "--workloads=pods, jobs"],
        json!({"settings": {"NAMESPACES": "shop, web,shop", "WORKLOADS": "pods, jobs"}}),
    );
    check(
        &["--pull-secrets", "--namespaces=shop", "--secret-names=a,b"],
        json!({"settings": {"PULL_SECRETS": true, "NAMESPACES": "shop"}, "secretNames": ["a", "b"]}),
    );
    check(
        &["--pull-secrets=false"],
        json!({"settings": {"PULL_SECRETS": "false"}}),
    );
    check(
        &[
            "--private-registry=registry.example",
            "--registry-secret=pull",
            "--image-pull-secret=own",
            "--image=r.example/h:2",
        ],
        json!({"settings": {"PRIVATE_REGISTRY": "registry.example"}, "registrySecret": "pull", "imagePullSecret": "own",
            "image": {"repository": "r.example/h", "tag": "2"}}),
    );
    for endpoint in [
        "/run/cri.sock",
        "unix:///opt/cri/cri.sock",
        "/var/run/x.sock",
        "/cri.sock",
    ] {
        check(
            &["--runtime-endpoint", endpoint],
            json!({"settings": {"RUNTIME_ENDPOINT": endpoint}}),
        );
    }
    check(
        &["--priority-class=mine"],
        json!({"priorityClass": {"create": false, "name": "mine"}}),
    );
    check(
        &["--priority-class="],
        json!({"priorityClass": {"create": false}}),
    );
    check(
        &[
            "--include-idle",
            "--watch-cache",
            "--startup-taints=example.com/booting,warming-up",
            "--selector=app=web,tier!=test",
            "--only=quay.io",
            "--ignore=nginx",
            "--limit=12345678",
            "--disk-budget=20Gi",
            "--refresh",
            "--concurrency=8",
            "--registry-concurrency=2",
            "--pull-timeout=1h 30m",
            "--retries=0",
            "--deadline=90s",
            "--fail-on=any",
            "--stagger=5m",
            "--stagger-min-age=0s",
            "--output=json",
            "--log-format=json",
            "--log-level=debug",
        ],
        json!({"settings": {"INCLUDE_IDLE": true, "WATCH_CACHE": true, "STARTUP_TAINTS": "example.com/booting,warming-up",
            "SELECTOR": "app=web,tier!=test", "ONLY": "quay.io", "IGNORE": "nginx",
            "LIMIT": 12_345_678, "DISK_BUDGET": "20Gi", "REFRESH": "true", "CONCURRENCY": "8", "REGISTRY_CONCURRENCY": 2,
            "PULL_TIMEOUT": "1h 30m", "RETRIES": 0, "DEADLINE": "90s", "FAIL_ON": "any", "STAGGER": "5m", "STAGGER_MIN_AGE": "0s",
            "OUTPUT": "json", "LOG_FORMAT": "json", "LOG_LEVEL": "debug"}}),
    );
    check_chart(
        &["--name=fleet", "--namespace=shop"],
        "fleet",
        &["--namespace", "shop"],
        &json!({}),
    );
    check_chart(
        &["--name=fleet", "--namespace=shop", "--images=a"],
        "fleet",
        &["--namespace", "shop"],
        &json!({"images": ["a"]}),
    );
}

#[test]
fn the_charts_schema_has_every_setting_and_refuses_what_is_wrong() {
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(deploy("chart/values.schema.json")).unwrap())
            .unwrap();
    let mut passed: Vec<_> = harpoon::manifests::options::passed()
        .map(|s| s.variables[0])
        .collect();
    passed.sort_unstable();
    let mut known: Vec<_> = schema["properties"]["settings"]["properties"]
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    known.sort_unstable();
    assert_eq!(known, passed);
    for (values, named) in [
        (json!({"runtime": "podman"}), "runtime"),
        (json!({"runtimes": "crio"}), "runtimes"),
        (json!({"settings": {"LIMITS": 3}}), "LIMITS"),
        (json!({"settings": {"LIMIT": 0}}), "LIMIT"),
        (json!({"settings": {"LIMIT": "many"}}), "LIMIT"),
        (json!({"settings": {"NAMESPACES": "Shop"}}), "NAMESPACES"),
        (json!({"settings": {"WORKLOADS": "pod"}}), "WORKLOADS"),
        (json!({"settings": {"FAIL_ON": "some"}}), "FAIL_ON"),
        (json!({"settings": {"PULL_TIMEOUT": "15"}}), "PULL_TIMEOUT"),
        (
            json!({"settings": {"RUNTIME_ENDPOINT": "oci:x"}}),
            "RUNTIME_ENDPOINT",
        ),
        (json!({"settings": {"DISK_BUDGET": "20GB"}}), "DISK_BUDGET"),
        (json!({"cloud": "ibm"}), "cloud"),
        (json!({"socketGroup": "docker"}), "socketGroup"),
        (json!({"images": "nginx"}), "images"),
        (json!({"images": ["a b"]}), "images"),
        (json!({"nodeRelevance": "no"}), "nodeRelevance"),
        (json!({"registrySecret": "Pull"}), "registrySecret"),
        (
            json!({"images": ["a"], "settings": {"NAMESPACES": "*"}}),
            "settings.NAMESPACES has no meaning",
        ),
        (
            json!({"settings": {"PULL_SECRETS": true, "NAMESPACES": "*"}}),
            "a ClusterRole would open every secret",
        ),
        (
            json!({"secretNames": ["a"]}),
            "secretNames takes settings.PULL_SECRETS",
        ),
    ] {
        let output = chart("harpoon", &[], &values);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && stderr.contains(named),
            "{values}: {stderr}"
        );
    }
}

#[test]
fn helm_finds_no_fault_with_the_chart() {
    bed::run(
        bed::tool("helm")
            .args(["lint", "--strict"])
            .arg(deploy("chart")),
    );
}

fn kustomized(directory: &Path) -> Vec<Value> {
    // `kustomize` of one's own is below the file; kustomizations of others name it by relative paths alone.
    parse(&bed::run(
        bed::tool("kubectl")
            .arg("kustomize")
            .arg("--load-restrictor=LoadRestrictionsNone")
            .arg(directory),
    ))
}

#[test]
fn overlays_and_components_are_the_flags() {
    assert_same(
        "base",
        kustomized(&deploy("kustomize/base")),
        &["--node-relevance=false"],
    );
    for runtime in ["containerd", "crio", "docker", "k3s", "rke2"] {
        let overlay = deploy(&format!("kustomize/overlays/{runtime}"));
        assert_same(runtime, kustomized(&overlay), &["--runtime", runtime]);
    }
    for (components, flags) in [
        (
            &["pull-secrets"][..],
            &[
                "--pull-secrets",
                "--namespace=shop",
                "--node-relevance=false",
            ][..],
        ),
        (
            &["node-relevance", "eks"],
            &["--namespace=shop", "--cloud=eks"],
        ),
        (
            &["gke"],
            &["--namespace=shop", "--cloud=gke", "--node-relevance=false"],
        ),
        (
            &["pull-secrets", "aks"],
            &[
                "--namespace=shop",
                "--cloud=aks",
                "--pull-secrets",
                "--node-relevance=false",
            ],
        ),
    ] {
        // As a user's own kustomization adds them.
        let directory = bed::directory();
        let own = directory.path().canonicalize().unwrap();
        let up = "../".repeat(own.components().count() - 1);
        let path = |below: &str| {
            format!(
                "{up}{}",
                deploy(&format!("kustomize/{below}"))
                    .to_string_lossy()
                    .trim_start_matches('/')
            )
        };
        let components: Vec<_> = components
            .iter()
            .map(|c| path(&format!("components/{c}")))
            .collect();
        let kustomization = json!({"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "namespace": "shop",
            "resources": [path("base")], "components": components});
        std::fs::write(own.join("kustomization.yaml"), kustomization.to_string()).unwrap();
        assert_same(&kustomization.to_string(), kustomized(&own), flags);
    }
}
