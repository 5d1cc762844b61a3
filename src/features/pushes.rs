//! What features push: the tokens whose logits their decoders raise and lower, from weights alone.

use candle_core::Tensor;
use rayon::prelude::*;

use super::report::FeatureId;
use crate::error::Result;
use crate::replacement::{ChangeSite, LinearModel, Replacement};
use crate::transcoder::OutputHook;

/// Features whose logits are held at once.
const N_AT_ONCE: usize = 512;

/// A token, and what a feature does to its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Push {
    /// Its id.
    pub token: u32,
    /// What an activation of 1 adds to its logit, less the mean over the vocabulary, times what the final norm divides by
    /// (and what the norm after the MLP divides by, where transcoders write before one).
    pub value: f32,
}

/// The logits that a feature changes most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pushes {
    /// Those it raises most, largest first; of equal ones, the smaller id.
    pub top: Vec<Push>,
    /// Those it lowers most, lowest first.
    pub bottom: Vec<Push>,
}

/// What features of a layer push, the `n` highest and lowest logits of each.
///
/// As in graphs: their decoder vectors, for cross-layer transcoders summed over the layers they write to, through the
/// gain of the final norm (and its centring, of a LayerNorm) to the unembedding, less the mean over the vocabulary.
/// What norms divide by depends on the text, and is left out: values of one feature compare with each other, and those of
/// different features where they act on the same position.
///
/// # Errors
/// [`crate::Error::NoSuchFeature`]; those of reading and of the tensor operations.
pub fn pushes(replacement: &Replacement, layer: usize, features: &[usize], n: usize) -> Result<Vec<Pushes>> {
    let mut all = Vec::with_capacity(features.len());
    for features in features.chunks(N_AT_ONCE) {
        all.extend(ranked(replacement, &push_directions(replacement, layer, features)?, n)?);
    }
    Ok(all)
}

/// The logits that an active feature of a prompt changes most at a position, by its own activation: directly, which is
/// through the prompt's frozen attention and norms and past all other features, less the mean over the vocabulary. That of
/// a token is the edge from the feature to it as a target of the prompt's graph. Nothing for a feature that is not active
/// there.
///
/// # Errors
/// Those of reading and of the tensor operations.
pub fn pushes_here(
    replacement: &Replacement,
    linear: &LinearModel,
    feature: FeatureAt,
    at: usize,
    n: usize,
) -> Result<Option<(f32, Pushes)>> {
    let FeatureAt { id, pos } = feature;
    replacement.transcoders.check_feature(id.layer, id.feature)?;
    let mut of_layer = linear.features.of_layer(id.layer).map(|(_, active)| active);
    let Some(active) = of_layer.find(|active| (active.feature, active.pos) == (id.feature, pos)) else {
        return Ok(None);
    };
    let device = replacement.model.device();
    let written = replacement.transcoders.layers[id.layer].decoder_vecs(&[id.feature], device)?;
    let (_, n_layers, d_model) = written.dims3()?;
    let mut sum = Tensor::zeros((1, d_model), written.dtype(), device)?;
    for above in 0..n_layers {
        let vec = (written.get_on_dim(1, above)? * f64::from(active.value))?;
        let change = vec.pad_with_zeros(0, pos, linear.tokens.len() - 1 - pos)?.unsqueeze(0)?;
        let pushed = linear.push_forward(ChangeSite::OutputHook { layer: id.layer + above }, &change)?;
        sum = (sum + pushed.final_normed.get(0)?.narrow(0, at, 1)?)?;
    }
    Ok(ranked(replacement, &sum, n)?.pop().map(|pushes| (active.value, pushes)))
}

/// A feature at a position of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureAt {
    /// The feature.
    pub id: FeatureId,
    /// The position.
    pub pos: usize,
}

/// The highest and lowest logits of what is added to the input of the unembedding, less their mean. `directions` `[n_rows,
/// d_model]`
fn ranked(replacement: &Replacement, directions: &Tensor, n: usize) -> Result<Vec<Pushes>> {
    let mut ranks: Vec<Ranks> = vec![Ranks::new(n); directions.dim(0)?];
    let mut start = 0;
    for chunk in replacement.model.unembedding_chunks() {
        let logits = directions.matmul(&chunk?.t()?)?;
        let width = logits.dim(1)?;
        let values = logits.flatten_all()?.to_vec1::<f32>()?;
        let rows = ranks.par_iter_mut().zip(values.par_chunks(width.max(1)));
        rows.for_each(|(ranks, row)| ranks.add(start, row));
        start += width as u32;
    }
    Ok(ranks.into_iter().map(|ranks| ranks.pushes(start as usize)).collect())
}

/// What an activation of 1 adds to the input of the unembedding, as far as weights say. `[features.len(), d_model]`
pub(super) fn push_directions(replacement: &Replacement, layer: usize, features: &[usize]) -> Result<Tensor> {
    features.iter().try_for_each(|&feature| replacement.transcoders.check_feature(layer, feature))?;
    let written = replacement.transcoders.layers[layer].decoder_vecs(features, replacement.model.device())?;
    let mut sum: Option<Tensor> = None;
    for above in 0..written.dim(1)? {
        let part = through_output(replacement, layer + above, &written.get_on_dim(1, above)?)?;
        sum = Some(match sum {
            Some(sum) => (sum + part)?,
            None => part,
        });
    }
    let norm = replacement.model.final_norm()?;
    let sum = sum.map_or_else(|| written.sum(1), Ok)?;
    Ok(norm.centre(&sum)?.broadcast_mul(&norm.gain)?)
}

/// From what transcoders write at a layer to the residual stream: through the gain of the norm after the MLP, where they
/// write before one. `[n, d_model]` to the same
pub(super) fn through_output(replacement: &Replacement, layer: usize, written: &Tensor) -> Result<Tensor> {
    let has_norm = replacement.transcoders.output_hook == OutputHook::MlpOut && replacement.model.config.post_norms;
    if !has_norm {
        return Ok(written.clone());
    }
    match &replacement.model.layer(layer)?.post_mlp_norm {
        Some(norm) => Ok(norm.centre(written)?.broadcast_mul(&norm.gain)?),
        None => Ok(written.clone()),
    }
}

/// The highest and lowest of a row that comes in pieces.
#[derive(Clone, Debug)]
struct Ranks {
    n: usize,
    top: Vec<Push>,
    bottom: Vec<Push>,
    sum: f64,
}

impl Ranks {
    fn new(n: usize) -> Self {
        Self { n, top: Vec::with_capacity(n + 1), bottom: Vec::with_capacity(n + 1), sum: 0.0 }
    }

    fn add(&mut self, start: u32, row: &[f32]) {
        if self.n == 0 {
            return;
        }
        for (token, &value) in (start..).zip(row) {
            self.sum += f64::from(value);
            insert(&mut self.top, self.n, Push { token, value }, |a, b| a > b);
            insert(&mut self.bottom, self.n, Push { token, value }, |a, b| a < b);
        }
    }

    fn pushes(self, d_vocab: usize) -> Pushes {
        let mean = (self.sum / d_vocab.max(1) as f64) as f32;
        let less_mean = |list: Vec<Push>| -> Vec<Push> {
            list.into_iter().map(|push| Push { value: push.value - mean, ..push }).collect()
        };
        Pushes { top: less_mean(self.top), bottom: less_mean(self.bottom) }
    }
}

/// Puts a push where it belongs in a list of the first `n`; tokens come in ascending order, so equal ones stay behind.
fn insert(list: &mut Vec<Push>, n: usize, push: Push, is_before: impl Fn(f32, f32) -> bool) {
    if list.len() == n && !list.last().is_some_and(|last| is_before(push.value, last.value)) {
        return;
    }
    let at = list.partition_point(|other| !is_before(push.value, other.value));
    list.insert(at, push);
    list.truncate(n);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_a_row_rank_as_the_whole_row() {
        let row: Vec<f32> = (0..97u32).map(|i| ((i * 37) % 23) as f32).collect();
        let rank = |pieces: &[usize]| {
            let (mut ranks, mut start) = (Ranks::new(5), 0);
            for &len in pieces {
                ranks.add(start as u32, &row[start..start + len]);
                start += len;
            }
            ranks.pushes(row.len())
        };
        let whole = rank(&[97]);
        assert_eq!(rank(&[1, 50, 46]), whole);
        let mut sorted: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        assert_eq!(
            whole.top.iter().map(|p| p.token).collect::<Vec<_>>(),
            sorted[..5].iter().map(|p| p.0).collect::<Vec<_>>()
        );
    }
}
