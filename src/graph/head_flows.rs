//! Heads of edges: through which attention heads a direct effect goes, and in how many hops.

use super::NodeId;

/// A head, by its layer and its number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Head {
    /// The layer of the attention.
    pub layer: u32,
    /// Its number among the heads of the layer.
    pub head: u32,
}

/// The part of an edge that goes through a head.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadFlow {
    /// The head.
    pub head: Head,
    /// In the units of the edge.
    pub flow: f32,
}

/// How one edge is carried.
///
/// At every layer between its ends an edge is the sum of its flows through the heads there and of what stays in the
/// residual stream. So flows of one layer may be added to each other, those of different layers may not: a path with
/// two hops is in the flows of two layers.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeHeads {
    /// The target's end of the edge.
    pub target: NodeId,
    /// The source's end.
    pub source: NodeId,
    /// The edge itself.
    pub effect: f32,
    /// The largest flows, by size, largest first.
    pub strongest: Vec<HeadFlow>,
    /// The sum of all other flows.
    pub rest: f32,
    /// Parts of the edge that pass exactly 0, 1, .. heads; the last: that many or more. They add up to the edge.
    pub hops: Vec<f32>,
}

impl EdgeHeads {
    /// `Σ k·|A_k| / Σ |A_k|`: how many heads its paths pass, weighed by their size. (Weighed with their signs the mean
    /// can be any number, where parts cancel.)
    pub fn mean_hops(&self) -> f32 {
        let sum: f32 = self.hops.iter().map(|part| part.abs()).sum();
        let weighed: f32 = self.hops.iter().enumerate().map(|(k, part)| k as f32 * part.abs()).sum();
        if sum > 0.0 { weighed / sum } else { 0.0 }
    }
}
