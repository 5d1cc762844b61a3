//! The strongest paths through a circuit.

use std::cmp::Ordering;

use petgraph::Direction;
use petgraph::graph::{EdgeIndex, EdgeReference, NodeIndex};
use petgraph::visit::EdgeRef;

use super::{Circuit, Edge};

/// One path, source first.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    pub nodes: Vec<NodeIndex>,
    /// Product of the shares of its edges.
    pub strength: f64,
    /// Whether an odd number of its edges is negative.
    pub is_negative: bool,
}

/// The answer of [`strongest_paths`].
#[derive(Debug, Clone, PartialEq)]
pub struct StrongestPaths {
    /// Strongest first. [<= count].
    pub paths: Vec<Path>,
    /// The summed strength of all paths between the two sets, listed or not.
    pub total: f64,
}

/// A path to some node, as the last step and what came before.
#[derive(Clone, Copy)]
struct Partial {
    strength: f64,
    /// The last edge and the rank, at its source, of the path that it continues; `None` where the path begins.
    last: Option<(EdgeIndex, usize)>,
}

/// The `count` strongest paths from any of `sources` to any of `targets`, by product of normalised weights.
///
/// Exact: in topological order every node keeps its `count` strongest ways in, which is all that any later node can
/// need, since every continuation scales them alike. Equally strong paths go by edge order.
///
/// # Cost
/// Time O(edges · count), memory O(nodes · count).
pub fn strongest_paths(
    circuit: &Circuit,
    sources: &[NodeIndex],
    targets: &[NodeIndex],
    count: usize,
) -> StrongestPaths {
    let graph = circuit.graph();
    let mut is_source = vec![false; graph.node_count()];
    sources.iter().for_each(|source| is_source[source.index()] = true);
    let mut best: Vec<Vec<Partial>> = vec![Vec::new(); graph.node_count()];
    let mut totals = vec![0.0f64; graph.node_count()];
    for &node in circuit.order() {
        let mut ways = Vec::new();
        let mut total = 0.0;
        if is_source[node.index()] {
            ways.push(Partial { strength: 1.0, last: None });
            total = 1.0;
        }
        // The strongest continuations first: once there are enough, most of the others need not be looked at.
        let mut edges: Vec<_> = graph
            .edges_directed(node, Direction::Incoming)
            .filter(|edge| edge.weight().share > 0.0 && totals[edge.source().index()] > 0.0)
            .collect();
        let strongest = |at: NodeIndex| best[at.index()].first().map_or(0.0, |way| way.strength);
        let top = |edge: &EdgeReference<'_, Edge>| strongest(edge.source()) * edge.weight().share;
        edges.sort_by(|a, b| top(b).total_cmp(&top(a)));
        let mut weakest_kept = 0.0;
        for edge in edges {
            let share = edge.weight().share;
            total += totals[edge.source().index()] * share;
            for (rank, way) in best[edge.source().index()].iter().enumerate() {
                let strength = way.strength * share;
                if strength < weakest_kept {
                    break;
                }
                ways.push(Partial { strength, last: Some((edge.id(), rank)) });
            }
            if ways.len() > 2 * count {
                keep_strongest(&mut ways, count, |way| way, |_| 0);
                weakest_kept = ways.last().map_or(0.0, |way| way.strength);
            }
        }
        keep_strongest(&mut ways, count, |way| way, |_| 0);
        best[node.index()] = ways;
        totals[node.index()] = total;
    }

    let mut distinct = targets.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let mut ends: Vec<(NodeIndex, usize, Partial)> = Vec::new();
    for &target in &distinct {
        ends.extend(best[target.index()].iter().enumerate().map(|(rank, &way)| (target, rank, way)));
    }
    keep_strongest(&mut ends, count, |end| &end.2, |end| end.0.index());
    let paths = ends.into_iter().map(|(target, _, way)| trace_back(circuit, &best, target, way)).collect();
    StrongestPaths { paths, total: distinct.iter().map(|target| totals[target.index()]).sum() }
}

fn keep_strongest<T>(ways: &mut Vec<T>, count: usize, partial: impl Fn(&T) -> &Partial, end: impl Fn(&T) -> usize) {
    let stronger_first = |a: &T, b: &T| -> Ordering {
        let (a_way, b_way) = (partial(a), partial(b));
        b_way.strength.total_cmp(&a_way.strength).then(end(a).cmp(&end(b))).then(a_way.last.cmp(&b_way.last))
    };
    if count < ways.len() {
        ways.select_nth_unstable_by(count, stronger_first);
        ways.truncate(count);
    }
    ways.sort_unstable_by(stronger_first);
}

fn trace_back(circuit: &Circuit, best: &[Vec<Partial>], target: NodeIndex, way: Partial) -> Path {
    let mut path = Path { nodes: vec![target], strength: way.strength, is_negative: false };
    let mut last = way.last;
    while let Some((edge, rank)) = last {
        let (source, _, edge) = circuit.edge_parts(edge);
        path.is_negative ^= edge.weight < 0.0;
        path.nodes.push(source);
        last = best[source.index()][rank].last;
    }
    path.nodes.reverse();
    path
}
