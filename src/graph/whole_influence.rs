//! What a graph of some features knows of the whole graph of all active ones: its influence, estimated from a sample.

use serde::{Deserialize, Serialize};

use super::influence::row_abs_sums;
use super::{AttributionGraph, Influence};
use crate::{Error, Result};

/// Influence in the graph of all active features, of which the graph that this belongs to holds a part.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeInfluence {
    /// Estimated influence. [n_active + n_layers · n_pos + n_pos]: active features, errors of every layer and position,
    /// tokens and contexts.
    pub nodes: Vec<f64>,
    /// Standard error of each estimate; 0 where it is exact. As `nodes`.
    pub uncertainty: Vec<f32>,
    /// `Σ_s |A[t,s]|` of each row of the graph, over all active features, errors and tokens. `[n_rows]`.
    pub row_abs_sums: Vec<f32>,
}

/// How the influence of a graph was sampled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Features with this much influence, in units of the targets' weights, were all visited.
    pub theta: f64,
    /// Features whose rows the influence was estimated from.
    pub n_visited: usize,
    /// Standard errors of the scores.
    pub replacement_uncertainty: f64,
    /// Standard error of the completeness score.
    pub completeness_uncertainty: f64,
}

/// A node's part of the influence in the whole graph, estimated.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ShareEstimate {
    /// The part of the targets' weight that passes through the node, 1 being all of it.
    pub share: f64,
    /// Standard error of the share.
    pub uncertainty: f64,
}

impl WholeInfluence {
    /// What is known of feature, error or token `node` of `graph`, whose targets weigh `total_weight`.
    pub(crate) fn share_of(&self, graph: &AttributionGraph, node: usize, total_weight: f64) -> ShareEstimate {
        let place = graph.place_in_whole(node);
        let share_of = |influence: f64| if total_weight > 0.0 { influence / total_weight } else { 0.0 };
        ShareEstimate { share: share_of(self.nodes[place]), uncertainty: share_of(f64::from(self.uncertainty[place])) }
    }

    /// Whether this can belong to `graph`.
    ///
    /// # Errors
    /// Lengths that disagree, values that are negative or not finite.
    pub(super) fn check(&self, graph: &AttributionGraph) -> Result<()> {
        let layout = graph.layout();
        let n_nodes = graph.active_features.len() + layout.n_layers() * layout.n_pos() + layout.n_pos();
        let lengths = [
            ("influence", n_nodes, self.nodes.len()),
            ("influence_uncertainty", n_nodes, self.uncertainty.len()),
            ("row_abs_sums", layout.n_rows(), self.row_abs_sums.len()),
        ];
        for (name, expected, actual) in lengths {
            if expected != actual {
                return Err(Error::GraphShape { name, expected: vec![expected], actual: vec![actual] });
            }
        }
        check_values("influence", self.nodes.iter().copied())?;
        check_values("influence_uncertainty", self.uncertainty.iter().map(|&value| f64::from(value)))?;
        check_values("row_abs_sums", self.row_abs_sums.iter().map(|&value| f64::from(value)))
    }

    /// The part that belongs to the nodes of `graph`.
    pub(super) fn of_nodes(&self, graph: &AttributionGraph) -> Influence {
        let layout = graph.layout();
        let mut nodes = vec![0.0; layout.n_nodes()];
        (0..layout.targets().start).for_each(|node| nodes[node] = self.nodes[graph.place_in_whole(node)]);
        let (mut sums, mut error_abs_sums) = (Vec::with_capacity(layout.n_rows()), Vec::with_capacity(layout.n_rows()));
        for row in 0..layout.n_rows() {
            let (kept, errors) = row_abs_sums(layout, row, graph.row(row));
            // A NaN in the edge rows, which nobody has read yet, must show.
            sums.push(if kept.is_finite() { f64::from(self.row_abs_sums[row]) } else { kept });
            error_abs_sums.push(errors);
        }
        Influence { nodes, row_abs_sums: sums, error_abs_sums }
    }
}

fn check_values(name: &'static str, values: impl Iterator<Item = f64>) -> Result<()> {
    for (index, value) in values.enumerate() {
        if !value.is_finite() {
            return Err(Error::GraphNotFinite { name, index });
        }
        if value < 0.0 {
            return Err(Error::GraphNegative { name, index });
        }
    }
    Ok(())
}
