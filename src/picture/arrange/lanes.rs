//! The ways of edges, from box to box, around all others, each in a lane of its own.
//!
//! Boxes lie in bands, one above the other, with nothing in between. Where an edge passes a band it goes through one of
//! the free intervals between boxes; first as straight as can be, like a string pulled taut, then pushed aside by what
//! passes there too. Ends spread along the borders of boxes, in the order in which their edges leave, so that none cross
//! there. Dummy nodes and ports of layered drawing (Sugiyama, Tagawa and Toda 1981; Gansner et al. 1993), for boxes whose
//! columns are given.

use std::collections::BTreeMap;

use super::apart::apart;
use super::curve::{Point, through, x_at};
use super::lines::{Band, Lines};
use super::{DrawnBox, DrawnEdge};

/// Room between an edge and a box that it passes; less where a gap has less.
const CLEARANCE: f64 = 5.0;
/// Between the borders of two edges that pass side by side.
const LANE_GAP: f64 = 3.5;
/// Room that an edge has at least in an interval before others must look for another one.
const MIN_LANE: f64 = 3.0;
/// Between two ports of one border, and from the corner of a box to the first.
const PORT_GAP: f64 = 5.0;
const CORNER: f64 = 6.0;
/// Pixels that a pass may be pushed aside without being held there.
const LOOSE: f64 = 1.5;
/// Times that a string is pulled.
const PULLS: usize = 12;
/// Height of an arc between boxes of one line, and how much of it a longer one adds.
const ARC: f64 = 14.0;
const ARC_PER_WIDTH: f64 = 0.04;
const MAX_ARC: f64 = 34.0;

/// Where an edge passes a band.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Pass {
    band: usize,
    x: f64,
    /// Where it would be if no box were there: it says which lane is beside which.
    wanted: f64,
    /// Which free interval of the band it takes.
    interval: usize,
}

/// How a curve is held where it passes a band.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// Not at all.
    Free,
    /// At the middle of the band.
    Middle,
    /// At both borders, upright in between.
    Upright,
}

/// A way before it is a curve.
struct Way {
    /// Where it leaves and arrives, at the borders of the boxes' lines.
    start: Point,
    end: Point,
    passes: Vec<Pass>,
}

/// One end of an edge at one border of a box: (box, whether it is the upper border).
type Side = (usize, bool);

/// Gives every edge its curve, within `limits` from left to right.
///
/// Cost: O(edges · bands · boxes of a band), some dozen times.
pub(super) fn lead(boxes: &[DrawnBox], lines: &Lines, limits: (f64, f64), edges: &mut [DrawnEdge]) {
    let free: Vec<Vec<(f64, f64)>> = lines.bands.iter().map(|band| free_intervals(band, limits)).collect();
    let middles: Vec<(f64, f64)> =
        edges.iter().map(|edge| (boxes[edge.source].middle(), boxes[edge.target].middle())).collect();
    let pulled = |ports: &[(f64, f64)]| -> Vec<Way> {
        edges.iter().zip(ports).map(|(edge, &ends)| way_of(lines, &free, edge, ends)).collect()
    };
    let ports = ports(boxes, lines, edges, &pulled(&middles));
    let mut ways = pulled(&ports);
    for (band, free) in free.iter().enumerate() {
        share_intervals(band, free, edges, &mut ways);
    }
    for ((edge, way), ends) in edges.iter_mut().zip(&ways).zip(ports) {
        edge.curve = curve_of(boxes, lines, edge, way, ends);
    }
}

/// Where edges can pass a band.
fn free_intervals(band: &Band, (left, right): (f64, f64)) -> Vec<(f64, f64)> {
    let lefts = [left - CLEARANCE].into_iter().chain(band.taken.iter().map(|taken| taken.1));
    let rights = band.taken.iter().map(|taken| taken.0).chain([right + CLEARANCE]);
    let shrunk = lefts.zip(rights).map(|(left, right)| {
        let room = CLEARANCE.min((right - left).max(0.0) / 2.0);
        (left + room, (right - room).max(left + room))
    });
    shrunk.collect()
}

fn side_of_source(lines: &Lines, edge: &DrawnEdge) -> Side {
    (edge.source, lines.band_of[edge.target] <= lines.band_of[edge.source])
}

fn side_of_target(lines: &Lines, edge: &DrawnEdge) -> Side {
    (edge.target, lines.band_of[edge.target] >= lines.band_of[edge.source])
}

/// The way of an edge between these ends, pulled taut.
fn way_of(lines: &Lines, free: &[Vec<(f64, f64)>], edge: &DrawnEdge, (x1, x2): (f64, f64)) -> Way {
    let (from, to) = (lines.band_of[edge.source], lines.band_of[edge.target]);
    let border = |band: usize, is_upper: bool| if is_upper { lines.bands[band].top } else { lines.bands[band].bottom };
    let start = (x1, border(from, side_of_source(lines, edge).1));
    let end = (x2, border(to, side_of_target(lines, edge).1));
    let between: Vec<usize> =
        if to < from { (to + 1..from).rev().collect() } else { (from + 1..to.max(from + 1)).collect() };
    let middle = |band: usize| (lines.bands[band].top + lines.bands[band].bottom) / 2.0;
    let mut passes: Vec<Pass> = between
        .into_iter()
        .map(|band| {
            let x = straight(start, end, middle(band));
            Pass { band, x, wanted: x, interval: 0 }
        })
        .collect();
    for _ in 0..PULLS {
        for at in 0..passes.len() {
            let place = |pass: &Pass| (pass.x, middle(pass.band));
            let before = at.checked_sub(1).map_or(start, |before| place(&passes[before]));
            let after = passes.get(at + 1).map_or(end, place);
            let pass = &mut passes[at];
            pass.wanted = straight(before, after, middle(pass.band));
            (pass.interval, pass.x) = nearest(&free[pass.band], pass.wanted, |_| true);
        }
    }
    Way { start, end, passes }
}

/// Where the straight line between two points is at height `y`.
fn straight(from: Point, to: Point, y: f64) -> f64 {
    let height = to.1 - from.1;
    if height == 0.0 { from.0 } else { from.0 + (to.0 - from.0) * (y - from.1) / height }
}

/// The interval nearest to `x` among those that may be taken, and the place in it. The first where several are.
fn nearest(free: &[(f64, f64)], x: f64, may_be_taken: impl Fn(usize) -> bool) -> (usize, f64) {
    let places = free.iter().enumerate().map(|(at, &(left, right))| (at, x.clamp(left, right)));
    let distance = |place: &(usize, f64)| (place.1 - x).abs();
    let all = places.clone().min_by(|a, b| distance(a).total_cmp(&distance(b)));
    let open = places.filter(|place| may_be_taken(place.0)).min_by(|a, b| distance(a).total_cmp(&distance(b)));
    open.or(all).unwrap_or((0, x))
}

/// Where every edge leaves and arrives: spread along the borders, in the order of where they go.
fn ports(boxes: &[DrawnBox], lines: &Lines, edges: &[DrawnEdge], ways: &[Way]) -> Vec<(f64, f64)> {
    /// An end of an edge, and where the edge is at the next line and at its other end.
    struct End {
        edge: usize,
        is_source: bool,
        next: f64,
        other: f64,
    }
    let mut sides: BTreeMap<Side, Vec<End>> = BTreeMap::new();
    for (at, (edge, way)) in edges.iter().zip(ways).enumerate() {
        let (x1, x2) = (way.start.0, way.end.0);
        let (first, last) = (way.passes.first(), way.passes.last());
        let next = first.map_or(x2, |pass| pass.x);
        let source = End { edge: at, is_source: true, next, other: x2 };
        sides.entry(side_of_source(lines, edge)).or_default().push(source);
        let next = last.map_or(x1, |pass| pass.x);
        let target = End { edge: at, is_source: false, next, other: x1 };
        sides.entry(side_of_target(lines, edge)).or_default().push(target);
    }
    let mut ports = vec![(0.0, 0.0); edges.len()];
    for ((drawn, _), mut ends) in sides {
        ends.sort_by(|a, b| {
            let by_place = a.next.total_cmp(&b.next).then(a.other.total_cmp(&b.other));
            by_place.then(a.edge.cmp(&b.edge))
        });
        let drawn = &boxes[drawn];
        let room = (drawn.x + CORNER, drawn.x + drawn.width - CORNER);
        let widths: Vec<f64> = ends.iter().map(|end| edges[end.edge].width()).collect();
        let wanted = vec![drawn.middle(); ends.len()];
        for (end, x) in ends.iter().zip(apart(&wanted, &widths, PORT_GAP, room)) {
            let port = &mut ports[end.edge];
            if end.is_source { port.0 = x } else { port.1 = x }
        }
    }
    ports
}

/// Gives the edges that pass a band lanes of their own. Where an interval has no room for all, the weakest go elsewhere.
fn share_intervals(band: usize, free: &[(f64, f64)], edges: &[DrawnEdge], ways: &mut [Way]) {
    let mut passing: Vec<(usize, usize)> = Vec::new();
    for (at, way) in ways.iter().enumerate() {
        passing.extend(way.passes.iter().position(|pass| pass.band == band).map(|pass| (at, pass)));
    }
    passing.sort_by(|a, b| edges[b.0].share.total_cmp(&edges[a.0].share).then(a.0.cmp(&b.0)));
    let lane = |edge: usize| edges[edge].width() + MIN_LANE;
    let mut left: Vec<f64> = free.iter().map(|&(left, right)| right - left + MIN_LANE).collect();
    let mut in_interval: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
    for (edge, pass) in passing {
        let wanted = ways[edge].passes[pass].wanted;
        let (interval, _) = nearest(free, wanted, |interval| left[interval] >= lane(edge));
        left[interval] -= lane(edge);
        ways[edge].passes[pass].interval = interval;
        in_interval.entry(interval).or_default().push((edge, pass));
    }
    for (interval, mut members) in in_interval {
        members.sort_by(|a, b| {
            let wanted = |&(edge, pass): &(usize, usize)| ways[edge].passes[pass].wanted;
            wanted(a).total_cmp(&wanted(b)).then(a.cmp(b))
        });
        let wanted: Vec<f64> = members
            .iter()
            .map(|&(edge, pass)| ways[edge].passes[pass].wanted.clamp(free[interval].0, free[interval].1))
            .collect();
        let widths: Vec<f64> = members.iter().map(|&(edge, _)| edges[edge].width()).collect();
        for ((edge, pass), x) in members.into_iter().zip(apart(&wanted, &widths, LANE_GAP, free[interval])) {
            ways[edge].passes[pass].x = x;
        }
    }
}

/// The curve of a way, with the pieces that lead past lower boxes of its own lines.
fn curve_of(boxes: &[DrawnBox], lines: &Lines, edge: &DrawnEdge, way: &Way, (x1, x2): (f64, f64)) -> Vec<[Point; 4]> {
    let (source, target) = (&boxes[edge.source], &boxes[edge.target]);
    let border = |drawn: &DrawnBox, is_upper: bool| if is_upper { drawn.y } else { drawn.y + drawn.height };
    let leave = (x1, border(source, side_of_source(lines, edge).1));
    let arrive = (x2, border(target, side_of_target(lines, edge).1));
    if lines.band_of[edge.source] == lines.band_of[edge.target] {
        return arc(leave, way.start.1, arrive);
    }
    // As smooth as can be: a pass that the curve meets anyway is no point of it.
    let mut held: Vec<Held> = way
        .passes
        .iter()
        .map(|pass| if (pass.x - pass.wanted).abs() < LOOSE { Held::Free } else { Held::Middle })
        .collect();
    loop {
        let mut points = vec![leave];
        points.extend((way.start != leave).then_some(way.start));
        for (pass, held) in way.passes.iter().zip(&held) {
            let Band { top, bottom, .. } = lines.bands[pass.band];
            let (enter, exit) = if leave.1 > arrive.1 { (bottom, top) } else { (top, bottom) };
            match held {
                Held::Free => {}
                Held::Middle => points.push((pass.x, (top + bottom) / 2.0)),
                Held::Upright => points.extend([(pass.x, enter), (pass.x, exit)]),
            }
        }
        points.extend((way.end != arrive).then_some(way.end));
        points.push(arrive);
        let pieces = through(&points);
        // A way that would cut a corner is held there, at last upright. Each is held twice at most, so this ends.
        let cut = way.passes.iter().enumerate().find(|&(at, pass)| {
            let Band { top, bottom, ref taken } = lines.bands[pass.band];
            let left =
                taken.iter().map(|taken| taken.1).filter(|&edge| edge <= pass.x).fold(f64::NEG_INFINITY, f64::max);
            let right = taken.iter().map(|taken| taken.0).filter(|&edge| edge >= pass.x).fold(f64::INFINITY, f64::min);
            let room = if held[at] == Held::Free { CLEARANCE.min((right - left) / 3.0) } else { 1.0 };
            let stays = |x: f64| x >= left + room && x <= right - room;
            held[at] != Held::Upright && !(stays(x_at(&pieces, top)) && stays(x_at(&pieces, bottom)))
        });
        match cut {
            Some((at, _)) => held[at] = if held[at] == Held::Free { Held::Middle } else { Held::Upright },
            None => return pieces,
        }
    }
}

/// Over the line that two boxes share, from the upper border of the one to that of the other.
fn arc(leave: Point, top: f64, arrive: Point) -> Vec<[Point; 4]> {
    let rise = (ARC + ARC_PER_WIDTH * (leave.0 - arrive.0).abs()).min(MAX_ARC);
    let upright = |from: Point, to: Point| [from, from, to, to];
    let (x1, x2) = (leave.0, arrive.0);
    let mut pieces = Vec::new();
    pieces.extend((leave.1 > top).then(|| upright(leave, (x1, top))));
    pieces.push([(x1, top), (x1, top - rise), (x2, top - rise), (x2, top)]);
    pieces.extend((arrive.1 > top).then(|| upright((x2, top), arrive)));
    pieces
}
