//! Supernodes before and after a change, as the field's tutorials draw them: boxes filled as far as they are active.

use std::fmt::Write;

use crate::text::{shortened, xml};

const BOX: (f64, f64) = (168.0, 50.0);
const GAP: (f64, f64) = (22.0, 46.0);
const LEFT: f64 = 24.0;
const PANEL: f64 = 250.0;
const HEAD: f64 = 74.0;
/// Tokens in the list of what comes next.
const MAX_TOKENS: usize = 6;
/// Of a node's inputs among the supernodes, those below this share are not drawn.
const LEAST_SHARE: f64 = 0.01;

/// What is drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SupernodeDiagram {
    /// The prompt's text.
    pub prompt: String,
    /// What was changed, in words.
    pub changed: String,
    /// The supernodes.
    pub nodes: Vec<DiagramNode>,
    /// Edges between them, and to the prediction.
    pub edges: Vec<DiagramEdge>,
    /// The likeliest tokens with their probabilities before and after, likeliest first.
    pub tokens: Vec<(String, f64, f64)>,
}

/// A supernode.
#[derive(Clone, Debug, PartialEq)]
pub struct DiagramNode {
    /// Its name.
    pub name: String,
    /// Its activation in per cent of the original.
    pub percent: Option<f64>,
    /// More words, small.
    pub detail: String,
    /// Whether it was changed itself.
    pub is_changed: bool,
    /// Mean layer of its features.
    pub layer: f64,
    /// Mean position of its features.
    pub pos: f64,
}

/// An edge between supernodes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DiagramEdge {
    /// Index of the supernode where it starts.
    pub source: usize,
    /// Index of where it leads; one past the last supernode is the prediction.
    pub target: usize,
    /// The sign of the summed weight.
    pub is_positive: bool,
    /// Its part of the target's input, in 0..=1.
    pub share: f64,
}

/// The diagram as SVG.
pub fn supernode_svg(diagram: &SupernodeDiagram) -> String {
    let rows = rows(diagram);
    let row_width = |row: &[usize]| row.len() as f64 * BOX.0 + (row.len() as f64 - 1.0) * GAP.0;
    let shift = |at: usize| shift(at, rows.len());
    let inner = rows.iter().enumerate().map(|(at, row)| row_width(row) + 2.0 * shift(at).abs()).fold(0.0, f64::max);
    let (width, height) = (
        LEFT * 2.0 + inner + PANEL,
        (HEAD + rows.len() as f64 * (BOX.1 + GAP.1)).max(HEAD + 40.0 + 22.0 * MAX_TOKENS as f64) + 10.0,
    );
    let mut places = vec![(0.0, 0.0); diagram.nodes.len() + 1];
    for (at, row) in rows.iter().enumerate() {
        let from_top = (rows.len() - 1 - at) as f64;
        for (place, &node) in row.iter().enumerate() {
            let x = LEFT + (inner - row_width(row)) / 2.0 + shift(at) + place as f64 * (BOX.0 + GAP.0);
            places[node] = (x, HEAD + from_top * (BOX.1 + GAP.1));
        }
    }
    let mut out = String::new();
    let _ = writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} \
         {height:.0}\" font-family=\"'DejaVu Sans', Verdana, sans-serif\" font-size=\"12\">\n\
         <defs><marker id=\"to\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"9\" markerHeight=\"9\" \
         markerUnits=\"userSpaceOnUse\" orient=\"auto\"><path d=\"M0 0 L8 4 L0 8 z\" fill=\"#6d6d6d\"/></marker></defs>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>"
    );
    let chars = ((width - 2.0 * LEFT) / 7.4) as usize;
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"26\" font-size=\"13\" fill=\"#222\">{}</text>",
        xml(&shortened(&diagram.prompt, chars))
    );
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"45\" font-size=\"11\" fill=\"#b03a2e\">{}</text>",
        xml(&shortened(&diagram.changed, (chars as f64 * 1.15) as usize))
    );
    write_edges(&mut out, diagram, &places);
    for (node, &place) in diagram.nodes.iter().zip(&places) {
        write_node(&mut out, node, place);
    }
    write_prediction(&mut out, diagram, places[diagram.nodes.len()]);
    write_tokens(&mut out, diagram, LEFT + inner + 44.0);
    let _ = writeln!(
        out,
        "<text x=\"{LEFT}\" y=\"{:.0}\" font-size=\"9.5\" fill=\"#777\">filled as far as active, in % of the original; \
         red border: changed; edges: direct effects in the graph, red where negative</text>",
        height - 10.0
    );
    out.push_str("</svg>\n");
    out
}

/// Rows between the first and the last stand aside by turns, so that edges over them show.
fn shift(row: usize, n_rows: usize) -> f64 {
    match row {
        0 => 0.0,
        _ if row + 1 == n_rows => 0.0,
        _ if row % 2 == 1 => -0.64 * BOX.0,
        _ => 0.64 * BOX.0,
    }
}

/// Nodes from the lowest layer up, those of near layers in one row, left to right by position; the prediction is last.
fn rows(diagram: &SupernodeDiagram) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..diagram.nodes.len()).collect();
    let (layer, pos) = (|at: usize| diagram.nodes[at].layer, |at: usize| diagram.nodes[at].pos);
    order.sort_by(|&a, &b| layer(a).total_cmp(&layer(b)).then(pos(a).total_cmp(&pos(b))));
    let is_linked = |row: &[usize], node: usize| {
        diagram.edges.iter().any(|edge| edge.target == node && row.contains(&edge.source) && edge.share >= LEAST_SHARE)
    };
    let mut rows: Vec<Vec<usize>> = Vec::new();
    for node in order {
        // A node stands above what feeds it, and rows of more than five are broken.
        match rows.last_mut() {
            Some(row) if layer(node) - layer(row[0]) < 1.0 && !is_linked(row, node) && row.len() < 5 => row.push(node),
            _ => rows.push(vec![node]),
        }
    }
    rows.iter_mut().for_each(|row| row.sort_by(|&a, &b| pos(a).total_cmp(&pos(b)).then(a.cmp(&b))));
    rows.push(vec![diagram.nodes.len()]);
    rows
}

fn write_edges(out: &mut String, diagram: &SupernodeDiagram, places: &[(f64, f64)]) {
    let shown: Vec<&DiagramEdge> = diagram.edges.iter().filter(|edge| edge.share >= LEAST_SHARE).collect();
    // Edges of one box leave and enter side by side, in the order of where they lead.
    let port = |edge: &DiagramEdge, own: &dyn Fn(&DiagramEdge) -> usize, other: &dyn Fn(&DiagramEdge) -> usize| {
        let mut beside: Vec<&&DiagramEdge> = shown.iter().filter(|e| own(e) == own(edge)).collect();
        beside.sort_by(|a, b| places[other(a)].0.total_cmp(&places[other(b)].0).then(other(a).cmp(&other(b))));
        let at = beside.iter().position(|e| other(e) == other(edge)).unwrap_or(0);
        places[own(edge)].0 + BOX.0 * (at as f64 + 1.0) / (beside.len() as f64 + 1.0)
    };
    out.push_str("<g fill=\"none\">\n");
    for edge in &shown {
        let (x1, y1) = (port(edge, &|e| e.source, &|e| e.target), places[edge.source].1);
        let (x2, y2) = (port(edge, &|e| e.target, &|e| e.source), places[edge.target].1 + BOX.1 + 2.0);
        let bend = (y1 - y2).abs().max(30.0) / 2.0;
        let color = if edge.is_positive { "#8a8a8a" } else { "#c8452f" };
        let _ = writeln!(
            out,
            "<path d=\"M{x1:.1} {y1:.1} C{x1:.1} {:.1} {x2:.1} {:.1} {x2:.1} {y2:.1}\" stroke=\"{color}\" \
             stroke-width=\"{:.1}\" marker-end=\"url(#to)\"><title>{:.1} % of its input</title></path>",
            y1 - bend,
            y2 + bend,
            0.8 + 5.0 * edge.share.sqrt(),
            edge.share * 100.0
        );
    }
    out.push_str("</g>\n");
}

fn write_node(out: &mut String, node: &DiagramNode, (x, y): (f64, f64)) {
    let (w, h) = BOX;
    let share = node.percent.unwrap_or(0.0) / 100.0;
    // Below zero the bar is of the other colour.
    let (fill, stroke) = if share < 0.0 { ("#f3c6bd", "#b03a2e") } else { ("#f6dfa4", "#a98600") };
    let (stroke, line) = if node.is_changed { ("#b03a2e", 2.2) } else { (stroke, 1.2) };
    let bar = share.abs().min(1.0) * w;
    let _ = writeln!(
        out,
        "<g><title>{}: {}</title><rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w}\" height=\"{h}\" rx=\"6\" fill=\"#fbfaf6\"/>\
         <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{bar:.1}\" height=\"{h}\" rx=\"6\" fill=\"{fill}\"/>\
         <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w}\" height=\"{h}\" rx=\"6\" fill=\"none\" stroke=\"{stroke}\" \
         stroke-width=\"{line}\"/>",
        xml(&node.name),
        xml(&node.detail)
    );
    let percent = node.percent.map_or("new".to_owned(), |percent| format!("{:.0} %", percent + 0.0));
    let _ = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#222\">{}</text><text x=\"{:.1}\" y=\"{:.1}\" font-weight=\"bold\" \
         fill=\"#222\">{percent}</text><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"9.5\" \
         fill=\"#666\">{}</text></g>",
        x + 9.0,
        y + 19.0,
        xml(&shortened(&node.name, 22)),
        x + 9.0,
        y + 39.0,
        x + w - 8.0,
        y + 39.0,
        xml(&node.detail)
    );
}

/// The likeliest token before and after.
fn write_prediction(out: &mut String, diagram: &SupernodeDiagram, (x, y): (f64, f64)) {
    let (w, h) = BOX;
    let likeliest = |value: &dyn Fn(&(String, f64, f64)) -> f64| {
        diagram
            .tokens
            .iter()
            .max_by(|a, b| value(a).total_cmp(&value(b)))
            .map(|token| (token.0.trim().to_owned(), value(token)))
    };
    let _ = writeln!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w}\" height=\"{h}\" rx=\"6\" fill=\"#eaf1f8\" stroke=\"#5b7fae\"/>"
    );
    for (line, (name, found)) in
        [("before", likeliest(&|token| token.1)), ("after", likeliest(&|token| token.2))].into_iter().enumerate()
    {
        let Some((token, probability)) = found else { continue };
        let at = y + 19.0 + 20.0 * line as f64;
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{at:.1}\" font-size=\"10\" fill=\"#666\">{name}</text><text x=\"{:.1}\" y=\"{at:.1}\" \
             fill=\"#222\">{} {probability:.2}</text>",
            x + 9.0,
            x + 54.0,
            xml(&shortened(&token, 12))
        );
    }
}

fn write_tokens(out: &mut String, diagram: &SupernodeDiagram, x: f64) {
    let y = HEAD + 10.0;
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"11\" fill=\"#666\">next token: before (pale), after</text>"
    );
    for (at, (token, before, after)) in diagram.tokens.iter().take(MAX_TOKENS).enumerate() {
        let top = y + 14.0 + 22.0 * at as f64;
        let bar = |out: &mut String, top: f64, value: f64, color: &str| {
            let _ = writeln!(
                out,
                "<rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"6\" fill=\"{color}\"/>",
                x + 92.0,
                (value * 70.0).max(0.5)
            );
        };
        bar(out, top, *before, "#b9cbe0");
        bar(out, top + 7.0, *after, "#2f6db3");
        let _ = writeln!(
            out,
            "<text x=\"{x:.1}\" y=\"{:.1}\" fill=\"#222\" font-size=\"11\">{}</text><text x=\"{:.1}\" y=\"{:.1}\" \
             font-size=\"9.5\" fill=\"#666\">{after:.2}</text>",
            top + 10.0,
            xml(&shortened(token.trim(), 13)),
            x + 168.0,
            top + 10.0
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, layer: f64, percent: Option<f64>) -> DiagramNode {
        DiagramNode { name: name.to_owned(), percent, detail: "1 -> 2".into(), is_changed: false, layer, pos: 7.0 }
    }

    #[test]
    fn every_supernode_stands_above_what_feeds_it_and_texts_are_xml() {
        let diagram = SupernodeDiagram {
            prompt: "a < b".into(),
            changed: "Texas & co x-2".into(),
            nodes: vec![
                node("Texas", 0.0, Some(-200.0)),
                node("say <Austin>", 0.4, Some(12.0)),
                node("new", 3.0, None),
            ],
            edges: vec![
                DiagramEdge { source: 0, target: 1, is_positive: true, share: 0.5 },
                DiagramEdge { source: 1, target: 3, is_positive: false, share: 1.0 },
            ],
            tokens: vec![(" Austin".into(), 0.9, 0.1)],
        };
        assert_eq!(rows(&diagram), [vec![0], vec![1], vec![2], vec![3]]);
        let svg = supernode_svg(&diagram);
        for shown in
            ["a &lt; b", "Texas &amp; co", "say &lt;Austin&gt;", "-200 %", "12 %", ">new</text>", "Austin 0.90"]
        {
            assert!(svg.contains(shown), "{shown}: {svg}");
        }
        assert_eq!(svg.matches("<path d=\"M").count(), 3, "two edges and the arrowhead");
    }
}
