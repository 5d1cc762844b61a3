//! Circuits of different prompts, compared by what they have in common.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use petgraph::visit::EdgeRef;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::graph::{Circuit, NodeId};

/// What two circuits share, features matched by (layer, feature) and their positions by alignment of the prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Diff {
    /// Positions of the two prompts that hold the same token, in order (longest common subsequence).
    pub aligned: Vec<(u32, u32)>,
    /// Features of both, by how much their influence changed.
    pub shared: Vec<ChangedFeature>,
    /// Features of the first only, strongest first.
    pub only_left: Vec<ChangedFeature>,
    /// Features of the second only, strongest first.
    pub only_right: Vec<ChangedFeature>,
    /// Features of both over features of either.
    pub jaccard: f64,
    /// Cosine of the features' shares of influence: 1 where the same features carry the same parts.
    pub similarity: f64,
}

/// One (layer, feature), all its positions together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangedFeature {
    /// The layer whose MLP the transcoder reads.
    pub layer: u32,
    /// Index among the features of the layer.
    pub feature: u32,
    /// What the label file says about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Where it is in the left circuit, ascending.
    pub left_positions: Vec<u32>,
    /// Where it is in the right circuit, ascending.
    pub right_positions: Vec<u32>,
    /// Whether some position of the one is aligned with some position of the other.
    pub is_aligned: bool,
    /// Shares of the targets' weight that pass through the feature.
    pub left_share: f64,
    /// As `left_share`.
    pub right_share: f64,
}

/// A feature or an edge that several circuits have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Common {
    /// One (layer, feature); two for an edge, source first.
    pub features: Vec<(u32, u32)>,
    /// What label files say about each of them. `[features.len()]`
    pub labels: Vec<Option<String>>,
    /// Indices of the circuits that have it.
    pub graphs: Vec<usize>,
    /// Mean share of influence over those circuits; for an edge, mean share of the target's input.
    pub mean_share: f64,
}

/// A feature wherever it is in a prompt: layer and feature.
type Key = (u32, u32);

/// Share of influence, positions and label of a feature in one circuit.
type Occurrence = (f64, Vec<u32>, Option<String>);

#[derive(Default)]
struct Features {
    by_feature: BTreeMap<Key, Occurrence>,
}

fn features(circuit: &Circuit) -> Features {
    let influence = circuit.node_influence();
    let total: f64 = circuit.targets().iter().map(|target| influence[target.index()]).sum();
    let mut found = Features::default();
    for index in circuit.graph().node_indices() {
        let node = circuit.node(index);
        if let NodeId::Feature { layer, feature, pos } = node.id {
            let entry = found.by_feature.entry((layer, feature)).or_default();
            entry.0 += if total > 0.0 { influence[index.index()] / total } else { 0.0 };
            entry.1.push(pos);
            entry.1.sort_unstable();
            entry.2 = entry.2.take().or_else(|| node.label.clone());
        }
    }
    found
}

/// Compares two circuits.
///
/// # Cost
/// O(nodes + edges), and the product of the lengths of the prompts.
pub fn diff(left: &Circuit, right: &Circuit) -> Diff {
    let aligned = aligned_positions(&left.meta.prompt_tokens, &right.meta.prompt_tokens);
    let pairs: BTreeSet<(u32, u32)> = aligned.iter().copied().collect();
    let (left, right) = (features(left).by_feature, features(right).by_feature);
    let ids: BTreeSet<(u32, u32)> = left.keys().chain(right.keys()).copied().collect();
    let none = (0.0, Vec::new(), None);
    let (mut shared, mut only_left, mut only_right) = (Vec::new(), Vec::new(), Vec::new());
    let (mut product, mut left_square, mut right_square) = (0.0, 0.0, 0.0);
    for id in &ids {
        let (l, r) = (left.get(id).unwrap_or(&none), right.get(id).unwrap_or(&none));
        product += l.0 * r.0;
        left_square += l.0 * l.0;
        right_square += r.0 * r.0;
        let changed = ChangedFeature {
            layer: id.0,
            feature: id.1,
            label: l.2.clone().or_else(|| r.2.clone()),
            is_aligned: l.1.iter().any(|&a| r.1.iter().any(|&b| pairs.contains(&(a, b)))),
            left_positions: l.1.clone(),
            right_positions: r.1.clone(),
            left_share: l.0,
            right_share: r.0,
        };
        match (left.contains_key(id), right.contains_key(id)) {
            (true, true) => shared.push(changed),
            (true, false) => only_left.push(changed),
            _ => only_right.push(changed),
        }
    }
    let change = |feature: &ChangedFeature| (feature.right_share - feature.left_share).abs();
    for list in [&mut shared, &mut only_left, &mut only_right] {
        list.sort_by(|a, b| change(b).total_cmp(&change(a)));
    }
    let norm = (left_square * right_square).sqrt();
    Diff {
        jaccard: if ids.is_empty() { 1.0 } else { shared.len() as f64 / ids.len() as f64 },
        similarity: if norm > 0.0 { product / norm } else { 0.0 },
        aligned,
        shared,
        only_left,
        only_right,
    }
}

/// Longest common subsequence of two lists of tokens.
pub fn aligned_positions(left: &[String], right: &[String]) -> Vec<(u32, u32)> {
    let mut longest = vec![vec![0u32; right.len() + 1]; left.len() + 1];
    for i in (0..left.len()).rev() {
        for j in (0..right.len()).rev() {
            longest[i][j] =
                if left[i] == right[j] { longest[i + 1][j + 1] + 1 } else { longest[i + 1][j].max(longest[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < left.len() && j < right.len() {
        if left[i] == right[j] {
            pairs.push((i as u32, j as u32));
            i += 1;
            j += 1;
        } else if longest[i + 1][j] >= longest[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

/// An edge between features: their numbers among all features (target first), the circuit, its share there.
#[derive(Clone, Copy)]
struct FoundEdge {
    target: u32,
    source: u32,
    circuit: u32,
    share: f64,
}

impl FoundEdge {
    fn ends(&self) -> (u32, u32) {
        (self.target, self.source)
    }
}

/// The edges between features of one circuit, ascending; of an edge at several positions the largest counts.
fn feature_edges(at: usize, circuit: &Circuit, number: &HashMap<Key, u32>) -> Vec<FoundEdge> {
    let graph = circuit.graph();
    // Once a node, not once an edge.
    let numbers: Vec<Option<u32>> = graph
        .node_weights()
        .map(|node| match node.id {
            NodeId::Feature { layer, feature, .. } => number.get(&(layer, feature)).copied(),
            _ => None,
        })
        .collect();
    let found = graph.edge_references().filter_map(|edge| {
        let (source, target) = (numbers[edge.source().index()]?, numbers[edge.target().index()]?);
        Some(FoundEdge { target, source, circuit: at as u32, share: edge.weight().share })
    });
    let mut edges: Vec<FoundEdge> = found.collect();
    edges.sort_unstable_by(|a, b| a.ends().cmp(&b.ends()).then(b.share.total_cmp(&a.share)));
    edges.dedup_by_key(|edge| edge.ends());
    edges
}

/// Features, then edges between features, that at least `at_least` of `circuits` have; most common first, then by share.
///
/// # Cost
/// O(nodes + edges) with a logarithm for sorting; circuits in parallel.
pub fn common(circuits: &[Circuit], at_least: usize) -> (Vec<Common>, Vec<Common>) {
    let mut nodes: BTreeMap<Key, Vec<(usize, f64)>> = BTreeMap::new();
    let mut labels: BTreeMap<Key, String> = BTreeMap::new();
    for (at, circuit) in circuits.iter().enumerate() {
        for (id, (share, _, label)) in features(circuit).by_feature {
            nodes.entry(id).or_default().push((at, share));
            if let Some(label) = label {
                labels.entry(id).or_insert(label);
            }
        }
    }
    // What too few have has no edges that enough have.
    nodes.retain(|_, found| found.len() >= at_least);
    let ids: Vec<Key> = nodes.keys().copied().collect();
    let number: HashMap<Key, u32> = ids.iter().enumerate().map(|(at, &id)| (id, at as u32)).collect();
    let found: Vec<Vec<FoundEdge>> =
        circuits.par_iter().enumerate().map(|(at, circuit)| feature_edges(at, circuit, &number)).collect();
    let mut edges = found.concat();
    // Stable: it merges the sorted runs of the circuits and leaves these in order.
    edges.sort_by_key(FoundEdge::ends);
    let described = |features: Vec<Key>, found: Vec<(usize, f64)>| Common {
        labels: features.iter().map(|id| labels.get(id).cloned()).collect(),
        features,
        mean_share: mean(found.iter().map(|(_, share)| *share)),
        graphs: found.into_iter().map(|(at, _)| at).collect(),
    };
    let mut features: Vec<Common> = nodes.into_iter().map(|(id, found)| described(vec![id], found)).collect();
    features.sort_by(|a, b| commonest_first((a.graphs.len(), a.mean_share), (b.graphs.len(), b.mean_share)));

    // Sorted before they are described: there may be a hundred thousand.
    let mut kept: Vec<(&[FoundEdge], f64)> = edges
        .chunk_by(|a, b| a.ends() == b.ends())
        .filter(|found| found.len() >= at_least)
        .map(|found| (found, mean(found.iter().map(|edge| edge.share))))
        .collect();
    kept.sort_by(|a, b| commonest_first((a.0.len(), a.1), (b.0.len(), b.1)));
    let described_edge = |(found, _): (&[FoundEdge], f64)| {
        let ends = vec![ids[found[0].source as usize], ids[found[0].target as usize]];
        described(ends, found.iter().map(|edge| (edge.circuit as usize, edge.share)).collect())
    };
    (features, kept.into_iter().map(described_edge).collect())
}

fn mean(shares: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = shares.len() as f64;
    shares.sum::<f64>() / count
}

/// Order of (number of graphs, mean share).
fn commonest_first(a: (usize, f64), b: (usize, f64)) -> Ordering {
    b.0.cmp(&a.0).then(b.1.total_cmp(&a.1))
}
