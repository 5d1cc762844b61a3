//! Other names for features.

use crate::graph::Circuit;
use crate::labels::Labels;

/// Gives every feature that `labels` knows its label, over the one that the graph carries; the others keep theirs.
///
/// # Cost
/// Linear in nodes.
pub fn relabel(circuit: &mut Circuit, labels: &Labels) {
    circuit.set_labels(|layer, feature| labels.get(layer, feature).map(str::to_owned));
}
