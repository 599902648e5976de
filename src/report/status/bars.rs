//! The lines of `harpoon status --watch` on a terminal: a bar for each prefetch, or for one prefetch and its slowest nodes.

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::table::Tone;
use super::{FailureRow, NodeRow, NodeState, PrefetchRow, View};
use crate::model::text::clip;
use crate::report::progress::{Screen, columns, rows};

/// Columns of a bar.
const BAR: usize = 24;
/// Maximum number of nodes and failures.
const ROWS: usize = 8;
/// Columns of a name.
const NAME: usize = 40;

/// The lines on the screen, redrawn in place.
pub struct Bars {
    bars: MultiProgress,
    /// All lines are its message, so that they are drawn at once.
    lines: Option<ProgressBar>,
    colors: bool,
}

impl Bars {
    /// The lines on a screen; `None` if it cannot draw.
    pub fn new(screen: &Screen, colors: bool) -> Option<Self> {
        Some(Self {
            bars: screen.bars()?.clone(),
            lines: None,
            colors,
        })
    }

    /// Draws a view in place of the one before.
    pub fn draw(&mut self, view: &View) {
        let mut lines = lines(view, columns(), self.colors);
        lines.truncate(rows().saturating_sub(1).max(1));
        let text = lines.join("\n");
        match &self.lines {
            Some(bar) => bar.set_message(text),
            None => {
                let style = ProgressStyle::with_template("{msg}")
                    .expect("the template is a constant of this file");
                let bar = ProgressBar::new(0).with_style(style).with_message(text);
                let bar = self.bars.add(bar);
                bar.tick();
                self.lines = Some(bar);
            }
        }
    }

    /// Removes the lines from the screen.
    pub fn close(&mut self) {
        if let Some(bar) = self.lines.take() {
            bar.finish_and_clear();
        }
    }
}

/// The lines of a view, none wider than `columns` where these are at least 40.
pub(super) fn lines(view: &View, columns: usize, colors: bool) -> Vec<String> {
    let mut lines = Vec::new();
    match view {
        View::Overview(all) => {
            let shown = all.prefetches.iter().take(ROWS * 2);
            let width = width(shown.clone().map(|row| row.name.as_str()));
            lines.extend(shown.map(|row| prefetch(row, width)));
            lines.extend(all.incomplete.iter().take(ROWS).map(node));
            lines.extend(all.failures.iter().take(ROWS).map(failure));
        }
        View::Prefetch(one) => {
            let row = &one.prefetch;
            lines.push(prefetch(row, width([row.name.as_str()])));
            lines.extend(one.incomplete.iter().take(ROWS).map(node));
            lines.extend(one.failures.iter().take(ROWS).map(failure));
        }
        View::Node(one) => {
            lines.push(node(&one.node));
            lines.extend(one.failures.iter().take(ROWS).map(failure));
        }
    }
    lines.push((Tone::Plain, view.summary()));
    let lines = lines.into_iter().map(|(tone, text)| {
        let text = clip(&text, columns.saturating_sub(1));
        if colors { tone.paint(&text) } else { text }
    });
    lines.collect()
}

fn width<'a>(names: impl IntoIterator<Item = &'a str>) -> usize {
    let widths = names.into_iter().map(|name| name.chars().count());
    widths.max().unwrap_or_default().min(NAME)
}

fn prefetch(row: &PrefetchRow, width: usize) -> (Tone, String) {
    let nodes = row.nodes;
    let tone = match (row.ready.as_str(), nodes.failing + nodes.unknown) {
        ("True", _) => Tone::Good,
        (_, 0) => Tone::Busy,
        _ => Tone::Bad,
    };
    let name = clip(&row.name, NAME);
    let bar = bar(nodes.complete, nodes.desired);
    let failing = match nodes.failing {
        0 => String::new(),
        failing => format!(", {failing} failing"),
    };
    let text = format!(
        "{name:width$} {bar} {}/{} nodes{failing}",
        nodes.complete, nodes.desired
    );
    (tone, text)
}

fn node(row: &NodeRow) -> (Tone, String) {
    let tone = match row.state {
        NodeState::Complete => Tone::Good,
        NodeState::Updating => Tone::Busy,
        NodeState::Failing | NodeState::Unknown => Tone::Bad,
    };
    let images = row.images;
    let (name, bar) = (clip(&row.name, NAME), bar(images.present, images.desired));
    let text = format!(
        "  {bar} {:>3}/{:<3} {} {name}",
        images.present,
        images.desired,
        row.state.as_str()
    );
    (tone, text)
}

fn failure(row: &FailureRow) -> (Tone, String) {
    let text = format!("  {} on {} nodes: {}", row.reason, row.nodes, row.image);
    (Tone::Bad, text)
}

/// A bar that is full only if all is done.
fn bar(done: u64, all: u64) -> String {
    let done = done.min(all);
    let filled = match all {
        0 => 0,
        all => usize::try_from(u128::from(done) * BAR as u128 / u128::from(all)).unwrap_or(BAR),
    };
    let head = if filled > 0 && filled < BAR { ">" } else { "" };
    let body = "=".repeat(filled.saturating_sub(head.len()));
    format!("[{:BAR$}]", format!("{body}{head}"))
}
