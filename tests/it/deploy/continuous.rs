//! The chart's mode `continuous`: its objects, their rights, and what an API server lets an agent do.

use std::collections::BTreeSet;
use std::fs;

use reqwest::Method;
use serde_json::{Value, json};

use super::values::{valid_settings, variables_of};
use super::{
    FOREIGN, all_variants, assert_holds, assert_refused, chart, deploy, parse, rendered,
    template_with, text_of,
};
use crate::bed::{self, Kubernetes};

/// The values files of this mode.
fn continuous() -> Vec<(String, Vec<Value>)> {
    let mut variants = all_variants(&[]);
    variants.retain(|name, _| name.starts_with("continuous"));
    assert!(variants.len() >= 3);
    variants.into_iter().collect()
}

#[track_caller]
fn one<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    match (found.next(), found.next()) {
        (Some(object), None) => object,
        _ => panic!("not one {kind}"),
    }
}

fn pod<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    &one(objects, kind)["spec"]["template"]["spec"]
}

fn is_installed(objects: &[Value], kind: &str) -> bool {
    objects.iter().any(|object| object["kind"] == kind)
}

#[test]
fn pods_of_continuous_mode_are_restricted() {
    for (variant, objects) in continuous() {
        for kind in ["DaemonSet", "Deployment"] {
            let pod = pod(&objects, kind);
            assert_eq!(pod["automountServiceAccountToken"], false, "{variant}");
            assert_eq!(pod["initContainers"], Value::Null);
            let containers = pod["containers"].as_array().unwrap();
            assert_eq!(containers.len(), 1, "{variant}");
            let security = &containers[0]["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}));
            assert_eq!(security["privileged"], Value::Null);
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
            let profile = &pod["securityContext"]["seccompProfile"]["type"];
            assert_eq!(profile, "RuntimeDefault");
            for forbidden in ["hostPID", "hostIPC", "shareProcessNamespace"] {
                assert_eq!(pod[forbidden], Value::Null);
            }
            for resource in ["requests", "limits"] {
                assert!(containers[0]["resources"][resource]["memory"].is_string());
            }
            for mount in containers[0]["volumeMounts"].as_array().unwrap() {
                assert_eq!(mount["readOnly"], true, "{variant}");
            }
            for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
                let get = &containers[0][probe]["httpGet"];
                assert_eq!(get, &json!({"path": path, "port": "metrics"}));
            }
            let port = &containers[0]["ports"][0]["containerPort"];
            let address = containers[0]["env"].as_array().unwrap().iter();
            let address = address.clone().find(|v| v["name"] == "METRICS_ADDRESS");
            let address = address.unwrap()["value"].as_str().unwrap();
            assert!(address.ends_with(&format!(":{port}")), "{address} {port}");
        }
        // The controller has nothing of its node.
        let controller = pod(&objects, "Deployment");
        assert_eq!(controller["hostNetwork"], Value::Null);
        let volumes = controller["volumes"].as_array().unwrap();
        let names: Vec<_> = volumes.iter().map(|volume| &volume["name"]).collect();
        assert_eq!(names, ["token"], "{variant}");
        let agent = pod(&objects, "DaemonSet");
        let paths = agent["volumes"].as_array().unwrap().iter();
        let paths: Vec<_> = paths
            .filter_map(|v| v["hostPath"]["path"].as_str())
            .collect();
        assert!(
            paths.iter().all(|path| path.matches('/').count() > 1),
            "{paths:?}"
        );
        assert_eq!(agent["containers"][0]["env"][0]["name"], "NODE_NAME");
    }
}

#[test]
fn controller_is_replicated() {
    let objects = rendered(&json!({"mode": "continuous"}));
    let deployment = one(&objects, "Deployment");
    assert_eq!(deployment["spec"]["replicas"], 2);
    let rolling = &deployment["spec"]["strategy"]["rollingUpdate"];
    assert_eq!(rolling, &json!({"maxSurge": 1, "maxUnavailable": 0}));
    let spread = &pod(&objects, "Deployment")["topologySpreadConstraints"];
    assert_eq!(spread.as_array().unwrap().len(), 2);
    let labels = &deployment["spec"]["selector"];
    for constraint in spread.as_array().unwrap() {
        assert_eq!(constraint["labelSelector"], *labels);
    }
    let budget = one(&objects, "PodDisruptionBudget");
    assert_eq!(budget["spec"]["selector"], *labels);
    assert_eq!(budget["apiVersion"], "policy/v1");
    let single = json!({"mode": "continuous", "continuous": {"controller": {"replicas": 1}}});
    assert!(!is_installed(&rendered(&single), "PodDisruptionBudget"));
    // The selectors of the two parts share no pod.
    let agent = &one(&objects, "DaemonSet")["spec"]["selector"]["matchLabels"];
    assert_ne!(*agent, labels["matchLabels"]);
}

/// All rights of an account, as `PLACE: VERB RESOURCE.GROUP [NAME]`.
fn rights(objects: &[Value], account: &str) -> BTreeSet<String> {
    let strings = |list: &Value| -> Vec<String> {
        let items = list.as_array().into_iter().flatten();
        items
            .map(|item| item.as_str().unwrap().to_owned())
            .collect()
    };
    let bindings = objects.iter().filter(|object| {
        let kind = object["kind"].as_str().unwrap();
        let subjects = &object["subjects"];
        kind.ends_with("Binding") && subjects.is_array() && subjects[0]["name"] == account
    });
    let mut rights = BTreeSet::new();
    for binding in bindings {
        assert_eq!(binding["subjects"].as_array().unwrap().len(), 1);
        let role = objects.iter().find(|object| {
            object["kind"] == binding["roleRef"]["kind"]
                && object["metadata"] == binding["metadata"]
        });
        let role = role.unwrap_or_else(|| panic!("no role of {binding}"));
        let place = role["metadata"]["namespace"].as_str().unwrap_or("*");
        for rule in role["rules"].as_array().unwrap() {
            let group = &strings(&rule["apiGroups"])[0];
            let names = strings(&rule["resourceNames"]).join(",");
            let verbs = strings(&rule["verbs"]).join(",");
            for resource in strings(&rule["resources"]) {
                rights.insert(format!("{place}: {verbs} {resource}.{group} {names}"));
            }
        }
    }
    rights
}

#[track_caller]
fn check_rights(objects: &[Value], account: &str, expected: &[&str]) {
    let expected: BTreeSet<_> = expected.iter().map(|right| (*right).to_owned()).collect();
    assert_eq!(rights(objects, account), expected);
}

const AGENT: [&str; 4] = [
    "*: get,list,watch plannedimages.harpoon.dev ",
    "*: create,patch nodeprefetches.harpoon.dev ",
    "*: patch nodeprefetches/status.harpoon.dev ",
    "*: get,list,watch nodes. ",
];

const CONTROLLER: [&str; 8] = [
    "*: get,list,watch imageprefetches.harpoon.dev ",
    "*: get,list,watch nodeprefetches.harpoon.dev ",
    "*: patch imageprefetches/status.harpoon.dev ",
    "*: get,list,watch,create,update,patch,delete plannedimages.harpoon.dev ",
    "*: get runtimeclasses.node.k8s.io ",
    "harpoon: create leases.coordination.k8s.io ",
    "harpoon: get,update,patch leases.coordination.k8s.io harpoon-controller",
    "default: create,patch events.events.k8s.io ",
];

#[test]
fn rights_of_both_parts_are_exact() {
    let objects = rendered(&json!({"mode": "continuous"}));
    check_rights(&objects, "harpoon-agent", &AGENT);
    let workloads = [
        "*: get,list,watch namespaces. ",
        "*: get,list,watch deployments.apps ",
        "*: get,list,watch statefulsets.apps ",
        "*: get,list,watch daemonsets.apps ",
        "*: get,list,watch jobs.batch ",
        "*: get,list,watch cronjobs.batch ",
    ];
    check_rights(
        &objects,
        "harpoon-controller",
        &[&CONTROLLER[..], &workloads].concat(),
    );
}

#[test]
fn rights_follow_from_continuous_values() {
    let values = json!({"mode": "continuous", "prefetch": {"workloads": {"kinds": ["Pod"]},
        "pullSecrets": [{"namespace": "shop", "name": "a"}]},
        "continuous": {"workloadKinds": ["ReplicaSet"], "namespaces": ["shop", "web"],
            "pullSecrets": [{"namespace": "web", "name": "b"}, {"namespace": "shop", "name": "a"}]}});
    let objects = rendered(&values);
    let secrets = ["shop: get secrets. a", "web: get secrets. b"];
    check_rights(&objects, "harpoon-agent", &[&AGENT[..], &secrets].concat());
    let workloads = [
        "shop: get,list,watch replicasets.apps ",
        "shop: get,list,watch pods. ",
        "web: get,list,watch replicasets.apps ",
        "web: get,list,watch pods. ",
    ];
    check_rights(
        &objects,
        "harpoon-controller",
        &[&CONTROLLER[..], &workloads].concat(),
    );
}

#[test]
fn node_gate_adds_rights_and_tolerations() {
    let gate = ["*: get,list,watch,patch nodes. ", "*: patch nodes/status. "];
    let of_nodes = |objects: &[Value]| -> BTreeSet<String> {
        let mut rights = rights(objects, "harpoon-controller");
        rights.retain(|right| right.contains(" nodes"));
        rights
    };
    let expected = BTreeSet::from(gate.map(str::to_owned));
    for values in [
        json!({"mode": "continuous", "continuous": {"nodeGate": true}, "tolerations": [{"key": "a", "operator": "Exists"}]}),
        json!({"mode": "continuous", "prefetch": {"images": ["a"], "nodeGate": {"timeout": "5m"}}, "tolerations": []}),
    ] {
        let objects = rendered(&values);
        assert_eq!(of_nodes(&objects), expected);
        check_rights(&objects, "harpoon-agent", &AGENT);
        let tolerations = pod(&objects, "DaemonSet")["tolerations"].to_string();
        for key in [
            "harpoon.dev/not-prefetched",
            "startup-taint.cluster-autoscaler.kubernetes.io/harpoon",
        ] {
            assert!(tolerations.contains(key), "{tolerations}");
        }
    }
    // By default there is no right, and agents tolerate everything.
    let objects = rendered(&json!({"mode": "continuous", "continuous": {"nodeGate": false}}));
    assert!(of_nodes(&objects).is_empty());
    let all = json!([{"operator": "Exists"}]);
    assert_eq!(pod(&objects, "DaemonSet")["tolerations"], all);
    let objects = rendered(&json!({"mode": "continuous", "continuous": {"nodeGate": true}}));
    assert_eq!(pod(&objects, "DaemonSet")["tolerations"], all);
}

#[test]
fn modes_share_no_pods_or_accounts() {
    let names = |mode: &str| -> BTreeSet<String> {
        let objects = rendered(&json!({"mode": mode})).into_iter();
        let names =
            objects.map(|object| format!("{} {}", object["kind"], object["metadata"]["name"]));
        names.collect()
    };
    let (once, continuous) = (names("once"), names("continuous"));
    // Helm deletes what the other mode does not have. An object that both have must be alike.
    let both: Vec<_> = once.intersection(&continuous).collect();
    assert_eq!(both, [r#""PriorityClass" "harpoon-harpoon""#]);
}

#[test]
fn prefetch_becomes_image_prefetch() {
    let values = json!({"mode": "continuous", "prefetch": {"workloads": null, "limit": 1_000_000, "seal": "Never",
        "rollout": {"type": "Doubling", "startNodes": 100_000}}});
    let objects = rendered(&values);
    let prefetch = one(&objects, "ImagePrefetch");
    assert_eq!(prefetch["metadata"]["name"], "harpoon");
    let expected = json!({"source": {"workloads": {}}, "limit": 1_000_000, "seal": "Never",
        "rollout": {"type": "Doubling", "startNodes": 100_000}});
    assert_eq!(prefetch["spec"], expected);
    assert!(!is_installed(
        &rendered(&json!({"mode": "continuous"})),
        "ImagePrefetch"
    ));
}

#[test]
fn settings_reach_agent_and_controller() {
    let values = json!({"mode": "continuous", "settings": {"RESYNC": "5m", "CONCURRENCY": 8, "LOG_LEVEL": "debug", "INCLUDE_IDLE": true,
        "RUNTIME_ENDPOINT": "unix:///opt/cri/cri.sock"}, "registrySecret": "own", "cloud": "eks"});
    let objects = rendered(&values);
    let names = |kind: &str| -> Vec<String> {
        let variables = pod(&objects, kind)["containers"][0]["env"].clone();
        let variables = variables.as_array().unwrap().iter();
        variables
            .map(|v| v["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let agent = [
        "NODE_NAME",
        "METRICS_ADDRESS",
        "CONCURRENCY",
        "LOG_LEVEL",
        "RESYNC",
        "RUNTIME_ENDPOINT",
        "REGISTRY_CONFIG",
        "CREDENTIAL_PROVIDER_CONFIG",
        "CREDENTIAL_PROVIDER_BIN_DIR",
    ];
    assert_eq!(names("DaemonSet"), agent);
    let controller = [
        "POD_NAMESPACE",
        "LEADER_ELECTION_LEASE",
        "METRICS_ADDRESS",
        "INCLUDE_IDLE",
        "LOG_LEVEL",
    ];
    assert_eq!(names("Deployment"), controller);
    let mounts = &pod(&objects, "DaemonSet")["containers"][0]["volumeMounts"];
    assert_eq!(mounts[0]["mountPath"], "/opt/cri");
}

#[test]
fn image_file_system_is_mounted_read_only() {
    let directory = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs";
    let values = json!({"mode": "continuous", "continuous": {"imageFilesystem": directory}});
    let objects = rendered(&values);
    let agent = pod(&objects, "DaemonSet");
    let find = |list: &Value| {
        let mut all = list.as_array().unwrap().iter();
        all.find(|entry| entry["name"] == "imagefs").cloned()
    };
    let mount = json!({"name": "imagefs", "mountPath": directory, "readOnly": true});
    assert_eq!(find(&agent["containers"][0]["volumeMounts"]), Some(mount));
    let volume = find(&agent["volumes"]).unwrap();
    assert_eq!(
        volume["hostPath"],
        json!({"path": directory, "type": "Directory"})
    );
    let without = rendered(&json!({"mode": "continuous"}));
    assert_eq!(find(&pod(&without, "DaemonSet")["volumes"]), None);
}

#[test]
fn settings_without_a_use_are_refused() {
    let mut settings = valid_settings();
    for (name, value) in [
        ("SEAL", "never"),
        ("SEAL_TTL", "24h"),
        ("RESYNC", "5m"),
        ("DISK_HIGH_PERCENT", "75"),
    ] {
        settings[name] = json!(value);
    }
    let (of_agent, of_controller) = (variables_of("agent"), variables_of("controller"));
    for (name, value) in settings.as_object().unwrap() {
        let output = chart(&json!({"mode": "continuous", "settings": {name: value}}));
        let stderr = String::from_utf8_lossy(&output.stderr);
        let is_accepted = output.status.success();
        let is_used = of_agent.contains(name) || of_controller.contains(name);
        assert_eq!(is_accepted, is_used, "{name}: {stderr}");
    }
}

#[test]
fn wrong_continuous_values_are_refused() {
    let continuous = |values: Value| {
        let mut values = values;
        values["mode"] = json!("continuous");
        values
    };
    for (values, named) in [
        (json!({"mode": "always"}), "mode"),
        (
            json!({"prefetch": {"workloads": {}}}),
            "prefetch requires mode: continuous",
        ),
        (
            json!({"settings": {"RESYNC": "1m"}}),
            "settings.RESYNC requires mode: continuous",
        ),
        (
            json!({"settings": {"DISK_HIGH_PERCENT": 75}}),
            "settings.DISK_HIGH_PERCENT requires mode: continuous",
        ),
        (
            continuous(json!({"settings": {"DISK_HIGH_PERCENT": 5}})),
            "DISK_HIGH_PERCENT",
        ),
        (
            continuous(json!({"images": ["nginx"]})),
            "list the images in prefetch.images",
        ),
        (
            continuous(json!({"settings": {"NAMESPACES": "*"}})),
            "the spec of an ImagePrefetch says it",
        ),
        (
            continuous(json!({"settings": {"FAIL_ON": "any"}})),
            "settings.FAIL_ON has no meaning",
        ),
        (
            continuous(json!({"settings": {"REFRESH": true}})),
            "settings.REFRESH has no meaning",
        ),
        (
            continuous(json!({"settings": {"PULL_SECRETS": true}})),
            "continuous.pullSecrets",
        ),
        (
            continuous(json!({"secretNames": ["a"]})),
            "continuous.pullSecrets",
        ),
        (
            continuous(json!({"prefetch": {"limit": 3}})),
            "prefetch requires workloads or images",
        ),
        (
            continuous(json!({"prefetch": {"images": ["a"], "workloads": {}}})),
            "exclude each other",
        ),
        (continuous(json!({"prefetch": {"source": {}}})), "source"),
        (
            continuous(json!({"continuous": {"workloadKinds": ["Deploy"]}})),
            "workloadKinds",
        ),
        (
            continuous(json!({"continuous": {"metricsAddress": ":9464"}})),
            "metricsAddress",
        ),
        (
            continuous(json!({"continuous": {"pullSecrets": [{"name": "a"}]}})),
            "namespace",
        ),
        (
            continuous(json!({"serviceAccount": {"create": false}})),
            "requires serviceAccount.name",
        ),
        (
            continuous(json!({"extraEnv": [{"name": "METRICS_ADDRESS", "value": "a"}]})),
            "extraEnv: the chart sets",
        ),
    ] {
        assert_refused(&values, named);
    }
}

#[test]
fn old_releases_values_render_continuous_mode() {
    let values = json!({"mode": "continuous", "continuous": null, "prefetch": null});
    let objects = rendered(&values);
    assert_eq!(one(&objects, "Deployment")["spec"]["replicas"], 2);
    assert_eq!(rights(&objects, "harpoon-controller").len(), 14);
}

#[test]
fn policy_follows_the_api_server() {
    let policies = |policy: &str, known: &[&str]| {
        let directory = bed::directory();
        let file = directory.path().join("values.yaml");
        let values = json!({"mode": "continuous", "continuous": {"admissionPolicy": policy}});
        fs::write(&file, values.to_string()).unwrap();
        let objects = parse(&text_of(template_with(&file, known)));
        is_installed(&objects, "ValidatingAdmissionPolicy")
    };
    let api = "--api-versions=admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy";
    assert!(!policies("auto", &[]));
    assert!(policies("auto", &[api]));
    assert!(policies("always", &[]));
    assert!(!policies("never", &[api]));
}

/// Applies objects as a user does.
pub(super) fn apply(cluster: &Kubernetes, objects: &[Value], options: &[&str]) -> Value {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
    let directory = bed::directory();
    let file = directory.path().join("objects.json");
    fs::write(&file, list.to_string()).unwrap();
    let mut kubectl = bed::tool("kubectl");
    kubectl.arg("--kubeconfig").arg(cluster.kubeconfig());
    kubectl.args(["apply", "-o", "json", "-f"]).arg(&file);
    serde_json::from_str(&bed::run(kubectl.args(options))).unwrap()
}

#[test]
fn current_api_server_accepts_continuous_mode() {
    let cluster = bed::apiserver();
    for namespace in ["harpoon", "fleet-system", "shop", "web"] {
        cluster.ensure_namespace(namespace);
    }
    let known = |object: &Value| !FOREIGN.contains(&object["kind"].as_str().unwrap());
    let api = "--api-versions=admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy";
    let mut sets = all_variants(&[api]);
    for file in ["continuous.yaml", "continuous-admission-policy.yaml"] {
        let text = fs::read_to_string(deploy(file)).unwrap();
        sets.insert(file.to_owned(), parse(&text));
    }
    sets.retain(|name, _| name.starts_with("continuous"));
    for (variant, mut objects) in sets {
        objects.retain(known);
        let answer = apply(cluster, &objects, &["--dry-run=server"]);
        let answers = answer["items"].as_array().unwrap();
        for (answer, object) in answers.iter().zip(&objects) {
            assert_holds(answer, object, &format!("{variant}: {}", object["kind"]));
        }
    }
}

/// The objects of the chart for agents on an API server, and requests of one agent.
struct Installed<'a> {
    cluster: &'a Kubernetes,
    account: String,
}

impl Installed<'_> {
    /// The status and the answer to a request of the agent on this node; `None` is a token without a node's name.
    fn request(
        &self,
        node: Option<&str>,
        method: &Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, String) {
        let mut headers = vec![
            ("impersonate-user".to_owned(), self.account.clone()),
            (
                "impersonate-group".to_owned(),
                "system:serviceaccounts".to_owned(),
            ),
        ];
        if let Some(node) = node {
            let extra = "impersonate-extra-authentication.kubernetes.io%2fnode-name";
            headers.push((extra.to_owned(), node.to_owned()));
        }
        self.cluster.request_as(&headers, method, path, body)
    }

    /// Server-side apply of a NodePrefetch, or of its status.
    fn write(&self, node: Option<&str>, name: &str, below: &str) -> (u16, String) {
        let path = format!(
            "/apis/harpoon.dev/v1alpha1/nodeprefetches/{name}{below}?fieldManager=harpoon-agent&force=true"
        );
        let mut object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "NodePrefetch", "metadata": {"name": name}});
        if !below.is_empty() {
            object["status"] = json!({"desired": 1, "present": 1, "pulling": 0, "failed": 0});
        }
        self.request(node, &Method::PATCH, &path, Some(object))
    }
}

#[test]
fn agent_writes_only_its_own_node() {
    let cluster = bed::apiserver();
    let namespace = cluster.namespace();
    let directory = bed::directory();
    let file = directory.path().join("values.yaml");
    let secrets = json!([{"namespace": namespace, "name": "named"}]);
    let values = json!({"mode": "continuous", "namespaceOverride": namespace, "continuous":
        {"admissionPolicy": "always", "pullSecrets": secrets}});
    fs::write(&file, values.to_string()).unwrap();
    let mut objects = parse(&text_of(template_with(&file, &[])));
    objects.retain(|object| {
        let kind = object["kind"].as_str().unwrap();
        !["DaemonSet", "Deployment", "PodDisruptionBudget"].contains(&kind)
    });
    apply(cluster, &objects, &[]);
    for name in ["named", "other"] {
        let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
        cluster.create(&secrets, json!({"metadata": {"name": name}}));
    }
    let [own, other, probe] = ["own", "other", "probe"].map(bed::unique);
    for name in [&own, &other] {
        cluster.create("/api/v1/nodes", json!({"metadata": {"name": name}}));
    }
    let agent = Installed {
        cluster,
        account: format!("system:serviceaccount:{namespace}:harpoon-agent"),
    };
    let node = Some(own.as_str());
    let denied = |name: &str, below: &str| {
        let (status, answer) = agent.write(node, name, below);
        status == 403 && answer.contains("only the NodePrefetch of its own node")
    };
    // An API server takes a moment to know a policy.
    let limit = std::time::Duration::from_secs(30);
    bed::eventually("the policy is known", limit, || denied(&probe, ""));
    for below in ["", "/status"] {
        let (status, answer) = agent.write(node, &own, below);
        assert!([200, 201].contains(&status), "{status}: {answer}");
        assert!(denied(&other, below), "{below}");
        if below.is_empty() {
            // The other node's agent makes it, and still the first may not change it.
            assert_eq!(agent.write(Some(&other), &other, "").0, 201);
            assert!(denied(&other, below));
        }
    }
    // A token without a node's name, as API servers before 1.30 make them, locks no agent out.
    assert_eq!(agent.write(None, &other, "/status").0, 200);
    check_refusals(&agent, &namespace, &own);
}

/// Requests that no agent may make: on nodes, other objects of harpoon, unnamed secrets.
fn check_refusals(agent: &Installed<'_>, namespace: &str, own: &str) {
    let node = Some(own);
    let get = |path: &str| agent.request(node, &Method::GET, path, None).0;
    assert_eq!(get(&format!("/api/v1/nodes/{own}")), 200);
    assert_eq!(get("/apis/harpoon.dev/v1alpha1/plannedimages"), 200);
    let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
    assert_eq!(get(&format!("{secrets}/named")), 200);
    assert_eq!(get(&format!("{secrets}/other")), 403);
    assert_eq!(get(&secrets), 403);
    assert_eq!(get("/api/v1/namespaces/default/secrets/named"), 403);
    assert_eq!(get("/apis/harpoon.dev/v1alpha1/imageprefetches"), 403);
    assert_eq!(get("/api/v1/pods"), 403);
    let patch = |path: &str| {
        let body = json!({"metadata": {"labels": {"pool": "gpu"}}});
        agent.request(node, &Method::PATCH, path, Some(body)).0
    };
    assert_eq!(patch(&format!("/api/v1/nodes/{own}")), 403);
    assert_eq!(patch(&format!("/api/v1/nodes/{own}/status")), 403);
    assert_eq!(patch("/apis/harpoon.dev/v1alpha1/plannedimages/a"), 403);
    let path = format!("/apis/harpoon.dev/v1alpha1/nodeprefetches/{own}");
    assert_eq!(agent.request(node, &Method::DELETE, &path, None).0, 403);
}
