//! Where columns and the boxes in them stand, from left to right.
//!
//! Tokens stand in the middle of their column. What lies above them stands as near to that as its row allows: boxes of a
//! full row give way to each other, in the order of their positions, since what a row needs here another does not.

use std::collections::{BTreeMap, BTreeSet};

use super::apart::apart;
use super::grid::Row;
use super::shown::Cells;
use super::{DrawnBox, MARGIN};

/// Between boxes of one line; edges pass through it.
pub(super) const GAP: f64 = 16.0;
/// Sums of the same widths may differ by so much.
const ROUNDING: f64 = 1e-6;
/// Room for the layers' names on the left.
const LAYER_NAMES: f64 = 44.0;
/// Room for edges outside the outermost boxes.
const OUTSIDE: f64 = 14.0;
/// The title and the legend need some room in whatever picture.
const MIN_WIDTH: f64 = 460.0;
/// Width of a column that has no token.
const EMPTY_COLUMN: f64 = 30.0;

/// One column a run of positions.
pub(super) struct Columns {
    /// The middle of each.
    middles: BTreeMap<usize, f64>,
    /// Width of the picture.
    pub width: f64,
    /// Leftmost and rightmost place for an edge.
    pub lanes: (f64, f64),
}

/// Width of a picture that has a column for every token, if nothing else needed room.
pub(super) fn least_width(cells: &Cells, boxes: &[DrawnBox]) -> f64 {
    around(token_widths(cells, boxes).values().map(|width| width + GAP).sum::<f64>() - GAP)
}

/// Width of a picture with this much room for boxes.
fn around(room: f64) -> f64 {
    MARGIN + LAYER_NAMES + 2.0 * OUTSIDE + room.max(0.0) + MARGIN
}

/// Width of the tokens of each column.
fn token_widths(cells: &Cells, boxes: &[DrawnBox]) -> BTreeMap<usize, f64> {
    let mut widths = BTreeMap::new();
    for (&(row, column), members) in cells {
        let width = widths.entry(column).or_insert(EMPTY_COLUMN);
        if row == Row::Tokens {
            *width = side_by_side(members, boxes).max(*width);
        }
    }
    widths
}

fn side_by_side(members: &[usize], boxes: &[DrawnBox]) -> f64 {
    members.iter().map(|&at| boxes[at].width + GAP).sum::<f64>() - GAP
}

impl Columns {
    /// Columns as wide as their fullest cell, as far as a page of `most_width` allows.
    pub(super) fn new(cells: &Cells, boxes: &[DrawnBox], most_width: f64) -> Columns {
        let mut widths = token_widths(cells, boxes);
        let mut lacking: BTreeMap<usize, f64> = BTreeMap::new();
        for ((_, column), members) in cells {
            let lack = lacking.entry(*column).or_default();
            *lack = lack.max(side_by_side(members, boxes) - widths[column]);
        }
        let least = least_width(cells, boxes);
        let all: f64 = lacking.values().sum();
        let part = if all > 0.0 { ((most_width - least) / all).clamp(0.0, 1.0) } else { 0.0 };
        widths.iter_mut().for_each(|(column, width)| *width += part * lacking[column]);
        let needed = widths.values().map(|width| width + GAP).sum::<f64>() - GAP;
        let width = around(needed).max(MIN_WIDTH);
        // A narrow picture stands in the middle of what the title needs.
        let mut x = MARGIN + LAYER_NAMES + OUTSIDE + (width - around(needed)) / 2.0;
        let mut middles = BTreeMap::new();
        for (column, wide) in widths {
            middles.insert(column, x + wide / 2.0);
            x += wide + GAP;
        }
        Columns { middles, width, lanes: (MARGIN + LAYER_NAMES, width - MARGIN) }
    }

    /// Where boxes can stand.
    fn room(&self) -> (f64, f64) {
        (self.lanes.0 + OUTSIDE, self.lanes.1 - OUTSIDE)
    }

    /// The boxes of a row as lines, from above, each from left to right and not wider than the picture: neighbours take
    /// turns where one line is too short.
    pub(super) fn lines_of(&self, row: Row, cells: &Cells, boxes: &[DrawnBox]) -> Vec<Vec<usize>> {
        let members: Vec<usize> =
            cells.iter().filter(|((r, _), _)| *r == row).flat_map(|(_, members)| members.iter().copied()).collect();
        let (left, right) = self.room();
        let mut n_lines = 1;
        loop {
            let line = |first: usize| members.iter().copied().skip(first).step_by(n_lines).collect();
            let lines: Vec<Vec<usize>> = (0..n_lines).map(line).collect();
            let fits = |line: &Vec<usize>| line.len() < 2 || side_by_side(line, boxes) <= right - left + ROUNDING;
            if lines.iter().all(fits) {
                return lines.into_iter().filter(|line| !line.is_empty()).collect();
            }
            n_lines += 1;
        }
    }

    /// Gives every box its `x`.
    pub(super) fn place(&self, cells: &Cells, boxes: &mut [DrawnBox]) {
        let mut column_of: BTreeMap<usize, usize> = BTreeMap::new();
        for ((_, column), members) in cells {
            column_of.extend(members.iter().map(|&member| (member, *column)));
        }
        let rows: BTreeSet<Row> = cells.keys().map(|(row, _)| *row).collect();
        let lines: Vec<Vec<usize>> = rows.into_iter().flat_map(|row| self.lines_of(row, cells, boxes)).collect();
        for line in lines {
            let widths: Vec<f64> = line.iter().map(|&at| boxes[at].width).collect();
            let wanted: Vec<f64> = line.iter().map(|at| self.middles[&column_of[at]]).collect();
            let (left, right) = self.room();
            let half = |width: Option<&f64>| width.map_or(0.0, |width| width / 2.0);
            let room = (left + half(widths.first()), right - half(widths.last()));
            for (&at, middle) in line.iter().zip(apart(&wanted, &widths, GAP, room)) {
                boxes[at].x = middle - boxes[at].width / 2.0;
            }
        }
    }
}
