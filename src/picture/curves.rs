//! How training went, as curves.

use std::fmt::Write;

use crate::text;
use crate::train::{LogLine, SetLog};

const WIDTH: f64 = 720.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 150.0;
const PANEL: f64 = 150.0;
const GAP: f64 = 34.0;
const TOP: f64 = 34.0;

/// Blue, vermilion, green, purple, orange, sky: told apart by colour-blind readers too (Okabe and Ito).
const COLORS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// A quantity of a set in a line of the log.
type Quantity = fn(&SetLog) -> f64;

/// Unexplained variance, active and dead features over the tokens that were used, a curve a set, as SVG.
pub fn training_svg(title: &str, lines: &[LogLine]) -> String {
    let panels: [(&str, Quantity); 3] = [
        ("variance unexplained", |set| set.fvu),
        ("active features a token", |set| set.l0),
        ("dead features, share", |set| set.dead),
    ];
    let height = TOP + panels.len() as f64 * (PANEL + GAP) + 14.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"18\" font-size=\"13\" font-weight=\"600\">{}</text>\n",
        text::xml(title)
    );
    let last = lines.iter().map(|line| line.tokens).max().unwrap_or(0).max(1) as f64;
    let x = |tokens: u64| LEFT + tokens as f64 / last * (WIDTH - LEFT - RIGHT);
    for (at, (name, of)) in panels.into_iter().enumerate() {
        let top = TOP + at as f64 * (PANEL + GAP);
        let values = lines.iter().flat_map(|line| line.sets.iter().map(of)).filter(|value| value.is_finite());
        let most = rounded_up(values.fold(0.0, f64::max));
        let y = |value: f64| top + PANEL - (value / most).clamp(0.0, 1.0) * PANEL;
        let right = WIDTH - RIGHT;
        for part in [0.0, 0.5, 1.0] {
            let (value, at) = (part * most, y(part * most));
            let _ = writeln!(
                svg,
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
                 <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{value}</text>",
                LEFT - 6.0,
                at + 4.0
            );
        }
        let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"#222\">{name}</text>", top - 6.0);
        for set in 0..lines.iter().map(|line| line.sets.len()).max().unwrap_or(0) {
            let color = COLORS[set % COLORS.len()];
            let points = lines.iter().filter_map(|line| Some((line.tokens, of(line.sets.get(set)?))));
            let points: Vec<(u64, f64)> = points.filter(|(_, value)| value.is_finite()).collect();
            let path: Vec<String> = points.iter().map(|&(t, v)| format!("{:.1},{:.1}", x(t), y(v))).collect();
            let _ = writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{color}\" stroke-width=\"1.6\" points=\"{}\"/>",
                path.join(" ")
            );
            if let (Some(&(_, value)), Some(line)) = (points.last(), lines.last()) {
                let n_features = line.sets.get(set).map_or(0, |set| set.n_features);
                let _ = writeln!(
                    svg,
                    "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{color}\">{} ({n_features} features)</text>",
                    right + 8.0,
                    y(value) + 4.0 + 13.0 * set as f64,
                    three_digits(value)
                );
            }
        }
        if at + 1 == panels.len() {
            let _ = writeln!(
                svg,
                "<text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#555\">{} tokens of the text</text>",
                top + PANEL + 16.0,
                last as u64
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// The next of 1, 2, 5 times a power of ten.
fn rounded_up(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * power).find(|&step| step >= value).unwrap_or(value)
}

fn three_digits(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}
