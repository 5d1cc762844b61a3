//! Supernodes found automatically.

use std::collections::BTreeMap;

use petgraph::graph::NodeIndex;

use super::Supernode;
use super::group_name::shared_name;
use crate::graph::{Circuit, NodeId};

/// How supernodes are found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClusterSettings {
    /// Clusters are merged as long as the mean cosine between their members is at least this.
    pub cut: f64,
    /// Largest distance in positions between two members.
    pub max_pos_distance: u32,
    /// Features with less influence stay on their own: more than this many are too many to be looked at.
    pub max_features: usize,
}

impl Default for ClusterSettings {
    fn default() -> ClusterSettings {
        ClusterSettings { cut: 0.5, max_pos_distance: 1, max_features: 400 }
    }
}

/// The unit vector that a feature writes along, where it is known. `[d_model]`
pub type Directions<'a> = &'a dyn Fn(NodeIndex) -> Option<Vec<f32>>;

/// Groups features that do the same: hierarchical clustering with average linkage of signed edge profiles and, where
/// they are known, of decoder directions.
///
/// A feature's profile is its incoming edges over the sum of their absolute weights, followed by its outgoing ones, each
/// over the target's sum and then scaled to the same total, the part that every node at the other end has in it. Two
/// features are as near as the mean of the cosines of the two halves; with `directions`, as the mean of that and of the
/// cosine of their decoder directions, the profiles weighing one half and the decoders the other. Features further apart
/// than `max_pos_distance` positions, and clusters with such a pair, are never merged. Clusters of one are no
/// supernodes. The name says what most members share: a label or a part of one, the words that all labels begin with, the
/// target that they push; else it is that of the strongest member.
///
/// # Cost
/// O(n² · (degree + d_model)) for the n features that are considered, n <= `max_features`; O(n³) at worst.
pub fn find_supernodes(
    circuit: &Circuit,
    settings: &ClusterSettings,
    directions: Option<Directions<'_>>,
) -> Vec<Supernode> {
    let influence = circuit.node_influence();
    let mut features: Vec<NodeIndex> = circuit
        .graph()
        .node_indices()
        .filter(|&index| matches!(circuit.node(index).id, NodeId::Feature { .. }))
        .collect();
    features.sort_by(|a, b| influence[b.index()].total_cmp(&influence[a.index()]).then(a.cmp(b)));
    features.truncate(settings.max_features);
    let clusters = merge(similarities(circuit, &features, settings, directions), settings.cut);
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    clusters
        .into_iter()
        .filter(|members| members.len() > 1)
        .map(|members| {
            // Strongest first: the name comes from it.
            let mut members = members;
            members.sort_unstable();
            let mut members: Vec<NodeIndex> = members.into_iter().map(|at| features[at]).collect();
            let mut name = shared_name(circuit, &members);
            let count = used.entry(name.clone()).or_default();
            *count += 1;
            if *count > 1 {
                name = format!("{name} ({count})");
            }
            members.sort_unstable();
            Supernode { name, members }
        })
        .collect()
}

/// A unit vector over the nodes at the other ends.
type Profile = Vec<(NodeIndex, f64)>;

fn profiles(circuit: &Circuit, feature: NodeIndex) -> [Profile; 2] {
    [circuit.inputs(feature), circuit.outputs(feature)].map(|neighbors| {
        let signed = neighbors.iter().map(|n| (n.node, n.edge.share.copysign(f64::from(n.edge.weight))));
        let mut profile: Profile = signed.collect();
        let norm = profile.iter().map(|(_, value)| value * value).sum::<f64>().sqrt();
        if norm > 0.0 {
            profile.iter_mut().for_each(|(_, value)| *value /= norm);
        }
        profile
    })
}

/// The similarity of two features or clusters that must not meet.
const APART: f64 = f64::NEG_INFINITY;

/// Similarities of all pairs, symmetric. `[n, n]`
struct Similarities {
    n: usize,
    values: Vec<f64>,
}

impl Similarities {
    fn get(&self, a: usize, b: usize) -> f64 {
        self.values[a * self.n + b]
    }

    fn set(&mut self, a: usize, b: usize, value: f64) {
        self.values[a * self.n + b] = value;
        self.values[b * self.n + a] = value;
    }

    /// The nearest of the clusters before `a`, the first of equals.
    fn nearest_before(&self, a: usize) -> (f64, usize) {
        let row = &self.values[a * self.n..a * self.n + a];
        let mut nearest = (APART, 0);
        for (b, &value) in row.iter().enumerate() {
            if value > nearest.0 {
                nearest = (value, b);
            }
        }
        nearest
    }
}

fn similarities(
    circuit: &Circuit,
    features: &[NodeIndex],
    settings: &ClusterSettings,
    directions: Option<Directions<'_>>,
) -> Similarities {
    let n = features.len();
    let profiles: Vec<[Profile; 2]> = features.iter().map(|&feature| profiles(circuit, feature)).collect();
    let decoders: Vec<Option<Vec<f32>>> =
        features.iter().map(|&feature| directions.and_then(|direction| direction(feature))).collect();
    let mut similarities = Similarities { n, values: vec![APART; n * n] };
    // One profile of a pair is spread over all nodes: the other then finds its entries without a search.
    let mut spread = [vec![0.0f64; circuit.graph().node_count()], vec![0.0f64; circuit.graph().node_count()]];
    for a in 0..n {
        for (spread, profile) in spread.iter_mut().zip(&profiles[a]) {
            profile.iter().for_each(|&(node, value)| spread[node.index()] = value);
        }
        for b in 0..a {
            let (pos_a, pos_b) = (circuit.node(features[a]).pos, circuit.node(features[b]).pos);
            if pos_a.abs_diff(pos_b) > settings.max_pos_distance {
                continue;
            }
            let half = |half: usize| -> f64 {
                profiles[b][half].iter().map(|&(node, value)| value * spread[half][node.index()]).sum()
            };
            let of_edges = (half(0) + half(1)) / 2.0;
            let value = match (&decoders[a], &decoders[b]) {
                (Some(a), Some(b)) => (of_edges + cosine_of_units(a, b)) / 2.0,
                _ => of_edges,
            };
            similarities.set(a, b, value);
        }
        for (spread, profile) in spread.iter_mut().zip(&profiles[a]) {
            profile.iter().for_each(|&(node, _)| spread[node.index()] = 0.0);
        }
    }
    similarities
}

/// Dot product in lanes that the compiler can vectorise.
fn cosine_of_units(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 16;
    let mut lanes = [0f32; LANES];
    let (a_chunks, b_chunks) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_chunks.remainder().iter().zip(b_chunks.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a_chunks.zip(b_chunks) {
        for ((lane, x), y) in lanes.iter_mut().zip(a).zip(b) {
            *lane += x * y;
        }
    }
    f64::from(lanes.iter().sum::<f32>() + rest)
}

/// Merges the two nearest clusters until none are nearer than `cut`; of equally near ones the first. The members of
/// every cluster that was not merged into another.
fn merge(mut similarities: Similarities, cut: f64) -> Vec<Vec<usize>> {
    let n = similarities.n;
    let mut clusters: Vec<Vec<usize>> = (0..n).map(|at| vec![at]).collect();
    let mut nearest: Vec<(f64, usize)> = (0..n).map(|a| similarities.nearest_before(a)).collect();
    loop {
        let mut best = (APART, 0, 0);
        for (a, &(value, b)) in nearest.iter().enumerate() {
            if value > best.0 {
                best = (value, b, a);
            }
        }
        let (value, into, from) = best;
        // With a cut of -1 everything that may meet is merged, but never what may not.
        if value == APART || value < cut {
            break;
        }
        let (n_into, n_from) = (clusters[into].len() as f64, clusters[from].len() as f64);
        for other in (0..n).filter(|&other| other != into && other != from) {
            let (a, b) = (similarities.get(into, other), similarities.get(from, other));
            let is_apart = a == APART || b == APART;
            let merged = if is_apart { APART } else { (a * n_into + b * n_from) / (n_into + n_from) };
            similarities.set(into, other, merged);
            similarities.set(from, other, APART);
        }
        similarities.set(into, from, APART);
        let members = std::mem::take(&mut clusters[from]);
        clusters[into].extend(members);
        for (a, known) in nearest.iter_mut().enumerate().skip(into) {
            let with_into = similarities.get(a, into);
            if a == into || a == from || known.1 == into || known.1 == from {
                *known = similarities.nearest_before(a);
            } else if with_into > known.0 || (with_into == known.0 && into < known.1) {
                *known = (with_into, into);
            }
        }
    }
    clusters
}
