//! The acceptance test of the field: an edge is what doubling its source does, all else being held.

use circuitscope::attribution::{TargetKind, attribute};
use circuitscope::graph::NodeId;
use circuitscope::intervene::{Original, Readout};
use circuitscope::job::Job;

use crate::reference::{Case, cases, close};

/// Sources of one kind that are tried per case, at most.
const MAX_SOURCES: usize = 96;

/// Tolerances of the reference's own acceptance test: activations absolute, logits relative with a small floor.
const ATOL_ACTIVATION: f64 = 5e-4;
const RTOL_LOGIT: f64 = 1e-3;
const ATOL_LOGIT: f64 = 1e-4;

/// Every n-th of `all`, so that at most [`MAX_SOURCES`] are left.
fn sample(all: Vec<NodeId>) -> Vec<NodeId> {
    let step = all.len().div_ceil(MAX_SOURCES).max(1);
    all.into_iter().step_by(step).collect()
}

fn assert_edges_equal_effects(case: &Case, is_tried: impl Fn(NodeId) -> bool) {
    let name = &case.name;
    let replacement = case.replacement();
    let prompt = case.json["prompt"].as_str().unwrap();
    let tokens = replacement.tokenizer.encode_prompt(prompt).unwrap();
    let (original, linear) = Original::linearized(&replacement, &tokens, &Job::default()).unwrap();
    let found = attribute(&replacement, &linear, prompt, &case.options(), &Job::default()).unwrap();
    let (graph, layout) = (&found.graph, found.graph.layout());
    let readouts: Vec<Readout> = found
        .targets
        .iter()
        .map(|target| match &target.kind {
            TargetKind::Direction(direction) => Readout { pos: target.pos, direction: direction.clone() },
            TargetKind::Feature { .. } => unreachable!("the cases have logit targets"),
        })
        .collect();
    let sources = sample((0..layout.targets().start).filter_map(|i| layout.node(i)).filter(|&n| is_tried(n)).collect());
    let effects = original.direct_effects(&linear, &sources, &readouts, &Job::default()).unwrap();
    for (source, effects) in sources.iter().zip(&effects) {
        let column = layout.index(*source).unwrap();
        for (row, &active) in graph.selected_features.iter().enumerate() {
            let (edge, effect) = (graph.row(row)[column], effects.features[active]);
            let at = format!("{name}: {source:?} -> {:?}", layout.feature_ids()[row]);
            // The doubled feature's own pre-activation is not written to by itself.
            close(f64::from(effect), f64::from(edge), ATOL_ACTIVATION, 1e-5, &at);
        }
        for (k, &effect) in effects.readouts.iter().enumerate() {
            let edge = graph.row(layout.n_features() + k)[column];
            let at = format!("{name}: {source:?} -> target {k}");
            close(f64::from(effect), f64::from(edge), ATOL_LOGIT, RTOL_LOGIT, &at);
        }
    }
}

fn for_every_case(is_tried: impl Fn(NodeId) -> bool) {
    for case in cases().iter().filter(|case| case.has_model()) {
        assert_edges_equal_effects(case, &is_tried);
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
