//! The node gate on a real node: its pods wait for the scheduler, its condition beside those of the kubelet.
//!
//! The node is older than the steps, so that their timeouts count from its age.

use std::time::{Duration, SystemTime};

use super::continuous::Release;
use super::*;

const GATE: &str = "harpoon.dev/not-prefetched";
const CONTROLLER: &str = "deployment/harpoon-controller";
/// Longer than any step.
const LONG: Duration = Duration::from_secs(3600);
/// The longest time from the timeout, or from a start of a controller, to the open gate: a Lease has to end first.
const TAKEOVER: Duration = Duration::from_secs(40);

/// A release whose controller may run on the tainted node, which is the only one.
struct Gated<'a> {
    release: Release<'a>,
}

impl Drop for Gated<'_> {
    fn drop(&mut self) {
        let cluster = self.release.turn.cluster;
        let kubectl = |arguments: &[&str]| {
            let kubectl = tool("kubectl");
            let mut command = cluster.inside(kubectl.get_program().to_str().unwrap());
            command.arg("--kubeconfig").arg(cluster.api.kubeconfig());
            command.args(arguments).output()
        };
        if std::thread::panicking() {
            let log = |workload| ["logs", workload, "-n", NAMESPACE, "--tail=50"];
            for arguments in [
                &[
                    "get",
                    "node",
                    "node-1",
                    "-o",
                    "jsonpath={.spec} {.status.conditions}",
                ][..],
                &["get", "npf,pli", "-o", "yaml"],
                &log("daemonset/harpoon-agent"),
                &log(CONTROLLER),
            ] {
                let told = kubectl(arguments).map(|output| output.stdout);
                let told = String::from_utf8_lossy(&told.unwrap_or_default()).into_owned();
                eprintln!("--- {arguments:?}\n{told}");
            }
        }
        let taint = format!("{GATE}:NoSchedule-");
        _ = kubectl(&["taint", "nodes", "--all", &taint]);
    }
}

impl<'a> Gated<'a> {
    fn install(turn: &'a Turn<'a>) -> Self {
        let release = Release { turn };
        let controller = json!({"tolerations": [{"operator": "Exists"}]});
        let continuous = json!({"nodeGate": true, "controller": controller});
        release.apply(
            "install",
            &json!({"mode": "continuous", "continuous": continuous}),
        );
        release.wait_for_rollout(CONTROLLER);
        release.wait_for_rollout("daemonset/harpoon-agent");
        Self { release }
    }

    fn cluster(&self) -> &'a Cluster {
        self.release.turn.cluster
    }

    fn node(&self) -> Value {
        self.cluster().api.get("/api/v1/nodes/node-1")
    }

    /// Applies an ImagePrefetch of one image, whose gate opens this long from now. The node has had its first fill, and would wait
    /// for its slot otherwise.
    fn gate(&self, name: &str, image: &str, left: Duration) {
        let created = self.node()["metadata"]["creationTimestamp"].take();
        let created = humantime::parse_rfc3339(text(&created)).unwrap();
        let timeout = SystemTime::now().duration_since(created).unwrap() + left;
        let spec = json!({"source": {"images": [image]}, "retention": {"keepAfterUnused": "0s"},
            "rollout": {"type": "Immediate"},
            "nodeGate": {"timeout": format!("{}s", timeout.as_secs())}});
        let prefetch = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch",
            "metadata": {"name": name}, "spec": spec});
        self.cluster().apply(&prefetch.to_string());
    }

    /// The same, once the controller knows it.
    fn known_gate(&self, name: &str, image: &str, left: Duration) {
        self.gate(name, image, left);
        let path = format!("/apis/harpoon.dev/v1alpha1/imageprefetches/{name}");
        self.until("the controller knows the gate", || {
            self.cluster().api.get(&path)["status"]["observedGeneration"] == 1
        });
    }

    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let look = || is_so().then_some(());
        self.cluster().wait_for(NAMESPACE, what, look);
    }

    /// Gives the node the taint, as one that joins with it has.
    fn taint(&self) {
        let taint = format!("{GATE}=true:NoSchedule");
        self.cluster()
            .kubectl(&["taint", "nodes", "node-1", &taint]);
    }

    fn is_tainted(&self) -> bool {
        self.node()["spec"]["taints"].to_string().contains(GATE)
    }

    /// A condition of the node.
    fn condition(&self, kind: &str) -> Value {
        let conditions = self.node()["status"]["conditions"].take();
        let mut conditions = conditions.as_array().unwrap().iter();
        conditions
            .find(|condition| condition["type"] == kind)
            .cloned()
            .unwrap_or_default()
    }

    /// Waits until the node's condition has this status and reason, and returns its message.
    fn told(&self, status: &str, reason: &str) -> String {
        let what = format!("ImagesPrefetched: {status} {reason}");
        let told = self.cluster().wait_for(NAMESPACE, &what, || {
            let told = self.condition("ImagesPrefetched");
            (told["status"] == status && told["reason"] == reason).then_some(told)
        });
        text(&told["message"]).to_owned()
    }

    /// Creates a pod of a Deployment, which the scheduler keeps pending because of the taint.
    fn pending_pod(&self, name: &str) {
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{name}");
        self.cluster()
            .api
            .patch(&path, json!({"spec": {"replicas": 1}}));
        self.until("the pod waits because of the taint", || {
            self.is_pending(name, GATE)
        });
    }

    fn is_pending(&self, name: &str, reason: &str) -> bool {
        let pods = self.cluster().pods(NAMESPACE, &format!("app={name}"));
        let waits = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array();
            pod["status"]["phase"] == "Pending"
                && conditions.into_iter().flatten().any(|condition| {
                    condition["type"] == "PodScheduled"
                        && condition["status"] == "False"
                        && text(&condition["message"]).contains(reason)
                })
        };
        pods.len() == 1 && waits(&pods[0])
    }

    /// Waits until the gate is open, and returns how long that took.
    fn opens(&self) -> Duration {
        let began = Instant::now();
        self.until("the taint is removed", || !self.is_tainted());
        began.elapsed()
    }

    fn delete(&self, prefetch: &str) {
        self.cluster().kubectl(&["delete", "ipf", prefetch]);
    }

    fn scale_controller(&self, replicas: u32) {
        let replicas = format!("--replicas={replicas}");
        self.cluster()
            .kubectl(&["scale", CONTROLLER, &replicas, "-n", NAMESPACE]);
    }

    fn stop_controllers(&self) {
        self.scale_controller(0);
        // One that is being terminated still opens gates.
        self.until("no controller runs", || {
            let selector = "app.kubernetes.io/component=controller";
            self.cluster().all_pods(NAMESPACE, selector).is_empty()
        });
    }
}

/// A pod is pending until the images of the node are there; then it starts without a pull.
pub(super) fn holds_pods(turn: &Turn<'_>) {
    let gated = Gated::install(turn);
    let image = turn.idle("gated");
    let frozen = turn.cluster.freeze_registry();
    gated.known_gate("base", &image, LONG);
    gated.taint();
    gated.pending_pod("gated");
    let message = gated.told("False", "Pulling");
    assert!(message.contains("base"), "{message}");
    std::thread::sleep(Duration::from_secs(5));
    assert!(gated.is_tainted() && gated.is_pending("gated", GATE));
    assert!(!turn.cluster.has(&image));
    drop(frozen);
    let opened = gated.opens();
    assert!(turn.cluster.has(&image));
    eprintln!("e2e: the gate opened {opened:.1?} after the registry was back");
    gated.release.starts_warm("gated", &image);
    gated.told("True", "Complete");
    // The kubelet writes its own conditions, every second here, and leaves this one.
    let told = gated.condition("ImagesPrefetched");
    gated.until("the kubelet has written its status", || {
        let beat = gated.condition("Ready")["lastHeartbeatTime"].take();
        let since = [&beat, &told["lastTransitionTime"]];
        let [beat, since] = since.map(|at| humantime::parse_rfc3339(text(at)).unwrap());
        beat > since + Duration::from_secs(5)
    });
    assert_eq!(gated.condition("ImagesPrefetched"), told);
    assert_eq!(gated.node()["spec"]["taints"], Value::Null);
}

/// A broken image, killed controllers and no controller hold no node beyond the timeout.
pub(super) fn fails_open(turn: &Turn<'_>) {
    let gated = Gated::install(turn);
    let cluster = turn.cluster;
    turn.idle("web");
    let broken = cluster.reference(&format!("{}:1", unique("broken")));

    let left = Duration::from_secs(60);
    let end = Instant::now() + left;
    gated.known_gate("broken", &broken, left);
    gated.taint();
    gated.pending_pod("web");
    let message = gated.told("False", "ImageFailed");
    assert!(message.contains(&broken), "{message}");
    gated.opens();
    let opened = Instant::now();
    eprintln!(
        "e2e: a broken image: opened {:.1?} after the timeout",
        opened.saturating_duration_since(end)
    );
    // Times of objects are in whole seconds.
    assert!(opened + Duration::from_secs(2) > end);
    assert!(opened < end + TAKEOVER);
    turn.scale_up("web");
    let message = gated.told("True", "TimedOut");
    assert!(message.contains(&broken), "{message}");
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    gated.until("an event names the image", || {
        let events = cluster.api.get(events)["items"].take();
        events.as_array().unwrap().iter().any(|event| {
            event["reason"] == "TimedOut"
                && event["regarding"]["name"] == "node-1"
                && text(&event["note"]).contains(&broken)
        })
    });
    gated.delete("broken");
    gated.told("True", "NoGate");

    // Both controllers are killed, and the kubelet starts them again.
    let left = Duration::from_secs(60);
    let end = Instant::now() + left;
    gated.known_gate("killed", &broken, left);
    gated.taint();
    gated.told("False", "ImageFailed");
    for pod in cluster.pods(NAMESPACE, "app.kubernetes.io/component=controller") {
        let id = text(&pod["status"]["containerStatuses"][0]["containerID"]);
        let id = id.strip_prefix("containerd://").unwrap();
        cluster.ctr(&["tasks", "kill", "--signal", "SIGKILL", id]);
    }
    gated.opens();
    let late = Instant::now().saturating_duration_since(end);
    eprintln!("e2e: killed controllers: opened {late:.1?} after the timeout");
    assert!(late < TAKEOVER, "{late:?}");
    gated.told("True", "TimedOut");
    gated.delete("killed");
    gated.told("True", "NoGate");

    // None runs while the timeout passes: it opens when one does, and by hand at any time.
    gated.stop_controllers();
    gated.taint();
    gated.gate("outage", &broken, Duration::from_secs(5));
    std::thread::sleep(Duration::from_secs(10));
    assert!(gated.is_tainted());
    gated.scale_controller(2);
    gated.release.wait_for_rollout(CONTROLLER);
    let opened = gated.opens();
    eprintln!("e2e: no controller at the timeout: opened {opened:.1?} after one was ready");
    assert!(opened < TAKEOVER, "{opened:?}");
    gated.told("True", "TimedOut");
    gated.stop_controllers();
    gated.taint();
    cluster.kubectl(&["taint", "nodes", "--all", &format!("{GATE}:NoSchedule-")]);
    assert!(!gated.is_tainted());
}
