//! Sweeps of interventions: a small line plot and a table.

use std::fmt::Write;

use crate::intervene::SweepResult;
use crate::text::{Cells, csv_cell, quoted, xml};

const WIDTH: f64 = 480.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 32.0;
const BOTTOM: f64 = 44.0;
/// Labels below the axis, at most.
const MAX_LABELS: usize = 9;

/// The target's probability over the values of a sweep, or over the alternatives of a plan in their order.
pub fn sweep_svg(result: &SweepResult) -> String {
    let points = &result.points;
    let is_sweep = points.iter().all(|p| p.value.is_some());
    let value_of = |i: usize| points[i].value.filter(|_| is_sweep).map_or(i as f64, f64::from);
    let n = points.len();
    let (first, last) = if n == 0 { (0.0, 1.0) } else { (value_of(0), value_of(n - 1)) };
    let span = if last > first { last - first } else { 1.0 };
    let x = |value: f64| LEFT + (value - first) / span * (WIDTH - LEFT - RIGHT);
    let y = |probability: f64| TOP + (1.0 - probability) * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = format!("probability of {}", quoted(&result.target));
    let _ = writeln!(svg, "<text x=\"{LEFT}\" y=\"18\" font-size=\"13\">{}</text>", xml(&title));
    for tick in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let at = y(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    let original = y(result.original_probability);
    let _ = writeln!(
        svg,
        "<line x1=\"{LEFT}\" y1=\"{original:.1}\" x2=\"{:.1}\" y2=\"{original:.1}\" stroke=\"#999\" \
         stroke-dasharray=\"4 3\"/>",
        WIDTH - RIGHT
    );
    let every = n.div_ceil(MAX_LABELS).max(1);
    for (i, point) in points.iter().enumerate().step_by(every) {
        let text = point.value.filter(|_| is_sweep).map_or_else(|| point.name.clone(), |v| v.to_string());
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
            x(value_of(i)),
            HEIGHT - BOTTOM + 16.0,
            xml(&text)
        );
    }
    let axis = match points.first() {
        Some(point) if is_sweep => point.name.split('=').next().unwrap_or_default(),
        _ => "alternative",
    };
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0,
        xml(axis)
    );
    let at: Vec<(f64, f64)> = (0..n).map(|i| (x(value_of(i)), y(points[i].target_probability))).collect();
    let line: Vec<String> = at.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
    let _ =
        writeln!(svg, "<polyline points=\"{}\" fill=\"none\" stroke=\"#1f77b4\" stroke-width=\"2\"/>", line.join(" "));
    for (x, y) in at {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"#1f77b4\"/>");
    }
    svg.push_str("</svg>\n");
    svg
}

/// Alternatives as CSV with a header (RFC 4180); what else was followed in columns of its own, at the end.
pub fn sweep_csv(result: &SweepResult, cells: Cells) -> String {
    let mut text = String::from(
        "name,value,target,target_probability,target_rank,target_logit,kl_divergence,top_token,top_probability",
    );
    result.followed.iter().for_each(|(label, _)| text.extend([",", &csv_cell(label, cells)]));
    text.push('\n');
    for point in &result.points {
        let value = point.value.map(|v| v.to_string()).unwrap_or_default();
        let _ = write!(
            text,
            "{},{value},{},{},{},{},{},{},{}",
            csv_cell(&point.name, cells),
            csv_cell(&result.target, cells),
            point.target_probability,
            point.target_rank,
            point.target_logit,
            point.kl_divergence,
            csv_cell(&point.top_token, cells),
            point.top_probability,
        );
        point.followed.iter().for_each(|value| {
            let _ = write!(text, ",{value}");
        });
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intervene::SweepPoint;

    #[test]
    fn every_alternative_is_a_dot_and_texts_are_xml() {
        let point = |value: f32| SweepPoint {
            followed: vec![0.5],
            name: format!("0_1_2={value}"),
            value: Some(value),
            target_probability: 0.5,
            target_logit: 1.0,
            target_rank: 1,
            kl_divergence: 0.0,
            top_token: "a".into(),
            top_probability: 0.5,
        };
        let points = vec![point(-1.0), point(0.0), point(1.0)];
        let result = SweepResult {
            target_id: 0,
            target: "<&".into(),
            original_probability: 1.0,
            followed: vec![("\"a\" - \"b\"".into(), 1.0)],
            points,
        };
        let svg = sweep_svg(&result);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("&lt;&amp;") && !svg.contains("<&"));
        let hostile = SweepResult { target: "\u{1b}\u{202e}=1+1".into(), ..result.clone() };
        assert!(!sweep_svg(&hostile).contains(['\u{1b}', '\u{202e}']));
        assert!(
            sweep_csv(&hostile, Cells::Spreadsheet)
                .lines()
                .nth(1)
                .unwrap()
                .starts_with("0_1_2=-1,-1,\u{fffd}\u{fffd}=1+1,0.5,")
        );
        assert!(!sweep_svg(&SweepResult { points: Vec::new(), ..result }).contains("NaN"));
    }
}
