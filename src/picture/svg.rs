//! An arrangement as SVG.

use std::collections::HashMap;
use std::fmt::Write;

use super::arrange::{
    Arrangement, BOX_PADDING, BoxKind, DrawnBox, DrawnEdge, LINE_HEIGHT, MARGIN, SMALL_HEIGHT, TITLE_LINE, TITLE_SIZE,
    edge_width,
};
use super::legend::{LEGEND_GAP, LEGEND_SIZE, Legend, Sign, largest_share};
use super::node_text::{self, FONT_SIZE, SMALL};
use super::sans;
use crate::circuits::{CollapsedCircuit, heads_between};
use crate::graph::{Circuit, EdgeHeads};
use crate::text::xml;

/// Blue and vermilion (Okabe and Ito), apart for every kind of colour blindness; negative edges are dashed as well.
const POSITIVE: [u8; 3] = [31, 111, 180];
const NEGATIVE: [u8; 3] = [213, 94, 0];
/// Share of the target's input from which an edge has its full colour.
const STRONG: f64 = 0.1;
/// Edges of this share of their target's input show the head that they go through, where it is known.
const LABELLED_SHARE: f64 = 0.1;
/// Of these labels.
const HEADS_SIZE: f64 = 7.0;
/// Places of such a label that are tried on each piece of a line.
const POINTS_OF_PIECE: usize = 12;
/// Members that a tooltip names.
const MAX_NAMED: usize = 12;

/// Fill of the most influential box of a kind, its border, and what else the border has.
fn colors(kind: BoxKind) -> ([u8; 3], &'static str, &'static str) {
    match kind {
        BoxKind::Token => ([232, 214, 168], "#9a8654", ""),
        BoxKind::Target => ([247, 196, 150], "#b06a2c", ""),
        BoxKind::Error => ([200, 200, 200], "#8a8a8a", " stroke-dasharray=\"3 2\""),
        BoxKind::Supernode => ([250, 217, 106], "#a17c00", " stroke-width=\"1.6\""),
        BoxKind::Feature => ([146, 194, 232], "#46759f", ""),
    }
}

/// The beginning of a picture of this size: white ground, the built-in font or what is like it.
pub(super) fn open(width: f64, height: f64, font_size: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"'DejaVu Sans', Verdana, sans-serif\" \
         font-size=\"{font_size}\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    )
}

/// A colour between white (0) and `full` (1).
fn tinted(full: [u8; 3], part: f64) -> String {
    let [red, green, blue] =
        full.map(|channel| (255.0 - (255.0 - f64::from(channel)) * part.clamp(0.0, 1.0)).round() as u8);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// The picture of `collapsed`, arranged as `arrangement`. Everything has its details as a tooltip.
pub fn svg(circuit: &Circuit, collapsed: &CollapsedCircuit, arrangement: &Arrangement) -> String {
    let Arrangement { width, height, .. } = *arrangement;
    let mut out = open(width, height, FONT_SIZE);
    for (at, line) in arrangement.title.iter().enumerate() {
        let y = MARGIN + TITLE_LINE * (at as f64 + 0.7);
        let _ = writeln!(
            out,
            "<text x=\"{MARGIN}\" y=\"{y:.0}\" font-size=\"{TITLE_SIZE}\" fill=\"#222\">{}</text>",
            xml(line)
        );
    }
    for (name, top, bottom) in &arrangement.rows {
        let _ = writeln!(
            out,
            "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"6\" fill=\"#f5f6f8\"/>\
             <text x=\"{MARGIN}\" y=\"{:.1}\" fill=\"#777\">{name}</text>",
            MARGIN - 6.0,
            width - 2.0 * MARGIN + 12.0,
            bottom - top,
            (top + bottom) / 2.0 + 3.5
        );
    }
    let names: Vec<String> = arrangement.boxes.iter().map(|drawn| name(circuit, collapsed, drawn)).collect();
    out.push_str("<g fill=\"none\">\n");
    let heads = heads_of_edges(circuit, collapsed, arrangement);
    let heads_of = |edge: &DrawnEdge| heads.get(&(edge.source, edge.target));
    for edge in &arrangement.edges {
        write_edge(
            &mut out,
            edge,
            [&names[edge.source], &names[edge.target]],
            &heads_of(edge).map(EdgeHeads::label).unwrap_or_default(),
        );
    }
    out.push_str("</g>\n");
    let largest = largest_share(&arrangement.boxes);
    for (drawn, name) in arrangement.boxes.iter().zip(&names) {
        write_box(&mut out, circuit, collapsed, drawn, name, largest);
    }
    let mut taken: Vec<[f64; 4]> = arrangement
        .boxes
        .iter()
        .map(|drawn| [drawn.x, drawn.y, drawn.x + drawn.width, drawn.y + drawn.height])
        .collect();
    // The strongest first: they come last in the list, and have the choice.
    for edge in arrangement.edges.iter().rev().filter(|edge| edge.share >= LABELLED_SHARE) {
        let label = heads_of(edge).map(EdgeHeads::short_label).unwrap_or_default();
        write_heads(&mut out, edge, &label, &mut taken);
    }
    write_legend(&mut out, arrangement);
    out.push_str("</svg>\n");
    out
}

/// Through which heads the edges between boxes go, where that is known.
fn heads_of_edges(
    circuit: &Circuit,
    collapsed: &CollapsedCircuit,
    arrangement: &Arrangement,
) -> HashMap<(usize, usize), EdgeHeads> {
    let mut group_of = vec![None; circuit.graph().node_count()];
    for (at, drawn) in arrangement.boxes.iter().enumerate() {
        for &member in &drawn.members {
            collapsed.nodes[member].members.iter().for_each(|node| group_of[node.index()] = Some(at));
        }
    }
    heads_between(circuit, &group_of)
}

/// What of an edge goes where, beside its line: as near to the middle as there is room. Where there is none, the tooltip
/// has it.
fn write_heads(out: &mut String, edge: &DrawnEdge, label: &str, taken: &mut Vec<[f64; 4]>) {
    if label.is_empty() {
        return;
    }
    let (width, height) = (sans::width(label, HEADS_SIZE), HEADS_SIZE);
    let points = edge.sampled(POINTS_OF_PIECE);
    let middle = points.len() / 2;
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by_key(|&at| at.abs_diff(middle));
    let space_at = |at: usize| {
        let (x, y) = (points[at].0 + edge.width() / 2.0 + 2.0, points[at].1);
        [x, y - height / 2.0, x + width, y + height / 2.0]
    };
    let is_free = |space: &[f64; 4]| {
        let apart =
            |other: &[f64; 4]| space[2] < other[0] || other[2] < space[0] || space[3] < other[1] || other[3] < space[1];
        taken.iter().all(apart)
    };
    let Some(space) = order.into_iter().map(space_at).find(is_free) else { return };
    taken.push(space);
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"{HEADS_SIZE}\" fill=\"#333\" stroke=\"#fff\" stroke-width=\"2.4\" \
         paint-order=\"stroke\">{}</text>",
        space[0],
        space[3] - 0.2 * height,
        xml(label)
    );
}

/// What tooltips call a box.
fn name(circuit: &Circuit, collapsed: &CollapsedCircuit, drawn: &DrawnBox) -> String {
    xml(&node_text::of_box(circuit, collapsed, drawn.kind, &drawn.members, None).label)
}

/// Length of an arrowhead for a line of this width, and half of how wide it is.
fn arrow(width: f64) -> (f64, f64) {
    (4.0 + width, 1.6 + 0.75 * width)
}

/// Colour of an edge: weak ones are paler, so that the eye finds the others first.
fn edge_color(is_negative: bool, share: f64) -> String {
    tinted(if is_negative { NEGATIVE } else { POSITIVE }, 0.45 + share * (0.55 / STRONG))
}

/// What makes a line of this width negative besides its colour.
fn dashes(width: f64) -> String {
    format!(" stroke-dasharray=\"{:.1} {:.1}\"", 4.0 + width, 2.0 + 0.5 * width)
}

fn write_edge(out: &mut String, edge: &DrawnEdge, [source, target]: [&str; 2], heads: &str) {
    let (width, color) = (edge.width(), edge_color(edge.weight < 0.0, edge.share));
    let Some((&[first, ..], &[.., tip])) = edge.curve.first().zip(edge.curve.last()) else { return };
    // Edges arrive upright. The line ends within its arrowhead, or it would show beside the point.
    let (length, half) = arrow(width);
    let before = edge.curve.last().map_or(tip, |piece| piece[2]);
    let back = if before.1 > tip.1 { length } else { -length };
    let mut path = format!("M{:.1} {:.1}", first.0, first.1);
    for (at, piece) in edge.curve.iter().enumerate() {
        let [_, a, b, mut end] = *piece;
        if at + 1 == edge.curve.len() {
            end.1 += 0.7 * back;
        }
        if piece.iter().all(|point| point.0 == end.0) {
            let _ = write!(path, "V{:.1}", end.1);
        } else {
            let _ = write!(path, "C{:.1} {:.1} {:.1} {:.1} {:.1} {:.1}", a.0, a.1, b.0, b.1, end.0, end.1);
        }
    }
    let dash = if edge.weight < 0.0 { dashes(width) } else { String::new() };
    let (x, y) = tip;
    let heads = if heads.is_empty() { String::new() } else { format!("; {}", xml(heads)) };
    // A white border tells edges apart where they cross.
    let _ = writeln!(
        out,
        "<path d=\"{path}\" stroke=\"#fff\" stroke-width=\"{:.2}\"/>\
         <g><title>{source} → {target}: {:+.4} ({} of its input{heads})</title>\
         <path d=\"{path}\" stroke=\"{color}\" stroke-width=\"{width:.2}\"{dash}/>\
         <path d=\"M{x:.1} {y:.1}L{:.1} {base:.1}L{:.1} {base:.1}Z\" fill=\"{color}\"/></g>",
        width + 2.0,
        edge.weight,
        xml(&node_text::percent(edge.share)),
        x - half,
        x + half,
        base = y + back,
    );
}

fn write_box(
    out: &mut String,
    circuit: &Circuit,
    collapsed: &CollapsedCircuit,
    drawn: &DrawnBox,
    name: &str,
    largest: f64,
) {
    let (full, border, extra) = colors(drawn.kind);
    let share = drawn.share.unwrap_or(0.0);
    // Shares span decades: the fill goes with the root. Tokens have the scale of a whole, targets their probability.
    let part = match drawn.kind {
        BoxKind::Token | BoxKind::Target => share.sqrt(),
        _ if largest > 0.0 => (share / largest).sqrt(),
        _ => 0.0,
    };
    let fill = tinted(full, 0.1 + 0.9 * part);
    let DrawnBox { x, y, width, height, .. } = *drawn;
    let named: Vec<String> = drawn
        .members
        .iter()
        .take(MAX_NAMED)
        .map(|&member| {
            let node = &collapsed.nodes[member];
            format!("{} {:.4}", xml(&node_text::id(circuit, node)), node.influence)
        })
        .collect();
    let more = drawn.members.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let _ = writeln!(out, "<g><title>{name}; influence: {}{more}</title>", named.join(", "));
    if drawn.n_nodes > 1 {
        // The next sheet of the stack.
        let _ = writeln!(
            out,
            "<path d=\"M{:.1} {:.1}v-3h{:.1}v{:.1}h-3\" fill=\"{fill}\" stroke=\"{border}\"{extra}/>",
            x + 3.0,
            y,
            width,
            height
        );
    }
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"3\" fill=\"{fill}\" \
         stroke=\"{border}\"{extra}/>"
    );
    let middle = x + width / 2.0;
    for (at, line) in drawn.lines.iter().enumerate() {
        let baseline = y + BOX_PADDING + LINE_HEIGHT * at as f64 + 9.8;
        let _ = writeln!(
            out,
            "<text x=\"{middle:.1}\" y=\"{baseline:.1}\" text-anchor=\"middle\" fill=\"#111\">{}</text>",
            xml(line)
        );
    }
    if !drawn.small_print.is_empty() {
        let baseline = y + height - BOX_PADDING - SMALL_HEIGHT + 7.6;
        let _ = writeln!(
            out,
            "<text x=\"{middle:.1}\" y=\"{baseline:.1}\" text-anchor=\"middle\" font-size=\"{SMALL}\" \
             fill=\"#555\">{}</text>",
            xml(&drawn.small_print)
        );
    }
    out.push_str("</g>\n");
}

fn write_legend(out: &mut String, arrangement: &Arrangement) {
    let Legend { signs, notes, .. } = &arrangement.legend;
    for (sign, x, y, text) in signs {
        let y = y + arrangement.legend_top;
        let _ = writeln!(
            out,
            "{}<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"{LEGEND_SIZE}\" fill=\"#444\">{}</text>",
            sign_svg(*sign, *x, y),
            x + sign.width() + LEGEND_GAP,
            y + 3.0,
            xml(text)
        );
    }
    for (line, y) in notes {
        let _ = writeln!(
            out,
            "<text x=\"{MARGIN}\" y=\"{:.1}\" font-size=\"{LEGEND_SIZE}\" fill=\"#777\">{}</text>",
            y + arrangement.legend_top + 3.0,
            xml(line)
        );
    }
}

/// A sign of the legend around the height `y`.
fn sign_svg(sign: Sign, x: f64, y: f64) -> String {
    match sign {
        Sign::Edge { share, is_negative } => {
            let width = edge_width(share);
            let (length, half) = arrow(width);
            let (tip, color) = (x + sign.width(), edge_color(is_negative, share));
            let end = tip - length;
            format!(
                "<path d=\"M{x:.1} {y:.1}H{end:.1}\" stroke=\"{color}\" stroke-width=\"{width:.2}\"{}/>\
                 <path d=\"M{tip:.1} {y:.1}L{end:.1} {:.1}L{end:.1} {:.1}Z\" fill=\"{color}\"/>",
                if is_negative { dashes(width) } else { String::new() },
                y - half,
                y + half
            )
        }
        Sign::Box { kind, part, is_stack } => {
            let (full, border, extra) = colors(kind);
            let (fill, top) = (tinted(full, part), y - 4.5);
            let sheet =
                format!("<path d=\"M{:.1} {top:.1}v-2h16v9h-2\" fill=\"{fill}\" stroke=\"{border}\"/>", x + 2.0);
            let sheet = if is_stack { sheet } else { String::new() };
            format!(
                "{sheet}<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"16\" height=\"9\" rx=\"2\" fill=\"{fill}\" \
                 stroke=\"{border}\"{extra}/>"
            )
        }
    }
}
