//! What memory training needs, held against what there is before anything of that size is taken.

use super::activations::token_bytes;
use super::fold::calibration_bytes;
use super::init::FIT_TOKENS;
use super::layer::Layer;
use super::options::TrainOptions;
use crate::error::Result;
use crate::memory::MemoryPlan;
use crate::model::TextPass;

/// Checks that training fits, its steps and its end: `n_tokens` whose activations are held at once, and `n_held_out`, half
/// of which set thresholds.
///
/// # Errors
/// [`crate::Error::OutOfMemory`]
pub(super) fn check_memory(pass: &TextPass, options: &TrainOptions, n_tokens: u64, n_held_out: u64) -> Result<()> {
    let (n_layers, d_model) = (pass.model().config.n_layers, pass.model().config.d_model);
    let n_written = |layer: usize| if options.cross_layer { n_layers - layer } else { 1 };
    let of_set = |n_features: usize| {
        let layers = (0..n_layers).map(|layer| Layer::bytes(d_model, n_features, n_written(layer), options.skip));
        layers.fold(0, u64::saturating_add)
    };
    let of_layers = options.sets.iter().map(|set| of_set(set.n_features)).fold(0, u64::saturating_add);
    let per_token = token_bytes(n_layers, d_model);
    let held_out = n_held_out.saturating_mul(per_token);
    let doing = || format!("train {} features a layer", options.sets.iter().map(|s| s.n_features).sum::<usize>());
    let fits = |_| "fewer features, or less --memory for activations, would fit".to_owned();
    // Before thresholds are known, every pair above zero is a candidate, half of all in effect: 16 bytes each, in a list that
    // doubles as it grows.
    let n_features = options.sets.iter().map(|set| set.n_features as u64).max().unwrap_or(0);
    let pairs = |n_tokens: u64| n_tokens.saturating_mul(n_features).saturating_mul(16);
    let n_threads = rayon::current_num_threads().min(n_layers) as u64;
    // Rounding and a checkpoint's reader need a layer more.
    MemoryPlan::new()
        .with("weights and their moments", of_layers.saturating_add(of_layers / n_layers as u64))
        .with("activations", n_tokens.saturating_mul(per_token))
        .with("held-out tokens", held_out)
        .with("pairs of token and feature", n_threads.saturating_mul(pairs(FIT_TOKENS.max(options.batch) as u64)))
        .with("the model's layers", pass.kept_bytes())
        .with("a batch", 12 * (options.batch * d_model * n_layers) as u64)
        .check(doing, fits)?;
    // At the end moments and activations are gone. A set is there twice, in units of steps and in those of the model, and
    // on each thread a layer's thresholds are set.
    let largest = options.sets.iter().max_by_key(|set| set.n_features);
    let copied = largest.map_or(0, |set| of_set(set.n_features) / 3);
    let calibration = largest.map_or(0, |set| calibration_bytes(n_held_out / 2, d_model, set));
    MemoryPlan::new()
        .with("the model's layers", pass.kept_bytes())
        .with("weights", (of_layers / 3).saturating_add(copied))
        .with("held-out tokens", held_out)
        .with("pairs of token and feature", pairs(n_held_out / 2))
        .with("setting thresholds", n_threads.saturating_mul(calibration))
        .check(doing, fits)
}
