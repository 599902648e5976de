//! A real single-node cluster, for tests of the installed program.

use std::fs::{self, File};
use std::io::{Seek, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::daemons::Image;
use super::{
    Daemon, Kubernetes, PASSWORD, Pushed, USER, directory, parse, program, run, runtime, script,
};

mod disk;
mod images;

pub use images::{Listed, Logged};

/// Time limit for anything in the cluster, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// A Kubernetes 1.20 with its controllers, scheduler, kubelet, containerd and two registries, in namespaces of its own: its
/// addresses are reachable only from inside, with [`Cluster::inside`].
#[derive(Debug)]
pub struct Cluster {
    pub api: Kubernetes,
    /// The node's first process.
    node: String,
    registry: String,
    /// The registry that asks for [`USER`] and [`PASSWORD`].
    private: String,
    /// containerd's own client.
    ctr: String,
    /// The name of the program's own image, once it is on the node.
    harpoon: OnceLock<String>,
}

/// A process of a container, in the kernel's view.
#[derive(Debug)]
pub struct Process(PathBuf);

impl Cluster {
    pub fn start() -> Self {
        Self::with_options(&[])
    }

    /// One whose containerd has a disk of its own with this many bytes. When that is full, the kubelet collects images and evicts pods.
    pub fn with_disk(bytes: u64) -> Self {
        Self::with_options(&["--disk", &bytes.to_string()])
    }

    fn with_options(options: &[&str]) -> Self {
        let login = format!("{USER}:{PASSWORD}");
        let options = [&["--htpasswd", &login], options].concat();
        let daemon = Daemon::start("cluster", &options);
        let node = daemon.value("NODE").to_owned();
        let registry = daemon.value("REGISTRY").to_owned();
        let private = daemon.value("PRIVATE_REGISTRY").to_owned();
        let ctr = daemon.value("CTR").to_owned();
        let network = File::open(format!("/proc/{node}/ns/net")).unwrap();
        let inside = runtime(move || {
            let kind = LinkNameSpaceType::Network;
            move_into_link_name_space(network.as_fd(), Some(kind)).unwrap();
        });
        let api = Kubernetes::reached_by(daemon, Some(inside));
        Self {
            api,
            node,
            registry,
            private,
            ctr,
            harpoon: OnceLock::new(),
        }
    }

    /// Stops it, and panics if it leaves anything on the machine.
    pub fn end(self) {
        let containers = self.ctr(&["containers", "list", "-q"]);
        let directory = self.api.file("");
        let node = PathBuf::from(format!("/proc/{}", self.node));
        drop(self);
        assert!(!node.exists(), "{}", node.display());
        assert!(!directory.exists(), "{}", directory.display());
        let groups = ["/sys/fs/cgroup", "-type", "d", "-path", "*/k8s.io/*"];
        let groups = run(Command::new("find").args(groups));
        assert!(
            !containers.lines().any(|id| groups.contains(id)),
            "{groups}"
        );
    }

    /// A program to run on the node.
    pub fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.node, "--mount", "--net", "--pid", "--"]);
        command.arg(program);
        command
    }

    /// Runs kubectl as the user who may do everything.
    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.given("", arguments)
    }

    /// The same with standard input.
    #[track_caller]
    fn given(&self, input: &str, arguments: &[&str]) -> String {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(input.as_bytes()).unwrap();
        file.rewind().unwrap();
        let kubectl = super::tool("kubectl");
        let mut command = self.inside(kubectl.get_program().to_str().unwrap());
        command.arg("--kubeconfig").arg(self.api.kubeconfig());
        run(command.stdin(file).args(arguments))
    }

    /// Runs containerd's own client in CRI's namespace.
    #[track_caller]
    pub fn ctr(&self, arguments: &[&str]) -> String {
        let mut command = self.inside(&self.ctr);
        run(command.args(["--namespace", "k8s.io"]).args(arguments))
    }

    /// Whether the node has the image under just this full reference.
    pub fn has(&self, reference: &str) -> bool {
        let images = self.ctr(&["images", "list", "-q"]);
        images.lines().any(|image| image == reference)
    }

    /// The full reference of `team/web:1` in the node's registry, whether or not there is such an image.
    pub fn reference(&self, name: &str) -> String {
        format!("{}/{name}", self.registry)
    }

    /// An image to be made and pushed to the node's registry, whose pods run until they are told to end.
    pub fn image(&self, name: &str) -> Image {
        let mut command = self.inside(script("image").get_program().to_str().unwrap());
        command.arg(self.reference(name));
        Image::by(command)
    }

    /// Makes and pushes a small image of its own content.
    #[track_caller]
    pub fn push(&self, name: &str) -> Pushed {
        self.image(name).push()
    }

    /// Removes an image.
    pub fn forget(&self, image: &Pushed) {
        let same = format!("target.digest=={}", image.digest);
        let names = self.ctr(&["images", "list", "-q", &same]);
        let names: Vec<_> = names.lines().collect();
        assert!(!names.is_empty(), "{image:?}");
        self.ctr(&[&["images", "remove", "--sync"], names.as_slice()].concat());
    }

    /// Drops all traffic from the node's registry until the returned value is dropped.
    pub fn freeze_registry(&self) -> Undo<'_> {
        let pid = fs::read_to_string(self.api.file("registry.inside")).unwrap();
        let signal = |name: &str| -> Vec<String> {
            ["sh", "-c", "kill -$0 $1", name, pid.trim()]
                .map(str::to_owned)
                .into()
        };
        self.undone(&signal("STOP"), signal("CONT"))
    }

    /// Limits the node's loopback, and so all traffic from its registry, to this many bits per second until the returned value is
    /// dropped.
    pub fn slow_network(&self, bits: u64) -> Undo<'_> {
        let change = |change: &str, how: &str| -> Vec<String> {
            let line = format!("tc qdisc {change} dev lo root {how}");
            line.split_whitespace().map(str::to_owned).collect()
        };
        let how = format!("tbf rate {bits}bit burst 1mb latency 100ms");
        self.undone(&change("add", &how), change("del", ""))
    }

    fn undone(&self, change: &[String], back: Vec<String>) -> Undo<'_> {
        run(self.inside(&change[0]).args(&change[1..]));
        Undo {
            cluster: self,
            back,
        }
    }

    /// The name of the program's own image, which is in the node's containerd and in no registry.
    pub fn harpoon(&self) -> &str {
        self.harpoon.get_or_init(|| {
            let work = directory();
            let [binary, archive] = ["harpoon", "image.tar"].map(|name| work.path().join(name));
            run(Command::new("strip").arg("-o").arg(&binary).arg(program()));
            let arch = match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            };
            let build = concat!(env!("CARGO_MANIFEST_DIR"), "/image/build");
            let mut build = Command::new(build);
            build.args(["--name", "registry.example/under-test/harpoon"]);
            let told = run(build.arg(&binary).arg(arch).arg(&archive));
            self.ctr(&["images", "import", archive.to_str().unwrap()]);
            parse(&told).remove("NAME").unwrap()
        })
    }

    /// Runs `kubectl apply -f -`, and returns the resulting objects.
    #[track_caller]
    pub fn apply(&self, manifests: &str) -> Vec<Value> {
        objects(&self.given(manifests, &["apply", "-o", "json", "-f", "-"]))
    }

    /// Runs `kubectl delete -f -`, and waits until the dependent objects are gone too: a pod that was deleted by force may run
    /// once more.
    #[track_caller]
    pub fn remove(&self, manifests: &str) {
        let delete = ["delete", "--ignore-not-found", "--cascade=foreground"];
        self.given(manifests, &[&delete[..], &["-f", "-"]].concat());
    }

    /// Deletes pods (names, or `--all`) without waiting for their processes to end.
    #[track_caller]
    pub fn end_pods(&self, namespace: &str, pods: &[&str]) {
        let delete = [
            "delete",
            "pods",
            "--force",
            "--grace-period=0",
            "-n",
            namespace,
        ];
        self.kubectl(&[&delete[..], pods].concat());
    }

    /// The pods of a namespace that have all these labels (`app=web`), without terminating ones.
    pub fn pods(&self, namespace: &str, selector: &str) -> Vec<Value> {
        let mut pods = self.all_pods(namespace, selector);
        pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        pods
    }

    /// The same, with terminating ones.
    pub fn all_pods(&self, namespace: &str, selector: &str) -> Vec<Value> {
        let selector = selector.replace('=', "%3D").replace(',', "%2C");
        let path = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}");
        objects(&self.api.get(&path).to_string())
    }

    /// Waits until `look` returns a value; otherwise panics with the state of the namespace's pods.
    #[track_caller]
    pub fn wait_for<T>(&self, namespace: &str, what: &str, look: impl Fn() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            if Instant::now() > end {
                let pods = self.kubectl(&["describe", "pods", "--namespace", namespace]);
                panic!("not within {PATIENCE:?}: {what}\n{pods}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The process of a container (an entry of a pod's `containerStatuses`).
    #[track_caller]
    pub fn process(&self, status: &Value) -> Process {
        let id = text(&status["containerID"]);
        let id = id.strip_prefix("containerd://").unwrap();
        let tasks = self.ctr(&["tasks", "list"]);
        let task = tasks.lines().find(|line| line.starts_with(id));
        let task = task.unwrap_or_else(|| panic!("no task {id}: {tasks}"));
        let pid = task.split_whitespace().nth(1).unwrap();
        Process(format!("/proc/{}/root/proc/{pid}", self.node).into())
    }
}

/// Reverts a change when it is dropped.
#[derive(Debug)]
pub struct Undo<'a> {
    cluster: &'a Cluster,
    back: Vec<String>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        // A failure here must not turn a test's panic into an abort.
        let [program, arguments @ ..] = self.back.as_slice() else {
            return;
        };
        let _ = self.cluster.inside(program).args(arguments).output();
    }
}

impl Process {
    /// A file of its directory in `/proc`.
    #[track_caller]
    pub fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.0.join(name)).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A field of its status, such as `CapEff`.
    #[track_caller]
    pub fn status(&self, field: &str) -> String {
        let status = self.read("status");
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {field}: {status}"))
            .trim()
            .to_owned()
    }

    /// The targets of its open files.
    pub fn open_files(&self) -> Vec<String> {
        let files = fs::read_dir(self.0.join("fd")).unwrap();
        let files = files.map(|file| fs::read_link(file.unwrap().path()).unwrap());
        files.map(|file| file.display().to_string()).collect()
    }

    /// Its start time: seconds since boot, in hundredths.
    pub fn started(&self) -> f64 {
        let stat = self.read("stat");
        // The name may contain blanks; the 22nd field of all is the 20th after it.
        let (_, fields) = stat.rsplit_once(')').unwrap();
        let ticks: f64 = fields.split_whitespace().nth(19).unwrap().parse().unwrap();
        ticks / 100.0
    }
}

/// Seconds since boot.
pub fn uptime() -> f64 {
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    uptime.split(' ').next().unwrap().parse().unwrap()
}

/// A string of an object, which must be there.
#[track_caller]
pub fn text(value: &Value) -> &str {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no string: {value}"))
}

/// The objects of a list, or a single object.
fn objects(json: &str) -> Vec<Value> {
    let value: Value = serde_json::from_str(json).unwrap();
    match value["items"].as_array() {
        Some(items) => items.clone(),
        None => vec![value],
    }
}
