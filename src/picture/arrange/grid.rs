//! Layers as rows and positions as columns, so few that a picture fits a page.
//!
//! A model of 30 layers has no room for 30 rows, nor a prompt of 60 tokens for 60 columns. Neighbours are put together
//! where there is least influence, so what matters keeps a row or column of its own.

use std::collections::BTreeMap;

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
    /// Cost: linear in nodes, and the square of layers and positions.
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
        while layers.len() > MAX_ROWS && merge_least(&mut layers) {}
        while positions.len() > MAX_COLUMNS && merge_least(&mut positions) {}
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
        NodeId::Token { .. } => Level::Tokens,
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
}
