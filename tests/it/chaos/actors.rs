//! The parts that act: a cluster, its nodes, controllers and agents, each with a connection to the API server that can be cut off.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::link::Link;
use super::registry::Store;
use super::schedule::{Action, CONTROLLERS, Mood, Process, Trouble};
use super::world::{Change, NODES, Policy, Pool, Prefetch, Source, Workload, World};
use crate::bed::{Containerd, Harpoon, Kubernetes, Output, Running, Runtime as _, directory};
use crate::fast::{evict_by_cri, try_pull_by_cri};

pub(super) const API: &str = "/apis/harpoon.dev/v1alpha1";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
/// The time limit of the programs: longer than any run.
const LONG: Duration = Duration::from_secs(7200);
/// The time limit of a pull by the kubelet, which fails then.
const PULL: Duration = Duration::from_secs(5);
/// The size of the last node's disk in bytes.
const DISK: u64 = 300_000_000;
/// The value of `FILL` on each node.
const FILLS: [&str; NODES] = ["runtime", "fast", "auto"];

/// An agent or a controller.
pub(super) struct Program {
    pub(super) name: String,
    harpoon: Harpoon,
    running: Option<Running>,
    link: Link,
    /// The logs of former processes.
    log: String,
}

/// A node without its agent.
pub(super) struct Node {
    pub(super) name: String,
    pub(super) containerd: Containerd,
}

/// All that acts.
pub(super) struct Cast {
    pub(super) cluster: Kubernetes,
    pub(super) store: Store,
    pub(super) nodes: [Node; NODES],
    pub(super) agents: [Program; NODES],
    pub(super) controllers: [Program; CONTROLLERS],
    /// The directory of the kubeconfigs.
    _files: tempfile::TempDir,
}

impl Program {
    fn new(name: &str, harpoon: Harpoon, cluster: &Kubernetes, files: &Path) -> Self {
        let server = cluster.server().strip_prefix("https://").unwrap();
        let link = Link::to(server);
        let config = files.join(name);
        let address = format!("https://{}", link.address());
        cluster.write_kubeconfig(&config, &address, cluster.token(), "default");
        let harpoon = harpoon
            .args(["--metrics-address", "127.0.0.1:0"])
            .env("KUBECONFIG", config)
            .limit(LONG);
        let mut program = Self {
            name: name.to_owned(),
            harpoon,
            running: None,
            link,
            log: String::new(),
        };
        program.start();
        program
    }

    fn start(&mut self) {
        self.running = Some(self.harpoon.start());
    }

    /// Takes the process out, with its log so far.
    fn take(&mut self) -> Running {
        let running = self.running.take().expect("it runs");
        self.log.push_str(&running.stderr());
        running
    }

    fn kill(&mut self) {
        let running = self.take();
        self.check(&running);
        running.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        self.running.as_ref().expect("it runs").signal(signal);
    }

    /// Fails if the process has ended by itself.
    pub(super) fn check(&self, running: &Running) {
        let log = running.stderr();
        assert!(!running.has_ended(), "{} has ended: {log}", self.name);
        assert!(!log.contains("panicked"), "{}: {log}", self.name);
    }

    pub(super) fn running(&self) -> Option<&Running> {
        self.running.as_ref()
    }

    /// Its log, with those of its former processes.
    pub(super) fn log(&self) -> String {
        let now = self.running().map(Running::stderr);
        format!("{}{}", self.log, now.unwrap_or_default())
    }

    /// Asks it to end, and returns its output.
    pub(super) fn end(&mut self) -> Output {
        let running = self.take();
        running.signal(Signal::TERM);
        running.wait().expect(0)
    }

    pub(super) fn restart(&mut self) {
        self.end();
        self.start();
    }

    /// The files that it has left in its home.
    pub(super) fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.harpoon.home()).unwrap();
        let names = entries.map(|entry| entry.unwrap().path().display().to_string());
        names.collect()
    }
}

impl Cast {
    pub(super) fn start(seed: u64, world: &World) -> Self {
        let cluster = Kubernetes::start();
        cluster.install_definitions();
        let store = Store::start(seed);
        let files = directory();
        let nodes = std::array::from_fn(|number| Node {
            name: format!("node-{number}"),
            containerd: match number == NODES - 1 {
                true => Containerd::with_disk(DISK),
                false => Containerd::start(),
            },
        });
        for (node, pool) in nodes.iter().zip(world.pools) {
            let labels = json!({"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64", "pool": pool.label()});
            let node = json!({"metadata": {"name": node.name, "labels": labels}});
            cluster.create("/api/v1/nodes", node);
        }
        let controllers = std::array::from_fn(|number| {
            let name = format!("controller-{number}");
            Program::new(&name, Harpoon::new(["controller"]), &cluster, files.path())
        });
        let agents = std::array::from_fn(|number| {
            let node: &Node = &nodes[number];
            let name = format!("agent-{number}");
            let high = if number == NODES - 1 { "80" } else { "100" };
            let harpoon = Harpoon::new(["agent", "--resync", "2s", "--pull-timeout", "20s"])
                .args(["--node-name", &node.name])
                .args(["--runtime-endpoint", node.containerd.endpoint()])
                .env("DISK_HIGH_PERCENT", high)
                .env("FILL", FILLS[number]);
            Program::new(&name, harpoon, &cluster, files.path())
        });
        Self {
            cluster,
            store,
            nodes,
            agents,
            controllers,
            _files: files,
        }
    }

    pub(super) fn programs(&self) -> impl Iterator<Item = &Program> {
        self.agents.iter().chain(&self.controllers)
    }

    /// Fails if a process has ended by itself.
    pub(super) fn check(&self) {
        for program in self.programs() {
            if let Some(running) = program.running() {
                program.check(running);
            }
        }
    }

    fn program(&mut self, process: Process) -> &mut Program {
        match process {
            Process::Agent(number) => &mut self.agents[number],
            Process::Controller(number) => &mut self.controllers[number],
            Process::Containerd(_) => unreachable!("it is no program of ours"),
        }
    }

    /// Does one step of the schedule.
    pub(super) fn act(&mut self, action: &Action) {
        let image = |number: &usize| self.store.images()[*number].clone();
        match action {
            Action::Ask(change) => self.ask(change),
            Action::Untag(node, number) => {
                let arguments = ["images", "remove", &image(number)];
                tolerated(self.nodes[*node].containerd.client(&arguments));
            }
            Action::Unpin(node, number) => {
                let image = image(number);
                let arguments = ["images", "label", &image, "io.cri-containerd.pinned="];
                tolerated(self.nodes[*node].containerd.client(&arguments));
            }
            Action::Evict(node, number) => {
                evict_by_cri(&self.nodes[*node].containerd, &image(number));
            }
            Action::Pull(node, number) => {
                try_pull_by_cri(&self.nodes[*node].containerd, &image(number), PULL);
            }
            Action::Begin(trouble) => self.begin(*trouble),
            Action::End(trouble) => self.end(*trouble),
            Action::RestartApi => self.cluster.restart(),
            Action::Settle => {}
        }
    }

    fn begin(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Killed(Process::Containerd(number)) => self.nodes[number].containerd.kill(),
            Trouble::Killed(process) => self.program(process).kill(),
            Trouble::Stopped(Process::Containerd(number)) => {
                self.nodes[number].signal(Signal::STOP);
            }
            Trouble::Stopped(process) => self.program(process).signal(Signal::STOP),
            Trouble::CutOff(process, cut) => self.program(process).link.set(Some(cut)),
            Trouble::Registry(mood) => self.store.set(mood),
            Trouble::Full(percent) => self.nodes[NODES - 1].fill(percent),
        }
    }

    fn end(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Killed(Process::Containerd(number)) => {
                self.nodes[number].containerd.restart();
            }
            Trouble::Killed(process) => self.program(process).start(),
            Trouble::Stopped(Process::Containerd(number)) => {
                self.nodes[number].signal(Signal::CONT);
            }
            Trouble::Stopped(process) => self.program(process).signal(Signal::CONT),
            Trouble::CutOff(process, _) => self.program(process).link.set(None),
            Trouble::Registry(_) => self.store.set(Mood::Good),
            Trouble::Full(_) => std::fs::remove_file(self.nodes[NODES - 1].neighbour()).unwrap(),
        }
    }

    /// Changes what people ask for.
    pub(super) fn ask(&self, change: &Change) {
        match change {
            Change::Prefetch(number, prefetch) => {
                let spec = prefetch.as_ref().map(|prefetch| self.spec(prefetch));
                let collection = format!("{API}/imageprefetches");
                self.put(&collection, "ImagePrefetch", &name(*number), spec);
            }
            Change::Workload(number, workload) => {
                let name = format!("web-{number}");
                let spec = workload.as_ref().map(|workload| self.pods(&name, workload));
                self.put(DEPLOYMENTS, "Deployment", &name, spec);
            }
            Change::Label(node, pool) => {
                let labels = json!({"metadata": {"labels": {"pool": pool.label()}}});
                let path = format!("/api/v1/nodes/{}", self.nodes[*node].name);
                self.cluster.patch(&path, labels);
            }
        }
    }

    /// Makes an object with this spec, changes it, or deletes it.
    fn put(&self, collection: &str, kind: &str, name: &str, spec: Option<Value>) {
        let path = format!("{collection}/{name}");
        let is_there = self.cluster.status(&path, self.cluster.token()) == 200;
        let Some(spec) = spec else {
            if is_there {
                self.cluster.delete(&path);
            }
            return;
        };
        if is_there {
            self.cluster.patch(&path, json!({"spec": spec}));
            return;
        }
        let mut object = json!({"metadata": {"name": name}, "spec": spec});
        strip(&mut object);
        if kind == "ImagePrefetch" {
            object["apiVersion"] = json!("harpoon.dev/v1alpha1");
            object["kind"] = json!(kind);
        }
        self.cluster.create(collection, object);
    }

    /// The spec, with `null` for what another one may have had.
    fn spec(&self, prefetch: &Prefetch) -> Value {
        let source = match &prefetch.source {
            Source::Images(images) => {
                let images = images.iter().map(|number| &self.store.images()[*number]);
                json!({"images": images.collect::<Vec<_>>(), "workloads": null})
            }
            Source::Workloads => {
                json!({"images": null, "workloads": {"namespaces": ["default"]}})
            }
        };
        let rollout = match prefetch.is_immediate {
            true => json!({"type": "Immediate", "window": null}),
            false => json!({"type": "Linear", "window": "2s"}),
        };
        json!({
            "source": source,
            "nodeSelector": prefetch.pool.map(|pool| json!({"matchLabels": {"pool": pool.label()}})),
            "rollout": rollout,
            "retention": {"policy": policy(prefetch.policy), "keepAfterUnused": "1s"},
            "seal": if prefetch.is_sealed { "Always" } else { "Never" }
        })
    }

    fn pods(&self, name: &str, workload: &Workload) -> Value {
        let containers = json!([{"name": "main", "image": self.store.images()[workload.image]}]);
        let pool = workload.pool.map(Pool::label);
        let selector = json!({"pool": pool});
        json!({"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}}, "spec": {"containers": containers, "nodeSelector": selector}
        }})
    }
}

impl Node {
    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.containerd.pid()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// A file of another party on its disk.
    fn neighbour(&self) -> std::path::PathBuf {
        self.containerd.store().join("neighbour")
    }

    /// Has another party use the disk up to this percentage.
    fn fill(&self, percent: u8) {
        let stat = statvfs(self.containerd.store()).unwrap();
        let free = stat.f_bavail * stat.f_frsize;
        let rest = stat.f_blocks * stat.f_frsize / 100 * u64::from(100 - percent);
        let file = std::fs::File::create(self.neighbour()).unwrap();
        // Without the last bytes: it takes some for itself.
        let bytes = free.saturating_sub(rest).saturating_sub(100_000).max(1);
        fallocate(file, FallocateFlags::empty(), 0, bytes).unwrap();
    }
}

/// The name of an ImagePrefetch.
pub(super) fn name(number: usize) -> String {
    format!("prefetch-{number}")
}

pub(super) fn policy(policy: Policy) -> &'static str {
    match policy {
        Policy::None => "None",
        Policy::Keep => "Keep",
        Policy::Pin => "Pin",
    }
}

/// Takes out what is `null`, which only a patch may have.
fn strip(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, field| !field.is_null());
        fields.values_mut().for_each(strip);
    }
}

/// Runs a command that may fail, such as one about an image that is not there.
fn tolerated(mut command: Command) {
    command.output().unwrap();
}
