//! Where everything goes in a picture: positions are columns, layers are rows, and no two boxes meet.
//!
//! One purpose a file, in the order of [`arrange()`]: `shown` chooses nodes and edges, `boxes` measures labels, `cells`
//! says which row and position a node belongs to, `columns` gives positions their place, `order` sorts the boxes of a
//! cell, `lines` stacks the rows, `ways` leads the edges.

mod boxes;
mod cells;
mod columns;
mod lines;
mod order;
mod shown;
mod ways;

use super::route::{Point, point_at};
use crate::circuits::CollapsedCircuit;
use crate::graph::Circuit;

/// Around the picture.
const MARGIN: f64 = 22.0;
/// Room for the title above.
pub(super) const TITLE: f64 = 34.0;

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

/// A node where it is drawn. Lengths are pixels of the SVG.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnBox {
    /// Index in the collapsed circuit.
    pub node: usize,
    /// Left edge.
    pub x: f64,
    /// Upper edge.
    pub y: f64,
    /// From the left edge to the right one.
    pub width: f64,
    /// From the upper edge to the lower one.
    pub height: f64,
    /// The label, broken into lines.
    pub lines: Vec<String>,
}

impl DrawnBox {
    /// Where edges begin and end, from left to right.
    fn middle(&self) -> f64 {
        self.x + self.width / 2.0
    }
}

/// An edge where it is drawn, its ends as indices into the boxes.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnEdge {
    /// Index of the box where it begins.
    pub source: usize,
    /// Index of the box where it ends.
    pub target: usize,
    /// Weight of the edge in the collapsed circuit.
    pub weight: f64,
    /// Share of the target's inputs that the edge is.
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
    /// Pixels of the SVG from left to right.
    pub width: f64,
    /// Pixels of the SVG from top to bottom.
    pub height: f64,
    /// Nodes, in their order in the collapsed circuit.
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

/// Places the nodes of `collapsed`.
///
/// # Cost
/// O(nodes · log nodes + edges · log edges), and for every drawn edge the square of the lines of boxes that it crosses.
pub fn arrange(circuit: &Circuit, collapsed: &CollapsedCircuit, settings: &PictureSettings) -> Arrangement {
    let (shown, n_hidden) = shown::nodes(circuit, collapsed, settings.max_nodes);
    let (mut edges, n_hidden_edges) = shown::edges(collapsed, &shown, settings);
    let mut boxes: Vec<DrawnBox> = shown.iter().map(|&node| boxes::measured(circuit, collapsed, node)).collect();
    let mut cells = cells::of_nodes(circuit, shown.iter().map(|&node| &collapsed.nodes[node]));
    let columns = columns::Columns::new(&cells, &boxes);
    order::sort_cells(&mut cells, &columns, &mut boxes, &edges);
    let lines = lines::stack(&cells, columns.width, &mut boxes);
    for edge in &mut edges {
        edge.way = ways::way_of(&boxes, &lines, edge.source, edge.target);
    }
    let (width, height, rows) = (columns.width, lines.height, lines.rows);
    Arrangement { width, height, boxes, edges, rows, n_hidden, n_hidden_edges }
}
