//! Ways of edges around boxes.
//!
//! A way is a chain of points; between two of them runs a cubic that leaves and arrives upright. Boxes lie in bands, one
//! above the other, with nothing in between. An edge takes the straight chain where that meets no box; otherwise it
//! passes the band that is in its way upright, at the nearest gap, and the two halves are looked at in the same way.

/// A point of the picture.
pub type Point = (f64, f64);

/// A line of boxes, from its upper to its lower edge.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Band {
    pub top: f64,
    pub bottom: f64,
    /// Left and right edges of the boxes, ascending and apart.
    pub taken: Vec<(f64, f64)>,
}

/// Room between an edge and a box that it passes; less where a gap has less.
const CLEARANCE: f64 = 5.0;

/// Points at which a curve is compared with a band.
const SAMPLES: usize = 64;

/// More than the distance of two lines of boxes of one layer, less than that of two layers.
const NEXT_LINE: f64 = 24.0;

/// Part of the height between two points that the curve's ends stay upright for.
pub(super) const BEND: f64 = 0.45;

/// The point at `t` in 0..=1 of the cubic between two points of a way.
pub(super) fn point_at(from: Point, to: Point, t: f64) -> Point {
    let rise = (to.1 - from.1) * BEND;
    let s = 1.0 - t;
    let weights = [s * s * s, 3.0 * s * s * t, 3.0 * s * t * t, t * t * t];
    let x = weights[0] * from.0 + weights[1] * from.0 + weights[2] * to.0 + weights[3] * to.0;
    let y = weights[0] * from.1 + weights[1] * (from.1 + rise) + weights[2] * (to.1 - rise) + weights[3] * to.1;
    (x, y)
}

impl Band {
    /// The nearest place to `x` at which a line can pass upright.
    fn nearest_gap(&self, x: f64) -> f64 {
        let lefts = [f64::NEG_INFINITY].into_iter().chain(self.taken.iter().map(|taken| taken.1));
        let rights = self.taken.iter().map(|taken| taken.0).chain([f64::INFINITY]);
        let mut nearest = f64::INFINITY;
        for (left, right) in lefts.zip(rights) {
            let room = CLEARANCE.min((right - left) / 2.0);
            let place = x.clamp(left + room, (right - room).max(left + room));
            if (place - x).abs() < (nearest - x).abs() {
                nearest = place;
            }
        }
        nearest
    }

    /// Where the curve meets a box of this band, if it does.
    fn met_by(&self, from: Point, to: Point) -> Option<f64> {
        let mut x_range = (f64::INFINITY, f64::NEG_INFINITY);
        let mut before = from;
        for at in 1..=SAMPLES {
            let point = point_at(from, to, at as f64 / SAMPLES as f64);
            let (low, high) = (before.1.min(point.1), before.1.max(point.1));
            if low <= self.bottom && high >= self.top {
                x_range = (x_range.0.min(before.0.min(point.0)), x_range.1.max(before.0.max(point.0)));
            }
            before = point;
        }
        let is_met = self.taken.iter().any(|&(left, right)| left < x_range.1 + 1.0 && right > x_range.0 - 1.0);
        is_met.then_some((x_range.0 + x_range.1) / 2.0)
    }
}

/// The way from `from` to `to`, the bands between them given in order.
///
/// # Cost
/// O(bands²) at worst, times the boxes of a band.
pub(super) fn route(from: Point, to: Point, between: &[&Band], way: &mut Vec<Point>) {
    let is_upwards = to.1 < from.1;
    // The band in the middle of those that are in the way: its halves are then as short as can be.
    let met: Vec<(usize, f64)> =
        between.iter().enumerate().filter_map(|(at, band)| Some((at, band.met_by(from, to)?))).collect();
    let Some(&(at, x)) = met.get(met.len() / 2) else {
        way.push(to);
        return;
    };
    let band = between[at];
    let (enter, leave) = if is_upwards { (band.bottom, band.top) } else { (band.top, band.bottom) };
    // Past the next line of the same layer as near as can be: a step far away would lead the eye nowhere.
    let wanted = if (enter - from.1).abs() < NEXT_LINE {
        from.0
    } else if (leave - to.1).abs() < NEXT_LINE {
        to.0
    } else {
        x
    };
    let x = band.nearest_gap(wanted);
    route(from, (x, enter), &between[..at], way);
    way.push((x, leave));
    route((x, leave), to, &between[at + 1..], way);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_passes_through_the_gaps() {
        let band = |top: f64, taken: &[(f64, f64)]| Band { top, bottom: top + 20.0, taken: taken.to_vec() };
        let bands = [band(100.0, &[(0.0, 50.0), (60.0, 200.0)]), band(50.0, &[(0.0, 80.0)])];
        let mut way = vec![(100.0, 150.0)];
        route((100.0, 150.0), (40.0, 10.0), &[&bands[0], &bands[1]], &mut way);
        assert_eq!(way.last(), Some(&(40.0, 10.0)));
        for ends in way.windows(2) {
            for at in 0..=100 {
                let (x, y) = point_at(ends[0], ends[1], f64::from(at) / 100.0);
                for band in &bands {
                    let is_in_band = y > band.top && y < band.bottom;
                    assert!(!is_in_band || band.taken.iter().all(|&(left, right)| x <= left || x >= right), "{way:?}");
                }
            }
        }
        let mut direct = Vec::new();
        route((100.0, 150.0), (100.0, 10.0), &[&bands[1]], &mut direct);
        assert_eq!(direct, [(100.0, 10.0)], "nothing is in the way");
    }
}
