//! A Prometheus on the node, configured as docs/monitoring.md says.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::*;

const ADDRESS: &str = "127.0.0.1:9090";
const PATIENCE: Duration = Duration::from_secs(120);
/// Seconds after which it ends by itself.
const LIFETIME: &str = "600";

/// A running Prometheus.
struct Prometheus<'a> {
    cluster: &'a Cluster,
    child: Child,
    log: PathBuf,
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let quit = format!("http://{ADDRESS}/-/quit");
        let mut curl = self.cluster.inside("curl");
        let _ = curl.args(["-s", "-X", "POST", &quit]).output();
        let _ = self.child.wait();
    }
}

impl Prometheus<'_> {
    /// The number that a query of one series has as its result.
    fn value(&self, query: &str) -> Option<String> {
        let mut promtool = self.cluster.inside("promtool");
        promtool.args(["query", "instant", &format!("http://{ADDRESS}"), query]);
        let output = promtool.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (_, value) = text.split_once("=> ")?;
        value.split_whitespace().next().map(str::to_owned)
    }

    #[track_caller]
    fn wait_for(&self, query: &str, expected: &str) {
        let end = Instant::now() + PATIENCE;
        loop {
            let value = self.value(query);
            if value.as_deref() == Some(expected) {
                return;
            }
            if Instant::now() > end {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let targets = self
                    .cluster
                    .inside("curl")
                    .args(["-s", &format!("http://{ADDRESS}/api/v1/targets")])
                    .output();
                let targets = String::from_utf8_lossy(&targets.unwrap().stdout).into_owned();
                panic!("{query} is {value:?}, not {expected}\n{log}\n{targets}");
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

/// The configuration that the page shows.
fn documented() -> Value {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring.md");
    let page = std::fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once("\n    scrape_configs:\n").unwrap();
    let lines = rest.lines().map_while(|line| line.strip_prefix("    "));
    let lines: Vec<_> = lines.collect();
    serde_saphyr::from_str(&format!("scrape_configs:\n{}\n", lines.join("\n"))).unwrap()
}

/// The targets that a discovery of pods finds; Debian's Prometheus is built without it.
fn discovered(cluster: &Cluster) -> Value {
    let mut targets = Vec::new();
    for pod in cluster.pods(NAMESPACE, "") {
        let (metadata, spec) = (&pod["metadata"], &pod["spec"]);
        let containers = spec["containers"].as_array().unwrap().iter();
        let ports = containers.flat_map(|container| container["ports"].as_array());
        for port in ports.flatten() {
            let address = format!(
                "{}:{}",
                text(&pod["status"]["podIP"]),
                port["containerPort"]
            );
            targets.push(json!({"targets": [address], "labels": {
                "__meta_kubernetes_namespace": metadata["namespace"],
                "__meta_kubernetes_pod_name": metadata["name"],
                "__meta_kubernetes_pod_node_name": spec["nodeName"],
                "__meta_kubernetes_pod_label_app_kubernetes_io_name": metadata["labels"]["app.kubernetes.io/name"].as_str().unwrap_or_default(),
                "__meta_kubernetes_pod_container_port_name": port["name"].as_str().unwrap_or_default(),
            }}));
        }
    }
    json!(targets)
}

/// It finds the controllers and the agent of the installed chart, and no alert has a reason.
pub(super) fn by_prometheus(cluster: &Cluster) {
    let mut configuration = documented();
    let scrape = configuration["scrape_configs"][0].as_object_mut().unwrap();
    let discovery = json!([{"role": "pod", "namespaces": {"names": [NAMESPACE]}}]);
    assert_eq!(scrape.remove("kubernetes_sd_configs"), Some(discovery));
    scrape.insert("static_configs".to_owned(), discovered(cluster));
    let alerts = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/chart/files/alerts.yaml");
    assert_eq!(configuration["rule_files"], json!(["alerts.yaml"]));
    configuration["rule_files"] = json!([alerts]);
    configuration["global"] = json!({"scrape_interval": "2s", "evaluation_interval": "2s"});
    let directory = crate::bed::directory();
    let file = directory.path().join("prometheus.yml");
    std::fs::write(&file, configuration.to_string()).unwrap();

    let log = directory.path().join("log");
    let mut command = cluster.inside("timeout");
    command
        .args([LIFETIME, "prometheus", "--web.enable-lifecycle"])
        .arg(format!("--web.listen-address={ADDRESS}"))
        .arg(format!("--config.file={}", file.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            directory.path().join("data").display()
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log).unwrap());
    let child = command.spawn().unwrap();
    let prometheus = Prometheus {
        cluster,
        child,
        log,
    };
    prometheus.wait_for(r#"sum(up{job="harpoon"})"#, "3");
    prometheus.wait_for("sum(harpoon_controller_leader)", "1");
    let complete =
        r#"max by (node) (harpoon_images{namespace="harpoon",node="node-1",state="present"}) > 0"#;
    prometheus.wait_for(complete, "1");
    prometheus.wait_for("count(ALERTS) or vector(0)", "0");
}
