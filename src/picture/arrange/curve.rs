//! Curves through points: x as a smooth function of y that never leaves the range of two neighbouring points.
//!
//! Slopes as in Fritsch and Butland 1984 (monotone piecewise cubic interpolation): zero at ends and turns, elsewhere a
//! harmonic mean. So a curve that passes a gap at its middle stays between what it is at the gap's ends.

/// A point of the picture.
pub type Point = (f64, f64);

/// The point at `t` in 0..=1 of a cubic Bézier curve.
pub(super) fn at(piece: &[Point; 4], t: f64) -> Point {
    let s = 1.0 - t;
    let weights = [s * s * s, 3.0 * s * s * t, 3.0 * s * t * t, t * t * t];
    let sum = |of: fn(&Point) -> f64| weights.iter().zip(piece).map(|(weight, point)| weight * of(point)).sum();
    (sum(|point| point.0), sum(|point| point.1))
}

/// A curve through points of strictly ascending or strictly descending y, upright at both ends.
pub(super) fn through(points: &[Point]) -> Vec<[Point; 4]> {
    let steps: Vec<Point> = points.windows(2).map(|pair| (pair[1].0 - pair[0].0, pair[1].1 - pair[0].1)).collect();
    let mut slopes = vec![0.0f64; points.len()];
    for at in 1..points.len().saturating_sub(1) {
        let ((dx0, dy0), (dx1, dy1)) = (steps[at - 1], steps[at]);
        let (before, after) = (dx0 / dy0, dx1 / dy1);
        if before * after > 0.0 {
            let (w0, w1) = ((dy0 + 2.0 * dy1).abs(), (2.0 * dy0 + dy1).abs());
            slopes[at] = (w0 + w1) / (w1 / before + w0 / after);
        }
    }
    let piece = |at: usize| {
        let ((x0, y0), (x1, y1)) = (points[at], points[at + 1]);
        let third = (y1 - y0) / 3.0;
        [(x0, y0), (x0 + slopes[at] * third, y0 + third), (x1 - slopes[at + 1] * third, y1 - third), (x1, y1)]
    };
    (0..steps.len()).map(piece).collect()
}

/// Where a curve made by [`through`] is at height `y`.
pub(super) fn x_at(pieces: &[[Point; 4]], y: f64) -> f64 {
    let holds = |piece: &&[Point; 4]| (piece[0].1.min(piece[3].1)..=piece[0].1.max(piece[3].1)).contains(&y);
    // Heights of the control points are evenly apart, so y goes evenly with t.
    pieces.iter().find(holds).map_or(f64::NAN, |piece| at(piece, (y - piece[0].1) / (piece[3].1 - piece[0].1)).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_stay_between_neighbouring_points() {
        let points = [(0.0, 100.0), (50.0, 80.0), (52.0, 70.0), (10.0, 30.0), (10.0, 20.0), (-90.0, 0.0)];
        let pieces = through(&points);
        assert_eq!(pieces.len(), 5);
        for (piece, ends) in pieces.iter().zip(points.windows(2)) {
            assert_eq!((piece[0], piece[3]), (ends[0], ends[1]));
            for step in 0..=50 {
                let (x, _) = at(piece, f64::from(step) / 50.0);
                let range = ends[0].0.min(ends[1].0) - 1e-9..=ends[0].0.max(ends[1].0) + 1e-9;
                assert!(range.contains(&x), "{x} is not in {range:?}");
            }
        }
        assert!((x_at(&pieces, 70.0) - 52.0).abs() < 1e-9 && (x_at(&pieces, 25.0) - 10.0).abs() < 1e-9);
    }
}
