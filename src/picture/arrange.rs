//! Where everything goes in a picture: positions are columns, layers are rows, and no two boxes meet.

use std::collections::{BTreeMap, BTreeSet};

use super::node_text;
use super::route::{Band, Point, point_at, route};
use crate::circuits::{CollapsedCircuit, CollapsedNode};
use crate::graph::{Circuit, NodeId};

const MAX_BOX_WIDTH: f64 = 116.0;
/// Shorter texts get this much, so that there is something to point at.
const MIN_BOX_WIDTH: f64 = 44.0;
const LINE_HEIGHT: f64 = 13.0;
const BOX_PADDING: f64 = 5.0;
/// Between boxes of one layer and position; edges pass through it.
const GAP: f64 = 12.0;
/// Between lines of boxes of one layer, where edges bend.
const LINE_GAP: f64 = 18.0;
/// Height of the arc between boxes of one line.
const ARC: f64 = 14.0;
/// Between layers, where the edges run: the smallest and the largest; in between, wide pictures get more, so that edges
/// over many positions do not lie flat.
const LAYER_GAPS: [f64; 2] = [40.0, 96.0];
/// Height of a picture as a part of its width that the gaps between layers try to reach.
const ASPECT: f64 = 0.5;
const COLUMN_GAP: f64 = 26.0;
const MARGIN: f64 = 22.0;
/// Room for the layers' names on the left.
const LAYER_NAMES: f64 = 46.0;
/// Room for the title above.
pub(super) const TITLE: f64 = 34.0;
/// The title needs some room in whatever picture.
const MIN_WIDTH: f64 = 420.0;
const MAX_LINES: usize = 2;
/// Passes that put boxes of a cell into the order of what they are connected with.
const ORDER_PASSES: usize = 6;

/// How much a picture shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureSettings {
    /// Features, errors and supernodes: the strongest. Tokens and targets come on top.
    pub max_nodes: usize,
    /// Of every node's inputs, the strongest that make up this share,
    pub edge_share: f64,
    /// but no more than so many. A node's strongest output is always drawn.
    pub max_inputs: usize,
    /// Pixels of a PNG for one of the SVG.
    pub scale: f64,
}

impl Default for PictureSettings {
    fn default() -> PictureSettings {
        PictureSettings { max_nodes: 60, edge_share: 0.8, max_inputs: 4, scale: 2.0 }
    }
}

/// A node where it is drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnBox {
    /// Index in the collapsed circuit.
    pub node: usize,
    /// Left, upper edge.
    pub x: f64,
    /// As `x`, from the top.
    pub y: f64,
    /// In pixels of the SVG.
    pub width: f64,
    /// In pixels of the SVG.
    pub height: f64,
    /// Text, one entry a line.
    pub lines: Vec<String>,
}

/// An edge where it is drawn, its ends as indices into the boxes.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnEdge {
    /// Where the edge starts.
    pub source: usize,
    /// Where it leads.
    pub target: usize,
    /// Sum of the direct effects.
    pub weight: f64,
    /// `|weight|` as a part of all input of the target, in 0..=1.
    pub share: f64,
    /// From the border of the one box to that of the other, past all others: [`DrawnEdge::sampled`] has the curve.
    pub way: Vec<Point>,
}

impl DrawnEdge {
    /// `n` points a piece of the curve that is drawn, both ends included.
    pub fn sampled(&self, n: usize) -> Vec<Point> {
        let pieces = self.way.windows(2);
        let points = pieces.flat_map(|ends| (0..=n).map(|at| point_at(ends[0], ends[1], at as f64 / n as f64)));
        points.collect()
    }
}

/// A picture without colours.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrangement {
    /// In pixels of the SVG.
    pub width: f64,
    /// In pixels of the SVG.
    pub height: f64,
    /// Nodes.
    pub boxes: Vec<DrawnBox>,
    /// Weakest first: the strong ones are drawn over them.
    pub edges: Vec<DrawnEdge>,
    /// Names of the rows and the middle of each.
    pub rows: Vec<(String, f64)>,
    /// Features, errors and supernodes that are not shown.
    pub n_hidden: usize,
    /// Edges between shown boxes that are not shown.
    pub n_hidden_edges: usize,
}

/// The row of a node, from below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Tokens,
    Layer(u32),
    Targets,
}

/// Places the nodes of `collapsed`.
///
/// # Cost
/// O(nodes · log nodes + edges · log edges), and for every drawn edge the square of the lines of boxes that it crosses.
pub fn arrange(circuit: &Circuit, collapsed: &CollapsedCircuit, settings: &PictureSettings) -> Arrangement {
    let (shown, n_hidden) = shown_nodes(circuit, collapsed, settings.max_nodes);
    let mut drawn = vec![usize::MAX; collapsed.nodes.len()];
    shown.iter().enumerate().for_each(|(at, &node)| drawn[node] = at);
    let (mut edges, n_hidden_edges) = shown_edges(collapsed, &drawn, settings);

    let mut cells: BTreeMap<(Row, u32), Vec<usize>> = BTreeMap::new();
    for (at, &node) in shown.iter().enumerate() {
        cells.entry(cell_of(circuit, &collapsed.nodes[node])).or_default().push(at);
    }
    let mut boxes: Vec<DrawnBox> = shown
        .iter()
        .map(|&node| {
            let mut lines = node_text::wrap(
                &node_text::label(circuit, &collapsed.nodes[node]),
                MAX_BOX_WIDTH - 2.0 * BOX_PADDING,
                MAX_LINES,
            );
            if lines.is_empty() {
                lines.push(String::new());
            }
            let height = lines.len() as f64 * LINE_HEIGHT + 2.0 * BOX_PADDING;
            let widest = lines.iter().map(|line| node_text::width(line)).fold(0.0, f64::max);
            let width = (widest + 2.0 * BOX_PADDING).clamp(MIN_BOX_WIDTH, MAX_BOX_WIDTH);
            DrawnBox { node, x: 0.0, y: 0.0, width, height, lines }
        })
        .collect();
    // Positions have their columns, wide enough for their widest cell in whatever order.
    let mut column_width: BTreeMap<u32, f64> = BTreeMap::new();
    for ((row, pos), members) in &cells {
        let mut widths: Vec<f64> = members.iter().map(|&at| boxes[at].width).collect();
        widths.sort_by(|a, b| b.total_cmp(a));
        let widest: f64 = widths.iter().take(per_line(*row, members.len())).map(|width| width + GAP).sum::<f64>() - GAP;
        let width = column_width.entry(*pos).or_default();
        *width = width.max(widest);
    }
    let mut column_x: BTreeMap<u32, (f64, f64)> = BTreeMap::new();
    let mut x = MARGIN + LAYER_NAMES;
    for (&pos, &width) in &column_width {
        column_x.insert(pos, (x, width));
        x += width + COLUMN_GAP;
    }
    let width = (x - COLUMN_GAP + MARGIN).max(MIN_WIDTH);

    for _ in 0..ORDER_PASSES {
        for ((row, pos), members) in &mut cells {
            place_in_columns(&mut boxes, members, per_line(*row, members.len()), column_x[pos]);
        }
        let mean = means_of_neighbors(&boxes, &edges);
        // Targets stay as they are: the likeliest first.
        for (_, members) in cells.iter_mut().filter(|((row, _), _)| *row != Row::Targets) {
            members.sort_by(|&a, &b| mean[a].total_cmp(&mean[b]).then(a.cmp(&b)));
        }
    }
    // Rows from above, each of as many lines as its fullest cell has.
    let used: BTreeSet<Row> = cells.keys().map(|(row, _)| *row).collect();
    let mut y = MARGIN + TITLE;
    let mut rows: Vec<(String, f64)> = Vec::new();
    // Members, top and height of every line; the row that it is in.
    let mut lines: Vec<(Vec<usize>, f64, f64, usize)> = Vec::new();
    for (row_at, &row) in used.iter().rev().enumerate() {
        let in_row: Vec<(u32, &Vec<usize>)> =
            cells.iter().filter(|((r, _), _)| *r == row).map(|((_, pos), members)| (*pos, members)).collect();
        let lines_of = |members: &[usize]| members.len().div_ceil(per_line(row, members.len()));
        let n_lines = in_row.iter().map(|(_, members)| lines_of(members)).max().unwrap_or(0);
        let mut in_lines: Vec<Vec<usize>> = vec![Vec::new(); n_lines];
        for (pos, members) in &in_row {
            let per_line = per_line(row, members.len());
            place_in_columns(&mut boxes, members, per_line, column_x[pos]);
            let first = (n_lines - lines_of(members)) / 2;
            for (at, line) in members.chunks(per_line).enumerate() {
                in_lines[first + at].extend_from_slice(line);
            }
        }
        let top = y;
        for (at, members) in in_lines.into_iter().enumerate() {
            y += if at > 0 { LINE_GAP } else { 0.0 };
            let height = members.iter().map(|&member| boxes[member].height).fold(0.0, f64::max);
            lines.push((members, y, height, row_at));
            y += height;
        }
        let name = match row {
            Row::Tokens => "tokens".to_owned(),
            Row::Layer(layer) => format!("L{layer}"),
            Row::Targets => "logits".to_owned(),
        };
        rows.push((name, (top + y) / 2.0));
    }
    // What the rows leave of the wanted height goes between them.
    let n_gaps = rows.len().saturating_sub(1) as f64;
    let layer_gap = ((ASPECT * width - y) / n_gaps.max(1.0)).clamp(LAYER_GAPS[0], LAYER_GAPS[1]);
    rows.iter_mut().enumerate().for_each(|(at, row)| row.1 += at as f64 * layer_gap);
    let mut bands: Vec<Band> = Vec::with_capacity(lines.len());
    let mut band_of = vec![0usize; boxes.len()];
    for (mut members, top, line_height, row_at) in lines {
        let top = top + row_at as f64 * layer_gap;
        members.sort_by(|&a, &b| boxes[a].x.total_cmp(&boxes[b].x));
        for &member in &members {
            boxes[member].y = top + (line_height - boxes[member].height) / 2.0;
            band_of[member] = bands.len();
        }
        let taken = members.iter().map(|&member| (boxes[member].x, boxes[member].x + boxes[member].width)).collect();
        bands.push(Band { top, bottom: top + line_height, taken });
    }
    for edge in &mut edges {
        edge.way = way_of(&boxes, &bands, &band_of, edge.source, edge.target);
    }
    let height = (y + n_gaps * layer_gap).max(MARGIN + TITLE) + MARGIN;
    Arrangement { width, height, boxes, edges, rows, n_hidden, n_hidden_edges }
}

/// The way of an edge, from a box to one that is most often higher up. A supernode can stand above what it feeds.
fn way_of(boxes: &[DrawnBox], bands: &[Band], band_of: &[usize], source: usize, target: usize) -> Vec<Point> {
    let middle = |at: usize| boxes[at].x + boxes[at].width / 2.0;
    let (x1, x2) = (middle(source), middle(target));
    let (from, to) = (band_of[source], band_of[target]);
    let (above, below) = (|at: usize| boxes[at].y, |at: usize| boxes[at].y + boxes[at].height);
    // Bands are listed from above.
    let (start, end) = match to.cmp(&from) {
        std::cmp::Ordering::Less => ((x1, above(source)), (x2, below(target))),
        std::cmp::Ordering::Greater => ((x1, below(source)), (x2, above(target))),
        std::cmp::Ordering::Equal => {
            // An arc over the line.
            let top = bands[from].top;
            let summit = ((x1 + x2) / 2.0, top - ARC);
            return vec![(x1, above(source)), (x1, top), summit, (x2, top), (x2, above(target))];
        }
    };
    // Boxes may be lower than their line: what is beside them is passed upright.
    let (leave, arrive, between): (f64, f64, Vec<&Band>) = if to < from {
        (bands[from].top, bands[to].bottom, bands[to + 1..from].iter().rev().collect())
    } else {
        (bands[from].bottom, bands[to].top, bands[from + 1..to].iter().collect())
    };
    let mut way = vec![start, (x1, leave)];
    route((x1, leave), (x2, arrive), &between, &mut way);
    way.push(end);
    way.dedup();
    way
}

/// Boxes side by side in one cell: as square as labels allow.
fn per_line(row: Row, count: usize) -> usize {
    match count {
        0..=1 => 1,
        _ if row == Row::Targets => count.min(5),
        2..=6 => 2,
        7..=15 => 3,
        _ => 4,
    }
}

fn place_in_columns(boxes: &mut [DrawnBox], members: &[usize], per_line: usize, (x, width): (f64, f64)) {
    for line in members.chunks(per_line) {
        let line_width = line.iter().map(|&member| boxes[member].width + GAP).sum::<f64>() - GAP;
        let mut next = x + (width - line_width) / 2.0;
        for &member in line {
            boxes[member].x = next;
            next += boxes[member].width + GAP;
        }
    }
}

/// Mean of the middles of everything that a box is connected with, weighted by share; its own where there is nothing.
fn means_of_neighbors(boxes: &[DrawnBox], edges: &[DrawnEdge]) -> Vec<f64> {
    let middle = |at: usize| boxes[at].x + boxes[at].width / 2.0;
    let mut sums = vec![(0.0, 0.0); boxes.len()];
    for edge in edges {
        for (at, other) in [(edge.source, edge.target), (edge.target, edge.source)] {
            sums[at].0 += edge.share * middle(other);
            sums[at].1 += edge.share;
        }
    }
    let mean = |(at, (sum, weight)): (usize, (f64, f64))| if weight > 0.0 { sum / weight } else { middle(at) };
    sums.into_iter().enumerate().map(mean).collect()
}

/// Where a node belongs. A supernode goes to the median layer of its members and to their commonest position.
fn cell_of(circuit: &Circuit, node: &CollapsedNode) -> (Row, u32) {
    let row_of = |id: NodeId| match id {
        NodeId::Token { .. } => Row::Tokens,
        NodeId::Target { .. } => Row::Targets,
        NodeId::Feature { layer, .. } | NodeId::Error { layer, .. } => Row::Layer(layer),
    };
    let mut rows: Vec<Row> = node.members.iter().map(|&member| row_of(circuit.node(member).id)).collect();
    rows.sort_unstable();
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    node.members.iter().for_each(|&member| *counts.entry(circuit.node(member).pos).or_default() += 1);
    let pos = counts.iter().max_by_key(|(_, count)| **count).map_or(0, |(pos, _)| *pos);
    (rows[rows.len() / 2], pos)
}

/// The nodes to show, in their order, and how many are not.
fn shown_nodes(circuit: &Circuit, collapsed: &CollapsedCircuit, max_nodes: usize) -> (Vec<usize>, usize) {
    let is_fixed = |node: &CollapsedNode| matches!(cell_of(circuit, node).0, Row::Tokens | Row::Targets);
    let (fixed, mut ranked): (Vec<usize>, Vec<usize>) =
        (0..collapsed.nodes.len()).partition(|&at| is_fixed(&collapsed.nodes[at]));
    ranked.sort_by(|&a, &b| collapsed.nodes[b].influence.total_cmp(&collapsed.nodes[a].influence).then(a.cmp(&b)));
    let n_hidden = ranked.len().saturating_sub(max_nodes);
    ranked.truncate(max_nodes);
    ranked.extend(fixed);
    ranked.sort_unstable();
    (ranked, n_hidden)
}

/// For every shown node the strongest shown inputs that make up `edge_share` of the shown ones, `max_inputs` at most, and
/// its strongest shown output, so that nothing seems to lead nowhere; weakest first. And how many are left out.
fn shown_edges(collapsed: &CollapsedCircuit, drawn: &[usize], settings: &PictureSettings) -> (Vec<DrawnEdge>, usize) {
    let mut by_target: BTreeMap<usize, Vec<DrawnEdge>> = BTreeMap::new();
    for edge in &collapsed.edges {
        let (source, target) = (drawn[edge.source], drawn[edge.target]);
        if source != usize::MAX && target != usize::MAX && edge.weight != 0.0 {
            let edge = DrawnEdge { source, target, weight: edge.weight, share: edge.share, way: Vec::new() };
            by_target.entry(target).or_default().push(edge);
        }
    }
    // Share and target of every node's strongest output.
    let mut strongest_output: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    for edge in by_target.values().flatten() {
        let strongest = strongest_output.entry(edge.source).or_insert((edge.share, edge.target));
        if edge.share > strongest.0 {
            *strongest = (edge.share, edge.target);
        }
    }
    let mut edges = Vec::new();
    let mut n_hidden = 0;
    for mut inputs in by_target.into_values() {
        inputs.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.source.cmp(&b.source)));
        let wanted = settings.edge_share * inputs.iter().map(|edge| edge.share).sum::<f64>();
        let mut sum = 0.0;
        for (rank, edge) in inputs.into_iter().enumerate() {
            let is_strongest = strongest_output[&edge.source].1 == edge.target;
            let is_wanted = sum < wanted && rank < settings.max_inputs;
            sum += edge.share;
            if is_wanted || is_strongest {
                edges.push(edge);
            } else {
                n_hidden += 1;
            }
        }
    }
    edges.sort_by(|a, b| a.weight.abs().total_cmp(&b.weight.abs()));
    (edges, n_hidden)
}
