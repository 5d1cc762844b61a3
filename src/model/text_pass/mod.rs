//! A pass over much text, for what reads a model and changes nothing in it: training, collecting. Groups of sequences go
//! through a layer on one thread each, in rows that stay in a core's cache, without padding; steps between products are
//! fused. Its slow twin, [`twin`], runs [`Model::forward_through`]; elsewhere than on a CPU it does the work.

mod attention;
mod layer;
mod steps;
mod twin;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Device;
use rayon::prelude::*;

use self::layer::{Angles, RowLayer, Scratch};
use super::Model;
use super::hook_point::HookPoint;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::memory::MemoryPlan;
use crate::ops::PackedWeight;

/// Rows that go through a layer on one thread, if sequences are shorter: the products' share of time grows with them, and
/// with fewer groups than threads some stand idle.
const GROUP_ROWS: usize = 384;

/// Rows that are in memory at once, but for a sequence that is longer.
const SLAB_ROWS: usize = 1 << 13;

/// Looks at what a text pass computes.
pub trait TextVisitor {
    /// Whether to show what stands at a point: [`HookPoint::ResidMid`], [`HookPoint::Ln2Normalized`], [`HookPoint::MlpIn`],
    /// [`HookPoint::MlpOut`] and [`HookPoint::HookMlpOut`] can be shown.
    fn wants(&self, point: HookPoint) -> bool;

    /// Gets what stands at a wanted point, of all tokens of `sequences`, one after another, layer by layer. A text's
    /// sequences come in several such runs.
    ///
    /// # Shapes
    /// `rows` `[tokens of all sequences, d_model]`, `sequences` indices into those of the pass.
    ///
    /// # Errors
    /// Those of the implementation.
    fn see(&mut self, point: HookPoint, rows: Vec<f32>, sequences: Range<usize>) -> Result<()>;
}

/// A model as a text pass reads it.
#[derive(Debug)]
pub struct TextPass<'m> {
    model: &'m Model,
    rounds: bool,
    /// Layers that are kept. `[n_layers]`, or empty
    kept: Mutex<Vec<Option<Arc<RowLayer>>>>,
}

impl<'m> TextPass<'m> {
    /// A pass in f32 that reads each layer when it comes to it.
    pub fn new(model: &'m Model) -> Self {
        Self { model, rounds: false, kept: Mutex::new(Vec::new()) }
    }

    /// A pass that keeps its layers in memory, from the first time it reads them.
    #[must_use]
    pub fn keeping(self) -> Self {
        Self { kept: Mutex::new(vec![None; self.model.config.n_layers]), ..self }
    }

    /// As [`TextPass::keeping`], where there is room for the layers three times: the rest of the work needs some too.
    #[must_use]
    pub fn keeping_if_it_fits(self) -> Self {
        let plan = MemoryPlan::new().with("weights", 3 * self.model.layer_bytes());
        if plan.check(String::new, |_| String::new()).is_ok() { self.keeping() } else { self }
    }

    /// A pass whose products are in bf16, where the processor has such.
    #[must_use]
    pub fn rounding(self) -> Self {
        Self { rounds: true, ..self }
    }

    /// The model that is read with.
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Bytes of all layers as they are kept, where they are.
    pub fn kept_bytes(&self) -> u64 {
        let in_f32 = self.model.layer_bytes();
        if self.rounds && PackedWeight::is_supported() { in_f32 / 2 } else { in_f32 }
    }

    /// Runs sequences through layer `last_layer` and no further.
    ///
    /// # Errors
    /// Those of [`Model::forward_through`] and of the visitor.
    pub fn run(&self, last_layer: usize, sequences: &[&[u32]], visitor: &mut dyn TextVisitor, job: &Job) -> Result<()> {
        let config = &self.model.config;
        if last_layer >= config.n_layers {
            return Err(Error::NoSuchLayer { layer: last_layer, n_layers: config.n_layers });
        }
        sequences.iter().try_for_each(|tokens| self.model.check_tokens(tokens))?;
        if !self.model.device().is_cpu() {
            return twin::run(self.model, last_layer, sequences, visitor, job);
        }
        let longest = sequences.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        let angles = config.ropes.iter().map(|rope| {
            let (cos, sin) = rope.tables(0, longest, &Device::Cpu)?;
            Ok((cos.flatten_all()?.to_vec1::<f32>()?, sin.flatten_all()?.to_vec1::<f32>()?))
        });
        let angles = angles.collect::<Result<Vec<_>>>()?;
        let mut start = 0;
        while start < sequences.len() {
            let end = start + fitting(&sequences[start..], SLAB_ROWS);
            let slab = Slab { sequences: &sequences[start..end], places: start..end, angles: &angles };
            self.run_slab(last_layer, &slab, visitor, job)?;
            start = end;
        }
        Ok(())
    }

    fn run_slab(&self, last_layer: usize, slab: &Slab, visitor: &mut dyn TextVisitor, job: &Job) -> Result<()> {
        let d_model = self.model.config.d_model;
        let mut resid = self.embedded(slab.sequences)?;
        let groups = groups(slab.sequences);
        for l in 0..=last_layer {
            job.check()?;
            let layer = self.layer(l)?;
            let points = [
                HookPoint::ResidMid(l),
                HookPoint::Ln2Normalized(l),
                HookPoint::MlpIn(l),
                HookPoint::MlpOut(l),
                HookPoint::HookMlpOut(l),
            ];
            let wanted: Vec<HookPoint> = points.into_iter().filter(|&point| visitor.wants(point)).collect();
            let mut shown: Vec<Vec<f32>> = wanted.iter().map(|_| vec![0f32; resid.len()]).collect();
            let mut shares: Vec<Share> = split(&mut resid, &groups, d_model)
                .into_iter()
                .zip(&groups)
                .map(|(resid, lengths)| Share { resid, lengths, shown: Vec::new() })
                .collect();
            for (point, shown) in wanted.iter().zip(&mut shown) {
                let parts = split(shown, &groups, d_model);
                shares.iter_mut().zip(parts).for_each(|(share, part)| share.shown.push((*point, part)));
            }
            let are_finite = shares
                .into_par_iter()
                .map_init(Scratch::default, |scratch, share| layer.run(l, share, slab.angles, scratch))
                .collect::<Result<Vec<bool>>>()?;
            if are_finite.contains(&false) {
                return Err(self.where_not_finite(l, slab.sequences, job));
            }
            for (point, shown) in wanted.into_iter().zip(shown) {
                visitor.see(point, shown, slab.places.clone())?;
            }
        }
        Ok(())
    }

    /// The residual stream before the first layer. `[tokens of all sequences, d_model]`
    fn embedded(&self, sequences: &[&[u32]]) -> Result<Vec<f32>> {
        let d_model = self.model.config.d_model;
        let mut resid = self.model.embed(&sequences.concat())?.flatten_all()?.to_vec1::<f32>()?;
        let longest = sequences.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        if let Some(positions) = self.model.position_embeddings(0, longest)? {
            let positions = positions.flatten_all()?.to_vec1::<f32>()?;
            let mut left = &mut resid[..];
            for tokens in sequences {
                let (own, rest) = left.split_at_mut(tokens.len() * d_model);
                own.iter_mut().zip(&positions).for_each(|(value, position)| *value += position);
                left = rest;
            }
        }
        Ok(resid)
    }

    fn layer(&self, layer: usize) -> Result<Arc<RowLayer>> {
        let kept = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(layer)) = kept().get(layer) {
            return Ok(layer.clone());
        }
        let of_rows = Arc::new(RowLayer::new(self.model, layer, self.rounds)?);
        if let Some(place) = kept().get_mut(layer) {
            *place = Some(of_rows.clone());
        }
        Ok(of_rows)
    }

    /// The slow twin says where numbers stopped being finite.
    fn where_not_finite(&self, layer: usize, sequences: &[&[u32]], job: &Job) -> Error {
        for tokens in sequences {
            if let Err(error) = self.model.forward_through(layer, &[tokens.to_vec()], &mut (), job) {
                return error;
            }
        }
        // It does not round.
        Error::ComputedNotFinite { quantity: HookPoint::ResidPost(layer).to_string(), value: f32::NAN }
    }
}

/// Sequences that are in memory together.
struct Slab<'a> {
    sequences: &'a [&'a [u32]],
    /// Which they are of all.
    places: Range<usize>,
    /// Of every rotary embedding of the model, as long as the longest sequence.
    angles: &'a [Angles],
}

/// What one thread computes of a layer.
struct Share<'a> {
    /// `[rows, d_model]`
    resid: &'a mut [f32],
    /// Tokens of each sequence.
    lengths: &'a [usize],
    /// Where to write what stands at a point. `[rows, d_model]` each
    shown: Vec<(HookPoint, &'a mut [f32])>,
}

impl Share<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        self.shown.iter().any(|(wanted, _)| *wanted == point)
    }

    /// Writes what stands at a point, if it is wanted.
    fn show(&mut self, point: HookPoint, rows: &[f32]) {
        if let Some((_, place)) = self.shown.iter_mut().find(|(wanted, _)| *wanted == point) {
            place.copy_from_slice(rows);
        }
    }

    /// As [`Share::show`], of the residual stream.
    fn show_resid(&mut self, point: HookPoint) {
        let Self { resid, shown, .. } = self;
        if let Some((_, place)) = shown.iter_mut().find(|(wanted, _)| *wanted == point) {
            place.copy_from_slice(resid);
        }
    }
}

/// How many of the first sequences have at most `n_rows` tokens; at least one.
fn fitting(sequences: &[&[u32]], n_rows: usize) -> usize {
    let mut sum = 0;
    let fits = |tokens: &&&[u32]| {
        sum += tokens.len();
        sum <= n_rows
    };
    sequences.iter().take_while(fits).count().max(1)
}

/// Lengths of the sequences of every group.
fn groups(sequences: &[&[u32]]) -> Vec<Vec<usize>> {
    let mut groups = Vec::new();
    let mut left = sequences;
    while !left.is_empty() {
        let (group, rest) = left.split_at(fitting(left, GROUP_ROWS));
        groups.push(group.iter().map(|tokens| tokens.len()).collect());
        left = rest;
    }
    groups
}

/// The rows of every group.
fn split<'a>(mut rows: &'a mut [f32], groups: &[Vec<usize>], width: usize) -> Vec<&'a mut [f32]> {
    let parts = groups.iter().map(|lengths| {
        let (part, rest) = std::mem::take(&mut rows).split_at_mut(lengths.iter().sum::<usize>() * width);
        rows = rest;
        part
    });
    parts.collect()
}
