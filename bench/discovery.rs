//! The cost of image discovery, for a node and for the API server.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::bed::large::{self, DEPLOYMENT_BYTES, deployment, image, namespace};
use super::bed::{Kubernetes, directory, unique};
use super::measure::{Case, alternate, cpu_of, forget_peak, harpoon, peak_of, run as taken, tool};
use super::page::{Part, column, said};
use super::shaping::{Shape, Wire};

const SIZES: [usize; 3] = [1_000, 5_000, 20_000];
const PODS: usize = 10_000;
const DEPLOYMENTS: &str = "/apis/apps/v1/deployments";
/// Number of nodes that start at the same moment.
const TOGETHER: usize = 8;
/// Cluster sizes. The first is closest to the reader's own case, and the base of the ratios.
const OURS: &str = "`harpoon plan`";

pub fn run(part: &mut Part, runs: usize) {
    let cluster = Kubernetes::start();
    let files = directory();
    large::namespaces(&cluster);
    cluster.create("/api/v1/nodes", json!({"metadata": {"name": "node-1", "labels": {"kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux"}}}));
    fill(&cluster, "/api/v1", "pods", (0..PODS).map(pod));
    part.say(&format!(
        "The cost of discovery: Deployments of {} KB each and {PODS} pods of 1 KB on a real kube-apiserver ({}) with its etcd. \
         *API server* and *etcd* are seconds of CPU of those processes for one client's run; *bytes* were sent by the server, TLS included, and counted in a run of their own; *server memory* is the peak of the API server's resident memory, less its memory before. \
         `harpoon plan --namespaces '*' --node-name node-1` does what `run` does before it pulls.",
        DEPLOYMENT_BYTES / 1000,
        cluster.get("/version")["gitVersion"].as_str().unwrap(),
    ));
    let mut there = 0;
    for size in SIZES {
        let began = Instant::now();
        fill(
            &cluster,
            "/apis/apps/v1",
            "deployments",
            (there..size).map(deployment),
        );
        there = size;
        eprintln!("{size} Deployments after {:.0?}", began.elapsed());
        measure(part, &cluster, files.path(), size, runs);
        if size == 5_000 {
            together(part, &cluster, files.path(), runs.min(3));
        }
    }
    part.say(&format!(
        "Command: `make bench ONLY=discovery`. {}; {}.",
        said(Command::new("kubectl").args(["version", "--client"])),
        said(Command::new("curl").arg("--version"))
    ));
}

/// The command line of a client for a server.
type Client<'a> = (String, Box<dyn Fn(&str) -> Command + 'a>);

fn clients<'a>(cluster: &'a Kubernetes, files: &'a Path) -> Vec<Client<'a>> {
    let config = move |server: &str| -> PathBuf {
        let file = files.join(unique("config"));
        cluster.write_kubeconfig(&file, server, cluster.token(), "default");
        file
    };
    let plan = move |server: &str, extra: &[&str]| {
        let mut plan = harpoon([
            "plan",
            "--namespaces",
            "*",
            "--node-name",
            "node-1",
            "--output",
            "json",
            "--log-level",
            "error",
        ]);
        plan.args(extra).env("KUBECONFIG", config(server));
        plan
    };
    let kubectl = move |server: &str, extra: &[&str]| {
        let mut kubectl = tool("kubectl");
        kubectl
            .arg("--kubeconfig")
            .arg(config(server))
            .args(["get", "deployments", "-A"])
            .args(extra);
        kubectl
    };
    let curl = move |server: &str, script: &str| {
        let mut shell = tool("bash");
        shell.args(["-euc", script, "bash", &format!("{server}{DEPLOYMENTS}")]);
        shell
            .env("FILE", files.join("page"))
            .env("CA", cluster.ca())
            .env("TOKEN", cluster.token());
        shell
    };
    const GET: &str =
        r#"get() { curl -sSf --cacert "$CA" -H "Authorization: Bearer $TOKEN" "$@"; }; "#;
    const PAGES: &str = r#"next=; while :; do get --compressed -o "$FILE" "$1?limit=500&continue=$next"; next=$(jq -r '.metadata.continue // ""' "$FILE"); [ -n "$next" ] || break; done"#;
    vec![
        (OURS.into(), Box::new(move |s| plan(s, &[]))),
        (
            "`harpoon plan --watch-cache`".into(),
            Box::new(move |s| plan(s, &["--watch-cache"])),
        ),
        (
            "`harpoon plan --workloads deployments,pods`".into(),
            Box::new(move |s| plan(s, &["--workloads", "deployments,pods"])),
        ),
        (
            "`kubectl get deployments -A -o json`".into(),
            Box::new(move |s| kubectl(s, &["-o", "json"])),
        ),
        (
            "`curl --compressed`, `limit=500`, `jq` for the token".into(),
            Box::new(move |s| curl(s, &format!("{GET}{PAGES}"))),
        ),
        (
            "`curl`, the whole list".into(),
            Box::new(move |s| curl(s, &format!(r#"{GET}get -o /dev/null "$1""#))),
        ),
        (
            "`curl`, the whole list, `resourceVersion=0`".into(),
            Box::new(move |s| {
                curl(
                    s,
                    &format!(r#"{GET}get -o /dev/null "$1?resourceVersion=0""#),
                )
            }),
        ),
    ]
}

fn measure(part: &mut Part, cluster: &Kubernetes, files: &Path, size: usize, runs: usize) {
    let mut clients = clients(cluster, files);
    // Other clients need minutes and gigabytes for the largest cluster: one run shows the growth.
    if size > 5_000 {
        clients.retain(|(name, _)| {
            name == OURS || name.contains("watch-cache") || name.contains("kubectl")
        });
    }
    let cases = clients.iter().map(|(name, command)| {
        let wire = Wire::start(
            cluster.server().trim_start_matches("https://"),
            Shape::PLAIN,
        );
        settle(cluster.pids()[0]);
        let before = requests(cluster);
        taken(&mut command(&format!("https://{}", wire.address())));
        let (requests, bytes) = (requests(cluster) - before, wire.bytes() as f64 / 1e6);
        Case::new(name.clone(), move || {
            let [server, etcd] = cluster.pids();
            settle(server);
            forget_peak(server);
            let (base, before) = (peak_of(server), [server, etcd].map(cpu_of));
            let client = taken(&mut command(cluster.server()));
            settle(server);
            let after = [server, etcd].map(cpu_of);
            vec![
                client.wall,
                client.cpu,
                client.memory,
                requests,
                bytes,
                after[0] - before[0],
                after[1] - before[1],
                peak_of(server) - base,
            ]
        })
    });
    let cases = cases.collect();
    let rows = alternate(runs, cases);
    let columns = [
        column("wall s", 2),
        column("CPU s", 2),
        column("memory MiB", 1),
        column("requests", 0),
        column("bytes MB", 1),
        column("API server CPU s", 2),
        column("etcd CPU s", 2),
        column("server memory MiB", 0),
    ];
    part.table(&format!("{size} Deployments"), &columns, &rows, OURS);
}

/// Number of requests for these objects that the API server has answered so far, by its own metric, which is updated some time
/// after the response: requests that created the objects may still be missing.
fn requests(cluster: &Kubernetes) -> f64 {
    let metrics = cluster.text("/metrics");
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("apiserver_request_total{"));
    let lines = lines.filter(|line| {
        let mut read = ["deployments", "pods", "nodes"].iter();
        !line.contains("verb=\"POST\"") && read.any(|r| line.contains(&format!("resource=\"{r}\"")))
    });
    lines
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// Many nodes at the same time: shows whether the cost of one node is the cost of each.
fn together(part: &mut Part, cluster: &Kubernetes, files: &Path, runs: usize) {
    let clients = clients(cluster, files);
    let cases = clients.iter().take(2).map(|(name, command)| {
        Case::new(name.clone(), move || {
            let [server, etcd] = cluster.pids();
            settle(server);
            forget_peak(server);
            let (base, before, began) =
                (peak_of(server), [server, etcd].map(cpu_of), Instant::now());
            // Failures of a server that is short of CPU are part of the result.
            let mut nodes: Vec<_> = (0..TOGETHER)
                .map(|_| {
                    let mut node = command(cluster.server());
                    node.stdout(Stdio::null()).stderr(Stdio::null());
                    node.spawn().unwrap()
                })
                .collect();
            let done = nodes.iter_mut().map(|node| node.wait().unwrap());
            let done = done.filter(ExitStatus::success).count() as f64;
            let wall = began.elapsed().as_secs_f64();
            settle(server);
            let after = [server, etcd].map(cpu_of);
            let each = |n: usize| (after[n] - before[n]) / TOGETHER as f64;
            vec![wall, done, each(0), each(1), peak_of(server) - base]
        })
    });
    let cases = cases.collect();
    let rows = alternate(runs, cases);
    let columns = [
        column("wall s", 1),
        column("nodes that were done", 0),
        column("API server CPU s, each", 2),
        column("etcd CPU s, each", 2),
        column("server memory MiB", 0),
    ];
    part.table(
        &format!("{TOGETHER} nodes at once, 5000 Deployments"),
        &columns,
        &rows,
        OURS,
    );
}

/// Waits until the process is idle: garbage of the previous run must not count for the next.
fn settle(pid: u32) {
    let mut last = cpu_of(pid);
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(200));
        let now = cpu_of(pid);
        if now - last < 0.025 {
            return;
        }
        last = now;
    }
}

fn fill(cluster: &Kubernetes, base: &str, plural: &str, objects: impl Iterator<Item = Value>) {
    let objects: Vec<_> = objects
        .enumerate()
        .map(|(n, object)| {
            (
                format!("{base}/namespaces/{}/{plural}", namespace(n)),
                object,
            )
        })
        .collect();
    // In batches, so that the whole text is never in memory.
    let mut objects = objects.into_iter().peekable();
    while objects.peek().is_some() {
        cluster.create_each(objects.by_ref().take(1_000));
    }
}

/// Pods of the Deployments' ReplicaSets, like most pods.
fn pod(n: usize) -> Value {
    let set = format!("service-{:05}-5d8f9c7b6", n / 2);
    let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "controller": true, "uid": "8d6f2d6e-7c7d-4b8c-9d6e-0a1b2c3d4e5f"});
    json!({"metadata": {"name": format!("{set}-x2x4{n}"), "labels": {"app": format!("service-{:05}", n / 2), "pod-template-hash": "5d8f9c7b6"}, "ownerReferences": [owner]},
        "spec": {"containers": [{"name": "main", "image": image(n / 2)}]}})
}
