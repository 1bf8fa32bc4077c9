//! Lines through measurements, as SVG.

use anyhow::anyhow;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use serde::{Deserialize, Serialize};

const SIZE: (u32, u32) = (640, 360);
/// Told apart by people who do not see all colours (Okabe and Ito's).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// From left to right.
    pub points: Vec<(f64, f64)>,
}

/// A picture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Below it, with the unit.
    pub x_label: String,
    /// Beside it, with the unit.
    pub y_label: String,
    /// Whether equal steps to the right are equal ratios.
    pub log_x: bool,
    /// The lines.
    pub series: Vec<Series>,
}

impl Plot {
    /// An empty picture.
    pub fn new(title: &str, x_label: &str, y_label: &str) -> Self {
        Self {
            title: title.into(),
            x_label: x_label.into(),
            y_label: y_label.into(),
            log_x: false,
            series: Vec::new(),
        }
    }

    /// With equal ratios to the right.
    pub fn log_x(mut self) -> Self {
        self.log_x = true;
        self
    }

    /// With another line.
    pub fn line(mut self, name: &str, points: Vec<(f64, f64)>) -> Self {
        self.series.push(Series { name: name.into(), points });
        self
    }

    /// Whether there is anything to see.
    pub fn is_empty(&self) -> bool {
        self.series.iter().all(|series| series.points.is_empty())
    }

    /// The picture.
    ///
    /// # Errors
    /// When it has no points, or the drawing fails.
    pub fn svg(&self) -> anyhow::Result<String> {
        anyhow::ensure!(!self.is_empty(), "{:?} has no points", self.title);
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (mut left, mut right, mut top) = (f64::INFINITY, f64::NEG_INFINITY, 0.0f64);
        for (x, y) in points() {
            (left, right, top) = (left.min(*x), right.max(*x), top.max(*y));
        }
        let top = if top > 0.0 { top * 1.1 } else { 1.0 };
        let mut text = String::new();
        if self.log_x && left > 0.0 {
            let marks = marks(points().map(|(x, _)| *x).collect());
            let axis = (left / 1.1..right * 1.1).log_scale();
            self.draw(&mut text, axis.with_key_points(marks), top)?;
        } else {
            let room = ((right - left) * 0.05).max(0.5);
            let from = if left >= 0.0 { (left - room).max(0.0) } else { left - room };
            self.draw(&mut text, from..right + room, top)?;
        }
        Ok(text)
    }

    fn draw<X>(&self, text: &mut String, x: X, top: f64) -> anyhow::Result<()>
    where
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let failed = |error: &dyn std::fmt::Display| anyhow!("cannot draw {}: {error}", self.title);
        let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|error| failed(&error))?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(64)
            .build_cartesian_2d(x, 0.0..top)
            .map_err(|error| failed(&error))?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(&self.x_label)
            .y_desc(&self.y_label)
            .x_label_formatter(&|value| short(*value))
            .y_label_formatter(&|value| short(*value))
            .draw()
            .map_err(|error| failed(&error))?;
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            let line = LineSeries::new(series.points.iter().copied(), colour.stroke_width(2))
                .point_size(3);
            chart.draw_series(line).map_err(|error| failed(&error))?.label(&series.name).legend(
                move |(x, y)| Rectangle::new([(x, y - 4), (x + 12, y + 4)], colour.filled()),
            );
        }
        if self.series.len() > 1 {
            chart
                .configure_series_labels()
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .draw()
                .map_err(|error| failed(&error))?;
        }
        area.present().map_err(|error| failed(&error))
    }
}

/// Which of the measured places have a number on an axis of equal ratios: powers of ten alone would
/// often be none of them. No two so near that their numbers touch.
fn marks(mut places: Vec<f64>) -> Vec<f64> {
    const MARKS_MAX: f64 = 12.0;
    places.sort_by(f64::total_cmp);
    let ratio = |from: &f64, to: &f64| (to / from).ln();
    let apart = places.first().zip(places.last()).map_or(0.0, |(left, right)| ratio(left, right));
    let mut marks: Vec<f64> = Vec::new();
    for place in places {
        if marks.last().is_none_or(|last| ratio(last, &place) > apart / MARKS_MAX) {
            marks.push(place);
        }
    }
    marks
}

/// A number on an axis.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{}M", trimmed(value / 1e6)),
        size if size >= 1e4 => format!("{}k", trimmed(value / 1e3)),
        _ => trimmed(value),
    }
}

fn trimmed(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_holds_its_words_and_its_lines() {
        let plot = Plot::new("Rate by load", "requests at once", "tok/s")
            .log_x()
            .line("first", vec![(1.0, 10.0), (16.0, 100.0)])
            .line("second", vec![(1.0, 5.0)]);
        let svg = plot.svg().expect("drawn");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        for word in ["Rate by load", "requests at once", "tok/s", "first", "second", "<polyline"] {
            assert!(svg.contains(word), "{word}: {svg}");
        }
        // The places that were measured have their numbers.
        assert!(svg.lines().any(|line| line.trim() == "16"), "{svg}");
    }

    #[test]
    fn numbers_on_an_axis_stand_apart() {
        assert_eq!(marks(vec![512.0, 128.0, 128.0, 130.0, 2048.0]), [128.0, 512.0, 2048.0]);
        assert_eq!(marks(vec![43.7, 53.8]), [43.7, 53.8]);
    }

    #[test]
    fn one_point_and_equal_points_can_be_drawn() {
        let flat = Plot::new("t", "x", "y").line("a", vec![(5.0, 0.0), (5.0, 0.0)]);
        assert!(flat.svg().is_ok());
        assert!(Plot::new("t", "x", "y").line("a", vec![]).svg().is_err());
    }

    #[test]
    fn axis_numbers_are_short() {
        let shown: Vec<_> = [0.0, 0.25, 12.0, 1500.0, 25_000.0, 3.5e6].map(short).into();
        assert_eq!(shown, ["0", "0.25", "12", "1500", "25k", "3.5M"]);
    }
}
