//! Reconstruction, sparsity and use of features, layer by layer.

use std::collections::BTreeMap;

use candle_core::Tensor;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::TOKENS_PHASE;
use super::options::{MeasuredText, TextOptions};
use super::reconstruction::{Batch, Reconstruction, Site};
use super::spread::rank;
use crate::corpus::{Input, Sequence, Stream, batches};
use crate::error::{Error, Result};
use crate::features::sequence_hash;
use crate::job::Job;
use crate::model::{HookPoint, Hooks};
use crate::replacement::Replacement;
use crate::transcoder::Candidate;

/// A feature that is active at more than this part of the positions is dense.
const DENSE: f64 = 0.1;

/// The frequencies at which bins of [`LayerQuality::frequencies`] begin: half a decade each. The first bin also has what
/// is rarer.
pub const FREQUENCY_EDGES: [f64; 12] = [
    1e-6,
    3.162_277_660_168_379_5e-6,
    1e-5,
    3.162_277_660_168_379_5e-5,
    1e-4,
    3.162_277_660_168_379_5e-4,
    1e-3,
    3.162_277_660_168_379_5e-3,
    1e-2,
    3.162_277_660_168_379_5e-2,
    1e-1,
    3.162_277_660_168_379_5e-1,
];

/// How well the features of one layer stand for its MLP. Means are over the positions that have features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerQuality {
    /// Which layer.
    pub layer: usize,
    /// Features that read it.
    pub n_features: usize,
    /// Fraction of variance unexplained: [`LayerQuality::squared_error`] by [`LayerQuality::squared_deviation`]; `None`
    /// where the output does not vary.
    pub fvu: Option<f64>,
    /// Σ‖y − ŷ‖², of outputs y and reconstructions ŷ.
    pub squared_error: f64,
    /// Σ‖y − ȳ‖², ȳ the mean of the outputs.
    pub squared_deviation: f64,
    /// Mean of the cosine of y and ŷ, 0 where either is 0.
    pub cosine: f64,
    /// Mean of ‖ŷ‖/‖y‖, where y is not 0.
    pub norm_ratio: f64,
    /// Mean number of active features.
    pub l0: f64,
    /// Quantiles of it over positions: 5, 25, 50, 75 and 95 %.
    pub l0_quantiles: [u32; 5],
    /// Features that are active nowhere.
    pub n_dead: usize,
    /// Features that are active at more than a tenth of the positions.
    pub n_dense: usize,
    /// Features by the part of the positions at which they are active, without the dead; bins begin at
    /// [`FREQUENCY_EDGES`].
    pub frequencies: [u64; FREQUENCY_EDGES.len()],
}

/// All layers, and what they come to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layers {
    /// Mean of the layers' FVU, of those that have one.
    pub mean_fvu: Option<f64>,
    /// All layers' squared error by all layers' squared deviation: the layers with the largest outputs decide.
    pub pooled_fvu: Option<f64>,
    /// Mean of the layers' L0.
    pub mean_l0: f64,
    /// Mean of the layers' cosine.
    pub mean_cosine: f64,
    /// Mean of the layers' norm ratio.
    pub mean_norm_ratio: f64,
    /// Dead features by all features.
    pub dead_share: f64,
    /// Dense features by all features.
    pub dense_share: f64,
    /// Positions that everything is measured at.
    pub n_positions: u64,
    /// The frequencies at which bins begin.
    pub frequency_edges: [f64; FREQUENCY_EDGES.len()],
    /// `[n_layers]`
    pub layers: Vec<LayerQuality>,
}

/// Sums over what was seen of one layer.
#[derive(Debug)]
pub(crate) struct LayerMeasure {
    n_positions: u64,
    squared_error: f64,
    /// Σ‖y‖²
    squared: f64,
    /// Σy. `[d_model]`
    sum: Vec<f64>,
    cosines: f64,
    norm_ratios: f64,
    n_norm_ratios: u64,
    /// Positions at which each feature is active. `[n_features]`
    counts: Vec<u64>,
    /// Positions by their number of active features.
    l0: BTreeMap<u32, u64>,
}

impl LayerMeasure {
    /// Of nothing yet.
    pub(crate) fn new(n_features: usize, d_model: usize) -> Self {
        Self {
            n_positions: 0,
            squared_error: 0.0,
            squared: 0.0,
            sum: vec![0.0; d_model],
            cosines: 0.0,
            norm_ratios: 0.0,
            n_norm_ratios: 0,
            counts: vec![0; n_features],
            l0: BTreeMap::new(),
        }
    }

    /// Adds positions: outputs, reconstructions, and active features.
    ///
    /// # Shapes
    /// `outputs` and `reconstructions` `[n, d_model]`, `active` `[n][..]`.
    pub(crate) fn add(&mut self, outputs: &[f32], reconstructions: &[f32], active: &[Vec<Candidate>]) {
        let d_model = self.sum.len();
        // Rows in parallel, their sums in order: the same for any number of threads.
        let rows = outputs.par_chunks_exact(d_model).zip(reconstructions.par_chunks_exact(d_model));
        let sums: Vec<[f64; 4]> = rows.map(|(y, y_hat)| products(y, y_hat)).collect();
        for [error, yy, hh, yh] in sums {
            self.squared_error += error;
            self.squared += yy;
            if yy > 0.0 {
                self.norm_ratios += (hh / yy).sqrt();
                self.n_norm_ratios += 1;
                self.cosines += if hh > 0.0 { yh / (yy.sqrt() * hh.sqrt()) } else { 0.0 };
            }
        }
        for y in outputs.chunks_exact(d_model) {
            self.sum.iter_mut().zip(y).for_each(|(sum, &y)| *sum += f64::from(y));
        }
        for active in active {
            active.iter().for_each(|c| self.counts[c.feature as usize] += 1);
            *self.l0.entry(active.len() as u32).or_default() += 1;
        }
        self.n_positions += active.len() as u64;
    }

    /// The mean output. `[d_model]`
    pub(super) fn mean_output(&self) -> Vec<f32> {
        self.sum.iter().map(|sum| (sum / self.n_positions.max(1) as f64) as f32).collect()
    }

    /// What the sums come to.
    pub(crate) fn quality(&self, layer: usize) -> LayerQuality {
        let n = self.n_positions.max(1) as f64;
        let squared_deviation = (self.squared - self.sum.iter().map(|sum| sum * sum).sum::<f64>() / n).max(0.0);
        let mut frequencies = [0; FREQUENCY_EDGES.len()];
        let frequency = |count: u64| count as f64 / n;
        for &count in self.counts.iter().filter(|&&count| count > 0) {
            let bin = FREQUENCY_EDGES.partition_point(|&edge| edge <= frequency(count));
            frequencies[bin.saturating_sub(1)] += 1;
        }
        let quantile = |part: f64| {
            let mut left = rank(part, self.n_positions);
            let found = self.l0.iter().find(|(_, n)| match left.checked_sub(**n) {
                Some(rest) => {
                    left = rest;
                    false
                }
                None => true,
            });
            found.map_or(0, |(&l0, _)| l0)
        };
        LayerQuality {
            layer,
            n_features: self.counts.len(),
            fvu: (squared_deviation > 0.0).then(|| self.squared_error / squared_deviation),
            squared_error: self.squared_error,
            squared_deviation,
            cosine: self.cosines / n,
            norm_ratio: self.norm_ratios / self.n_norm_ratios.max(1) as f64,
            l0: self.l0.iter().map(|(&l0, &n)| f64::from(l0) * n as f64).sum::<f64>() / n,
            l0_quantiles: [0.05, 0.25, 0.5, 0.75, 0.95].map(quantile),
            n_dead: self.counts.iter().filter(|&&count| count == 0).count(),
            n_dense: self.counts.iter().filter(|&&count| frequency(count) > DENSE).count(),
            frequencies,
        }
    }
}

/// ‖y − ŷ‖², ‖y‖², ‖ŷ‖² and ⟨y, ŷ⟩.
fn products(y: &[f32], y_hat: &[f32]) -> [f64; 4] {
    let mut sums = [0f64; 4];
    for (&y, &h) in y.iter().zip(y_hat) {
        let (y, h) = (f64::from(y), f64::from(h));
        let error = y - h;
        sums[0] += error * error;
        sums[1] += y * y;
        sums[2] += h * h;
        sums[3] += y * h;
    }
    sums
}

impl Layers {
    pub(crate) fn of(measures: &[LayerMeasure]) -> Self {
        let layers: Vec<LayerQuality> = measures.iter().enumerate().map(|(l, measure)| measure.quality(l)).collect();
        let mean = |of: fn(&LayerQuality) -> f64| layers.iter().map(of).sum::<f64>() / layers.len().max(1) as f64;
        let share = |of: fn(&LayerQuality) -> usize| {
            let all: usize = layers.iter().map(|layer| layer.n_features).sum();
            layers.iter().map(of).sum::<usize>() as f64 / all.max(1) as f64
        };
        let fvus: Vec<f64> = layers.iter().filter_map(|layer| layer.fvu).collect();
        let deviation: f64 = layers.iter().map(|layer| layer.squared_deviation).sum();
        let error: f64 = layers.iter().map(|layer| layer.squared_error).sum();
        Self {
            mean_fvu: (!fvus.is_empty()).then(|| fvus.iter().sum::<f64>() / fvus.len() as f64),
            pooled_fvu: (deviation > 0.0).then(|| error / deviation),
            mean_l0: mean(|layer| layer.l0),
            mean_cosine: mean(|layer| layer.cosine),
            mean_norm_ratio: mean(|layer| layer.norm_ratio),
            dead_share: share(|layer| layer.n_dead),
            dense_share: share(|layer| layer.n_dense),
            n_positions: measures.first().map_or(0, |measure| measure.n_positions),
            frequency_edges: FREQUENCY_EDGES,
            layers,
        }
    }
}

/// Looks at what transcoders read and at what they are compared with.
struct Observer<'a> {
    replacement: &'a Replacement,
    batch: &'a Batch,
    reconstruction: Reconstruction<'a>,
    active: Vec<Vec<Candidate>>,
    measures: &'a mut [LayerMeasure],
}

impl Hooks for Observer<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        Site::of(self.replacement, point).is_some()
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        match Site::of(self.replacement, point) {
            Some(Site::Input(layer)) => self.active = self.reconstruction.read(layer, tensor)?,
            Some(Site::Output(layer)) => {
                if let Some(outputs) = self.batch.rows_of(tensor)? {
                    let outputs: Vec<f32> = outputs.flatten_all()?.to_vec1()?;
                    self.measures[layer].add(&outputs, &self.reconstruction.take(layer), &self.active);
                }
            }
            None => {}
        }
        Ok(None)
    }
}

/// Reads a text and measures every layer on it; `see` gets each sequence.
///
/// # Errors
/// As [`super::evaluate`].
pub(super) fn measure(
    replacement: &Replacement,
    inputs: &[Input],
    options: &TextOptions,
    see: &mut dyn FnMut(&Sequence),
    job: &Job,
) -> Result<(MeasuredText, Vec<LayerMeasure>)> {
    let (tokenizer, config) = (&replacement.tokenizer, &replacement.model.config);
    let limit = options.max_tokens.unwrap_or(u64::MAX);
    let mut stream = Stream::new(inputs, &options.format, options.part(), tokenizer, options.context, limit);
    let new = |transcoder: &crate::transcoder::Transcoder| LayerMeasure::new(transcoder.n_features(), config.d_model);
    let mut measures: Vec<LayerMeasure> = replacement.transcoders.layers.iter().map(new).collect();
    let files: Vec<String> = inputs.iter().map(Input::name).collect();
    let mut text =
        MeasuredText { files, hash: String::new(), n_tokens: 0, n_positions: 0, n_sequences: 0, n_documents: 0 };
    let mut hash = 0u64;
    while let Some(unit) = stream.next_unit(job)? {
        for sequence in &unit {
            hash = hash.wrapping_add(sequence_hash(sequence.tokens.iter().copied()));
            text.n_tokens += sequence.tokens.len() as u64;
            text.n_sequences += 1;
            see(sequence);
        }
        for together in batches(&unit) {
            let longest = together.iter().map(|&i| unit[i].tokens.len()).max().unwrap_or(0);
            for together in together.chunks(Batch::max_sequences(replacement, longest)) {
                let tokens = together.iter().map(|&i| unit[i].tokens.clone()).collect();
                let batch = Batch::new(replacement, tokens)?;
                text.n_positions += batch.rows.len() as u64;
                observe(replacement, &batch, &mut measures, job)?;
            }
        }
        job.report(TOKENS_PHASE, text.n_tokens as usize, options.max_tokens.unwrap_or(0) as usize);
    }
    text.hash = format!("{hash:016x}");
    text.n_documents = stream.cursor().n_documents().into();
    check_text(&text, stream.n_begun(), options)?;
    Ok((text, measures))
}

/// One pass, up to the last MLP.
fn observe(replacement: &Replacement, batch: &Batch, measures: &mut [LayerMeasure], job: &Job) -> Result<()> {
    let Some(last_layer) = replacement.model.config.n_layers.checked_sub(1) else { return Ok(()) };
    if batch.rows.is_empty() {
        return Ok(());
    }
    replacement.check_changed_run(batch.tokens.len(), batch.n_pos)?;
    let reconstruction = Reconstruction::new(replacement, batch);
    let mut observer = Observer { replacement, batch, reconstruction, active: Vec::new(), measures };
    replacement.model.forward_through(last_layer, &batch.tokens, &mut observer, &job.unreported())?;
    Ok(())
}

fn check_text(text: &MeasuredText, n_begun: u64, options: &TextOptions) -> Result<()> {
    let file = || text.files.join(", ");
    match text.n_positions {
        0 if text.n_tokens == 0 && n_begun > 0 && !options.all_text => {
            Err(Error::NothingHeldOut { file: file(), n_documents: n_begun })
        }
        0 if text.n_tokens == 0 => Err(Error::Text { file: file(), problem: "it holds no text".into() }),
        0 | 1 => {
            let problem = "it has fewer than two tokens to measure at, besides those that begin sequences".into();
            Err(Error::Text { file: file(), problem })
        }
        _ => Ok(()),
    }
}
