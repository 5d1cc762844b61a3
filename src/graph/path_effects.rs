//! What every node gives a target along all paths, with its sign: the signed counterpart of influence. Definitions 10.

use super::sweep::{propagate, propagate_steps};
use super::{AttributionGraph, Circuit, NodeKind};
use petgraph::Direction;
use petgraph::graph::NodeIndex;
use petgraph::visit::EdgeRef;

/// The value of a row, taken apart along all paths.
///
/// A feature's pre-activation is the sum of its own row, so what it gives is handed on to its sources in these
/// proportions: `T[s] = A[t,s] + Σ_m T[m]·A[m,s] / value[m]`. In the end tokens, errors, biases and features without a
/// row have all of it: their sum is `row_values[t]`.
#[derive(Debug, Clone, PartialEq)]
pub struct PathEffects {
    /// What each node gives, directly and through others. Those of features are parts of what their sources give.
    /// `[n_nodes]`
    pub nodes: Vec<f64>,
    /// What biases give, those of features on the way too.
    pub biases: f64,
    /// What active features without a row give.
    pub unselected: f64,
}

/// Takes the value of row `row` apart along all paths.
///
/// # Panics
/// Past the last row.
///
/// # Cost
/// One pass over the edge rows of the features below.
pub fn path_effects(graph: &AttributionGraph, row: usize) -> PathEffects {
    let layout = graph.layout();
    let mut nodes = vec![0.0f64; layout.n_nodes()];
    for source in layout.source_ranges(row).flatten() {
        nodes[source] = f64::from(graph.row(row)[source]);
    }
    let unselected_of = |row: usize| graph.unselected_effect.get(row).map_or(0.0, |&effect| f64::from(effect));
    let (mut biases, mut unselected) = (f64::from(graph.bias_effect[row]), unselected_of(row));
    let n_layers = layout.layer_of(row).filter(|_| row < layout.n_features()).unwrap_or(layout.n_layers() as u32);
    let steps =
        (0..n_layers as usize).rev().map(|layer| layout.features_of_layer(layer).map(|row| (row, row)).collect());
    let pass_on = |row: usize, passed: f64, sums: &mut [f64], (): &mut ()| {
        let value = f64::from(graph.row_values[row]);
        // What is not passed on, or comes from a feature that is zero, is nothing.
        if passed == 0.0 || value == 0.0 {
            return (0.0, 0.0);
        }
        let (scale, effects) = (passed / value, graph.row(row));
        for range in layout.source_ranges(row) {
            for (sum, &effect) in sums[range.clone()].iter_mut().zip(&effects[range]) {
                *sum += scale * f64::from(effect);
            }
        }
        (scale * f64::from(graph.bias_effect[row]), scale * unselected_of(row))
    };
    propagate_steps(
        &mut nodes,
        steps,
        || (),
        pass_on,
        |_, (bias, without_row)| {
            biases += bias;
            unselected += without_row;
        },
    );
    PathEffects { nodes, biases, unselected }
}

impl Circuit {
    /// As [`path_effects`], along the edges of this circuit; `None` where it does not hold the activations of its
    /// features. By `NodeIndex`. `[n_nodes]`
    ///
    /// # Cost
    /// Linear in nodes and edges.
    pub fn path_effects(&self, target: NodeIndex) -> Option<Vec<f64>> {
        let is_feature = |index: NodeIndex| self.node(index).id.kind() == NodeKind::Feature;
        if self.graph().node_indices().any(|index| is_feature(index) && self.node(index).activation.is_none()) {
            return None;
        }
        let mut effects = vec![0.0f64; self.graph().node_count()];
        let hand_on = |index: NodeIndex, scale: f64, effects: &mut [f64]| {
            for edge in self.graph().edges_directed(index, Direction::Incoming) {
                effects[edge.source().index()] += scale * f64::from(edge.weight().weight);
            }
        };
        hand_on(target, 1.0, &mut effects);
        let rows = self.rows_downwards().filter(|&(_, index)| index != target && is_feature(index));
        propagate(&mut effects, rows, |index, passed, effects| {
            let activation = f64::from(self.node(index).activation.unwrap_or_default());
            if passed != 0.0 && activation != 0.0 {
                hand_on(index, passed / activation, effects);
            }
        });
        Some(effects)
    }
}
