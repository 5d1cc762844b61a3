//! Which row and position a node belongs to. The boxes of one row and position are a cell.

use std::collections::BTreeMap;

use crate::circuits::CollapsedNode;
use crate::graph::{Circuit, NodeId};

/// The row of a node, from below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Row {
    Tokens,
    Layer(u32),
    Targets,
}

impl Row {
    /// What is written beside the row.
    pub(super) fn name(self) -> String {
        match self {
            Row::Tokens => "tokens".to_owned(),
            Row::Layer(layer) => format!("L{layer}"),
            Row::Targets => "logits".to_owned(),
        }
    }

    /// Boxes side by side in a cell of `count`: as square as labels allow.
    pub(super) fn per_line(self, count: usize) -> usize {
        match count {
            0..=1 => 1,
            _ if self == Row::Targets => count.min(5),
            2..=6 => 2,
            7..=15 => 3,
            _ => 4,
        }
    }
}

/// The boxes of each row and position, as indices.
pub(super) type Cells = BTreeMap<(Row, u32), Vec<usize>>;

/// The cells of nodes that are shown, in their order.
pub(super) fn of_nodes<'a>(circuit: &Circuit, shown: impl Iterator<Item = &'a CollapsedNode>) -> Cells {
    let mut cells = Cells::new();
    for (at, node) in shown.enumerate() {
        cells.entry(cell_of(circuit, node)).or_default().push(at);
    }
    cells
}

/// Where a node belongs. A supernode goes to the median layer of its members and to their commonest position.
pub(super) fn cell_of(circuit: &Circuit, node: &CollapsedNode) -> (Row, u32) {
    let row_of = |id: NodeId| match id {
        NodeId::Token { .. } => Row::Tokens,
        NodeId::Target { .. } => Row::Targets,
        NodeId::Feature { layer, .. } | NodeId::Error { layer, .. } => Row::Layer(layer),
    };
    let mut rows: Vec<Row> = node.members.iter().map(|&member| row_of(circuit.node(member).id)).collect();
    rows.sort_unstable();
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    node.members.iter().for_each(|&member| *counts.entry(circuit.node(member).pos).or_default() += 1);
    let pos = counts.iter().max_by_key(|(_, count)| **count).map_or(0, |(pos, _)| *pos);
    (rows[rows.len() / 2], pos)
}
