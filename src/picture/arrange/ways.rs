//! The ways of edges, from box to box.

use std::cmp::Ordering;

use super::DrawnBox;
use super::lines::Lines;
use crate::picture::route::{Band, Point, route};

/// Height of the arc between boxes of one line.
const ARC: f64 = 14.0;

/// The way of an edge, from a box to one that is most often higher up. A supernode can stand above what it feeds.
pub(super) fn way_of(boxes: &[DrawnBox], lines: &Lines, source: usize, target: usize) -> Vec<Point> {
    let bands = &lines.bands;
    let (x1, x2) = (boxes[source].middle(), boxes[target].middle());
    let (from, to) = (lines.band_of[source], lines.band_of[target]);
    let (above, below) = (|at: usize| boxes[at].y, |at: usize| boxes[at].y + boxes[at].height);
    // Bands are listed from above.
    let (start, end) = match to.cmp(&from) {
        Ordering::Less => ((x1, above(source)), (x2, below(target))),
        Ordering::Greater => ((x1, below(source)), (x2, above(target))),
        Ordering::Equal => {
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
