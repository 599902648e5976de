//! The test bed: daemons, the program under test, and a proxy that produces faults.
//!
//! The daemons are started by the scripts in `testbed/`, below the directory that `testbed/run` made and clears
//! away. A test takes the shared instance of a daemon ([`registry()`], [`containerd()`], ...) with image names of its own
//! ([`unique()`]), and starts one for itself only to break it.
#![allow(
    dead_code,
    unused_imports,
    reason = "what the bed offers is not always all in use"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime as Tokio;

mod cluster;
mod crio;
mod daemons;
pub mod faulty;
pub mod large;
mod node;
mod program;
mod prometheus;
mod selftest;
pub mod token;

pub use cluster::Kubernetes;
pub use crio::{Crio, CrioStandIn};
pub use daemons::{Containerd, Docker, Image, Pushed, Registry, Runtime};
pub use node::{Cluster, Listed, Logged, Process, text, uptime};
pub use program::{Harpoon, Output, Running, Terminal, program};
pub use prometheus::Prometheus;

/// The user of [`registry_with_password()`].
pub const USER: &str = "fisher";
/// The password of [`registry_with_password()`].
pub const PASSWORD: &str = "sea:wife p@ss";

/// The shared registry, over plain http, without a password.
pub fn registry() -> &'static Registry {
    static SHARED: OnceLock<Registry> = OnceLock::new();
    SHARED.get_or_init(Registry::start)
}

/// The shared registry that requires [`USER`] and [`PASSWORD`].
pub fn registry_with_password() -> &'static Registry {
    static SHARED: OnceLock<Registry> = OnceLock::new();
    SHARED.get_or_init(|| Registry::with_password(USER, PASSWORD))
}

/// The shared containerd.
pub fn containerd() -> &'static Containerd {
    static SHARED: OnceLock<Containerd> = OnceLock::new();
    SHARED.get_or_init(Containerd::start)
}

/// The shared Docker Engine.
pub fn docker() -> &'static Docker {
    static SHARED: OnceLock<Docker> = OnceLock::new();
    SHARED.get_or_init(Docker::start)
}

/// Whether containerd and Docker are those of the newer suite in this run.
pub fn has_newer_runtimes() -> bool {
    std::env::var("HARPOON_RUNTIMES").is_ok_and(|runtimes| runtimes.starts_with("modern"))
}

/// Whether the Docker Engine keeps its images in containerd's store in this run.
pub fn docker_has_containerds_store() -> bool {
    std::env::var("HARPOON_RUNTIMES").is_ok_and(|runtimes| runtimes == "modern-store")
}

/// The shared API server.
pub fn kubernetes() -> &'static Kubernetes {
    static SHARED: OnceLock<Kubernetes> = OnceLock::new();
    SHARED.get_or_init(Kubernetes::start)
}

/// The shared API server on the libraries of current Kubernetes, with harpoon's CustomResourceDefinitions.
pub fn apiserver() -> &'static Kubernetes {
    static SHARED: OnceLock<Kubernetes> = OnceLock::new();
    SHARED.get_or_init(|| {
        let server = Kubernetes::start_newer();
        server.install_definitions();
        server
    })
}

/// Whether the program under test is the one that was built for tests.
pub fn is_test_build() -> bool {
    cfg!(debug_assertions) && std::env::var_os("HARPOON_BIN").is_none()
}

/// A unique name: `prefix-N`. Good for images, namespaces and objects.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!(
        "{prefix}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A new directory of the test's own, which is removed when the value is dropped. Programs in a pod see it too.
pub fn directory() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("d")
        .tempdir_in(session())
        .unwrap()
}

/// Waits until `done` returns true, and panics with `what` after `limit`.
#[track_caller]
pub fn eventually(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs a program of the bed to its end and returns its standard output; panics with its standard error if it fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = finished(command);
    succeeded(command, output)
}

#[track_caller]
fn finished(command: &mut Command) -> std::process::Output {
    command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}: run testbed/install"))
}

/// The standard output; panics with the standard error if the command failed.
#[track_caller]
fn succeeded(command: &Command, output: std::process::Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}: {stderr}",
        output.status
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Copies a program to where a test runs it. `cp` does it, because of a file that this process had open for writing while
/// another test's thread started a program, that program has it open too until it runs, and until then it is "busy".
pub fn copy_program(program: impl AsRef<Path>, target: &Path) {
    run(Command::new("cp").arg(program.as_ref()).arg(target));
}

/// `helm` or `kubectl`, installed by `testbed/install`.
pub fn tool(name: &str) -> Command {
    let home = |variable| std::env::var_os(variable).map(PathBuf::from);
    let cache = home("XDG_CACHE_HOME").unwrap_or_else(|| home("HOME").unwrap().join(".cache"));
    Command::new(cache.join("harpoon-testbed/tools/bin").join(name))
}

/// Runs a future on the bed's own runtime and waits for it: from plain tests and from async ones.
pub fn block_on<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> T {
    static RUNTIME: OnceLock<Tokio> = OnceLock::new();
    block_on_runtime(RUNTIME.get_or_init(|| runtime(|| {})), future)
}

fn block_on_runtime<T: Send + 'static>(
    runtime: &Tokio,
    future: impl Future<Output = T> + Send + 'static,
) -> T {
    let (send, receive) = mpsc::channel();
    let task = runtime.spawn(future);
    runtime.spawn(async move { send.send(task.await) });
    match receive.recv().unwrap() {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// A runtime whose threads call this first.
fn runtime(first: impl Fn() + Send + Sync + 'static) -> Tokio {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(first)
        .build()
        .unwrap()
}

/// An HTTP client that uses no proxy of the environment and trusts only `ca` (a PEM file).
pub fn client(ca: Option<&Path>) -> reqwest::Client {
    // The first call wins; the provider is always the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let roots = ca
        .iter()
        .map(|path| reqwest::Certificate::from_pem(&std::fs::read(path).unwrap()).unwrap());
    reqwest::Client::builder()
        .no_proxy()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .tls_certs_only(roots)
        .build()
        .unwrap()
}

/// The directory that `testbed/run` created for this run.
fn session() -> &'static Path {
    static SESSION: OnceLock<PathBuf> = OnceLock::new();
    SESSION.get_or_init(|| match std::env::var_os("HARPOON_TESTBED") {
        Some(directory) => directory.into(),
        None => panic!("no test bed: run `make test`, or `testbed/run cargo test ARGUMENTS`"),
    })
}

/// A script of `testbed/`.
fn script(name: &str) -> Command {
    Command::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("testbed")
            .join(name),
    )
}

/// A daemon that `testbed/start` started; stopped when dropped.
#[derive(Debug)]
struct Daemon {
    directory: PathBuf,
    values: BTreeMap<String, String>,
}

impl Daemon {
    fn start<S: AsRef<str>>(kind: &str, options: &[S]) -> Self {
        Self::start_by(script("start"), kind, options)
    }

    /// One of the newer suite.
    fn start_newer<S: AsRef<str>>(kind: &str, options: &[S]) -> Self {
        let mut command = script("start");
        command.env("HARPOON_RUNTIMES", "modern");
        Self::start_by(command, kind, options)
    }

    fn start_by<S: AsRef<str>>(mut command: Command, kind: &str, options: &[S]) -> Self {
        let directory = session().join(unique(kind));
        let options = options.iter().map(AsRef::as_ref);
        let values = run(command.arg(kind).arg(&directory).args(options));
        Self {
            directory,
            values: parse(&values),
        }
    }

    /// One of the values that the script printed.
    fn value(&self, key: &str) -> &str {
        &self.values[key]
    }

    /// The id of its process `name`.
    fn pid(&self, name: &str) -> u32 {
        let file = self.directory.join(name).with_extension("pid");
        std::fs::read_to_string(file)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    /// Kills it with SIGKILL; its stored data stays.
    fn kill(&self) {
        run(script("kill").arg(&self.directory));
    }

    /// Restarts it in place; kills it first if it runs.
    fn restart(&self) {
        run(script("restart").arg(&self.directory));
    }

    /// Its log so far.
    fn log(&self, name: &str) -> String {
        let log = std::fs::read(self.directory.join(name).with_extension("log")).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // A failure here must not turn a test's panic into an abort; `testbed/run` tries once more and reports it.
        let _ = script("stop").arg(&self.directory).output();
    }
}

/// Lines `KEY=VALUE`.
fn parse(lines: &str) -> BTreeMap<String, String> {
    let pairs = lines.lines().filter_map(|line| line.split_once('='));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}
