//! How large a node's box is: as its label asks, within bounds.

use super::DrawnBox;
use crate::circuits::CollapsedCircuit;
use crate::graph::Circuit;
use crate::picture::node_text;

const MAX_BOX_WIDTH: f64 = 116.0;
/// Shorter texts get this much, so that there is something to point at.
const MIN_BOX_WIDTH: f64 = 44.0;
const LINE_HEIGHT: f64 = 13.0;
const BOX_PADDING: f64 = 5.0;
const MAX_LINES: usize = 2;

/// The box of a node of `collapsed`, not placed yet.
pub(super) fn measured(circuit: &Circuit, collapsed: &CollapsedCircuit, node: usize) -> DrawnBox {
    let label = node_text::label(circuit, &collapsed.nodes[node]);
    let mut lines = node_text::wrap(&label, MAX_BOX_WIDTH - 2.0 * BOX_PADDING, MAX_LINES);
    if lines.is_empty() {
        lines.push(String::new());
    }
    let height = lines.len() as f64 * LINE_HEIGHT + 2.0 * BOX_PADDING;
    let widest = lines.iter().map(|line| node_text::width(line)).fold(0.0, f64::max);
    let width = (widest + 2.0 * BOX_PADDING).clamp(MIN_BOX_WIDTH, MAX_BOX_WIDTH);
    DrawnBox { node, x: 0.0, y: 0.0, width, height, lines }
}
