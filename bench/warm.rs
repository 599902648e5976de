//! A run that finds all images present, the usual case: its cost for the node.

use std::process::Command;

use super::bed::{Containerd, Docker, Registry, directory};
use super::images::{Content, Layer, push};
use super::measure::{Case, alternate, harpoon, run as taken, tool};
use super::page::{Column, Part, column, said};

const IMAGES: usize = 100;
const COLUMNS: [Column; 4] = [
    column("wall ms", 0),
    column("CPU ms", 0),
    column("memory MiB", 1),
    column("requests to the runtime", 0),
];
const OURS: &str = "`harpoon run`";

pub fn run(part: &mut Part, runs: usize) {
    let registry = Registry::start();
    let base = Layer::new("base", 100_000, Content::Text);
    let references: Vec<_> = (0..IMAGES)
        .map(|n| {
            push(
                &registry,
                &format!("team/service-{n}:1"),
                &[
                    &base,
                    &Layer::new(&format!("service-{n}"), 1_000, Content::Random),
                ],
            )
        })
        .collect();
    let files = directory();
    let list = files.path().join("images");
    std::fs::write(&list, references.join("\n") + "\n").unwrap();
    let list = list.to_str().unwrap();
    let containerd = Containerd::start();
    let docker = Docker::start();
    part.say(&format!(
        "{IMAGES} images, all present. *Requests* are calls written to the runtime's socket, counted by `strace` in a run of its own. \
         The first loop queries the runtime for each image and pulls none. The second pulls each image, as scripts do that rely on the client to find it present; \
         it sends requests to the registry too. Each counts as one request an image."
    ));
    let containerd_loops = [
        (
            "`ctr images list` in a loop",
            r#"while read -r image; do [ -n "$(ctr -a "$1" -n k8s.io images list -q "name==$image")" ]; done <"$2""#,
        ),
        (
            "`ctr images pull` in a loop",
            r#"while read -r image; do ctr -a "$1" -n k8s.io images pull --plain-http "$image"; done <"$2""#,
        ),
    ];
    let docker_loops = [
        (
            "`docker image inspect` in a loop",
            r#"while read -r image; do docker -H "unix://$1" image inspect "$image"; done <"$2""#,
        ),
        (
            "`docker pull` in a loop",
            r#"while read -r image; do docker -H "unix://$1" pull -q "$image"; done <"$2""#,
        ),
    ];
    for (name, endpoint, loops) in [
        ("containerd", containerd.endpoint(), containerd_loops),
        ("Docker", docker.endpoint(), docker_loops),
    ] {
        let ours = || {
            harpoon([
                "run",
                "--images-file",
                list,
                "--runtime-endpoint",
                endpoint,
                "--output",
                "json",
            ])
        };
        taken(&mut ours());
        let socket = endpoint.trim_start_matches("unix://");
        let mut cases = vec![case(OURS, ours, true)];
        for (name, script) in loops {
            let theirs = move || {
                let mut shell = tool("bash");
                shell.args(["-euc", script, "bash", socket, list]);
                shell
            };
            cases.push(case(name, theirs, false));
        }
        let rows = alternate(runs, cases);
        part.table(name, &COLUMNS, &rows, OURS);
    }
    part.say(&format!(
        "Command: `make bench ONLY=warm`. {}; {}.",
        said(Command::new("containerd").arg("--version")),
        said(Command::new("docker").arg("--version"))
    ));
}

fn case<'a>(name: &str, command: impl Fn() -> Command + 'a, counted: bool) -> Case<'a> {
    let requests = if counted {
        requests(&command())
    } else {
        IMAGES as f64
    };
    Case::new(name, move || {
        let taken = taken(&mut command());
        vec![taken.wall * 1e3, taken.cpu * 1e3, taken.memory, requests]
    })
}

/// Number of writes of the command to a unix socket: HTTP/1.1 and gRPC send a small request with one write.
fn requests(command: &Command) -> f64 {
    let files = directory();
    let trace = files.path().join("trace");
    let mut traced = tool("strace");
    traced
        .args([
            "-f",
            "-qq",
            "-yy",
            "-e",
            "trace=write,writev,sendto,sendmsg",
            "-s",
            "65536",
            "-xx",
            "-o",
        ])
        .arg(&trace);
    traced.arg(command.get_program()).args(command.get_args());
    taken(&mut traced);
    let text = std::fs::read_to_string(trace).unwrap();
    text.lines()
        .filter(|line| line.contains("UNIX-STREAM"))
        .count() as f64
}
