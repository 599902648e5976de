//! The views of `harpoon status` as tables for people.

use std::io::{self, Write};
use std::time::Duration;

pub use super::table::Style;
use super::table::{Cell, Table, Tone};
use super::{
    FailureRow, ImageRow, NodeRow, NodeState, NodeView, Overview, PrefetchRow, PrefetchView,
    StoreRow, View,
};
use crate::model::text::{clip, size};
use crate::report::text::{or_dash, seconds};

/// Maximum number of nodes and failures in a table that is not wide.
const ROWS: usize = 10;
/// Maximum number of images in a table that is not wide.
const IMAGES: usize = 20;
/// Characters of a message in a table that is not wide.
const MESSAGE: usize = 100;

/// Writes a view as tables.
///
/// # Errors
/// Those of the writer.
pub fn write(out: &mut impl Write, view: &View, style: Style) -> io::Result<()> {
    match view {
        View::Overview(all) => overview(out, all, style)?,
        View::Prefetch(one) => prefetch(out, one, style)?,
        View::Node(one) => return node(out, one, style),
    }
    match style.headers {
        true => writeln!(out, "\nharpoon: {}", view.summary()),
        false => Ok(()),
    }
}

fn overview(out: &mut impl Write, all: &Overview, style: Style) -> io::Result<()> {
    prefetches(out, &all.prefetches, style)?;
    incomplete(out, &all.incomplete, style)?;
    failures(out, &all.failures, style)
}

fn prefetches(out: &mut impl Write, rows: &[PrefetchRow], style: Style) -> io::Result<()> {
    let mut head = vec!["NAME", "READY", "IMAGES", "NODES", "COMPLETE", "UPDATING"];
    head.extend(["FAILING", "UNKNOWN", "AGE"]);
    if style.wide {
        head.push("REASON");
    }
    let mut table = Table::new(&head);
    for row in rows {
        let mut cells = vec![
            row.name.as_str().into(),
            ready(&row.ready),
            row.images.into(),
            row.nodes.desired.into(),
            row.nodes.complete.into(),
            row.nodes.updating.into(),
            count(row.nodes.failing, Tone::Bad),
            count(row.nodes.unknown, Tone::Bad),
            age(row.age_seconds).into(),
        ];
        if style.wide {
            cells.push(row.reason.as_str().into());
        }
        table.row(cells);
    }
    table.write(out, style)?;
    let degraded: Vec<_> = rows.iter().filter(|row| row.degraded).collect();
    if degraded.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["DEGRADED", "REASON", "MESSAGE"]);
    for row in &degraded {
        let name = Cell::toned(&*row.name, Tone::Bad);
        table.row(vec![
            name,
            row.degraded_reason.as_str().into(),
            message(&row.degraded_message, style),
        ]);
    }
    writeln!(out)?;
    table.write(out, style)
}

fn prefetch(out: &mut impl Write, one: &PrefetchView, style: Style) -> io::Result<()> {
    prefetches(out, std::slice::from_ref(&one.prefetch), style)?;
    images(out, &one.images, style)?;
    if one.incomplete.is_empty() {
        nodes(out, "SLOWEST NODE", &one.slowest, style)?;
    } else {
        incomplete(out, &one.incomplete, style)?;
    }
    failures(out, &one.failures, style)
}

fn images(out: &mut impl Write, rows: &[ImageRow], style: Style) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["IMAGE", "PODS", "NODES", "PRESENT", "FAILED"]);
    let shown = if style.wide { rows.len() } else { IMAGES };
    for row in rows.iter().take(shown) {
        let tone = match row.present_min == row.nodes {
            true => Tone::Good,
            false => Tone::Busy,
        };
        table.row(vec![
            row.image.as_str().into(),
            row.pods.into(),
            row.nodes.into(),
            Cell::toned(present(row), tone),
            count(row.failed, Tone::Bad),
        ]);
    }
    writeln!(out)?;
    table.write(out, style)?;
    more(out, rows.len(), shown, "images", style)
}

/// The number of nodes that have an image: a range where the reports leave it open.
fn present(row: &ImageRow) -> String {
    match row.present_min == row.present_max {
        true => row.present_min.to_string(),
        false => format!("{}-{}", row.present_min, row.present_max),
    }
}

fn incomplete(out: &mut impl Write, rows: &[NodeRow], style: Style) -> io::Result<()> {
    let shown = if style.wide { rows.len() } else { ROWS };
    let first = &rows[..rows.len().min(shown)];
    nodes(out, "INCOMPLETE NODE", first, style)?;
    more(out, rows.len(), shown, "nodes", style)
}

fn nodes(out: &mut impl Write, title: &'static str, rows: &[NodeRow], s: Style) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&[
        title,
        "STATE",
        "PRESENT",
        "PULLING",
        "FAILED",
        "FIRST FILL",
        "HEARTBEAT",
    ]);
    for row in rows {
        table.row(vec![
            row.name.as_str().into(),
            state(row.state),
            format!("{}/{}", row.images.present, row.images.desired).into(),
            row.images.pulling.into(),
            count(row.images.failed, Tone::Bad),
            fill(row.first_fill_seconds).into(),
            age(row.heartbeat_seconds).into(),
        ]);
    }
    writeln!(out)?;
    table.write(out, s)
}

fn failures(out: &mut impl Write, rows: &[FailureRow], style: Style) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["FAILED IMAGE", "REASON", "NODES", "NODE", "MESSAGE"]);
    let shown = if style.wide { rows.len() } else { ROWS };
    for row in rows.iter().take(shown) {
        table.row(vec![
            row.image.as_str().into(),
            Cell::toned(&*row.reason, Tone::Bad),
            row.nodes.into(),
            row.example_node.as_str().into(),
            message(&row.message, style),
        ]);
    }
    writeln!(out)?;
    table.write(out, style)?;
    more(out, rows.len(), shown, "failures", style)
}

fn node(out: &mut impl Write, one: &NodeView, style: Style) -> io::Result<()> {
    let paint = |tone: Tone, text: &str| match style.colors {
        true => tone.paint(text),
        false => text.to_owned(),
    };
    let row = &one.node;
    let state = paint(tone(row.state), row.state.as_str());
    let why = match (one.reason.as_str(), one.message.as_str()) {
        ("", _) => String::new(),
        (reason, "") => format!(" ({reason})"),
        (reason, message) => format!(" ({reason}: {message})"),
    };
    let images = row.images;
    let failed = match images.failed {
        0 => "0 failed".to_owned(),
        failed => paint(Tone::Bad, &format!("{failed} failed")),
    };
    let heartbeat = row
        .heartbeat_seconds
        .map(|_| format!("{} ago", age(row.heartbeat_seconds)));
    let runtime = Some(&one.runtime).filter(|name| !name.is_empty());
    for (name, value) in [
        ("Node", row.name.clone()),
        ("State", format!("{state}{why}")),
        (
            "Images",
            format!(
                "{} of {} present, {} pulling, {failed}",
                images.present, images.desired, images.pulling
            ),
        ),
        ("Runtime", or_dash(runtime)),
        ("Image store", store(&one.image_store)),
        ("First fill", fill(row.first_fill_seconds)),
        ("Heartbeat", or_dash(heartbeat)),
    ] {
        writeln!(out, "{:14}{value}", format!("{name}:"))?;
    }
    if !one.prefetches.is_empty() {
        let head = [
            "PREFETCH", "DESIRED", "PRESENT", "PULLING", "FAILED", "CURRENT",
        ];
        let mut table = Table::new(&head);
        for entry in &one.prefetches {
            let current = match entry.current {
                true => "yes".into(),
                false => Cell::toned("no", Tone::Busy),
            };
            table.row(vec![
                entry.name.as_str().into(),
                entry.images.desired.into(),
                entry.images.present.into(),
                entry.images.pulling.into(),
                count(entry.images.failed, Tone::Bad),
                current,
            ]);
        }
        writeln!(out)?;
        table.write(out, style)?;
    }
    if one.failures.is_empty() {
        return Ok(());
    }
    let mut table = Table::new(&["FAILED IMAGE", "REASON", "MESSAGE"]);
    for row in &one.failures {
        let reason = Cell::toned(&*row.reason, Tone::Bad);
        table.row(vec![
            row.image.as_str().into(),
            reason,
            row.message.as_str().into(),
        ]);
    }
    writeln!(out)?;
    table.write(out, style)
}

fn store(store: &StoreRow) -> String {
    let part = |bytes: Option<u64>, what: &str| Some(format!("{}{what}", size(bytes?)));
    let parts = [
        part(store.harpoon_bytes, " by harpoon"),
        part(store.used_bytes, " in all"),
        part(store.capacity_bytes, " capacity"),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    or_dash(Some(parts.join(", ")).filter(|text| !text.is_empty()))
}

fn more(
    out: &mut impl Write,
    all: usize,
    shown: usize,
    what: &str,
    style: Style,
) -> io::Result<()> {
    match all.saturating_sub(shown) {
        more if more > 0 && style.headers => {
            writeln!(out, "... and {more} more {what}, shown by -o wide")
        }
        _ => Ok(()),
    }
}

fn message(text: &str, style: Style) -> Cell {
    match style.wide {
        true => text.into(),
        false => clip(text, MESSAGE).into(),
    }
}

fn ready(status: &str) -> Cell {
    match status {
        "True" => Cell::toned("True", Tone::Good),
        "" => "-".into(),
        other => Cell::toned(other, Tone::Busy),
    }
}

fn tone(state: NodeState) -> Tone {
    match state {
        NodeState::Complete => Tone::Good,
        NodeState::Updating => Tone::Busy,
        NodeState::Failing | NodeState::Unknown => Tone::Bad,
    }
}

fn state(state: NodeState) -> Cell {
    Cell::toned(state.as_str(), tone(state))
}

/// A number that has this tone unless it is 0.
fn count(number: u64, tone: Tone) -> Cell {
    match number {
        0 => 0.into(),
        number => Cell::toned(number.to_string(), tone),
    }
}

fn fill(duration: Option<f64>) -> String {
    let duration = duration.and_then(|s| Duration::try_from_secs_f64(s).ok());
    or_dash(duration.map(seconds))
}

/// An age as kubectl prints it: `95s`, `12m`, `5h`, `41d`.
pub(super) fn age(seconds: Option<u64>) -> String {
    or_dash(seconds.map(|s| match s {
        0..120 => format!("{s}s"),
        120..7_200 => format!("{}m", s / 60),
        7_200..172_800 => format!("{}h", s / 3_600),
        _ => format!("{}d", s / 86_400),
    }))
}
