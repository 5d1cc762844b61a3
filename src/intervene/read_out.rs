//! Groups of features read out of a changed run: how active a supernode is, in per cent of what it was.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::change::{Change, Intervention};
use super::original::Original;
use crate::error::Result;
use crate::graph::FeatureId;
use crate::model::Activations;
use crate::transcoder::FeatureProbe;

/// Features that are read as one.
#[derive(Clone, Debug, PartialEq)]
pub struct FeatureGroup {
    /// What it is called.
    pub name: String,
    /// Its features, and the activation that counts as 100 % of each; `None`: that of the original run.
    pub members: Vec<(FeatureId, Option<f32>)>,
}

/// What became of a group.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupChange {
    /// What it is called.
    pub name: String,
    /// How many features it has.
    pub n_features: usize,
    /// Sum of the activations in the original run.
    pub before: f32,
    /// Sum of the activations in the changed run: what the changes set, else what the run computes.
    pub after: f32,
    /// Mean over the features of the activation before, in per cent of what counts as 100 %; nothing where none of them
    /// has such.
    pub percent_before: Option<f64>,
    /// As `percent_before`, after.
    pub percent_after: Option<f64>,
    /// Whether any of its features was itself changed.
    pub is_changed: bool,
}

impl Original<'_> {
    /// Reads groups in a changed run. Source of the mean of ratios: circuit-tracer's demo of interventions,
    /// `set_node_activation_fractions`.
    ///
    /// `activations` are those of a changed run at the input hooks from `first_layer` on, `alternative` is its index in
    /// the batch.
    ///
    /// # Errors
    /// Features or positions that do not exist; those of reading and of the tensor operations.
    pub(super) fn group_changes(
        &self,
        groups: &[FeatureGroup],
        interventions: &[Intervention],
        activations: &Activations,
        first_layer: usize,
        alternative: usize,
    ) -> Result<Vec<GroupChange>> {
        let members = || groups.iter().flat_map(|group| group.members.iter().map(|(id, _)| *id));
        let mut by_layer: BTreeMap<usize, Vec<FeatureId>> = BTreeMap::new();
        members().for_each(|id| by_layer.entry(id.layer as usize).or_default().push(id));
        let (mut before, mut after) = (HashMap::new(), HashMap::new());
        for (layer, ids) in by_layer {
            for id in &ids {
                self.replacement.transcoders.check_feature(layer, id.feature as usize)?;
                super::Positions::At(id.pos as usize).check(self.n_pos())?;
            }
            let point = self.replacement.input_point(layer);
            let mut features: Vec<usize> = ids.iter().map(|id| id.feature as usize).collect();
            features.sort_unstable();
            features.dedup();
            let device = self.replacement.model.device();
            let probe = FeatureProbe::new(&self.replacement.transcoders.layers[layer], features, device)?;
            let original = probe.activations(&self.run.activations.need(point)?.squeeze(0)?)?;
            let changed = match layer >= first_layer {
                true => probe.activations(&activations.need(point)?.get(alternative)?.contiguous()?)?,
                false => original.clone(),
            };
            for id in ids {
                let slot = probe.features().partition_point(|&f| f < id.feature as usize);
                // Excluded positions have no features.
                let at = |rows: &[Vec<f32>]| match (id.pos as usize) < self.n_excluded {
                    true => 0.0,
                    false => rows[id.pos as usize][slot],
                };
                before.insert(id, at(&original));
                after.insert(id, at(&changed));
            }
        }
        let is_changed = |id: FeatureId| self.imposed(id, interventions, before[&id]);
        let change = |group: &FeatureGroup| {
            let now = |id: FeatureId| is_changed(id).unwrap_or(after[&id]);
            let percent = |value: &dyn Fn(FeatureId) -> f32| {
                let ratios: Vec<f64> = group
                    .members
                    .iter()
                    .map(|&(id, whole)| (value(id), whole.unwrap_or(before[&id])))
                    .filter(|(_, whole)| *whole != 0.0)
                    .map(|(value, whole)| f64::from(value) / f64::from(whole))
                    .collect();
                (!ratios.is_empty()).then(|| 100.0 * ratios.iter().sum::<f64>() / ratios.len() as f64)
            };
            GroupChange {
                name: group.name.clone(),
                n_features: group.members.len(),
                before: group.members.iter().map(|(id, _)| before[id]).sum(),
                after: group.members.iter().map(|(id, _)| now(*id)).sum(),
                percent_before: percent(&|id| before[&id]),
                percent_after: percent(&now),
                is_changed: group.members.iter().any(|(id, _)| is_changed(*id).is_some()),
            }
        };
        Ok(groups.iter().map(change).collect())
    }

    /// What the interventions make of a feature whose activation was `original`; the last one that names it counts.
    fn imposed(&self, id: FeatureId, interventions: &[Intervention], original: f32) -> Option<f32> {
        let (n_pos, pos) = (self.n_pos(), id.pos as usize);
        let names = |i: &&Intervention| {
            (i.layer, i.feature) == (id.layer as usize, id.feature as usize)
                && i.positions.within(0..n_pos, n_pos, self.n_excluded).contains(&pos)
        };
        Some(match interventions.iter().rev().find(names)?.change {
            Change::Set(value) => value,
            Change::Scale(factor) => factor * original,
        })
    }
}
