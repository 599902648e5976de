//! Draws the Grafana dashboard for the documentation: its own queries, answered by a real Prometheus that scrapes a controller
//! and the agents of some nodes while images and nodes are added and some images fail.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::bed::{Kubernetes, Prometheus, directory, eventually};
use super::page::{Line, Part, Shape, Unit};
use super::scale::fleet::{self, Fleet};
use super::scale::runtimes::{LIMITED, MISSING, Runtimes};
use super::scale::{Controller, node_object};

const DASHBOARD: &str = "deploy/grafana/harpoon.json";
/// Number of nodes at the start, and of those that join later.
const NODES: (usize, usize) = (40, 20);
/// The time between two steps of the story.
const STEP: Duration = Duration::from_secs(40);
/// The interval of Grafana's rates.
const RATE: &str = "20s";
/// Number of agents that start in a second.
const AGENTS_A_SECOND: usize = 200;
/// Seconds between two points of a line.
const RESOLUTION: f64 = 4.0;
const COLLECTION: &str = "/apis/harpoon.dev/v1alpha1/imageprefetches";

pub fn run(part: &mut Part, _: usize) {
    let (first, more) = NODES;
    let cluster = Kubernetes::start_newer();
    cluster.install_definitions();
    let runtimes = Runtimes::start(first + more);
    let join = |nodes: std::ops::Range<usize>| {
        let objects = nodes
            .clone()
            .map(|n| ("/api/v1/nodes".to_owned(), node_object(n)));
        cluster.create_each(objects);
        Fleet::start(
            cluster.kubeconfig(),
            runtimes.directory(),
            nodes,
            AGENTS_A_SECOND,
        )
    };
    let controller = Controller::start(&cluster);
    eventually("the controller serves", Duration::from_secs(60), || {
        controller.metrics().is_some()
    });
    let files = directory();
    let targets = files.path().join("targets.json");
    std::fs::write(&targets, scraped(&controller).to_string()).unwrap();
    let configuration = json!({
        "global": {"scrape_interval": "2s"},
        "scrape_configs": [{"job_name": "harpoon", "file_sd_configs": [{"files": [targets], "refresh_interval": "1s"}]}]
    });
    let file = files.path().join("prometheus.yml");
    std::fs::write(&file, configuration.to_string()).unwrap();
    let prometheus = Prometheus::start(&file);
    let began = (Instant::now(), now());
    let until = |step: u32| std::thread::sleep((STEP * step).saturating_sub(began.0.elapsed()));

    let shop: Vec<_> = (0..30)
        .map(|n| format!("registry.example/shop/service-{n:02}:1"))
        .collect();
    create(&cluster, "shop", &shop, "10s");
    let agents = join(0..first);
    until(2);
    create(
        &cluster,
        "release-42",
        &["registry.example/shop/web:42".into()],
        "30s",
    );
    until(3);
    let joined = join(first..first + more);
    until(4);
    create(
        &cluster,
        "broken",
        &[format!("registry.example{MISSING}web:1")],
        "10s",
    );
    create(
        &cluster,
        "busy",
        &[format!("registry.example{LIMITED}web:1")],
        "10s",
    );
    until(6);
    cluster.delete(&format!("{COLLECTION}/broken"));
    cluster.delete(&format!("{COLLECTION}/busy"));
    until(7);
    record(part, &prometheus, (began.1, now()));
    drop((agents, joined, controller));
    part.say(&format!(
        "The queries of `{DASHBOARD}` on a Prometheus that scraped a controller and the agents of {first} nodes, then {}, on a stand-in for their runtimes: 30 images on new nodes, \
         a release on all nodes, {more} more nodes, an image that does not exist, and a registry that limits the rate.",
        first + more
    ));
    part.say("Command: `make bench ONLY=dashboard`.");
}

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_secs_f64()
}

/// The targets of Prometheus: also the agents of nodes that join later.
fn scraped(controller: &Controller) -> Value {
    let agents = (0..NODES.0 + NODES.1).map(|n| {
        let labels = json!({"namespace": "harpoon", "node": fleet::node(n)});
        json!({"targets": [fleet::metrics(n)], "labels": labels})
    });
    let labels = json!({"namespace": "harpoon", "pod": "controller"});
    let controller = json!({"targets": [controller.metrics()], "labels": labels});
    agents.chain([controller]).collect()
}

fn create(cluster: &Kubernetes, name: &str, images: &[String], window: &str) {
    let spec =
        json!({"source": {"images": images}, "rollout": {"type": "Linear", "window": window}});
    let object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch",
        "metadata": {"name": name}, "spec": spec});
    cluster.create(COLLECTION, object);
}

/// Records the panels, each in its place, with the answers to its queries, of which each must have one.
fn record(part: &mut Part, prometheus: &Prometheus, time: (f64, f64)) {
    let text = std::fs::read_to_string(DASHBOARD).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        let defaults = &panel["fieldConfig"]["defaults"];
        let unit = match defaults["unit"].as_str().unwrap_or_default() {
            "percentunit" => Unit::Percent,
            "s" => Unit::Seconds,
            "bytes" | "Bps" => Unit::Bytes,
            _ => Unit::Number,
        };
        let shape = match panel["type"].as_str().unwrap() {
            "row" => Shape::Heading,
            "stat" => Shape::Number,
            _ if defaults["custom"]["stacking"]["mode"] == "normal" => Shape::Stacked,
            _ => Shape::Lines,
        };
        let place = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_i64().unwrap());
        let head = Line::Panel {
            panel: panel["title"].as_str().unwrap().to_owned(),
            shape,
            unit,
            place: place.map(|cells| i32::try_from(cells).unwrap()),
        };
        let mut series = series(prometheus, panel, time);
        assert!(
            shape == Shape::Heading || !series.is_empty(),
            "no data for the panel {}",
            panel["title"]
        );
        if shape == Shape::Number {
            series.truncate(1);
            for (_, points) in &mut series {
                points.drain(..points.len() - 1);
            }
        }
        part.panel(head, series);
    }
}

/// The series of a panel: names, seconds since the start and values.
fn series(
    prometheus: &Prometheus,
    panel: &Value,
    (from, to): (f64, f64),
) -> Vec<(String, Vec<(f64, f64)>)> {
    let targets = panel["targets"].as_array().into_iter().flatten();
    let series = targets.flat_map(|target| {
        let query = target["expr"].as_str().unwrap();
        let query = query
            .replace("$namespace", ".*")
            .replace("$__rate_interval", RATE);
        let answer = prometheus.range(&query, (from, to), RESOLUTION);
        let legend = target["legendFormat"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        answer.into_iter().map(move |(labels, points)| {
            let points = points.into_iter().filter(|point| point.1.is_finite());
            let points = points.map(|(at, value)| (digits(at - from), digits(value)));
            (named(&legend, &labels), points.collect::<Vec<_>>())
        })
    });
    let mut series: Vec<_> = series.filter(|(_, points)| !points.is_empty()).collect();
    // What did not occur is there too.
    series.sort_by_key(|(_, points)| points.iter().all(|point| point.1 == 0.0));
    series.truncate(8);
    series
}

/// The number with three digits: more are not seen in a picture.
fn digits(value: f64) -> f64 {
    format!("{value:.2e}").parse().unwrap()
}

/// The legend of a series, as Grafana makes it.
fn named(legend: &str, labels: &Value) -> String {
    let mut name = legend.to_owned();
    while let Some((before, rest)) = name.split_once("{{") {
        let (label, after) = rest.split_once("}}").unwrap_or((rest, ""));
        let value = labels[label.trim()].as_str().unwrap_or_default();
        name = format!("{before}{value}{after}");
    }
    name.split_whitespace().collect::<Vec<_>>().join(" ")
}
