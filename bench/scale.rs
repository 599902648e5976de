//! Continuous mode on large clusters: a real API server with its etcd, the real controller, and the real agents of many nodes on
//! a stand-in for their runtimes.
//!
//! `NODES="100 1000 5000"` in the environment chooses the numbers of nodes.

use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bed::large::{self, DEPLOYMENT_BYTES, deployment, namespace};
use super::bed::{Kubernetes, eventually};
use super::measure::{cpu_of, harpoon, memory_of, peak_of};
use super::page::Part;
use super::results::median;

mod delivery;
pub mod fleet;
mod objects;
pub mod runtimes;
mod server;
mod watch;

pub use fleet::{ARGUMENT as AGENTS, main as agents};

use fleet::{Fleet, node};
use runtimes::{Pulls, Runtimes};
use server::{Cost, Counters};
use watch::Watch;

const API: &str = "/apis/harpoon.dev/v1alpha1";
const NODES: &str = "100 1000 5000";
/// Number of images of the ImagePrefetch for the Deployments.
const IMAGES: usize = 500;
/// The largest number of Deployments, and their number for each node.
const DEPLOYMENTS: (usize, usize) = (20_000, 4);
/// The time limit of each step.
const PATIENCE: Duration = Duration::from_secs(900);
/// The time for which a settled cluster is measured: each agent gives one sign of life.
const IDLE: Duration = Duration::from_secs(120);
/// Number of agents that start in a second, as many as the controller of DaemonSets creates with its defaults.
const STARTS: usize = 20;
/// Number of agents that two cores serve without a queue.
const FEW: usize = 100;
/// The largest number of agents that are started at once.
const AT_ONCE: usize = 1000;
const CONTROLLER_KINDS: [&str; 3] = ["imageprefetches", "plannedimages", "events"];

/// Measures, and writes the part of the page.
pub fn run(part: &mut Part, runs: usize) {
    let chosen = std::env::var("NODES").unwrap_or_default();
    let chosen = if chosen.trim().is_empty() {
        NODES
    } else {
        &chosen
    };
    let sizes = chosen.split_whitespace().map(|n| n.parse().unwrap());
    let columns: Vec<(usize, Figures)> = sizes.map(|n| (n, figures(n, runs))).collect();
    introduce(part);
    for (n, _) in columns.iter().filter(|(_, figures)| !figures.is_whole) {
        part.say(&format!(
            "With {n} nodes the run failed: its figures are those until then."
        ));
    }
    let titles = columns.iter().map(|(n, _)| format!("{n} nodes"));
    let titles: Vec<_> = std::iter::once(String::new()).chain(titles).collect();
    let most = columns.iter().max_by_key(|(_, figures)| figures.rows.len());
    let names = most.map_or(&[][..], |(_, figures)| &figures.rows);
    let rows = names.iter().map(|(name, _)| {
        let cell = |figures: &Figures| {
            let mut of = figures.rows.iter().filter(|(other, _)| other == name);
            of.next().map_or(String::new(), |(_, text)| text.clone())
        };
        let cells = columns.iter().map(|(_, figures)| cell(figures));
        std::iter::once(name.clone()).chain(cells).collect()
    });
    let rows: Vec<Vec<String>> = rows.collect();
    part.texts(&titles, &rows);
    part.say(
        "Command: `make bench ONLY=scale`, with `NODES=\"100 1000\"` for other numbers of nodes.",
    );
}

fn introduce(part: &mut Part) {
    part.say(&format!(
        "Continuous mode on an API server built on the libraries of Kubernetes 1.36 with its etcd, {} Deployments a node (at most {}) of {} KB, {IMAGES} planned images, two controllers, \
         and the real agent of each node, up to 2,500 in a process, each with connections of its own. All of it shares the CPUs of this machine. \
         The nodes' runtimes are a stand-in that speaks CRI on a Unix socket for each node: a pull takes {} s more or less a quarter, and nothing is transferred. \
         *Peers*: each node that has the image serves {} pulls at a time, and the registry serves the others. \
         Times of starts count from the PlannedImage's write to the call of the runtime. *Bytes* are those of the API server's metrics, before compression and TLS.",
        DEPLOYMENTS.1,
        DEPLOYMENTS.0,
        DEPLOYMENT_BYTES / 1000,
        runtimes::PULL.as_secs(),
        runtimes::UPLOADS,
    ));
}

/// The named figures of one number of nodes, as texts.
#[derive(Default)]
struct Figures {
    rows: Vec<(String, String)>,
    /// False if something failed before the end.
    is_whole: bool,
}

impl Figures {
    fn add(&mut self, name: &str, text: impl Into<String>) {
        let text = text.into();
        eprintln!("   {name}: {text}");
        self.rows.push((name.to_owned(), text));
    }

    /// Adds the row of a time by which half of the nodes, 99% of them and all are served.
    fn times(&mut self, name: &str, at: impl Fn(f64) -> f64) {
        let times = [0.5, 0.99, 1.0].map(|part| format!("{:.2} s", at(part)));
        self.add(&format!("{name}, p50, p99, last"), times.join(", "));
    }

    /// Adds the rows of a phase's cost to the API server.
    fn cost(&mut self, phase: &str, cost: &Cost) {
        eprintln!("   {phase}: {}", cost.shown());
        self.add(
            &format!("{phase}: API server CPU, etcd CPU"),
            format!("{:.1} s, {:.1} s", cost.cpu[0], cost.cpu[1]),
        );
        self.add(
            &format!("{phase}: requests, events of watches, bytes"),
            format!(
                "{:.0}, {:.0}, {:.1} MB",
                cost.requests(),
                cost.watch_events,
                cost.bytes / 1e6
            ),
        );
        self.add(
            &format!("{phase}: API server memory, peak"),
            format!("{:.0} MiB ({:+.0})", cost.memory, cost.more_memory),
        );
    }
}

fn figures(nodes: usize, runs: usize) -> Figures {
    let began = Instant::now();
    eprintln!("-- {nodes} nodes");
    let mut figures = Figures::default();
    let all = AssertUnwindSafe(|| measure(nodes, runs, &mut figures));
    figures.is_whole = catch_unwind(all).is_ok();
    eprintln!("-- {nodes} nodes took {:.0?}", began.elapsed());
    figures
}

fn measure(nodes: usize, runs: usize, figures: &mut Figures) {
    let mut stage = Stage::start(nodes, figures);
    stage.join(figures);
    stage.idle(figures);
    stage.new_images(figures, runs.clamp(1, 3));
    stage.rollouts(figures);
    stage.failover(figures);
    stage.restarts(figures);
    stage.controller_figures(figures);
    stage.fleet = None;
    stage.controllers.clear();
    std::thread::sleep(Duration::from_secs(5));
    watches_alone(&stage.cluster, nodes, figures);
    stage.few_agents(figures);
    stage.fleet = None;
    other_design(&stage.cluster, nodes, figures);
}

/// A controller, and what it logs.
pub struct Controller {
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Controller {
    pub fn start(cluster: &Kubernetes) -> Self {
        let mut command = harpoon(["controller", "--metrics-address", "127.0.0.1:0"]);
        command.env("KUBECONFIG", cluster.kubeconfig());
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let written = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                writeln!(written.lock().unwrap(), "{line}").unwrap();
            }
        });
        Self { child, log }
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The address of its metrics, once it serves them.
    pub fn metrics(&self) -> Option<String> {
        let log = self.log.lock().unwrap();
        let (_, address) = log.split_once("health on ")?;
        address.split_whitespace().next().map(str::to_owned)
    }

    fn leads(&self) -> bool {
        let log = self.log.lock().unwrap();
        let mut turns = log.lines().rev().filter(|line| line.contains(" leading"));
        turns.next().is_some_and(|last| !last.contains("no longer"))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log.lock().unwrap();
        for line in log.lines().filter(|line| line.contains("WARN")).take(20) {
            eprintln!("   controller: {line}");
        }
    }
}

/// A cluster with everything in it.
struct Stage {
    cluster: Kubernetes,
    nodes: usize,
    /// One more than there are nodes.
    runtimes: Runtimes,
    controllers: Vec<Controller>,
    fleet: Option<Fleet>,
    released: usize,
}

impl Stage {
    /// The API server with its objects, and the controllers. All images of the Deployments are on the nodes already.
    fn start(nodes: usize, figures: &mut Figures) -> Self {
        let cluster = Kubernetes::start_newer();
        cluster.install_definitions();
        let deployments = DEPLOYMENTS.0.min(nodes * DEPLOYMENTS.1);
        fill(&cluster, nodes, deployments);
        let runtimes = Runtimes::start(nodes + 1);
        let mut stage = Self {
            controllers: vec![Controller::start(&cluster)],
            cluster,
            nodes,
            runtimes,
            fleet: None,
            released: 0,
        };
        let workloads = json!({"workloads": {"kinds": ["Deployment"]}});
        stage.prefetch("fleet", &workloads, "Immediate", deployments.min(IMAGES));
        let began = Instant::now();
        let planned = deployments.min(IMAGES);
        eventually("the images are planned", PATIENCE, || {
            stage.planned().len() == planned
        });
        figures.add(
            "Deployments, planned images",
            format!("{deployments}, {planned}"),
        );
        figures.add("first plan of all images", seconds(began.elapsed()));
        stage.runtimes.seed(&stage.planned());
        stage.controllers.push(Controller::start(&stage.cluster));
        stage
    }

    fn prefetch(&self, name: &str, source: &Value, rollout: &str, limit: usize) {
        let object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch", "metadata": {"name": name},
            "spec": {"source": source, "limit": limit, "rollout": {"type": rollout}}});
        let collection = format!("{API}/imageprefetches");
        self.cluster.create(&collection, object);
    }

    /// The planned images.
    fn planned(&self) -> Vec<String> {
        let list = self.cluster.get(&format!("{API}/plannedimages"));
        let items = list["items"].as_array().unwrap().iter();
        let images = items.map(|item| item["spec"]["image"].as_str().unwrap().to_owned());
        images.collect()
    }

    /// Starts the agents of the first nodes, so many a second, and waits until each has reported.
    fn start_agents(&mut self, agents: usize, a_second: usize) -> (f64, Cost) {
        let before = Counters::read(&self.cluster);
        let watch = self.watch("nodeprefetches");
        let began = Instant::now();
        let since = rfc3339(std::time::SystemTime::now());
        let (config, sockets) = (self.cluster.kubeconfig(), self.runtimes.directory());
        self.fleet = Some(Fleet::start(config, sockets, 0..agents, a_second));
        let mut told = std::collections::BTreeSet::new();
        let all = watch.until(PATIENCE, |object| {
            let at = object["status"]["heartbeatTime"].as_str();
            if at.is_some_and(|at| at >= since.as_str()) {
                told.insert(object["metadata"]["name"].as_str().unwrap().to_owned());
            }
            told.len() == agents
        });
        let all = all.unwrap_or_else(|| panic!("{} of {agents} agents reported", told.len()));
        ((all - began).as_secs_f64(), before.cost(&self.cluster))
    }

    fn watch(&self, plural: &str) -> Watch {
        Watch::start(&self.cluster, &format!("{API}/{plural}"))
    }

    /// All nodes are new.
    fn join(&mut self, figures: &mut Figures) {
        let (time, cost) = self.start_agents(self.nodes, STARTS);
        figures.add(
            &format!("{STARTS} agents a second start: every node has reported"),
            format!("{time:.1} s"),
        );
        figures.cost("agents start", &cost);
        let began = Instant::now();
        let watch = self.watch("imageprefetches");
        let ready = watch.until(PATIENCE, |object| is_ready(object, "fleet", 1));
        ready.expect("the ImagePrefetch is ready");
        figures.add("agents start: Ready after that", seconds(began.elapsed()));
    }

    /// Nothing changes.
    fn idle(&mut self, figures: &mut Figures) {
        let mut agent = harpoon(["agent"]);
        let arguments = fleet::arguments(self.nodes, self.runtimes.directory());
        agent.args(&arguments[1..]);
        agent.env("KUBECONFIG", self.cluster.kubeconfig());
        agent.stdout(Stdio::null()).stderr(Stdio::null());
        let mut agent = agent.spawn().unwrap();
        std::thread::sleep(Duration::from_secs(30));
        let pids = self.fleet.as_ref().unwrap().pids();
        let of_all = || pids.iter().map(|pid| cpu_of(*pid)).sum::<f64>();
        let controller = self.leader().pid();
        let cpu = [cpu_of(agent.id()), of_all(), cpu_of(controller)];
        let before = Counters::read(&self.cluster);
        std::thread::sleep(IDLE);
        let cost = before.cost(&self.cluster);
        let after = [cpu_of(agent.id()), of_all(), cpu_of(controller)];
        let share = |n: usize, by: f64| (after[n] - cpu[n]) / cost.seconds / by * 100.0;
        let memory: f64 = pids.iter().map(|pid| memory_of(*pid)).sum();
        let of_one = [memory_of(agent.id()), peak_of(agent.id())];
        figures.add(
            "an agent: memory, peak",
            format!("{:.1} MiB, {:.1} MiB", of_one[0], of_one[1]),
        );
        figures.add("an agent: CPU when idle", format!("{:.2}%", share(0, 1.0)));
        let per_agent = memory / self.nodes as f64;
        figures.add(
            "an agent of many in a process: memory, CPU when idle",
            format!("{per_agent:.2} MiB, {:.2}%", share(1, self.nodes as f64)),
        );
        figures.add("idle: controller CPU", format!("{:.2}%", share(2, 1.0)));
        let rate = |count: f64| count / cost.seconds;
        eprintln!("   idle: {}", cost.shown());
        figures.add(
            "idle: API server CPU, etcd CPU",
            format!(
                "{:.1}%, {:.1}%",
                rate(cost.cpu[0]) * 100.0,
                rate(cost.cpu[1]) * 100.0
            ),
        );
        figures.add(
            "idle: writes, bytes",
            format!(
                "{:.1}/s, {:.0} KB/s",
                rate(cost.writes("nodeprefetches")),
                rate(cost.bytes) / 1e3
            ),
        );
        figures.add(
            "idle: API server memory",
            format!("{:.0} MiB", memory_of(self.cluster.pids()[0])),
        );
        let _ = agent.kill();
        let _ = agent.wait();
        let name = node(self.nodes);
        self.cluster.delete(&format!("{API}/nodeprefetches/{name}"));
        self.cluster.delete(&format!("/api/v1/nodes/{name}"));
    }

    /// The place of the controller that leads, as soon as one does.
    fn leading(&self) -> usize {
        let leading = || self.controllers.iter().position(Controller::leads);
        eventually("a controller leads", PATIENCE, || leading().is_some());
        leading().expect("a controller leads")
    }

    fn leader(&self) -> &Controller {
        &self.controllers[self.leading()]
    }

    /// Applies an image that no node has, and waits until it is on all of them.
    fn release(&mut self, rollout: &Value) -> Release {
        self.released += 1;
        let image = format!("registry.example:5000/shop/release:{}", self.released);
        let (planned, prefetches) = (self.watch("plannedimages"), self.watch("imageprefetches"));
        let path = format!("{API}/imageprefetches/release");
        let spec = json!({"source": {"images": [image]}, "rollout": rollout});
        let before = Counters::read(&self.cluster);
        let applied = Instant::now();
        let generation = if self.released == 1 {
            let object = json!({"apiVersion": "harpoon.dev/v1alpha1", "kind": "ImagePrefetch", "metadata": {"name": "release"}, "spec": spec});
            self.cluster
                .create(&format!("{API}/imageprefetches"), object)
        } else {
            self.cluster.patch(&path, json!({"spec": spec}))
        };
        let generation = generation["metadata"]["generation"].as_i64().unwrap();
        let at = planned.until(PATIENCE, |object| object["spec"]["image"] == *image);
        let at = at.expect("the image is planned");
        let ready = prefetches.until(PATIENCE, |object| is_ready(object, "release", generation));
        let ready = ready.unwrap_or_else(|| panic!("not ready: {}", self.cluster.get(&path)));
        std::thread::sleep(Duration::from_secs(2));
        let cost = before.cost(&self.cluster);
        let pulls = self.runtimes.pulls(&image);
        let starts = pulls.starts_after(at);
        // A pull that fails is repeated, as on a machine that is too busy for the runtimes.
        assert!(starts.len() >= self.nodes, "each node pulls");
        eprintln!("   {} pulls were repeated", starts.len() - self.nodes);
        Release {
            planned: (at - applied).as_secs_f64(),
            ready: (ready - applied).as_secs_f64(),
            starts,
            pulls,
            cost,
        }
    }

    /// New images that all nodes pull at once.
    fn new_images(&mut self, figures: &mut Figures, runs: usize) {
        // The first makes the ImagePrefetch.
        self.release(&json!({"type": "Immediate"}));
        let controller = self.leader().pid();
        let pids = self.fleet.as_ref().unwrap().pids();
        let of_all = || pids.iter().map(|pid| cpu_of(*pid)).sum::<f64>();
        let cpu = [cpu_of(controller), of_all()];
        let releases: Vec<_> = (0..runs)
            .map(|_| self.release(&json!({"type": "Immediate"})))
            .collect();
        let cpu = [cpu_of(controller) - cpu[0], of_all() - cpu[1]].map(|cpu| cpu / runs as f64);
        let each = |value: &dyn Fn(&Release) -> f64| {
            let values: Vec<f64> = releases.iter().map(value).collect();
            median(&values)
        };
        figures.add(
            "new image: from `kubectl apply` to PlannedImage",
            format!("{:.2} s", each(&|r| r.planned)),
        );
        figures.times("new image: agents start", |part| each(&|r| r.at(part)));
        figures.add(
            "new image: from `kubectl apply` to Ready",
            format!("{:.1} s", each(&|r| r.ready)),
        );
        figures.add(
            "new image: writes of nodes",
            format!("{:.0}", each(&|r| r.cost.writes("nodeprefetches"))),
        );
        figures.add(
            "new image: other writes, of PlannedImages",
            format!(
                "{:.0}, {:.0}",
                each(&Release::other_writes),
                each(&|r| r.cost.writes("plannedimages"))
            ),
        );
        figures.add(
            "new image: controller CPU, CPU of all agents",
            format!("{:.2} s, {:.1} s", cpu[0], cpu[1]),
        );
        figures.cost("new image", &releases[runs / 2].cost);
    }

    /// The load on the registry with each kind of rollout.
    fn rollouts(&mut self, figures: &mut Figures) {
        for (name, rollout) in [
            ("Immediate", json!({"type": "Immediate"})),
            ("Linear, 2m", json!({"type": "Linear", "window": "2m"})),
            (
                "Doubling, 5 nodes, 15s",
                json!({"type": "Doubling", "startNodes": 5, "doublingPeriod": "15s"}),
            ),
        ] {
            let release = self.release(&rollout);
            let pulls = &release.pulls;
            figures.add(
                &format!("{name}: most pulls at once from the registry, with peers"),
                format!("{}, {}", pulls.peak, pulls.peak_with_peers),
            );
            let sent = |pulls: usize| (pulls as u64 * runtimes::IMAGE_BYTES) as f64 / 1e9;
            figures.add(
                &format!("{name}: sent by the registry, with peers"),
                format!(
                    "{:.1} GB, {:.1} GB",
                    sent(pulls.starts.len()),
                    sent(pulls.unserved)
                ),
            );
            figures.add(
                &format!("{name}: last start, Ready"),
                format!("{:.1} s, {:.1} s", release.at(1.0), release.ready),
            );
            figures.add(
                &format!("{name}: writes of nodes, other writes"),
                format!(
                    "{:.0}, {:.0}",
                    release.cost.writes("nodeprefetches"),
                    release.other_writes()
                ),
            );
        }
    }

    /// The controller that leads is killed, and an image is applied at the same moment.
    fn failover(&mut self, figures: &mut Figures) {
        drop(self.controllers.remove(self.leading()));
        let release = self.release(&json!({"type": "Immediate"}));
        figures.add(
            "controller killed: from `kubectl apply` to PlannedImage",
            format!("{:.1} s", release.planned),
        );
        figures.add(
            "controller killed: memory of the next, peak",
            format!("{:.0} MiB", peak_of(self.leader().pid())),
        );
    }

    /// All agents restart as with a new version of the DaemonSet, and at once, as after a power failure.
    fn restarts(&mut self, figures: &mut Figures) {
        let title = format!("{STARTS} agents a second restart");
        self.restart(STARTS, &title, "agents restart", figures);
        if self.nodes <= AT_ONCE {
            let title = "all agents at once restart";
            self.restart(self.nodes, title, "agents restart at once", figures);
        }
    }

    /// All agents are killed and start again, so many a second. One that finds nothing new reports with its next sign of life.
    fn restart(&mut self, a_second: usize, title: &str, phase: &str, figures: &mut Figures) {
        self.fleet = None;
        std::thread::sleep(Duration::from_secs(5));
        let (time, cost) = self.start_agents(self.nodes, a_second);
        figures.add(
            &format!("{title}: every node has reported, writes of nodes"),
            format!("{time:.0} s, {:.0}", cost.writes("nodeprefetches")),
        );
        figures.cost(phase, &cost);
        let release = self.release(&json!({"type": "Immediate"}));
        figures.add(
            &format!("{phase}: a new image after that, from `kubectl apply` to Ready"),
            format!("{:.1} s", release.ready),
        );
    }

    /// A new image for the watches of all nodes, with agents behind a few of them: none waits for the processor that the others
    /// use, as in a cluster.
    fn few_agents(&mut self, figures: &mut Figures) {
        let agents = FEW.min(self.nodes);
        self.start_agents(agents, STARTS);
        let measured = delivery::measure(&self.cluster, self.nodes - agents, "among-watches");
        eventually("the agents pull", PATIENCE, || {
            self.runtimes.pulls(&measured.image).starts.len() >= agents
        });
        let starts = self.runtimes.pulls(&measured.image);
        let starts = starts.starts_after(measured.began);
        figures.times(
            &format!(
                "new image, {FEW} agents, and watches alone for the other nodes: agents start"
            ),
            |part| quantile(&starts, part),
        );
    }

    fn controller_figures(&self, figures: &mut Figures) {
        let pid = self.leader().pid();
        figures.add(
            "controller: memory, peak",
            format!("{:.0} MiB, {:.0} MiB", memory_of(pid), peak_of(pid)),
        );
    }
}

/// A new image on all nodes.
struct Release {
    /// Seconds from the request until the PlannedImage is there.
    planned: f64,
    /// Seconds from the request until the ImagePrefetch is ready.
    ready: f64,
    /// Seconds from then until the pull of each node starts, sorted.
    starts: Vec<f64>,
    pulls: Pulls,
    cost: Cost,
}

impl Release {
    /// The time by which this part of the nodes has started.
    fn at(&self, part: f64) -> f64 {
        quantile(&self.starts, part)
    }

    /// Number of writes by the controller.
    fn other_writes(&self) -> f64 {
        // Without that of the user.
        self.cost.writes_of(&CONTROLLER_KINDS) - 1.0
    }
}

fn quantile(sorted: &[f64], part: f64) -> f64 {
    let at = (sorted.len() as f64 * part).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1]
}

fn is_ready(object: &Value, name: &str, generation: i64) -> bool {
    let status = &object["status"];
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let mut ready = conditions.filter(|condition| condition["type"] == "Ready");
    object["metadata"]["name"] == name
        && status["observedGeneration"] == generation
        && ready.next().is_some_and(|ready| ready["status"] == "True")
}

/// The nodes and the Deployments.
fn fill(cluster: &Kubernetes, nodes: usize, deployments: usize) {
    let began = Instant::now();
    large::namespaces(cluster);
    let objects = (0..=nodes).map(|n| ("/api/v1/nodes".to_owned(), node_object(n)));
    cluster.create_each(objects);
    let objects = (0..deployments).map(|n| {
        let namespace = namespace(n);
        (
            format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
            deployment(n),
        )
    });
    let mut objects = objects.peekable();
    while objects.peek().is_some() {
        cluster.create_each(objects.by_ref().take(500).collect::<Vec<_>>());
    }
    eprintln!("   filled in {:.0?}", began.elapsed());
}

pub fn node_object(n: usize) -> Value {
    let name = node(n);
    json!({"metadata": {"name": name, "labels": {
        "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux", "kubernetes.io/hostname": name,
        "node.kubernetes.io/instance-type": "m5.2xlarge", "topology.kubernetes.io/region": "eu-north-1",
        "topology.kubernetes.io/zone": format!("eu-north-1{}", ["a", "b", "c"][n % 3])}},
        "spec": {"providerID": format!("stand-in:///eu-north-1/i-{n:017x}")},
        "status": {"nodeInfo": {"architecture": "amd64", "operatingSystem": "linux"}}})
}

/// The watches of all nodes without the agents behind them.
fn watches_alone(cluster: &Kubernetes, nodes: usize, figures: &mut Figures) {
    let measured = delivery::measure(cluster, nodes, "watches-alone");
    figures.times("new image, watches alone: told after its write", |part| {
        quantile(&measured.seen, part)
    });
    figures.cost("new image, watches alone", &measured.cost);
}

/// One object for each node, for comparison.
fn other_design(cluster: &Kubernetes, nodes: usize, figures: &mut Figures) {
    let measured = objects::measure(cluster, nodes);
    figures.times("an object for each node: agents see it", |part| {
        quantile(&measured.seen, part)
    });
    figures.add(
        "an object for each node: all statuses written",
        format!("{:.1} s", measured.told),
    );
    figures.add(
        "an object for each node: writes of the controller and of nodes",
        format!("{:.0}", measured.cost.writes("nodeimagelists")),
    );
    figures.cost("an object for each node", &measured.cost);
}

/// A runtime with so many threads.
fn tokio(threads: usize) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .unwrap()
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn rfc3339(time: std::time::SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
