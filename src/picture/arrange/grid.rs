//! Layers as rows and positions as columns, so few that a picture fits a page.
//!
//! A model of 30 layers has no room for 30 rows, nor a prompt of 60 tokens for 60 columns. Neighbours are put together
//! where there is least influence, so what matters keeps a row or column of its own.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::circuits::{CollapsedCircuit, CollapsedNode};
use crate::graph::{Circuit, NodeId};

/// Rows of layers at most.
const MAX_ROWS: usize = 7;
/// Columns at most, before widths are known.
const MAX_COLUMNS: usize = 20;

/// The row of a node, from below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Row {
    Tokens,
    /// By the row's place among those of layers.
    Layers(usize),
    Targets,
}

/// Row and column of a box.
pub(super) type Cell = (Row, usize);

/// Neighbours that share a row or a column.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Run {
    first: u32,
    last: u32,
    influence: f64,
}

/// Which layers and positions go together.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Grid {
    /// Ascending.
    layers: Vec<Run>,
    /// Ascending.
    positions: Vec<Run>,
}

impl Grid {
    /// Cost: O(nodes + (layers + positions) · log).
    pub(super) fn new(circuit: &Circuit, collapsed: &CollapsedCircuit) -> Grid {
        let (mut by_layer, mut by_pos) = (BTreeMap::<u32, f64>::new(), BTreeMap::<u32, f64>::new());
        for node in &collapsed.nodes {
            let (level, pos) = place_of(circuit, node);
            if let Level::Layer(layer) = level {
                *by_layer.entry(layer).or_default() += node.influence;
            }
            *by_pos.entry(pos).or_default() += node.influence;
        }
        let runs = |of: BTreeMap<u32, f64>| -> Vec<Run> {
            of.into_iter().map(|(at, influence)| Run { first: at, last: at, influence }).collect()
        };
        let (mut layers, mut positions) = (runs(by_layer), runs(by_pos));
        merge_to(&mut layers, MAX_ROWS);
        merge_to(&mut positions, MAX_COLUMNS);
        Grid { layers, positions }
    }

    /// Puts two more neighbouring positions into one column; false where only one column is left.
    pub(super) fn merge_least_positions(&mut self) -> bool {
        merge_least(&mut self.positions)
    }

    /// Where a node belongs.
    pub(super) fn cell_of(&self, circuit: &Circuit, node: &CollapsedNode) -> Cell {
        let (level, pos) = place_of(circuit, node);
        let row = match level {
            Level::Tokens => Row::Tokens,
            Level::Layer(layer) => Row::Layers(run_of(&self.layers, layer)),
            Level::Targets => Row::Targets,
        };
        (row, run_of(&self.positions, pos))
    }

    /// What is written beside a row: `L3`, `L4–9`.
    pub(super) fn name(&self, row: Row) -> String {
        match row {
            Row::Tokens => "tokens".to_owned(),
            Row::Targets => "targets".to_owned(),
            Row::Layers(at) => match self.layers[at] {
                Run { first, last, .. } if first == last => format!("L{first}"),
                Run { first, last, .. } => format!("L{first}–{last}"),
            },
        }
    }
}

/// The run that holds `at`.
fn run_of(runs: &[Run], at: u32) -> usize {
    runs.partition_point(|run| run.last < at).min(runs.len().saturating_sub(1))
}

/// Merges the two neighbours that have the least influence together, the first of them where several do.
fn merge_least(runs: &mut Vec<Run>) -> bool {
    let together = |at: usize| runs[at].influence + runs[at + 1].influence;
    let least = (0..runs.len().saturating_sub(1)).min_by(|&a, &b| together(a).total_cmp(&together(b)));
    let Some(at) = least else { return false };
    let next = runs.remove(at + 1);
    runs[at].last = next.last;
    runs[at].influence += next.influence;
    true
}

/// As [`merge_least`] until there are `most`, at least one: a hundred thousand positions in O(n log n).
fn merge_to(runs: &mut Vec<Run>, most: usize) {
    let n = runs.len();
    let mut n_left = n;
    // Runs that are left know the next one; pairs are called by their first run, and by how often it changed.
    let mut next: Vec<usize> = (1..=n).collect();
    let mut previous: Vec<Option<usize>> = (0..n).map(|at| at.checked_sub(1)).collect();
    let mut changes = vec![0usize; n];
    let together = |runs: &[Run], at: usize, next: usize| Ascending(runs[at].influence + runs[next].influence);
    let mut pairs: BinaryHeap<_> = (1..n).map(|at| Reverse((together(runs, at - 1, at), at - 1, 0usize))).collect();
    while n_left > most.max(1) {
        let Some(Reverse((_, at, change))) = pairs.pop() else { break };
        if changes[at] != change {
            continue;
        }
        let gone = next[at];
        runs[at].last = runs[gone].last;
        runs[at].influence += runs[gone].influence;
        next[at] = next[gone];
        changes[gone] += 1;
        n_left -= 1;
        if next[at] < n {
            previous[next[at]] = Some(at);
        }
        for first in [Some(at), previous[at]].into_iter().flatten() {
            changes[first] += 1;
            if next[first] < n {
                pairs.push(Reverse((together(runs, first, next[first]), first, changes[first])));
            }
        }
    }
    let mut at = 0;
    let mut left = Vec::with_capacity(n_left);
    while at < n {
        left.push(runs[at]);
        at = next[at];
    }
    *runs = left;
}

/// A number in its total order.
#[derive(Debug, Clone, Copy)]
struct Ascending(f64);

impl Ord for Ascending {
    fn cmp(&self, other: &Ascending) -> std::cmp::Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Ascending {
    fn partial_cmp(&self, other: &Ascending) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Ascending {
    fn eq(&self, other: &Ascending) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Ascending {}

/// The height of a node, from below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Tokens,
    Layer(u32),
    Targets,
}

/// Height and position of a node. A supernode goes to the median layer of its members and to their commonest position.
fn place_of(circuit: &Circuit, node: &CollapsedNode) -> (Level, u32) {
    let level_of = |id: NodeId| match id {
        NodeId::Token { .. } | NodeId::Context { .. } => Level::Tokens,
        NodeId::Target { .. } => Level::Targets,
        NodeId::Feature { layer, .. } | NodeId::Error { layer, .. } => Level::Layer(layer),
    };
    let mut levels: Vec<Level> = node.members.iter().map(|&member| level_of(circuit.node(member).id)).collect();
    levels.sort_unstable();
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    node.members.iter().for_each(|&member| *counts.entry(circuit.node(member).pos).or_default() += 1);
    let pos = counts.iter().max_by_key(|(_, count)| **count).map_or(0, |(pos, _)| *pos);
    (levels[levels.len() / 2], pos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_with_least_influence_go_together() {
        let run = |at: u32, influence: f64| Run { first: at, last: at, influence };
        let mut runs = vec![run(0, 5.0), run(1, 0.1), run(2, 0.2), run(5, 3.0)];
        assert!(merge_least(&mut runs));
        assert_eq!((runs[1].first, runs[1].last, runs.len()), (1, 2, 3));
        assert_eq!([0, 1, 2, 5].map(|at| run_of(&runs, at)), [0, 1, 1, 2]);
        assert!(merge_least(&mut runs) && merge_least(&mut runs) && !merge_least(&mut runs));
    }

    #[test]
    fn many_runs_are_merged_as_one_after_the_other() {
        let mut state = 5u64;
        for n in [0, 1, 2, 3, 7, 60, 200] {
            for most in [0, 1, 2, 5, 20] {
                let mut runs: Vec<Run> = (0..n)
                    .map(|at| {
                        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                        // Few different influences, so that several are the least.
                        Run { first: 3 * at, last: 3 * at, influence: (state >> 61) as f64 * 0.1 }
                    })
                    .collect();
                let mut slow = runs.clone();
                while slow.len() > most && merge_least(&mut slow) {}
                merge_to(&mut runs, most);
                assert_eq!(runs, slow, "{n} to {most}");
            }
        }
    }
}
