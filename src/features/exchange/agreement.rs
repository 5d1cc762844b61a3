//! Whether what another program says of features is true of the model here: the tokens of its examples go through the
//! model once more.

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use super::super::pushes::pushes;
use crate::corpus::{Sequence, batches};
use crate::error::{ErrorContext, Result};
use crate::job::Job;
use crate::model::{ForwardOptions, HookPoint, Hooks};
use crate::replacement::Replacement;

/// The phase of a job that counts examples.
const CHECK_PHASE: &str = "examples";

/// Activations this near are the same: other programs compute in 16 bits.
const NEAR: f64 = 0.1;

/// Logits that are compared.
const N_LOGITS: usize = 10;

/// How far what another program says of some features agrees with the model here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// Features that were looked at.
    pub n_features: usize,
    /// Examples of them.
    pub n_examples: usize,
    /// Of those, the ones that begin where a text does; others were cut out of one, and what stood before is not known.
    pub n_whole: usize,
    /// Correlation of the activations here with theirs, over all tokens of the examples.
    pub correlation: f64,
    /// Median of the activation here over theirs, at the examples' own tokens; 0 where a feature is not active here.
    pub median_ratio: f64,
    /// The share of examples whose own token has an activation within a tenth of theirs.
    pub share_near: f64,
    /// The same of those that begin where a text does.
    pub share_near_whole: f64,
    /// The share of examples in which the same token is the strongest.
    pub share_same_token: f64,
    /// Of the ten logits that a feature raises most here, the share that is among theirs; nothing where they name none.
    pub share_logits: Option<f64>,
}

impl Agreement {
    /// Whether they speak of the same features: at least half of the examples have the same strongest token, the
    /// activations correlate by 0.5 or more, and their median ratio is between two thirds and three halves.
    pub fn agrees(&self) -> bool {
        let (low, high) = (2.0 / 3.0, 1.5);
        self.share_same_token >= 0.5 && self.correlation >= 0.5 && (low..=high).contains(&self.median_ratio)
    }
}

/// A feature that is looked at.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub layer: usize,
    pub feature: usize,
    pub examples: Vec<SampleExample>,
    /// Tokens whose logits it raises most, as far as they are known here.
    pub top: Vec<u32>,
}

/// An example as the other program has it.
#[derive(Clone, Debug)]
pub(super) struct SampleExample {
    /// With the token that begins a text.
    pub tokens: Vec<u32>,
    /// As many as tokens.
    pub values: Vec<f32>,
    /// Its own token.
    pub at: usize,
    /// Whether it begins where a text does.
    pub is_whole: bool,
}

/// Runs the examples, and compares. Nothing where there are none.
///
/// # Errors
/// Those of the model; [`crate::Error::Cancelled`].
pub(super) fn agreement(replacement: &Replacement, samples: &[Sample], job: &Job) -> Result<Option<Agreement>> {
    let examples: Vec<(&Sample, &SampleExample)> =
        samples.iter().flat_map(|sample| sample.examples.iter().map(move |example| (sample, example))).collect();
    if examples.is_empty() {
        return Ok(None);
    }
    let sequences: Vec<Sequence> =
        examples.iter().map(|(_, example)| Sequence { tokens: example.tokens.clone(), document: 0 }).collect();
    let mut here: Vec<Vec<f32>> = sequences.iter().map(|sequence| vec![0.0; sequence.tokens.len()]).collect();
    let mut n_done = 0;
    for batch in batches(&sequences) {
        job.check()?;
        let tokens: Vec<Vec<u32>> = batch.iter().map(|&i| sequences[i].tokens.clone()).collect();
        let mut of_layers: BTreeMap<usize, Vec<(usize, usize, usize)>> = BTreeMap::new();
        for (row, &i) in batch.iter().enumerate() {
            let sample = examples[i].0;
            of_layers.entry(sample.layer).or_default().push((row, i, sample.feature));
        }
        let n_pos = tokens.iter().map(Vec::len).max().unwrap_or(0);
        let mut observer = Observer { replacement, of_layers, here: &mut here, n_pos };
        replacement.model.forward(&tokens, &mut observer, ForwardOptions::of(job))?;
        n_done += batch.len();
        job.report(CHECK_PHASE, n_done, sequences.len());
    }
    let mut pairs: Vec<(f64, f64)> = Vec::new();
    let (mut ratios, mut n_near, mut n_whole, mut n_near_whole, mut n_same) = (Vec::new(), 0, 0, 0, 0);
    for ((_, example), here) in examples.iter().zip(&here) {
        let counted = replacement.n_excluded(&example.tokens)..example.tokens.len();
        pairs.extend(counted.clone().map(|i| (f64::from(here[i]), f64::from(example.values[i]))));
        let ratio = f64::from(here[example.at]) / f64::from(example.values[example.at]);
        let is_near = (ratio - 1.0).abs() <= NEAR;
        let strongest = |values: &[f32]| counted.clone().reduce(|a, b| if values[b] > values[a] { b } else { a });
        let has_any = here[counted.clone()].iter().any(|&value| value > 0.0);
        n_same += usize::from(has_any && strongest(here) == strongest(&example.values));
        n_near += usize::from(is_near);
        n_whole += usize::from(example.is_whole);
        n_near_whole += usize::from(is_near && example.is_whole);
        ratios.push(ratio);
    }
    ratios.sort_by(f64::total_cmp);
    let n = examples.len() as f64;
    Ok(Some(Agreement {
        n_features: samples.iter().filter(|sample| !sample.examples.is_empty()).count(),
        n_examples: examples.len(),
        n_whole,
        correlation: correlation(&pairs),
        median_ratio: ratios[ratios.len() / 2],
        share_near: n_near as f64 / n,
        share_near_whole: n_near_whole as f64 / n_whole.max(1) as f64,
        share_same_token: n_same as f64 / n,
        share_logits: share_logits(replacement, samples)?,
    }))
}

/// Of the logits that features raise most here, the share that is among theirs.
fn share_logits(replacement: &Replacement, samples: &[Sample]) -> Result<Option<f64>> {
    let (mut n_common, mut n_compared) = (0, 0);
    for of_layer in samples.chunk_by(|a, b| a.layer == b.layer) {
        let named: Vec<&Sample> = of_layer.iter().filter(|sample| !sample.top.is_empty()).collect();
        let features: Vec<usize> = named.iter().map(|sample| sample.feature).collect();
        let Some(first) = named.first() else { continue };
        for (sample, pushes) in named.iter().zip(pushes(replacement, first.layer, &features, N_LOGITS)?) {
            let theirs = &sample.top[..sample.top.len().min(N_LOGITS)];
            let here = pushes.top.iter().take(theirs.len());
            n_compared += theirs.len();
            n_common += here.filter(|push| theirs.contains(&push.token)).count();
        }
    }
    Ok((n_compared > 0).then(|| n_common as f64 / n_compared as f64))
}

/// Pearson's; 0 where one side does not vary.
fn correlation(pairs: &[(f64, f64)]) -> f64 {
    let n = pairs.len().max(1) as f64;
    let mean = pairs.iter().fold((0.0, 0.0), |sum, pair| (sum.0 + pair.0 / n, sum.1 + pair.1 / n));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        let (x, y) = (x - mean.0, y - mean.1);
        (xx, yy, xy) = (xx + x * x, yy + y * y, xy + x * y);
    }
    if xx > 0.0 && yy > 0.0 { (xy / (xx * yy).sqrt()).clamp(-1.0, 1.0) } else { 0.0 }
}

/// Keeps the activations of the features that are looked at.
struct Observer<'a> {
    replacement: &'a Replacement,
    /// Of each layer (row of the batch, example, feature).
    of_layers: BTreeMap<usize, Vec<(usize, usize, usize)>>,
    here: &'a mut [Vec<f32>],
    n_pos: usize,
}

impl Hooks for Observer<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        let is_wanted = |layer: usize| self.of_layers.contains_key(&layer);
        point.layer().is_some_and(|layer| is_wanted(layer) && self.replacement.input_point(layer) == point)
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        let Some(layer) = point.layer() else { return Ok(None) };
        let Some(wanted) = self.of_layers.get(&layer) else { return Ok(None) };
        let rows = self.replacement.transcoders.layers[layer].active(&tensor.flatten_to(1)?);
        let rows = rows.context(|| format!("cannot encode layer {layer}"))?;
        for &(row, example, feature) in wanted {
            for (offset, value) in self.here[example].iter_mut().enumerate() {
                let active = rows[row * self.n_pos + offset].iter().find(|c| c.feature as usize == feature);
                *value = active.map_or(0.0, |candidate| candidate.value);
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_is_pearsons() {
        assert!((correlation(&[(1.0, 2.0), (2.0, 4.0), (3.0, 6.0)]) - 1.0).abs() < 1e-12);
        assert!((correlation(&[(1.0, -2.0), (2.0, -4.0), (3.0, -6.0)]) + 1.0).abs() < 1e-12);
        assert_eq!(correlation(&[(1.0, 1.0), (1.0, 2.0)]), 0.0);
        assert_eq!(correlation(&[]), 0.0);
    }
}
