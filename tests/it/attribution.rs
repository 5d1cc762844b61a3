//! Attribution against circuit-tracer: every case's logits, features, targets, rows and scores.

use std::collections::BTreeSet;

use circuitscope::attribution::{Attribution, attribute};
use circuitscope::export::{read_raw, write_raw};
use circuitscope::graph::FeatureId;
use circuitscope::job::Job;
use circuitscope::replacement::{LinearModel, Replacement};

use crate::reference::{Case, FAMILIES, cases};
use crate::support::{close, close_all};

fn trace(case: &Case) -> (Replacement, LinearModel, Attribution) {
    let replacement = case.replacement();
    let prompt = case.prompt();
    let tokens = replacement.tokenizer.encode_prompt(prompt).unwrap();
    let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
    let found = attribute(&replacement, &linear, prompt, &case.options(), &Job::default()).unwrap();
    (replacement, linear, found)
}

#[test]
fn graphs_agree_with_the_reference() {
    let mut compared = BTreeSet::new();
    for case in &cases() {
        let name = &case.name;
        let (_, _, found) = trace(case);
        let graph = &found.graph;
        assert_eq!(graph.input_tokens, case.i64s("input_tokens"), "{name}: tokens");
        close_all(&graph.logits, &case.f32s("logits"), 1e-4, 1e-4, &format!("{name}: logits"));
        let active: Vec<FeatureId> = case
            .i64s("active_features")
            .chunks_exact(3)
            .map(|f| FeatureId { layer: f[0] as u32, pos: f[1] as u32, feature: f[2] as u32 })
            .collect();
        assert_eq!(graph.active_features, active, "{name}: active features");
        let activations = case.f32s("activation_values");
        close_all(&graph.activation_values, &activations, 1e-4, 1e-4, &format!("{name}: activations"));
        let expected_targets: Vec<i64> =
            case.json["targets"].as_array().unwrap().iter().map(|t| t["id"].as_i64().unwrap()).collect();
        assert_eq!(graph.target_ids, expected_targets, "{name}: targets");
        let labels: Vec<&str> =
            case.json["targets"].as_array().unwrap().iter().map(|t| t["token"].as_str().unwrap()).collect();
        assert_eq!(graph.meta.target_labels, labels, "{name}: target labels");
        let probabilities = case.f32s("target_probabilities");
        close_all(&graph.target_probabilities, &probabilities, 1e-5, 1e-4, &format!("{name}: target probabilities"));
        let selected: Vec<usize> = case.i64s("selected_features").iter().map(|&i| i as usize).collect();
        assert_eq!(graph.selected_features, selected, "{name}: selected features");

        let expected = case.graph();
        let largest = expected.edge_rows.values().iter().fold(0f32, |m, v| m.max(v.abs()));
        assert!(largest > 0.0, "{name}: no edges");
        for row in 0..graph.layout().n_rows() {
            let atol = 1e-5 * f64::from(largest);
            close_all(graph.row(row), expected.row(row), atol, 1e-4, &format!("{name}: row {row}"));
        }
        close(graph.meta.replacement_score, case.number("replacement_score"), 1e-4, 0.0, name);
        close(graph.meta.completeness_score, case.number("completeness_score"), 1e-4, 0.0, name);
        compared.insert(case.family().to_owned());
    }
    assert!(FAMILIES.iter().all(|&family| compared.contains(family)), "only {compared:?} were compared");
}

#[test]
fn every_row_and_its_bias_effect_add_up_to_the_pre_activation() {
    for case in &cases() {
        let (_, _, found) = trace(case);
        let error = found.graph.meta.row_identity_error;
        assert!(error < 1e-5, "{}: row identity is off by {error:e}", case.name);
        let is_capped = found.graph.selected_features.len() < found.graph.active_features.len();
        assert_eq!(found.graph.unselected_effect.is_empty(), !is_capped, "{}", case.name);
    }
}

#[test]
fn decoder_directions_are_those_of_the_transcoders_and_live_in_the_raw_file() {
    let folder = tempfile::tempdir().unwrap();
    for case in &cases() {
        let (replacement, _, found) = trace(case);
        let path = folder.path().join("graph.safetensors");
        write_raw(&found.graph, &path).unwrap();
        let graph = read_raw(&path).unwrap();
        let directions = graph.decoder_directions().unwrap();
        assert_eq!(directions.n_features(), graph.layout().n_features(), "{}", case.name);
        for (at, id) in graph.layout().feature_ids().iter().enumerate().step_by(7) {
            let transcoder = &replacement.transcoders.layers[id.layer as usize];
            let vecs = transcoder.decoder_vecs(&[id.feature as usize], &candle_core::Device::Cpu).unwrap();
            let mut expected: Vec<f32> = vecs.sum(1).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let activation = graph.activation(at).unwrap();
            expected.iter_mut().for_each(|x| *x *= activation.signum());
            let norm = expected.iter().map(|x| x * x).sum::<f32>().sqrt();
            expected.iter_mut().for_each(|x| *x /= norm);
            close_all(&directions.row(at), &expected, 1e-3, 1e-3, &case.name);
        }
    }
}
