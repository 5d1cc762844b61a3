//! Where rows stand, from top to bottom: each of as many lines of boxes as its fullest cell has.

use std::collections::BTreeSet;

use super::cells::{Cells, Row};
use super::{DrawnBox, MARGIN, TITLE};
use crate::picture::route::Band;

/// Between lines of boxes of one layer, where edges bend.
const LINE_GAP: f64 = 18.0;
/// Between layers, where the edges run: the smallest and the largest; in between, wide pictures get more, so that edges
/// over many positions do not lie flat.
const LAYER_GAPS: [f64; 2] = [40.0, 96.0];
/// Height of a picture as a part of its width that the gaps between layers try to reach.
const ASPECT: f64 = 0.5;

/// Lines of boxes, from above.
pub(super) struct Lines {
    /// What each line takes.
    pub bands: Vec<Band>,
    /// The line of each box.
    pub band_of: Vec<usize>,
    /// Names of the rows and the middle of each.
    pub rows: Vec<(String, f64)>,
    /// Height of the picture.
    pub height: f64,
}

/// A line before the gaps between rows are known.
struct Line {
    members: Vec<usize>,
    top: f64,
    height: f64,
    /// The row that it is in, counted from above.
    row: usize,
}

/// Gives every box its `y`, in a picture of this `width`. Their `x` must be known.
pub(super) fn stack(cells: &Cells, width: f64, boxes: &mut [DrawnBox]) -> Lines {
    let used: BTreeSet<Row> = cells.keys().map(|(row, _)| *row).collect();
    let mut y = MARGIN + TITLE;
    let mut rows: Vec<(String, f64)> = Vec::new();
    let mut lines: Vec<Line> = Vec::new();
    for (row_at, &row) in used.iter().rev().enumerate() {
        let top = y;
        for (at, members) in lines_of(row, cells).into_iter().enumerate() {
            y += if at > 0 { LINE_GAP } else { 0.0 };
            let height = members.iter().map(|&member| boxes[member].height).fold(0.0, f64::max);
            lines.push(Line { members, top: y, height, row: row_at });
            y += height;
        }
        rows.push((row.name(), (top + y) / 2.0));
    }
    // What the rows leave of the wanted height goes between them.
    let n_gaps = rows.len().saturating_sub(1) as f64;
    let layer_gap = ((ASPECT * width - y) / n_gaps.max(1.0)).clamp(LAYER_GAPS[0], LAYER_GAPS[1]);
    rows.iter_mut().enumerate().for_each(|(at, row)| row.1 += at as f64 * layer_gap);
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
    let height = (y + n_gaps * layer_gap).max(MARGIN + TITLE) + MARGIN;
    Lines { bands, band_of, rows, height }
}

/// The lines of one row, from above: cells with fewer stand in the middle.
fn lines_of(row: Row, cells: &Cells) -> Vec<Vec<usize>> {
    let in_row = || cells.iter().filter(|((r, _), _)| *r == row).map(|(_, members)| members);
    let n_lines_of = |members: &[usize]| members.len().div_ceil(row.per_line(members.len()));
    let n_lines = in_row().map(|members| n_lines_of(members)).max().unwrap_or(0);
    let mut lines: Vec<Vec<usize>> = vec![Vec::new(); n_lines];
    for members in in_row() {
        let first = (n_lines - n_lines_of(members)) / 2;
        for (at, line) in members.chunks(row.per_line(members.len())).enumerate() {
            lines[first + at].extend_from_slice(line);
        }
    }
    lines
}
