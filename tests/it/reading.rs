//! What is read of a prompt is what the model and its transcoders compute.

use circuitscope::intervene::FeatureSpec;
use circuitscope::model::HookPoint;
use circuitscope::tracer::ReadOptions;
use circuitscope::{AttributionOptions, Error, Job, RunOptions, Setup, Tracer};

/// The last row of a product of all positions, and the product of the last row: equal but for rounding.
#[track_caller]
fn close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4));
}

const PROMPT: &str = "The capital of the state containing Dallas is";

#[test]
fn features_activations_and_logits_are_those_of_the_graph() {
    let tracer = Tracer::open(Setup::atlas()).unwrap();
    let graph = tracer.trace(PROMPT, &AttributionOptions::default()).unwrap();
    let found = tracer.read(PROMPT, &ReadOptions::default(), &Job::default()).unwrap();
    assert_eq!(found.features, graph.graph().active_features);
    assert_eq!(found.activations, graph.graph().activation_values);
    close(&found.logits, &graph.graph().logits);
    assert!(found.pre_activations.is_empty() && found.hooks.is_empty());
}

#[test]
fn pre_activations_and_hooks_are_what_transcoders_read_and_make_of_it() {
    let tracer = Tracer::open(Setup::atlas()).unwrap();
    let input = tracer.replacement().input_point(1);
    let options = ReadOptions { pre_activations: vec![1, 0], hooks: vec![input, HookPoint::AttnPattern(2)] };
    let found = tracer.read(PROMPT, &options, &Job::default()).unwrap();
    let transcoder = &tracer.replacement().transcoders.layers[1];
    let (n_pos, n_features) = (found.prompt.tokens.len(), transcoder.n_features());
    let [pre, _] = &found.pre_activations[..] else { panic!("two layers were asked for") };
    assert_eq!(pre.shape, [n_pos, n_features]);
    // An active feature's activation is its pre-activation; a JumpReLU or ReLU lets nothing at or below 0 through.
    for (feature, &activation) in found.features.iter().zip(&found.activations).filter(|(f, _)| f.layer == 1) {
        let value = pre.values[feature.pos as usize * n_features + feature.feature as usize];
        assert!((value - activation).abs() <= 1e-4 * activation.abs().max(1.0), "{feature:?}: {value} {activation}");
    }
    // From the hook, by hand: the first feature at the last position.
    let [read, pattern] = &found.hooks[..] else { panic!("two hooks were asked for") };
    assert_eq!(read.shape, [n_pos, tracer.replacement().model.config.d_model]);
    let last = candle_row(&read.values, n_pos - 1, read.shape[1]);
    let x =
        circuitscope::candle::Tensor::from_vec(last, (1, read.shape[1]), &circuitscope::candle::Device::Cpu).unwrap();
    let again: Vec<f32> = transcoder.pre_activations(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    for (a, b) in again.iter().zip(&pre.values[(n_pos - 1) * n_features..]) {
        assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} {b}");
    }
    // Rows of a pattern add up to 1.
    assert_eq!(pattern.shape[1..], [n_pos, n_pos]);
    assert!(pattern.values.chunks(n_pos).all(|row| (row.iter().sum::<f32>() - 1.0).abs() < 1e-5));
}

fn candle_row(values: &[f32], row: usize, n: usize) -> Vec<f32> {
    values[row * n..(row + 1) * n].to_vec()
}

#[test]
fn what_is_not_there_cannot_be_read() {
    let tracer = Tracer::open(Setup::atlas()).unwrap();
    let read = |options: ReadOptions| tracer.read(PROMPT, &options, &Job::default()).unwrap_err();
    let error = read(ReadOptions { pre_activations: vec![4], ..Default::default() });
    assert!(matches!(error, Error::NoSuchLayer { layer: 4, n_layers: 4 }), "{error}");
    let error = read(ReadOptions { hooks: vec![HookPoint::ResidPre(9)], ..Default::default() });
    assert!(matches!(error, Error::NoSuchLayer { layer: 9, n_layers: 4 }), "{error}");
    // A family without position embeddings.
    let error = read(ReadOptions { hooks: vec![HookPoint::PosEmbed], ..Default::default() });
    assert!(matches!(error, Error::NotKept { .. }), "{error}");
}

#[test]
fn an_intervention_has_the_logits_of_both_runs() {
    let tracer = Tracer::open(Setup::atlas()).unwrap();
    let texas: FeatureSpec = "0_39_7".parse().unwrap();
    let run = tracer.intervene(PROMPT, &[texas.ablated()], &RunOptions::default()).unwrap();
    let graph = tracer.trace(PROMPT, &AttributionOptions::default()).unwrap();
    close(&run.logits_before, &graph.graph().logits);
    let target = run.target.token_id as usize;
    let change = f64::from(run.logits_after[target]) - f64::from(run.logits_before[target]);
    assert_eq!(change, run.target.logit_change);
}
