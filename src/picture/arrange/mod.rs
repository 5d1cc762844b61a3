//! Where everything goes in a picture: positions are columns, layers are rows, and no two boxes meet.
//!
//! One purpose a file, in the order of [`arrange()`]: `grid` puts layers into rows and positions into columns, few enough
//! for a page; `stacks` merges what says the same in one cell; `shown` chooses boxes and edges; `boxes` measures labels;
//! `columns` gives positions and boxes their place; `order` sorts the boxes of a cell; `lines` stacks the rows; `lanes` leads the
//! edges, each in a lane of its own, and `curve` bends them.

mod apart;
mod boxes;
mod columns;
mod curve;
mod grid;
mod lanes;
mod lines;
mod order;
mod shown;
mod stacks;

use super::legend::Legend;
use crate::circuits::CollapsedCircuit;
use crate::graph::Circuit;
pub(super) use boxes::{BOX_PADDING, LINE_HEIGHT, SMALL_HEIGHT};
pub use curve::Point;
pub(super) use lines::{TITLE_LINE, TITLE_SIZE};

/// Around the picture.
pub(super) const MARGIN: f64 = 18.0;
/// Width that a picture keeps to by putting neighbouring positions into one column: that of a page at a readable size.
const PAGE_WIDTH: f64 = 940.0;

/// How much a picture shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PictureSettings {
    /// Boxes of features, errors and supernodes: the most influential. Tokens and targets come on top.
    pub max_nodes: usize,
    /// Of every box's inputs, the strongest that make up this share of the shown ones,
    pub edge_share: f64,
    /// but no more than so many. A box's strongest output is always drawn.
    pub max_inputs: usize,
    /// Targets with less than this part of all targets' weight are left out and counted; the heaviest stays.
    pub target_share: f64,
    /// Pixels of a PNG for one of the SVG.
    pub scale: f64,
}

impl Default for PictureSettings {
    fn default() -> PictureSettings {
        PictureSettings { max_nodes: 26, edge_share: 0.8, max_inputs: 4, target_share: 0.05, scale: 2.0 }
    }
}

/// What a box stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum BoxKind {
    /// A token, or a run of neighbouring ones.
    Token,
    /// A feature, or features that say the same at one place.
    Feature,
    /// What transcoders miss at one place.
    Error,
    /// A supernode of the collapsed circuit.
    Supernode,
    /// A target.
    Target,
}

/// A box where it is drawn. Lengths are pixels of the SVG.
#[derive(Debug, Clone, PartialEq)]
pub struct DrawnBox {
    /// Indices in the collapsed circuit, strongest first; several where a box merges what says the same.
    pub members: Vec<usize>,
    /// What they are.
    pub kind: BoxKind,
    /// Nodes of the circuit in it.
    pub n_nodes: usize,
    /// Part of all influence on the targets that passes through it; `None` in a circuit without targets.
    pub share: Option<f64>,
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
    /// Ids and shares, below the label in small print.
    pub small_print: String,
}

impl DrawnBox {
    /// Where edges begin and end, from left to right, as long as they have no ports.
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
    /// Sum of the weights between the two boxes.
    pub weight: f64,
    /// `|weight|` as a part of the sum over all boxes, shown or not, that feed the target.
    pub share: f64,
    /// Cubic Bézier curves, one after the other, from the border of the one box to that of the other, past all others.
    pub curve: Vec<[Point; 4]>,
}

impl DrawnEdge {
    /// Width of its line.
    pub fn width(&self) -> f64 {
        edge_width(self.share)
    }

    /// `n` points a piece of the curve that is drawn, both ends included.
    pub fn sampled(&self, n: usize) -> Vec<Point> {
        let points = self.curve.iter().flat_map(|piece| (0..=n).map(|at| curve::at(piece, at as f64 / n as f64)));
        points.collect()
    }
}

/// Width of the line of an edge that is this share of its target's input.
pub(super) fn edge_width(share: f64) -> f64 {
    0.7 + 5.3 * share
}

/// What a picture leaves out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Features, errors and nodes of supernodes.
    pub nodes: usize,
    /// Edges between shown boxes.
    pub edges: usize,
    /// Targets.
    pub targets: usize,
}

/// A picture without colours.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrangement {
    /// Pixels of the SVG from left to right.
    pub width: f64,
    /// Pixels of the SVG from top to bottom.
    pub height: f64,
    /// The prompt, broken into lines.
    pub title: Vec<String>,
    /// Boxes of tokens, layers and targets.
    pub boxes: Vec<DrawnBox>,
    /// Weakest first: the strong ones are drawn over them.
    pub edges: Vec<DrawnEdge>,
    /// Name, upper and lower edge of each row, from above.
    pub rows: Vec<(String, f64, f64)>,
    /// Where the legend begins.
    pub legend_top: f64,
    /// What the signs mean, and what is left out.
    pub(super) legend: Legend,
    /// What is left out.
    pub hidden: Hidden,
}

/// Places the nodes of `collapsed`.
///
/// # Cost
/// O(positions² + edges · log edges) to choose; then for the few hundred drawn edges the square of the lines of boxes that
/// they cross.
pub fn arrange(circuit: &Circuit, collapsed: &CollapsedCircuit, settings: &PictureSettings) -> Arrangement {
    let mut grid = grid::Grid::new(circuit, collapsed);
    let (picked, mut boxes) = loop {
        let stacks = stacks::merged(circuit, collapsed, &grid);
        // Before edges are looked at, which are many: the tokens alone say whether they fit.
        if boxes::width_of_tokens(circuit, collapsed, &stacks) > PAGE_WIDTH && grid.merge_least_positions() {
            continue;
        }
        let picked = shown::Picked::new(circuit, collapsed, &stacks, settings);
        let boxes = boxes::measured(circuit, collapsed, &picked);
        if columns::least_width(&picked.cells, &boxes) <= PAGE_WIDTH || !grid.merge_least_positions() {
            break (picked, boxes);
        }
    };
    let shown::Picked { mut cells, mut edges, hidden, .. } = picked;
    let columns = columns::Columns::new(&cells, &boxes, PAGE_WIDTH);
    order::sort_cells(&mut cells, &columns, &mut boxes, &edges);
    let lines = lines::stack(circuit, &grid, &cells, &columns, &mut boxes);
    lanes::lead(&boxes, &lines, columns.lanes, &mut edges);
    let legend = Legend::new(&boxes, &hidden, columns.width);
    Arrangement {
        width: columns.width,
        height: lines.legend_top + legend.height + MARGIN,
        title: lines.title,
        boxes,
        edges,
        rows: lines.rows,
        legend_top: lines.legend_top,
        legend,
        hidden,
    }
}
