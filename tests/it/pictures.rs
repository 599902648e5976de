//! The pictures of `docs/img` and the measured sections of `docs/benchmarks.md`: they are what the stored results say.
//!
//! `HARPOON_GENERATE=1` makes them again (`make generate`).

use std::collections::BTreeSet;
use std::fs;

#[path = "../../bench/board.rs"]
mod board;
#[path = "../../bench/chart.rs"]
mod chart;
#[path = "../../bench/pictures.rs"]
mod drawn;
#[path = "../../demo/recording.rs"]
mod recording;
#[path = "../../bench/results.rs"]
pub mod results;

pub use drawn::draw_all;
use results::{Conditions, Line, Part, Shape, Unit};

/// Files that are not made from results.
const DRAWN_BY_HAND: [&str; 1] = ["disk-marks.svg"];

/// The files, as they are to be: the charts and the recording.
fn expected() -> Vec<(&'static str, String)> {
    let mut files = drawn::all(&Part::all());
    files.push((recording::PICTURE, recording::draw()));
    files
}

#[test]
fn pictures_match_the_stored_results() {
    for (file, svg) in expected() {
        let path = drawn::directory().join(file);
        if std::env::var_os("HARPOON_GENERATE").is_some() {
            fs::create_dir_all(drawn::directory()).unwrap();
            fs::write(path, svg).unwrap();
            continue;
        }
        let committed = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            committed == svg,
            "docs/img/{file} differs from the results: run `make generate`"
        );
    }
}

#[test]
fn no_picture_is_left_over() {
    let entries = fs::read_dir(drawn::directory()).unwrap();
    let there = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let there: BTreeSet<_> = there
        .filter(|file| !DRAWN_BY_HAND.contains(&file.as_str()))
        .collect();
    let expected: BTreeSet<_> = expected()
        .into_iter()
        .map(|(file, _)| file.to_owned())
        .collect();
    assert_eq!(there, expected);
}

#[test]
fn pages_show_the_drawn_pictures() {
    let all = drawn::all(&Part::all());
    let pages = drawn::pages(|picture| all.iter().any(|(file, _)| *file == picture));
    for (page, text) in pages {
        if std::env::var_os("HARPOON_GENERATE").is_some() {
            fs::write(page, text).unwrap();
            continue;
        }
        assert!(
            fs::read_to_string(&page).unwrap() == text,
            "{} differs from the pictures: run `make generate`",
            page.display()
        );
    }
}

#[test]
fn picture_is_shown_once_drawn() {
    let page = |text: &str| {
        let pages = drawn::pages(|file| file == text);
        let scale = pages
            .into_iter()
            .find(|(file, _)| file.ends_with("scale.md"));
        scale.unwrap().1
    };
    let (with, without) = (page("scale-release.svg"), page("none.svg"));
    assert!(
        with.contains("<!-- picture scale-release.svg -->\n![Lines: "),
        "{with}"
    );
    assert!(!without.contains("](img/scale-"), "{without}");
}

#[test]
fn benchmarks_page_matches_stored_results() {
    let page = fs::read_to_string(results::page()).unwrap();
    let made = Part::all()
        .iter()
        .fold(page.clone(), |page, part| part.replaced_in(&page));
    if std::env::var_os("HARPOON_GENERATE").is_some() {
        fs::write(results::page(), made).unwrap();
        return;
    }
    assert!(
        page == made,
        "{} differs from bench/results: run `make generate`",
        results::PAGE
    );
    let sections = page.matches("<!-- end of ").count();
    assert_eq!(sections, Part::all().len(), "a section without results");
}

/// The commits of the results.
fn commits(parts: &[Part]) -> BTreeSet<&str> {
    let commits = parts.iter().map(|part| &*part.conditions.commit);
    commits.collect()
}

#[test]
fn results_are_of_one_commit() {
    let parts = Part::all();
    let commits = commits(&parts);
    assert!(
        commits.len() <= 1,
        "{commits:?}: measure everything again (`make bench`)"
    );
}

#[test]
fn mixed_commits_are_found() {
    assert_eq!(
        commits(&["a", "b", "a"].map(part)),
        BTreeSet::from(["a", "b"])
    );
}

fn part(commit: &str) -> Part {
    Part {
        name: "some".to_owned(),
        conditions: Conditions {
            harpoon: "0.2.0".to_owned(),
            commit: commit.to_owned(),
            date: "2026-11-27 15:00 UTC".to_owned(),
            machine: "2 CPUs".to_owned(),
            load: Some(["0.1", "0.2"].map(str::to_owned)),
        },
        lines: vec![Line::Text {
            text: "A paragraph.".to_owned(),
        }],
    }
}

#[test]
fn section_replaces_only_its_own() {
    let page = "# Top\n\n<!-- some -->\nold\n<!-- end of some -->\n\nrest\n";
    let section = part("abc").section();
    assert_eq!(
        part("abc").replaced_in(page),
        format!("# Top\n\n{section}\n\nrest\n")
    );
    assert!(section.contains("harpoon 0.2.0 (abc)."), "{section}");
    assert_eq!(
        part("abc").replaced_in("# Top\n"),
        format!("# Top\n\n{section}\n")
    );
}

#[test]
fn pictures_are_accessible_and_themed() {
    for (file, svg) in expected() {
        for part in [
            "role=\"img\"",
            "<title id=\"title\">",
            "<desc id=\"description\">",
            "prefers-color-scheme:dark",
        ] {
            assert!(svg.contains(part), "{file}: {part}");
        }
        // A page shows a picture without what it would fetch or run.
        for word in ["<script", "<image", "href=\"http", "url("] {
            assert!(!svg.contains(word), "{file}: {word}");
        }
    }
}

#[test]
fn mixed_commits_are_not_drawn() {
    let mut parts = Part::all();
    parts.retain(|part| part.name.starts_with("pod-start-private"));
    assert_eq!(drawn::all(&parts).len(), 1);
    parts[0].conditions.commit = "another".to_owned();
    assert_eq!(parts.len(), 2);
    assert!(drawn::all(&parts).is_empty());
}

/// A part as `make bench ONLY=scale` stores it.
fn scale() -> Part {
    let rows = [
        ["", "100 nodes", "5000 nodes"],
        [
            "new image: from `kubectl apply` to PlannedImage",
            "0.05 s",
            "0.31 s",
        ],
        [
            "new image: agents start, p50, p99, last",
            "0.01 s, 0.02 s, 0.03 s",
            "0.4 s, 0.7 s, 0.9 s",
        ],
        ["new image: from `kubectl apply` to Ready", "3.1 s", "9.8 s"],
        [
            "Immediate: most pulls at once from the registry, with peers",
            "100, 40",
            "5000, 900",
        ],
        [
            "Linear, 2m: most pulls at once from the registry, with peers",
            "9, 3",
            "260, 40",
        ],
    ];
    let mut rows = rows.iter().map(|row| row.map(str::to_owned).to_vec());
    let titles = rows.next().unwrap();
    let mut part = part("abc");
    part.name = "scale".to_owned();
    part.lines.push(Line::Titles { titles });
    part.lines.extend(rows.map(|texts| Line::Texts { texts }));
    part
}

#[test]
fn scale_is_drawn_from_texts() {
    let pictures = drawn::all(&[scale()]);
    let names: Vec<_> = pictures.iter().map(|(file, _)| *file).collect();
    assert_eq!(names, ["scale-release.svg", "scale-rollout.svg"]);
    let release = &pictures[0].1;
    assert!(
        release.contains("the last agent starts: 0.03 s at 100, 0.90 s at 5,000"),
        "{release}"
    );
    let rollout = &pictures[1].1;
    assert!(
        rollout.contains(
            "Immediate 5,000 pulls; Immediate, with peers 900 pulls; Linear, 2m 260 pulls"
        ),
        "{rollout}"
    );
    assert!(!rollout.contains("100 nodes"), "{rollout}");
    assert!(scale().section().contains(
        "| Linear, 2m: most pulls at once from the registry, with peers | 9, 3 | 260, 40 |\n\n"
    ));
}

/// A part as `make bench ONLY=fast` stores it.
fn fast() -> Part {
    let mut part = part("abc");
    part.name = "fast".to_owned();
    let column = results::Column {
        title: "wall s".to_owned(),
        decimals: 2,
    };
    part.lines.push(Line::Table {
        table: "4 layers, throttled link".to_owned(),
        columns: vec![column],
    });
    for (row, seconds) in [
        ("containerd 1.6", 9.0),
        ("containerd 1.6, fast fill", 3.0),
        ("containerd 2.1, tuned", 6.0),
    ] {
        part.lines.push(Line::Row {
            row: row.to_owned(),
            cells: vec![[seconds, seconds, seconds + 1.0]],
            ratio: seconds / 3.0,
        });
    }
    part
}

#[test]
fn fast_fill_has_a_picture() {
    let pictures = drawn::all(&[fast()]);
    let (file, svg) = &pictures[0];
    assert_eq!(*file, "fast.svg");
    let described =
        "4 layers, throttled link: containerd 1.6 9.0 s; containerd 1.6, fast fill 3.0 s";
    assert!(svg.contains(described), "{svg}");
}

#[test]
fn fill_has_bars_of_fast() {
    let mut parts = Part::all();
    parts.retain(|part| part.name == "fill");
    let is_fast = |line: &Line| matches!(line, Line::Row { row, .. } if row.contains("fast"));
    parts[0].lines.retain(|line| !is_fast(line));
    let without = drawn::all(&parts).remove(0).1;
    assert!(!without.contains("with fast fill"), "{without}");
    let lines = &mut parts[0].lines;
    let ours = lines.iter().position(|line| match line {
        Line::Row { row, .. } => row.ends_with("--concurrency 4`"),
        _ => false,
    });
    let row = Line::Row {
        row: "`harpoon run --fill fast`".to_owned(),
        cells: vec![[2.0; 3]; 2],
        ratio: 0.4,
    };
    lines.insert(ours.unwrap(), row);
    let with = drawn::all(&parts).remove(0).1;
    assert!(with.contains("harpoon run --fill fast 2.0 s"), "{with}");
    assert!(with.contains("with fast fill"), "{with}");
}

/// A part as `make bench ONLY=dashboard` stores it.
fn dashboard() -> Part {
    let mut part = part("abc");
    part.name = "dashboard".to_owned();
    let panel = |title: &str, shape, unit, place| Line::Panel {
        panel: title.to_owned(),
        shape,
        unit,
        place,
    };
    let series = |name: &str, points: &[(f64, f64)]| Line::Series {
        series: name.to_owned(),
        points: points.to_vec(),
    };
    part.lines.extend([
        panel("Fleet", Shape::Heading, Unit::Number, [0, 0, 24, 1]),
        panel("Complete", Shape::Number, Unit::Percent, [0, 1, 4, 4]),
        series("complete", &[(120.0, 0.975)]),
        panel("Nodes", Shape::Stacked, Unit::Number, [0, 5, 12, 8]),
        series("complete", &[(0.0, 1.0), (120.0, 39.0)]),
        series("failing", &[(0.0, 0.0), (120.0, 1.0)]),
        panel("Given up", Shape::Lines, Unit::Number, [12, 5, 12, 8]),
    ]);
    part
}

#[test]
fn dashboard_is_drawn_from_series() {
    let text: String = dashboard()
        .lines
        .iter()
        .map(|line| serde_json::to_string(line).unwrap() + "\n")
        .collect();
    let read: Vec<Line> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(read, dashboard().lines);
    assert!(!dashboard().section().contains("Given up"));
    let pictures = drawn::all(&[dashboard()]);
    let (file, svg) = &pictures[0];
    assert_eq!(*file, "dashboard.svg");
    for part in [
        "Complete: complete 97.5%.",
        "Nodes: complete 39; failing 1.",
        "no data",
        "Given up",
    ] {
        assert!(svg.contains(part), "{part}: {svg}");
    }
}
