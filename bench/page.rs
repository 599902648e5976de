//! Writes `docs/benchmarks.md`: each benchmark replaces its own section.

use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use super::measure::{Row, median};

const PAGE: &str = "docs/benchmarks.md";
const TOP: &str = "# Benchmarks

harpoon compared with the tools that users run instead, on real daemons on one machine.

- `make bench` measures everything on this page and writes it again. `make bench ONLY=NAME` measures one part.
- The cases of a table are measured in turn, then all again, so that a busy minute affects all of them.
- A cell is the median, with the minimum and the maximum in parentheses. A ratio is between medians of one table.
- Seconds differ between machines and with their load; each part states the load average. Compare the ratios.
";

/// A part of the page.
pub struct Part {
    name: &'static str,
    text: String,
    load: String,
}

/// The format of a column's values.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    pub title: &'static str,
    pub decimals: usize,
}

/// A column of seconds, mebibytes or another unit in its title.
pub const fn column(title: &'static str, decimals: usize) -> Column {
    Column { title, decimals }
}

impl Part {
    pub fn new(name: &'static str) -> Self {
        Self {
            name,
            text: String::new(),
            load: load(),
        }
    }

    /// A paragraph.
    pub fn say(&mut self, text: &str) {
        writeln!(self.text, "{text}\n").unwrap();
    }

    /// A table, with the ratio of the first column to that of the row `base`.
    pub fn table(&mut self, what: &str, columns: &[Column], rows: &[Row], base: &str) {
        let one = rows.iter().find(|row| row.name == base);
        let one = median(&one.expect("the base is a row").columns[0]);
        self.table_of(what, columns, rows, |_| one);
    }

    /// A table, with the ratio of the first column to the last one of the same row.
    pub fn comparison(&mut self, what: &str, columns: &[Column], rows: &[Row]) {
        self.table_of(what, columns, rows, |row| {
            median(row.columns.last().expect("a column to compare with"))
        });
    }

    /// A table of texts: the first column names the row.
    pub fn texts(&mut self, titles: &[String], rows: &[Vec<String>]) {
        writeln!(self.text, "| {} |", titles.join(" | ")).unwrap();
        writeln!(self.text, "|{}", " --- |".repeat(titles.len())).unwrap();
        for row in rows {
            writeln!(self.text, "| {} |", row.join(" | ")).unwrap();
        }
        self.text.push('\n');
    }

    fn table_of(
        &mut self,
        what: &str,
        columns: &[Column],
        rows: &[Row],
        base: impl Fn(&Row) -> f64,
    ) {
        let titles: Vec<_> = columns.iter().map(|column| column.title).collect();
        writeln!(self.text, "| {what} | {} | ratio |", titles.join(" | ")).unwrap();
        writeln!(self.text, "| --- |{} --- |", " --- |".repeat(columns.len())).unwrap();
        for row in rows {
            write!(self.text, "| {} |", row.name).unwrap();
            for (column, values) in columns.iter().zip(&row.columns) {
                write!(self.text, " {} |", cell(values, column.decimals)).unwrap();
            }
            writeln!(self.text, " {:.2} |", median(&row.columns[0]) / base(row)).unwrap();
        }
        self.text.push('\n');
    }

    /// Writes it into the page, replacing the previous section of this benchmark.
    pub fn write(self) {
        let (begin, end) = (
            format!("<!-- {} -->", self.name),
            format!("<!-- end of {} -->", self.name),
        );
        let part = format!(
            "{begin}\n## {}\n\n{}{}\n{end}\n",
            self.name,
            self.text,
            footer(&self.load)
        );
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
        let old = std::fs::read_to_string(&page).unwrap_or_else(|_| TOP.to_owned());
        let new = match (old.find(&begin), old.find(&end)) {
            (Some(from), Some(to)) => format!(
                "{}{}{}",
                &old[..from],
                part.trim_end(),
                &old[to + end.len()..]
            ),
            _ => format!("{}\n\n{part}", old.trim_end()),
        };
        std::fs::write(page, new).unwrap();
        eprintln!("{part}");
    }
}

fn cell(values: &[f64], decimals: usize) -> String {
    let (least, most) = values
        .iter()
        .fold((f64::MAX, f64::MIN), |(least, most), v| {
            (least.min(*v), most.max(*v))
        });
    let middle = median(values);
    if format!("{least:.decimals$}") == format!("{most:.decimals$}") {
        return format!("{middle:.decimals$}");
    }
    format!("{middle:.decimals$} ({least:.decimals$}–{most:.decimals$})")
}

/// The machine and the date of the measurement.
fn footer(before: &str) -> String {
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
        "Measured {} on {cpus} CPUs ({model}), {} GiB, Linux {}; load average before {before}, after {}. {}.",
        said(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"])),
        memory >> 20,
        said(Command::new("uname").arg("-r")),
        load(),
        said(Command::new(crate::bed::program()).arg("--version")),
    )
}

/// The first line that a command prints; for versions.
pub fn said(command: &mut Command) -> String {
    crate::bed::run(command)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// The load average of the last minute.
fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap();
    text.split(' ').next().unwrap_or_default().to_owned()
}
