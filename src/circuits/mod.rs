//! `circuits`: everything that is done with a graph once it is there, for the command line, a server and Python alike.
//!
//! A graph file of any kind is opened ([`open_graph`], [`OpenedGraph`]); of its [`Circuit`](crate::graph::Circuit) a part
//! is chosen ([`Part`], [`Selection`], [`Circuit::part`](crate::graph::Circuit::part)), nodes are grouped ([`GroupRequest`], [`find_supernodes`]) and
//! collapsed ([`collapse`], the input of every picture and table), the whole is summarised ([`summarize`], [`Report`]),
//! relabelled ([`relabel`]), saved ([`save`]) or compared ([`diff`], [`common`]). Plain data in, plain data out: nothing
//! here prints. Ameisen et al. 2025, "Circuit Tracing", section on supernodes and pinned subgraphs.

mod choose;
mod cluster;
mod collapse;
mod compare;
mod edge_heads;
mod effects;
mod example;
mod group;
mod group_name;
mod names;
mod open;
mod pair;
mod path_groups;
mod relabel;
mod report;
mod save;
mod select;
mod shared_view;
mod subgraph;
mod summary;

pub use choose::Part;
pub use cluster::{ClusterSettings, Directions, find_supernodes};
pub use collapse::{CollapsedCircuit, CollapsedEdge, CollapsedNode, Supernode, collapse};
pub use compare::{ChangedFeature, Common, Diff, aligned_positions, common, diff};
pub use edge_heads::{collapsed_heads, heads_between};
pub use effects::{DirectEffects, EdgesSummed, EffectMap, Effects, LayerEffects, PathSums, PositionEffects};
pub use example::NodeExample;
pub use group::{GroupRequest, NamedGroup, members_within};
#[cfg(feature = "cli")]
pub(crate) use names::typed_position;
pub use names::{find_node, find_nodes};
pub use open::{OpenedGraph, Opening, decoder_direction, open_circuit, open_graph, open_json};
pub use open::{open_raw, prune_raw};
pub(crate) use pair::automatic_names;
pub use pair::{PairPlan, has_strange_partner, is_worked_on};
pub use path_groups::{PathGroup, PathStep, strongest_path_groups};
pub use relabel::{label_rest, relabel, rename};
pub use report::{GroupReport, Grouping, Report, ScoresReport, SubgraphReport};
pub use save::{save, save_pruned_json};
pub use select::{Carried, Selection, carried, carrying_paths, neighborhood};
pub use shared_view::SharedView;
pub use subgraph::{circuit_scores, pinned_scores};
pub use summary::{
    Counts, NamedNodes, Neighbors, NodeSummary, Prediction, SharedEdge, SharedHeads, Summary, SummaryNode, SummaryPath,
    SummaryScores, SummarySettings, summarize, summarize_part, summarize_with_raw,
};
