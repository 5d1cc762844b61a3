//! `heads`: through which attention heads an effect goes ([`head_flows`]) and what each head gives to a target
//! ([`bills`]). The pattern is frozen, so attention is linear and every split here is exact.
//!
//! Kamath et al. 2025, "Tracing Attention Computation Through Feature Interactions", have head loadings for one layer
//! between two features; flows are the same at every layer of an edge.

mod bills;
mod eigenvalues;
mod flows;
mod head_scores;
mod moves;
mod pairs;
mod patterns;
mod values;

pub use bills::{Bill, HeadRow, bills, head_rows};
pub use flows::{FlowOptions, HEADS_PHASE, head_flows};
pub use head_scores::{HEAD_SCORES, HeadScore, HeadScoreOptions, head_scores};
pub use moves::{EdgeInFull, Move, edge_in_full};
pub use pairs::{Pair, PairTable, ScorePairs};
pub use patterns::{HeadPattern, check_head, head_patterns};
