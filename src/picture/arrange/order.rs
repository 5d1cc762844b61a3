//! The order of the boxes of a cell: each near what it is connected with.

use super::columns::Columns;
use super::grid::Row;
use super::shown::Cells;
use super::{DrawnBox, DrawnEdge};

/// Passes that put boxes of a cell into the order of what they are connected with.
const ORDER_PASSES: usize = 6;

/// Sorts the boxes of every cell, and gives each its `x`. Targets stay as they are: the likeliest first.
pub(super) fn sort_cells(cells: &mut Cells, columns: &Columns, boxes: &mut [DrawnBox], edges: &[DrawnEdge]) {
    for _ in 0..ORDER_PASSES {
        columns.place(cells, boxes);
        let mean = means_of_neighbors(boxes, edges);
        for (_, members) in cells.iter_mut().filter(|((row, _), _)| *row != Row::Targets) {
            members.sort_by(|&a, &b| mean[a].total_cmp(&mean[b]).then(a.cmp(&b)));
        }
    }
    columns.place(cells, boxes);
}

/// Mean of the middles of everything that a box is connected with, weighted by share; its own where there is nothing.
fn means_of_neighbors(boxes: &[DrawnBox], edges: &[DrawnEdge]) -> Vec<f64> {
    let mut sums = vec![(0.0, 0.0); boxes.len()];
    for edge in edges {
        for (at, other) in [(edge.source, edge.target), (edge.target, edge.source)] {
            sums[at].0 += edge.share * boxes[other].middle();
            sums[at].1 += edge.share;
        }
    }
    let mean =
        |(drawn, (sum, weight)): (&DrawnBox, (f64, f64))| if weight > 0.0 { sum / weight } else { drawn.middle() };
    boxes.iter().zip(sums).map(mean).collect()
}
