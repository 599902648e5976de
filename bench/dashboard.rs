//! Draws the Grafana dashboard for the documentation: its own queries, answered by a real Prometheus that scrapes a controller
//! and the agents of some nodes while images and nodes are added and some images fail.

use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

use super::bed::{Kubernetes, Prometheus, directory, eventually};
use super::page::Part;
use super::plot::{Chart, Line, Picture, Place, Unit};
use super::scale::fleet::{self, Fleet};
use super::scale::runtimes::{LIMITED, MISSING, Runtimes};
use super::scale::{Controller, node_object};

const DASHBOARD: &str = "deploy/grafana/harpoon.json";
const PICTURE: &str = "docs/img/dashboard.svg";
/// Number of nodes at the start, and of those that join later.
const NODES: (usize, usize) = (40, 20);
/// The time between two steps of the story.
const STEP: Duration = Duration::from_secs(40);
/// The interval of Grafana's rates.
const RATE: &str = "20s";
/// A column and a row of the dashboard's grid, in pixels.
const CELL: (f64, f64) = (50.0, 26.0);
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
        Fleet::start(cluster.kubeconfig(), runtimes.directory(), nodes)
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
    draw(&prometheus, (began.1, now()));
    drop((agents, joined, controller));
    part.say(&format!(
        "![The Grafana dashboard]({})",
        PICTURE.trim_start_matches("docs/")
    ));
    part.say(&format!(
        "The queries of `{DASHBOARD}` on a Prometheus that scraped a controller and the agents of {first} nodes, then {}, on a stand-in for their runtimes: 30 images on new nodes, \
         a release on all nodes, {more} more nodes, an image that does not exist, and a registry that limits the rate. Command: `make bench ONLY=dashboard`.",
        first + more
    ));
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

/// Draws all panels where Grafana would.
fn draw(prometheus: &Prometheus, time: (f64, f64)) {
    let text = std::fs::read_to_string(DASHBOARD).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let at = |panel: &Value, key: &str| panel["gridPos"][key].as_f64().unwrap();
    let rows = panels.iter().map(|panel| at(panel, "y") + at(panel, "h"));
    let height = rows.fold(0.0, f64::max) * CELL.1;
    let mut picture = Picture::new(24.0 * CELL.0, height);
    for panel in panels {
        let place = Place {
            x: at(panel, "x") * CELL.0 + 4.0,
            y: at(panel, "y") * CELL.1 + 4.0,
            width: at(panel, "w") * CELL.0 - 8.0,
            height: at(panel, "h") * CELL.1 - 8.0,
        };
        let title = panel["title"].as_str().unwrap();
        let defaults = &panel["fieldConfig"]["defaults"];
        let unit = match defaults["unit"].as_str().unwrap_or_default() {
            "percentunit" => Unit::Percent,
            "s" => Unit::Seconds,
            "bytes" | "Bps" => Unit::Bytes,
            _ => Unit::Number,
        };
        if panel["type"] == "row" {
            picture.heading(place.x, place.y + 16.0, title);
            continue;
        }
        let lines = lines(prometheus, panel, time);
        if panel["type"] == "stat" {
            let last = lines.first().and_then(|line| line.points.last());
            let value = last.map_or_else(|| "-".to_owned(), |point| unit.show(point.1));
            picture.number(place, title, &value);
            continue;
        }
        let minutes = |seconds: f64| format!("{}:{:02}", seconds as u64 / 60, seconds as u64 % 60);
        let chart = Chart {
            title: title.to_owned(),
            unit,
            x: minutes,
            ticks: Vec::new(),
            is_log: false,
            lines,
            is_stacked: defaults["custom"]["stacking"]["mode"] == "normal",
        };
        picture.chart(place, &chart);
    }
    picture.write(PICTURE);
}

/// The series of a panel, with seconds since the start.
fn lines(prometheus: &Prometheus, panel: &Value, (from, to): (f64, f64)) -> Vec<Line> {
    let targets = panel["targets"].as_array().unwrap().iter();
    let lines = targets.flat_map(|target| {
        let query = target["expr"].as_str().unwrap();
        let query = query
            .replace("$namespace", ".*")
            .replace("$__rate_interval", RATE);
        let series = prometheus.range(&query, (from, to), 2.0);
        let legend = target["legendFormat"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        series.into_iter().map(move |(labels, points)| Line {
            name: named(&legend, &labels),
            points: points
                .into_iter()
                .filter(|point| point.1.is_finite())
                .map(|(at, value)| (at - from, value))
                .collect(),
        })
    });
    let mut lines: Vec<_> = lines.filter(|line| !line.points.is_empty()).collect();
    lines.truncate(8);
    lines
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
