//! Each kind of workload, its desired number of pods, and its owner.

use serde_json::{Value, json};

use super::super::bed::faulty::{Fault, Proxy};
use super::super::bed::{Harpoon, Kubernetes, kubernetes, unique};
use super::{Expected, by_kubeconfig, found, plan, rows, spec, templated, warnings};

/// Creates objects in a namespace: pairs of the collection's path, as in `apps/v1/deployments`, and the object.
fn create(cluster: &Kubernetes, namespace: &str, objects: &[(&str, Value)]) {
    for (collection, object) in objects {
        made(cluster, namespace, collection, object.clone());
    }
}

/// Creates one object and returns it as the API server has it.
pub(super) fn made(
    cluster: &Kubernetes,
    namespace: &str,
    collection: &str,
    object: Value,
) -> Value {
    let (version, plural) = collection.rsplit_once('/').unwrap();
    let base = if version == "v1" { "/api/" } else { "/apis/" };
    let path = format!("{base}{version}/namespaces/{namespace}/{plural}");
    let status = object.get("status").cloned();
    let made = cluster.create(&path, object);
    // On creation, the API server drops the status, which only a controller may set.
    if let Some(status) = status {
        let name = made["metadata"]["name"].as_str().unwrap();
        cluster.patch(&format!("{path}/{name}/status"), json!({"status": status}));
    }
    made
}

pub(super) fn pod(name: &str, image: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": spec(&[image])})
}

/// A pod in this phase.
pub(super) fn pod_in(phase: &str, name: &str, image: &str) -> Value {
    let mut pod = pod(name, image);
    pod["status"] = json!({"phase": phase});
    pod
}

pub(super) fn job(name: &str, image: &str, mut extra: Value) -> Value {
    let mut template = spec(&[image]);
    template["restartPolicy"] = json!("Never");
    extra["template"] = json!({"spec": template});
    json!({"metadata": {"name": name}, "spec": extra})
}

/// A finished Job, as its controller reports it.
pub(super) fn ended_job(name: &str, image: &str, condition: &str) -> Value {
    let mut job = job(name, image, json!({"parallelism": 7}));
    job["status"] = json!({"conditions": [{"type": condition, "status": "True"}]});
    job
}

pub(super) fn cronjob(name: &str, image: &str, suspend: bool) -> Value {
    let template = job(name, image, json!({}))["spec"].clone();
    json!({"metadata": {"name": name},
        "spec": {"schedule": "0 3 * * *", "suspend": suspend, "jobTemplate": {"spec": template}}})
}

/// Makes `owner`, an object that exists, the controller of the object.
pub(super) fn owned(mut object: Value, owner: &Value) -> Value {
    object["metadata"]["ownerReferences"] = json!([{"apiVersion": owner["apiVersion"], "kind": owner["kind"],
        "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], "controller": true}]);
    object
}

/// What an owner of another kind looks like (API version, kind, name).
fn other((version, kind, name): (&str, &str, &str)) -> Value {
    json!({"apiVersion": version, "kind": kind,
        "metadata": {"name": name, "uid": "8d6f2d6e-7c7d-4b8c-9d6e-0a1b2c3d4e5f"}})
}

pub(super) fn labelled(mut object: Value, labels: Value) -> Value {
    object["metadata"]["labels"] = labels;
    object
}

#[test]
fn each_kind_counts_desired_pods() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let daemons = json!({"desiredNumberScheduled": 5, "currentNumberScheduled": 1, "numberMisscheduled": 0, "numberReady": 0});
    let mut daemonset = templated("agent", "daemonset:5", json!({}));
    daemonset["status"] = daemons;
    let stateful = |name, image, mut extra: Value| {
        extra["serviceName"] = json!(name);
        templated(name, image, extra)
    };
    create(
        cluster,
        &namespace,
        &[
            (
                "apps/v1/deployments",
                templated("web", "deployment:3", json!({"replicas": 3})),
            ),
            (
                "apps/v1/deployments",
                templated("plain", "deployment:1", json!({})),
            ),
            (
                "apps/v1/deployments",
                templated("asleep", "deployment:0", json!({"replicas": 0})),
            ),
            (
                "apps/v1/statefulsets",
                stateful("db", "statefulset:2", json!({"replicas": 2})),
            ),
            (
                "apps/v1/statefulsets",
                stateful("plain", "statefulset:1", json!({})),
            ),
            ("apps/v1/daemonsets", daemonset),
            (
                "apps/v1/daemonsets",
                templated("nowhere", "daemonset:0", json!({})),
            ),
            (
                "apps/v1/replicasets",
                templated("set", "replicaset:4", json!({"replicas": 4})),
            ),
            (
                "batch/v1/jobs",
                job("wide", "job:6", json!({"parallelism": 6})),
            ),
            ("batch/v1/jobs", job("plain", "job:1", json!({}))),
            (
                "batch/v1/jobs",
                ended_job("complete", "job:complete", "Complete"),
            ),
            ("batch/v1/jobs", ended_job("failed", "job:failed", "Failed")),
            (
                "batch/v1beta1/cronjobs",
                cronjob("nightly", "cron:1", false),
            ),
            ("batch/v1beta1/cronjobs", cronjob("stopped", "cron:0", true)),
            ("v1/pods", pod("pending", "pod:pending")),
            ("v1/pods", pod_in("Running", "running", "pod:running")),
            ("v1/pods", pod_in("Succeeded", "succeeded", "pod:succeeded")),
            ("v1/pods", pod_in("Failed", "failed", "pod:failed")),
        ],
    );
    let table: &[(&str, Expected<'_>)] = &[
        (
            "deployments",
            &[
                ("deployment:3", 3, &["Deployment/web"]),
                ("deployment:1", 1, &["Deployment/plain"]),
                ("deployment:0", 0, &["Deployment/asleep"]),
            ],
        ),
        (
            "statefulsets",
            &[
                ("statefulset:2", 2, &["StatefulSet/db"]),
                ("statefulset:1", 1, &["StatefulSet/plain"]),
            ],
        ),
        (
            "daemonsets",
            &[
                ("daemonset:5", 5, &["DaemonSet/agent"]),
                ("daemonset:0", 0, &["DaemonSet/nowhere"]),
            ],
        ),
        ("replicasets", &[("replicaset:4", 4, &["ReplicaSet/set"])]),
        (
            "jobs",
            &[("job:6", 6, &["Job/wide"]), ("job:1", 1, &["Job/plain"])],
        ),
        (
            "cronjobs",
            &[
                ("cron:1", 1, &["CronJob/nightly"]),
                ("cron:0", 0, &["CronJob/stopped"]),
            ],
        ),
        (
            "pods",
            &[
                ("pod:pending", 1, &["Pod/pending"]),
                ("pod:running", 1, &["Pod/running"]),
            ],
        ),
    ];
    let plan =
        plan(cluster, cluster.server(), cluster.token(), &namespace).env("INCLUDE_IDLE", "true");
    let mut every = Vec::new();
    for (kind, expected) in table {
        let output = plan.clone().args(["--workloads", kind]).run().expect(0);
        assert_eq!(found(&output), rows(&namespace, expected), "{kind}");
        assert_eq!(warnings(&output), [] as [&str; 0], "{kind}");
        every.extend(rows(&namespace, expected));
    }
    assert_eq!(found(&plan.run().expect(0)), every[..3], "the default");
    let some = plan.clone().env("WORKLOADS", " jobs ,, pods").run();
    let mut expected = rows(&namespace, table[4].1);
    expected.splice(2.., rows(&namespace, table[6].1));
    assert_eq!(found(&some.expect(0)), expected);
    // The most used first, then by name; workloads without pods stay, at the end.
    every.sort_by(|one, other| (other.1, &one.0).cmp(&(one.1, &other.0)));
    let all = plan.args(["--workloads", "all"]).run().expect(0);
    assert_eq!(found(&all), every);
}

#[test]
fn init_containers_count_once_per_workload() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let mut web = templated("web", "main:1", json!({"replicas": 2}));
    let template = &mut web["spec"]["template"]["spec"];
    template["initContainers"] =
        json!([{"name": "first", "image": "init:1"}, {"name": "again", "image": "main:1"}]);
    template["containers"] = json!([{"name": "a", "image": "main:1"}, {"name": "b", "image": "side:1"},
        {"name": "c", "image": "docker.io/library/side:1"}]);
    create(cluster, &namespace, &[("apps/v1/deployments", web)]);
    cluster.deployment(&namespace, "other", 5, "side:1");
    let output = plan(cluster, cluster.server(), cluster.token(), &namespace)
        .run()
        .expect(0);
    assert_eq!(
        found(&output),
        rows(
            &namespace,
            &[
                ("side:1", 7, &["Deployment/other", "Deployment/web"]),
                ("init:1", 2, &["Deployment/web"]),
                ("main:1", 2, &["Deployment/web"]),
            ]
        )
    );
}

/// An API server of 1.20 has neither: the response of a newer one is substituted.
#[test]
fn sidecars_and_image_volumes_count() {
    let cluster = kubernetes();
    let spec = json!({"initContainers": [{"name": "mesh", "image": "sidecar:1", "restartPolicy": "Always"}],
        "containers": [{"name": "main", "image": "main:1"}],
        "volumes": [{"name": "model", "image": {"reference": "volume:1", "pullPolicy": "IfNotPresent"}}, {"name": "x", "emptyDir": {}}]});
    let list = json!({"kind": "DeploymentList", "apiVersion": "apps/v1", "metadata": {"resourceVersion": "1"}, "items": [
        {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"replicas": 2, "template": {"spec": spec}}}]});
    let answer = Fault::Answer {
        status: 200,
        headers: vec![("content-type", "application/json".into())],
        body: list.to_string(),
    };
    let proxy = Proxy::start_tls(cluster.server(), cluster.ca(), move |_| answer.clone());
    let output = plan(cluster, &proxy.url(), cluster.token(), "shop").run();
    let web: &[&str] = &["Deployment/web"];
    assert_eq!(
        found(&output.expect(0)),
        rows(
            "shop",
            &[
                ("main:1", 2, web),
                ("sidecar:1", 2, web),
                ("volume:1", 2, web)
            ]
        )
    );
}

#[test]
fn owned_workloads_count_once() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    let make = |collection: &str, object: Value| made(cluster, &namespace, collection, object);
    let hash = json!({"app": "web", "pod-template-hash": "5d8f9c7b6"});
    let web = make(
        "apps/v1/deployments",
        templated("web", "web:1", json!({"replicas": 3})),
    );
    let replicaset = templated("web-5d8f9c7b6", "web:1", json!({"replicas": 3}));
    let replicaset = make("apps/v1/replicasets", owned(replicaset, &web));
    for name in ["web-5d8f9c7b6-a", "web-5d8f9c7b6-b"] {
        let pod = labelled(pod(name, "web:1"), hash.clone());
        make("v1/pods", owned(pod, &replicaset));
    }
    make("v1/pods", pod("debug", "web:1"));
    let cron = make(
        "batch/v1beta1/cronjobs",
        cronjob("nightly", "cron:1", false),
    );
    let nightly = job("nightly-1617235200", "cron:1", json!({"parallelism": 4}));
    let nightly = make("batch/v1/jobs", owned(nightly, &cron));
    let active = json!([{"apiVersion": "batch/v1", "kind": "Job", "namespace": namespace,
        "name": "nightly-1617235200", "uid": nightly["metadata"]["uid"]}]);
    let path = format!("/apis/batch/v1beta1/namespaces/{namespace}/cronjobs/nightly/status");
    cluster.patch(&path, json!({"status": {"active": active}}));
    make(
        "v1/pods",
        owned(pod("nightly-1617235200-x", "cron:1"), &nightly),
    );
    // The owners of these are not scanned.
    let rollout = other(("argoproj.io/v1alpha1", "Rollout", "canary"));
    let of_rollout = templated("canary-6c9", "canary:1", json!({"replicas": 2}));
    let of_rollout = make("apps/v1/replicasets", owned(of_rollout, &rollout));
    make(
        "v1/pods",
        owned(pod("canary-6c9-a", "canary:1"), &of_rollout),
    );
    let node = other(("v1", "Node", "node-1"));
    make("v1/pods", owned(pod("static", "static:1"), &node));
    let plan = plan(cluster, cluster.server(), cluster.token(), &namespace);
    let check = |workloads: &str, expected: Expected<'_>| {
        let output = plan.clone().args(["--workloads", workloads]).run();
        assert_eq!(
            found(&output.expect(0)),
            rows(&namespace, expected),
            "{workloads}"
        );
    };
    check(
        "all",
        &[
            ("web:1", 4, &["Deployment/web", "Pod/debug"]),
            ("canary:1", 2, &["ReplicaSet/canary-6c9"]),
            ("cron:1", 1, &["CronJob/nightly"]),
            ("static:1", 1, &["Pod/static"]),
        ],
    );
    // What is between them is not scanned: the label of the pods and the CronJob's status tell.
    check(
        "deployments,cronjobs,pods",
        &[
            ("web:1", 4, &["Deployment/web", "Pod/debug"]),
            ("canary:1", 1, &["Pod/canary-6c9-a"]),
            ("cron:1", 1, &["CronJob/nightly"]),
            ("static:1", 1, &["Pod/static"]),
        ],
    );
    // Nothing above them is scanned: they count themselves.
    check(
        "replicasets,jobs",
        &[
            ("cron:1", 4, &["Job/nightly-1617235200"]),
            ("web:1", 3, &["ReplicaSet/web-5d8f9c7b6"]),
            ("canary:1", 2, &["ReplicaSet/canary-6c9"]),
        ],
    );
    check(
        "pods",
        &[
            (
                "web:1",
                3,
                &["Pod/debug", "Pod/web-5d8f9c7b6-a", "Pod/web-5d8f9c7b6-b"],
            ),
            ("canary:1", 1, &["Pod/canary-6c9-a"]),
            ("cron:1", 1, &["Pod/nightly-1617235200-x"]),
            ("static:1", 1, &["Pod/static"]),
        ],
    );
}

/// The API server judges the selector, and its words are told.
#[test]
fn malformed_selector_is_a_bad_setting() {
    let cluster = kubernetes();
    let namespace = cluster.namespace();
    for selector in ["app in", "app=web,", "a b", "-a=b", "app=$(x)"] {
        for command in ["plan", "run"] {
            let harpoon = Harpoon::new([command, "--runtime-endpoint=oci:store"]);
            let (server, token) = (cluster.server(), cluster.token());
            let harpoon = by_kubeconfig(harpoon, cluster, server, token, &namespace);
            let output = harpoon.env("SELECTOR", selector).run().expect(2);
            let begin = format!(
                "invalid value {selector:?} for --selector (SELECTOR): the API server rejects the label selector: "
            );
            let words = output
                .stderr
                .lines()
                .find_map(|line| line.strip_prefix("error: ")?.strip_prefix(&begin));
            assert!(words.is_some_and(|words| words.len() > 10), "{output}");
            assert_eq!(output.stdout, "", "{output}");
        }
    }
}

#[test]
fn namespaces_and_selector_narrow_scan() {
    let cluster = kubernetes();
    let (one, two, third) = (
        cluster.namespace(),
        cluster.namespace(),
        cluster.namespace(),
    );
    let mark = unique("mark");
    let make = |namespace: &str, name: &str, tier: &str| {
        let image = format!("{name}:1");
        let object = templated(name, &image, json!({}));
        let labels = json!({"mark": mark, "tier": tier, "app": name});
        create(
            cluster,
            namespace,
            &[("apps/v1/deployments", labelled(object, labels))],
        );
    };
    make(&one, "alpha", "front");
    make(&two, "beta", "back");
    make(&third, "gamma", "back");
    let plan = plan(cluster, cluster.server(), cluster.token(), &one);
    let images = |namespaces: &str, selector: &str| {
        let plan = plan.clone().env("NAMESPACES", namespaces);
        let output = plan.env("SELECTOR", selector).run().expect(0);
        assert_eq!(warnings(&output), [] as [&str; 0]);
        let images = found(&output).into_iter();
        images
            .map(|(image, ..)| image.trim_end_matches(":1").to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let marked = format!("mark={mark}");
    let both = format!("{one}, {two},{one},");
    assert_eq!(images("", ""), "alpha");
    assert_eq!(images(&two, ""), "beta");
    assert_eq!(images(&both, ""), "alpha beta");
    assert_eq!(images("*", &marked), "alpha beta gamma");
    assert_eq!(images(&format!("{one},*"), &marked), "alpha beta gamma");
    assert_eq!(images("*", &format!("{marked},tier=back")), "beta gamma");
    assert_eq!(images("*", &format!("{marked},tier!=back")), "alpha");
    assert_eq!(
        images("*", &format!("{marked},app in (alpha, gamma)")),
        "alpha gamma"
    );
    assert_eq!(
        images("*", &format!("{marked},app notin (alpha),tier")),
        "beta gamma"
    );
    assert_eq!(images("*", &format!("{marked},!tier")), "");
    assert_eq!(images(&both, "tier=back"), "beta");

    let flag = plan.env("NAMESPACES", &one).args(["--namespaces", &two]);
    assert_eq!(
        found(&flag.run().expect(0)),
        rows(&two, &[("beta:1", 1, &["Deployment/beta"])])
    );
}
