//! End-to-end tests on a real single-node cluster, installed as by users: pulled images, reports, and permissions afterwards.
//!
//! Each test has a cluster of its own and many steps, because the installed objects have fixed names. `STEP=TEXT,TEXT` selects the
//! steps that have one of the texts in their name; a cluster without such a step is not started.
#![expect(
    clippy::print_stderr,
    reason = "progress and the figures measured, for who asks with --nocapture"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::{Value, json};

use super::bed::{Cluster, Process, run, text, tool, unique};

mod confined;
mod continuous;
mod filled;
mod gain;
mod gate;
mod installed;
mod monitored;
mod retention;
mod rights;
mod sealed;
mod variants;

/// The namespace of the manifests.
const NAMESPACE: &str = "harpoon";

type Step = fn(&Turn<'_>);

/// Mode `once`, and what pods gain from it.
const ONCE: &[(&str, Step)] = &[
    (
        "images are there before pods need them",
        installed::before_pods,
    ),
    (
        "a broken image keeps nothing back and is shown",
        installed::broken_image,
    ),
    ("what the containers may do", confined::containers),
    ("each rule is needed", rights::each_rule),
    ("each kind of workload has its rule", rights::each_kind),
    ("a list of images", variants::list_of_images),
    ("all namespaces and two kinds", variants::all_namespaces),
    ("a kustomization", variants::kustomized),
    ("a filled image from pull to removal", filled::whole_life),
    (
        "a sealed image is for pods that may pull it",
        sealed::for_its_pullers,
    ),
    (
        "the kubelet and harpoon pull a sealed image at once",
        sealed::pulls_at_once,
    ),
    ("what a pod gains", gain::measured),
    ("what a pod of a private image gains", gain::private),
];

const CONTINUOUS: &[(&str, Step)] = &[(
    "continuous mode from install to uninstall",
    continuous::whole_life,
)];

const GATE: &[(&str, Step)] = &[
    (
        "a node gate holds pods until images are there",
        gate::holds_pods,
    ),
    ("a node gate opens whatever fails", gate::fails_open),
];

#[test]
fn mode_once_passes() {
    pass(ONCE);
}

#[test]
fn continuous_mode_passes() {
    pass(CONTINUOUS);
}

#[test]
fn node_gate_passes() {
    pass(GATE);
}

#[test]
fn full_disk_passes() {
    let name = "sealed and pinned images on a full disk";
    if is_chosen(name) {
        let began = Instant::now();
        retention::full_disk();
        eprintln!("e2e: {name}: {:.1?}", began.elapsed());
    }
}

/// Returns whether `STEP` selects the step.
fn is_chosen(step: &str) -> bool {
    let chosen = std::env::var("STEP").unwrap_or_default();
    chosen.split(',').any(|text| step.contains(text))
}

/// Runs the steps on a cluster, also those after a step that fails.
fn pass(steps: &[(&str, Step)]) {
    let steps: Vec<_> = steps.iter().filter(|(name, _)| is_chosen(name)).collect();
    if steps.is_empty() {
        return;
    }
    let cluster = Cluster::start();
    let failed = steps.iter().filter(|(name, step)| {
        let began = Instant::now();
        let turn = Turn::new(&cluster);
        let done = catch_unwind(AssertUnwindSafe(|| step(&turn)));
        let cleared = catch_unwind(AssertUnwindSafe(|| turn.clear()));
        eprintln!("e2e: {name}: {:.1?}", began.elapsed());
        done.and(cleared).is_err()
    });
    let failed: Vec<_> = failed.map(|(name, _)| name).collect();
    cluster.end();
    assert!(failed.is_empty(), "failed: {failed:?}");
}

/// A step's exclusive use of the cluster.
struct Turn<'a> {
    cluster: &'a Cluster,
    namespace: String,
    installed: Mutex<Vec<String>>,
}

/// The applied DaemonSet of harpoon.
struct Installed<'a> {
    turn: &'a Turn<'a>,
    /// All objects of the manifests, as the API server has them.
    objects: Vec<Value>,
}

impl<'a> Turn<'a> {
    fn new(cluster: &'a Cluster) -> Self {
        cluster.api.ensure_namespace(NAMESPACE);
        Self {
            cluster,
            namespace: NAMESPACE.to_owned(),
            installed: Mutex::default(),
        }
    }

    /// Creates a Deployment without pods, of an image that is not present, and returns the image.
    fn idle(&self, name: &str) -> String {
        let image = self.cluster.push(&format!("{}:1", unique(name))).reference;
        self.deployment(name, &image);
        image
    }

    fn deployment(&self, name: &str, image: &str) {
        self.cluster.api.deployment(&self.namespace, name, 0, image);
    }

    /// The same of a private image, whose pods have the pull secret.
    fn private_deployment(&self, name: &str, image: &str) {
        let secret = self.cluster.pull_secret(&self.namespace);
        let labels = json!({"app": name});
        let spec = json!({"containers": [{"name": "main", "image": image}], "imagePullSecrets": [{"name": secret}]});
        let deployment = json!({"metadata": {"name": name, "labels": labels}, "spec": {"replicas": 0,
            "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": spec}}});
        let deployments = format!("/apis/apps/v1/namespaces/{}/deployments", self.namespace);
        self.cluster.api.create(&deployments, deployment);
    }

    /// Applies manifests with no change except for the image; does not wait.
    fn install(&self, manifests: &str) -> Installed<'_> {
        let manifests = with_image(manifests, self.cluster.harpoon());
        self.installed.lock().unwrap().push(manifests.clone());
        let objects = self.cluster.apply(&manifests);
        Installed {
            turn: self,
            objects,
        }
    }

    /// Scales a Deployment to one pod and returns the pod when it runs.
    fn scale_up(&self, name: &str) -> Value {
        let path = format!(
            "/apis/apps/v1/namespaces/{}/deployments/{name}",
            self.namespace
        );
        self.cluster
            .api
            .patch(&path, json!({"spec": {"replicas": 1}}));
        let selector = format!("app={name}");
        self.cluster.wait_for(&self.namespace, "the pod runs", || {
            let mut pods = self.cluster.pods(&self.namespace, &selector);
            pods.retain(is_ready);
            pods.pop()
        })
    }

    /// Waits until the API server has no pod with this label `app`.
    fn no_pods(&self, name: &str) {
        let namespace = self.namespace.as_str();
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector=app%3D{name}");
        let none = || {
            let pods = self.cluster.api.get(&path);
            pods["items"].as_array().unwrap().is_empty().then_some(())
        };
        self.cluster.wait_for(namespace, "the pods are gone", none);
    }

    /// Removes all objects of this step, so that the next one finds none of them.
    fn clear(&self) {
        for manifests in self.installed.lock().unwrap().iter() {
            // The namespace stays for the next step: deleting it takes a while.
            let is_namespace = |object: &&str| object.contains("\nkind: Namespace\n");
            let objects = manifests.split("\n---\n");
            let others: Vec<_> = objects.filter(|object| !is_namespace(object)).collect();
            self.cluster.remove(&others.join("\n---\n"));
        }
        let namespace = self.namespace.as_str();
        let delete = [
            "delete",
            "deployments,replicasets,statefulsets",
            "--all",
            "-n",
        ];
        self.cluster.kubectl(&[&delete[..], &[namespace]].concat());
        self.cluster.end_pods(namespace, &["--all"]);
    }

    /// The event of a pod that describes how its image became present.
    fn pulled(&self, pod: &Value) -> Vec<String> {
        let path = format!(
            "/api/v1/namespaces/{}/events?fieldSelector=involvedObject.name%3D{}",
            self.namespace,
            text(&pod["metadata"]["name"])
        );
        self.cluster
            .wait_for(&self.namespace, "the event of the pull", || {
                let events = self.cluster.api.get(&path);
                let events = events["items"].as_array().unwrap();
                let told = |event: &Value| {
                    format!("{}: {}", text(&event["reason"]), text(&event["message"]))
                };
                let events: Vec<_> = events.iter().map(told).collect();
                events
                    .iter()
                    .any(|event| event.starts_with("Pulled: "))
                    .then_some(events)
            })
    }
}

impl Installed<'_> {
    /// The one object of this kind.
    #[track_caller]
    fn object(&self, kind: &str) -> &Value {
        let mut objects = self.objects.iter().filter(|object| object["kind"] == kind);
        match (objects.next(), objects.next()) {
            (Some(object), None) => object,
            _ => panic!("not one {kind}: {:?}", self.objects),
        }
    }

    /// Waits until the DaemonSet is complete, like `kubectl rollout status`, and returns its pod.
    fn ready(&self) -> Value {
        let cluster = self.turn.cluster;
        let daemonset = self.object("DaemonSet");
        let name = text(&daemonset["metadata"]["name"]);
        let path = format!(
            "/apis/apps/v1/namespaces/{}/daemonsets/{name}",
            self.turn.namespace
        );
        cluster.wait_for(&self.turn.namespace, "the DaemonSet is ready", || {
            let now = cluster.api.get(&path);
            let status = &now["status"];
            let all = [
                "desiredNumberScheduled",
                "updatedNumberScheduled",
                "numberReady",
            ]
            .iter()
            .all(|count| status[count] == 1);
            let current = status["observedGeneration"] == now["metadata"]["generation"];
            let mut pods = self.pods();
            pods.retain(is_ready);
            (all && current && pods.len() == 1).then(|| pods.remove(0))
        })
    }

    /// The DaemonSet's pods, without terminating ones.
    fn pods(&self) -> Vec<Value> {
        let labels = &self.object("DaemonSet")["spec"]["selector"]["matchLabels"];
        let labels = labels.as_object().unwrap().iter();
        let labels: Vec<_> = labels
            .map(|(key, value)| format!("{key}={}", text(value)))
            .collect();
        self.turn
            .cluster
            .pods(&self.turn.namespace, &labels.join(","))
    }

    /// Makes the DaemonSet create a new pod, so that harpoon runs again.
    fn run_again(&self) {
        for pod in self.pods() {
            let name = text(&pod["metadata"]["name"]);
            self.turn.cluster.end_pods(&self.turn.namespace, &[name]);
        }
    }

    /// The log of the init container.
    fn log(&self, pod: &Value) -> String {
        let name = text(&pod["metadata"]["name"]);
        let container = text(&pod["spec"]["initContainers"][0]["name"]);
        let (cluster, namespace) = (self.turn.cluster, self.turn.namespace.as_str());
        cluster.kubectl(&["logs", name, "-c", container, "-n", namespace])
    }
}

/// The termination message of the init container; checks that it succeeded at the first attempt and was not killed.
#[track_caller]
fn summary(pod: &Value) -> &str {
    let status = &pod["status"]["initContainerStatuses"][0];
    let ended = &status["state"]["terminated"];
    assert_eq!(
        (text(&ended["reason"]), &ended["exitCode"]),
        ("Completed", &json!(0)),
        "{pod:#}"
    );
    for kind in ["initContainerStatuses", "containerStatuses"] {
        for container in pod["status"][kind].as_array().unwrap() {
            assert_eq!(container["restartCount"], 0, "{container:#}");
            assert_eq!(container["lastState"], json!({}), "{container:#}");
        }
    }
    text(&ended["message"])
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|conditions| {
        conditions
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    })
}

/// A file of `deploy/`.
fn manifests(name: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name);
    std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

/// The output of `helm template` for the chart with these values.
fn chart(values: &Value) -> String {
    let directory = super::bed::directory();
    let file = directory.path().join("values.yaml");
    std::fs::write(&file, values.to_string()).unwrap();
    let mut helm = tool("helm");
    helm.args(["template", "harpoon", "--namespace", NAMESPACE, "--values"]);
    let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/chart");
    run(helm.arg(&file).arg(chart))
}

/// The manifests with no change except for the image, which is the same everywhere.
fn with_image(manifests: &str, image: &str) -> String {
    let name = |line: &str| {
        let line = line.trim_start().trim_start_matches("- ");
        line.strip_prefix("image: ").map(str::to_owned)
    };
    let mut names: Vec<_> = manifests.lines().filter_map(name).collect();
    names.dedup();
    assert_eq!(names.len(), 1, "one image: {names:?}");
    manifests.replace(&format!("image: {}", names[0]), &format!("image: {image}"))
}
