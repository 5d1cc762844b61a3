//! A map of a prompt from the rows of its targets alone: how much each layer and position gives them directly.

use candle_core::Tensor;

use super::targets::{Target, TargetKind};
use super::{AttributionOptions, choose_targets};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::replacement::{Prepared, Replacement, TargetBatch, TargetSite};

/// What each layer and position gives to the targets directly, as parts of what everything gives: Σ|effect|, targets by
/// their weights.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetMap {
    /// Labels of the targets.
    pub targets: Vec<String>,
    /// Layers of the model.
    pub n_layers: usize,
    /// Positions of the prompt.
    pub n_pos: usize,
    /// Shares of features, layer-major. `[n_layers * n_pos]`
    pub features: Vec<f64>,
    /// Shares of errors, layer-major. `[n_layers * n_pos]`
    pub errors: Vec<f64>,
    /// Shares of tokens. `[n_pos]`
    pub tokens: Vec<f64>,
}

impl TargetMap {
    /// The map of a prepared prompt.
    ///
    /// # Errors
    /// Those of [`choose_targets`]; [`Error::NeedsAllOpen`] for attention scores; those of reading and of the tensor
    /// operations; [`Error::Cancelled`].
    pub fn new(
        replacement: &Replacement,
        prepared: &Prepared,
        options: &AttributionOptions,
        job: &Job,
    ) -> Result<TargetMap> {
        let targets = choose_targets(replacement, prepared.shell(), options)?.targets;
        let (batches, order) = batches(&targets)?;
        let effects = replacement.place_effects(prepared, &batches, job)?;
        let (n_layers, n_pos) = (replacement.model.config.n_layers, prepared.shell().tokens.len());
        let mut map = TargetMap {
            targets: targets.iter().map(|target| target.label.clone()).collect(),
            n_layers,
            n_pos,
            features: vec![0.0; n_layers * n_pos],
            errors: vec![0.0; n_layers * n_pos],
            tokens: vec![0.0; n_pos],
        };
        let weight: f64 = targets.iter().map(|target| f64::from(target.weight)).sum();
        for (at, &target) in order.iter().enumerate() {
            let parts = [&effects.features[at], &effects.errors[at], &effects.tokens[at]];
            let all: f64 = parts.iter().flat_map(|part| part.iter()).sum();
            if !all.is_finite() {
                let quantity = format!("the effects on target {:?}", targets[target].label);
                return Err(Error::ComputedNotFinite { quantity, value: all as f32 });
            }
            let scale =
                if all > 0.0 && weight > 0.0 { f64::from(targets[target].weight) / (all * weight) } else { 0.0 };
            for (sum, part) in [&mut map.features, &mut map.errors, &mut map.tokens].into_iter().zip(parts) {
                sum.iter_mut().zip(part).for_each(|(sum, effect)| *sum += scale * effect);
            }
        }
        Ok(map)
    }

    /// What each position gives. `[n_pos]`
    pub fn positions(&self) -> Vec<f64> {
        let mut shares = self.tokens.clone();
        for cells in [&self.features, &self.errors] {
            for layer in cells.chunks_exact(self.n_pos.max(1)) {
                shares.iter_mut().zip(layer).for_each(|(sum, share)| *sum += share);
            }
        }
        shares
    }

    /// The positions that give most, at most so many, ascending; of equal ones the first.
    pub fn strongest(&self, number: usize) -> Vec<usize> {
        let shares = self.positions();
        let mut order: Vec<usize> = (0..self.n_pos).collect();
        order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
        order.truncate(number);
        order.sort_unstable();
        order
    }
}

/// The targets as batches, and the numbers of their targets, one after the other.
fn batches(targets: &[Target]) -> Result<(Vec<TargetBatch>, Vec<usize>)> {
    let (mut batches, mut order) = (Vec::new(), Vec::new());
    let mut directions: Vec<(usize, usize, Tensor)> = Vec::new();
    for (number, target) in targets.iter().enumerate() {
        match &target.kind {
            TargetKind::Direction(direction) => directions.push((number, target.pos, direction.clone())),
            TargetKind::Feature { layer, encoder_vec, .. } => {
                let site = TargetSite::InputHook { layer: *layer };
                batches.push(TargetBatch { site, positions: vec![target.pos], gradients: encoder_vec.unsqueeze(0)? });
                order.push(number);
            }
            TargetKind::AttentionInput { .. } => {
                return Err(Error::NeedsAllOpen { what: "explaining an attention score".into() });
            }
        }
    }
    directions.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
    if !directions.is_empty() {
        order.extend(directions.iter().map(|direction| direction.0));
        batches.push(TargetBatch {
            site: TargetSite::FinalNorm,
            positions: directions.iter().map(|direction| direction.1).collect(),
            gradients: Tensor::stack(&directions.into_iter().map(|direction| direction.2).collect::<Vec<_>>(), 0)?,
        });
    }
    Ok((batches, order))
}
