//! The acceptance test of the field: an edge is what doubling its source does, all else being held.

use circuitscope::attribution::{TargetKind, attribute};
use circuitscope::graph::NodeId;
use circuitscope::intervene::{Original, Readout};
use circuitscope::job::Job;

use crate::reference::{Case, cases};
use crate::support::close;

/// Sources of one kind that are tried per case, at most.
const MAX_SOURCES: usize = 96;

/// Tolerance, as a share of the target's row: of its largest edge, or of the value that its edges add up to where that
/// is larger. An effect is a difference of two float32 values of that size, each a sum of a few hundred terms.
const RTOL_ROW: f64 = 2e-5;

/// Every n-th of `all`, so that at most [`MAX_SOURCES`] are left.
fn sample(all: Vec<NodeId>) -> Vec<NodeId> {
    let step = all.len().div_ceil(MAX_SOURCES).max(1);
    all.into_iter().step_by(step).collect()
}

/// Returns how many edges other than 0 were compared.
fn assert_edges_equal_effects(case: &Case, is_tried: impl Fn(NodeId) -> bool) -> usize {
    let name = &case.name;
    let replacement = case.replacement();
    let prompt = case.prompt();
    let tokens = replacement.tokenizer.encode_prompt(prompt).unwrap();
    let (original, linear) = Original::linearized(&replacement, &tokens, &Job::default()).unwrap();
    let found = attribute(&replacement, &linear, prompt, &case.options(), &Job::default()).unwrap();
    let (graph, layout) = (&found.graph, found.graph.layout());
    let readouts: Vec<Readout> = found
        .targets
        .iter()
        .map(|target| match &target.kind {
            TargetKind::Direction(direction) => Readout::FinalNorm { pos: target.pos, direction: direction.clone() },
            TargetKind::Feature { .. } | TargetKind::AttentionInput { .. } => {
                unreachable!("the cases have logit targets")
            }
        })
        .collect();
    let sources = sample((0..layout.targets().start).filter_map(|i| layout.node(i)).filter(|&n| is_tried(n)).collect());
    let effects = original.direct_effects(&linear, &sources, &readouts, &Job::default()).unwrap();
    let row_size = |row: usize| -> f64 {
        let largest = graph.row(row).iter().fold(graph.row_values[row].abs(), |m, edge| m.max(edge.abs()));
        f64::from(largest)
    };
    let sizes: Vec<f64> = (0..layout.n_rows()).map(row_size).collect();
    let mut n_edges = 0;
    for (source, effects) in sources.iter().zip(&effects) {
        assert_eq!(effects.readouts.len(), readouts.len(), "{name}");
        let column = layout.index(*source).unwrap();
        let of_features = graph.selected_features.iter().map(|&active| effects.features[active]);
        for (row, effect) in of_features.chain(effects.readouts.iter().copied()).enumerate() {
            let edge = graph.row(row)[column];
            let at = format!("{name}: {source:?} -> row {row}");
            close(f64::from(effect), f64::from(edge), RTOL_ROW * sizes[row], 0.0, &at);
            n_edges += usize::from(edge != 0.0);
        }
    }
    n_edges
}

fn for_every_case(is_tried: impl Fn(NodeId) -> bool) {
    for case in &cases() {
        assert!(assert_edges_equal_effects(case, &is_tried) > 0, "{}: no edges were compared", case.name);
    }
}

#[test]
fn edge_equals_effect_of_doubling_the_source() {
    for_every_case(|node| matches!(node, NodeId::Feature { .. }));
}

#[test]
fn edge_equals_effect_of_adding_the_error_once_more() {
    for_every_case(|node| matches!(node, NodeId::Error { .. }));
}

#[test]
fn edge_equals_effect_of_adding_the_token_once_more() {
    for_every_case(|node| matches!(node, NodeId::Token { .. }));
}
