//! Stored results: `bench/results/NAME.jsonl`, one file for each benchmark. The page and the pictures are made from them.
//!
//! The first line of a file names the commit, the machine and the time; each further line is a paragraph, a table's head or a
//! row, in the order of the page.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The page, below the repository's root.
pub const PAGE: &str = "docs/benchmarks.md";
const DIRECTORY: &str = "bench/results";

/// The circumstances of a measurement.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    /// The version of the measured program.
    pub harpoon: String,
    /// The commit that it was built from.
    pub commit: String,
    pub date: String,
    pub machine: String,
    /// The load average of the last minute, before and after.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load: Option<[String; 2]>,
}

/// A column of seconds, mebibytes or another unit in its title.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    pub title: String,
    pub decimals: usize,
}

/// The median, the minimum and the maximum.
pub type Cell = [f64; 3];

/// The form of a panel of a dashboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shape {
    Heading,
    Number,
    Lines,
    /// Lines that lie upon each other.
    Stacked,
}

/// The unit of a panel's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    Number,
    Percent,
    Seconds,
    Bytes,
}

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    Text {
        text: String,
    },
    Table {
        table: String,
        columns: Vec<Column>,
    },
    Row {
        row: String,
        cells: Vec<Cell>,
        ratio: f64,
    },
    /// The head of a table of texts, whose first column names the row.
    Titles {
        titles: Vec<String>,
    },
    Texts {
        texts: Vec<String>,
    },
    /// A panel of a dashboard, in its place of a grid: left, top, width and height. It is in the picture only.
    Panel {
        panel: String,
        shape: Shape,
        unit: Unit,
        place: [i32; 4],
    },
    /// A line of the panel before: seconds and values.
    Series {
        series: String,
        points: Vec<(f64, f64)>,
    },
}

/// The results of one benchmark.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    pub name: String,
    pub conditions: Conditions,
    pub lines: Vec<Line>,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Conditions {
    /// The circumstances at the end of a measurement of this program.
    pub fn now(program: &str, load_before: String) -> Self {
        let version = said(Command::new(program).arg("--version"));
        let version = version.trim_start_matches("harpoon ");
        let (harpoon, commit) = version.split_once(" (").expect("VERSION (COMMIT)");
        Self {
            harpoon: harpoon.to_owned(),
            commit: commit.trim_end_matches(')').to_owned(),
            date: said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
            machine: machine(),
            load: Some([load_before, load()]),
        }
    }

    /// The commit, the date and the machine, for a caption.
    pub fn caption(&self) -> String {
        format!(
            "harpoon {} ({}), {}, {}",
            self.harpoon, self.commit, self.date, self.machine
        )
    }

    fn footer(&self) -> String {
        let load = self
            .load
            .as_ref()
            .map_or_else(String::new, |[before, after]| {
                format!("; load average before {before}, after {after}")
            });
        format!(
            "Measured {} on {}{load}. harpoon {} ({}).",
            self.date, self.machine, self.harpoon, self.commit
        )
    }
}

impl Part {
    /// All stored results, by name.
    pub fn all() -> Vec<Self> {
        let entries = std::fs::read_dir(root().join(DIRECTORY)).unwrap();
        let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let mut lines = text.lines();
        let head = lines.next().expect("a first line");
        Self {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            conditions: parsed(path, head),
            lines: lines.map(|line| parsed(path, line)).collect(),
        }
    }

    /// Stores the results and writes their section of the page.
    pub fn record(&self) {
        let mut text = serde_json::to_string(&self.conditions).unwrap() + "\n";
        for line in &self.lines {
            text += &(serde_json::to_string(line).unwrap() + "\n");
        }
        let directory = root().join(DIRECTORY);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join(format!("{}.jsonl", self.name)), text).unwrap();
        let page = page();
        let old = std::fs::read_to_string(&page).unwrap();
        std::fs::write(page, self.replaced_in(&old)).unwrap();
    }

    /// The page with the section of these results in place of the previous one, or at the end.
    pub fn replaced_in(&self, page: &str) -> String {
        let section = self.section();
        let end = self.end();
        match (page.find(&self.begin()), page.find(&end)) {
            (Some(from), Some(to)) => {
                format!("{}{section}{}", &page[..from], &page[to + end.len()..])
            }
            _ => format!("{}\n\n{section}\n", page.trim_end()),
        }
    }

    fn begin(&self) -> String {
        format!("<!-- {} -->", self.name)
    }

    fn end(&self) -> String {
        format!("<!-- end of {} -->", self.name)
    }

    /// The section of the page.
    pub fn section(&self) -> String {
        let mut text = format!("{}\n## {}\n\n", self.begin(), self.name);
        let mut columns: &[Column] = &[];
        for (at, line) in self.lines.iter().enumerate() {
            match line {
                Line::Text { text: paragraph } => writeln!(text, "{paragraph}\n").unwrap(),
                Line::Table { table, columns: of } => {
                    columns = of;
                    let titles: Vec<_> = of.iter().map(|column| &*column.title).collect();
                    writeln!(text, "| {table} | {} | ratio |", titles.join(" | ")).unwrap();
                    writeln!(text, "| --- |{} --- |", " --- |".repeat(of.len())).unwrap();
                }
                Line::Row { row, cells, ratio } => {
                    write!(text, "| {row} |").unwrap();
                    for (column, values) in columns.iter().zip(cells) {
                        write!(text, " {} |", cell(*values, column.decimals)).unwrap();
                    }
                    writeln!(text, " {ratio:.2} |").unwrap();
                    if !matches!(self.lines.get(at + 1), Some(Line::Row { .. })) {
                        text.push('\n');
                    }
                }
                Line::Titles { titles } => {
                    writeln!(text, "| {} |", titles.join(" | ")).unwrap();
                    writeln!(text, "|{}", " --- |".repeat(titles.len())).unwrap();
                }
                Line::Texts { texts } => {
                    writeln!(text, "| {} |", texts.join(" | ")).unwrap();
                    if !matches!(self.lines.get(at + 1), Some(Line::Texts { .. })) {
                        text.push('\n');
                    }
                }
                Line::Panel { .. } | Line::Series { .. } => {}
            }
        }
        format!("{text}{}\n{}", self.conditions.footer(), self.end())
    }

    /// The command that measured it, of the paragraph that starts with "Command:".
    pub fn command(&self) -> Option<&str> {
        self.lines.iter().find_map(|line| match line {
            Line::Text { text } => text.strip_prefix("Command: `")?.split('`').next(),
            _ => None,
        })
    }

    /// The names of the tables.
    pub fn tables(&self) -> Vec<&str> {
        let tables = self.lines.iter().filter_map(|line| match line {
            Line::Table { table, .. } => Some(table.as_str()),
            _ => None,
        });
        tables.collect()
    }

    /// The rows of a table, with their cells in this column.
    pub fn column(&self, table: &str, title: &str) -> Vec<(&str, Cell)> {
        let mut lines = self.lines.iter();
        let column = lines.find_map(|line| match line {
            Line::Table { table: t, columns } if t == table => {
                columns.iter().position(|column| column.title == title)
            }
            _ => None,
        });
        let column =
            column.unwrap_or_else(|| panic!("{} has no table {table}, {title}", self.name));
        let rows = lines.map_while(|line| match line {
            Line::Row { row, cells, .. } => Some((row.as_str(), cells[column])),
            _ => None,
        });
        rows.collect()
    }
}

fn parsed<T: DeserializeOwned>(path: &Path, line: &str) -> T {
    serde_json::from_str(line).unwrap_or_else(|e| panic!("{}: {e}: {line}", path.display()))
}

impl Part {
    /// The titles of the first table of texts, without that of the names.
    pub fn titles(&self) -> &[String] {
        let titles = self.lines.iter().find_map(|line| match line {
            Line::Titles { titles } => titles.get(1..),
            _ => None,
        });
        titles.unwrap_or_default()
    }

    /// The names of the rows of texts.
    pub fn rows_of_texts(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().filter_map(|line| match line {
            Line::Texts { texts } => Some(texts[0].as_str()),
            _ => None,
        })
    }

    /// The numbers in a row of texts: of each text the one at this place, as 3 in "1.5 s, 3 s" at place 1. `None` where nothing was
    /// measured.
    pub fn numbers(&self, name: &str, place: usize) -> Vec<Option<f64>> {
        let texts = self.lines.iter().find_map(|line| match line {
            Line::Texts { texts } if texts[0] == name => texts.get(1..),
            _ => None,
        });
        let texts = texts.unwrap_or_else(|| panic!("{} has no row {name}", self.name));
        let number = |text: &String| {
            let word = text.split(", ").nth(place)?.split([' ', '%']).next()?;
            word.parse().ok()
        };
        texts
            .iter()
            .map(|text| match text.is_empty() {
                true => None,
                false => Some(number(text).unwrap_or_else(|| panic!("{name}: {text}"))),
            })
            .collect()
    }
}

/// The path of the page.
pub fn page() -> PathBuf {
    root().join(PAGE)
}

fn cell([middle, least, most]: Cell, decimals: usize) -> String {
    if format!("{least:.decimals$}") == format!("{most:.decimals$}") {
        return format!("{middle:.decimals$}");
    }
    format!("{middle:.decimals$} ({least:.decimals$}–{most:.decimals$})")
}

/// The median, the minimum and the maximum of values, with some decimals more than are shown.
pub fn spread(values: &[f64], decimals: usize) -> Cell {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let precision = 10_f64.powi(i32::try_from(decimals + 3).unwrap());
    [median(values), sorted[0], sorted[sorted.len() - 1]]
        .map(|value| (value * precision).round() / precision)
}

/// The median of the values; for an even number the mean of the two middle ones.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        f64::midpoint(sorted[half - 1], sorted[half])
    }
}

fn machine() -> String {
    let cpus = std::thread::available_parallelism().unwrap();
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown", |l| l.trim_start_matches([' ', '\t', ':']));
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap();
    let memory: u64 = memory
        .split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse().ok())
        .unwrap();
    format!(
        "{cpus} CPUs ({model}), {} GiB, Linux {}",
        memory >> 20,
        said(Command::new("uname").arg("-r"))
    )
}

/// The first line that a command prints; for versions.
pub fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// The load average of the last minute.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').next().unwrap_or_default().to_owned()
}
