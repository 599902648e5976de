//! Ownership: images that only live pods have, idle workloads, and references rather than names.

use serde_json::{Value, json};

use super::super::bed::{Kubernetes, kubernetes, unique};
use super::workloads::{cronjob, ended_job, job, labelled, made, owned, pod, pod_in};
use super::{Expected, Row, found, plan, rows, spec, templated, warnings};

const DEPLOYMENTS: &str = "apps/v1/deployments";
const REPLICASETS: &str = "apps/v1/replicasets";
const JOBS: &str = "batch/v1/jobs";
const CRONJOBS: &str = "batch/v1beta1/cronjobs";
const PODS: &str = "v1/pods";

/// Checks that the plan for these kinds has exactly these images, in any order.
#[track_caller]
fn check(cluster: &Kubernetes, namespace: &str, arguments: &[&str], expected: Expected<'_>) {
    let plan = plan(cluster, cluster.server(), cluster.token(), namespace).args(arguments);
    let output = plan.run().expect(0);
    assert_eq!(warnings(&output), [] as [&str; 0]);
    let sorted = |mut rows: Vec<Row>| {
        rows.sort();
        rows
    };
    assert_eq!(
        sorted(found(&output)),
        sorted(rows(namespace, expected)),
        "{arguments:?}"
    );
}

/// A pod of several containers.
fn pod_of(name: &str, images: &[&str]) -> Value {
    json!({"metadata": {"name": name}, "spec": spec(images)})
}

/// Creates a pod with one image that is being deleted.
fn deleting_pod(cluster: &Kubernetes, namespace: &str, mut pod: Value) {
    pod["metadata"]["finalizers"] = json!(["example.org/wait"]);
    let pod = made(cluster, namespace, PODS, pod);
    let name = pod["metadata"]["name"].as_str().unwrap();
    cluster.delete(&format!("/api/v1/namespaces/{namespace}/pods/{name}"));
}

#[test]
fn images_of_live_pods_count() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let make = |collection: &str, object: Value| made(cluster, &namespace, collection, object);
    // A paused rollout: the newer pods have a sidecar, and their registry was rewritten.
    let web = make(
        DEPLOYMENTS,
        templated("web", "web:2", json!({"replicas": 3})),
    );
    let set = |name: &str, image: &str, replicas: u64| {
        let set = templated(name, image, json!({"replicas": replicas}));
        make(REPLICASETS, owned(set, &web))
    };
    let newer = set("web-7c9", "web:2", 2);
    let older = set("web-5d8", "web:1", 1);
    set("web-4f4", "web:0", 0);
    for name in ["web-7c9-a", "web-7c9-b"] {
        let mut pod = pod_of(name, &["mirror.example/web:2", "mesh:1"]);
        pod["spec"]["initContainers"] = json!([{"name": "init", "image": "mesh-init:1"}]);
        let pod = labelled(pod, json!({"pod-template-hash": "7c9"}));
        make(PODS, owned(pod, &newer));
    }
    let old = |pod: Value| owned(labelled(pod, json!({"pod-template-hash": "5d8"})), &older);
    make(PODS, old(pod_of("web-5d8-a", &["web:1", "mesh:1"])));
    make(PODS, old(pod_in("Failed", "web-5d8-b", "failed:1")));
    make(PODS, old(pod_in("Succeeded", "web-5d8-c", "ended:1")));
    deleting_pod(cluster, &namespace, old(pod("web-5d8-d", "gone:1")));
    // OnDelete: the pod has the image that the set had when the pod was created.
    let db = json!({"replicas": 2, "serviceName": "db", "updateStrategy": {"type": "OnDelete"}});
    let db = make("apps/v1/statefulsets", templated("db", "db:2", db));
    make(PODS, owned(pod("db-0", "db:1"), &db));
    make(PODS, owned(pod("db-1", "db:2"), &db));
    let agent = make(
        "apps/v1/daemonsets",
        templated("agent", "agent:1", json!({})),
    );
    make(
        PODS,
        owned(pod_of("agent-a", &["agent:1", "mesh:1"]), &agent),
    );
    // Running since before its CronJob changed.
    let cron = make(CRONJOBS, cronjob("nightly", "cron:2", false));
    let nightly = make(JOBS, owned(job("nightly-1", "cron:1", json!({})), &cron));
    make(PODS, owned(pod("nightly-1-x", "cron:1"), &nightly));

    let of_web: &[&str] = &["Deployment/web"];
    check(
        cluster,
        &namespace,
        &["--workloads", "all"],
        &[
            ("web:2", 3, of_web),
            ("mirror.example/web:2", 2, of_web),
            ("mesh-init:1", 2, of_web),
            ("web:1", 1, of_web),
            ("mesh:1", 4, &["DaemonSet/agent", "Deployment/web"]),
            ("db:2", 2, &["StatefulSet/db"]),
            ("db:1", 1, &["StatefulSet/db"]),
            ("agent:1", 0, &["DaemonSet/agent"]),
            ("cron:2", 1, &["CronJob/nightly"]),
            ("cron:1", 1, &["CronJob/nightly"]),
        ],
    );
    let deployment: Expected<'_> = &[
        ("web:2", 3, of_web),
        ("mirror.example/web:2", 2, of_web),
        ("mesh-init:1", 2, of_web),
        ("web:1", 1, of_web),
        ("mesh:1", 3, of_web),
    ];
    let selected = ["--selector", "pod-template-hash"];
    let selected = ["--workloads", "deployments,pods"].iter().chain(&selected);
    // Without the Deployment itself its pods count for themselves.
    check(
        cluster,
        &namespace,
        &selected.copied().collect::<Vec<_>>(),
        &[
            ("mesh-init:1", 2, &["Pod/web-7c9-a", "Pod/web-7c9-b"]),
            (
                "mesh:1",
                3,
                &["Pod/web-5d8-a", "Pod/web-7c9-a", "Pod/web-7c9-b"],
            ),
            (
                "mirror.example/web:2",
                2,
                &["Pod/web-7c9-a", "Pod/web-7c9-b"],
            ),
            ("web:1", 1, &["Pod/web-5d8-a"]),
        ],
    );
    let rest: Expected<'_> = &[
        ("db:1", 1, &["Pod/db-0"]),
        ("db:2", 1, &["Pod/db-1"]),
        ("agent:1", 1, &["Pod/agent-a"]),
        ("mesh:1", 4, &["Deployment/web", "Pod/agent-a"]),
        ("cron:1", 1, &["Pod/nightly-1-x"]),
    ];
    check(
        cluster,
        &namespace,
        &["--workloads", "deployments,pods"],
        &[&deployment[..4], rest].concat(),
    );
    check(
        cluster,
        &namespace,
        &["--workloads", "deployments,replicasets"],
        &[("web:2", 3, of_web), ("web:1", 1, of_web)],
    );
}

#[test]
fn idle_workloads_are_no_candidates() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let make = |collection: &str, object: Value| made(cluster, &namespace, collection, object);
    let replicas = |count: u64| json!({"replicas": count});
    make(DEPLOYMENTS, templated("asleep", "asleep:1", replicas(0)));
    let web = make(DEPLOYMENTS, templated("web", "web:12", replicas(2)));
    for version in 1..=11 {
        let (name, image) = (format!("web-{version}"), format!("web:{version}"));
        let set = templated(&name, &image, replicas(0));
        make(REPLICASETS, owned(set, &web));
    }
    let set = templated("web-12", "web:12", replicas(2));
    make(REPLICASETS, owned(set, &web));
    make(REPLICASETS, templated("alone", "alone:1", replicas(0)));
    let stopped = make(CRONJOBS, cronjob("stopped", "cron:1", true));
    make(JOBS, ended_job("done", "done:1", "Complete"));
    // Started by hand, of a CronJob that serves as a template.
    make(JOBS, owned(job("by-hand", "cron:1", json!({})), &stopped));

    let active: Expected<'_> = &[
        ("asleep:1", 0, &["Deployment/asleep"]),
        ("web:12", 2, &["Deployment/web"]),
        ("alone:1", 0, &["ReplicaSet/alone"]),
    ];
    let all = ["--workloads", "all"];
    let by_hand: Expected<'_> = &[("cron:1", 1, &["Job/by-hand"])];
    check(cluster, &namespace, &all, &[active, by_hand].concat());
    check(
        cluster,
        &namespace,
        &["--workloads", "replicasets"],
        &[
            ("web:12", 2, &["ReplicaSet/web-12"]),
            ("alone:1", 0, &["ReplicaSet/alone"]),
        ],
    );
    check(cluster, &namespace, &["--workloads", "cronjobs"], &[]);
    let idle: Expected<'_> = &[("cron:1", 0, &["CronJob/stopped"])];
    check(
        cluster,
        &namespace,
        &["--workloads", "all", "--include-idle"],
        &[active, idle].concat(),
    );
}

#[test]
fn hand_made_job_is_not_hidden() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let make = |collection: &str, object: Value| made(cluster, &namespace, collection, object);
    make(CRONJOBS, cronjob("backup", "backup:1", false));
    let by_hand = make(JOBS, job("backup-20250101", "restore:1", json!({})));
    make(PODS, owned(pod("backup-20250101-x", "restore:1"), &by_hand));
    let backup = ("backup:1", 1, &["CronJob/backup"] as &[&str]);
    check(
        cluster,
        &namespace,
        &["--workloads", "cronjobs,pods"],
        &[backup, ("restore:1", 1, &["Pod/backup-20250101-x"])],
    );
    let job: Expected<'_> = &[backup, ("restore:1", 1, &["Job/backup-20250101"])];
    for kinds in ["cronjobs,jobs", "all"] {
        check(cluster, &namespace, &["--workloads", kinds], job);
    }
}

#[test]
fn namesake_of_owner_hides_nothing() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let make = |collection: &str, object: Value| made(cluster, &namespace, collection, object);
    // An owner that was deleted without what it owned, and made anew.
    let (path, orphan) = (
        format!("/apis/apps/v1/namespaces/{namespace}/replicasets/set"),
        make(REPLICASETS, templated("set", "set:1", json!({}))),
    );
    make(PODS, owned(pod("set-a", "pod:1"), &orphan));
    cluster.delete(&path);
    make(REPLICASETS, templated("set", "set:1", json!({})));
    check(
        cluster,
        &namespace,
        &["--workloads", "all"],
        &[
            ("set:1", 1, &["ReplicaSet/set"]),
            ("pod:1", 1, &["Pod/set-a"]),
        ],
    );
}

#[test]
fn live_pods_are_matched_individually() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let make = |collection: &str, object: Value| made(cluster, &namespace, collection, object);
    let node = unique("node");
    cluster.create(
        "/api/v1/nodes",
        json!({"metadata": {"name": node, "labels": {"pool": "gpu"}},
            "spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}}),
    );
    let placed = |name: &str, images: &[&str], more: Value| {
        let mut pod = pod_of(name, images);
        for (key, value) in more.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        pod
    };
    let tolerations = json!([{"key": "gpu", "operator": "Exists"}]);
    // An admission plugin adds the toleration to the pods; one of them was sent to another pool.
    let train = make(DEPLOYMENTS, templated("train", "train:1", json!({})));
    let fits = placed(
        "train-a",
        &["train:1", "mesh:1"],
        json!({"tolerations": tolerations}),
    );
    let elsewhere = json!({"tolerations": tolerations, "nodeSelector": {"pool": "cpu"}});
    let elsewhere = placed("train-b", &["train:1", "mesh:1", "cpu:1"], elsewhere);
    let set = make(
        REPLICASETS,
        owned(templated("train-1", "train:1", json!({})), &train),
    );
    make(PODS, owned(fits, &set));
    make(PODS, owned(elsewhere, &set));
    // The DaemonSet controller pins each pod to its node, which says nothing of the others.
    let mut agent = templated("agent", "agent:1", json!({}));
    agent["spec"]["template"]["spec"]["tolerations"] = tolerations.clone();
    let agent = make("apps/v1/daemonsets", agent);
    let pinned = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms":
        [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["other"]}]}]}}});
    let pinned = json!({"tolerations": tolerations, "affinity": pinned});
    make(
        PODS,
        owned(placed("agent-a", &["agent:1", "side:1"], pinned), &agent),
    );

    let plan = plan(cluster, cluster.server(), cluster.token(), &namespace);
    let plan = plan.args(["--workloads", "all", "--node-name", &node]);
    let output = plan.run().expect(0);
    let images = output.json()["images"].as_array().unwrap().clone();
    let mut seen: Vec<String> = images
        .iter()
        .map(|image| {
            format!("{} {} {}", image["image"], image["action"], image["pods"]).replace('"', "")
        })
        .collect();
    seen.sort();
    assert_eq!(
        seen,
        [
            "agent:1 pull 0",
            "cpu:1 skip 1",
            "mesh:1 pull 1",
            "side:1 pull 1",
            "train:1 pull 1"
        ],
        "{output}"
    );
}
