//! An arrangement as SVG.

use std::fmt::Write;

use super::arrange::{Arrangement, DrawnBox, DrawnEdge, TITLE};
use super::node_text::{self, FONT_SIZE};
use super::route::BEND;
use crate::circuits::CollapsedCircuit;
use crate::graph::Circuit;
use crate::text::xml;

const POSITIVE: &str = "#2f6db3";
const NEGATIVE: &str = "#c8452f";
const MIN_EDGE_WIDTH: f64 = 0.5;
const MAX_EDGE_WIDTH: f64 = 6.0;

/// Fill and border of a kind of node.
fn colors(kind: &str) -> (&'static str, &'static str, &'static str) {
    match kind {
        "token" => ("#f4f0e6", "#9a8f74", ""),
        "target" => ("#fbe6d4", "#b8763f", ""),
        "error" => ("#f2f2f2", "#999999", " stroke-dasharray=\"3 2\""),
        "supernode" => ("#fff6cf", "#a98600", " stroke-width=\"2\""),
        _ => ("#edf3fb", "#5b7fae", ""),
    }
}

/// The picture of `collapsed`, arranged as `arrangement`. Everything has its details as a tooltip.
pub fn svg(circuit: &Circuit, collapsed: &CollapsedCircuit, arrangement: &Arrangement) -> String {
    let Arrangement { width, height, .. } = *arrangement;
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"'DejaVu Sans', Verdana, sans-serif\" \
         font-size=\"{FONT_SIZE}\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    );
    let title = node_text::wrap(&node_text::token(&circuit.meta.prompt), (width - 40.0) / 1.3, 1).concat();
    let _ = writeln!(out, "<text x=\"20\" y=\"24\" font-size=\"13\" fill=\"#222\">{}</text>", xml(&title));
    let mut note = String::new();
    let hidden = [(arrangement.n_hidden, "nodes"), (arrangement.n_hidden_edges, "edges between shown ones")];
    let hidden: Vec<String> =
        hidden.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} weaker {what}")).collect();
    if !hidden.is_empty() {
        let _ = write!(note, "not shown: {}; ", hidden.join(", "));
    }
    note.push_str("edge width: |weight|");
    let _ = writeln!(
        out,
        "<text x=\"20\" y=\"{:.0}\" font-size=\"9\" fill=\"#777\">{note}, <tspan fill=\"{POSITIVE}\">positive</tspan>, \
         <tspan fill=\"{NEGATIVE}\">negative</tspan></text>",
        TITLE + 6.0
    );
    for (name, middle) in &arrangement.rows {
        let _ = writeln!(out, "<text x=\"16\" y=\"{:.1}\" fill=\"#888\">{name}</text>", middle + 3.5);
    }
    let largest = arrangement.edges.iter().map(|edge| edge.weight.abs()).fold(0.0, f64::max);
    out.push_str("<g fill=\"none\" stroke-linecap=\"round\">\n");
    for edge in &arrangement.edges {
        write_edge(&mut out, circuit, collapsed, arrangement, edge, largest);
    }
    out.push_str("</g>\n");
    for drawn in &arrangement.boxes {
        write_box(&mut out, circuit, collapsed, drawn);
    }
    out.push_str("</svg>\n");
    out
}

fn write_edge(
    out: &mut String,
    circuit: &Circuit,
    collapsed: &CollapsedCircuit,
    arrangement: &Arrangement,
    edge: &DrawnEdge,
    largest: f64,
) {
    let (source, target) = (&arrangement.boxes[edge.source], &arrangement.boxes[edge.target]);
    // Weights span decades: the width goes with the root, the strength of the colour too.
    let part = if largest > 0.0 { (edge.weight.abs() / largest).sqrt() } else { 0.0 };
    let width = MIN_EDGE_WIDTH + (MAX_EDGE_WIDTH - MIN_EDGE_WIDTH) * part;
    let color = if edge.weight < 0.0 { NEGATIVE } else { POSITIVE };
    let mut path = String::new();
    for (at, &(x, y)) in edge.way.iter().enumerate() {
        let Some(&(before_x, before_y)) = at.checked_sub(1).and_then(|before| edge.way.get(before)) else {
            let _ = write!(path, "M{x:.1} {y:.1}");
            continue;
        };
        if before_x == x {
            let _ = write!(path, "V{y:.1}");
        } else {
            let rise = (y - before_y) * BEND;
            let _ = write!(path, "C{before_x:.1} {:.1} {x:.1} {:.1} {x:.1} {y:.1}", before_y + rise, y - rise);
        }
    }
    let name = |drawn: &DrawnBox| xml(&node_text::label(circuit, &collapsed.nodes[drawn.node]));
    let _ = writeln!(
        out,
        "<path d=\"{path}\" stroke=\"{color}\" stroke-width=\"{width:.2}\" stroke-opacity=\"{:.2}\">\
         <title>{} → {}: {:+.4} ({:.1} % of its input)</title></path>",
        0.25 + 0.5 * part,
        name(source),
        name(target),
        edge.weight,
        edge.share * 100.0,
    );
}

fn write_box(out: &mut String, circuit: &Circuit, collapsed: &CollapsedCircuit, drawn: &DrawnBox) {
    let node = &collapsed.nodes[drawn.node];
    let kind = node_text::kind(circuit, node);
    let (fill, border, extra) = colors(kind);
    let DrawnBox { x, y, width, height, .. } = *drawn;
    let _ = writeln!(
        out,
        "<g><title>{}: {}, influence {:.4}</title>",
        xml(&node_text::id(circuit, node)),
        xml(&node_text::label(circuit, node)),
        node.influence
    );
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"4\" fill=\"{fill}\" \
         stroke=\"{border}\"{extra}/>"
    );
    let line_height = (height - 8.0) / drawn.lines.len() as f64;
    for (at, line) in drawn.lines.iter().enumerate() {
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#1b1b1b\">{}</text>",
            x + width / 2.0,
            y + 4.0 + line_height * (at as f64 + 0.5) + 3.6,
            xml(line)
        );
    }
    out.push_str("</g>\n");
}
