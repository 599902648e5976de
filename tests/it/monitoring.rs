//! Alerts and dashboard: promtool's unit tests, what the chart makes of them, and a Prometheus that scrapes a real controller and
//! agent.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bed::faulty::{Fault, Proxy};
use crate::bed::{self, Containerd, Harpoon, Kubernetes, Prometheus, Running};
use crate::pins::marks::fill;

const API: &str = "/apis/harpoon.dev/v1alpha1";
/// The size of containerd's disk.
const DISK: u64 = 400_000_000;
/// The time limit of steps that take some seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(90);

fn file(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn read(path: &str) -> String {
    fs::read_to_string(file(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn alerts() -> Vec<Value> {
    let rules: Value = serde_saphyr::from_str(&read("deploy/chart/files/alerts.yaml")).unwrap();
    rules["groups"][0]["rules"].as_array().unwrap().clone()
}

#[test]
fn alerts_pass_their_unit_tests() {
    let rules = file("deploy/chart/files/alerts.yaml");
    bed::run(
        Command::new("promtool")
            .args(["check", "rules"])
            .arg(&rules),
    );
    let tests = read("tests/it/monitoring/alerts_test.yaml");
    let directory = bed::directory();
    let path = directory.path().join("alerts_test.yaml");
    fs::write(&path, tests.replace("RULES", rules.to_str().unwrap())).unwrap();
    bed::run(Command::new("promtool").args(["test", "rules"]).arg(path));
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        let (fires, silent) = (
            format!("alertname: {name}\n        exp_alerts:"),
            format!("alertname: {name}}}"),
        );
        assert!(tests.contains(&fires) && tests.contains(&silent), "{name}");
    }
}

#[test]
fn alerts_are_documented() {
    let page = read("docs/monitoring.md");
    for alert in alerts() {
        let name = alert["alert"].as_str().unwrap();
        assert!(page.contains(&format!("\n### {name}\n")), "{name}");
        let runbook = format!("docs/monitoring.md#{}", name.to_lowercase());
        assert_eq!(alert["annotations"]["runbook"], *runbook);
    }
}

/// The expressions of the dashboard, with the values that Grafana would put in.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/harpoon.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let queries = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().into_iter().flatten();
        targets.map(|target| {
            let query = target["expr"].as_str().unwrap();
            let query = query
                .replace("$namespace", ".*")
                .replace("$__rate_interval", "1m");
            assert!(!query.contains('$'), "unknown variable: {query}");
            (panel["title"].as_str().unwrap().to_owned(), query)
        })
    });
    queries.collect()
}

#[test]
fn dashboard_panels_do_not_overlap() {
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/harpoon.json")).unwrap();
    let mut cells = std::collections::BTreeSet::new();
    let mut ids = std::collections::BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{title}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(cells.insert((x, y)), "{title}");
            }
        }
        if panel["type"] != "row" {
            assert!(panel["description"].is_string(), "{title}");
            let source = &panel["targets"][0]["datasource"]["uid"];
            assert_eq!(*source, "${datasource}", "{title}");
        }
    }
}

/// The names of metrics in a text.
fn metrics(text: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_word(c));
    words.filter(|w| w.starts_with("harpoon_")).collect()
}

#[test]
fn dashboard_uses_documented_metrics() {
    let page = read("docs/monitoring.md");
    let queries = queries();
    assert!(queries.len() > 20, "{queries:?}");
    let alerts = read("deploy/chart/files/alerts.yaml");
    let texts = queries.iter().map(|(_, query)| query.as_str());
    for text in texts.chain([alerts.as_str()]) {
        for name in metrics(text) {
            let name = name.trim_end_matches("_bucket");
            assert!(page.contains(&format!("| `{name}`")), "{name}");
        }
    }
    let titles: Vec<_> = queries.iter().map(|(title, _)| title.as_str()).collect();
    for title in [
        "Nodes by state",
        "Fill time of new nodes",
        "Failed pulls by reason",
        "Pulls",
        "Image stores",
    ] {
        assert!(titles.contains(&title), "{titles:?}");
    }
}

/// An API server with a node, a controller and agents, and a Prometheus that scrapes all of them.
struct Stage {
    cluster: Kubernetes,
    containerd: &'static Containerd,
    controller: Option<Running>,
    /// By the name of the node.
    agents: BTreeMap<&'static str, Running>,
    prometheus: Prometheus,
    targets: tempfile::TempDir,
}

impl Stage {
    fn start() -> Self {
        let cluster = Kubernetes::start();
        cluster.install_definitions();
        let node = json!({"metadata": {"name": "node-1", "labels": {"kubernetes.io/os": "linux"}}});
        cluster.create("/api/v1/nodes", node);
        let targets = bed::directory();
        let prometheus = Prometheus::start(&configuration(targets.path()));
        let mut stage = Self {
            controller: None,
            containerd: Box::leak(Box::new(Containerd::with_disk(DISK))),
            agents: BTreeMap::new(),
            prometheus,
            targets,
            cluster,
        };
        stage.start_agent("node-1", "100");
        stage.start_controller();
        stage
    }

    fn start_controller(&mut self) {
        self.controller = Some(program(&self.cluster, "controller").start());
        self.scrape();
    }

    /// Starts the agent of a node instead of the one before.
    fn start_agent(&mut self, node: &'static str, disk_high_percent: &str) {
        self.agents.remove(node);
        let agent = program(&self.cluster, "agent")
            .args(["--node-name", node, "--resync", "2s"])
            .args(["--runtime-endpoint", self.containerd.endpoint()])
            .env("DISK_HIGH_PERCENT", disk_high_percent);
        self.agents.insert(node, agent.start());
    }

    /// Tells Prometheus what runs.
    fn scrape(&self) {
        let target = |running, name: &str, value: &str| json!({"targets": [address(running)], "labels": {"namespace": "harpoon", name: value}});
        let controller = self.controller.iter();
        let mut targets: Vec<_> = controller
            .map(|controller| target(controller, "pod", "controller-a"))
            .collect();
        let agents = self.agents.iter();
        targets.extend(agents.map(|(node, agent)| target(agent, "node", node)));
        let (new, path) = ("targets.new", "targets.json");
        let new = self.targets.path().join(new);
        fs::write(&new, json!(targets).to_string()).unwrap();
        fs::rename(new, self.targets.path().join(path)).unwrap();
        let all_up = format!("sum(up) == count(up) == {}", targets.len());
        self.wait("all are scraped", |prometheus| {
            prometheus.value(&all_up).is_some()
        });
    }

    fn apply(&self, name: &str, image: &str) {
        let spec = json!({"source": {"images": [image]}, "rollout": {"type": "Immediate"}});
        let object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch",
            "metadata": {"name": name}, "spec": spec});
        self.cluster
            .create(&format!("{API}/imageprefetches"), object);
    }

    #[track_caller]
    fn wait(&self, what: &str, mut done: impl FnMut(&Prometheus) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !done(&self.prometheus) {
            let logs = || {
                let running = self.controller.iter().chain(self.agents.values());
                let logs: Vec<_> = running.map(Running::stderr).collect();
                format!("{:?}\n{}", self.prometheus.firing(), logs.join("\n"))
            };
            assert!(Instant::now() < end, "{what}: {}", logs());
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    #[track_caller]
    fn wait_for_alerts(&self, expected: &[&str]) {
        self.wait(&format!("alerts are {expected:?}"), |prometheus| {
            prometheus.firing() == expected
        });
    }
}

fn program(cluster: &Kubernetes, command: &str) -> Harpoon {
    Harpoon::new([command, "--metrics-address", "127.0.0.1:0"])
        .env("KUBECONFIG", cluster.kubeconfig())
        .limit(Duration::from_secs(900))
}

/// The address on which the program serves its metrics, from its log.
fn address(running: &Running) -> String {
    let mut address = None;
    bed::eventually("the metrics are served", PATIENCE, || {
        let log = running.stderr();
        let port = log
            .split("127.0.0.1:")
            .skip(1)
            .zip(log.split("127.0.0.1:"))
            .find(|(_, before)| before.ends_with("health on ") || before.ends_with("metrics="));
        address = port.map(|(rest, _)| {
            let end = rest.find(|c: char| !c.is_ascii_digit());
            format!("127.0.0.1:{}", &rest[..end.unwrap_or(rest.len())])
        });
        address.is_some()
    });
    address.unwrap()
}

/// A configuration with the alerts, which do not wait, and with the targets of a file.
fn configuration(directory: &Path) -> PathBuf {
    let mut rules: Value = serde_saphyr::from_str(&read("deploy/chart/files/alerts.yaml")).unwrap();
    for rule in rules["groups"][0]["rules"].as_array_mut().unwrap() {
        rule["for"] = json!("0s");
    }
    let path = |name: &str| directory.join(name);
    fs::write(path("rules.json"), rules.to_string()).unwrap();
    fs::write(path("targets.json"), "[]").unwrap();
    let configuration = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [path("rules.json")],
        "scrape_configs": [{
            "job_name": "harpoon",
            "file_sd_configs": [{"files": [path("targets.json")], "refresh_interval": "1s"}]
        }]
    });
    fs::write(path("prometheus.yml"), configuration.to_string()).unwrap();
    path("prometheus.yml")
}

#[test]
fn real_prometheus_alerts_and_fills_dashboard() {
    let mut stage = Stage::start();
    // The good case: everything is pulled, and nothing fires.
    let good = bed::registry().push(&bed::unique("monitoring/app"));
    stage.apply("good", &good.reference);
    let complete = r#"sum(harpoon_controller_nodes{state="complete"}) == 1 and sum(harpoon_images{state="present"}) == 1"#;
    stage.wait("the node is complete", |prometheus| {
        prometheus.value(complete).is_some()
    });
    stage.wait_for_alerts(&[]);

    // An image that does not exist.
    let missing = bed::registry().reference("monitoring/missing:1");
    stage.apply("bad", &missing);
    stage.wait_for_alerts(&["HarpoonImageFailing", "HarpoonNodeIncomplete"]);

    // Another image, so that there are pulls within the time that rates look at; then every query has data.
    let more = bed::registry().push(&bed::unique("monitoring/more"));
    stage.apply("more", &more.reference);
    let mut without: Vec<_> = queries();
    let unknown = "sum(harpoon_unknown)";
    assert_eq!(stage.prometheus.value(unknown), None, "the check can fail");
    let end = Instant::now() + PATIENCE;
    while !without.is_empty() {
        assert!(Instant::now() < end, "without data: {without:#?}");
        let prometheus = &stage.prometheus;
        without.retain(|(_, query)| !prometheus.value(query).is_some_and(f64::is_finite));
        std::thread::sleep(Duration::from_millis(200));
    }

    // A registry that limits the rate.
    let limiting = Proxy::start(bed::registry().url(), |_| Fault::too_many(1));
    stage.apply("limited", &limiting.reference("limited/app:1"));
    stage.wait_for_alerts(&[
        "HarpoonImageFailing",
        "HarpoonNodeIncomplete",
        "HarpoonRateLimited",
    ]);

    // No controller.
    stage.controller = None;
    let is_firing = |prometheus: &Prometheus, alert: &str| {
        let firing = prometheus.firing();
        firing.iter().any(|firing| firing == alert)
    };
    let alert = "HarpoonControllerWithoutLeader";
    stage.wait("no controller leads", |prometheus| {
        is_firing(prometheus, alert)
    });

    // The agent of a node has not reported for long when a controller starts.
    let silent = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "NodePrefetch", "metadata": {"name": "node-2"}});
    let path = format!("{API}/nodeprefetches");
    stage.cluster.create(&path, silent);
    let status = json!({"status": {"heartbeatTime": "2020-01-01T00:00:00Z"}});
    stage
        .cluster
        .patch(&format!("{path}/node-2/status"), status);
    stage.start_controller();
    stage.wait("a controller leads", |prometheus| {
        !is_firing(prometheus, alert)
    });
    let alert = "HarpoonNodeUnknown";
    stage.wait("a node is unknown", |prometheus| {
        is_firing(prometheus, alert)
    });

    // An agent whose Node does not exist, and one whose disk is above the mark.
    fill(stage.containerd, 25);
    stage.start_agent("nowhere", "100");
    stage.start_agent("node-1", "10");
    stage.scrape();
    for alert in ["HarpoonAgentUndecided", "HarpoonDiskYielding"] {
        stage.wait(alert, |prometheus| is_firing(prometheus, alert));
    }
}
