//! A node's cold fill: pulls the images of a cluster into an empty runtime, with harpoon and with the runtime's own client.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bed::{Containerd, Docker, Registry, directory, unique};
use super::images::{Content, Layer, push};
use super::measure::{Case, alternate, harpoon, run as taken, tool};
use super::page::{Column, Part, column, said};
use super::shaping::{Shape, Wire};

/// Sizes and the rate of the link are a sixteenth of real ones, so that a run takes seconds.
const SCALE: usize = 16;
/// Megabytes of an image's own layers, before scaling; with their base the images have 40 to 400 MB.
const OWN: [usize; 12] = [12, 16, 20, 28, 32, 40, 48, 60, 80, 120, 200, 320];
/// The base of each image and the number of pods: a few images make up most of the pods, regardless of size.
const BASES: [usize; 12] = [0, 1, 0, 2, 1, 0, 2, 1, 0, 1, 0, 2];
const PODS: [usize; 12] = [14, 2, 60, 1, 27, 4, 100, 1, 8, 40, 3, 20];
const SHAPE: Shape = Shape {
    latency: Duration::from_millis(20),
    rate: Some(4 << 20),
};
const CONCURRENCIES: [&str; 5] = ["1", "2", "4", "8", "16"];
/// The row of fast fill, which only containerd has.
const FAST: &str = "`harpoon run --fill fast`";
const COLUMNS: [Column; 2] = [column("wall s", 2), column("CPU s of the client", 2)];
const ORDER: [Column; 4] = [
    column("all s", 2),
    column("50% of the pods s", 2),
    column("80% s", 2),
    column("95% s", 2),
];

/// An image to be pulled.
struct Pulled {
    layers: Vec<Arc<Layer>>,
    bytes: u64,
    base: usize,
    pods: usize,
}

pub fn run(part: &mut Part, runs: usize) {
    let registry = Registry::start();
    let images = images();
    let total: u64 = images.iter().map(|image| image.bytes).sum();
    part.say(&format!(
        "{} images of {} to {} MB compressed on three bases, {} MB without sharing: a sixteenth of real sizes, so that a run takes seconds. \
         Each run uses a fresh runtime, whose start is not counted. *Over a throttled link* is through a proxy with {} ms of latency and {} MiB/s for each connection \
         (also a sixteenth, of the rate of an object store). {FAST} is [fast fill](fast-fill.md); the other rows of harpoon have `--fill runtime`, as a node has whose containerd directory \
         is not mounted.",
        images.len(),
        images.iter().map(|image| image.bytes).min().unwrap() / 1_000_000,
        images.iter().map(|image| image.bytes).max().unwrap() / 1_000_000,
        total / 1_000_000,
        SHAPE.latency.as_millis(),
        SHAPE.rate.unwrap() >> 20,
    ));
    let files = directory();
    let wire = Wire::start(registry.address(), SHAPE);
    for (place, address) in [
        ("plain registry", registry.address().to_owned()),
        ("over a throttled link", wire.address()),
    ] {
        let list = &list(&registry, files.path(), &address, &by_use(&images)).file;
        for kind in [Kind::Containerd, Kind::Docker] {
            let mut cases: Vec<_> = CONCURRENCIES
                .iter()
                .map(|n| {
                    case(
                        format!("`harpoon run --concurrency {n}`"),
                        kind,
                        move |fresh| ours(fresh, list, &["--fill", "runtime", "--concurrency", n]),
                    )
                })
                .collect();
            if let Kind::Containerd = kind {
                cases.push(case(FAST.to_owned(), kind, move |fresh| {
                    ours(fresh, list, &["--fill", "fast"])
                }));
            }
            for (name, script) in kind.loops() {
                cases.push(case(name.to_owned(), kind, move |fresh| {
                    theirs(fresh, script, list)
                }));
            }
            let rows = alternate(runs, cases);
            part.table(
                &format!("{}, {place}", kind.version()),
                &COLUMNS,
                &rows,
                &format!("`harpoon run --concurrency {}`", CONCURRENCIES[2]),
            );
        }
    }
    part.say(
        "The order of pulls into containerd over the throttled link: the time until the images of 50, 80 and 95% of the pods are present, from harpoon's log. \
         The names of the images set the order, because images of a list are pulled by name.",
    );
    let orders: [(&str, Vec<&Pulled>); 4] = [
        ("most used first", by_use(&images)),
        (
            "biggest first",
            sorted(&images, |image| std::cmp::Reverse(image.bytes)),
        ),
        (
            "smallest first",
            sorted(&images, |image| std::cmp::Reverse(u64::MAX - image.bytes)),
        ),
        (
            "one of each base first, then most used",
            bases_first(&images),
        ),
    ];
    let cases = orders.iter().map(|(name, order)| {
        let list = list(&registry, files.path(), &wire.address(), order);
        Case::new(*name, move || useful(&list, order))
    });
    let rows = alternate(runs, cases.collect());
    part.table("order", &ORDER, &rows, "most used first");
    part.say(&format!(
        "Command: `make bench ONLY=fill`. {}; {}.",
        said(tool("containerd").arg("--version")),
        said(tool("dockerd").arg("--version"))
    ));
}

fn images() -> Vec<Pulled> {
    let size = |megabytes: usize| megabytes * 1_000_000 / SCALE;
    // A distribution of small files at the bottom, and the files of a language above it.
    let distribution = Arc::new(Layer::new("distribution", size(24), Content::Files));
    let languages = [
        ("c", 4, Content::Text),
        ("python", 40, Content::Files),
        ("java", 60, Content::Text),
    ]
    .map(|(name, mb, content)| Arc::new(Layer::new(name, size(mb), content)));
    let all = OWN
        .iter()
        .zip(BASES)
        .zip(PODS)
        .enumerate()
        .map(|(n, ((own, base), pods))| {
            let own = size(*own);
            // Libraries as text, and the rest as incompressible data.
            let layer = |name: &str, bytes, content| {
                Arc::new(Layer::new(&format!("{name}-{n}"), bytes, content))
            };
            let layers = vec![
                Arc::clone(&distribution),
                Arc::clone(&languages[base]),
                layer("libraries", own / 4, Content::Files),
                layer("program", own / 2, Content::Random),
                layer("data", own / 4, Content::Text),
            ];
            Pulled {
                bytes: layers.iter().map(|layer| layer.bytes()).sum(),
                layers,
                base,
                pods,
            }
        });
    all.collect()
}

fn sorted<K: Ord>(images: &[Pulled], key: impl Fn(&Pulled) -> K) -> Vec<&Pulled> {
    let mut sorted: Vec<_> = images.iter().collect();
    sorted.sort_by_key(|image| key(image));
    sorted
}

fn by_use(images: &[Pulled]) -> Vec<&Pulled> {
    sorted(images, |image| std::cmp::Reverse(image.pods))
}

fn bases_first(images: &[Pulled]) -> Vec<&Pulled> {
    let mut order = by_use(images);
    let first: Vec<_> = (0..3)
        .map(|base| order.iter().position(|image| image.base == base).unwrap())
        .collect();
    let mut position = 0;
    order.sort_by_key(|_| {
        position += 1;
        !first.contains(&(position - 1))
    });
    order
}

/// Images in the order in which harpoon pulls them; listed images are ordered by name.
struct List {
    file: String,
    references: Vec<String>,
}

/// Pushes the images under names in this order, to be pulled from `address`.
fn list(registry: &Registry, directory: &Path, address: &str, images: &[&Pulled]) -> List {
    let name = unique("order");
    let tags = images.iter().enumerate().map(|(place, image)| {
        let tag = format!("team/apps:{name}-{place:02}");
        let layers: Vec<_> = image.layers.iter().map(|layer| &**layer).collect();
        push(registry, &tag, &layers);
        format!("{address}/{tag}")
    });
    let references: Vec<_> = tags.collect();
    let file = directory.join(name);
    std::fs::write(&file, references.join("\n") + "\n").unwrap();
    List {
        file: file.to_str().unwrap().to_owned(),
        references,
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Containerd,
    Docker,
}

impl Kind {
    /// The name and the version: containerd's major and minor one, as in 1.6, Docker's major one.
    fn version(self) -> String {
        let (name, program, numbers) = match self {
            Self::Containerd => ("containerd", "containerd", 2),
            Self::Docker => ("Docker", "dockerd", 1),
        };
        let text = said(tool(program).arg("--version"));
        let mut words = text.split([' ', ',']);
        let version = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        let version = version.unwrap_or_else(|| panic!("no version in {text}"));
        let version: Vec<_> = version.split('.').take(numbers).collect();
        format!("{name} {}", version.join("."))
    }

    /// The alternative that a user would run: `$1` is the socket, `$2` the list.
    fn loops(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Containerd => [
                (
                    "`ctr images pull` in a loop",
                    r#"while read -r image; do ctr -a "$1" -n k8s.io images pull --plain-http "$image"; done <"$2""#,
                ),
                (
                    "`xargs -P10 ctr images pull`",
                    r#"xargs -a "$2" -P10 -n1 ctr -a "$1" -n k8s.io images pull --plain-http"#,
                ),
            ],
            Self::Docker => [
                (
                    "`docker pull` in a loop",
                    r#"while read -r image; do docker -H "unix://$1" pull -q "$image"; done <"$2""#,
                ),
                (
                    "`xargs -P10 docker pull`",
                    r#"xargs -a "$2" -P10 -n1 docker -H "unix://$1" pull -q"#,
                ),
            ],
        }
    }

    fn start(self) -> Fresh {
        match self {
            Self::Containerd => Fresh::Containerd(Containerd::start()),
            Self::Docker => Fresh::Docker(Docker::start()),
        }
    }
}

/// A runtime without images.
enum Fresh {
    Containerd(Containerd),
    Docker(Docker),
}

impl Fresh {
    fn endpoint(&self) -> &str {
        match self {
            Self::Containerd(containerd) => containerd.endpoint(),
            Self::Docker(docker) => docker.endpoint(),
        }
    }

    /// Number of its image names that are not digests.
    fn images(&self) -> usize {
        let images = match self {
            Self::Containerd(containerd) => containerd.images(),
            Self::Docker(docker) => docker.images(),
        };
        images
            .iter()
            .filter(|image| image.contains("/team/") && !image.contains('@'))
            .count()
    }
}

fn ours(fresh: &Fresh, list: &str, extra: &[&str]) -> Command {
    let mut command = harpoon([
        "run",
        "--images-file",
        list,
        "--runtime-endpoint",
        fresh.endpoint(),
        "--output",
        "json",
        "--fail-on",
        "any",
    ]);
    command.args(extra);
    command
}

fn theirs(fresh: &Fresh, script: &str, list: &str) -> Command {
    let mut shell = tool("bash");
    shell.args([
        "-euc",
        script,
        "bash",
        fresh.endpoint().trim_start_matches("unix://"),
        list,
    ]);
    shell
}

fn case<'a>(name: String, kind: Kind, command: impl Fn(&Fresh) -> Command + 'a) -> Case<'a> {
    Case::new(name, move || {
        let fresh = kind.start();
        let taken = taken(&mut command(&fresh));
        assert_eq!(fresh.images(), OWN.len());
        vec![taken.wall, taken.cpu]
    })
}

/// The times when all images, and those of half, four fifths and nineteen twentieths of the pods, are present.
fn useful(list: &List, order: &[&Pulled]) -> Vec<f64> {
    let fresh = Kind::Containerd.start();
    let mut command = ours(&fresh, &list.file, &["--fill", "runtime"]);
    let began = Instant::now();
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let all: usize = PODS.iter().sum();
    let (mut there, mut at) = (0, [None; 3]);
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        let is_done = |reference: &&String| line.contains("pulled") && line.contains(*reference);
        let done = list
            .references
            .iter()
            .position(|reference| is_done(&reference));
        there += done.map_or(0, |place| order[place].pods);
        for (percent, at) in [50, 80, 95].into_iter().zip(&mut at) {
            if there * 100 >= all * percent {
                at.get_or_insert(began.elapsed().as_secs_f64());
            }
        }
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(there, all, "every image is logged once when it is pulled");
    let whole = began.elapsed().as_secs_f64();
    [Some(whole)]
        .into_iter()
        .chain(at)
        .map(|seconds| seconds.unwrap())
        .collect()
}
