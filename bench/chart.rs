//! Draws charts with plotters: horizontal bars in panels, and lines on logarithmic axes.
//!
//! Colours are those of a light page; a style sheet within the picture replaces them on a dark one. Each picture has a title
//! and a description with all its values, and an opaque background, so that it is legible on any page.

use std::fmt::Write;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

const WIDTH: u32 = 840;
pub(super) const MARGIN: i32 = 20;
/// Height of the title, the subtitle and the legend.
const HEAD: i32 = 98;
const FOOT: i32 = 48;
const FONT: &str = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif";
/// plotters divides sizes of text by this.
const POINTS: f64 = 1.24;

/// A colour on light pages, and the one that replaces it on dark pages.
pub(super) struct Colour(pub(super) RGBColor, &'static str);

const BACKGROUND: Colour = Colour(RGBColor(0xff, 0xff, 0xff), "#0d1117");
pub(super) const INK: Colour = Colour(RGBColor(0x1f, 0x23, 0x28), "#e6edf3");
pub(super) const MUTED: Colour = Colour(RGBColor(0x59, 0x63, 0x6e), "#9da7b3");
pub(super) const GRID: Colour = Colour(RGBColor(0xd8, 0xde, 0xe4), "#30363d");
const OURS: Colour = Colour(RGBColor(0x09, 0x69, 0xda), "#4493f8");
const SECOND: Colour = Colour(RGBColor(0x1a, 0x7f, 0x37), "#3fb950");
const THEIRS: Colour = Colour(RGBColor(0x8c, 0x95, 0x9f), "#7d8590");
const COLOURS: [&Colour; 7] = [&BACKGROUND, &INK, &MUTED, &GRID, &OURS, &SECOND, &THEIRS];

/// The kind of a bar or a line, shown by its colour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Ours,
    Second,
    Theirs,
}

impl Kind {
    fn colour(self) -> RGBColor {
        match self {
            Self::Ours => OURS.0,
            Self::Second => SECOND.0,
            Self::Theirs => THEIRS.0,
        }
    }
}

/// The parts that all kinds of pictures have.
#[derive(Debug)]
pub struct Picture<'a> {
    pub title: &'a str,
    pub subtitle: &'a str,
    pub legend: &'a [(Kind, &'a str)],
    pub unit: &'a str,
    /// The origin of the figures: one string for each line.
    pub caption: Vec<String>,
}

/// A group of bars with an axis; all panels of a picture have the same scale.
#[derive(Debug)]
pub struct Panel {
    pub title: String,
    pub bars: Vec<Bar>,
}

#[derive(Debug)]
pub struct Bar {
    pub label: String,
    /// The median, the minimum and the maximum.
    pub cell: [f64; 3],
    pub kind: Kind,
}

/// Lines on logarithmic axes.
#[derive(Debug)]
pub struct Graph {
    pub title: String,
    pub lines: Vec<Line>,
}

#[derive(Debug)]
pub struct Line {
    pub label: String,
    pub points: Vec<(f64, f64)>,
    pub kind: Kind,
}

/// Horizontal bars, in this many columns of panels. Panels side by side have the same labels.
pub fn bars(picture: &Picture<'_>, columns: usize, panels: &[Panel]) -> String {
    const BAR: i32 = 26;
    const AXIS: i32 = 24;
    const TITLE: i32 = 26;
    const GAP: i32 = 16;
    let all = || panels.iter().flat_map(|panel| &panel.bars);
    let longest = all().map(|bar| bar.label.chars().count()).max();
    let label = pixels(longest.unwrap_or(0), 12) + 8;
    let most = all().map(|bar| bar.cell[2]).fold(0.0, f64::max);
    let rows: Vec<_> = panels.chunks(columns).collect();
    let height = |row: &[Panel]| {
        let bars = row.iter().map(|panel| panel.bars.len()).max().unwrap_or(0);
        TITLE + BAR * i32::try_from(bars).unwrap() + AXIS + GAP
    };
    let total = rows.iter().map(|row| height(row)).sum::<i32>();
    let width = (WIDTH as i32 - 2 * MARGIN - label) / i32::try_from(columns).unwrap();
    // For the value beside the longest bar.
    let values = all().map(|bar| value(bar.cell[0], picture.unit).chars().count());
    let room = 1.0 + f64::from(pixels(values.max().unwrap_or(0), 12) + 12) / f64::from(width);
    draw(picture, total, &described(picture, panels), |root| {
        let mut y = HEAD;
        for row in &rows {
            let bottom = y + height(row) - GAP;
            for (n, panel) in row.iter().enumerate() {
                let x = MARGIN + label + width * i32::try_from(n).unwrap();
                write(root, &panel.title, (x, y + 12), 13, INK.0, HPos::Left, true);
                let area = part(root, x..x + width - GAP, y + TITLE..bottom);
                group(&area, panel, most * room, picture.unit);
                for (at, bar) in panel.bars.iter().enumerate().filter(|_| n == 0) {
                    let middle = y + TITLE + BAR * i32::try_from(at).unwrap() + BAR / 2;
                    let place = (x - 8, middle);
                    write(root, &bar.label, place, 12, INK.0, HPos::Right, false);
                }
            }
            y += height(row);
        }
    })
}

/// The bars of a panel and their axis.
fn group(area: &Area<'_>, panel: &Panel, most: f64, unit: &str) {
    let count = panel.bars.len() as f64;
    let mut chart = ChartBuilder::on(area)
        .set_label_area_size(LabelAreaPosition::Bottom, 24)
        .build_cartesian_2d(0.0..most, count..0.0)
        .unwrap();
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .x_labels(6)
        .x_max_light_lines(0)
        .bold_line_style(GRID.0)
        .axis_style(MUTED.0)
        .x_label_style(style(11, MUTED.0, HPos::Center, false))
        .x_label_formatter(&|x| format!("{} {unit}", thousands(*x)))
        .draw()
        .unwrap();
    for (at, bar) in panel.bars.iter().enumerate() {
        let (at, [middle, least, most]) = (at as f64, bar.cell);
        let rectangle = [(0.0, at + 0.2), (middle, at + 0.8)];
        let filled = Rectangle::new(rectangle, bar.kind.colour().filled());
        chart.draw_series([filled]).unwrap();
        if least < most {
            let line = |from, to| PathElement::new([from, to], INK.0);
            let ends = [least, most].map(|x| line((x, at + 0.38), (x, at + 0.62)));
            let whisker = line((least, at + 0.5), (most, at + 0.5));
            chart
                .draw_series(ends.into_iter().chain([whisker]))
                .unwrap();
        }
        let (x, y) = chart.backend_coord(&(most.max(middle), at + 0.5));
        let origin = area.get_base_pixel();
        let place = (x - origin.0 + 6, y - origin.1);
        write(
            area,
            &value(middle, unit),
            place,
            12,
            INK.0,
            HPos::Left,
            true,
        );
    }
}

/// Lines over the same values of x, in panels side by side.
pub fn lines(picture: &Picture<'_>, x_title: &str, graphs: &[Graph]) -> String {
    const HEIGHT: i32 = 300;
    let width = (WIDTH as i32 - 2 * MARGIN) / i32::try_from(graphs.len()).unwrap();
    let text = described_lines(picture, graphs);
    draw(picture, HEIGHT, &text, |root| {
        for (n, graph) in graphs.iter().enumerate() {
            let x = MARGIN + width * i32::try_from(n).unwrap();
            write(
                root,
                &graph.title,
                (x, HEAD + 12),
                13,
                INK.0,
                HPos::Left,
                true,
            );
            let area = part(root, x..x + width - 8, HEAD + 26..HEAD + HEIGHT - 12);
            curves(&area, graph, x_title, picture.unit);
        }
    })
}

/// The lines of a panel and their axes.
fn curves(area: &Area<'_>, graph: &Graph, x_title: &str, unit: &str) {
    let points = || graph.lines.iter().flat_map(|line| &line.points);
    let (xs, ys) = (
        range(points().map(|point| point.0)),
        range(points().map(|point| point.1)),
    );
    let mut ticks: Vec<_> = points().map(|point| point.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    // Room at the ends of the lines for values.
    let x = (xs.start * 0.55..xs.end * 1.7)
        .log_scale()
        .with_key_points(ticks);
    let y = ys.start * 0.45..ys.end * 2.0;
    let powers = (-3..7).map(|power| 10_f64.powi(power));
    let powers = powers.filter(|power| y.contains(power)).collect();
    let y = y.log_scale().with_key_points(powers);
    let mut chart = ChartBuilder::on(area)
        .set_label_area_size(LabelAreaPosition::Bottom, 44)
        .set_label_area_size(LabelAreaPosition::Left, 52)
        .build_cartesian_2d(x, y)
        .unwrap();
    chart
        .configure_mesh()
        .max_light_lines(0)
        .bold_line_style(GRID.0)
        .axis_style(MUTED.0)
        .x_desc(x_title)
        .axis_desc_style(style(12, MUTED.0, HPos::Center, false))
        .label_style(style(11, MUTED.0, HPos::Center, false))
        .x_label_formatter(&|value| thousands(*value))
        .y_label_formatter(&|value| thousands(*value))
        .draw()
        .unwrap();
    for line in &graph.lines {
        let colour = line.kind.colour();
        let path = PathElement::new(line.points.clone(), colour.stroke_width(2));
        chart.draw_series([path]).unwrap();
        let dots = line
            .points
            .iter()
            .map(|at| Circle::new(*at, 4, colour.filled()));
        chart.draw_series(dots).unwrap();
        for point in &line.points {
            let (x, y) = chart.backend_coord(point);
            let origin = area.get_base_pixel();
            // Lines rise to the right, and those of others are above ours.
            let (dx, dy, side) = match line.kind {
                Kind::Ours => (5, 14, HPos::Left),
                _ => (-5, -12, HPos::Right),
            };
            let place = (x - origin.0 + dx, y - origin.1 + dy);
            write(area, &value(point.1, unit), place, 12, INK.0, side, true);
        }
    }
}

fn range(values: impl Iterator<Item = f64>) -> Range<f64> {
    values.fold(f64::MAX..0.0, |range, value| {
        range.start.min(value)..range.end.max(value)
    })
}

/// The part of an area between these coordinates.
pub(super) fn part<'a>(root: &Area<'a>, x: Range<i32>, y: Range<i32>) -> Area<'a> {
    root.clone()
        .shrink((x.start, y.start), (x.end - x.start, y.end - y.start))
}

/// The whole picture: its head, its foot, and what `body` draws between them on `height` pixels.
pub(super) fn draw(
    picture: &Picture<'_>,
    height: i32,
    description: &str,
    body: impl FnOnce(&Area<'_>),
) -> String {
    let whole = HEAD + height + FOOT;
    let mut svg = String::new();
    {
        let size = (WIDTH, u32::try_from(whole).unwrap());
        let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        write(
            &root,
            picture.title,
            (MARGIN, 28),
            17,
            INK.0,
            HPos::Left,
            true,
        );
        write(
            &root,
            picture.subtitle,
            (MARGIN, 52),
            13,
            MUTED.0,
            HPos::Left,
            false,
        );
        let mut x = MARGIN;
        for (kind, text) in picture.legend {
            let square = Rectangle::new([(x, 68), (x + 12, 80)], kind.colour().filled());
            root.draw(&square).unwrap();
            write(&root, text, (x + 18, 74), 12, INK.0, HPos::Left, false);
            x += 18 + pixels(text.chars().count(), 12) + 20;
        }
        body(&root);
        for (n, line) in picture.caption.iter().rev().enumerate() {
            let y = whole - 16 - 16 * i32::try_from(n).unwrap();
            write(&root, line, (MARGIN, y), 11, MUTED.0, HPos::Left, false);
        }
        root.present().unwrap();
    }
    finished(&svg, picture.title, description, whole)
}

/// The document with its title, its description, the style of dark pages and its background.
fn finished(svg: &str, title: &str, description: &str, height: i32) -> String {
    let (tag, rest) = svg.split_once(">\n").expect("an opening tag");
    let mut style = String::new();
    for Colour(light, dark) in COLOURS {
        let light = format!("#{:02X}{:02X}{:02X}", light.0, light.1, light.2);
        write!(
            style,
            "[fill=\"{light}\"]{{fill:{dark}}}[stroke=\"{light}\"]{{stroke:{dark}}}"
        )
        .unwrap();
    }
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        "{tag} role=\"img\" aria-labelledby=\"title description\">\n\
         <title id=\"title\">{}</title>\n\
         <desc id=\"description\">{}</desc>\n\
         <style>@media (prefers-color-scheme:dark){{{style}}}</style>\n\
         <rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\" fill=\"#FFFFFF\" stroke=\"#D8DEE4\"/>\n{rest}",
        escape(title),
        escape(description),
        WIDTH - 1,
        height - 1,
    )
}

fn described(picture: &Picture<'_>, panels: &[Panel]) -> String {
    let panels = panels.iter().map(|panel| {
        let bars = panel
            .bars
            .iter()
            .map(|bar| format!("{} {} {}", bar.label, shown(bar.cell[0]), picture.unit));
        format!(" {}: {}.", panel.title, bars.collect::<Vec<_>>().join("; "))
    });
    picture.subtitle.to_owned() + &panels.collect::<String>()
}

fn described_lines(picture: &Picture<'_>, graphs: &[Graph]) -> String {
    let mut text = picture.subtitle.to_owned();
    for (graph, line) in graphs
        .iter()
        .flat_map(|g| g.lines.iter().map(move |l| (g, l)))
    {
        let points = line
            .points
            .iter()
            .map(|(x, y)| format!("{} {} at {}", shown(*y), picture.unit, thousands(*x)));
        let points = points.collect::<Vec<_>>().join(", ");
        write!(text, " {}, {}: {points}.", graph.title, line.label).unwrap();
    }
    text
}

/// A text whose left, middle or right is at this place, centred vertically.
pub(super) fn write(
    area: &Area<'_>,
    text: &str,
    place: (i32, i32),
    size: u32,
    colour: RGBColor,
    side: HPos,
    bold: bool,
) {
    area.draw_text(text, &style(size, colour, side, bold), place)
        .unwrap();
}

pub(super) fn style(size: u32, colour: RGBColor, side: HPos, bold: bool) -> TextStyle<'static> {
    let weight = if bold {
        FontStyle::Bold
    } else {
        FontStyle::Normal
    };
    let font = (FONT, f64::from(size) * POINTS).into_font().style(weight);
    font.color(&colour).pos(Pos::new(side, VPos::Center))
}

/// The width of a text in the widest usual fonts.
pub(super) fn pixels(characters: usize, size: i32) -> i32 {
    i32::try_from(characters).unwrap() * size * 58 / 100
}

fn value(number: f64, unit: &str) -> String {
    format!("{} {unit}", shown(number))
}

/// Two digits, or all of a larger number.
fn shown(value: f64) -> String {
    match value {
        v if v < 1.0 => format!("{v:.2}"),
        v if v < 10.0 => format!("{v:.1}"),
        v => thousands(v),
    }
}

fn thousands(value: f64) -> String {
    if value < 1.0 {
        return format!("{value}");
    }
    let whole = format!("{value:.0}");
    let split = whole.len().saturating_sub(3);
    match &whole[..split] {
        "" => whole,
        front => format!("{front},{}", &whole[split..]),
    }
}
