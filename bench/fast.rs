//! One cold image, by containerd's own pull and by fast fill, on two generations of containerd.

use std::time::Duration;

use super::bed::{Containerd, Registry, unique};
use super::images::{Layer, push};
use super::measure::{Case, alternate, cpu_of, harpoon, run as taken, tool};
use super::page::{Column, Part, column, said};
use super::shaping::{Shape, Wire};

/// The images: name, layers, files of each layer, unpacked bytes of each layer.
const IMAGES: [(&str, usize, usize, usize); 3] = [
    ("4 layers, 732 MB unpacked", 4, 400, 183_000_000),
    ("8 layers, 32,000 files", 8, 4_000, 40_000_000),
    ("1 layer, 400 MB unpacked", 1, 1, 400_000_000),
];
/// Of one connection.
const SHAPE: Shape = Shape {
    latency: Duration::from_millis(20),
    rate: Some(60_000_000),
};
const COLUMNS: [Column; 3] = [
    column("wall s", 2),
    column("CPU s of harpoon and containerd", 2),
    column("memory of harpoon MiB", 0),
];
/// The row that the others are compared with.
const BASE: &str = "containerd 1.6, fast fill";

/// Size of a node's disk, which takes only what is written. Every run has its own: a file system on which many files were just
/// deleted is slow to make new ones.
const DISK: &str = "8000000000";

/// A fresh containerd.
#[derive(Debug, Clone, Copy)]
enum Fresh {
    Older,
    Newer,
    /// With what it has for faster downloads.
    Tuned,
}

impl Fresh {
    fn start(self) -> Containerd {
        match self {
            Self::Older => Containerd::with_disk(DISK),
            // Its own default; the test bed has more.
            Self::Newer => Containerd::newer(&["--disk", DISK, "--downloads", "3"]),
            Self::Tuned => {
                Containerd::newer(&["--disk", DISK, "--downloads", "8", "--buffer", "8388608"])
            }
        }
    }
}

pub fn run(part: &mut Part, runs: usize) {
    part.say(&format!(
        "One image into an empty containerd, by its own pull (`--fill runtime`) and by [fast fill](fast-fill.md) (`--fill fast`). *Tuned* is containerd 2.1 with \
         `use_local_image_pull`, `max_concurrent_downloads = 8` and `concurrent_layer_fetch_buffer = 8388608`. The throttled link has {} ms of latency and \
         {} MB/s for each connection. Layers are compressed by gzip.",
        SHAPE.latency.as_millis(),
        SHAPE.rate.unwrap() / 1_000_000,
    ));
    let registry = Registry::start();
    let wire = Wire::start(registry.address(), SHAPE);
    for (name, layers, files, bytes) in IMAGES {
        let tag = format!("team/fast:{}", unique("one"));
        // One at a time in memory.
        let layers: Vec<_> = (0..layers)
            .map(|n| Layer::of_files(&format!("{name} {n}"), files, bytes))
            .collect();
        push(&registry, &tag, &layers.iter().collect::<Vec<_>>());
        drop(layers);
        for (place, address) in [
            ("registry on loopback", registry.address().to_owned()),
            ("throttled link", wire.address()),
        ] {
            let image = &format!("{address}/{tag}");
            let cases = [
                ("containerd 1.6", Fresh::Older, "runtime"),
                (BASE, Fresh::Older, "fast"),
                ("containerd 2.1", Fresh::Newer, "runtime"),
                ("containerd 2.1, tuned", Fresh::Tuned, "runtime"),
                ("containerd 2.1, fast fill", Fresh::Newer, "fast"),
            ];
            let cases =
                cases.map(|(name, fresh, fill)| Case::new(name, move || once(fresh, fill, image)));
            let rows = alternate(runs, cases.into());
            part.table(&format!("{name}, {place}"), &COLUMNS, &rows, BASE);
        }
    }
    part.say(&format!(
        "Command: `make bench ONLY=fast` (also a part of `ONLY=fill`). {}.",
        said(tool("containerd").arg("--version"))
    ));
}

fn once(fresh: Fresh, fill: &str, image: &str) -> Vec<f64> {
    let containerd = fresh.start();
    // What earlier runs left to be written.
    rustix::fs::sync();
    let before = cpu_of(containerd.pid());
    let taken = taken(&mut harpoon([
        "pull",
        "--fill",
        fill,
        "--runtime-endpoint",
        containerd.endpoint(),
        image,
    ]));
    let cpu = cpu_of(containerd.pid()) - before;
    assert!(containerd.has(image));
    vec![taken.wall, taken.cpu + cpu, taken.memory]
}
