//! Tables like those of kubectl: columns as wide as their widest cell, optionally without a head, optionally with colours.

use std::fmt::Write as _;
use std::io::{self, Write};

/// The style of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// True to show all rows, and further columns.
    pub wide: bool,
    /// True to print the heads of tables, and the lines that tell of more rows and sum up.
    pub headers: bool,
    /// True to use colours.
    pub colors: bool,
}

/// The tone of a cell.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Good,
    Busy,
    Bad,
}

impl Tone {
    /// The text in the colour of the tone.
    pub(super) fn paint(self, text: &str) -> String {
        let code = match self {
            Self::Plain => return text.to_owned(),
            Self::Good => 32,
            Self::Busy => 33,
            Self::Bad => 31,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// A cell of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub(super) fn toned(text: impl Into<String>, tone: Tone) -> Self {
        let text = text.into();
        Self { text, tone }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self::toned(text, Tone::Plain)
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<u64> for Cell {
    fn from(number: u64) -> Self {
        number.to_string().into()
    }
}

/// The width that a column has at most; a longer cell shifts the rest of its row only.
const WIDTH_MAX: usize = 80;

pub(super) struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(head: &[&'static str]) -> Self {
        Self {
            head: head.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    pub(super) fn write(&self, out: &mut impl Write, style: Style) -> io::Result<()> {
        let head = self.head.iter().map(|text| Cell::from(*text)).collect();
        let head: Option<Vec<Cell>> = style.headers.then_some(head);
        let rows: Vec<&Vec<Cell>> = head.iter().chain(&self.rows).collect();
        let width = |column: usize| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            let widths = cells.map(|cell| cell.text.chars().count().min(WIDTH_MAX));
            widths.max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        for row in rows {
            let mut line = String::new();
            let last = row
                .iter()
                .rposition(|cell| !cell.text.is_empty())
                .unwrap_or(0);
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate().take(last + 1) {
                let shown = match style.colors {
                    true => cell.tone.paint(&cell.text),
                    false => cell.text.clone(),
                };
                line.push_str(&shown);
                if at < last {
                    let pad = width.saturating_sub(cell.text.chars().count()) + 3;
                    let _ = write!(line, "{:pad$}", "");
                }
            }
            writeln!(out, "{line}")?;
        }
        Ok(())
    }
}
