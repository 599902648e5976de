//! The program as in the container image: alone in an empty file tree, small, quick to start. And the image itself.
#![allow(
    clippy::print_stdout,
    reason = "the measured figures are for docs/image.md"
)]

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bed::{self, Harpoon, Registry, containerd, kubernetes, program, registry, unique};
use crate::commands::listens_for_signals;

/// A file tree with the program in it and nothing else.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        let scratch = Self(bed::directory());
        scratch.copy(program(), program());
        scratch
    }

    /// Copies a file of this machine to `inside`.
    fn copy(&self, file: impl AsRef<Path>, inside: &str) {
        let target = self.path(inside);
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        bed::copy_program(file, &target);
    }

    /// The path on this machine of `inside`.
    fn path(&self, inside: &str) -> PathBuf {
        self.0.path().join(inside.trim_start_matches('/'))
    }

    /// The program in it, with `/` as its working directory.
    fn harpoon(&self, arguments: &[&str]) -> Harpoon {
        let root = self.0.path().to_str().unwrap();
        Harpoon::new(arguments.iter().copied()).under(["chroot", root])
    }

    fn pull(&self, reference: &str) -> Harpoon {
        let arguments = [
            "pull",
            "--output=json",
            "--retries=0",
            "--runtime-endpoint=oci:/bundle",
        ];
        self.harpoon(&arguments).arg(reference)
    }
}

#[test]
fn lone_program_pulls_and_queries_cluster() {
    let scratch = Scratch::new();
    scratch.harpoon(&["--version"]).run().expect(0);
    let image = registry().push(&format!("{}:1", unique("web")));
    let pull = scratch.pull(&image.reference).env("LOG_LEVEL", "debug");
    let output = pull.run().expect(0);
    assert_eq!(
        output.json()["images"][0]["digest"],
        json!(image.digest),
        "{output}"
    );
    // The program has only its built-in root certificates here.
    assert!(output.stderr.contains("certificates added=0 "), "{output}");

    let cluster = kubernetes();
    let namespace = cluster.namespace();
    cluster.deployment(&namespace, "web", 1, &image.reference);
    let account = cluster.account_directory(&namespace, cluster.token());
    for file in ["token", "ca.crt", "namespace"] {
        let inside = format!("/var/run/secrets/kubernetes.io/serviceaccount/{file}");
        scratch.copy(account.path().join(file), &inside);
    }
    let plan = scratch.harpoon(&["plan", "--output=json", "--runtime-endpoint=oci:/bundle"]);
    let output = plan.envs(cluster.service()).run().expect(0);
    assert_eq!(output.json()["summary"]["present"], 1, "{output}");
}

#[test]
fn mounted_private_authority_is_trusted() {
    let (registry, scratch) = (Registry::with_tls(), Scratch::new());
    scratch.copy(registry.ca(), "/ca/ca.crt");
    scratch.copy(registry.ca(), "/empty/not-a-certificate");
    fs::write(scratch.path("/empty/not-a-certificate"), "").unwrap();
    let reference = registry.push("team/web:1").reference;
    let pull = scratch.pull(&reference).env("LOG_LEVEL", "debug");
    for (variable, value) in [
        ("HOME", "/"),
        ("SSL_CERT_FILE", "/missing"),
        ("SSL_CERT_DIR", "/empty"),
    ] {
        let output = pull.clone().env(variable, value).run().expect(1);
        assert_eq!(output.json()["images"][0]["outcome"], "failed", "{output}");
        assert!(output.stdout.contains("UnknownIssuer"), "{output}");
    }
    for (variable, value) in [
        ("SSL_CERT_FILE", "/ca/ca.crt"),
        ("SSL_CERT_DIR", "/empty:/ca"),
    ] {
        let output = pull.clone().env(variable, value).run().expect(0);
        assert_eq!(output.json()["images"][0]["outcome"], "pulled", "{output}");
        fs::remove_dir_all(scratch.path("/bundle")).unwrap();
    }
}

#[test]
fn pause_uses_little_memory() {
    let running = Harpoon::new(["pause"]).start();
    bed::eventually("pause handles signals", Duration::from_secs(10), || {
        listens_for_signals(running.pid())
    });
    let status = fs::read_to_string(format!("/proc/{}/status", running.pid())).unwrap();
    // The code of a test build is several times as large; its memory of other kinds is counted nevertheless.
    let counted = if bed::is_test_build() {
        "RssAnon:"
    } else {
        "VmRSS:"
    };
    let resident = status.lines().find_map(|l| l.strip_prefix(counted));
    let resident = resident.and_then(|l| l.split_whitespace().next()).unwrap();
    println!("{counted} {resident} kB");
    assert!(resident.parse::<u64>().unwrap() <= 2048, "{status}");
}

#[test]
fn first_request_follows_start_quickly() {
    let scratch = Scratch::new();
    let first_request = || {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let pull = scratch.pull(&format!("{}/web:1", listener.local_addr().unwrap()));
        let started = Instant::now();
        let _running = pull.start();
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        started.elapsed()
    };
    // The quickest of many: other tests run at the same time.
    let quickest = (0..30).map(|_| first_request()).min().unwrap();
    println!("first request after {quickest:?}");
    // That is a limit of the release, which `make release-check` verifies on an idle machine.
    if !bed::is_test_build() {
        assert!(quickest < Duration::from_millis(20), "{quickest:?}");
    }
}

/// The program without debug information, which takes long to compress.
fn stripped(directory: &Path) -> PathBuf {
    let small = directory.join("stripped");
    bed::run(Command::new("strip").arg("-o").arg(&small).arg(program()));
    small
}

/// `image/build` with a program for each architecture, and what it prints.
fn build(archive: &Path, program: &Path, architectures: &[&str]) -> String {
    let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/image/build"));
    command.args(["--name", "registry.example/harpoon"]);
    for architecture in architectures {
        command.arg(program).arg(architecture);
    }
    // Commits during the build change nothing.
    let commit = [
        ("HARPOON_COMMIT", "0123456789ab"),
        ("SOURCE_DATE_EPOCH", "1700000000"),
    ];
    bed::run(command.arg(archive).envs(commit))
}

/// Of an image in an archive, by skopeo.
fn inspect(archive: &Path, options: &[&str]) -> Value {
    let source = format!("oci-archive:{}", archive.display());
    let mut skopeo = Command::new("skopeo");
    let text = bed::run(skopeo.arg("inspect").args(options).arg(source));
    serde_json::from_str(&text).unwrap()
}

#[test]
fn image_is_reproducible_with_one_file() {
    let directory = bed::directory();
    let [first, second] = ["a.tar", "b.tar"].map(|name| directory.path().join(name));
    let program = stripped(directory.path());
    let [said, again] = [&first, &second].map(|archive| build(archive, &program, &["amd64"]));
    assert_eq!(said, again);
    assert!(fs::read(&first).unwrap() == fs::read(&second).unwrap());

    let (config, manifest) = (inspect(&first, &["--config"]), inspect(&first, &["--raw"]));
    assert_eq!(config["config"]["Entrypoint"], json!(["/harpoon"]));
    let labels = &config["config"]["Labels"];
    assert_eq!(labels, &manifest["annotations"]);
    for (name, value) in [
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
        ("source", env!("CARGO_PKG_REPOSITORY")),
    ] {
        assert_eq!(labels[format!("org.opencontainers.image.{name}")], value);
    }

    // containerd unpacks it and finds one file.
    let name = concat!("registry.example/harpoon:", env!("CARGO_PKG_VERSION"));
    containerd().ctr(&["images", "import", first.to_str().unwrap()]);
    assert!(containerd().has(name));
    let mounted = directory.path().join("mounted");
    fs::create_dir(&mounted).unwrap();
    let mounted = mounted.to_str().unwrap();
    containerd().ctr(&["images", "mount", name, mounted]);
    let files: Vec<_> = fs::read_dir(mounted)
        .unwrap()
        .map(|f| f.unwrap().file_name())
        .collect();
    let same = fs::read(program).unwrap() == fs::read(Path::new(mounted).join("harpoon")).unwrap();
    containerd().ctr(&["images", "unmount", "--rm", mounted]);
    containerd().remove(name);
    assert_eq!(files, ["harpoon"]);
    assert!(same);
}

#[test]
fn two_architectures_make_an_index() {
    let directory = bed::directory();
    let archive = directory.path().join("both.tar");
    let program = stripped(directory.path());
    build(&archive, &program, &["amd64", "arm64"]);
    let index = inspect(&archive, &["--raw"]);
    let platforms: Vec<_> = index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["platform"])
        .collect();
    let platform = |architecture| json!({"os": "linux", "architecture": architecture});
    assert_eq!(platforms, [&platform("amd64"), &platform("arm64")]);
    for architecture in ["amd64", "arm64"] {
        let config = inspect(&archive, &["--override-arch", architecture, "--config"]);
        assert_eq!(config["architecture"], architecture);
    }
}
