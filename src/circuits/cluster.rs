//! Supernodes found automatically.

use std::collections::BTreeMap;

use petgraph::graph::NodeIndex;

use super::Supernode;
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

/// Groups features that do the same: hierarchical clustering with average linkage of signed edge profiles.
///
/// A feature's profile is its incoming edges over the sum of their absolute weights, followed by its outgoing ones, each
/// over the target's sum and then scaled to the same total, the part that every node at the other end has in it. Two
/// features are as near as the mean of the cosines of the two halves; features further apart than
/// `max_pos_distance` positions, and clusters with such a pair, are never merged. Clusters of one are no supernodes. The
/// name is the label that most members share, else the words that all labels begin with, else that of the strongest member.
///
/// # Cost
/// O(n² · degree + n³) for the n features that are considered, n <= `max_features`.
#[expect(clippy::needless_range_loop, reason = "a symmetric matrix is written at [a][b] and [b][a]")]
pub fn find_supernodes(circuit: &Circuit, settings: &ClusterSettings) -> Vec<Supernode> {
    let influence = circuit.node_influence();
    let mut features: Vec<NodeIndex> = circuit
        .graph()
        .node_indices()
        .filter(|&index| matches!(circuit.node(index).id, NodeId::Feature { .. }))
        .collect();
    features.sort_by(|a, b| influence[b.index()].total_cmp(&influence[a.index()]).then(a.cmp(b)));
    features.truncate(settings.max_features);
    let profiles: Vec<[Profile; 2]> = features.iter().map(|&feature| profiles(circuit, feature)).collect();
    let n = features.len();
    // Mean similarity of two clusters; `None` where they must not meet.
    let mut similarity: Vec<Vec<Option<f64>>> = vec![vec![None; n]; n];
    for a in 0..n {
        for b in 0..a {
            let (pos_a, pos_b) = (circuit.node(features[a]).pos, circuit.node(features[b]).pos);
            if pos_a.abs_diff(pos_b) <= settings.max_pos_distance {
                let cosine = (0..2).map(|half| dot(&profiles[a][half], &profiles[b][half])).sum::<f64>() / 2.0;
                similarity[a][b] = Some(cosine);
                similarity[b][a] = Some(cosine);
            }
        }
    }
    let mut clusters: Vec<Vec<usize>> = (0..n).map(|at| vec![at]).collect();
    loop {
        let mut best: Option<(f64, usize, usize)> = None;
        for a in 0..n {
            for b in 0..a {
                if let Some(value) = similarity[a][b]
                    && value >= settings.cut
                    && best.is_none_or(|(top, ..)| value > top)
                {
                    best = Some((value, b, a));
                }
            }
        }
        let Some((_, into, from)) = best else { break };
        let (n_into, n_from) = (clusters[into].len() as f64, clusters[from].len() as f64);
        for other in 0..n {
            if other == into || other == from {
                continue;
            }
            let merged = match (similarity[into][other], similarity[from][other]) {
                (Some(a), Some(b)) => Some((a * n_into + b * n_from) / (n_into + n_from)),
                _ => None,
            };
            similarity[into][other] = merged;
            similarity[other][into] = merged;
        }
        for other in 0..n {
            similarity[from][other] = None;
            similarity[other][from] = None;
        }
        let members = std::mem::take(&mut clusters[from]);
        clusters[into].extend(members);
    }
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    clusters
        .into_iter()
        .filter(|members| members.len() > 1)
        .map(|members| {
            // Strongest first: the name comes from it.
            let mut members = members;
            members.sort_unstable();
            let mut members: Vec<NodeIndex> = members.into_iter().map(|at| features[at]).collect();
            let mut name = name_of(circuit, &members);
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

/// A unit vector over the nodes at the other ends, ascending.
type Profile = Vec<(NodeIndex, f64)>;

fn profiles(circuit: &Circuit, feature: NodeIndex) -> [Profile; 2] {
    [circuit.inputs(feature), circuit.outputs(feature)].map(|neighbors| {
        let signed = neighbors.iter().map(|n| (n.node, n.edge.share.copysign(f64::from(n.edge.weight))));
        let mut profile: Profile = signed.collect();
        profile.sort_by_key(|&(node, _)| node);
        let norm = profile.iter().map(|(_, value)| value * value).sum::<f64>().sqrt();
        if norm > 0.0 {
            profile.iter_mut().for_each(|(_, value)| *value /= norm);
        }
        profile
    })
}

fn dot(a: &Profile, b: &Profile) -> f64 {
    let (mut at_a, mut at_b, mut sum) = (0, 0, 0.0);
    while let (Some(&(node_a, value_a)), Some(&(node_b, value_b))) = (a.get(at_a), b.get(at_b)) {
        match node_a.cmp(&node_b) {
            std::cmp::Ordering::Less => at_a += 1,
            std::cmp::Ordering::Greater => at_b += 1,
            std::cmp::Ordering::Equal => {
                sum += value_a * value_b;
                at_a += 1;
                at_b += 1;
            }
        }
    }
    sum
}

fn name_of(circuit: &Circuit, members: &[NodeIndex]) -> String {
    let labels: Vec<&str> = members.iter().filter_map(|&member| circuit.node(member).label.as_deref()).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    labels.iter().for_each(|label| *counts.entry(label).or_default() += 1);
    if let Some((label, count)) = counts.iter().max_by_key(|(_, count)| **count)
        && *count * 2 > members.len()
    {
        return (*label).to_owned();
    }
    if labels.len() == members.len() {
        let first: Vec<&str> = labels[0].split_whitespace().collect();
        let shared_with =
            |label: &&str| first.iter().zip(label.split_whitespace()).take_while(|(a, b)| **a == *b).count();
        let n_words = labels.iter().map(shared_with).min().unwrap_or(0);
        let beginning = first[..n_words].join(" ");
        let beginning = beginning.trim_end_matches([',', '/', '(', ' ']);
        if !beginning.is_empty() {
            return beginning.to_owned();
        }
    }
    match (labels.first(), circuit.node(members[0]).id) {
        (Some(label), _) => format!("{label} …"),
        (None, NodeId::Feature { layer, feature, .. }) => format!("{layer}_{feature} and {} more", members.len() - 1),
        (None, _) => "group".to_owned(),
    }
}
