//! `circuits`: what is done with a circuit once it is there: choose a part of it, group its nodes, compare it with others.
//!
//! A [`Circuit`](crate::graph::Circuit) comes in; out come lists of its nodes ([`Selection`]), a smaller circuit
//! ([`induced`]), a collapsed one ([`View`], the input of every picture and table) or a comparison ([`diff`],
//! [`common`]). Plain data: no files, no ids as text. Ameisen et al. 2025, "Circuit Tracing", section on supernodes and
//! pinned subgraphs.

mod cluster;
mod compare;
mod select;
mod subgraph;
mod supernode;

pub use cluster::{ClusterSettings, Directions, find_supernodes};
pub use compare::{ChangedFeature, Common, Diff, common, diff};
pub use select::{FeatureKind, Selection, carrying_paths, neighborhood};
pub use subgraph::{circuit_scores, induced, pinned_scores};
pub use supernode::{Supernode, View, ViewEdge, ViewNode, check_groups, view};
