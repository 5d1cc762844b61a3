//! Where rows stand, from top to bottom: each of as many lines of boxes as its fullest cell has.

use std::collections::BTreeSet;

use super::columns::Columns;
use super::grid::{Grid, Row};
use super::shown::Cells;
use super::{DrawnBox, MARGIN};
use crate::graph::Circuit;
use crate::picture::node_text;

/// Between lines of boxes of one layer, where edges bend.
const LINE_GAP: f64 = 28.0;
/// Between layers, where the edges run: the smallest and the largest; in between, wide pictures get more, so that edges
/// over many positions do not lie flat.
const LAYER_GAPS: [f64; 2] = [42.0, 84.0];
/// Height of a picture as a part of its width that the gaps between layers try to reach.
const ASPECT: f64 = 0.62;
/// Of the ground of a row, above and below its boxes.
const ROW_PADDING: f64 = 9.0;
/// Size of the title's text, and how many lines it has at most.
pub(in crate::picture) const TITLE_SIZE: f64 = 13.0;
pub(in crate::picture) const TITLE_LINE: f64 = 17.0;
const TITLE_LINES: usize = 4;
/// Between title, picture and legend.
const SPACE: f64 = 14.0;

/// A line of boxes, from its upper to its lower edge.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Band {
    pub top: f64,
    pub bottom: f64,
    /// Left and right edges of the boxes, ascending and apart.
    pub taken: Vec<(f64, f64)>,
}

/// Lines of boxes, from above.
pub(super) struct Lines {
    /// What each line takes.
    pub bands: Vec<Band>,
    /// The line of each box.
    pub band_of: Vec<usize>,
    /// Name, upper and lower edge of each row.
    pub rows: Vec<(String, f64, f64)>,
    /// The prompt, broken into lines.
    pub title: Vec<String>,
    /// Where the legend begins.
    pub legend_top: f64,
}

/// A line before the gaps between rows are known.
struct Line {
    members: Vec<usize>,
    top: f64,
    height: f64,
    /// The row that it is in, counted from above.
    row: usize,
}

/// Gives every box its `y`, in a picture as wide as `columns`. Their `x` must be known.
pub(super) fn stack(circuit: &Circuit, grid: &Grid, cells: &Cells, columns: &Columns, boxes: &mut [DrawnBox]) -> Lines {
    let width = columns.width;
    let prompt = node_text::token(&circuit.meta.prompt);
    let title = node_text::wrap(&prompt, width - 2.0 * MARGIN, TITLE_LINES, TITLE_SIZE);
    let used: BTreeSet<Row> = cells.keys().map(|(row, _)| *row).collect();
    let mut y = MARGIN + title.len() as f64 * TITLE_LINE + SPACE + ROW_PADDING;
    let mut rows: Vec<(String, f64, f64)> = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    for (row_at, &row) in used.iter().rev().enumerate() {
        let top = y;
        for (at, members) in columns.lines_of(row, cells, boxes).into_iter().enumerate() {
            y += if at > 0 { LINE_GAP } else { 0.0 };
            let height = members.iter().map(|&member| boxes[member].height).fold(0.0, f64::max);
            lines.push(Line { members, top: y, height, row: row_at });
            y += height;
        }
        rows.push((grid.name(row), top - ROW_PADDING, y + ROW_PADDING));
    }
    // What the rows leave of the wanted height goes between them.
    let n_gaps = rows.len().saturating_sub(1) as f64;
    let layer_gap = ((ASPECT * width - y) / n_gaps.max(1.0)).clamp(LAYER_GAPS[0], LAYER_GAPS[1]);
    for (at, row) in rows.iter_mut().enumerate() {
        row.1 += at as f64 * layer_gap;
        row.2 += at as f64 * layer_gap;
    }
    let mut bands: Vec<Band> = Vec::with_capacity(lines.len());
    let mut band_of = vec![0usize; boxes.len()];
    for Line { mut members, top, height, row } in lines {
        let top = top + row as f64 * layer_gap;
        members.sort_by(|&a, &b| boxes[a].x.total_cmp(&boxes[b].x));
        for &member in &members {
            boxes[member].y = top + (height - boxes[member].height) / 2.0;
            band_of[member] = bands.len();
        }
        let taken = members.iter().map(|&member| (boxes[member].x, boxes[member].x + boxes[member].width)).collect();
        bands.push(Band { top, bottom: top + height, taken });
    }
    let legend_top = y + n_gaps * layer_gap + ROW_PADDING + SPACE;
    Lines { bands, band_of, rows, title, legend_top }
}
