//! Draws `docs/img/demo.svg` from `demo/demo.cast`, a recording of `make demo`: a terminal that plays in a page without scripts.
//!
//! A strip has all screens side by side, and an animation moves it behind a window. Waiting is shortened; nothing else is changed.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use avt::{Cell, Color, Terminal};
use svg::node::element::{
    Circle, Definitions, Description, Group, Rectangle, SVG, Style, Text, Title, Use,
};
use svg::{Document, Node};

/// The name of the picture in `docs/img`.
pub const PICTURE: &str = "demo.svg";
const RECORDING: &str = "demo/demo.cast";

/// The size of a character, in pixels.
const CELL: (f64, f64) = (8.4, 18.0);
const MARGIN: f64 = 16.0;
const BAR: f64 = 36.0;
const FOOT: f64 = 28.0;

/// The length of the whole picture in seconds, and of that the time that the last screen stays.
const PLAYED: f64 = 15.0;
const LAST: f64 = 3.0;
/// The time to read a line of a section before the next section starts, and that to read a section at most.
const READ: (f64, f64) = (0.12, 1.2);
/// The longest wait for output, before all waiting is scaled to the time that remains.
const WAIT: f64 = 0.2;
/// The time between two screens, at least.
const FRAME: f64 = 0.08;
/// The start of a section: demo/run prints its headings in bold.
const HEADING: &str = "\u{1b}[1m";

const LIGHT: &str = ".back{fill:#f6f8fa;stroke:#d0d7de}.note{fill:#59636e}text{fill:#1f2328}.dot{fill:#d0d7de}\
    .faint{fill:#59636e}.red{fill:#cf222e}.green{fill:#1a7f37}.yellow{fill:#7d4e00}.blue{fill:#0550ae}.magenta{fill:#8250df}.cyan{fill:#1b7c83}";
const DARK: &str = ".back{fill:#0d1117;stroke:#30363d}.note{fill:#9da7b3}text{fill:#e6edf3}.dot{fill:#30363d}\
    .faint{fill:#9da7b3}.red{fill:#ff7b72}.green{fill:#3fb950}.yellow{fill:#d29922}.blue{fill:#58a6ff}.magenta{fill:#bc8cff}.cyan{fill:#39c5cf}";

/// A recording in the format asciicast v2.
struct Recording {
    columns: usize,
    rows: usize,
    /// The program's version.
    title: String,
    /// Seconds since the start, and what was printed then.
    output: Vec<(f64, String)>,
}

/// A screen: its start in seconds, and the lines as elements.
struct Screen {
    at: f64,
    lines: Vec<String>,
}

/// The picture of the committed recording.
pub fn draw() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(RECORDING);
    let recording = parse(&std::fs::read_to_string(path).unwrap());
    document(&recording, &screens(&recording))
}

fn parse(text: &str) -> Recording {
    let mut lines = text.lines();
    let head: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    let size = |key: &str| usize::try_from(head[key].as_u64().unwrap()).unwrap();
    let events = lines.map(|line| serde_json::from_str(line).unwrap());
    let output = events.filter(|(_, kind, _): &(f64, String, String)| kind == "o");
    Recording {
        columns: size("width"),
        rows: size("height"),
        title: head["title"].as_str().unwrap_or_default().to_owned(),
        output: output.map(|(at, _, text)| (at, text)).collect(),
    }
}

/// The time to read what stands on the screen, and to wait, before each output.
fn pauses(output: &[(f64, String)]) -> Vec<(f64, f64)> {
    let (mut before, mut lines) = (0.0, 0);
    let pauses = output.iter().map(|(at, text)| {
        let wait = (at - before).min(WAIT);
        before = *at;
        let mut read = 0.0;
        if text.contains(HEADING) {
            read = (f64::from(lines) * READ.0).min(READ.1);
            lines = 0;
        }
        // A bar that is drawn again is no new line.
        lines += i32::try_from(text.matches("\r\n").count()).unwrap();
        (read, wait)
    });
    pauses.collect()
}

/// The screens with their times. Output that follows at once is one screen.
fn screens(recording: &Recording) -> Vec<Screen> {
    let mut terminal = Terminal::new(recording.columns, recording.rows).unwrap();
    let mut screens: Vec<Screen> = Vec::new();
    let pauses = pauses(&recording.output);
    let reading: f64 = pauses.iter().map(|(read, _)| read).sum();
    let waiting: f64 = pauses.iter().map(|(_, wait)| wait).sum();
    let scale = (PLAYED - LAST - reading).max(1.0) / waiting;
    let mut now = 0.0;
    for ((read, wait), (_, text)) in pauses.iter().zip(&recording.output) {
        now += read + wait * scale;
        terminal.feed(text.as_str());
        let screen = terminal.screen();
        let lines = (0..recording.rows).map(|row| line(screen.line(row).unwrap().cells()));
        let lines: Vec<_> = lines.collect();
        match screens.last_mut() {
            Some(last) if last.lines == lines => {}
            Some(last) if now - last.at < FRAME => last.lines = lines,
            // The picture starts with what there is to see.
            None if lines.iter().all(String::is_empty) => {}
            _ => screens.push(Screen { at: now, lines }),
        }
    }
    screens
}

/// A line of the terminal as SVG: one text for each run of characters of one style.
fn line(cells: &[Cell]) -> String {
    let mut svg = String::new();
    let mut start = 0;
    for run in cells.chunk_by(|a, b| a.pen() == b.pen()) {
        let text: String = run.iter().map(Cell::char).collect();
        let shown = text.trim_end();
        if !shown.is_empty() {
            let element = Text::new(shown)
                .set("x", rounded(start as f64 * CELL.0))
                .set("textLength", rounded(shown.chars().count() as f64 * CELL.0));
            let class = class(&run[0]);
            let element = match &*class {
                "" => element,
                class => element.set("class", class),
            };
            svg += &element.to_string().replace('\n', "");
        }
        start += run.len();
    }
    svg
}

/// The classes of a character's style. Bright colours are shown as the plain ones.
fn class(cell: &Cell) -> String {
    const NAMES: [&str; 8] = ["", "red", "green", "yellow", "blue", "magenta", "cyan", ""];
    let pen = cell.pen();
    let colour = match pen.foreground() {
        Some(Color::Indexed(8)) => "faint",
        Some(Color::Indexed(n)) if n < 16 => NAMES[usize::from(n % 8)],
        _ => "",
    };
    let styles = [
        colour,
        if pen.is_bold() { "bold" } else { "" },
        if pen.is_faint() { "faint" } else { "" },
    ];
    let styles: Vec<_> = styles
        .into_iter()
        .filter(|style| !style.is_empty())
        .collect();
    styles.join(" ")
}

fn document(recording: &Recording, screens: &[Screen]) -> String {
    let width = rounded(recording.columns as f64 * CELL.0);
    let window = (width, recording.rows as f64 * CELL.1);
    let size = (window.0 + 2.0 * MARGIN, BAR + window.1 + FOOT);
    let back = Rectangle::new()
        .set("class", "back")
        .set("x", 0.5)
        .set("y", 0.5)
        .set("width", size.0 - 1.0)
        .set("height", size.1 - 1.0)
        .set("rx", 8);
    let note = |text: &str, y: f64| {
        Text::new(text)
            .set("class", "note")
            .set("x", rounded(size.0 / 2.0))
            .set("y", y)
            .set("text-anchor", "middle")
    };
    let (defined, strip) = strip(screens, width);
    let window = SVG::new()
        .set("x", MARGIN)
        .set("y", BAR)
        .set("width", window.0)
        .set("height", window.1)
        .add(strip);
    let mut document = Document::new()
        .set("width", size.0)
        .set("height", size.1)
        .set("viewBox", (0, 0, size.0, size.1))
        .set("role", "img")
        .set("aria-labelledby", "title description")
        .add(Title::new("A session with harpoon: make demo").set("id", "title"))
        .add(
            Description::new()
                .set("id", "description")
                .add(svg::node::Text::new(description(recording))),
        )
        .add(Style::new(style(screens, width)))
        .add(defined)
        .add(back);
    for n in 0..3 {
        let dot = Circle::new().set("class", "dot").set("cx", 20 + 18 * n);
        document = document.add(dot.set("cy", 18).set("r", 5));
    }
    let foot = format!(
        "{}: recorded by make recording, waiting shortened",
        recording.title
    );
    document
        .add(note("make demo", 22.0))
        .add(window)
        .add(note(&foot, size.1 - 10.0))
        .to_string()
        + "\n"
}

/// The definitions of all different lines, and the strip of the screens that use them.
fn strip(screens: &[Screen], width: f64) -> (Definitions, Group) {
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut defined = Definitions::new();
    let mut strip = Group::new().set("id", "strip");
    for (n, screen) in screens.iter().enumerate() {
        let x = rounded(n as f64 * width);
        let mut group = Group::new().set("transform", format!("translate({x} 0)"));
        for (row, line) in screen
            .lines
            .iter()
            .enumerate()
            .filter(|(_, l)| !l.is_empty())
        {
            let next = format!("l{}", names.len());
            let name = names.entry(line).or_insert_with(|| {
                let blob = svg::node::Blob::new(line.clone());
                defined.append(Group::new().set("id", next.clone()).add(blob));
                next
            });
            let y = (row + 1) as f64 * CELL.1 - 5.0;
            group = group.add(Use::new().set("href", format!("#{name}")).set("y", y));
        }
        strip = strip.add(group);
    }
    (defined, strip)
}

/// The style sheet with the animation. Without animations the last screen is shown.
fn style(screens: &[Screen], width: f64) -> String {
    let mut frames = String::new();
    let end = screens.last().map_or(0.0, |screen| screen.at) + LAST;
    let moved = |n: usize| format!("transform:translateX(-{}px)", rounded(n as f64 * width));
    for (n, screen) in screens.iter().enumerate() {
        // The first screen is there from the start.
        let at = if n == 0 { 0.0 } else { screen.at / end * 100.0 };
        write!(frames, "{at:.3}%{{{}}}", moved(n)).unwrap();
    }
    let last = moved(screens.len() - 1);
    write!(frames, "100%{{{last}}}").unwrap();
    format!(
        "text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}}\
         .note{{font:12px system-ui,-apple-system,'Segoe UI',sans-serif}}.bold{{font-weight:700}}\
         {LIGHT}@media (prefers-color-scheme:dark){{{DARK}}}\
         #strip{{{last};animation:play {end:.2}s step-end infinite}}\
         @keyframes play{{{frames}}}\
         @media (prefers-reduced-motion:reduce){{#strip{{animation:none}}}}"
    )
}

/// The commands of the session, for those who cannot see it.
fn description(recording: &Recording) -> String {
    let output: String = recording.output.iter().map(|(_, text)| &**text).collect();
    let headings = output.split(HEADING).skip(1);
    let headings = headings.filter_map(|rest| rest.split('\u{1b}').next());
    let headings: Vec<_> = headings.map(|text| text.trim_end_matches('.')).collect();
    format!("A terminal shows: {}.", headings.join(". "))
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
