//! Influence, scores and paths: against the reference, and against slow obvious twins on random graphs.

use circuitscope::graph::{
    AttributionGraph, Circuit, CircuitMeta, EdgeRows, FeatureId, GraphData, GraphMeta, Link, Node, NodeId, PartialRows,
    influence, next_features, partial_influence, scores, strongest_paths, subgraph_scores,
};
use petgraph::graph::NodeIndex;
use proptest::prelude::*;

use crate::reference::cases;
use crate::support::close;

/// A random graph with the zeros that definitions 4 demands.
pub fn any_graph() -> impl Strategy<Value = AttributionGraph> {
    let sizes = (1usize..4, 1usize..4, 1usize..3);
    let features = prop::collection::btree_set((0u32..4, 0u32..4, 0u32..6), 0..14);
    (sizes, features, any::<u64>()).prop_map(|((n_layers, n_pos, n_targets), features, seed)| {
        let fits = |&(layer, pos, _): &(u32, u32, u32)| (layer as usize) < n_layers && (pos as usize) < n_pos;
        let features = features.into_iter().filter(fits);
        let features: Vec<FeatureId> =
            features.map(|(layer, pos, feature)| FeatureId { layer, pos, feature }).collect();
        random_graph(features, n_layers, n_pos, n_targets, seed)
    })
}

pub fn random_graph(
    features: Vec<FeatureId>,
    n_layers: usize,
    n_pos: usize,
    n_targets: usize,
    mut seed: u64,
) -> AttributionGraph {
    // xorshift: a few lines that give the same numbers everywhere.
    let mut random = || {
        seed |= 1;
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed >> 40) as f32 / (1u64 << 24) as f32
    };
    let n_features = features.len();
    let n_nodes = n_features + n_layers * n_pos + n_pos + n_targets;
    let n_rows = n_features + n_targets;
    let layout = circuitscope::graph::NodeLayout::new(features.clone(), n_layers, n_pos, n_targets).unwrap();
    let mut values = vec![0.0f32; n_rows * n_nodes];
    for row in 0..n_rows {
        for column in layout.source_ranges(row).flatten() {
            if random() < 0.7 {
                values[row * n_nodes + column] = random() * 2.0 - 1.0;
            }
        }
    }
    let row_sums = |row: usize| values[row * n_nodes..(row + 1) * n_nodes].iter().sum::<f32>();
    let row_values: Vec<f32> = (0..n_rows).map(row_sums).collect();
    AttributionGraph::new(GraphData {
        input_tokens: (0..n_pos as i64).collect(),
        activation_values: (0..n_features).map(|_| random() + 0.1).collect(),
        selected_features: (0..n_features).collect(),
        active_features: features,
        edge_rows: EdgeRows::from_vec(values, n_rows, n_nodes).unwrap(),
        bias_effect: vec![0.0; n_rows],
        unselected_effect: Vec::new(),
        error_nodes: None,
        unselected_error_effect: Vec::new(),
        row_values,
        target_ids: (0..n_targets as i64).map(|k| 100 + k).collect(),
        target_probabilities: (0..n_targets).map(|_| random() / n_targets as f32 + 0.01).collect(),
        logits: vec![0.5; 8],
        meta: GraphMeta {
            format_version: circuitscope::graph::RAW_FORMAT_VERSION,
            prompt: "a prompt".to_owned(),
            prompt_tokens: (0..n_pos).map(|pos| format!(" t{pos}")).collect(),
            target_labels: (0..n_targets).map(|k| format!(" out{k}")).collect(),
            target_positions: vec![n_pos as u32 - 1; n_targets],
            n_layers,
            ..GraphMeta::default()
        },
    })
    .unwrap()
}

/// The normalised adjacency of all nodes. [n_nodes][n_nodes].
fn dense_normalised(graph: &AttributionGraph) -> Vec<Vec<f64>> {
    let layout = graph.layout();
    let mut dense = vec![vec![0.0; layout.n_nodes()]; layout.n_nodes()];
    for row in 0..layout.n_rows() {
        let target = layout.node_of_row(row).unwrap();
        let abs_sum: f64 = graph.row(row).iter().map(|v| f64::from(v.abs())).sum();
        for (normalised, value) in dense[target].iter_mut().zip(graph.row(row)) {
            *normalised = f64::from(value.abs()) / abs_sum.max(1e-10);
        }
    }
    dense
}

/// `w·N + w·N² + …`, one power after the other.
fn power_series(graph: &AttributionGraph) -> Vec<f64> {
    let normalised = dense_normalised(graph);
    let n_nodes = normalised.len();
    let mut power = vec![0.0; n_nodes];
    for (power, &weight) in power[graph.layout().targets()].iter_mut().zip(&graph.target_probabilities) {
        *power = f64::from(weight);
    }
    let mut total = vec![0.0; n_nodes];
    while power.iter().any(|&p| p != 0.0) {
        power = (0..n_nodes).map(|s| (0..n_nodes).map(|t| power[t] * normalised[t][s]).sum()).collect();
        total.iter_mut().zip(&power).for_each(|(total, power)| *total += power);
    }
    total
}

#[test]
fn scores_equal_the_reference() {
    for case in cases() {
        let graph = case.graph();
        let weights = &graph.target_probabilities;
        let influence = influence(&graph.edge_rows, graph.layout(), weights);
        let scores = scores(graph.layout(), &influence, weights);
        let name = &case.name;
        close(scores.replacement, case.number("replacement_score"), 1e-5, 0.0, &format!("{name} replacement"));
        close(scores.completeness, case.number("completeness_score"), 1e-5, 0.0, &format!("{name} completeness"));

        // A subgraph with every feature pinned is the graph.
        let pinned = vec![true; graph.layout().n_features()];
        let of_all = subgraph_scores(&graph.edge_rows, graph.layout(), weights, &pinned);
        close(of_all.replacement, scores.replacement, 1e-12, 0.0, name);
        close(of_all.completeness, scores.completeness, 1e-12, 0.0, name);
    }
}

#[test]
fn reference_adjacency_is_zero_outside_of_the_source_ranges() {
    for case in cases() {
        let graph = case.graph();
        for row in 0..graph.layout().n_rows() {
            let in_ranges = graph.layout().source_ranges(row).flatten().filter(|&s| graph.row(row)[s] != 0.0).count();
            let everywhere = graph.row(row).iter().filter(|&&v| v != 0.0).count();
            assert_eq!(in_ranges, everywhere, "{} row {row}", case.name);
        }
    }
}

#[test]
fn influence_does_not_depend_on_the_number_of_threads() {
    let case = &cases()[0];
    let graph = case.graph();
    let compute = || influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities);
    let on = |n: usize| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap().install(compute);
    assert_eq!(on(1), on(3));
}

#[test]
fn visiting_every_feature_in_influence_order_gives_the_whole_influence() {
    for case in cases().iter().take(4) {
        let graph = case.graph();
        let layout = graph.layout();
        let weights = &graph.target_probabilities;
        let n_active = layout.n_features();
        let mut values: Vec<f32> = (n_active..layout.n_rows()).flat_map(|row| graph.row(row).to_vec()).collect();
        let (mut visited, mut is_visited) = (Vec::new(), vec![false; n_active]);
        let mut partial;
        loop {
            partial = partial_influence(&PartialRows {
                values: &values,
                stride: layout.n_nodes(),
                n_columns: layout.targets().start,
                n_active,
                weights,
                visited: &visited,
            });
            let next = next_features(&partial, &is_visited, 40);
            if next.is_empty() {
                break;
            }
            for feature in next {
                visited.push(feature);
                is_visited[feature] = true;
                values.extend_from_slice(graph.row(feature));
            }
        }
        let whole = influence(&graph.edge_rows, layout, weights);
        for (partial, whole) in partial.iter().zip(&whole.nodes) {
            close(*partial, *whole, 1e-12, 1e-9, &case.name);
        }
    }
}

#[test]
fn next_features_prefer_the_strongest_then_the_first() {
    let influence = [0.1, 0.5, 0.2, 0.5, 0.0];
    let visited = [false, false, true, false, false];
    assert_eq!(next_features(&influence, &visited, 3), [1, 3, 0]);
    assert_eq!(next_features(&influence, &visited, 9), [1, 3, 0, 4]);
    assert_eq!(next_features(&influence, &visited, 0), [0usize; 0]);
}

#[test]
fn row_identity_error_finds_a_row_that_does_not_add_up() {
    let features = vec![FeatureId { layer: 0, pos: 0, feature: 1 }, FeatureId { layer: 1, pos: 1, feature: 1 }];
    let graph = random_graph(features, 2, 2, 1, 7);
    assert!(graph.row_identity_error() < 1e-6, "{}", graph.row_identity_error());

    let case = &cases()[0];
    // The reference drops the bias effects, so its rows do not add up to these values of zero.
    assert!(case.graph().row_identity_error() > 1e-3);
}

proptest! {
    #[test]
    fn one_sweep_equals_the_power_series(graph in any_graph()) {
        let swept = influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities);
        for (node, (actual, expected)) in swept.nodes.iter().zip(power_series(&graph)).enumerate() {
            prop_assert!((actual - expected).abs() <= 1e-12, "node {node}: {actual} is not {expected}");
        }
    }

    #[test]
    fn subgraph_scores_equal_those_of_the_rewritten_graph(graph in any_graph(), pins in any::<u64>()) {
        let layout = graph.layout();
        let pinned: Vec<bool> = layout.features().map(|i| pins >> (i % 64) & 1 == 1).collect();
        let weights = &graph.target_probabilities;
        let actual = subgraph_scores(&graph.edge_rows, layout, weights, &pinned);

        let mut rows = graph.edge_rows.values().to_vec();
        for row in 0..layout.n_rows() {
            let row_values = &mut rows[row * layout.n_nodes()..(row + 1) * layout.n_nodes()];
            for source in layout.features().filter(|&s| !pinned[s]) {
                let FeatureId { layer, pos, .. } = layout.feature_ids()[source];
                row_values[layout.index(NodeId::Error { layer, pos }).unwrap()] += row_values[source];
                row_values[source] = 0.0;
            }
            if row < layout.n_features() && !pinned[row] {
                row_values.fill(0.0);
            }
        }
        let rows = EdgeRows::from_vec(rows, layout.n_rows(), layout.n_nodes()).unwrap();
        let expected = scores(layout, &influence(&rows, layout, weights), weights);
        prop_assert!((actual.replacement - expected.replacement).abs() < 1e-5);
        prop_assert!((actual.completeness - expected.completeness).abs() < 1e-5);
    }

    #[test]
    fn strongest_paths_equal_brute_force(
        n_nodes in 2usize..8,
        links in prop::collection::vec((0usize..8, 0usize..8, -1.0f32..1.0), 0..24),
        count in 1usize..6,
    ) {
        let circuit = circuit_of(n_nodes, &links);
        let sources: Vec<NodeIndex> = (0..2.min(n_nodes)).map(NodeIndex::new).collect();
        let targets = [NodeIndex::new(n_nodes - 1)];
        let found = strongest_paths(&circuit, &sources, &targets, count);

        let mut all = Vec::new();
        for &source in &sources {
            walk(&circuit, source, targets[0], 1.0, &mut all);
        }
        all.sort_by(|a, b| b.total_cmp(a));
        prop_assert!((found.total - all.iter().sum::<f64>()).abs() < 1e-9);
        prop_assert_eq!(found.paths.len(), count.min(all.len()));
        for (path, expected) in found.paths.iter().zip(all) {
            prop_assert!((path.strength - expected).abs() < 1e-12);
            let mut product = 1.0;
            for step in path.nodes.windows(2) {
                let edge = circuit.graph().find_edge(step[0], step[1]).unwrap();
                product *= circuit.graph()[edge].share;
            }
            prop_assert!((product - path.strength).abs() < 1e-12);
        }
    }
}

/// A circuit of features 0..n_nodes with the links that lead upwards, each pair once.
fn circuit_of(n_nodes: usize, links: &[(usize, usize, f32)]) -> Circuit {
    let node = |index: usize| Node {
        id: NodeId::Feature { layer: index as u32, pos: 0, feature: 0 },
        pos: 0,
        token_id: None,
        text: String::new(),
        label: None,
        activation: None,
        influence: None,
        probability: None,
        estimate: None,
    };
    let mut seen = std::collections::BTreeSet::new();
    let links = links.iter().filter(|&&(s, t, _)| s < t && t < n_nodes && seen.insert((s, t)));
    let links: Vec<Link> = links.map(|&(source, target, weight)| Link { source, target, weight }).collect();
    Circuit::new(CircuitMeta::default(), (0..n_nodes).map(node).collect(), links).unwrap()
}

/// Pushes the strength of every path from `from` to `to`.
fn walk(circuit: &Circuit, from: NodeIndex, to: NodeIndex, strength: f64, all: &mut Vec<f64>) {
    if from == to {
        all.push(strength);
    }
    for output in circuit.outputs(from) {
        if output.edge.share > 0.0 {
            walk(circuit, output.node, to, strength * output.edge.share, all);
        }
    }
}

#[test]
fn a_circuit_refuses_cycles_duplicates_and_links_to_nowhere() {
    let circuit = circuit_of(3, &[(0, 1, 1.0), (1, 2, 1.0)]);
    let nodes: Vec<Node> = circuit.graph().node_weights().cloned().collect();
    let build = |nodes: Vec<Node>, links: Vec<(usize, usize, f32)>| {
        let links: Vec<Link> =
            links.into_iter().map(|(source, target, weight)| Link { source, target, weight }).collect();
        Circuit::new(CircuitMeta::default(), nodes, links).map_err(|e| e.to_string())
    };
    assert!(build(nodes.clone(), vec![(0, 1, 1.0), (1, 0, 1.0)]).unwrap_err().contains("cycle"));
    assert!(build(nodes.clone(), vec![(0, 7, 1.0)]).unwrap_err().contains("7"));
    assert!(build(nodes.clone(), vec![(0, 1, f32::NAN)]).unwrap_err().contains("not finite"));
    assert!(build(vec![nodes[0].clone(), nodes[0].clone()], vec![]).unwrap_err().contains("twice"));
}
