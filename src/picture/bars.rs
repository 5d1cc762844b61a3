//! Figures of layers, or of whatever else is counted, as bars.

use std::fmt::Write;

use super::{node_text, sans};
use crate::text::xml;

/// One value a bar, none of them negative.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BarChart {
    /// What is shown, above the bars.
    pub title: String,
    /// What the labels count, below them.
    pub axis: String,
    /// `[n_bars]`
    pub labels: Vec<String>,
    /// `[n_bars]`
    pub values: Vec<f64>,
    /// How the values are spread: a line from the first number to the second. `[n_bars]`, or empty.
    pub ranges: Vec<[f64; 2]>,
}

/// Lengths are pixels of the SVG.
const FONT_SIZE: f64 = 10.0;
const TITLE_SIZE: f64 = 13.0;
const MARGIN: f64 = 16.0;
const TITLE: f64 = 24.0;
const PLOT_HEIGHT: f64 = 150.0;
const BELOW: f64 = 44.0;
const TICKS: f64 = 44.0;
/// Width of all bars that the width of one is chosen for.
const WANTED_WIDTH: f64 = 560.0;
const BAR_WIDTHS: [f64; 2] = [4.0, 64.0];

/// The charts, one above the other.
pub fn bar_charts(charts: &[BarChart]) -> String {
    let step_of =
        |chart: &BarChart| (WANTED_WIDTH / chart.values.len().max(1) as f64).clamp(BAR_WIDTHS[0], BAR_WIDTHS[1]);
    let width_of = |chart: &BarChart| {
        let bars = TICKS + step_of(chart) * chart.values.len() as f64;
        bars.max(sans::width(&node_text::token(&chart.title), TITLE_SIZE))
    };
    let width = 2.0 * MARGIN + charts.iter().map(width_of).fold(0.0, f64::max);
    let chart_height = TITLE + PLOT_HEIGHT + BELOW;
    let mut svg = super::svg::open(width, 2.0 * MARGIN + chart_height * charts.len() as f64, FONT_SIZE);
    for (at, chart) in charts.iter().enumerate() {
        write_chart(&mut svg, chart, MARGIN + chart_height * at as f64, step_of(chart));
    }
    svg.push_str("</svg>\n");
    svg
}

fn write_chart(svg: &mut String, chart: &BarChart, top: f64, step: f64) {
    let ends = chart.values.iter().chain(chart.ranges.iter().flatten()).copied();
    let largest = ends.filter(|value| value.is_finite()).fold(0.0, f64::max);
    let tick = tick_of(largest);
    let n_ticks = (largest / tick).ceil().max(1.0) as usize;
    let plot_top = top + TITLE;
    let (left, bottom) = (MARGIN + TICKS, plot_top + PLOT_HEIGHT);
    let right = left + step * chart.values.len() as f64;
    let y = |value: f64| {
        let part = value / (tick * n_ticks as f64);
        bottom - part.clamp(0.0, 1.0) * PLOT_HEIGHT
    };
    let title = xml(&node_text::token(&chart.title));
    let _ = writeln!(
        svg,
        "<text x=\"{MARGIN}\" y=\"{:.1}\" font-size=\"{TITLE_SIZE}\" fill=\"#222\">{title}</text>",
        top + TITLE_SIZE
    );
    let digits = if tick >= 1.0 { 0 } else { (-tick.log10()).ceil() as usize };
    for value in (0..=n_ticks).map(|i| i as f64 * tick) {
        let _ = writeln!(
            svg,
            "<line x1=\"{left:.1}\" y1=\"{0:.1}\" x2=\"{right:.1}\" y2=\"{0:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{1:.1}\" y=\"{2:.1}\" text-anchor=\"end\" fill=\"#444\">{value:.digits$}</text>",
            y(value),
            left - 6.0,
            y(value) + 3.5
        );
    }
    let widest = chart.labels.iter().map(|label| sans::width(label, FONT_SIZE)).fold(0.0, f64::max);
    let every = ((widest + 4.0) / step).ceil().max(1.0) as usize;
    for (i, (&value, label)) in chart.values.iter().zip(&chart.labels).enumerate() {
        let (x, middle) = (left + step * i as f64, left + step * (i as f64 + 0.5));
        let _ = writeln!(
            svg,
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"#92c2e8\">\
             <title>{} {}: {value:.4}</title></rect>",
            x + step * 0.12,
            y(value),
            step * 0.76,
            bottom - y(value),
            xml(&node_text::token(&chart.axis)),
            xml(&node_text::token(label)),
        );
        if let Some([low, high]) = chart.ranges.get(i) {
            let _ = writeln!(
                svg,
                "<line x1=\"{middle:.1}\" y1=\"{:.1}\" x2=\"{middle:.1}\" y2=\"{:.1}\" stroke=\"#46759f\" \
                 stroke-width=\"1.5\"/>",
                y(*low),
                y(*high)
            );
        }
        if i % every == 0 {
            let _ = writeln!(
                svg,
                "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{}</text>",
                bottom + 14.0,
                xml(&node_text::token(label))
            );
        }
    }
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#444\">{}</text>",
        (left + right) / 2.0,
        bottom + 28.0,
        xml(&node_text::token(&chart.axis))
    );
}

/// The distance of ticks, 1, 2 or 5 times a power of ten: four to eight of them reach the largest value.
fn tick_of(largest: f64) -> f64 {
    if largest <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf((largest / 4.0).log10().floor());
    let times = largest / 4.0 / power;
    power
        * if times >= 5.0 {
            5.0
        } else if times >= 2.0 {
            2.0
        } else {
            1.0
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_is_a_bar_and_ticks_reach_the_largest() {
        for (largest, expected) in [(1.0, 0.2), (0.52, 0.1), (40.0, 10.0), (7.9, 1.0), (0.0, 1.0)] {
            let tick = tick_of(largest);
            assert!((tick - expected).abs() < 1e-12, "{largest}: {tick}");
        }
        let chart = BarChart {
            title: "<&\u{1b}".into(),
            axis: "layer".into(),
            labels: (0..30).map(|i| i.to_string()).collect(),
            values: (0..30).map(f64::from).collect(),
            ranges: vec![[1.0, 2.0]; 30],
        };
        let svg = bar_charts(&[chart.clone(), BarChart { ranges: Vec::new(), ..chart }]);
        assert_eq!(svg.matches("<title>").count(), 60);
        assert_eq!(svg.matches("stroke-width=\"1.5\"").count(), 30);
        assert!(svg.contains("&lt;&amp;") && !svg.contains("<&") && !svg.contains('\u{1b}'));
        assert!(!bar_charts(&[BarChart::default()]).contains("NaN"));
    }
}
