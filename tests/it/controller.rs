//! `harpoon controller` on real API servers. The tests write what agents would.
//!
//! A controller acts on a whole cluster, so that tests which look at nodes, or break something, have a cluster of their own.
#![allow(
    clippy::print_stderr,
    clippy::needless_pass_by_value,
    reason = "measured times are shown with --nocapture; specs are written where they are used"
)]

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bed::{Harpoon, Kubernetes, Running, eventually, unique};

mod failover;
mod gate;
mod nodes;
mod pressure;
mod rights;

const PREFETCHES: &str = "/apis/harpoon.dev/v1alpha1/imageprefetches";
const PLANNED: &str = "/apis/harpoon.dev/v1alpha1/plannedimages";
const NODES: &str = "/apis/harpoon.dev/v1alpha1/nodeprefetches";
/// Time for what takes seconds, on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(60);

/// A controller of the cluster that the kubeconfig names.
fn controller(cluster: &Kubernetes) -> Harpoon {
    Harpoon::new(["controller", "--metrics-address", "127.0.0.1:0"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .limit(Duration::from_secs(1200))
}

/// Changes the schemas of the fields of PlannedImages, and waits until that has taken effect.
fn redefine(cluster: &Kubernetes, change: impl FnOnce(&mut Value)) {
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/plannedimages.harpoon.dev";
    let mut versions = cluster.get(path)["spec"]["versions"].take();
    let schema = &mut versions[0]["schema"]["openAPIV3Schema"];
    change(&mut schema["properties"]["spec"]["properties"]);
    cluster.patch(path, json!({"spec": {"versions": versions}}));
    std::thread::sleep(Duration::from_secs(3));
}

/// A cluster with its controller.
struct Controlled {
    cluster: Kubernetes,
    running: Shown,
}

impl Deref for Controlled {
    type Target = Kubernetes;

    fn deref(&self) -> &Kubernetes {
        &self.cluster
    }
}

/// A controller whose log is shown if the test fails.
struct Shown(Running);

impl Deref for Shown {
    type Target = Running;

    fn deref(&self) -> &Running {
        &self.0
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the controller's log\n{}---", self.0.stderr());
        }
    }
}

impl Controlled {
    fn start(cluster: Kubernetes) -> Self {
        cluster.install_definitions();
        let running = controller(&cluster).start();
        running.wait_for("planned 0 ImagePrefetches", SOON);
        Self {
            cluster,
            running: Shown(running),
        }
    }
}

/// The cluster of the tests that break nothing and have no nodes.
fn shared() -> Arc<Controlled> {
    static SHARED: Mutex<Weak<Controlled>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let started = Arc::new(Controlled::start(Kubernetes::start()));
        *shared = Arc::downgrade(&started);
        started
    })
}

/// Creates an ImagePrefetch and returns its path.
fn prefetch(cluster: &Kubernetes, name: &str, spec: Value) -> String {
    let object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch", "metadata": {"name": name}, "spec": spec});
    cluster.create(PREFETCHES, object);
    format!("{PREFETCHES}/{name}")
}

fn list(images: &[&str]) -> Value {
    json!({"source": {"images": images}, "retention": {"keepAfterUnused": "2s"}})
}

fn workloads(namespace: &str) -> Value {
    json!({"source": {"workloads": {"namespaces": [namespace]}}, "retention": {"keepAfterUnused": "2s"}})
}

/// Status, reason and message of a condition.
fn condition(cluster: &Kubernetes, path: &str, kind: &str) -> (String, String, String) {
    let object = cluster.get(path);
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|c| c["type"] == kind);
    let text = |field: &str| {
        let text = found.and_then(|condition| condition[field].as_str());
        text.unwrap_or_default().to_owned()
    };
    (text("status"), text("reason"), text("message"))
}

/// Waits until a condition has a status and a reason, and returns its message.
#[track_caller]
fn wait_for(cluster: &Kubernetes, path: &str, kind: &str, expected: (&str, &str)) -> String {
    let mut last = Default::default();
    let end = Instant::now() + SOON;
    loop {
        let (status, reason, message) = condition(cluster, path, kind);
        if (status.as_str(), reason.as_str()) == expected {
            return message;
        }
        assert!(
            Instant::now() < end,
            "no {kind} {expected:?}: {last:?}: {}",
            cluster.get(path)
        );
        last = (status, reason, message);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// The PlannedImages of an ImagePrefetch, by image.
fn planned(cluster: &Kubernetes, prefetch: &str) -> BTreeMap<String, Value> {
    let all = cluster.get(PLANNED)["items"].take();
    let all: Vec<Value> = serde_json::from_value(all).unwrap();
    all.into_iter()
        .filter(|object| {
            let names = object["spec"]["prefetches"].as_array();
            names.into_iter().flatten().any(|name| name == prefetch)
        })
        .map(|object| (object["spec"]["image"].as_str().unwrap().to_owned(), object))
        .collect()
}

fn images(cluster: &Kubernetes, prefetch: &str) -> Vec<String> {
    planned(cluster, prefetch).into_keys().collect()
}

/// The PlannedImage of an image, whoever uses it.
fn object_of(cluster: &Kubernetes, image: &str) -> Option<Value> {
    let all = cluster.get(PLANNED)["items"].take();
    let mut all = serde_json::from_value::<Vec<Value>>(all)
        .unwrap()
        .into_iter();
    all.find(|object| object["spec"]["image"] == image)
}

fn set_image(cluster: &Kubernetes, namespace: &str, deployment: &str, image: &str) {
    let containers = json!([{"name": "main", "image": image}]);
    cluster.patch(
        &format!("/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}"),
        json!({"spec": {"template": {"spec": {"containers": containers}}}}),
    );
}

#[test]
fn list_becomes_planned_images() {
    let cluster = shared();
    let name = unique("list");
    let image = format!("registry.example/{name}:1");
    let other = format!("docker.io/library/{name}:latest");
    let path = prefetch(&cluster, &name, list(&[&image, &name, &other]));
    eventually("planned", SOON, || {
        images(&cluster, &name) == [other.clone(), image.clone()]
    });
    let planned = planned(&cluster, &name);
    let spec = &planned[&image]["spec"];
    assert_eq!(spec["prefetches"], json!([name]));
    assert_eq!(spec["rollout"]["window"], "2m");
    assert!(
        spec["rollout"]["startTime"]
            .as_str()
            .unwrap()
            .ends_with('Z'),
        "{spec}"
    );
    assert_eq!(
        (&spec["refresh"], &planned[&other]["spec"]["refresh"]),
        (&json!(false), &json!(true))
    );
    wait_for(&cluster, &path, "Ready", ("False", "NoAgents"));
    let status = cluster.get(&path)["status"].take();
    assert_eq!(
        (&status["images"], &status["observedGeneration"]),
        (&json!(2), &json!(1))
    );
    // The list becomes another: what is not used any more says so, and goes.
    cluster.patch(&path, json!({"spec": {"source": {"images": [image]}}}));
    eventually("retired", SOON, || {
        object_of(&cluster, &other).is_none_or(|object| object["spec"]["prefetches"] == json!([]))
    });
    eventually("deleted", SOON, || object_of(&cluster, &other).is_none());
    eventually("observed", SOON, || {
        cluster.get(&path)["status"]["observedGeneration"] == 2
    });
    assert_eq!(images(&cluster, &name), [image]);
}

#[test]
fn changed_deployment_is_planned_promptly() {
    let cluster = shared();
    let (namespace, name) = (cluster.namespace(), unique("shop"));
    let image = |tag: u32| format!("registry.example/{name}:{tag}");
    cluster.deployment(&namespace, "web", 3, &image(0));
    prefetch(&cluster, &name, workloads(&namespace));
    eventually("planned", SOON, || images(&cluster, &name) == [image(0)]);
    assert_eq!(planned(&cluster, &name)[&image(0)]["spec"]["pods"], 3);
    let mut slowest = Duration::ZERO;
    for tag in 1..=5 {
        let changed = Instant::now();
        set_image(&cluster, &namespace, "web", &image(tag));
        eventually("planned", SOON, || {
            object_of(&cluster, &image(tag)).is_some()
        });
        slowest = slowest.max(changed.elapsed());
        eventually("deleted", SOON, || {
            object_of(&cluster, &image(tag - 1)).is_none()
        });
    }
    eprintln!("changed Deployment to PlannedImage: at most {slowest:?}");
}

#[test]
fn deleted_prefetch_keeps_images_awhile() {
    let cluster = shared();
    let name = unique("gone");
    let image = format!("registry.example/{name}:1");
    let path = prefetch(&cluster, &name, list(&[&image]));
    eventually("planned", SOON, || {
        images(&cluster, &name) == [image.clone()]
    });
    cluster.delete(&path);
    eventually("retired", SOON, || {
        object_of(&cluster, &image).is_none_or(|object| object["spec"]["prefetches"] == json!([]))
    });
    let object = object_of(&cluster, &image);
    let since = object
        .as_ref()
        .map(|object| &object["metadata"]["annotations"]["harpoon.dev/unused-since"]);
    assert!(since.is_none_or(Value::is_string), "{object:?}");
    eventually("deleted", SOON, || object_of(&cluster, &image).is_none());
}

#[test]
fn suspended_prefetch_changes_nothing() {
    let cluster = shared();
    let (namespace, name) = (cluster.namespace(), unique("still"));
    let image = |tag: u32| format!("registry.example/{name}:{tag}");
    cluster.deployment(&namespace, "web", 1, &image(1));
    let path = prefetch(&cluster, &name, workloads(&namespace));
    eventually("planned", SOON, || images(&cluster, &name) == [image(1)]);
    cluster.patch(&path, json!({"spec": {"suspend": true}}));
    wait_for(&cluster, &path, "Ready", ("False", "Suspended"));
    set_image(&cluster, &namespace, "web", &image(2));
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(images(&cluster, &name), [image(1)]);
    assert!(object_of(&cluster, &image(2)).is_none());
    cluster.patch(&path, json!({"spec": {"suspend": false}}));
    eventually("planned", SOON, || images(&cluster, &name) == [image(2)]);
}

#[test]
fn malformed_images_leave_others_planned() {
    let cluster = shared();
    let (bad, good) = (unique("bad"), unique("good"));
    let image = |name: &str| format!("registry.example/{name}:1");
    let path = prefetch(&cluster, &bad, list(&[&image(&bad), "Not//An:Image"]));
    prefetch(&cluster, &good, list(&[&image(&good)]));
    let message = wait_for(&cluster, &path, "Degraded", ("True", "InvalidSpec"));
    assert!(message.contains("Not//An:Image"), "{message}");
    eventually("planned", SOON, || images(&cluster, &bad) == [image(&bad)]);
    eventually("planned", SOON, || {
        images(&cluster, &good) == [image(&good)]
    });
    // Kubernetes 1.20 ignores the rules that would refuse these.
    for (spec, said) in [
        (json!({"source": {}}), "exactly one of images and workloads"),
        (
            json!({"source": {"images": ["a"]}, "rollout": {"window": "48h"}}),
            "at most 24h",
        ),
        (
            json!({"source": {"workloads": {"namespaces": ["a"], "namespaceSelector": {"matchLabels": {"a": "b"}}}}}),
            "exclude each other",
        ),
        (
            json!({"source": {"workloads": {"selector": {"matchExpressions": [{"key": "a", "operator": "In"}]}}}}),
            "spec.source.workloads.selector",
        ),
    ] {
        let path = prefetch(&cluster, &unique("invalid"), spec);
        let message = wait_for(&cluster, &path, "Degraded", ("True", "InvalidSpec"));
        assert!(message.contains(said), "{message}");
        wait_for(&cluster, &path, "Ready", ("False", "InvalidSpec"));
    }
}

#[test]
fn hostile_prefetch_hurts_nobody() {
    let cluster = shared();
    let (hostile, fine) = (unique("hostile"), unique("fine"));
    let started = Instant::now();
    let mut all: Vec<String> = (0..250)
        .map(|n| format!("{n}{}", "X/".repeat(500)))
        .collect();
    let long = |n: usize| {
        format!(
            "r.example/{}:{}",
            "a/".repeat(100) + "b",
            "t".repeat(100) + &n.to_string()
        )
    };
    all.extend((0..250).map(long));
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let path = prefetch(&cluster, &hostile, list(&all));
    let image = format!("registry.example/{fine}:1");
    prefetch(&cluster, &fine, list(&[&image]));
    let message = wait_for(&cluster, &path, "Degraded", ("True", "InvalidSpec"));
    assert!(
        message.len() <= 1024 && !message.contains('\u{1b}'),
        "{message}"
    );
    eventually("planned", Duration::from_secs(60), || {
        images(&cluster, &fine) == [image.clone()]
    });
    eprintln!(
        "beside a hostile prefetch: planned after {:?}",
        started.elapsed()
    );
    let size = cluster.get(&path)["status"].to_string().len();
    assert!(size < 16 << 10, "{size}");
    cluster.delete(&path);
    assert!(!cluster.running.has_ended());
}

#[test]
fn only_differences_are_written() {
    let cluster = shared();
    let (namespace, name) = (cluster.namespace(), unique("calm"));
    let image = format!("registry.example/{name}:1");
    for deployment in ["one", "two"] {
        cluster.deployment(&namespace, deployment, 2, &image);
    }
    let path = prefetch(&cluster, &name, workloads(&namespace));
    eventually("planned", SOON, || {
        images(&cluster, &name) == [image.clone()]
    });
    wait_for(&cluster, &path, "Ready", ("False", "NoAgents"));
    let version = || {
        let planned = planned(&cluster, &name)[&image]["metadata"]["resourceVersion"].clone();
        (
            planned,
            cluster.get(&path)["metadata"]["resourceVersion"].clone(),
        )
    };
    let before = version();
    for n in 0..20 {
        cluster.patch(
            &format!("/apis/apps/v1/namespaces/{namespace}/deployments/one"),
            json!({"metadata": {"annotations": {"touched": n.to_string()}}}),
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    std::thread::sleep(Duration::from_secs(7));
    assert_eq!(version(), before);
}

#[test]
fn unknown_fields_of_planned_image_stay() {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    // The definition of a later version has one more field.
    redefine(&cluster, |properties| {
        properties["future"] =
            json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    });
    let _running = controller(&cluster).start();
    let (namespace, name) = (cluster.namespace(), unique("future"));
    let image = format!("registry.example/{name}:1");
    cluster.deployment(&namespace, "web", 1, &image);
    prefetch(&cluster, &name, workloads(&namespace));
    eventually("planned", SOON, || {
        images(&cluster, &name) == [image.clone()]
    });
    let object = planned(&cluster, &name)[&image].clone();
    let object = object["metadata"]["name"].as_str().unwrap();
    // Another version of the controller is the same field manager.
    let future = json!({"spec": {"future": {"depth": [1, 2]}}});
    cluster.patch(
        &format!("{PLANNED}/{object}?fieldManager=harpoon-controller"),
        future,
    );
    cluster.patch(
        &format!("/apis/apps/v1/namespaces/{namespace}/deployments/web"),
        json!({"spec": {"replicas": 7}}),
    );
    eventually("planned again", SOON, || {
        planned(&cluster, &name)[&image]["spec"]["pods"] == 7
    });
    let spec = planned(&cluster, &name)[&image]["spec"].clone();
    assert_eq!(spec["future"], json!({"depth": [1, 2]}), "{spec}");
}

#[test]
fn placements_follow_workloads() {
    let cluster = shared();
    let (namespace, name) = (cluster.namespace(), unique("place"));
    let image = format!("registry.example/{name}:1");
    let class = unique("gvisor");
    cluster.create(
        "/apis/node.k8s.io/v1/runtimeclasses",
        json!({"metadata": {"name": class}, "handler": "runsc", "scheduling": {"nodeSelector": {"sandbox": "gvisor"}}}),
    );
    let labels = json!({"app": "web"});
    let pod = json!({"containers": [{"name": "main", "image": image}], "runtimeClassName": class,
        "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "dedicated", "operator": "Exists"}]});
    cluster.create(
        &format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
        json!({"metadata": {"name": "web"}, "spec": {"replicas": 1, "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod}}}),
    );
    let path = prefetch(&cluster, &name, workloads(&namespace));
    let placement = json!({"nodeSelector": {"disk": "ssd", "sandbox": "gvisor"},
        "tolerations": [{"key": "dedicated", "operator": "Exists"}]});
    eventually("planned", SOON, || {
        planned(&cluster, &name)
            .get(&image)
            .is_some_and(|object| object["spec"]["placements"] == json!([placement]))
    });
    cluster.patch(
        &path,
        json!({"spec": {"nodeSelector": {"matchLabels": {"pool": "gpu"}}}}),
    );
    let placement =
        json!({"nodeSelector": {"pool": "gpu"}, "tolerations": [{"operator": "Exists"}]});
    eventually("planned again", SOON, || {
        planned(&cluster, &name)[&image]["spec"]["placements"] == json!([placement])
    });
}

#[test]
fn namespace_selector_follows_labels() {
    let cluster = shared();
    let (namespace, name) = (cluster.namespace(), unique("chosen"));
    let image = format!("registry.example/{name}:1");
    cluster.deployment(&namespace, "web", 1, &image);
    let selector = json!({"matchLabels": {"chosen": name}});
    let spec = json!({"source": {"workloads": {"namespaceSelector": selector}}, "retention": {"keepAfterUnused": "2s"}});
    let path = prefetch(&cluster, &name, spec);
    eventually("resolved", SOON, || {
        cluster.get(&path)["status"]["images"] == 0
    });
    let label = |value: &Value| {
        cluster.patch(
            &format!("/api/v1/namespaces/{namespace}"),
            json!({"metadata": {"labels": {"chosen": value}}}),
        );
    };
    label(&json!(name));
    eventually("planned", SOON, || {
        images(&cluster, &name) == [image.clone()]
    });
    label(&Value::Null);
    eventually("deleted", SOON, || object_of(&cluster, &image).is_none());
}

#[test]
fn cronjobs_of_old_version_are_watched() {
    let cluster = shared();
    let (namespace, name) = (cluster.namespace(), unique("cron"));
    let image = format!("registry.example/{name}:1");
    let pod = json!({"restartPolicy": "Never", "containers": [{"name": "main", "image": image}]});
    cluster.create(
        &format!("/apis/batch/v1beta1/namespaces/{namespace}/cronjobs"),
        json!({"metadata": {"name": "nightly"}, "spec": {"schedule": "0 3 * * *", "jobTemplate": {"spec": {"template": {"spec": pod}}}}}),
    );
    let source =
        json!({"workloads": {"kinds": ["CronJob", "Pod", "Job"], "namespaces": [namespace]}});
    prefetch(&cluster, &name, json!({"source": source}));
    eventually("planned", SOON, || {
        images(&cluster, &name) == [image.clone()]
    });
}

/// On the libraries of current Kubernetes.
#[test]
fn newer_server_is_controlled_too() {
    let cluster = Controlled::start(Kubernetes::start_newer());
    let name = unique("newer");
    let image = format!("registry.example/{name}:1");
    let path = prefetch(&cluster, &name, list(&[&image]));
    eventually("planned", SOON, || {
        images(&cluster, &name) == [image.clone()]
    });
    let message = wait_for(&cluster, &path, "Ready", ("False", "NoAgents"));
    assert_eq!(message, "no agent has reported yet");
    cluster.delete(&path);
    eventually("deleted", SOON, || object_of(&cluster, &image).is_none());
    cluster.running.signal(Signal::TERM);
    eventually("it stops", SOON, || cluster.running.has_ended());
}
