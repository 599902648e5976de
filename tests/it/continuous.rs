//! Continuous mode as a whole: a controller, agents with containerds of their own, a registry and an API server, all real.
//!
//! The modules `agent` and `controller` test each of the two by itself.

use std::collections::BTreeMap;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bed::{self, Containerd, Harpoon, Kubernetes, Running, Runtime, eventually, unique};

mod failures;
mod nodes;
mod retention;
mod workloads;

const API: &str = "/apis/harpoon.dev/v1alpha1";
/// The time limit for anything that takes a second or two on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time limit of the programs: longer than any test.
const LONG: Duration = Duration::from_secs(900);

/// An API server with a controller.
struct Stage {
    cluster: Kubernetes,
    controller: Mutex<Option<Running>>,
}

/// A Node of the cluster with its containerd and its agent.
struct Machine {
    name: String,
    containerd: Containerd,
    agent: Mutex<Option<Running>>,
}

impl Stage {
    /// The shared one with one node, for tests that break nothing and look at objects of their own.
    fn shared() -> (&'static Self, &'static Machine) {
        static SHARED: OnceLock<(Stage, Machine)> = OnceLock::new();
        let (stage, machine) = SHARED.get_or_init(|| {
            let stage = Stage::start();
            let machine = stage.plain("node-1");
            stage.wait_for("the agent reports", || {
                !stage.node_prefetch("node-1").is_null()
            });
            (stage, machine)
        });
        (stage, machine)
    }

    fn start() -> Self {
        let cluster = Kubernetes::start();
        cluster.install_definitions();
        let stage = Self {
            cluster,
            controller: Mutex::default(),
        };
        stage.start_controller();
        stage
    }

    fn start_controller(&self) {
        let controller = self.program("controller").start();
        *self.controller.lock().unwrap() = Some(controller);
    }

    fn program(&self, command: &str) -> Harpoon {
        Harpoon::new([command, "--metrics-address", "127.0.0.1:0"])
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .limit(LONG)
    }

    /// Adds a Node with these labels and taints, and starts its agent.
    fn add(&self, name: &str, labels: &Value, taints: &Value, containerd: Containerd) -> Machine {
        let mut all = json!({"kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"});
        for (key, value) in labels.as_object().unwrap() {
            all[key] = value.clone();
        }
        let node = json!({"metadata": {"name": name, "labels": all}, "spec": {"taints": taints}});
        self.cluster.create("/api/v1/nodes", node);
        let machine = Machine {
            name: name.to_owned(),
            containerd,
            agent: Mutex::default(),
        };
        self.start_agent(&machine);
        machine
    }

    fn plain(&self, name: &str) -> Machine {
        self.add(name, &json!({}), &json!([]), Containerd::start())
    }

    fn start_agent(&self, machine: &Machine) {
        let agent = self
            .program("agent")
            .args(["--node-name", &machine.name, "--resync", "2s"])
            .args(["--runtime-endpoint", machine.containerd.endpoint()])
            // The disk of the machine that runs the tests may be full.
            .env("DISK_HIGH_PERCENT", "100");
        *machine.agent.lock().unwrap() = Some(agent.start());
    }

    /// Creates an ImagePrefetch; returns the time of its creation.
    fn apply(&self, name: &str, spec: &Value) -> Instant {
        let object = json!({
            "apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch", "metadata": {"name": name}, "spec": spec
        });
        let now = Instant::now();
        self.cluster
            .create(&format!("{API}/imageprefetches"), object);
        now
    }

    fn status(&self, prefetch: &str) -> Value {
        self.cluster
            .get(&format!("{API}/imageprefetches/{prefetch}"))["status"]
            .clone()
    }

    fn condition(&self, prefetch: &str, kind: &str) -> (String, String) {
        let status = self.status(prefetch);
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions
            .into_iter()
            .find(|c| c["type"] == kind)
            .unwrap_or_default();
        let text = |field: &str| found[field].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    }

    #[track_caller]
    fn wait_ready(&self, prefetch: &str) {
        self.wait_for(&format!("{prefetch} is ready"), || {
            self.condition(prefetch, "Ready").0 == "True"
        });
    }

    /// Waits, and shows the logs and the objects if it takes too long.
    #[track_caller]
    fn wait_for(&self, what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < end, "{what}: {}", self.explain());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn explain(&self) -> String {
        let list = |plural: &str| {
            format!(
                "{:#}",
                self.cluster.get(&format!("{API}/{plural}"))["items"]
            )
        };
        let controller = self.controller.lock().unwrap();
        let log = controller.as_ref().map(Running::stderr).unwrap_or_default();
        format!(
            "controller:\n{log}\n{}\n{}\n{}",
            list("imageprefetches"),
            list("plannedimages"),
            list("nodeprefetches")
        )
    }

    /// The specs of the PlannedImages by their images.
    fn planned(&self) -> BTreeMap<String, Value> {
        let list = self.cluster.get(&format!("{API}/plannedimages"));
        let items = list["items"].as_array().unwrap().iter();
        items
            .map(|item| {
                (
                    item["spec"]["image"].as_str().unwrap().to_owned(),
                    item["spec"].clone(),
                )
            })
            .collect()
    }

    fn node_prefetch(&self, node: &str) -> Value {
        let list = self.cluster.get(&format!("{API}/nodeprefetches"));
        let mut items = list["items"].as_array().unwrap().iter();
        items
            .find(|item| item["metadata"]["name"] == node)
            .cloned()
            .unwrap_or_default()
    }

    fn kubectl(&self, arguments: &[&str]) -> String {
        let mut command = bed::tool("kubectl");
        bed::run(
            command
                .args(arguments)
                .env("KUBECONFIG", self.cluster.kubeconfig()),
        )
    }
}

impl Machine {
    fn has(&self, image: &str) -> bool {
        self.containerd.has(image)
    }

    fn log(&self) -> String {
        self.agent
            .lock()
            .unwrap()
            .as_ref()
            .map(Running::stderr)
            .unwrap_or_default()
    }

    fn stop_agent(&self, signal: Signal) {
        if let Some(agent) = self.agent.lock().unwrap().take() {
            agent.signal(signal);
            drop(agent);
        }
    }
}

/// A unique name with a tag, as containerd lists it.
fn named(name: &str) -> String {
    format!("{}:1", unique(name))
}

fn list(images: &[&str]) -> Value {
    json!({"source": {"images": images}, "rollout": {"type": "Immediate"}})
}
