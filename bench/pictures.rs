//! The pictures of `docs/img`, drawn from the stored results.
//!
//! A picture is a function of one group of parts that [`ALL`] lists; it is left out while its parts are missing. Bars are for
//! comparisons, lines for growth. `make generate` draws all of them again; a test compares.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::board::{self, board};
use super::chart::{Bar, Graph, Kind, Line, Panel, Picture, bars, lines};
use super::results::{self, Cell, Part};

/// Draws a picture from these parts.
type Drawing = fn(&[&Part]) -> String;

/// The file name, the parts that may be in it, and the drawing.
const ALL: &[(&str, &[&str], Drawing)] = &[
    (
        "pod-start.svg",
        &["pod-start-private", "pod-start-private-modern"],
        pod_start,
    ),
    ("fill.svg", &["fill", "fill-modern"], fill),
    ("fast.svg", &["fast"], fast),
    ("discovery-memory.svg", &["discovery"], discovery_memory),
    ("discovery-cost.svg", &["discovery"], discovery_cost),
    ("scale-release.svg", &["scale"], scale_release),
    ("scale-rollout.svg", &["scale"], scale_rollout),
    ("dashboard.svg", &["dashboard"], dashboard),
];

/// Pictures that a page shows below the line `<!-- picture FILE -->` once they are drawn: file, page, description.
const SHOWN: &[(&str, &str, &str)] = &[
    (
        "fast.svg",
        "docs/fast-fill.md",
        "Bars: one cold image by containerd's own pull and by fast fill, on containerd 1.6 and 2.1",
    ),
    (
        "scale-release.svg",
        "docs/scale.md",
        "Lines: the time until a new image is planned, the last agent starts and the image is Ready, in clusters of up to 5,000 nodes",
    ),
    (
        "scale-rollout.svg",
        "docs/scale.md",
        "Bars: most pulls at once from the registry by kind of rollout, with and without peers",
    ),
    (
        "dashboard.svg",
        "docs/monitoring.md",
        "The Grafana dashboard: fleet, new nodes, failures, registry, disk and control plane",
    ),
];

/// The pages that show pictures: their paths and texts, with the pictures that are drawn.
pub fn pages(is_drawn: impl Fn(&str) -> bool) -> Vec<(PathBuf, String)> {
    let paths: BTreeSet<_> = SHOWN.iter().map(|(_, page, _)| *page).collect();
    let pages = paths.into_iter().map(|path| {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        let mut text = std::fs::read_to_string(&file).unwrap();
        for (picture, page, description) in SHOWN {
            if *page == path {
                let link = format!("![{description}](img/{picture})\n");
                let link = if is_drawn(picture) { &link } else { "" };
                text = with_picture(&text, picture, link);
            }
        }
        (file, text)
    });
    pages.collect()
}

/// The page with this link in the place of the picture.
fn with_picture(page: &str, picture: &str, link: &str) -> String {
    let marker = format!("<!-- picture {picture} -->\n");
    let (before, after) = page
        .split_once(&marker)
        .unwrap_or_else(|| panic!("no page has a place for {picture}"));
    let after = match after.strip_prefix("![") {
        Some(old) => old.split_once('\n').map_or("", |(_, rest)| rest),
        None => after,
    };
    format!("{before}{marker}{link}{after}")
}

/// All pictures that the results suffice for: their file names and contents. A picture whose parts are of several commits is
/// left out: a benchmark that runs has measured some of them only.
pub fn all(results: &[Part]) -> Vec<(&'static str, String)> {
    let pictures = ALL.iter().filter_map(|(file, names, draw)| {
        let parts = names
            .iter()
            .filter_map(|name| results.iter().find(|part| part.name == *name));
        let parts: Vec<_> = parts.collect();
        let (first, others) = parts.split_first()?;
        let commit = &first.conditions.commit;
        let is_one = others.iter().all(|part| part.conditions.commit == *commit);
        is_one.then(|| (*file, draw(&parts)))
    });
    pictures.collect()
}

/// Draws all pictures into `docs/img`.
pub fn draw_all() {
    let directory = directory();
    std::fs::create_dir_all(&directory).unwrap();
    for (file, svg) in all(&Part::all()) {
        std::fs::write(directory.join(file), svg).unwrap();
    }
    for (file, text) in pages(|picture| directory.join(picture).exists()) {
        std::fs::write(file, text).unwrap();
    }
}

/// The directory of the pictures.
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/img")
}

/// The caption of a picture of these parts.
fn caption(parts: &[&Part]) -> Vec<String> {
    let commands: BTreeSet<_> = parts.iter().filter_map(|part| part.command()).collect();
    let commands: Vec<_> = commands.into_iter().collect();
    vec![
        format!("Measured by {}", commands.join(" and ")),
        parts[0].conditions.caption(),
    ]
}

/// A row's name without Markdown.
fn plain(row: &str) -> String {
    row.replace('`', "")
}

fn bar(label: String, cell: Cell, kind: Kind) -> Bar {
    Bar { label, cell, kind }
}

fn pod_start(parts: &[&Part]) -> String {
    let panels = parts.iter().map(|part| {
        let table = part.tables()[0];
        let rows = part.column(table, "seconds");
        let bars = rows.into_iter().map(|(row, cell)| {
            let kind = match row {
                _ if row.starts_with("sealed") => Kind::Second,
                _ if row.contains("by harpoon") => Kind::Ours,
                _ => Kind::Theirs,
            };
            bar(plain(row), cell, kind)
        });
        Panel {
            title: capital(table),
            bars: bars.collect(),
        }
    });
    let picture = Picture {
        title: "Start of a pod with an image of 300 MB",
        subtitle: "Seconds from scheduled to running, median. Shorter is better.",
        legend: &[
            (Kind::Ours, "pulled by harpoon before the pod"),
            (Kind::Second, "and sealed, for pods with the secret only"),
            (Kind::Theirs, "pulled by the kubelet for the pod"),
        ],
        unit: "s",
        caption: caption(parts),
    };
    bars(&picture, 1, &panels.collect::<Vec<_>>())
}

fn fill(parts: &[&Part]) -> String {
    const PLACES: [&str; 2] = ["plain registry", "over a throttled link"];
    let mut panels = Vec::new();
    for part in parts {
        let tables = part.tables();
        let runtimes = tables
            .iter()
            .filter_map(|table| table.strip_suffix(PLACES[0])?.strip_suffix(", "));
        for (runtime, place) in runtimes.flat_map(|runtime| PLACES.map(|place| (runtime, place))) {
            let rows = part.column(&format!("{runtime}, {place}"), "wall s");
            let bars = rows.into_iter().filter_map(|(row, cell)| {
                let row = plain(row);
                let kind = match &row {
                    _ if row.ends_with("--fill fast") => Kind::Second,
                    _ if row.starts_with("harpoon") => Kind::Ours,
                    _ => Kind::Theirs,
                };
                // The default of --concurrency, and the clients of the runtime.
                let row = row.replace(" --concurrency 4", "");
                (!row.contains("--concurrency")).then(|| bar(row, cell, kind))
            });
            panels.push(Panel {
                title: format!("{runtime}, {place}"),
                bars: bars.collect(),
            });
        }
    }
    let kinds = panels.iter().flat_map(|panel| &panel.bars);
    let kinds: Vec<_> = kinds.map(|bar| bar.kind).collect();
    let legend = [
        (Kind::Ours, "harpoon"),
        (Kind::Second, "with fast fill"),
        (Kind::Theirs, "the runtime's own client"),
    ];
    let legend = legend.into_iter().filter(|(kind, _)| kinds.contains(kind));
    let picture = Picture {
        title: "Cold fill: 12 images into an empty runtime",
        subtitle: "Seconds, median; whiskers from the minimum to the maximum. Shorter is better.",
        legend: &legend.collect::<Vec<_>>(),
        unit: "s",
        caption: caption(parts),
    };
    bars(&picture, 2, &panels)
}

fn fast(parts: &[&Part]) -> String {
    let part = parts[0];
    let panels = part.tables().into_iter().map(|table| {
        let rows = part.column(table, "wall s").into_iter();
        let bars = rows.map(|(row, cell)| {
            let kind = match row {
                _ if row.ends_with("fast fill") => Kind::Ours,
                _ if row.ends_with("tuned") => Kind::Second,
                _ => Kind::Theirs,
            };
            bar(plain(row), cell, kind)
        });
        Panel {
            title: table.to_owned(),
            bars: bars.collect(),
        }
    });
    let picture = Picture {
        title: "One cold image into an empty containerd",
        subtitle: "Seconds, median; whiskers from the minimum to the maximum. Shorter is better.",
        legend: &[
            (Kind::Ours, "fast fill"),
            (Kind::Second, "containerd's own pull, tuned"),
            (Kind::Theirs, "containerd's own pull"),
        ],
        unit: "s",
        caption: caption(parts),
    };
    bars(&picture, 2, &panels.collect::<Vec<_>>())
}

fn dashboard(parts: &[&Part]) -> String {
    let mut panels: Vec<board::Panel> = Vec::new();
    for line in &parts[0].lines {
        match line {
            results::Line::Panel {
                panel,
                shape,
                unit,
                place,
            } => panels.push(board::Panel {
                title: panel.clone(),
                shape: *shape,
                unit: *unit,
                place: *place,
                series: Vec::new(),
            }),
            results::Line::Series { series, points } => {
                let panel = panels.last_mut().expect("a panel before its lines");
                panel.series.push(board::Series {
                    name: series.clone(),
                    points: points.clone(),
                });
            }
            _ => {}
        }
    }
    let picture = Picture {
        title: "The Grafana dashboard",
        subtitle: "Its own queries, answered by Prometheus, and drawn by harpoon's benchmark. Minutes since the start.",
        legend: &[],
        unit: "",
        caption: caption(parts),
    };
    board(&picture, &panels)
}

/// The sizes of the clusters and the values of a client there, of the tables of discovery.
fn growth(part: &Part, client: &str, column: &str) -> Vec<(f64, f64)> {
    let tables = part.tables().into_iter().filter_map(|table| {
        let size: f64 = table.strip_suffix(" Deployments")?.parse().ok()?;
        Some((table, size))
    });
    let points = tables.filter_map(|(table, size)| {
        let rows = part.column(table, column);
        let row = rows.iter().find(|(row, _)| plain(row) == client)?;
        Some((size, row.1[0]))
    });
    points.collect()
}

const CLIENTS: [(&str, Kind); 2] = [
    ("harpoon plan", Kind::Ours),
    ("kubectl get deployments -A -o json", Kind::Theirs),
];

fn graph(part: &Part, title: &str, column: &str) -> Graph {
    let lines = CLIENTS.map(|(client, kind)| Line {
        label: client.to_owned(),
        points: growth(part, client, column),
        kind,
    });
    Graph {
        title: title.to_owned(),
        lines: lines.into(),
    }
}

const LEGEND: &[(Kind, &str)] = &[(Kind::Ours, CLIENTS[0].0), (Kind::Theirs, CLIENTS[1].0)];
const SIZE: &str = "Deployments of 20 KB in the cluster";

fn discovery_memory(parts: &[&Part]) -> String {
    let picture = Picture {
        title: "Memory to read the cluster's Deployments",
        subtitle: "Peak resident memory of the client, median. Both axes are logarithmic. Lower is better.",
        legend: LEGEND,
        unit: "MiB",
        caption: caption(parts),
    };
    lines(
        &picture,
        SIZE,
        &[graph(parts[0], "Memory of the client, MiB", "memory MiB")],
    )
}

fn discovery_cost(parts: &[&Part]) -> String {
    let picture = Picture {
        title: "Cost of reading the cluster's Deployments once",
        subtitle: "Seconds of CPU, median. All axes are logarithmic. Lower is better.",
        legend: LEGEND,
        unit: "s",
        caption: caption(parts),
    };
    let graphs = [
        graph(parts[0], "CPU of the client, s", "CPU s"),
        graph(parts[0], "CPU of the API server, s", "API server CPU s"),
    ];
    lines(&picture, SIZE, &graphs)
}

/// The number in a title such as "5000 nodes".
fn nodes(title: &str) -> f64 {
    let number = title.split(' ').next().and_then(|word| word.parse().ok());
    number.unwrap_or_else(|| panic!("{title} has no number"))
}

fn scale_release(parts: &[&Part]) -> String {
    const LINES: [(&str, &str, usize, Kind); 3] = [
        (
            "the image is Ready",
            "new image: from `kubectl apply` to Ready",
            0,
            Kind::Theirs,
        ),
        (
            "the last agent starts",
            "new image: agents start, p50, p99, last",
            2,
            Kind::Second,
        ),
        (
            "the image is planned",
            "new image: from `kubectl apply` to PlannedImage",
            0,
            Kind::Ours,
        ),
    ];
    let part = parts[0];
    let lines_of = LINES.map(|(label, row, place, kind)| {
        let sizes = part.titles().iter().map(|title| nodes(title));
        Line {
            label: label.to_owned(),
            points: sizes
                .zip(part.numbers(row, place))
                .filter_map(|(size, number)| Some((size, number?)))
                .collect(),
            kind,
        }
    });
    let picture = Picture {
        title: "A new image in a cluster that grows",
        subtitle: "Seconds from kubectl apply, and to agents from the planned image. Both axes are logarithmic. Lower is better.",
        legend: &LINES.map(|(label, _, _, kind)| (kind, label)),
        unit: "s",
        caption: caption(parts),
    };
    let graph = Graph {
        title: "Time, s".to_owned(),
        lines: lines_of.into(),
    };
    lines(&picture, "nodes", &[graph])
}

fn scale_rollout(parts: &[&Part]) -> String {
    const ROW: &str = ": most pulls at once from the registry, with peers";
    let part = parts[0];
    let rollouts: Vec<_> = part
        .rows_of_texts()
        .filter_map(|row| row.strip_suffix(ROW))
        .collect();
    // The largest cluster with all of them.
    let is_measured = |at: &usize| {
        let mut rows = rollouts.iter().map(|rollout| format!("{rollout}{ROW}"));
        rows.all(|row| part.numbers(&row, 0)[*at].is_some())
    };
    let last = (0..part.titles().len()).rev().find(is_measured);
    let last = last.expect("a cluster with all rollouts");
    let panel = Panel {
        title: part.titles()[last].clone(),
        bars: rollouts
            .iter()
            .flat_map(|rollout| {
                let row = format!("{rollout}{ROW}");
                [("", 0, Kind::Theirs), (", with peers", 1, Kind::Ours)].map(
                    |(with, place, kind)| {
                        let value = part.numbers(&row, place)[last].expect("it was measured");
                        bar(format!("{rollout}{with}"), [value; 3], kind)
                    },
                )
            })
            .collect(),
    };
    let picture = Picture {
        title: "Load on the registry when every node pulls a new image",
        subtitle: "Most pulls at once from the registry. Fewer is better.",
        legend: &[
            (Kind::Ours, "nodes serve each other (peers)"),
            (Kind::Theirs, "the registry serves all"),
        ],
        unit: "pulls",
        caption: caption(parts),
    };
    bars(&picture, 1, &[panel])
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| c.to_uppercase().to_string());
    first.unwrap_or_default() + chars.as_str()
}
