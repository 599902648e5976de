//! Plots as SVG, in light or dark as the reader's browser is.

use std::fmt::Write;

/// The colours of lines, readable on white and on dark grey.
const COLORS: [&str; 8] = [
    "#3b82f6", "#f97316", "#22a06b", "#e5484d", "#a855f7", "#0ea5b7", "#c08a00", "#8b8d98",
];
const STYLE: &str = "\
svg{--back:#ffffff;--text:#24292f;--soft:#57606a;--grid:#d8dee4}\
@media(prefers-color-scheme:dark){svg{--back:#0d1117;--text:#e6edf3;--soft:#9198a1;--grid:#30363d}}\
text{font:11px system-ui,sans-serif;fill:var(--soft)}\
.title{font-weight:600;font-size:13px;fill:var(--text)}\
.number{font-size:24px;font-weight:600;fill:var(--text)}\
.grid{stroke:var(--grid);stroke-width:1}\
.line{fill:none;stroke-width:1.8;stroke-linejoin:round}\
.back{fill:var(--back)}.frame{fill:none;stroke:var(--grid)}";

/// The unit of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    Number,
    Percent,
    Seconds,
    Bytes,
}

impl Unit {
    /// A value with its unit.
    pub fn show(self, value: f64) -> String {
        let (value, unit) = match self {
            Self::Percent => return format!("{}%", short(value * 100.0)),
            Self::Seconds if value != 0.0 && value.abs() < 1.0 => (value * 1e3, " ms"),
            Self::Seconds => (value, " s"),
            Self::Bytes => (value, "B"),
            Self::Number => (value, ""),
        };
        let steps = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
        let step = steps.into_iter().find(|(least, _)| value.abs() >= *least);
        let (by, prefix) = step.unwrap_or((1.0, ""));
        let space = if self == Self::Bytes { " " } else { "" };
        format!("{}{space}{prefix}{unit}", short(value / by))
    }
}

/// Up to three digits.
fn short(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 || v == 0.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    let text = format!("{value:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A line of a chart.
#[derive(Debug, Clone)]
pub struct Line {
    pub name: String,
    /// In the order of their x.
    pub points: Vec<(f64, f64)>,
}

/// A chart.
#[derive(Debug, Clone)]
pub struct Chart {
    pub title: String,
    pub unit: Unit,
    /// How a value of the x axis is shown.
    pub x: fn(f64) -> String,
    /// The values of the x axis that are shown; evenly spaced ones if there are none.
    pub ticks: Vec<f64>,
    /// True if the x axis is logarithmic.
    pub is_log: bool,
    pub lines: Vec<Line>,
    /// True if the lines lie upon each other.
    pub is_stacked: bool,
}

/// A place in the picture.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

/// A picture.
pub struct Picture {
    text: String,
    width: f64,
    height: f64,
}

impl Picture {
    pub fn new(width: f64, height: f64) -> Self {
        Self {
            text: String::new(),
            width,
            height,
        }
    }

    /// A heading.
    pub fn heading(&mut self, x: f64, y: f64, text: &str) {
        let text = escaped(text);
        self.put(&format!(
            r#"<text class="title" x="{x:.0}" y="{y:.0}">{text}</text>"#
        ));
    }

    /// A value, large, below its title.
    pub fn number(&mut self, place: Place, title: &str, value: &str) {
        self.frame(place);
        self.heading(place.x + 10.0, place.y + 20.0, title);
        let (x, y) = (place.x + 10.0, place.y + place.height - 14.0);
        let value = escaped(value);
        self.put(&format!(
            r#"<text class="number" x="{x:.0}" y="{y:.0}">{value}</text>"#
        ));
    }

    /// A chart.
    pub fn chart(&mut self, place: Place, chart: &Chart) {
        self.frame(place);
        self.heading(place.x + 10.0, place.y + 20.0, &chart.title);
        let inner = Place {
            x: place.x + 58.0,
            y: place.y + 34.0,
            width: place.width - 74.0,
            height: place.height - 78.0,
        };
        let lines = stacked(chart);
        let points = || lines.iter().flat_map(|line| &line.points);
        let scale = |x: f64| if chart.is_log { x.max(1e-9).ln() } else { x };
        let (left, right) = range(points().map(|point| scale(point.0)));
        let top = nice(points().map(|point| point.1).fold(0.0, f64::max));
        let at = |x: f64, y: f64| {
            let part = (scale(x) - left) / (right - left).max(1e-9);
            (
                inner.x + part * inner.width,
                inner.y + inner.height * (1.0 - y / top),
            )
        };
        for step in 0..=4 {
            let value = top * f64::from(step) / 4.0;
            let y = inner.y + inner.height * (1.0 - value / top);
            let (from, to) = (inner.x, inner.x + inner.width);
            self.put(&format!(
                r#"<line class="grid" x1="{from:.0}" x2="{to:.0}" y1="{y:.1}" y2="{y:.1}"/>"#
            ));
            let value = escaped(&chart.unit.show(value));
            let (x, y) = (inner.x - 6.0, y + 4.0);
            self.put(&format!(
                r#"<text x="{x:.0}" y="{y:.0}" text-anchor="end">{value}</text>"#
            ));
        }
        let even = (0..=4).map(|step| left + (right - left) * f64::from(step) / 4.0);
        let ticks = match chart.ticks.is_empty() {
            true => even.collect(),
            false => chart.ticks.clone(),
        };
        for tick in ticks {
            let (x, y) = (at(tick, 0.0).0, inner.y + inner.height + 16.0);
            let text = escaped(&(chart.x)(tick));
            self.put(&format!(
                r#"<text x="{x:.0}" y="{y:.0}" text-anchor="middle">{text}</text>"#
            ));
        }
        // The lowest line is drawn last, over the area of those above it.
        let ordered: Vec<_> = lines.iter().enumerate().collect();
        for (n, line) in ordered.iter().rev() {
            let color = COLORS[n % COLORS.len()];
            let mut path = String::new();
            for (x, y) in &line.points {
                let (x, y) = at(*x, *y);
                let verb = if path.is_empty() { 'M' } else { 'L' };
                write!(path, "{verb}{x:.1} {y:.1}").unwrap();
            }
            if let (true, Some(first), Some(last)) =
                (chart.is_stacked, line.points.first(), line.points.last())
            {
                let (low, high) = (at(first.0, 0.0), at(last.0, 0.0));
                self.put(&format!(
                    r#"<path d="{path}L{:.1} {:.1}L{:.1} {:.1}Z" fill="{color}"/>"#,
                    high.0, high.1, low.0, low.1
                ));
            } else {
                self.put(&format!(
                    r#"<path class="line" d="{path}" stroke="{color}"/>"#
                ));
            }
        }
        let mut x = inner.x;
        for (n, line) in lines.iter().enumerate() {
            let (y, color) = (place.y + place.height - 10.0, COLORS[n % COLORS.len()]);
            let name = escaped(&line.name);
            let (box_y, text_x) = (y - 9.0, x + 14.0);
            let width = 26.0 + 6.2 * line.name.chars().count() as f64;
            if x + width > place.x + place.width {
                break;
            }
            self.put(&format!(
                r#"<rect x="{x:.0}" y="{box_y:.0}" width="10" height="10" rx="2" fill="{color}"/><text x="{text_x:.0}" y="{y:.0}">{name}</text>"#
            ));
            x += width;
        }
    }

    fn frame(&mut self, place: Place) {
        let Place {
            x,
            y,
            width,
            height,
        } = place;
        self.put(&format!(
            r#"<rect class="frame" x="{x:.0}" y="{y:.0}" width="{width:.0}" height="{height:.0}" rx="4"/>"#
        ));
    }

    fn put(&mut self, element: &str) {
        writeln!(self.text, "{element}").unwrap();
    }

    /// Writes it to a file of the repository.
    pub fn write(self, path: &str) {
        let (width, height) = (self.width, self.height);
        let svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" height=\"{height:.0}\">\n\
             <style>{STYLE}</style>\n<rect class=\"back\" width=\"{width:.0}\" height=\"{height:.0}\"/>\n{}</svg>\n",
            self.text
        );
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, svg).unwrap();
    }
}

/// The lines, each upon the ones before it if the chart is stacked.
fn stacked(chart: &Chart) -> Vec<Line> {
    let mut lines = chart.lines.clone();
    if chart.is_stacked {
        let mut sums: std::collections::HashMap<u64, f64> = std::collections::HashMap::new();
        for line in &mut lines {
            for (x, y) in &mut line.points {
                let sum = sums.entry(x.to_bits()).or_default();
                *sum += *y;
                *y = *sum;
            }
        }
    }
    lines
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::MAX, f64::MIN), |(least, most), value| {
        (least.min(value), most.max(value))
    })
}

/// A round number that is not less.
fn nice(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let step = 10f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    let fits = steps
        .into_iter()
        .find(|times| times * step >= value * 0.999);
    fits.unwrap_or(10.0) * step
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
