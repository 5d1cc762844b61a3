//! Where positions stand, from left to right.

use std::collections::BTreeMap;

use super::cells::Cells;
use super::{DrawnBox, MARGIN};

/// Between boxes of one layer and position; edges pass through it.
const GAP: f64 = 12.0;
const COLUMN_GAP: f64 = 26.0;
/// Room for the layers' names on the left.
const LAYER_NAMES: f64 = 46.0;
/// The title needs some room in whatever picture.
const MIN_WIDTH: f64 = 420.0;

/// One column a position, wide enough for its widest cell in whatever order.
pub(super) struct Columns {
    /// Left edge and width, by position.
    by_pos: BTreeMap<u32, (f64, f64)>,
    /// Width of the picture.
    pub width: f64,
}

impl Columns {
    pub(super) fn new(cells: &Cells, boxes: &[DrawnBox]) -> Columns {
        let mut column_width: BTreeMap<u32, f64> = BTreeMap::new();
        for ((row, pos), members) in cells {
            let mut widths: Vec<f64> = members.iter().map(|&at| boxes[at].width).collect();
            widths.sort_by(|a, b| b.total_cmp(a));
            let widest = side_by_side(widths.into_iter().take(row.per_line(members.len())));
            let width = column_width.entry(*pos).or_default();
            *width = width.max(widest);
        }
        let mut by_pos = BTreeMap::new();
        let mut x = MARGIN + LAYER_NAMES;
        for (pos, width) in column_width {
            by_pos.insert(pos, (x, width));
            x += width + COLUMN_GAP;
        }
        Columns { by_pos, width: (x - COLUMN_GAP + MARGIN).max(MIN_WIDTH) }
    }

    /// Gives every box its `x`: lines of a cell stand in the middle of its column.
    pub(super) fn place(&self, cells: &Cells, boxes: &mut [DrawnBox]) {
        for ((row, pos), members) in cells {
            let (x, width) = self.by_pos[pos];
            for line in members.chunks(row.per_line(members.len())) {
                let line_width = side_by_side(line.iter().map(|&member| boxes[member].width));
                let mut next = x + (width - line_width) / 2.0;
                for &member in line {
                    boxes[member].x = next;
                    next += boxes[member].width + GAP;
                }
            }
        }
    }
}

/// Width of a line of boxes of these widths.
fn side_by_side(widths: impl Iterator<Item = f64>) -> f64 {
    widths.map(|width| width + GAP).sum::<f64>() - GAP
}
