//! What is done with circuits: parts, paths, supernodes, comparison, pictures, large files.

use std::collections::{BTreeMap, BTreeSet};

use circuitscope::Error;
use circuitscope::circuits::{
    ClusterSettings, GroupRequest, Opening, Part, Selection, Supernode, carried, carrying_paths, circuit_scores,
    collapse, common, diff, find_supernodes, neighborhood, open_graph, pinned_scores, save, strongest_path_groups,
};
use circuitscope::export::{WireGraph, stream_wire, wire, write_raw};
use circuitscope::graph::{
    AttributionGraph, Circuit, CircuitMeta, Link, Node, NodeId, NodeKind, influence, scores, strongest_paths,
    subgraph_scores,
};
use circuitscope::picture::{Cells, PictureSettings, arrange, csv_edges, csv_nodes, dot, graphml, svg};
use circuitscope::prune::{PruneSettings, nodes_within, prune, prune_links};
use petgraph::graph::NodeIndex;
use petgraph::visit::EdgeRef;
use proptest::prelude::*;

use crate::graph::any_graph;
use crate::support::close;

pub fn node(id: NodeId, pos: u32) -> Node {
    Node {
        id,
        pos,
        token_id: matches!(id, NodeId::Token { .. } | NodeId::Target { .. }).then_some(7),
        text: " tok & <i>\"".to_owned(),
        label: None,
        activation: None,
        influence: None,
        probability: matches!(id, NodeId::Target { .. }).then_some(0.5),
        estimate: None,
    }
}

const N_LAYERS: u32 = 6;
const N_POS: u32 = 5;

/// A circuit with features and errors anywhere and edges upwards between any of its nodes.
pub fn any_circuit(n_features: std::ops::Range<usize>) -> impl Strategy<Value = Circuit> {
    let cells = prop::collection::btree_set((0..N_LAYERS, 0..N_POS, 0..40u32, prop::bool::weighted(0.15)), n_features);
    (cells, prop::collection::vec((any::<u32>(), any::<u32>(), -1.0f32..1.0), 0..120)).prop_map(|(cells, edges)| {
        let mut ids: BTreeSet<NodeId> = BTreeSet::new();
        for (layer, pos, feature, is_error) in cells {
            let feature_id = NodeId::Feature { layer, pos, feature };
            ids.insert(if is_error { NodeId::Error { layer, pos } } else { feature_id });
        }
        ids.extend((0..N_POS).map(|pos| NodeId::Token { pos }));
        ids.insert(NodeId::Target { index: 0 });
        let nodes: Vec<Node> = ids.into_iter().map(|id| node(id, id.pos().unwrap_or(N_POS - 1))).collect();
        let mut links: BTreeMap<(usize, usize), f32> = BTreeMap::new();
        for (a, b, weight) in edges {
            let (a, b) = (a as usize % nodes.len(), b as usize % nodes.len());
            let (low, high) = if nodes[a].id.height() <= nodes[b].id.height() { (a, b) } else { (b, a) };
            let leads_up = nodes[low].id.height() < nodes[high].id.height();
            if leads_up && !matches!(nodes[high].id, NodeId::Error { .. }) {
                links.insert((high, low), weight);
            }
        }
        let links: Vec<Link> =
            links.into_iter().map(|((target, source), weight)| Link { source, target, weight }).collect();
        let meta = CircuitMeta {
            prompt: "a & b <c>".to_owned(),
            prompt_tokens: vec!["tok".to_owned(); N_POS as usize],
            n_layers: N_LAYERS as usize,
            ..CircuitMeta::default()
        };
        Circuit::new(meta, nodes, links).unwrap()
    })
}

fn all_paths(circuit: &Circuit, from: NodeIndex, strength: f64, ends: &[NodeIndex], found: &mut Vec<f64>) {
    if ends.contains(&from) {
        found.push(strength);
    }
    for edge in circuit.graph().edges(from) {
        if edge.weight().share > 0.0 {
            all_paths(circuit, edge.target(), strength * edge.weight().share, ends, found);
        }
    }
}

/// What the paths that begin at nodes of one kind and stay within `part` carry to the targets, path by path. Errors begin
/// paths whether they are part of it or not.
fn carried_slowly(circuit: &Circuit, part: &[NodeIndex], kind: NodeKind) -> f64 {
    fn from(circuit: &Circuit, part: &[NodeIndex], node: NodeIndex) -> f64 {
        if let NodeId::Target { .. } = circuit.node(node).id {
            return circuit.node(node).probability.map_or(1.0, f64::from);
        }
        let edges = circuit.graph().edges(node).filter(|edge| part.contains(&edge.target()));
        edges.map(|edge| edge.weight().share * from(circuit, part, edge.target())).sum()
    }
    let begins =
        |node: &NodeIndex| circuit.node(*node).id.kind() == kind && (kind == NodeKind::Error || part.contains(node));
    circuit.graph().node_indices().filter(begins).map(|node| from(circuit, part, node)).sum()
}

/// Every path from a target down to where nothing feeds it, target first, with its share of the target's weight.
fn paths_down(circuit: &Circuit, path: &mut Vec<NodeIndex>, share: f64, visit: &mut dyn FnMut(&[NodeIndex], f64)) {
    let node = *path.last().unwrap();
    let inputs: Vec<_> = circuit.inputs(node).into_iter().filter(|input| input.edge.share > 0.0).collect();
    if inputs.is_empty() {
        visit(path, share);
    }
    for input in inputs {
        path.push(input.node);
        paths_down(circuit, path, share * input.edge.share, visit);
        path.pop();
    }
}

pub fn circuit_of(graph: &AttributionGraph, settings: &PruneSettings) -> Circuit {
    let influence = influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities);
    prune(graph, &influence, settings).unwrap().circuit(graph).unwrap()
}

/// The graph as a circuit, nothing dropped: pruning drops features that nothing leads to, which definitions 8 count.
fn whole(graph: &AttributionGraph) -> Circuit {
    let layout = graph.layout();
    let nodes = (0..layout.n_nodes()).map(|at| {
        let id = layout.node(at).unwrap();
        let probability = match id {
            NodeId::Target { index } => Some(graph.target_probabilities[index as usize]),
            _ => None,
        };
        Node { probability, ..node(id, id.pos().unwrap_or_default()) }
    });
    let mut links = Vec::new();
    for row in 0..layout.n_rows() {
        let target = if row < layout.n_features() { row } else { layout.targets().start + row - layout.n_features() };
        for source in layout.source_ranges(row).flatten() {
            if graph.row(row)[source] != 0.0 {
                links.push(Link { source, target, weight: graph.row(row)[source] });
            }
        }
    }
    Circuit::new(CircuitMeta::default(), nodes.collect(), links).unwrap()
}

/// Definitions 6 and 8 on the matrix of the collapsed graph: `(1 - Nᵀ) influence = weights`, solved by elimination. `None`
/// where supernodes feed almost nothing but each other, so that there is no solution to compare with.
fn collapsed_scores_slowly(circuit: &Circuit, groups: &[Supernode]) -> Option<(f64, f64)> {
    let graph = circuit.graph();
    let of = |node: NodeIndex| groups.iter().position(|group| group.members.contains(&node));
    // Places 0.. are the groups, then every node by itself; those of members stay empty.
    let place = |node: NodeIndex| of(node).unwrap_or(groups.len() + node.index());
    let n = groups.len() + graph.node_count();
    let mut matrix = vec![vec![0.0f64; n]; n];
    for edge in graph.edge_references().filter(|edge| place(edge.source()) != place(edge.target())) {
        matrix[place(edge.target())][place(edge.source())] += f64::from(edge.weight().weight);
    }
    for row in &mut matrix {
        let sum: f64 = row.iter().map(|weight| weight.abs()).sum();
        row.iter_mut().for_each(|weight| *weight = if sum > 0.0 { weight.abs() / sum } else { 0.0 });
    }
    let mut weights = vec![0.0; n];
    circuit.targets().into_iter().for_each(|target| weights[place(target)] += 0.5);
    let mut system: Vec<Vec<f64>> = (0..n)
        .map(|s| (0..n).map(|t| f64::from(u8::from(s == t)) - matrix[t][s]).chain([weights[s]]).collect())
        .collect();
    for at in 0..n {
        let pivot = (at..n).max_by(|&a, &b| system[a][at].abs().total_cmp(&system[b][at].abs()))?;
        system.swap(at, pivot);
        if system[at][at].abs() < 0.05 {
            return None;
        }
        let pivot_row = system[at].clone();
        for (_, row) in system.iter_mut().enumerate().filter(|(row, _)| *row != at) {
            let factor = row[at] / pivot_row[at];
            row.iter_mut().zip(&pivot_row).for_each(|(value, pivot)| *value -= factor * pivot);
        }
    }
    let influence: Vec<f64> = (0..n).map(|at| system[at][n] / system[at][at]).collect();
    let is_error: Vec<bool> = (0..n)
        .map(|at| {
            let node = at.checked_sub(groups.len()).map(|node| circuit.node(NodeIndex::new(node)).id);
            matches!(node, Some(NodeId::Error { .. }))
        })
        .collect();
    let from_tokens: f64 =
        circuit.tokens().into_iter().map(place).collect::<BTreeSet<_>>().iter().map(|&at| influence[at]).sum();
    let from_errors: f64 = (0..n).filter(|&at| is_error[at]).map(|at| influence[at]).sum();
    let error_share = |t: usize| -> f64 { (0..n).filter(|&s| is_error[s]).map(|s| matrix[t][s]).sum() };
    let explained: f64 = (0..n).map(|t| influence[t] * (1.0 - error_share(t))).sum();
    let ratio = |part: f64, whole: f64, otherwise: f64| if whole > 0.0 { part / whole } else { otherwise };
    Some((ratio(from_tokens, from_tokens + from_errors, 0.0), ratio(explained, influence.iter().sum(), 1.0)))
}

pub const EVERYTHING: PruneSettings = PruneSettings { node_threshold: 1.0, edge_threshold: 1.0, max_nodes: None };

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn strongest_paths_between_any_sets_are_those_of_brute_force(
        circuit in any_circuit(1..14),
        picks in prop::collection::vec(any::<prop::sample::Index>(), 2..6),
        count in 1usize..12,
    ) {
        let n = circuit.graph().node_count();
        let picks: BTreeSet<usize> = picks.iter().map(|pick| pick.index(n)).collect();
        let picks: Vec<NodeIndex> = picks.into_iter().map(NodeIndex::new).collect();
        let (sources, targets) = picks.split_at(picks.len() / 2);
        let mut expected = Vec::new();
        sources.iter().for_each(|&source| all_paths(&circuit, source, 1.0, targets, &mut expected));
        expected.sort_by(|a, b| b.total_cmp(a));
        let found = strongest_paths(&circuit, sources, targets, count);
        close(found.total, expected.iter().sum(), 1e-9, 1e-9, "total");
        prop_assert_eq!(found.paths.len(), count.min(expected.len()));
        for (path, expected) in found.paths.iter().zip(&expected) {
            close(path.strength, *expected, 1e-12, 1e-9, "strength");
        }
    }

    #[test]
    fn collapsed_edges_are_the_sums_of_what_they_stand_for(
        circuit in any_circuit(4..20),
        colors in prop::collection::vec(0usize..4, 40),
    ) {
        let mut groups: Vec<Supernode> =
            (0..3).map(|at| Supernode { name: format!("g{at}"), members: Vec::new() }).collect();
        let mut place = BTreeMap::new();
        for index in circuit.graph().node_indices() {
            let is_feature = matches!(circuit.node(index).id, NodeId::Feature { .. });
            if is_feature && colors[index.index()] < 3 {
                groups[colors[index.index()]].members.push(index);
                place.insert(index, colors[index.index()]);
            }
        }
        groups.retain(|group| !group.members.is_empty());
        let view = collapse(&circuit, &groups).unwrap();
        let members: usize = view.nodes.iter().map(|node| node.members.len()).sum();
        prop_assert_eq!(members, circuit.graph().node_count());
        for edge in &view.edges {
            let (sources, targets) = (&view.nodes[edge.source].members, &view.nodes[edge.target].members);
            let inner = circuit.graph().edge_references();
            let sum: f64 = inner
                .filter(|e| sources.contains(&e.source()) && targets.contains(&e.target()))
                .map(|e| f64::from(e.weight().weight))
                .sum();
            close(edge.weight, sum, 1e-9, 1e-9, "summed edge");
        }
        let total: f64 = view.edges.iter().map(|edge| edge.weight).sum();
        let outside = circuit.graph().edge_references().filter(|e| {
            !place.contains_key(&e.source()) || place.get(&e.source()) != place.get(&e.target())
        });
        close(total, outside.map(|e| f64::from(e.weight().weight)).sum(), 1e-6, 1e-6, "all edges");
    }

    #[test]
    fn scores_of_a_collapsed_graph_are_those_of_its_matrix(
        circuit in any_circuit(4..20),
        colors in prop::collection::vec(0usize..5, 40),
    ) {
        let mut groups: Vec<Supernode> =
            (0..3).map(|at| Supernode { name: format!("g{at}"), members: Vec::new() }).collect();
        for index in circuit.graph().node_indices() {
            let is_feature = matches!(circuit.node(index).id, NodeId::Feature { .. });
            if is_feature && colors[index.index()] < 3 {
                groups[colors[index.index()]].members.push(index);
            }
        }
        groups.retain(|group| !group.members.is_empty());
        // Tokens together stay tokens.
        groups.push(Supernode { name: "tokens".to_owned(), members: circuit.tokens()[1..3].to_vec() });
        let actual = collapse(&circuit, &groups).unwrap().scores(&circuit);
        let (alone, whole) = (collapse(&circuit, &[]).unwrap().scores(&circuit), circuit_scores(&circuit));
        close(alone.replacement, whole.replacement, 1e-9, 1e-9, "replacement of nothing merged");
        close(alone.completeness, whole.completeness, 1e-9, 1e-9, "completeness of nothing merged");
        // Too many circuits that the slow twin cannot solve fail the test.
        let expected = collapsed_scores_slowly(&circuit, &groups);
        prop_assume!(expected.is_some());
        let expected = expected.unwrap();
        close(actual.replacement, expected.0, 1e-7, 1e-7, "replacement");
        close(actual.completeness, expected.1, 1e-7, 1e-7, "completeness");
    }

    #[test]
    fn scores_of_a_part_are_those_of_the_definitions(graph in any_graph(), pins in prop::collection::vec(any::<bool>(), 64)) {
        let circuit = whole(&graph);
        let swept = influence(&graph.edge_rows, graph.layout(), &graph.target_probabilities);
        let expected = scores(graph.layout(), &swept, &graph.target_probabilities);
        let actual = circuit_scores(&circuit);
        close(actual.replacement, expected.replacement, 1e-5, 1e-5, "replacement");
        close(actual.completeness, expected.completeness, 1e-5, 1e-5, "completeness");

        let pinned: Vec<bool> = (0..graph.layout().n_features()).map(|at| pins[at % pins.len()]).collect();
        let expected = subgraph_scores(&graph.edge_rows, graph.layout(), &graph.target_probabilities, &pinned);
        let is_pinned = |index: NodeIndex| {
            graph.layout().index(circuit.node(index).id).and_then(|at| pinned.get(at)).is_some_and(|&pinned| pinned)
        };
        let actual = pinned_scores(&circuit, is_pinned);
        close(actual.replacement, expected.replacement, 1e-5, 1e-5, "pinned replacement");
        close(actual.completeness, expected.completeness, 1e-5, 1e-5, "pinned completeness");
    }

    #[test]
    fn parts_hold_what_they_promise(circuit in any_circuit(1..20), share in 0.0f64..1.0) {
        let layers = Selection { layers: Some(1..=3), ..Selection::default() };
        for index in layers.nodes(&circuit) {
            prop_assert!(circuit.node(index).id.layer().is_none_or(|layer| (1..=3).contains(&layer)));
        }
        prop_assert_eq!(Selection::default().nodes(&circuit).len(), circuit.graph().node_count());
        let target = circuit.targets();
        let mut before = 0;
        for hops in 0..4 {
            let around = neighborhood(&circuit, &target, hops);
            prop_assert!(around.len() >= before && around.contains(&target[0]));
            before = around.len();
        }
        let some = carrying_paths(&circuit, share);
        prop_assert!(carrying_paths(&circuit, 1.0).len() >= some.len());
        let is_error = |node: &NodeIndex| circuit.node(*node).id.kind() == NodeKind::Error;
        prop_assert!(!some.iter().any(is_error), "errors explain nothing");
        let all: Vec<NodeIndex> = circuit.graph().node_indices().collect();
        let by_tokens = |part: &[NodeIndex]| carried_slowly(&circuit, part, NodeKind::Token);
        let wanted = share * by_tokens(&all);
        prop_assert!(by_tokens(&some) >= wanted - 1e-9, "too little is carried");
        let influence = circuit.node_influence();
        let features = some.iter().filter(|&&node| matches!(circuit.node(node).id, NodeId::Feature { .. }));
        let weakest =
            features.min_by(|a, b| influence[a.index()].total_cmp(&influence[b.index()]).then(b.cmp(a))).copied();
        if let Some(weakest) = weakest {
            let fewer: Vec<NodeIndex> = some.iter().copied().filter(|&node| node != weakest).collect();
            prop_assert!(by_tokens(&fewer) <= wanted + 1e-9, "fewer nodes carry enough");
        }
        let found = carried(&circuit, |node| some.contains(&node));
        let weight = circuit.whole_weight();
        close(found.by_tokens, by_tokens(&some) / weight, 1e-9, 1e-9, "carried by tokens");
        close(found.by_errors, carried_slowly(&circuit, &some, NodeKind::Error) / weight, 1e-9, 1e-9, "by errors");
    }

    #[test]
    fn shares_of_a_part_are_those_of_the_whole(circuit in any_circuit(0..30), low in 0..N_LAYERS, pos in 0..N_POS) {
        let region = Selection { layers: Some(low..=low + 2), positions: Some(pos..=N_POS), kinds: Vec::new() };
        let nodes = region.nodes(&circuit);
        let part = circuit.part(&nodes);
        let (of_part, of_whole) = (part.node_influence(), circuit.node_influence());
        prop_assert_eq!(part.graph().node_count(), nodes.len());
        prop_assert_eq!(part.whole_weight(), circuit.whole_weight());
        for (at, &node) in nodes.iter().enumerate() {
            let there = NodeIndex::new(at);
            prop_assert_eq!(part.node(there).id, circuit.node(node).id);
            prop_assert_eq!(of_part[at], of_whole[node.index()]);
            for input in part.inputs(there) {
                let edge = circuit.graph().find_edge(nodes[input.node.index()], node).unwrap();
                prop_assert_eq!(input.edge, circuit.graph()[edge]);
            }
        }
        let inner = circuit.graph().edge_references().filter(|e| nodes.contains(&e.source()) && nodes.contains(&e.target()));
        prop_assert_eq!(part.graph().edge_count(), inner.count());
        let ranked: Vec<f64> = part.strongest_nodes(usize::MAX).into_iter().map(|(_, influence)| influence).collect();
        prop_assert!(ranked.windows(2).all(|pair| pair[0] >= pair[1]));
    }

    #[test]
    fn what_passes_through_a_set_counts_every_path_once(circuit in any_circuit(0..12), members in any::<u32>()) {
        let members: Vec<NodeIndex> =
            circuit.graph().node_indices().filter(|node| members >> (node.index() % 32) & 1 == 1).collect();
        let mut expected = 0.0;
        for target in circuit.targets() {
            let weight = circuit.node(target).probability.map_or(1.0, f64::from);
            paths_down(&circuit, &mut vec![target], 1.0, &mut |path, share| {
                if path.iter().any(|node| members.contains(node)) {
                    expected += weight * share;
                }
            });
        }
        close(circuit.influence_through(&members), expected, 1e-9, 1e-9, "through the set");
    }

    #[test]
    fn groups_of_paths_are_the_sums_of_their_paths(circuit in any_circuit(0..14), count in 1usize..6) {
        let target = circuit.targets()[0];
        let mut expected: BTreeMap<Vec<u32>, f64> = BTreeMap::new();
        paths_down(&circuit, &mut vec![target], 1.0, &mut |path, share| {
            let end = path[path.len() - 1];
            if circuit.node(end).id.kind() == NodeKind::Token {
                let mut steps: Vec<u32> = path[1..path.len() - 1].iter().map(|&node| circuit.node(node).pos).collect();
                steps.dedup();
                steps.push(circuit.node(end).pos);
                steps.reverse();
                *expected.entry(steps).or_default() += share;
            }
        });
        let mut strengths: Vec<f64> = expected.values().copied().collect();
        strengths.sort_by(|a, b| b.total_cmp(a));
        let found = strongest_path_groups(&circuit, target, count);
        prop_assert_eq!(found.len(), count.min(strengths.len()));
        for (group, strength) in found.iter().zip(strengths) {
            close(group.strength, strength, 1e-9, 1e-9, "strength, strongest first");
            let steps: Vec<u32> = group.steps[..group.steps.len() - 1].iter().map(|step| step.pos).collect();
            close(group.strength, expected[&steps], 1e-9, 1e-9, "strength of these steps");
        }
    }

    #[test]
    fn boxes_never_meet_and_tables_are_whole(circuit in any_circuit(1..200), max_nodes in 0usize..250) {
        let groups = find_supernodes(&circuit, &ClusterSettings::default(), None);
        for group in &groups {
            let pos: Vec<u32> = group.members.iter().map(|&member| circuit.node(member).pos).collect();
            prop_assert!(pos.iter().max().unwrap() - pos.iter().min().unwrap() <= 1);
        }
        let view = collapse(&circuit, &groups).unwrap();
        let settings = PictureSettings { max_nodes, ..PictureSettings::default() };
        let arrangement = arrange(&circuit, &view, &settings);
        for (at, a) in arrangement.boxes.iter().enumerate() {
            prop_assert!(a.x >= 0.0 && a.y >= 0.0);
            prop_assert!(a.x + a.width <= arrangement.width && a.y + a.height <= arrangement.height);
            for b in &arrangement.boxes[..at] {
                let apart = a.x + a.width <= b.x || b.x + b.width <= a.x || a.y + a.height <= b.y || b.y + b.height <= a.y;
                prop_assert!(apart, "{a:?} {b:?}");
            }
        }
        for edge in &arrangement.edges {
            let (source, target) = (&arrangement.boxes[edge.source], &arrangement.boxes[edge.target]);
            for (end, drawn) in [(edge.curve[0][0], source), (edge.curve[edge.curve.len() - 1][3], target)] {
                let is_at_border = end.1 == drawn.y || end.1 == drawn.y + drawn.height;
                prop_assert!(is_at_border && end.0 > drawn.x && end.0 < drawn.x + drawn.width, "{edge:?}");
            }
            for (x, y) in edge.sampled(40) {
                prop_assert!(x >= 0.0 && x <= arrangement.width && y >= 0.0 && y <= arrangement.height, "{edge:?}");
                let behind = arrangement.boxes.iter().find(|a| {
                    x > a.x + 0.1 && x < a.x + a.width - 0.1 && y > a.y + 0.1 && y < a.y + a.height - 0.1
                });
                prop_assert!(behind.is_none(), "{edge:?} runs behind {behind:?}");
            }
        }
        prop_assert!(svg(&circuit, &view, &arrangement).ends_with("</svg>\n"));
        prop_assert_eq!(csv_edges(&circuit, &view, Cells::Exact).lines().count(), view.edges.len() + 1);
        prop_assert_eq!(csv_nodes(&circuit, &view, Cells::Exact).lines().count(), view.nodes.len() + 1);
        prop_assert_eq!(dot(&circuit, &view).matches(" -> ").count(), view.edges.len());
        prop_assert_eq!(graphml(&circuit, &view).matches("<edge ").count(), view.edges.len());
    }

    #[test]
    fn a_graph_equals_itself(circuit in any_circuit(1..20)) {
        let same = diff(&circuit, &circuit);
        prop_assert!(same.only_left.is_empty() && same.only_right.is_empty());
        prop_assert_eq!(same.jaccard, 1.0);
        prop_assert!(same.shared.iter().all(|feature| feature.left_share == feature.right_share && feature.is_aligned));
        let copies = [circuit.clone(), circuit];
        prop_assert_eq!(common(&copies, 2).0.len(), same.shared.len());
        prop_assert_eq!(common(&copies, 1), common(&copies, 2));
    }

    #[test]
    fn streamed_graphs_are_the_same(graph in any_graph(), links_first in any::<bool>(), threshold in 0.3f64..1.0) {
        let circuit = circuit_of(&graph, &EVERYTHING);
        let written = WireGraph::new(&circuit, "slug").unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("graph.json");
        let mut value = serde_json::to_value(&written).unwrap();
        let links = value["links"].take();
        let rest = value.to_string().replace(",\"links\":null", "").replace("\"links\":null,", "");
        let body = &rest[1..rest.len() - 1];
        let text = if links_first { format!("{{\"links\":{links},{body}}}") } else { format!("{{{body},\"links\":{links}}}") };
        std::fs::write(&path, text).unwrap();

        let streamed = stream_wire(&path, None).unwrap();
        prop_assert_eq!(streamed.n_links_read, written.links.len());
        prop_assert_eq!(&streamed.to_wire(), &written);

        let mut pruned = stream_wire(&path, Some(&|nodes| nodes_within(nodes, threshold))).unwrap();
        let kept = prune_links(&pruned.nodes, &mut pruned.links, threshold).unwrap();
        pruned.keep_nodes(&kept);
        let circuit = pruned.circuit().unwrap();
        let links = pruned.to_wire().circuit().unwrap();
        prop_assert_eq!(links.graph().edge_count(), circuit.graph().edge_count());
        prop_assert!(circuit.graph().node_count() <= written.nodes.len());
        for index in circuit.graph().node_indices() {
            if matches!(circuit.node(index).id, NodeId::Feature { .. } | NodeId::Error { .. }) {
                prop_assert!(!circuit.outputs(index).is_empty());
            }
        }
    }
}

#[test]
fn a_node_in_two_supernodes_is_refused() {
    let target = vec![node(NodeId::Target { index: 0 }, 0)];
    let circuit = Circuit::new(CircuitMeta::default(), target, Vec::new()).unwrap();
    let group = |name: &str| Supernode { name: name.to_owned(), members: vec![NodeIndex::new(0)] };
    assert!(matches!(collapse(&circuit, &[group("a"), group("b")]), Err(Error::Supernode { .. })));
}

#[test]
fn empty_lists_of_nodes_are_read_without_a_panic() {
    let text = r#"{"metadata":{"slug":"s","scan":null,"prompt_tokens":[],"prompt":""},"nodes":[],"links":[]}"#;
    let circuit = wire::parse_wire(text.as_bytes(), "test").unwrap().circuit().unwrap();
    assert_eq!(circuit_scores(&circuit).replacement, 0.0);
    assert!(carrying_paths(&circuit, 0.5).is_empty());
    assert!(find_supernodes(&circuit, &ClusterSettings::default(), None).is_empty());
}

/// Four features of one position with the same edges.
pub fn four_alike() -> Circuit {
    let mut nodes: Vec<Node> = (0..4).map(|feature| node(NodeId::Feature { layer: 1, pos: 0, feature }, 0)).collect();
    nodes.push(node(NodeId::Token { pos: 0 }, 0));
    nodes.push(node(NodeId::Target { index: 0 }, 0));
    let link = |source, target| Link { source, target, weight: 1.0 };
    let links: Vec<Link> = (0..4).flat_map(|at| [link(4, at), link(at, 5)]).collect();
    Circuit::new(CircuitMeta { n_layers: 3, ..CircuitMeta::default() }, nodes, links).unwrap()
}

#[test]
fn decoder_directions_separate_features_whose_edges_are_alike() {
    let circuit = four_alike();
    let members = |groups: Vec<Supernode>| -> Vec<Vec<usize>> {
        groups.iter().map(|group| group.members.iter().map(|member| member.index()).collect()).collect()
    };
    let settings = ClusterSettings { cut: 0.6, ..ClusterSettings::default() };
    assert_eq!(members(find_supernodes(&circuit, &settings, None)), [[0, 1, 2, 3]]);
    // Two write one way, two another: mean of 1 and 0 is below the cut, mean of 1 and 0.98 above it.
    let direction = |index: NodeIndex| {
        Some(match index.index() {
            0 => vec![1.0, 0.0, 0.0],
            1 => vec![0.98, 0.199, 0.0],
            2 => vec![0.0, 0.0, 1.0],
            _ => vec![0.0, 0.199, 0.98],
        })
    };
    assert_eq!(members(find_supernodes(&circuit, &settings, Some(&direction))), [[0, 1], [2, 3]]);
    // A feature without a direction is compared by its edges.
    let one = |index: NodeIndex| (index.index() == 0).then(|| vec![1.0, 0.0, 0.0]);
    assert_eq!(members(find_supernodes(&circuit, &settings, Some(&one))), [[0, 1, 2, 3]]);
}

#[test]
fn graph_files_of_both_kinds_open_to_the_same_circuit() {
    let case = &crate::reference::cases()[0];
    let graph = case.graph();
    let folder = tempfile::tempdir().unwrap();
    // Names say nothing: the content does.
    let (raw, json) = (folder.path().join("raw.json"), folder.path().join("json.safetensors"));
    write_raw(&graph, &raw).unwrap();
    let opening = Opening::new(Some(0.6), Some(0.9)).unwrap();
    let from_raw = open_graph(&raw, &opening).unwrap();
    assert!(from_raw.raw.is_some() && from_raw.json.is_none());
    let groups = GroupRequest { ignore_stored: true, ..GroupRequest::default() }.supernodes(&from_raw).unwrap();
    save(&from_raw, None, &groups, &json).unwrap();
    let from_json = open_graph(&json, &Opening::default()).unwrap();
    assert!(from_json.raw.is_none() && from_json.json.is_some());
    let nodes = |circuit: &Circuit| circuit.graph().node_weights().map(|node| node.id).collect::<Vec<_>>();
    assert!(nodes(&from_raw.circuit).len() > 3);
    assert_eq!(nodes(&from_raw.circuit), nodes(&from_json.circuit));
    assert_eq!(from_raw.circuit.graph().edge_count(), from_json.circuit.graph().edge_count());
    assert!(matches!(Opening::new(Some(1.5), None), Err(Error::Threshold { .. })));
    let nobody = Part { ids: vec!["99_9_9".into()], ..Part::default() };
    assert!(matches!(nobody.nodes(&from_json.circuit), Err(Error::UnknownNode { .. })));
    assert_eq!(Part::default().nodes(&from_json.circuit).unwrap(), None);
}
