//! Draws a dashboard with plotters: numbers, and lines over time, each in its place of a grid.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::chart::{Area, GRID, INK, MARGIN, MUTED, Picture, draw, part, pixels, style, write};
use super::results::{Shape, Unit};

/// The colours of lines, legible on light and on dark pages.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x3b, 0x82, 0xf6),
    RGBColor(0xf9, 0x73, 0x16),
    RGBColor(0x22, 0xa0, 0x6b),
    RGBColor(0xe5, 0x48, 0x4d),
    RGBColor(0xa8, 0x55, 0xf7),
    RGBColor(0x0e, 0xa5, 0xb7),
    RGBColor(0xc0, 0x8a, 0x00),
    RGBColor(0x8b, 0x8d, 0x98),
];
/// A column and a row of the grid, in pixels.
const CELL: (i32, i32) = (33, 23);
/// Height of the title and of the legend of a panel.
const TITLE: i32 = 30;
const LEGEND: i32 = 20;

/// A panel of a dashboard.
#[derive(Debug)]
pub struct Panel {
    pub title: String,
    pub shape: Shape,
    pub unit: Unit,
    /// Left, top, width and height in cells of the grid.
    pub place: [i32; 4],
    pub series: Vec<Series>,
}

/// A line: its name, and seconds with values.
#[derive(Debug, Clone)]
pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// The whole dashboard.
pub fn board(picture: &Picture<'_>, panels: &[Panel]) -> String {
    let rows = panels.iter().map(|panel| panel.place[1] + panel.place[3]);
    let height = rows.max().unwrap_or(0) * CELL.1;
    let points = panels.iter().flat_map(|panel| &panel.series);
    let points = points.flat_map(|series| &series.points);
    let end = points.map(|point| point.0).fold(1.0, f64::max);
    draw(picture, height, &described(picture, panels), |root| {
        for panel in panels {
            let [x, y, width, height] = panel.place;
            let x = MARGIN + x * CELL.0..MARGIN + (x + width) * CELL.0 - 6;
            // The pictures of this kind have no legend below their subtitle.
            let top = 72 + y * CELL.1;
            let area = part(root, x, top..top + height * CELL.1 - 6);
            one(&area, panel, end);
        }
    })
}

fn one(area: &Area<'_>, panel: &Panel, end: f64) {
    let (width, height) = area.dim_in_pixel();
    let (width, height) = (width as i32, height as i32);
    if panel.shape == Shape::Heading {
        let place = (0, height / 2);
        return write(area, &panel.title, place, 13, INK.0, HPos::Left, true);
    }
    let frame = Rectangle::new([(0, 0), (width - 1, height - 1)], GRID.0);
    area.draw(&frame).unwrap();
    write(area, &panel.title, (8, 14), 12, INK.0, HPos::Left, true);
    if panel.shape == Shape::Number {
        let value = last(panel.series.first(), panel.unit);
        return write(area, &value, (8, height - 24), 22, INK.0, HPos::Left, true);
    }
    if panel.series.is_empty() {
        let place = (width / 2, height / 2);
        return write(area, "no data", place, 12, MUTED.0, HPos::Center, false);
    }
    let inner = part(area, 4..width - 8, TITLE..height - LEGEND);
    curves(&inner, panel, end);
    legend(area, panel, (width, height - LEGEND / 2));
}

/// The lines or the areas of a panel, and their axes.
fn curves(area: &Area<'_>, panel: &Panel, end: f64) {
    let is_stacked = panel.shape == Shape::Stacked;
    let lines = if is_stacked {
        stacked(&panel.series)
    } else {
        panel.series.clone()
    };
    let values = lines.iter().flat_map(|line| &line.points);
    let top = round(values.map(|point| point.1).fold(0.0, f64::max));
    let mut chart = ChartBuilder::on(area)
        .set_label_area_size(LabelAreaPosition::Bottom, 20)
        .set_label_area_size(LabelAreaPosition::Left, 50)
        .build_cartesian_2d(0.0..end / 60.0, 0.0..top)
        .unwrap();
    chart
        .configure_mesh()
        .disable_x_mesh()
        .max_light_lines(0)
        .x_labels(6)
        .y_labels(5)
        .bold_line_style(GRID.0)
        .axis_style(MUTED.0)
        .label_style(style(10, MUTED.0, HPos::Center, false))
        .x_label_formatter(&|at| format!("{at} m"))
        .y_label_formatter(&|value| panel.unit.show(*value))
        .draw()
        .unwrap();
    // The lowest area is drawn last, over those above it.
    for (n, line) in lines.iter().enumerate().rev() {
        let points = line.points.iter().map(|(x, y)| (x / 60.0, *y));
        let (mut points, colour) = (points.collect::<Vec<_>>(), COLOURS[n % COLOURS.len()]);
        if is_stacked {
            let ends = [points[points.len() - 1], points[0]];
            points.extend(ends.map(|(x, _)| (x, 0.0)));
            let filled = Polygon::new(points, colour.filled());
            chart.draw_series([filled]).unwrap();
        } else {
            let drawn = PathElement::new(points, colour.stroke_width(2));
            chart.draw_series([drawn]).unwrap();
        }
    }
}

/// The names below the lines, as many as there is room for.
fn legend(area: &Area<'_>, panel: &Panel, (width, middle): (i32, i32)) {
    let mut x = 8;
    for (n, series) in panel.series.iter().enumerate() {
        let text = pixels(series.name.chars().count(), 10);
        if x + 14 + text > width {
            return;
        }
        let square = [(x, middle - 5), (x + 9, middle + 4)];
        let square = Rectangle::new(square, COLOURS[n % COLOURS.len()].filled());
        area.draw(&square).unwrap();
        let place = (x + 13, middle);
        write(area, &series.name, place, 10, MUTED.0, HPos::Left, false);
        x += 13 + text + 10;
    }
}

/// Each line upon those before it.
fn stacked(series: &[Series]) -> Vec<Series> {
    let mut sums: std::collections::HashMap<u64, f64> = std::collections::HashMap::new();
    let mut lines = series.to_vec();
    for (x, y) in lines.iter_mut().flat_map(|line| &mut line.points) {
        let sum = sums.entry(x.to_bits()).or_default();
        *sum += *y;
        *y = *sum;
    }
    lines
}

/// A round number that is not less.
fn round(value: f64) -> f64 {
    if value <= 0.0 || !value.is_finite() {
        return 1.0;
    }
    let step = 10_f64.powf(value.log10().floor());
    let steps = [1.0, 1.2, 1.6, 2.0, 2.4, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0];
    let mut fits = steps.iter().filter(|times| **times * step >= value * 0.999);
    fits.next().unwrap_or(&10.0) * step
}

fn last(series: Option<&Series>, unit: Unit) -> String {
    let point = series.and_then(|series| series.points.last());
    point.map_or_else(|| "-".to_owned(), |point| unit.show(point.1))
}

fn described(picture: &Picture<'_>, panels: &[Panel]) -> String {
    let panels = panels.iter().map(|panel| {
        let series = panel
            .series
            .iter()
            .map(|series| format!("{} {}", series.name, last(Some(series), panel.unit)));
        match panel.series.is_empty() {
            true => String::new(),
            false => format!(
                " {}: {}.",
                panel.title,
                series.collect::<Vec<_>>().join("; ")
            ),
        }
    });
    format!(
        "{} The last values: {}",
        picture.subtitle,
        panels.collect::<String>()
    )
}

impl Unit {
    /// A value with its unit.
    fn show(self, value: f64) -> String {
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
