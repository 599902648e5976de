//! `harpoon agent` on a real API server, containerd and registry. The tests write PlannedImages themselves: there is no
//! controller.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::bed::faulty::{Fault, Gate, Proxy};
use crate::bed::{self, Containerd, Harpoon, Kubernetes, Running, containerd, eventually, unique};

mod changes;
mod costs;
mod fast;
mod nodes;
mod outages;
mod retention;
mod secrets;

pub(crate) use changes::seals;

const API: &str = "/apis/harpoon.dev/v1alpha1";
/// The time limit for anything that takes a second or two on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The API server of tests that do not break it. All agents there see the images of all tests, so that each test has Nodes and
/// labels of its own.
fn cluster() -> &'static Kubernetes {
    static SHARED: OnceLock<Kubernetes> = OnceLock::new();
    SHARED.get_or_init(with_definitions)
}

fn with_definitions() -> Kubernetes {
    let cluster = Kubernetes::start();
    cluster.install_definitions();
    cluster
}

/// A Node and what its agent is given.
struct Machine<'a> {
    cluster: &'a Kubernetes,
    containerd: &'a Containerd,
    name: String,
}

impl<'a> Machine<'a> {
    /// A Node of this name, which its label `test` has too.
    fn new(cluster: &'a Kubernetes, containerd: &'a Containerd) -> Self {
        Self::with(cluster, containerd, &json!({}), &json!([]))
    }

    fn with(
        cluster: &'a Kubernetes,
        containerd: &'a Containerd,
        labels: &Value,
        taints: &Value,
    ) -> Self {
        let name = unique("node");
        let mut all =
            json!({"test": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"});
        for (key, value) in labels.as_object().unwrap() {
            all[key] = value.clone();
        }
        let node = json!({"metadata": {"name": name, "labels": all}, "spec": {"taints": taints}});
        cluster.create("/api/v1/nodes", node);
        Self {
            cluster,
            containerd,
            name,
        }
    }

    fn harpoon(&self) -> Harpoon {
        self.resyncing("2s")
    }

    /// The agent, which compares with the runtime so often.
    fn resyncing(&self, period: &str) -> Harpoon {
        self.of(self.containerd.endpoint(), period)
    }

    /// The agent of the runtime at this endpoint.
    fn of(&self, endpoint: &str, period: &str) -> Harpoon {
        Harpoon::new(["agent", "--resync", period])
            .args(["--metrics-address", "127.0.0.1:0"])
            .args(["--node-name", &self.name])
            .args(["--runtime-endpoint", endpoint])
            // The disk of the machine that runs the tests may be full.
            .env("DISK_HIGH_PERCENT", "100")
            .env("KUBECONFIG", self.cluster.kubeconfig())
            .limit(Duration::from_secs(600))
    }

    fn start(&self) -> Running {
        self.harpoon().start()
    }

    /// Plans an image for this Node only; returns the name of its object.
    fn plan(&self, image: &str, extra: &Value) -> String {
        let placement =
            json!({"nodeSelector": {"test": self.name}, "tolerations": [{"operator": "Exists"}]});
        let mut spec = json!({"prefetches": [self.name], "placements": [placement]});
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        plan(self.cluster, image, &spec)
    }

    /// The status of its NodePrefetch, or null.
    fn status(&self) -> Value {
        self.object()["status"].clone()
    }

    fn object(&self) -> Value {
        let list = self.cluster.get(&format!("{API}/nodeprefetches"));
        let items = list["items"].as_array().unwrap().iter();
        let mut own = items.filter(|item| item["metadata"]["name"] == self.name.as_str());
        own.next().cloned().unwrap_or_default()
    }

    /// The status and the reason of the condition Ready.
    fn ready(&self) -> (String, String) {
        let ready = &self.status()["conditions"][0];
        let text = |field: &str| ready[field].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    }

    #[track_caller]
    fn wait_ready(&self, agent: &Running) {
        self.wait_for(agent, "the node is ready", || self.ready().0 == "True");
    }

    /// Waits; shows the log and the object if it takes too long.
    #[track_caller]
    fn wait_for(&self, agent: &Running, what: &str, mut done: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done() {
            assert!(
                Instant::now() < end,
                "{what}: {:#}\n{}",
                self.object(),
                agent.stderr()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Pushes an image of its own to the shared registry; returns its reference.
fn push(name: &str) -> String {
    let name = format!("{}:1", unique(name));
    bed::registry().push(&name).reference
}

/// Creates a PlannedImage; returns its name.
fn plan(cluster: &Kubernetes, image: &str, spec: &Value) -> String {
    let name = unique("image");
    let mut object = json!({
        "apiVersion": "harpoon.dev/v1alpha1", "kind": "PlannedImage", "metadata": {"name": name}, "spec": {"image": image}
    });
    for (key, value) in spec.as_object().unwrap() {
        object["spec"][key] = value.clone();
    }
    cluster.create(&format!("{API}/plannedimages"), object);
    name
}

fn unplan(cluster: &Kubernetes, object: &str) {
    cluster.delete(&format!("{API}/plannedimages/{object}"));
}

/// The status and the body of a GET of the agent's own server.
fn served(agent: &Running, path: &str) -> (u16, String) {
    agent.wait_for("agent started", PATIENCE);
    let log = agent.stderr();
    let line = log.lines().find(|line| line.contains("agent started"));
    let (_, address) = line.unwrap().split_once("metrics=").unwrap();
    let address = address.split_whitespace().next().unwrap();
    let request = bed::client(None)
        .get(format!("http://{address}{path}"))
        .send();
    bed::block_on(async move {
        let answer = request.await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    })
}

#[test]
fn planned_image_is_pulled_and_reported() {
    let machine = Machine::new(cluster(), containerd());
    let agent = machine.start();
    machine.wait_ready(&agent);
    let image = push("agent");
    machine.plan(&image, &json!({"pods": 3}));
    machine.wait_for(&agent, "the image comes", || containerd().has(&image));
    let prefetch = |machine: &Machine<'_>| {
        let status = machine.status();
        let entries = status["prefetches"].as_array().cloned().unwrap_or_default();
        let mut own = entries
            .into_iter()
            .filter(|e| e["name"] == machine.name.as_str());
        own.next().unwrap_or_default()
    };
    machine.wait_for(&agent, "it is reported", || {
        prefetch(&machine)["present"] == 1
    });
    let object = machine.object();
    let node = cluster().get(&format!("/api/v1/nodes/{}", machine.name));
    let owner = &object["metadata"]["ownerReferences"][0];
    assert_eq!(owner["uid"], node["metadata"]["uid"]);
    let status = &object["status"];
    for (field, expected) in [
        ("desired", 1),
        ("present", 1),
        ("pulling", 0),
        ("failed", 0),
    ] {
        assert_eq!(status[field], expected, "{status:#}");
    }
    assert!(
        status["runtime"]
            .as_str()
            .unwrap()
            .starts_with("containerd ")
    );
    assert!(status["firstFillSeconds"].as_f64().unwrap() >= 0.0);
    assert!(status["imageStore"]["usedBytes"].as_i64().unwrap() > 0);
    assert!(humantime::parse_rfc3339(status["heartbeatTime"].as_str().unwrap()).is_ok());
    assert!(serde_json::to_vec(status).unwrap().len() <= 4096);
    let managers = object["metadata"]["managedFields"].as_array().unwrap();
    assert!(
        managers.iter().all(|m| m["manager"] == "harpoon-agent"),
        "{managers:?}"
    );
    let (code, metrics) = served(&agent, "/metrics");
    assert_eq!(code, 200);
    for line in [
        "harpoon_images{state=\"present\"} 1",
        "harpoon_pulls_total{outcome=\"pulled\",reason=\"\"} 1",
    ] {
        assert!(metrics.contains(line), "{metrics}");
    }
    assert_eq!(served(&agent, "/readyz").0, 200);
    assert_eq!(served(&agent, "/healthz").0, 200);
    agent.signal(Signal::TERM);
    agent.wait().expect(0);
}

#[test]
fn removed_image_is_pulled_again() {
    let machine = Machine::new(cluster(), containerd());
    let agent = machine.start();
    let image = push("agent");
    let once = push("agent");
    machine.plan(&image, &json!({}));
    machine.plan(&once, &json!({"retention": {"policy": "None"}}));
    machine.wait_for(&agent, "the images are reported", || {
        machine.status()["present"] == 2
    });
    containerd().remove(&image);
    containerd().remove(&once);
    machine.wait_for(&agent, "the image comes back", || containerd().has(&image));
    // Two more comparisons with the runtime.
    std::thread::sleep(Duration::from_secs(4));
    assert!(!containerd().has(&once));
}

/// Plans an image whose pull waits for its blobs without end; returns its registry and its PlannedImage.
fn waiting_pull(machine: &Machine<'_>, agent: &Running) -> (Proxy, String) {
    let proxy = Proxy::holding_blobs(bed::registry().url(), &Gate::new());
    let name = unique("agent");
    bed::registry().push(&format!("{name}:1"));
    let object = machine.plan(&proxy.reference(&format!("{name}:1")), &json!({}));
    machine.wait_for(agent, "the pull waits for its blobs", || proxy.now() > 0);
    (proxy, object)
}

#[test]
fn image_that_leaves_is_cancelled() {
    let machine = Machine::new(cluster(), containerd());
    let agent = machine.start();
    let (proxy, object) = waiting_pull(&machine, &agent);
    unplan(cluster(), &object);
    machine.wait_for(&agent, "the pull ends", || proxy.now() == 0);
    machine.wait_for(&agent, "it is not desired", || {
        machine.status()["desired"] == 0
    });
    assert_eq!(machine.ready().0, "True");
}

#[test]
fn signal_ends_agent_at_once() {
    for signal in [Signal::TERM, Signal::INT] {
        let machine = Machine::new(cluster(), containerd());
        let agent = machine.start();
        let (proxy, object) = waiting_pull(&machine, &agent);
        let began = Instant::now();
        agent.signal(signal);
        agent.wait().expect(0);
        // The runtime would wait for its blobs without end.
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{:?}",
            began.elapsed()
        );
        eventually("the pull ends", PATIENCE, || proxy.now() == 0);
        unplan(cluster(), &object);
    }
}

#[test]
fn failures_are_reported_others_complete() {
    let machine = Machine::new(cluster(), containerd());
    let agent = machine.start();
    let present = push("agent");
    let missing = bed::registry().reference(&format!("{}:1", unique("agent-missing")));
    let name = format!("{}:1", unique("agent-denied"));
    bed::registry_with_password().push(&name);
    let denied = bed::registry_with_password().reference(&name);
    let name = format!("{}:1", unique("agent-limited"));
    bed::registry().push(&name);
    let limiting = Proxy::start(bed::registry().url(), |seen| match seen.is_manifest() {
        true => Fault::too_many(1),
        false => Fault::Pass,
    });
    for image in [&present, &missing, &denied, &limiting.reference(&name)] {
        machine.plan(image, &json!({}));
    }
    let reasons = || {
        let status = machine.status();
        let failures = status["failures"].as_array().cloned().unwrap_or_default();
        let mut reasons: Vec<_> = failures
            .iter()
            .map(|failure| failure["reason"].as_str().unwrap().to_owned())
            .collect();
        reasons.sort();
        reasons
    };
    machine.wait_for(&agent, "all failures are reported", || {
        reasons() == ["not_found", "rate_limited", "unauthorized"] && containerd().has(&present)
    });
    machine.wait_for(&agent, "the counts are reported", || {
        let status = machine.status();
        status["failed"] == 3 && status["present"] == 1
    });
    let status = machine.status();
    let failures = status["failures"].as_array().unwrap();
    let of = |reason: &str| failures.iter().find(|f| f["reason"] == reason).unwrap();
    assert_eq!(of("not_found")["image"], missing.as_str());
    assert_eq!(machine.ready().0, "False");
    // A missing image does not keep the node from being ready for traffic.
    machine.wait_for(&agent, "the first fill is over", || {
        served(&agent, "/readyz").0 == 200
    });
}

#[test]
fn settings_are_checked_before_start() {
    let check = |arguments: &[&str], expected: &str| {
        let output = Harpoon::new(["agent"]).args(arguments).run().expect(2);
        assert!(output.stderr.contains(expected), "{output}");
    };
    check(&[], "--node-name");
    let node = ["--node-name", "n"];
    check(
        &[&node[..], &["--runtime-endpoint", "tcp://x"]].concat(),
        "unix:///PATH",
    );
    check(
        &[&node[..], &["--metrics-address", "localhost"]].concat(),
        "0.0.0.0:9464",
    );
    check(&[&node[..], &["--resync", "0s"]].concat(), "above zero");
}
