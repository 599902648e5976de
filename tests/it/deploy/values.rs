//! The chart's values: the objects for each, and invalid values.

use std::collections::BTreeMap;
use std::fs;

use harpoon::cli::settings;
use serde_json::{Value, json};

use super::{
    assert_refused, committed, daemon_set, deploy, named, parse, pod, rendered, text_of, variants,
};
use crate::bed;

/// Settings of `harpoon run` and `harpoon agent` that the chart makes from values of its own.
const OWN: &[&str] = &[
    "METRICS_ADDRESS",
    "IMAGES_FILE",
    "NODE_NAME",
    "PLATFORM",
    "REGISTRY_CONFIG",
    "CREDENTIAL_PROVIDER_CONFIG",
    "CREDENTIAL_PROVIDER_BIN_DIR",
];

/// The variables of a command.
pub(super) fn variables_of(name: &str) -> Vec<String> {
    let of_command = settings()
        .into_iter()
        .filter(|setting| setting.commands.iter().any(|command| command == name));
    of_command
        .map(|mut setting| setting.variables.swap_remove(0))
        .collect()
}

/// A valid value for each entry of `settings`.
pub(super) fn valid_settings() -> Value {
    json!({"INCLUDE_IDLE": true, "WATCH_CACHE": true, "STARTUP_TAINTS": "example.com/booting,warming-up",
        "SELECTOR": "app=web,tier!=test", "ONLY": "quay.io", "IGNORE": "quay.io, nginx", "NAMESPACES": "shop, web,shop",
        "WORKLOADS": "pods, jobs", "LIMIT": 12_345_678, "DISK_BUDGET": "20Gi", "REFRESH": "true", "CONCURRENCY": "8",
        "REGISTRY_CONCURRENCY": 2, "PULL_TIMEOUT": "1h 30m", "RETRIES": 0, "DEADLINE": "90s", "FAIL_ON": "never", "STAGGER": "5m",
        "STAGGER_MIN_AGE": "0s", "OUTPUT": "json", "LOG_FORMAT": "json", "LOG_LEVEL": "debug", "PULL_SECRETS": true,
        "PRIVATE_REGISTRY": "registry.example/team", "RUNTIME_ENDPOINT": "unix:///opt/cri/cri.sock"})
}

#[test]
fn schema_has_every_setting() {
    let schema: Value = serde_json::from_str(&committed("chart/values.schema.json")).unwrap();
    let known = schema["properties"]["settings"]["properties"]
        .as_object()
        .unwrap();
    let mut known: Vec<_> = known.keys().map(String::as_str).collect();
    known.extend(OWN);
    known.sort_unstable();
    let mut expected = variables_of("run");
    expected.extend(variables_of("agent"));
    expected.sort_unstable();
    expected.dedup();
    assert_eq!(known, expected);
}

#[test]
fn settings_become_variables() {
    let settings = valid_settings();
    let objects = rendered(&json!({"fullnameOverride": "fleet", "settings": settings}));
    let run = &pod(&objects)["initContainers"][0];
    let variables: BTreeMap<_, _> = run["env"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| {
            (
                v["name"].as_str().unwrap(),
                v["value"].as_str().unwrap_or_default().to_owned(),
            )
        })
        .collect();
    let mut expected: BTreeMap<&str, String> = settings
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| {
            let text = value.as_str().map_or(value.to_string(), str::to_owned);
            (name.as_str(), text)
        })
        .collect();
    expected.insert("NODE_NAME", String::new());
    expected.insert("PRIVATE_REGISTRY_AUTH", String::new());
    assert_eq!(variables, expected);
    let auth = &named(&run["env"], "PRIVATE_REGISTRY_AUTH")["valueFrom"]["secretKeyRef"];
    assert_eq!(
        auth,
        &json!({"name": "fleet-private-registry", "key": "auth"})
    );
    let mount = named(&run["volumeMounts"], "runtime");
    assert_eq!(mount["mountPath"], "/opt/cri");
}

#[test]
fn runtimes_have_their_sockets() {
    for (runtime, mount, group) in [
        ("containerd", "/run/containerd", json!(0)),
        ("crio", "/run/crio", json!(0)),
        ("k3s", "/run/k3s/containerd", json!(0)),
        ("rke2", "/run/k3s/containerd", json!(0)),
        ("k0s", "/run/k0s", json!(0)),
        ("microk8s", "/var/snap/microk8s/common/run", Value::Null),
        ("dockershim", "/run/dockershim.sock", Value::Null),
        ("cri-dockerd", "/run/cri-dockerd.sock", Value::Null),
        ("docker", "/var/run/docker.sock", Value::Null),
    ] {
        let objects = rendered(&json!({"runtime": runtime}));
        let pod = pod(&objects);
        let run = &pod["initContainers"][0];
        assert_eq!(
            named(&run["volumeMounts"], "runtime")["mountPath"],
            mount,
            "{runtime}"
        );
        let volume = &named(&pod["volumes"], "runtime")["hostPath"];
        let kind = match mount.ends_with(".sock") {
            true => "Socket",
            false => "Directory",
        };
        assert_eq!(volume, &json!({"path": mount, "type": kind}), "{runtime}");
        let security = &run["securityContext"];
        match group.is_null() {
            true => assert_eq!(security["runAsUser"], 0, "{runtime}"),
            false => assert_eq!(security["runAsGroup"], group, "{runtime}"),
        }
    }
    let objects = rendered(&json!({"runtime": "docker", "socketGroup": 1_000_000}));
    let security = &pod(&objects)["initContainers"][0]["securityContext"];
    assert_eq!(security["runAsGroup"], 1_000_000);
    assert!(security["runAsUser"].is_null());
}

#[test]
fn changed_image_list_rolls_out() {
    let template = |images: Value| {
        let objects = rendered(&json!({"images": images}));
        daemon_set(&objects)["spec"]["template"].clone()
    };
    let first = template(json!(["nginx:1.27"]));
    assert_eq!(first, template(json!(["nginx:1.27"])));
    assert_ne!(first, template(json!(["nginx:1.28"])));
}

#[test]
fn two_releases_share_no_object() {
    let names = |values: &Value| -> Vec<String> {
        let objects = rendered(values).into_iter();
        objects
            .map(|o| {
                let metadata = &o["metadata"];
                format!(
                    "{} {} {}",
                    o["kind"], metadata["namespace"], metadata["name"]
                )
            })
            .collect()
    };
    for settings in [
        json!({"NAMESPACES": "*"}),
        json!({"NAMESPACES": "shop", "PULL_SECRETS": true}),
    ] {
        let first = names(
            &json!({"settings": settings, "namespaceOverride": "one", "openshift": {"enabled": true}}),
        );
        let second = names(
            &json!({"settings": settings, "namespaceOverride": "two", "openshift": {"enabled": true}}),
        );
        assert!(first.len() >= 6, "{first:?}");
        assert!(first.iter().all(|name| !second.contains(name)), "{first:?}");
    }
}

#[test]
fn numeric_texts_stay_texts() {
    let values = json!({"fullnameOverride": "123", "namespaceOverride": "456", "registrySecret": "789",
        "serviceAccount": {"name": "1e3"}, "priorityClass": {"name": "0x1"}, "images": ["nginx"], "openshift": {"enabled": true}});
    for object in rendered(&values) {
        assert!(object["metadata"]["name"].is_string(), "{object}");
        let namespace = &object["metadata"]["namespace"];
        assert!(namespace.is_null() || namespace == "456", "{object}");
    }
    let objects = rendered(&values);
    let pod = pod(&objects);
    assert_eq!(pod["serviceAccountName"], "1e3");
    assert_eq!(pod["priorityClassName"], "0x1");
    assert_eq!(
        named(&pod["volumes"], "registry")["secret"]["secretName"],
        "789"
    );
}

#[test]
fn null_values_get_their_defaults() {
    let null = json!({"settings": null, "cloud": null, "runtime": null, "serviceAccount": null, "priorityClass": null,
        "updateStrategy": null, "securityContext": null, "podSecurityContext": null, "openshift": null, "podLabels": null,
        "podAnnotations": null, "commonLabels": null, "revisionHistoryLimit": null, "affinity": null, "image": null});
    let objects = rendered(&null);
    let set = daemon_set(&objects);
    assert!(set["spec"]["revisionHistoryLimit"].is_null());
    let run = &pod(&objects)["initContainers"][0];
    assert_eq!(
        named(&run["volumeMounts"], "runtime")["mountPath"],
        "/run/containerd"
    );
    assert_eq!(pod(&objects)["serviceAccountName"], "harpoon");
}

#[test]
fn values_of_old_chart_still_work() {
    let old = json!({"image": {"repository": "registry.example/harpoon", "tag": "0.2.0"}, "imagePullSecret": "own", "runtime": "containerd",
        "socketGroup": null, "settings": {}, "images": [], "nodeRelevance": true, "secretNames": [], "registrySecret": "", "cloud": "",
        "priorityClass": {"create": true, "name": ""}});
    let objects = rendered(&old);
    assert_eq!(pod(&objects)["imagePullSecrets"], json!([{"name": "own"}]));
    assert_eq!(pod(&objects)["serviceAccountName"], "harpoon");
}

#[test]
fn users_labels_replace_no_label() {
    let values = json!({"commonLabels": {"app.kubernetes.io/name": "x", "team": "a"}, "images": ["nginx"],
        "podLabels": {"app.kubernetes.io/instance": "y", "sidecar.istio.io/inject": "true"},
        "podAnnotations": {"checksum/images": "z"}});
    let objects = rendered(&values);
    let template = &daemon_set(&objects)["spec"]["template"]["metadata"];
    let labels = &template["labels"];
    assert_eq!(labels["app.kubernetes.io/name"], "harpoon");
    assert_eq!(labels["app.kubernetes.io/instance"], "harpoon");
    assert_eq!(labels["sidecar.istio.io/inject"], "true");
    assert_eq!(labels["team"], "a");
    assert_ne!(template["annotations"]["checksum/images"], "z");
}

#[test]
fn virtual_nodes_get_no_pod() {
    let objects = rendered(&json!({}));
    let affinity = &pod(&objects)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let expressions = &affinity["nodeSelectorTerms"][0]["matchExpressions"];
    assert_eq!(
        expressions,
        &json!([
            {"key": "eks.amazonaws.com/compute-type", "operator": "NotIn", "values": ["fargate"]},
            {"key": "type", "operator": "NotIn", "values": ["virtual-kubelet"]},
        ])
    );
    let template = &daemon_set(&objects)["spec"]["template"]["metadata"];
    assert_eq!(template["labels"]["sidecar.istio.io/inject"], "false");
    assert_eq!(template["annotations"]["linkerd.io/inject"], "disabled");
}

#[test]
fn openshift_adds_constraints_and_type() {
    let objects = &variants()["openshift"];
    let kinds = |kind: &'static str| objects.iter().filter(move |o| o["kind"] == kind);
    let constraints: Vec<_> = kinds("SecurityContextConstraints").collect();
    assert_eq!(constraints.len(), 1);
    let name = &constraints[0]["metadata"]["name"];
    assert!(kinds("Role").any(|role| &role["rules"][0]["resourceNames"][0] == name));
    let run = &pod(objects)["initContainers"][0];
    assert_eq!(
        run["securityContext"]["seLinuxOptions"],
        json!({"type": "spc_t"})
    );
}

#[test]
fn overrides_reach_every_object() {
    let objects = &variants()["overrides"];
    for object in objects {
        let metadata = &object["metadata"];
        let labels = &metadata["labels"];
        assert_eq!(labels["team"], "platform", "{object}");
        for label in ["version", "managed-by", "component", "name", "instance"] {
            let label = format!("app.kubernetes.io/{label}");
            assert!(labels[&label].is_string(), "{label} of {object}");
        }
        assert!(labels["helm.sh/chart"].is_string());
        if let Some(namespace) = metadata["namespace"].as_str() {
            assert_eq!(namespace, "fleet-system");
        }
    }
    let (set, pod) = (daemon_set(objects), pod(objects));
    let run = &pod["initContainers"][0];
    assert!(run["image"].as_str().unwrap().contains("/harpoon@sha256:"));
    assert_eq!(run["imagePullPolicy"], "IfNotPresent");
    assert_eq!(named(&run["env"], "NO_PROXY")["value"], "10.0.0.0/8,.svc");
    assert_eq!(
        named(&run["env"], "SSL_CERT_FILE")["value"],
        "/trust/ca.crt"
    );
    assert_eq!(named(&run["volumeMounts"], "trust")["mountPath"], "/trust");
    assert_eq!(
        named(&pod["volumes"], "trust")["configMap"]["name"],
        "trust"
    );
    assert_eq!(run["resources"]["limits"]["memory"], "128Mi");
    assert_eq!(pod["containers"][0]["resources"]["limits"]["memory"], "8Mi");
    assert_eq!(pod["serviceAccountName"], "fleet-node");
    assert_eq!(pod["priorityClassName"], "fleet-node");
    assert_eq!(pod["nodeSelector"]["pool"], "general");
    assert_eq!(set["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
    assert_eq!(set["spec"]["revisionHistoryLimit"], 3);
    let template = &set["spec"]["template"]["metadata"];
    assert_eq!(template["labels"]["example.com/tier"], "node");
    assert_eq!(template["annotations"]["example.com/scrape"], "false");
}

#[test]
fn budget_may_be_a_percentage() {
    for budget in ["1%", "30%", "100%"] {
        let objects = rendered(&json!({"settings": {"DISK_BUDGET": budget}}));
        let run = &pod(&objects)["initContainers"][0];
        assert_eq!(named(&run["env"], "DISK_BUDGET")["value"], budget);
    }
}

#[test]
fn wrong_values_are_refused() {
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
            "a ClusterRole would open every Secret",
        ),
        (json!({"settings": {"LIMIT": "0"}}), "LIMIT"),
        (json!({"settings": {"PULL_TIMEOUT": "5x"}}), "PULL_TIMEOUT"),
        (json!({"settings": {"DISK_BUDGET": "."}}), "DISK_BUDGET"),
        (json!({"settings": {"DISK_BUDGET": "0%"}}), "DISK_BUDGET"),
        (json!({"settings": {"DISK_BUDGET": "101%"}}), "DISK_BUDGET"),
        (
            json!({"settings": {"STAGGER": "5m"}, "nodeRelevance": false}),
            "settings.STAGGER requires nodeRelevance",
        ),
        (
            json!({"settings": {"LIMIT": 3}, "extraEnv": [{"name": "LIMIT", "value": "4"}]}),
            "extraEnv: the chart sets LIMIT itself",
        ),
        (
            json!({"images": ["a"], "secretNames": ["a"]}),
            "secretNames has no meaning",
        ),
        (
            json!({"priorityClass": {"name": "system-node-critical"}}),
            "the prefix system- is reserved",
        ),
        (
            json!({"secretNames": ["a"]}),
            "secretNames requires settings.PULL_SECRETS",
        ),
    ] {
        assert_refused(&values, named);
    }
}

#[test]
fn every_variant_passes_helm_lint() {
    for file in fs::read_dir(deploy("chart/ci")).unwrap() {
        let mut helm = bed::tool("helm");
        helm.args(["lint", "--strict", "--values"]);
        bed::run(helm.arg(file.unwrap().path()).arg(deploy("chart")));
    }
}

#[test]
fn parent_chart_can_disable_harpoon() {
    let directory = bed::directory();
    let parent = directory.path();
    fs::create_dir(parent.join("charts")).unwrap();
    std::os::unix::fs::symlink(deploy("chart"), parent.join("charts/harpoon")).unwrap();
    let meta = json!({"apiVersion": "v2", "name": "parent", "version": "1.0.0",
        "dependencies": [{"name": "harpoon", "version": "0.x.x", "condition": "harpoon.enabled"}]});
    fs::write(parent.join("Chart.yaml"), meta.to_string()).unwrap();
    for (enabled, sets) in [(true, 1), (false, 0)] {
        let mut helm = bed::tool("helm");
        helm.args(["template", "parent"]).arg(parent);
        let set = format!("harpoon.enabled={enabled}");
        let objects = parse(&text_of(helm.args(["--set", &set]).output().unwrap()));
        let found = objects.iter().filter(|o| o["kind"] == "DaemonSet").count();
        assert_eq!(found, sets, "{set}");
    }
}

#[test]
fn likeliest_failures_are_documented_everywhere() {
    let root = deploy("..");
    for page in [
        "README.md",
        "docs/troubleshooting.md",
        "deploy/chart/README.md",
        "deploy/chart/templates/NOTES.txt",
    ] {
        let text = fs::read_to_string(root.join(page)).expect(page);
        for (failure, fix) in [
            ("ErrImagePull", "image.repository"),
            ("FailedMount", "RUNTIME_ENDPOINT"),
            ("violates PodSecurity", "pod-security.kubernetes.io/enforce"),
            (
                "unable to validate against any security context constraint",
                "openshift.enabled",
            ),
        ] {
            assert!(
                text.contains(failure) && text.contains(fix),
                "{page}: {failure}"
            );
        }
    }
}

#[test]
fn fast_fill_mounts_store_writable() {
    for (runtime, root, registries) in [
        (
            "containerd",
            "/var/lib/containerd",
            "/etc/containerd/certs.d",
        ),
        (
            "k3s",
            "/var/lib/rancher/k3s/agent/containerd",
            "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
        ),
    ] {
        for mode in ["once", "continuous"] {
            let values = json!({"mode": mode, "runtime": runtime, "fastFill": {"enabled": true}});
            let objects = rendered(&values);
            let pod = pod(&objects);
            let run = match mode {
                "once" => &pod["initContainers"][0],
                _ => &pod["containers"][0],
            };
            let snapshots = format!("{root}/io.containerd.snapshotter.v1.overlayfs");
            assert_eq!(
                *named(&run["volumeMounts"], "snapshots"),
                json!({"name": "snapshots", "mountPath": snapshots})
            );
            let content = format!("{root}/io.containerd.content.v1.content");
            assert_eq!(
                *named(&run["volumeMounts"], "content"),
                json!({"name": "content", "mountPath": content})
            );
            assert_eq!(
                *named(&run["volumeMounts"], "registries"),
                json!({"name": "registries", "mountPath": registries, "readOnly": true})
            );
            let security = &run["securityContext"];
            assert_eq!(security["runAsUser"], 0);
            assert_eq!(security["allowPrivilegeEscalation"], false);
            let added = [
                "CHOWN",
                "DAC_OVERRIDE",
                "FOWNER",
                "FSETID",
                "MKNOD",
                "SETFCAP",
            ];
            assert_eq!(
                security["capabilities"],
                json!({"add": added, "drop": ["ALL"]})
            );
            assert_eq!(pod["hostNetwork"], Value::Null);
        }
    }
    let other = json!({"fastFill": {"enabled": true, "root": "/data/containerd"}});
    let objects = rendered(&other);
    let snapshots = named(&pod(&objects)["volumes"], "snapshots");
    assert_eq!(
        snapshots["hostPath"]["path"],
        "/data/containerd/io.containerd.snapshotter.v1.overlayfs"
    );
    for (root, path, directory) in [
        ("", "", "/etc/containerd/certs.d"),
        ("", "/data/certs.d", "/data/certs.d"),
        (
            "/data/k3s/agent/containerd",
            "",
            "/data/k3s/agent/etc/containerd/certs.d",
        ),
    ] {
        let fast = json!({"enabled": true, "root": root, "configPath": path});
        let objects = rendered(&json!({"fastFill": fast}));
        let registries = named(&pod(&objects)["volumes"], "registries");
        assert_eq!(registries["hostPath"]["path"], directory);
    }
    let on_node = json!({"fastFill": {"enabled": true, "hostNetwork": true}});
    assert_eq!(pod(&rendered(&on_node))["hostNetwork"], true);
    let unused = json!({"fastFill": {"hostNetwork": true}});
    assert_eq!(pod(&rendered(&unused))["hostNetwork"], Value::Null);
    let crio = json!({"runtime": "crio", "fastFill": {"enabled": true}});
    assert_refused(&crio, "fastFill.enabled requires containerd");
}
