//! Collects the results of a benchmark while it runs; at the end they are stored, and the page and the pictures made from them.

use super::measure::Row;
use super::pictures;
use super::results::{self, Conditions, load, median, spread};

pub use super::results::{Line, Shape, Unit, said};

/// The results of a benchmark that runs.
pub struct Part {
    name: String,
    lines: Vec<Line>,
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
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            lines: Vec::new(),
            load: load(),
        }
    }

    /// A paragraph.
    pub fn say(&mut self, text: &str) {
        self.lines.push(Line::Text {
            text: text.to_owned(),
        });
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

    fn table_of(
        &mut self,
        what: &str,
        columns: &[Column],
        rows: &[Row],
        base: impl Fn(&Row) -> f64,
    ) {
        let head = columns.iter().map(|column| results::Column {
            title: column.title.to_owned(),
            decimals: column.decimals,
        });
        self.lines.push(Line::Table {
            table: what.to_owned(),
            columns: head.collect(),
        });
        for row in rows {
            let cells = columns.iter().zip(&row.columns);
            self.lines.push(Line::Row {
                row: row.name.clone(),
                cells: cells
                    .map(|(column, values)| spread(values, column.decimals))
                    .collect(),
                ratio: spread(&[median(&row.columns[0]) / base(row)], 2)[0],
            });
        }
    }

    /// A table of texts: the first column names the row.
    pub fn texts(&mut self, titles: &[String], rows: &[Vec<String>]) {
        let titles = titles.to_vec();
        self.lines.push(Line::Titles { titles });
        let rows = rows.iter().cloned().map(|texts| Line::Texts { texts });
        self.lines.extend(rows);
    }

    /// A panel of a dashboard, with its lines.
    pub fn panel(&mut self, panel: Line, series: Vec<(String, Vec<(f64, f64)>)>) {
        self.lines.push(panel);
        let series = series
            .into_iter()
            .map(|(series, points)| Line::Series { series, points });
        self.lines.extend(series);
    }

    /// Stores the results, and makes the page and the pictures from all that are stored.
    pub fn write(self) {
        let part = results::Part {
            name: self.name,
            conditions: Conditions::now(crate::bed::program(), self.load),
            lines: self.lines,
        };
        eprintln!("{}", part.section());
        part.record();
        pictures::draw_all();
    }
}
