//! `graph`: nodes, edges, influence and scores of an attribution graph. Plain data, no candle in here.
//!
//! The edge rows come in ([`AttributionGraph`], from `attribution` or from a file); [`influence()`] and the scores are
//! computed over them in one sweep, and what survives pruning becomes a [`Circuit`]. Meanings: definitions 3 to 8;
//! Ameisen et al. 2025, "Circuit Tracing".

mod attribution_graph;
mod circuit;
mod decoder_directions;
mod edge_rows;
mod head_flows;
pub(crate) mod influence;
mod layout;
mod node_threshold;
mod path_effects;
mod paths;
mod sampled;
mod sampled_vectors;
mod scores;
mod sweep;
mod whole_influence;

pub use attribution_graph::{AttributionGraph, ByPlace, GraphData, GraphMeta, GraphSettings, RAW_FORMAT_VERSION};
pub use circuit::{Circuit, CircuitMeta, CompactLink, Edge, Link, Neighbor, Node};
pub use decoder_directions::DecoderDirections;
pub use edge_rows::EdgeRows;
pub use head_flows::{EdgeHeads, Head, HeadFlow, HeadFlows};
pub use influence::{Influence, PARTIAL_ROW_SUM_CLAMP, PartialRows, influence, next_features, partial_influence};
pub use layout::{FeatureId, NodeId, NodeKind, NodeLayout};
pub(crate) use node_threshold::{TIE_RTOL, node_threshold};
pub use path_effects::{PathEffects, path_effects};
pub use paths::{MAX_PATHS, Path, StrongestPaths, strongest_paths};
pub use sampled::{
    KeptFeatures, SampleSettings, SampledInfluence, Start, SweepAt, SweepKeeper, SweepState, sampled_influence,
    sampled_influence_in,
};
pub use sampled_vectors::{HostVectors, RowSource, SweepVectors, SweptVectors, Visit};
pub use scores::{Scores, scores, subgraph_scores};
pub(crate) use sweep::propagate;
pub use whole_influence::{Sampling, ShareEstimate, WholeInfluence};
