//! What a prompt does in the model and its transcoders, as numbers: active features, and on request every pre-activation
//! of a layer and the tensors at hook points.

use candle_core::{Device, Tensor};

use super::TokenizedPrompt;
use crate::error::{Error, Result};
use crate::graph::FeatureId;
use crate::intervene::Original;
use crate::job::Job;
use crate::memory::MemoryPlan;
use crate::model::{Activations, HookPoint};
use crate::replacement::{ActiveFeature, Replacement};

/// What is read beside the active features.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadOptions {
    /// Layers whose pre-activations are wanted, all features and positions of each.
    pub pre_activations: Vec<usize>,
    /// Hook points whose tensors are wanted.
    pub hooks: Vec<HookPoint>,
}

/// A tensor, read out.
#[derive(Clone, Debug, PartialEq)]
pub struct Values {
    /// Sizes, the outermost first.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// What was read of one prompt.
#[derive(Clone, Debug)]
pub struct PromptReading {
    /// The prompt.
    pub prompt: TokenizedPrompt,
    /// Every active feature, ascending. `[n_active]`
    pub features: Vec<FeatureId>,
    /// Their activations. `[n_active]`
    pub activations: Vec<f32>,
    /// At the last position. `[d_vocab]`
    pub logits: Vec<f32>,
    /// Of the layers that were asked for, in that order. Each `[n_pos, n_features]`; of positions that have no features
    /// (BOS) too.
    pub pre_activations: Vec<Values>,
    /// At the hook points that were asked for, in that order, each of the shape that [`HookPoint`] says, without the batch.
    pub hooks: Vec<Values>,
}

/// Runs a prompt and reads.
pub(super) fn read(
    replacement: &Replacement,
    prompt: TokenizedPrompt,
    options: &ReadOptions,
    job: &Job,
) -> Result<PromptReading> {
    let n_layers = replacement.model.config.n_layers;
    let layers = options.pre_activations.iter().copied().chain(options.hooks.iter().filter_map(|point| point.layer()));
    if let Some(layer) = layers.into_iter().find(|&layer| layer >= n_layers) {
        return Err(Error::NoSuchLayer { layer, n_layers });
    }
    check_fits(replacement, prompt.tokens.len(), options)?;
    let mut kept = Activations::at(options.hooks.iter().copied());
    let original = Original::run_keeping(replacement, &prompt.tokens, &mut kept, job)?;
    let pre_activations = options.pre_activations.iter().map(|&layer| {
        job.check()?;
        let input = original.input_of(layer)?.squeeze(0)?.contiguous()?;
        values_of(&replacement.transcoders.layers[layer].pre_activations(&input)?)
    });
    let hooks = options.hooks.iter().map(|&point| values_of(&kept.need(point)?.squeeze(0)?));
    let id = |f: &ActiveFeature| FeatureId { layer: f.layer as u32, pos: f.pos as u32, feature: f.feature as u32 };
    Ok(PromptReading {
        features: original.features.all.iter().map(id).collect(),
        activations: original.features.all.iter().map(|f| f.value).collect(),
        logits: original.logits.clone(),
        pre_activations: pre_activations.collect::<Result<_>>()?,
        hooks: hooks.collect::<Result<_>>()?,
        prompt,
    })
}

/// # Errors
/// [`Error::OutOfMemory`] where what is to be read is more than there is room for.
fn check_fits(replacement: &Replacement, n_pos: usize, options: &ReadOptions) -> Result<()> {
    let config = &replacement.model.config;
    let value_bytes = |n: usize| (n_pos * n * size_of::<f32>()) as u64;
    let layers = options.pre_activations.iter().map(|&layer| replacement.transcoders.layers[layer].n_features());
    let pre_activations: u64 = layers.map(value_bytes).sum();
    let at_point = |point: &HookPoint| match point {
        HookPoint::AttnPattern(_) | HookPoint::AttnScores(_) => value_bytes(config.n_heads * n_pos),
        HookPoint::AttnZ(_) | HookPoint::AttnV(_) => value_bytes(config.n_heads * config.d_head),
        point if point.is_scale() => value_bytes(1),
        _ => value_bytes(config.d_model),
    };
    let hooks: u64 = options.hooks.iter().map(at_point).sum();
    // Once where they are computed and once where they are handed out.
    MemoryPlan::new()
        .with("pre-activations", 2 * pre_activations)
        .with("tensors at hook points", 2 * hooks)
        .check(|| format!("reading {n_pos} positions"), |_| "ask for fewer layers or hook points".to_owned())
}

fn values_of(tensor: &Tensor) -> Result<Values> {
    let tensor = tensor.to_device(&Device::Cpu)?;
    Ok(Values { shape: tensor.dims().to_vec(), values: tensor.flatten_all()?.to_vec1()? })
}
