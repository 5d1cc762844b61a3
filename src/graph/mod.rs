//! `graph`: nodes, edges, influence and scores of an attribution graph. Plain data, no candle in here.
//!
//! The edge rows come in ([`AttributionGraph`], from `attribution` or from a file); [`influence()`] and the scores are
//! computed over them in one sweep. Meanings: definitions 3 to 8;
//! Ameisen et al. 2025, "Circuit Tracing".

mod attribution_graph;
mod edge_rows;
pub mod influence;
mod layout;

pub use attribution_graph::{
    AttributionGraph, GraphData, GraphMeta, GraphSettings, RAW_FORMAT_VERSION, ROW_IDENTITY_FLOOR,
};
pub use edge_rows::EdgeRows;
pub use influence::{Influence, PartialRows, influence, next_features, partial_influence};
pub use layout::{FeatureId, NodeId, NodeLayout};
