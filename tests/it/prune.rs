//! Pruning: against the reference's masks, and against the rules of definitions 7 taken literally.

use circuitscope::Error;
use circuitscope::graph::{AttributionGraph, CompactLink, EdgeRows, GraphData, Node, NodeId, NodeLayout, influence};
use circuitscope::prune::{PruneSettings, Pruned, nodes_within, prune, prune_links, strongest_within};
use proptest::prelude::*;

use crate::graph::any_graph;
use crate::reference::cases;
use crate::support::close;

/// Float32 sums decide which scores in the last part of the total circuit-tracer still counts at threshold 1.
const TAIL: f64 = 1e-6;

fn pruned(graph: &AttributionGraph, node_threshold: f64, edge_threshold: f64) -> Pruned {
    let influence = influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities);
    prune(graph, &influence, &PruneSettings { node_threshold, edge_threshold, max_nodes: None }).unwrap()
}

/// [n_nodes * n_nodes], target-major.
fn edge_mask(pruned: &Pruned) -> Vec<bool> {
    let n_nodes = pruned.node_mask.len();
    let mut mask = vec![false; n_nodes * n_nodes];
    for edge in &pruned.edges {
        mask[edge.target * n_nodes + edge.source] = true;
    }
    mask
}

#[test]
fn masks_and_cumulative_influence_equal_the_reference() {
    for case in cases() {
        let graph = case.graph();
        for (name, node_threshold, edge_threshold) in [("0.8_0.98", 0.8, 0.98), ("0.6_0.9", 0.6, 0.9)] {
            let pruned = pruned(&graph, node_threshold, edge_threshold);
            let what = format!("{} {name}", case.name);
            assert_eq!(pruned.node_mask, case.bools(&format!("prune_{name}.node_mask")), "{what}");
            assert_eq!(edge_mask(&pruned), case.bools(&format!("prune_{name}.edge_mask")), "{what}");
            let cumulative = case.f32s(&format!("prune_{name}.cumulative_influence"));
            assert_eq!(pruned.cumulative_influence.len(), cumulative.len(), "{what}");
            assert!(pruned.node_mask[..graph.layout().targets().start].contains(&true), "{what}: nothing is kept");
            for ((index, &actual), expected) in pruned.cumulative_influence.iter().enumerate().zip(cumulative) {
                if pruned.node_mask[index] && index < graph.layout().targets().start {
                    close(actual, f64::from(expected), 2e-6, 0.0, &format!("{what} node {index}"));
                }
            }
        }
    }
}

#[test]
fn thresholds_of_one_differ_from_the_reference_in_the_last_millionth_only() {
    for case in cases() {
        let graph = case.graph();
        let layout = graph.layout();
        let influence = influence(&graph.edge_rows, layout, &graph.target_probabilities);
        let pruned = pruned(&graph, 1.0, 1.0);
        let expected = case.bools("prune_1.0_1.0.node_mask");
        let total: f64 = influence.nodes.iter().sum();
        let differing = (0..layout.n_nodes()).filter(|&node| pruned.node_mask[node] != expected[node]);
        let difference: f64 = differing.map(|node| influence.nodes[node]).sum();
        assert!(difference <= TAIL * total, "{}: nodes differ by {difference:e} of {total}", case.name);

        let expected = case.bools("prune_1.0_1.0.edge_mask");
        let mask = edge_mask(&pruned);
        let (mut difference, mut total) = (0.0, 0.0);
        for row in 0..layout.n_rows() {
            let target = layout.node_of_row(row).unwrap();
            let passed_on = match row.checked_sub(layout.n_features()) {
                Some(target) => f64::from(graph.target_probabilities[target]),
                None => influence.nodes[row],
            };
            for source in 0..layout.n_nodes() {
                let weight = f64::from(graph.row(row)[source].abs());
                let score = weight * passed_on / influence.row_abs_sums[row].max(1e-10);
                total += score;
                let place = target * layout.n_nodes() + source;
                if mask[place] != expected[place] {
                    difference += score;
                }
            }
        }
        assert!(difference <= TAIL * total, "{}: edges differ by {difference:e} of {total}", case.name);
    }
}

#[test]
fn thresholds_outside_of_the_unit_interval_are_refused() {
    for (node_threshold, edge_threshold) in [(-0.1, 0.9), (1.1, 0.9), (0.8, f64::NAN), (0.8, 2.0)] {
        let error = PruneSettings { node_threshold, edge_threshold, max_nodes: None }.check().unwrap_err();
        assert!(matches!(error, Error::Threshold { .. }), "{error}");
    }
}

#[test]
fn zero_thresholds_keep_tokens_and_targets() {
    let graph = cases()[0].graph();
    let pruned = pruned(&graph, 0.0, 0.0);
    assert!(pruned.node_mask[graph.layout().tokens().start..].iter().all(|&kept| kept));
    pruned.circuit(&graph).unwrap();
}

/// Definitions 7 with a sort of all pairs, dense matrices and repetition until nothing changes.
fn prune_slowly(graph: &AttributionGraph, node_threshold: f64, edge_threshold: f64) -> (Vec<bool>, Vec<bool>) {
    let layout = graph.layout();
    let n = layout.n_nodes();
    let mut adjacency = vec![0.0f64; n * n];
    for row in 0..layout.n_rows() {
        let target = layout.node_of_row(row).unwrap();
        for source in 0..n {
            adjacency[target * n + source] = f64::from(graph.row(row)[source].abs());
        }
    }
    let normalise = |adjacency: &[f64]| -> Vec<f64> {
        let rows = adjacency.chunks_exact(n);
        rows.flat_map(|row| row.iter().map(|v| v / row.iter().sum::<f64>().max(1e-10)).collect::<Vec<_>>()).collect()
    };
    let mut weights = vec![0.0; n];
    for (weight, &p) in weights[layout.targets()].iter_mut().zip(&graph.target_probabilities) {
        *weight = f64::from(p);
    }
    let series = |normalised: &[f64]| {
        let (mut power, mut total) = (weights.clone(), vec![0.0; n]);
        while power.iter().any(|&p| p != 0.0) {
            power = (0..n).map(|s| (0..n).map(|t| power[t] * normalised[t * n + s]).sum()).collect();
            total.iter_mut().zip(&power).for_each(|(total, power)| *total += power);
        }
        total
    };
    let smallest = |scores: &[f64], threshold: f64| {
        let mut sorted = scores.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let total: f64 = sorted.iter().sum();
        let mut sum = 0.0;
        for &score in &sorted {
            sum += score;
            // A little less than the threshold, since the sums of the two programs run in different orders.
            if sum / total >= threshold - 1e-12 {
                return score * (1.0 - 1e-9);
            }
        }
        f64::MIN_POSITIVE
    };
    let influence = series(&normalise(&adjacency));
    let cut = smallest(&influence, node_threshold);
    let always = layout.tokens().start;
    let mut nodes: Vec<bool> = (0..n).map(|i| i >= always || (influence[i] >= cut && influence[i] > 0.0)).collect();
    for target in 0..n {
        for source in 0..n {
            if !nodes[target] || !nodes[source] {
                adjacency[target * n + source] = 0.0;
            }
        }
    }
    let normalised = normalise(&adjacency);
    let influence = series(&normalised);
    let scores: Vec<f64> = (0..n * n).map(|e| normalised[e] * (influence[e / n] + weights[e / n])).collect();
    let cut = smallest(&scores, edge_threshold);
    let mut edges: Vec<bool> = scores.iter().map(|&score| score >= cut && score > 0.0).collect();
    loop {
        let before = (nodes.clone(), edges.clone());
        for node in 0..always {
            let leads_on = (0..n).any(|target| edges[target * n + node]);
            let is_fed = (0..n).any(|source| edges[node * n + source]);
            nodes[node] &= leads_on && (is_fed || node >= layout.n_features());
        }
        for edge in 0..n * n {
            edges[edge] &= nodes[edge / n] && nodes[edge % n];
        }
        if before == (nodes.clone(), edges.clone()) {
            return (nodes, edges);
        }
    }
}

proptest! {
    #[test]
    fn pruning_equals_the_rules_taken_literally(
        graph in any_graph(),
        node_threshold in 0.05f64..0.999,
        edge_threshold in 0.05f64..0.999,
    ) {
        let pruned = pruned(&graph, node_threshold, edge_threshold);
        let (nodes, edges) = prune_slowly(&graph, node_threshold, edge_threshold);
        prop_assert_eq!(&pruned.node_mask, &nodes);
        prop_assert_eq!(edge_mask(&pruned), edges);
        let circuit = pruned.circuit(&graph).unwrap();
        prop_assert_eq!(circuit.graph().node_count(), pruned.n_nodes());
    }

    /// No more nodes than are wanted, and none of less influence than one that is left out.
    #[test]
    fn at_most_so_many_nodes_stay_and_those_are_the_strongest(
        graph in any_graph(),
        node_threshold in 0.3f64..=1.0,
        most in 1usize..20,
    ) {
        let layout = graph.layout();
        let whole = influence(&graph.edge_rows, layout, &graph.target_probabilities);
        let all = PruneSettings { node_threshold, edge_threshold: 1.0, max_nodes: None };
        let limited = PruneSettings { max_nodes: Some(most), ..all };
        let [all, limited] = [all, limited].map(|settings| prune(&graph, &whole, &settings).unwrap());
        let is_fixed = |node: usize| node >= layout.tokens().start;
        let n_fixed = layout.n_nodes() - layout.tokens().start;
        let mut scores = whole.nodes[..layout.tokens().start].to_vec();
        scores.sort_by(|a, b| b.total_cmp(a));
        let n_others = most.saturating_sub(n_fixed);
        let kept_of = |pruned: &Pruned| -> Vec<usize> {
            (0..layout.n_nodes()).filter(|&node| pruned.node_mask[node] && !is_fixed(node)).collect()
        };
        let kept = kept_of(&limited);
        prop_assert!(kept.len() <= n_others && all.n_left_out == 0);
        prop_assert!(limited.n_left_out >= kept_of(&all).len().saturating_sub(n_others));
        prop_assert!(limited.n_left_out > 0 || limited.node_mask == all.node_mask);
        let last = n_others.checked_sub(1).map_or(f64::INFINITY, |at| scores.get(at).copied().unwrap_or_default());
        for node in kept {
            prop_assert!(whole.nodes[node] >= last, "{} is among the strongest", whole.nodes[node]);
        }
    }

    /// The same rules for a graph that is there as links with cumulative shares, many of them equal.
    #[test]
    fn pruning_links_equals_the_rules_taken_literally(
        graph in any_graph(),
        coarse in any::<bool>(),
        node_threshold in 0.05f64..0.999,
        edge_threshold in 0.05f64..0.999,
    ) {
        let graph = if coarse { coarsened(&graph) } else { graph };
        let layout = graph.layout();
        let whole = influence(&graph.edge_rows, layout, &graph.target_probabilities);
        // Nothing is pruned away: with every node in the file, its steps are the scores.
        let shares = pruned(&graph, 1.0, 1.0).cumulative_influence;
        let n = layout.n_nodes();
        let nodes: Vec<Node> = (0..n).map(|at| node(&graph, layout, at, shares[at])).collect();
        let (slow_nodes, slow_edges) = prune_slowly(&graph, node_threshold, edge_threshold);

        let within = nodes_within(&nodes, node_threshold);
        // Nodes without influence have the share of the last that has some.
        let mut links = Vec::new();
        for row in 0..layout.n_rows() {
            let target = layout.node_of_row(row).unwrap();
            for source in (0..n).filter(|&source| within[source] && within[target]) {
                let weight = graph.row(row)[source];
                if weight != 0.0 {
                    links.push(CompactLink { source: source as u32, target: target as u32, weight });
                }
            }
        }
        let stays = prune_links(&nodes, &mut links, edge_threshold).unwrap();
        let mut edges = vec![false; n * n];
        links.iter().for_each(|link| edges[link.target as usize * n + link.source as usize] = true);
        let kept: Vec<bool> = (0..n).map(|at| within[at] && stays[at]).collect();
        prop_assert_eq!(kept, slow_nodes, "{:?}", whole.nodes);
        prop_assert_eq!(edges, slow_edges);
    }
}

/// The graph with weights of one size only, so that many scores are equal.
fn coarsened(graph: &AttributionGraph) -> AttributionGraph {
    let layout = graph.layout();
    let values = graph.edge_rows.values().iter().map(|v| if *v == 0.0 { 0.0 } else { v.signum() }).collect();
    let edge_rows = EdgeRows::from_vec(values, layout.n_rows(), layout.n_nodes()).unwrap();
    AttributionGraph::new(GraphData {
        input_tokens: graph.input_tokens.clone(),
        active_features: graph.active_features.clone(),
        activation_values: graph.activation_values.clone(),
        selected_features: graph.selected_features.clone(),
        edge_rows,
        bias_effect: graph.bias_effect.clone(),
        unselected_effect: graph.unselected_effect.clone(),
        error_nodes: None,
        unselected_error_effect: Vec::new(),
        row_values: graph.row_values.clone(),
        target_ids: graph.target_ids.clone(),
        target_probabilities: graph.target_probabilities.clone(),
        logits: graph.logits.clone(),
        meta: graph.meta.clone(),
    })
    .unwrap()
}

fn node(graph: &AttributionGraph, layout: &NodeLayout, at: usize, share: f64) -> Node {
    let id = layout.node(at).unwrap();
    let target = match id {
        NodeId::Target { index } => Some(index as usize),
        _ => None,
    };
    Node {
        id,
        pos: id.pos().unwrap_or_default(),
        token_id: None,
        text: String::new(),
        label: None,
        activation: None,
        influence: target.is_none().then_some(share),
        probability: target.map(|index| graph.target_probabilities[index]),
        estimate: None,
    }
}

#[test]
fn nodes_that_equal_the_one_at_the_threshold_stay() {
    let feature = |feature: u32, share: f64| Node {
        id: NodeId::Feature { layer: 0, pos: 0, feature },
        pos: 0,
        token_id: None,
        text: String::new(),
        label: None,
        activation: None,
        influence: Some(share),
        probability: None,
        estimate: None,
    };
    // Scores 0.4, three of 0.15, and 0.1 and 0.05.
    let nodes = [0.4, 0.55, 0.7, 0.85, 0.95, 1.0].into_iter().enumerate();
    let nodes: Vec<Node> = nodes.map(|(at, share)| feature(at as u32, share)).collect();
    assert_eq!(nodes_within(&nodes, 0.3), [true, false, false, false, false, false]);
    assert_eq!(nodes_within(&nodes, 0.5), [true, true, true, true, false, false]);
    assert_eq!(nodes_within(&nodes, 0.9), [true, true, true, true, true, false]);
    assert_eq!(nodes_within(&nodes, 1.0), [true; 6]);
    let most = |max_nodes| PruneSettings { node_threshold: 0.9, edge_threshold: 1.0, max_nodes };
    assert_eq!(strongest_within(&nodes, &most(None)), (vec![true, true, true, true, true, false], 0));
    assert_eq!(strongest_within(&nodes, &most(Some(2))), (vec![true, true, false, false, false, false], 3));
}
