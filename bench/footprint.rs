//! Footprint of harpoon on a node: download size, start time, memory while it works and while it sleeps.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::bed::{Containerd, Registry, directory, program};
use super::images::{Content, Layer, push};
use super::measure::{Case, Row, alternate, harpoon, peak_of, run as taken, tool};
use super::page::{Part, column, said};
use super::shaping::{Shape, Wire};

/// A throttled link, so that pulling takes some seconds.
const SHAPE: Shape = Shape {
    latency: Duration::from_millis(20),
    rate: Some(4 << 20),
};
const IMAGES: usize = 8;

pub fn run(part: &mut Part, runs: usize) {
    let bytes = std::fs::read(program()).unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    gzip.write_all(&bytes).unwrap();
    let size = Row {
        name: "the program, all that its image needs".into(),
        columns: vec![
            vec![bytes.len() as f64 / 1e6],
            vec![gzip.finish().unwrap().len() as f64 / 1e6],
        ],
    };
    part.table(
        "size",
        &[column("MB", 2), column("MB compressed", 2)],
        &[size],
        "the program, all that its image needs",
    );

    let start = |name: &str, command: fn() -> Command| {
        Case::new(name, move || {
            let taken = taken(&mut command());
            vec![taken.wall * 1e3, taken.cpu * 1e3]
        })
    };
    let cases = vec![
        start("`harpoon --version`", || harpoon(["--version"])),
        start("`true`", || tool("true")),
        start("`ctr --version`", || {
            let mut c = tool("ctr");
            c.arg("--version");
            c
        }),
        start("`docker --version`", || {
            let mut c = tool("docker");
            c.arg("--version");
            c
        }),
    ];
    let rows = alternate(runs * 4, cases);
    part.table(
        "start",
        &[column("wall ms", 1), column("CPU ms", 1)],
        &rows,
        "`harpoon --version`",
    );

    let registry = Registry::start();
    let wire = Wire::start(registry.address(), SHAPE);
    let references: Vec<_> = (0..IMAGES)
        .map(|n| {
            let name = format!("team/footprint-{n}:1");
            push(
                &registry,
                &name,
                &[&Layer::new(&name, 6_000_000, Content::Random)],
            );
            format!("{}/{name}\n", wire.address())
        })
        .collect();
    let files = directory();
    let list = files.path().join("images");
    std::fs::write(&list, references.concat()).unwrap();
    let pulling = |fill: &'static str| {
        let list = list.to_str().unwrap();
        let title = format!("`harpoon run --fill {fill}`, pulling {IMAGES} images");
        Case::new(title, move || {
            let containerd = Containerd::start();
            let mut run = harpoon(["run", "--images-file", list, "--fill", fill]);
            run.args(["--runtime-endpoint", containerd.endpoint()]);
            vec![taken(&mut run).memory]
        })
    };
    let cases = vec![
        pulling("runtime"),
        pulling("fast"),
        Case::new("`harpoon pause`", || {
            let mut child = harpoon(["pause"]).stdin(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_secs(1));
            let memory = peak_of(child.id());
            child.kill().unwrap();
            child.wait().unwrap();
            vec![memory]
        }),
    ];
    let rows = alternate(runs, cases);
    part.table(
        "memory",
        &[column("MiB resident at most", 1)],
        &rows,
        "`harpoon pause`",
    );
    part.say(&format!(
        "Command: `make bench ONLY=footprint`. {}; {}.",
        said(Command::new("containerd").arg("--version")),
        said(Command::new("docker").arg("--version"))
    ));
}
