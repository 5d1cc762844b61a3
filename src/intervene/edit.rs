//! Interventions as [`Hooks`] of the forward pass.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{DType, Tensor};

use super::change::{Change, Intervention, Positions};
use crate::error::{Error, Result};
use crate::model::{Activations, HookPoint, Hooks};
use crate::replacement::Replacement;
use crate::transcoder::FeatureProbe;

/// What every alternative of a batch changes, with the encoder and decoder rows this takes.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    pub n_alternatives: usize,
    n_prompt: usize,
    n_excluded: usize,
    layers: BTreeMap<usize, LayerChanges<'a>>,
}

/// The changed features of one layer. Each distinct feature has a slot.
#[derive(Debug)]
struct LayerChanges<'a> {
    probe: FeatureProbe<'a>,
    /// `[n_slots, n_written, d_model]`
    decoder_vecs: Vec<f32>,
    n_written: usize,
    /// Activations of the original run. `[n_prompt][n_slots]`
    original: Vec<Vec<f32>>,
    /// In the order they were given: a later one replaces an earlier one at the same place.
    changes: Vec<SlotChange>,
}

#[derive(Clone, Copy, Debug)]
struct SlotChange {
    alternative: usize,
    slot: usize,
    positions: Positions,
    change: Change,
}

impl<'a> Resolved<'a> {
    /// Checks interventions against model and prompt and reads the rows they need.
    ///
    /// `original` is what the original run of the prompt kept.
    ///
    /// # Errors
    /// Layers, features or positions that do not exist, values that are not finite, [`Error::InactiveFeature`] for a
    /// feature that is to be scaled and is active at none of its positions; those of reading.
    pub fn new(
        replacement: &'a Replacement,
        alternatives: &[Vec<Intervention>],
        original: &Activations,
        n_prompt: usize,
        n_excluded: usize,
    ) -> Result<Self> {
        let mut by_layer: BTreeMap<usize, Vec<(usize, Intervention)>> = BTreeMap::new();
        for (alternative, interventions) in alternatives.iter().enumerate() {
            for &intervention in interventions {
                check(replacement, &intervention, n_prompt)?;
                by_layer.entry(intervention.layer).or_default().push((alternative, intervention));
            }
        }
        let mut layers = BTreeMap::new();
        for (layer, changes) in by_layer {
            let resolved =
                LayerChanges::new(replacement, layer, &changes, original.need(replacement.input_point(layer))?)?;
            for (_, intervention) in &changes {
                resolved.check_active(intervention, n_prompt, n_excluded)?;
            }
            layers.insert(layer, resolved);
        }
        Ok(Self { n_alternatives: alternatives.len(), n_prompt, n_excluded, layers })
    }

    /// The lowest layer that anything is changed at; below it a run is the original one.
    pub fn first_layer(&self) -> Option<usize> {
        self.layers.keys().next().copied()
    }

    /// What all alternatives make of the slots of a layer, at the positions of `window`.
    fn wanted(&self, layer: &LayerChanges, window: &Range<usize>) -> BTreeMap<(usize, usize, usize), Change> {
        let mut wanted = BTreeMap::new();
        for change in &layer.changes {
            for pos in change.positions.within(window.clone(), self.n_prompt, self.n_excluded) {
                wanted.insert((change.alternative, pos, change.slot), change.change);
            }
        }
        wanted
    }
}

fn check(replacement: &Replacement, intervention: &Intervention, n_prompt: usize) -> Result<()> {
    replacement.transcoders.check_feature(intervention.layer, intervention.feature)?;
    intervention.positions.check(n_prompt)?;
    let (Change::Set(value) | Change::Scale(value)) = intervention.change;
    if value.is_finite() {
        return Ok(());
    }
    Err(Error::Spec { text: intervention.to_string(), expected: "a finite value" })
}

impl<'a> LayerChanges<'a> {
    fn new(
        replacement: &'a Replacement,
        layer: usize,
        changes: &[(usize, Intervention)],
        original: &Tensor,
    ) -> Result<Self> {
        let device = replacement.model.device();
        let transcoder = &replacement.transcoders.layers[layer];
        let mut features: Vec<usize> = changes.iter().map(|(_, i)| i.feature).collect();
        features.sort_unstable();
        features.dedup();
        let decoder_vecs = transcoder.decoder_vecs(&features, &candle_core::Device::Cpu)?;
        let slot_of = |feature: usize| features.partition_point(|&f| f < feature);
        let changes = changes
            .iter()
            .map(|&(alternative, i)| SlotChange {
                alternative,
                slot: slot_of(i.feature),
                positions: i.positions,
                change: i.change,
            })
            .collect();
        let probe = FeatureProbe::new(transcoder, features, device)?;
        let original = probe.activations(&original.squeeze(0)?)?;
        let n_written = decoder_vecs.dim(1)?;
        let decoder_vecs = decoder_vecs.flatten_all()?.to_vec1()?;
        Ok(Self { probe, decoder_vecs, n_written, original, changes })
    }

    /// A feature that is to be scaled must be active somewhere: zero times anything says nothing.
    fn check_active(&self, intervention: &Intervention, n_prompt: usize, n_excluded: usize) -> Result<()> {
        let Change::Scale(_) = intervention.change else { return Ok(()) };
        let slot = self.probe.features().partition_point(|&f| f < intervention.feature);
        let mut positions = intervention.positions.within(n_excluded..n_prompt, n_prompt, n_excluded);
        if positions.any(|pos| self.original[pos][slot] != 0.0) {
            return Ok(());
        }
        let Intervention { layer, feature, positions, .. } = *intervention;
        Err(Error::InactiveFeature { layer, feature, positions: positions.to_string() })
    }
}

/// What a pass is constrained to.
#[derive(Debug)]
pub(super) struct Constraint<'a> {
    pub layers: Range<usize>,
    /// What the original run of the same tokens kept.
    pub original: &'a Activations,
}

/// One pass's state: what has still to be written.
#[derive(Debug)]
pub(super) struct InterventionEdit<'a> {
    replacement: &'a Replacement,
    resolved: &'a Resolved<'a>,
    constraint: Option<Constraint<'a>>,
    /// Positions of this pass.
    window: Range<usize>,
    /// What is to be added at each layer's output hook. `[n_layers]` of `[batch, n_pos, d_model]`
    pending: Vec<Option<Vec<f32>>>,
    /// What the transcoder of the running layer reads, where that layer is constrained. `[batch, n_pos, d_model]`
    input: Option<Tensor>,
}

impl<'a> InterventionEdit<'a> {
    pub fn new(
        replacement: &'a Replacement,
        resolved: &'a Resolved<'a>,
        constraint: Option<Constraint<'a>>,
        window: Range<usize>,
    ) -> Self {
        let pending = vec![None; replacement.model.config.n_layers];
        Self { replacement, resolved, constraint, window, pending, input: None }
    }

    /// Adds a vector at a layer's output hook, for one alternative and position.
    pub fn add(&mut self, layer: usize, alternative: usize, pos: usize, vec: &[f32], factor: f32) {
        let (d, n_pos) = (vec.len(), self.window.len());
        let n_values = self.resolved.n_alternatives * n_pos * d;
        let pending = self.pending[layer].get_or_insert_with(|| vec![0.0; n_values]);
        let at = (alternative * n_pos + pos - self.window.start) * d;
        pending[at..at + d].iter_mut().zip(vec).for_each(|(p, v)| *p += factor * v);
    }

    fn writes_to(&self, layer: usize) -> bool {
        self.constraint.as_ref().is_none_or(|c| c.layers.contains(&layer))
    }

    /// Finds what the features of one layer are changed by and notes it for all layers that they write to.
    fn read(&mut self, layer: usize, input: &Tensor) -> Result<()> {
        let resolved = self.resolved;
        let Some(changes) = resolved.layers.get(&layer) else { return Ok(()) };
        let wanted = resolved.wanted(changes, &self.window);
        if wanted.is_empty() {
            return Ok(());
        }
        // Activations at the places of the changes, one row each; of the original run where layers are constrained.
        let mut places: Vec<(usize, usize)> = wanted.keys().map(|&(alternative, pos, _)| (alternative, pos)).collect();
        places.dedup();
        let n_pos = self.window.len();
        let (source, rows): (&Tensor, Vec<u32>) = match &self.constraint {
            Some(c) => (
                c.original.need(self.replacement.input_point(layer))?,
                places.iter().map(|p| (p.1 - self.window.start) as u32).collect(),
            ),
            None => (input, places.iter().map(|p| (p.0 * n_pos + p.1 - self.window.start) as u32).collect()),
        };
        let n_rows = rows.len();
        let rows = source.flatten_to(1)?.index_select(&Tensor::from_vec(rows, n_rows, source.device())?, 0)?;
        let current = changes.probe.activations(&rows)?;

        let d = self.replacement.model.config.d_model;
        for ((alternative, pos, slot), change) in wanted {
            let row = places.partition_point(|&place| place < (alternative, pos));
            // Excluded positions have no features: what is there counts as inactive.
            let is_excluded = pos < resolved.n_excluded;
            let current = if is_excluded { 0.0 } else { current[row][slot] };
            let value = match change {
                Change::Set(value) => value,
                Change::Scale(_) if is_excluded => 0.0,
                Change::Scale(factor) => factor * changes.original.get(pos).map_or(current, |at| at[slot]),
            };
            if value == current {
                continue;
            }
            for offset in 0..changes.n_written {
                if self.writes_to(layer + offset) {
                    let vec = &changes.decoder_vecs[(slot * changes.n_written + offset) * d..][..d];
                    self.add(layer + offset, alternative, pos, vec, value - current);
                }
            }
        }
        Ok(())
    }

    /// The constraint of a layer, if it is constrained.
    fn constraint_of(&self, layer: usize) -> Option<&Constraint<'a>> {
        self.constraint.as_ref().filter(|c| c.layers.contains(&layer))
    }
}

impl Hooks for InterventionEdit<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        let is_at =
            |layer| [self.replacement.input_point(layer), self.replacement.output_point(layer)].contains(&point);
        point.layer().is_some_and(is_at)
    }

    /// What the MLP of a constrained layer writes: as in the original run, but for the skip connection, whose input
    /// has changed.
    fn give(&mut self, point: HookPoint) -> Result<Option<Tensor>> {
        let Some(layer) = point.layer().filter(|&layer| point == self.replacement.output_point(layer)) else {
            return Ok(None);
        };
        let (Some(constraint), Some(input)) = (self.constraint_of(layer), &self.input) else { return Ok(None) };
        let original_in = constraint.original.need(self.replacement.input_point(layer))?;
        let output = constraint.original.need(point)?;
        match self.replacement.transcoders.layers[layer].skip(&input.broadcast_sub(original_in)?)? {
            Some(skip) => Ok(Some(skip.broadcast_add(output)?)),
            None => Ok(Some(output.broadcast_as(input.shape())?.contiguous()?)),
        }
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        let Some(layer) = point.layer() else { return Ok(None) };
        if point == self.replacement.input_point(layer) {
            self.read(layer, tensor)?;
            self.input = self.constraint_of(layer).map(|_| tensor.clone());
            return Ok(None);
        }
        match self.pending[layer].take() {
            Some(delta) => {
                let delta = Tensor::from_vec(delta, tensor.shape(), tensor.device())?.to_dtype(DType::F32)?;
                Ok(Some((tensor + delta)?))
            }
            None => Ok(None),
        }
    }
}
