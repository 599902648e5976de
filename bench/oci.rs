//! Pulls into an OCI image layout, compared with `skopeo copy`, the usual tool for it.

use std::process::Command;
use std::time::Duration;

use super::bed::{Registry, directory};
use super::images::{Content, Layer, push};
use super::measure::{Case, alternate, harpoon, run as taken, tool};
use super::page::{Column, Part, column, said};
use super::shaping::{Shape, Wire};

/// A typical image of many layers, and one four times as large: memory must not grow with it.
const IMAGES: [(&str, usize); 2] = [("48 MB", 48_000_000), ("192 MB", 192_000_000)];
/// Parts of an image's bytes, in hundredths.
const LAYERS: [usize; 8] = [25, 20, 15, 12, 10, 8, 6, 4];
const SHAPE: Shape = Shape {
    latency: Duration::from_millis(20),
    rate: Some(8 << 20),
};
const COLUMNS: [Column; 3] = [
    column("wall s", 2),
    column("CPU s", 2),
    column("memory MiB", 1),
];
const OURS: &str = "`harpoon pull`";

pub fn run(part: &mut Part, runs: usize) {
    let registry = Registry::start();
    let wire = Wire::start(registry.address(), SHAPE);
    part.say(&format!(
        "One image of {} layers into a new OCI image layout. *Over a throttled link* is through a proxy with {} ms of latency and {} MiB/s for each connection.",
        LAYERS.len(),
        SHAPE.latency.as_millis(),
        SHAPE.rate.unwrap() >> 20,
    ));
    for (size, bytes) in IMAGES {
        let layers: Vec<_> = LAYERS
            .iter()
            .enumerate()
            .map(|(n, percent)| {
                Layer::new(
                    &format!("{size}-{n}"),
                    bytes * percent / 100,
                    if n % 2 == 0 {
                        Content::Random
                    } else {
                        Content::Text
                    },
                )
            })
            .collect();
        let name = format!("team/oci-{}:1", bytes / 1_000_000);
        push(&registry, &name, &layers.iter().collect::<Vec<_>>());
        for (place, address) in [
            ("plain registry", registry.address().to_owned()),
            ("over a throttled link", wire.address()),
        ] {
            let image = &format!("{address}/{name}");
            let cases = vec![
                case(OURS, |directory| {
                    harpoon([
                        "pull",
                        "--runtime-endpoint",
                        &format!("oci:{directory}"),
                        image,
                    ])
                }),
                case("`skopeo copy`", |directory| {
                    let mut skopeo = tool("skopeo");
                    skopeo.args([
                        "--insecure-policy",
                        "copy",
                        "--quiet",
                        "--src-tls-verify=false",
                        &format!("docker://{image}"),
                        &format!("oci:{directory}:1"),
                    ]);
                    skopeo
                }),
            ];
            let rows = alternate(runs, cases);
            part.table(&format!("{size}, {place}"), &COLUMNS, &rows, OURS);
        }
    }
    part.say(&format!(
        "Command: `make bench ONLY=oci`. {}.",
        said(Command::new("skopeo").arg("--version"))
    ));
}

fn case<'a>(name: &str, command: impl Fn(&str) -> Command + 'a) -> Case<'a> {
    Case::new(name, move || {
        let files = directory();
        let layout = files.path().join("layout");
        let taken = taken(&mut command(layout.to_str().unwrap()));
        assert!(layout.join("index.json").exists());
        vec![taken.wall, taken.cpu, taken.memory]
    })
}
