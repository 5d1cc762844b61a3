//! The pull-back is the transpose of the frozen forward map: ⟨y, J x⟩ = ⟨Jᵀ y, x⟩, in every family.

use candle_core::Tensor;
use circuitscope::job::Job;
use circuitscope::ops::{RaggedBatch, SourceVecs};
use circuitscope::replacement::{ChangeSite, LinearModel, Origin, Sources, TargetBatch, TargetSite};

use crate::reference::cases;
pub use crate::support::Random;
use crate::support::device;

/// f32 sums of a few thousand terms in different orders.
const RTOL: f64 = 1e-5;

fn random_sources(random: &mut Random, n_pos: usize, d_model: usize, origin: impl Fn(usize) -> Origin) -> Sources {
    Sources {
        vecs: SourceVecs::new(
            Tensor::from_vec(random.vec(n_pos * d_model), (n_pos, d_model), &device()).unwrap(),
            (0..=n_pos).collect::<Vec<_>>().into(),
        ),
        origins: (0..n_pos).map(origin).collect(),
    }
}

/// Puts one random vector at every layer and position in the place of the model's own sources.
fn with_random_sources(linear: &mut LinearModel, random: &mut Random) {
    let (n_pos, d_model) = linear.final_normed.dims2().unwrap();
    for (layer, sources) in linear.mlp_sources.iter_mut().enumerate() {
        *sources = random_sources(random, n_pos, d_model, |pos| Origin::Error { layer, pos });
    }
    linear.embed_sources = random_sources(random, n_pos, d_model, |pos| Origin::Token { pos });
    linear.attn_constants.iter_mut().for_each(|constants| *constants = None);
}

/// `⟨Jᵀ y, x⟩` for every source x: the effects that the pull-back reads. `[(x, [n_targets])]`
fn pulled_back(linear: &LinearModel, batch: &TargetBatch) -> Vec<(Origin, Vec<f32>)> {
    let mut all = Vec::new();
    let read = &mut |sources: &Sources, grad: &Tensor, ragged: &RaggedBatch| {
        let effects = sources.effects(grad, ragged)?;
        for (i, &origin) in sources.origins.iter().enumerate() {
            all.push((origin, effects.narrow(1, i, 1)?.flatten_all()?.to_vec1()?));
        }
        Ok(())
    };
    linear.pull_back(batch, read).unwrap();
    all
}

/// `⟨y, J x⟩` for every target y of the batch. `[n_targets]`
fn pushed_forward(linear: &LinearModel, batch: &TargetBatch, origin: Origin) -> Vec<f32> {
    let (site, pos, sources) = match origin {
        Origin::Error { layer, pos } => (ChangeSite::OutputHook { layer }, pos, &linear.mlp_sources[layer]),
        Origin::Token { pos } => (ChangeSite::Embedding, pos, &linear.embed_sources),
        Origin::Feature(_) | Origin::Constant => unreachable!("the sources were replaced"),
    };
    let (n_pos, d_model) = linear.final_normed.dims2().unwrap();
    let mut change = vec![0f32; n_pos * d_model];
    let vec: Vec<f32> = sources.vecs.all().unwrap().get(pos).unwrap().to_vec1().unwrap();
    change[pos * d_model..(pos + 1) * d_model].copy_from_slice(&vec);
    let change = Tensor::from_vec(change, (1, n_pos, d_model), &device()).unwrap();
    let pushed = linear.push_forward(site, &change).unwrap();
    let at_site = match batch.site {
        TargetSite::InputHook { layer } => &pushed.hook_in[layer],
        TargetSite::FinalNorm => &pushed.final_normed,
        TargetSite::AttentionInput { .. } => unreachable!("targets are features and directions"),
    };
    let at_site: Vec<Vec<f32>> = at_site.squeeze(0).unwrap().to_vec2().unwrap();
    let gradients: Vec<Vec<f32>> = batch.gradients.to_vec2().unwrap();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
    batch.positions.iter().zip(&gradients).map(|(&pos, y)| dot(&at_site[pos], y)).collect()
}

#[test]
fn pull_back_is_the_transpose_of_the_frozen_forward_map() {
    for (seed, case) in cases().iter().enumerate() {
        let replacement = case.replacement();
        let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
        let mut linear = replacement.linearize(&tokens, &Job::default()).unwrap();
        let mut random = Random::new(seed as u64);
        with_random_sources(&mut linear, &mut random);
        let (n_pos, d_model) = linear.final_normed.dims2().unwrap();
        let n_layers = linear.mlp_sources.len();
        let inner = 1 + random.below(n_layers - 1);
        for site in [
            TargetSite::FinalNorm,
            TargetSite::InputHook { layer: inner },
            TargetSite::InputHook { layer: n_layers - 1 },
            TargetSite::InputHook { layer: 0 },
        ] {
            // Unequal positions, some twice, the first and the last among them.
            let mut positions = vec![0, n_pos - 1, random.below(n_pos), random.below(n_pos), random.below(n_pos)];
            positions.sort_unstable_by(|a, b| b.cmp(a));
            let gradients = random.vec(positions.len() * d_model);
            let gradients = Tensor::from_vec(gradients, (positions.len(), d_model), &device()).unwrap();
            let batch = TargetBatch { site, positions, gradients };
            let transposed = pulled_back(&linear, &batch);
            let forward: Vec<Vec<f32>> =
                transposed.iter().map(|&(origin, _)| pushed_forward(&linear, &batch, origin)).collect();
            let largest = forward.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
            assert!(largest > 0.0, "{}: {site:?}: nothing arrives", case.name);
            for ((origin, back), forward) in transposed.iter().zip(&forward) {
                for (target, (b, f)) in back.iter().zip(forward).enumerate() {
                    let difference = f64::from((b - f).abs());
                    assert!(
                        difference <= RTOL * f64::from(largest),
                        "{}: {site:?}, target {target}, {origin:?}: {b} pulled back, {f} pushed forward",
                        case.name
                    );
                }
            }
        }
    }
}

#[test]
fn nothing_arrives_from_above_or_behind() {
    let case = &cases()[0];
    let replacement = case.replacement();
    let tokens = replacement.tokenizer.encode_prompt(case.prompt()).unwrap();
    let linear = replacement.linearize(&tokens, &Job::default()).unwrap();
    let (n_pos, d_model) = linear.final_normed.dims2().unwrap();
    let mut random = Random::new(7);
    let mut change = vec![0f32; n_pos * d_model];
    change[2 * d_model..3 * d_model].copy_from_slice(&random.vec(d_model));
    let change = Tensor::from_vec(change, (1, n_pos, d_model), &device()).unwrap();
    let pushed = linear.push_forward(ChangeSite::OutputHook { layer: 1 }, &change).unwrap();
    let at = |tensor: &Tensor, pos: usize| -> f32 {
        tensor.get(0).unwrap().get(pos).unwrap().abs().unwrap().sum_all().unwrap().to_scalar().unwrap()
    };
    for layer in 0..linear.mlp_sources.len() {
        for pos in 0..n_pos {
            let arrives = at(&pushed.hook_in[layer], pos) > 0.0;
            if layer <= 1 || pos < 2 {
                assert!(!arrives, "layer {layer}, position {pos}");
            }
        }
        assert!(layer <= 1 || at(&pushed.hook_in[layer], 2) > 0.0, "layer {layer}");
    }
}
