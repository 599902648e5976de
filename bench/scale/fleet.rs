//! The agents of many nodes: harpoon's own agent, many times in a process.
//!
//! A process may open a limited number of files, and an agent needs up to six, so that there is a process for every
//! [`PER_PROCESS`] agents.

use std::ffi::OsString;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::runtimes::socket;

/// Number of agents in a process.
const PER_PROCESS: usize = 2_500;
/// Number of threads that run them.
const THREADS: usize = 2;
/// The first argument of this program when it runs agents.
pub const ARGUMENT: &str = "run-agents";

/// Processes with agents. They end when it is dropped.
pub struct Fleet(Vec<Child>);

impl Fleet {
    /// Starts the agents of these nodes, so many in a second.
    pub fn start(kubeconfig: &Path, sockets: &Path, nodes: Range<usize>, rate: usize) -> Self {
        let starts = nodes.clone().step_by(PER_PROCESS);
        let start = |first: usize| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command
                .env_clear()
                .env("HOME", sockets)
                .env("KUBECONFIG", kubeconfig)
                .arg(ARGUMENT)
                .arg(sockets)
                .args([first, nodes.end.min(first + PER_PROCESS), rate].map(|n| n.to_string()))
                .stdin(Stdio::piped());
            command.spawn().unwrap()
        };
        Self(starts.map(start).collect())
    }

    /// The processes.
    pub fn pids(&self) -> Vec<u32> {
        self.0.iter().map(Child::id).collect()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The name of a node.
pub fn node(n: usize) -> String {
    format!("node-{n:04}")
}

/// The address of the metrics of a node's agent: each has a loopback address of its own.
pub fn metrics(n: usize) -> String {
    format!("127.1.{}.{}:9464", n / 250, n % 250 + 1)
}

/// The command line of a node's agent, with the name of the program.
pub fn arguments(n: usize, sockets: &Path) -> Vec<OsString> {
    let endpoint = format!("unix://{}", socket(sockets, n).display());
    let arguments = [
        "agent",
        "--node-name",
        &node(n),
        "--runtime-endpoint",
        &endpoint,
        "--metrics-address",
        &metrics(n),
        // The disk of this machine does not matter.
        "--disk-high-percent",
        "100",
    ];
    arguments.map(OsString::from).into()
}

/// Runs agents until standard input is closed: `SOCKETS FIRST END RATE`. Those of other processes start in their own time.
pub fn main(mut given: impl Iterator<Item = String>) {
    let sockets = given.next().expect("SOCKETS");
    let mut number = || given.next().and_then(|n| n.parse::<usize>().ok());
    let (first, end) = (number().expect("FIRST"), number().expect("END"));
    let rate = number().expect("RATE");
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::ERROR)
        .with_writer(std::io::stderr)
        .init();
    for thread in 0..THREADS {
        let sockets = sockets.clone();
        let nodes = (first + thread..end).step_by(THREADS);
        std::thread::spawn(move || run(nodes, rate, &sockets));
    }
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}

/// Runs these agents on this thread: each starts when those before it have, over all processes.
fn run(nodes: impl Iterator<Item = usize>, rate: usize, sockets: &str) {
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let agents = tokio::task::LocalSet::new();
    for n in nodes {
        let arguments = arguments(n, Path::new(sockets));
        let start = Duration::from_secs_f64(n as f64 / rate as f64);
        agents.spawn_local(async move {
            tokio::time::sleep(start).await;
            let ended = Box::pin(harpoon::cli::run_agent(arguments)).await;
            panic!("the agent of {} ended: {ended:?}", node(n));
        });
    }
    tokio.block_on(agents);
}
