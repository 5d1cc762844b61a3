//! The model with something in place of its MLPs: the features' reconstruction, zero, or the mean output. Nothing else is
//! held.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::REPLACED_PHASE;
use super::options::EvaluateOptions;
use super::reconstruction::{Batch, Reconstruction, Site};
use crate::corpus::{Sequence, batches};
use crate::error::Result;
use crate::intervene::Distribution;
use crate::job::Job;
use crate::memory::MemoryPlan;
use crate::model::{Activations, ForwardOptions, HookPoint, Hooks, Pass};
use crate::replacement::Replacement;

/// Tokens, padding included, that go through the model at once: the residual stream and the reconstructions of every
/// layer are kept for them.
const BATCH_TOKENS: usize = 1 << 10;

/// Logits that are held at once, of the model and of what it is compared with: 64 MiB each.
const LOGITS: usize = 16 << 20;

/// The original model, and what it became. Means over the positions whose next token is known, without those that have
/// no features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replaced {
    /// Positions with all layers replaced.
    pub n_positions: u64,
    /// Cross-entropy of the original model there, in nats.
    pub cross_entropy: f64,
    /// All layers replaced; `None` where it was not asked for.
    pub all_layers: Option<Substituted>,
    /// Positions with one layer replaced.
    pub n_layer_positions: u64,
    /// Cross-entropy of the original model there.
    pub layer_cross_entropy: f64,
    /// One layer replaced, the others free. `[n_layers]`, or empty where it was not asked for.
    pub one_layer: Vec<Substituted>,
}

/// A replacement of one or all layers, and the two that it is held against.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Substituted {
    /// With the features' reconstruction in place of the MLP's output.
    pub features: Divergence,
    /// With zero.
    pub zero: Divergence,
    /// With the mean of the output on this text.
    pub mean: Divergence,
    /// (CE_zero − CE_features) / (CE_zero − CE): 1 for the original; `None` where zeros do no harm.
    pub ce_score: Option<f64>,
    /// The same against the mean.
    pub ce_score_mean: Option<f64>,
    /// (KL_zero − KL_features) / KL_zero.
    pub kl_score: Option<f64>,
}

/// What a changed model predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Cross-entropy of the next token, in nats.
    pub cross_entropy: f64,
    /// KL divergence from the original's prediction, in nats.
    pub kl: f64,
    /// The part of the positions at which the likeliest token is the original's.
    pub agreement: f64,
}

impl Divergence {
    fn over(self, n: f64) -> Self {
        let Self { cross_entropy, kl, agreement } = self;
        Self { cross_entropy: cross_entropy / n, kl: kl / n, agreement: agreement / n }
    }

    fn add(&mut self, other: Self) {
        self.cross_entropy += other.cross_entropy;
        self.kl += other.kl;
        self.agreement += other.agreement;
    }
}

/// What stands in place of MLPs.
enum Put<'a> {
    /// What features make of the pass's own inputs.
    Features(Reconstruction<'a>),
    /// The same rows as in another pass. `[n_rows, d_model]`
    Rows(&'a [f32]),
    /// One vector for all positions of each layer. `[n_layers]` of `[d_model]`
    Vector(&'a [Vec<f32>]),
}

/// Puts it there, in `layers`.
struct Substitute<'a> {
    replacement: &'a Replacement,
    batch: &'a Batch,
    layers: Range<usize>,
    put: Put<'a>,
}

impl Hooks for Substitute<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        match Site::of(self.replacement, point) {
            Some(Site::Input(layer)) => matches!(self.put, Put::Features(_)) && self.layers.contains(&layer),
            Some(Site::Output(layer)) => self.layers.contains(&layer),
            None => false,
        }
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        let d_model = self.replacement.model.config.d_model;
        match (Site::of(self.replacement, point), &mut self.put) {
            (Some(Site::Input(layer)), Put::Features(reconstruction)) => {
                reconstruction.read(layer, tensor)?;
                Ok(None)
            }
            (Some(Site::Output(layer)), put) => {
                let own;
                let replaced = match put {
                    Put::Features(reconstruction) => {
                        own = reconstruction.take(layer);
                        self.batch.with_rows(tensor, |i| &own[i * d_model..(i + 1) * d_model])
                    }
                    Put::Rows(rows) => self.batch.with_rows(tensor, |i| &rows[i * d_model..(i + 1) * d_model]),
                    Put::Vector(vecs) => self.batch.with_rows(tensor, |_| &vecs[layer]),
                };
                replaced.map(Some)
            }
            (Some(Site::Input(_)) | None, _) => Ok(None),
        }
    }
}

/// Keeps every layer's reconstruction of the original pass.
struct Reconstruct<'a> {
    replacement: &'a Replacement,
    reconstruction: Reconstruction<'a>,
    /// `[n_layers]` of `[n_rows, d_model]`
    layers: Vec<Vec<f32>>,
}

impl Hooks for Reconstruct<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        matches!(Site::of(self.replacement, point), Some(Site::Input(_)))
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        if let Some(Site::Input(layer)) = Site::of(self.replacement, point) {
            self.reconstruction.read(layer, tensor)?;
            self.layers[layer] = self.reconstruction.take(layer);
        }
        Ok(None)
    }
}

/// What the original predicts at the positions of a batch that count.
struct Clean<'a> {
    replacement: &'a Replacement,
    /// Rows of `[n_sequences · n_pos, d_model]`.
    index: Tensor,
    /// `[n, d_model]`
    final_normed: Tensor,
    /// The tokens that follow. `[n]`
    next: Vec<u32>,
}

impl<'a> Clean<'a> {
    /// `None` where no position counts.
    fn new(replacement: &'a Replacement, batch: &Batch, pass: &Pass) -> Result<Option<Self>> {
        let (mut rows, mut next) = (Vec::new(), Vec::new());
        for &row in &batch.rows {
            let (sequence, pos) = (row as usize / batch.n_pos, row as usize % batch.n_pos);
            if let Some(&token) = batch.tokens[sequence].get(pos + 1) {
                rows.push(row);
                next.push(token);
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let index = Tensor::new(rows.as_slice(), replacement.model.device())?;
        let final_normed = pass.final_normed.flatten_to(1)?.index_select(&index, 0)?;
        Ok(Some(Self { replacement, index, final_normed, next }))
    }

    /// Sums over the positions: of the original's cross-entropy, and of what changed passes predict.
    fn compare(&self, changed: &[Pass; 3]) -> Result<(f64, [Divergence; 3])> {
        let model = &self.replacement.model;
        let changed = [0, 1, 2].map(|i| changed[i].final_normed.flatten_to(1)?.index_select(&self.index, 0));
        let [features, zero, mean] = changed;
        let changed = [features?, zero?, mean?];
        let logits = |normed: &Tensor, start: usize, n: usize| -> Result<Vec<f32>> {
            Ok(model.logits(&normed.narrow(0, start, n)?)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1()?)
        };
        let d_vocab = model.config.d_vocab;
        let step = (LOGITS / d_vocab).max(1);
        let mut cross_entropy = 0.0;
        let mut sums = [Divergence::default(); 3];
        for start in (0..self.next.len()).step_by(step) {
            let next = &self.next[start..(start + step).min(self.next.len())];
            let original = logits(&self.final_normed, start, next.len())?;
            let all = original.par_chunks_exact(d_vocab).zip(next);
            let of_original: Vec<f64> =
                all.map(|(logits, &next)| -Distribution::new(logits).log_probability(next)).collect();
            cross_entropy += of_original.iter().sum::<f64>();
            for (sum, changed) in sums.iter_mut().zip(&changed) {
                let changed = logits(changed, start, next.len())?;
                let rows = original.par_chunks_exact(d_vocab).zip(changed.par_chunks_exact(d_vocab)).zip(next);
                let of_rows: Vec<Divergence> =
                    rows.map(|((original, changed), &next)| divergence(original, changed, next)).collect();
                of_rows.into_iter().for_each(|divergence| sum.add(divergence));
            }
        }
        Ok((cross_entropy, sums))
    }
}

/// At one position.
fn divergence(original: &[f32], changed: &[f32], next: u32) -> Divergence {
    let (before, after) = (Distribution::new(original), Distribution::new(changed));
    let agrees = likeliest(original) == likeliest(changed);
    Divergence {
        cross_entropy: -after.log_probability(next),
        kl: before.kl_divergence(&after),
        agreement: f64::from(u8::from(agrees)),
    }
}

/// The first of the largest.
fn likeliest(logits: &[f32]) -> usize {
    logits.iter().enumerate().fold(0, |best, (i, &logit)| if logit > logits[best] { i } else { best })
}

/// Sums of all batches.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    n: u64,
    cross_entropy: f64,
    changed: [Divergence; 3],
}

impl Sums {
    fn add(&mut self, clean: &Clean, changed: &[Pass; 3]) -> Result<()> {
        let (cross_entropy, sums) = clean.compare(changed)?;
        self.n += clean.next.len() as u64;
        self.cross_entropy += cross_entropy;
        self.changed.iter_mut().zip(sums).for_each(|(sum, other)| sum.add(other));
        Ok(())
    }

    fn substituted(&self) -> Substituted {
        let [features, zero, mean] = self.changed.map(|sum| sum.over(self.n as f64));
        let original = self.cross_entropy / self.n as f64;
        let score = |from: f64, to: f64, reached: f64| (from > to).then(|| (from - reached) / (from - to));
        Substituted {
            features,
            zero,
            mean,
            ce_score: score(zero.cross_entropy, original, features.cross_entropy),
            ce_score_mean: score(mean.cross_entropy, original, features.cross_entropy),
            kl_score: score(zero.kl, 0.0, features.kl),
        }
    }
}

/// Replaces all layers, and each alone, while the model reads `sequences`. `means` are the mean outputs.
/// `[n_layers]` of `[d_model]`
///
/// # Errors
/// As [`super::evaluate`].
pub(super) fn measure(
    replacement: &Replacement,
    sequences: &[Sequence],
    means: &[Vec<f32>],
    options: &EvaluateOptions,
    job: &Job,
) -> Result<Option<Replaced>> {
    let n_layers = replacement.model.config.n_layers;
    let first = |n_tokens: usize| {
        let mut before = 0;
        let is_first = |sequence: &&Sequence| {
            let start = before;
            before += sequence.tokens.len();
            start < n_tokens
        };
        sequences.iter().take_while(is_first).cloned().collect::<Vec<_>>()
    };
    let all_layers = batches_of(replacement, &first(options.replaced_tokens))?;
    let one_layer = batches_of(replacement, &first(options.layer_tokens))?;
    // Three passes each: features, zero, mean.
    let n_passes = 3 * (all_layers.len() + one_layer.len() * n_layers);
    let mut passes = Passes { replacement, means, job, quiet: job.unreported(), done: 0, total: n_passes };
    let mut whole = Sums::default();
    for batch in &all_layers {
        passes.all_layers(batch, &mut whole)?;
    }
    let mut alone = vec![Sums::default(); n_layers];
    for batch in &one_layer {
        passes.each_layer(batch, &mut alone)?;
    }
    let n_layer_positions = alone.first().map_or(0, |sums| sums.n);
    if whole.n == 0 && n_layer_positions == 0 {
        return Ok(None);
    }
    let mean_of = |sums: Option<&Sums>| sums.map_or(0.0, |sums| sums.cross_entropy / sums.n.max(1) as f64);
    Ok(Some(Replaced {
        n_positions: whole.n,
        cross_entropy: mean_of(Some(&whole)),
        all_layers: (whole.n > 0).then(|| whole.substituted()),
        n_layer_positions,
        layer_cross_entropy: mean_of(alone.first()),
        one_layer: alone.iter().filter(|sums| sums.n > 0).map(Sums::substituted).collect(),
    }))
}

fn batches_of(replacement: &Replacement, sequences: &[Sequence]) -> Result<Vec<Batch>> {
    let mut all = Vec::new();
    for together in batches(sequences) {
        let longest = together.iter().map(|&i| sequences[i].tokens.len()).max().unwrap_or(0);
        for together in together.chunks((BATCH_TOKENS / longest.max(1)).max(1)) {
            let tokens = together.iter().map(|&i| sequences[i].tokens.clone()).collect();
            all.push(Batch::new(replacement, tokens)?);
        }
    }
    Ok(all)
}

struct Passes<'a> {
    replacement: &'a Replacement,
    means: &'a [Vec<f32>],
    job: &'a Job,
    quiet: Job,
    done: usize,
    total: usize,
}

impl Passes<'_> {
    fn all_layers(&mut self, batch: &Batch, sums: &mut Sums) -> Result<()> {
        let replacement = self.replacement;
        replacement.check_changed_run(batch.tokens.len(), batch.n_pos)?;
        let pass = replacement.model.forward(&batch.tokens, &mut (), ForwardOptions::of(&self.quiet))?;
        let Some(clean) = Clean::new(replacement, batch, &pass)? else { return self.count(3) };
        drop(pass);
        let layers = 0..replacement.model.config.n_layers;
        let run = |put: Put| {
            let mut hooks = Substitute { replacement, batch, layers: layers.clone(), put };
            replacement.model.forward(&batch.tokens, &mut hooks, ForwardOptions::of(&self.quiet))
        };
        let zeros: Vec<Vec<f32>> = self.means.iter().map(|mean| vec![0.0; mean.len()]).collect();
        let features = run(Put::Features(Reconstruction::new(replacement, batch)))?;
        sums.add(&clean, &[features, run(Put::Vector(&zeros))?, run(Put::Vector(self.means))?])?;
        self.count(3)
    }

    /// Below the layer everything is as in the original pass, from which each changed one goes on.
    fn each_layer(&mut self, batch: &Batch, sums: &mut [Sums]) -> Result<()> {
        let replacement = self.replacement;
        let n_layers = replacement.model.config.n_layers;
        replacement.check_changed_run(batch.tokens.len(), batch.n_pos)?;
        self.check_kept(batch)?;
        let reconstruction = Reconstruction::new(replacement, batch);
        let mut reconstruct = Reconstruct { replacement, reconstruction, layers: vec![Vec::new(); n_layers] };
        let mut kept = Activations::at((0..n_layers).map(HookPoint::ResidPre));
        let hooks = &mut (&mut reconstruct, &mut kept);
        let pass = replacement.model.forward(&batch.tokens, hooks, ForwardOptions::of(&self.quiet))?;
        let Some(clean) = Clean::new(replacement, batch, &pass)? else { return self.count(3 * n_layers) };
        drop(pass);
        let zeros: Vec<Vec<f32>> = self.means.iter().map(|mean| vec![0.0; mean.len()]).collect();
        for (layer, sums) in sums.iter_mut().enumerate() {
            let resid_pre = kept.take(HookPoint::ResidPre(layer))?;
            let rows = std::mem::take(&mut reconstruct.layers[layer]);
            let run = |put: Put| {
                let mut hooks = Substitute { replacement, batch, layers: layer..layer + 1, put };
                let options = ForwardOptions::of(&self.quiet);
                replacement.model.forward_from(layer, resid_pre.clone(), &mut hooks, options)
            };
            let changed = [run(Put::Rows(&rows))?, run(Put::Vector(&zeros))?, run(Put::Vector(self.means))?];
            sums.add(&clean, &changed)?;
            self.count(3)?;
        }
        Ok(())
    }

    /// Holds what is kept of the original pass against the memory that is left.
    fn check_kept(&self, batch: &Batch) -> Result<()> {
        let config = &self.replacement.model.config;
        let n_pos = batch.tokens.len() * batch.n_pos;
        let stream = (config.n_layers * n_pos * config.d_model * size_of::<f32>()) as u64;
        MemoryPlan::new().with("the residual stream of every layer", stream).with("reconstructions", stream).check(
            || format!("replacing each layer in sequences of {} tokens", batch.n_pos),
            |bytes| {
                let fits = batch.n_pos as u128 * u128::from(bytes) / u128::from((2 * stream).max(1));
                format!("use sequences of at most about {fits} tokens")
            },
        )
    }

    fn count(&mut self, n: usize) -> Result<()> {
        self.done += n;
        self.job.report(REPLACED_PHASE, self.done, self.total);
        self.job.check()
    }
}
