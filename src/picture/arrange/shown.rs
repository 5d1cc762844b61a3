//! Which boxes and edges a picture has: the strongest.

use std::collections::BTreeMap;

use super::grid::{Cell, Row};
use super::stacks::Stack;
use super::{BoxKind, DrawnEdge, Hidden, PictureSettings};
use crate::circuits::CollapsedCircuit;
use crate::graph::Circuit;

/// Share of the target's input below which an edge is drawn only as its source's strongest output.
const MIN_EDGE_SHARE: f64 = 0.04;

/// Targets at most, the heaviest: where the model is undecided all of them have some share.
const MAX_TARGETS: usize = 5;

/// What a picture shows.
pub(super) struct Picked {
    pub stacks: Vec<Stack>,
    /// The boxes of each row and column, as indices into `stacks`.
    pub cells: Cells,
    /// Without curves.
    pub edges: Vec<DrawnEdge>,
    pub hidden: Hidden,
}

/// The boxes of each row and column.
pub(super) type Cells = BTreeMap<Cell, Vec<usize>>;

impl Picked {
    /// Cost: O(stacks · log stacks + edges · log edges).
    pub(super) fn new(
        circuit: &Circuit,
        collapsed: &CollapsedCircuit,
        stacks: &[Stack],
        settings: &PictureSettings,
    ) -> Picked {
        let (shown, mut hidden) = stacks_shown(circuit, collapsed, stacks, settings);
        let (edges, n_hidden_edges) = edges_shown(circuit, collapsed, stacks, &shown, settings);
        hidden.edges = n_hidden_edges;
        let stacks: Vec<Stack> = shown.iter().map(|&at| stacks[at].clone()).collect();
        let mut cells = Cells::new();
        stacks.iter().enumerate().for_each(|(at, stack)| cells.entry(stack.cell).or_default().push(at));
        // The likeliest target comes first.
        for (_, members) in cells.iter_mut().filter(|((row, _), _)| *row == Row::Targets) {
            members.sort_by_key(|&at| stacks[at].members[0]);
        }
        Picked { stacks, cells, edges, hidden }
    }
}

/// The stacks to show, in their order, and what is not.
fn stacks_shown(
    circuit: &Circuit,
    collapsed: &CollapsedCircuit,
    stacks: &[Stack],
    settings: &PictureSettings,
) -> (Vec<usize>, Hidden) {
    let n_nodes =
        |at: &usize| -> usize { stacks[*at].members.iter().map(|&member| collapsed.nodes[member].members.len()).sum() };
    let (mut ranked, fixed): (Vec<usize>, Vec<usize>) = (0..stacks.len()).partition(|&at| stacks[at].is_between());
    let share = |at: usize| stacks[at].share.unwrap_or(0.0);
    ranked.sort_by(|&a, &b| share(b).total_cmp(&share(a)).then(a.cmp(&b)));
    let mut shown = ranked;
    let weak = shown.split_off(settings.max_nodes.min(shown.len()));
    let mut hidden = Hidden { nodes: weak.iter().map(n_nodes).sum(), ..Hidden::default() };

    let weight = |at: usize| -> f64 {
        let members = stacks[at].members.iter().flat_map(|&member| &collapsed.nodes[member].members);
        members.map(|&member| circuit.node(member).probability.map_or(1.0, f64::from)).sum()
    };
    let is_target = |at: &usize| stacks[*at].cell.0 == Row::Targets;
    let (mut targets, tokens): (Vec<usize>, Vec<usize>) = fixed.into_iter().partition(is_target);
    let wanted = settings.target_share * targets.iter().map(|&at| weight(at)).sum::<f64>();
    targets.sort_by(|&a, &b| weight(b).total_cmp(&weight(a)).then(a.cmp(&b)));
    let n_heavy = targets.iter().take(MAX_TARGETS).take_while(|&&at| weight(at) >= wanted).count();
    let light = targets.split_off(n_heavy.max(1).min(targets.len()));
    hidden.targets = light.iter().map(n_nodes).sum();
    shown.extend(tokens);
    shown.extend(targets);
    shown.sort_unstable();
    (shown, hidden)
}

/// For every shown stack the strongest shown inputs that make up `edge_share` of the shown ones, `max_inputs` at most, and
/// its strongest shown output, so that nothing seems to lead nowhere; weakest first. And how many are left out.
fn edges_shown(
    circuit: &Circuit,
    collapsed: &CollapsedCircuit,
    stacks: &[Stack],
    shown: &[usize],
    settings: &PictureSettings,
) -> (Vec<DrawnEdge>, usize) {
    let mut of_node = vec![0usize; collapsed.nodes.len()];
    for (at, stack) in stacks.iter().enumerate() {
        stack.members.iter().for_each(|&member| of_node[member] = at);
    }
    let mut place = vec![None; stacks.len()];
    shown.iter().enumerate().for_each(|(at, &stack)| place[stack] = Some(at));
    // Only edges into shown boxes count, so those into others need not be sorted.
    let mut pairs: Vec<(usize, usize, f64)> = collapsed
        .edges
        .iter()
        .map(|edge| (of_node[edge.target], of_node[edge.source], edge.weight))
        .filter(|&(target, source, _)| target != source && place[target].is_some())
        .collect();
    // A stable sort: weights are summed in one order, whatever the machine.
    pairs.sort_by_key(|&(target, source, _)| (target, source));
    let mut by_target: BTreeMap<usize, Vec<(usize, f64)>> = BTreeMap::new();
    for (target, source, weight) in pairs {
        let inputs = by_target.entry(target).or_default();
        match inputs.last_mut() {
            Some(last) if last.0 == source => last.1 += weight,
            _ => inputs.push((source, weight)),
        }
    }
    let mut drawn: BTreeMap<usize, Vec<DrawnEdge>> = BTreeMap::new();
    for (target, inputs) in by_target {
        let members = stacks[target].members.iter().map(|&member| &collapsed.nodes[member]);
        let elsewhere: f64 = members.flat_map(|node| &node.members).map(|&node| circuit.inputs_left_out(node)).sum();
        let all = elsewhere + inputs.iter().map(|(_, weight)| weight.abs()).sum::<f64>();
        let Some(target) = place[target].filter(|_| all > 0.0) else { continue };
        let edges = inputs.into_iter().filter(|(_, weight)| *weight != 0.0).filter_map(|(source, weight)| {
            let source = place[source]?;
            Some(DrawnEdge { source, target, weight, share: weight.abs() / all, curve: Vec::new() })
        });
        drawn.insert(target, edges.collect());
    }
    // Share and target of every box's strongest output, with what it matters for the targets.
    let flow = |edge: &DrawnEdge| edge.share * stacks[shown[edge.target]].share.unwrap_or(1.0);
    let mut strongest_output: BTreeMap<usize, (f64, usize)> = BTreeMap::new();
    for edge in drawn.values().flatten() {
        let strongest = strongest_output.entry(edge.source).or_insert((flow(edge), edge.target));
        if flow(edge) > strongest.0 {
            *strongest = (flow(edge), edge.target);
        }
    }
    let mut edges = Vec::new();
    let mut n_hidden = 0;
    for mut inputs in drawn.into_values() {
        inputs.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.source.cmp(&b.source)));
        let wanted = settings.edge_share * inputs.iter().map(|edge| edge.share).sum::<f64>();
        let mut sum = 0.0;
        for (rank, edge) in inputs.into_iter().enumerate() {
            // Tokens are there to be read; what they feed weakly need not be said.
            let is_token = stacks[shown[edge.source]].kind == BoxKind::Token;
            let is_strongest = !is_token && strongest_output[&edge.source].1 == edge.target;
            let is_wanted = sum < wanted && rank < settings.max_inputs && edge.share >= MIN_EDGE_SHARE;
            sum += edge.share;
            if is_wanted || is_strongest || (rank == 0 && settings.max_inputs > 0) {
                edges.push(edge);
            } else {
                n_hidden += 1;
            }
        }
    }
    edges.sort_by(|a, b| {
        let key = |edge: &DrawnEdge| (edge.target, edge.source);
        a.share.total_cmp(&b.share).then(key(a).cmp(&key(b)))
    });
    (edges, n_hidden)
}
