//! The strongest paths through a circuit.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use petgraph::Direction;
use petgraph::graph::{EdgeIndex, NodeIndex};
use petgraph::visit::EdgeRef;

use super::Circuit;

/// The most paths that may be asked for at once: nobody reads more, and they would fill gigabytes when printed.
pub const MAX_PATHS: usize = 1_000_000;

/// One path, source first.
#[derive(Debug, Clone, PartialEq)]
pub struct Path {
    /// The nodes that it goes through, both ends included.
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

/// A path to some node, as the last step and what came before. The order is that of preference: of two ways the
/// greater is listed first.
#[derive(Clone, Copy, PartialEq)]
struct Way {
    strength: f64,
    /// The last edge's index plus one; 0 where the path begins at the node itself.
    last: u32,
    /// The rank, at the last edge's source, of the way that it continues.
    rank: u32,
}

impl Way {
    fn last_edge(&self) -> Option<EdgeIndex> {
        self.last.checked_sub(1).map(|index| EdgeIndex::new(index as usize))
    }
}

impl Eq for Way {}

impl Ord for Way {
    fn cmp(&self, other: &Way) -> Ordering {
        let by_edge = (other.last, other.rank).cmp(&(self.last, self.rank));
        self.strength.total_cmp(&other.strength).then(by_edge)
    }
}

impl PartialOrd for Way {
    fn partial_cmp(&self, other: &Way) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The ways to one node that were asked for so far; none before it is met.
#[derive(Clone, Default)]
struct Ranked {
    /// Strongest first.
    ways: Vec<Way>,
    /// Of every last edge, the next way that is not listed yet; but for the edge of the last listed way, whose next
    /// one is looked for only when another way is needed.
    next: BinaryHeap<Way>,
}

/// The lists of ways to all nodes, as far as they were needed.
///
/// Source: Jiménez and Marzal, Computing the K shortest paths (1999), the recursive enumeration algorithm, here with a
/// stack of its own: circuits may be as deep as they have nodes.
struct Enumeration<'a> {
    circuit: &'a Circuit,
    is_source: &'a [bool],
    /// The strongest way to every node. `[n_nodes]`
    best: &'a [Option<Way>],
    /// `[n_nodes]`
    ranked: Vec<Ranked>,
}

impl Enumeration<'_> {
    /// The way of rank `rank` to `node`; ranks are asked for one after the other.
    fn way(&mut self, node: NodeIndex, rank: usize) -> Option<Way> {
        if rank == 0 {
            return self.best[node.index()];
        }
        // Down along the last listed ways, to where the next one is known already.
        let mut waiting = Vec::new();
        let mut wanted = Some((node, rank));
        while let Some((at, rank)) = wanted.take() {
            self.begin(at);
            let ranked = &self.ranked[at.index()];
            if ranked.ways.len() > rank {
                break;
            }
            waiting.push(at);
            let last = ranked.ways.last().and_then(|way| Some((way.last_edge()?, way.rank as usize + 1)));
            wanted = last.map(|(edge, rank)| (self.circuit.edge_parts(edge).0, rank));
        }
        // And up again: each has what it waited for, unless there is no more.
        for &at in waiting.iter().rev() {
            let last = self.ranked[at.index()].ways.last().copied();
            let continued = last.and_then(|way| {
                let (source, _, edge) = self.circuit.edge_parts(way.last_edge()?);
                let longer = self.ranked[source.index()].ways.get(way.rank as usize + 1)?;
                Some(Way { strength: longer.strength * edge.share, rank: way.rank + 1, ..way })
            });
            let ranked = &mut self.ranked[at.index()];
            ranked.next.extend(continued);
            ranked.ways.extend(ranked.next.pop());
        }
        self.ranked[node.index()].ways.get(rank).copied()
    }

    /// Lists the strongest way to `node`, with those of all other edges as the next.
    fn begin(&mut self, node: NodeIndex) {
        if !self.ranked[node.index()].ways.is_empty() {
            return;
        }
        let edges = self.circuit.graph().edges_directed(node, Direction::Incoming);
        let ways = edges.filter_map(|edge| {
            let share = Some(edge.weight().share).filter(|share| *share > 0.0)?;
            let way = self.best[edge.source().index()]?;
            Some(Way { strength: way.strength * share, last: edge.id().index() as u32 + 1, rank: 0 })
        });
        let own = self.is_source[node.index()].then_some(START);
        let mut next: BinaryHeap<Way> = ways.chain(own).collect();
        let ways = next.pop().into_iter().collect();
        self.ranked[node.index()] = Ranked { ways, next };
    }

    fn trace_back(&self, target: NodeIndex, way: Way) -> Path {
        let mut path = Path { nodes: vec![target], strength: way.strength, is_negative: false };
        let mut way = way;
        while let Some(edge) = way.last_edge() {
            let (source, _, edge) = self.circuit.edge_parts(edge);
            path.is_negative ^= edge.weight < 0.0;
            path.nodes.push(source);
            let before = match way.rank {
                0 => self.best[source.index()],
                rank => self.ranked[source.index()].ways.get(rank as usize).copied(),
            };
            let Some(before) = before else { break };
            way = before;
        }
        path.nodes.reverse();
        path
    }
}

/// The way that begins where it ends.
const START: Way = Way { strength: 1.0, last: 0, rank: 0 };

/// The `count` strongest paths from any of `sources` to any of `targets`, by product of normalised weights; at most
/// [`MAX_PATHS`].
///
/// Exact: the ways to a node are those to its inputs, continued, and every continuation scales them alike; so that each
/// list of ways is made from the lists of the inputs, one way at a time and only as far as it is needed. Equally strong
/// paths go by edge order.
///
/// # Cost
/// Time O(edges · log edges + count · length · log edges); memory O(edges + count · length), of 16 bytes each.
pub fn strongest_paths(
    circuit: &Circuit,
    sources: &[NodeIndex],
    targets: &[NodeIndex],
    count: usize,
) -> StrongestPaths {
    let graph = circuit.graph();
    let mut is_source = vec![false; graph.node_count()];
    sources.iter().for_each(|source| is_source[source.index()] = true);
    let mut best: Vec<Option<Way>> = vec![None; graph.node_count()];
    let mut totals = vec![0.0f64; graph.node_count()];
    let mut ways = Vec::new();
    for &node in circuit.order() {
        ways.clear();
        ways.extend(graph.edges_directed(node, Direction::Incoming).filter_map(|edge| {
            let share = Some(edge.weight().share).filter(|share| *share > 0.0)?;
            let before = best[edge.source().index()]?;
            let way = Way { strength: before.strength * share, last: edge.id().index() as u32 + 1, rank: 0 };
            Some((way, totals[edge.source().index()] * share))
        }));
        // Summed from the strongest down, so that the sum does not depend on the order of edges.
        ways.sort_by(|a, b| b.0.strength.total_cmp(&a.0.strength));
        let own = is_source[node.index()].then_some(START);
        best[node.index()] = ways.iter().map(|(way, _)| *way).chain(own).max();
        totals[node.index()] = ways.iter().fold(own.map_or(0.0, |way| way.strength), |sum, (_, total)| sum + total);
    }

    let mut distinct = targets.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let total = distinct.iter().map(|target| totals[target.index()]).sum();
    let ranked = vec![Ranked::default(); graph.node_count()];
    let mut enumeration = Enumeration { circuit, is_source: &is_source, best: &best, ranked };
    // The next path to every target; of equally strong ones, the first target's. Bits of numbers that are not negative
    // have their order.
    let end = |way: Way, target: NodeIndex, rank: usize| (way.strength.to_bits(), Reverse(target), rank, way);
    let mut ends: BinaryHeap<_> =
        distinct.iter().filter_map(|&target| Some(end(best[target.index()]?, target, 0))).collect();
    let mut paths = Vec::new();
    while paths.len() < count.min(MAX_PATHS) {
        let Some((_, Reverse(target), rank, way)) = ends.pop() else { break };
        paths.push(enumeration.trace_back(target, way));
        ends.extend(enumeration.way(target, rank + 1).map(|way| end(way, target, rank + 1)));
    }
    StrongestPaths { paths, total }
}
