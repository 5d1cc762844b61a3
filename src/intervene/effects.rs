//! Direct effects, measured: sources are added once more under full constraint, and what changes is read off. This is
//! what the edges of a graph claim to be (the acceptance test of definitions 9).

use candle_core::Tensor;

use super::change::{Change, Intervention, Mode, Positions};
use super::original::{Original, repeat};
use crate::error::Result;
use crate::graph::NodeId;
use crate::job::Job;
use crate::model::{Activations, ForwardOptions, HookPoint, check_values};
use crate::replacement::{LinearModel, Origin, Sources};

/// Sources that go through the model as one batch, at most.
const BATCH: usize = 32;

/// A direction that the unembedding reads, at one position.
#[derive(Clone, Debug)]
pub struct Readout {
    /// Position in the prompt.
    pub pos: usize,
    /// `[d_model]`
    pub direction: Tensor,
}

/// What adding a source once more changes.
#[derive(Clone, Debug)]
pub struct Effects {
    /// Changes of the pre-activations of the active features. `[n_active]`
    pub features: Vec<f32>,
    /// Changes of the readouts. `[n_readouts]`
    pub readouts: Vec<f32>,
}

impl Original<'_> {
    /// Doubles features, adds error vectors or token embeddings once more, each alone, with every MLP output, attention
    /// pattern and norm denominator held; `linear` is the linear model of this run. Targets are no sources and change
    /// nothing.
    ///
    /// # Errors
    /// A feature or position that does not exist; those of reading and of the tensor operations.
    pub fn direct_effects(
        &self,
        linear: &LinearModel,
        sources: &[NodeId],
        readouts: &[Readout],
        job: &Job,
    ) -> Result<Vec<Effects>> {
        let before = read(&self.run.pass.final_normed, readouts)?.remove(0);
        let n_sources = sources.len();
        let mut all = Vec::with_capacity(n_sources);
        for sources in sources.chunks(BATCH) {
            all.extend(self.effects_of_batch(linear, sources, readouts, &before, job)?);
            job.report("measured sources", all.len(), n_sources);
        }
        Ok(all)
    }

    fn effects_of_batch(
        &self,
        linear: &LinearModel,
        sources: &[NodeId],
        readouts: &[Readout],
        before: &[f32],
        job: &Job,
    ) -> Result<Vec<Effects>> {
        let alternatives: Vec<Vec<Intervention>> = sources.iter().map(|&source| doubled(source)).collect();
        let resolved = self.resolve(&alternatives)?;
        let mut edit = self.edit(&resolved, &Mode::Direct);
        let (d_model, n_pos) = (self.replacement.model.config.d_model, self.n_pos());
        let mut embedded = vec![0f32; sources.len() * n_pos * d_model];
        for (i, &source) in sources.iter().enumerate() {
            match source {
                NodeId::Error { layer, pos } => {
                    let (layer, pos) = (layer as usize, pos as usize);
                    if let Some(vec) = vec_of(&linear.mlp_sources[layer], Origin::Error { layer, pos })? {
                        edit.add(layer, i, pos, &vec, 1.0);
                    }
                }
                NodeId::Token { pos } => {
                    let pos = pos as usize;
                    if let Some(vec) = vec_of(&linear.embed_sources, Origin::Token { pos })? {
                        embedded[(i * n_pos + pos) * d_model..][..d_model].copy_from_slice(&vec);
                    }
                }
                NodeId::Feature { .. } | NodeId::Target { .. } => {}
            }
        }
        let embedded = Tensor::from_vec(embedded, (sources.len(), n_pos, d_model), self.run.pass.resid_final.device())?;
        let resid_pre = (repeat(self.run.activations.need(HookPoint::ResidPre(0))?, sources.len())? + embedded)?;
        let n_layers = self.replacement.model.config.n_layers;
        let mut activations = Activations::at((0..n_layers).map(|layer| self.replacement.input_point(layer)));
        let hooks = &mut (&mut edit, (self.hold(&Mode::Direct), &mut activations));
        let options = ForwardOptions::of(job);
        let pass = self.replacement.model.forward_from(0, resid_pre, hooks, options)?;
        let features = self.pre_activations(&activations, 0, sources.len())?;
        let readouts = read(&pass.final_normed, readouts)?;
        let changes = |after: Vec<f32>, before: &mut dyn Iterator<Item = f32>| -> Vec<f32> {
            after.into_iter().zip(before).map(|(after, before)| after - before).collect()
        };
        let effects = |(features, readouts): (Vec<f32>, Vec<f32>)| Effects {
            features: changes(features, &mut self.features.all.iter().map(|f| f.value)),
            readouts: changes(readouts, &mut before.iter().copied()),
        };
        Ok(features.into_iter().zip(readouts).map(effects).collect())
    }
}

/// The intervention that doubles a source, where it is a feature.
fn doubled(source: NodeId) -> Vec<Intervention> {
    let NodeId::Feature { layer, pos, feature } = source else { return Vec::new() };
    let positions = Positions::At(pos as usize);
    vec![Intervention { layer: layer as usize, feature: feature as usize, positions, change: Change::Scale(2.0) }]
}

/// The vector of one source; `None` for errors at excluded positions.
fn vec_of(sources: &Sources, origin: Origin) -> Result<Option<Vec<f32>>> {
    match sources.origins.iter().position(|&o| o == origin) {
        Some(index) => Ok(Some(sources.vecs.vecs.get(index)?.to_vec1()?)),
        None => Ok(None),
    }
}

/// Readouts of every alternative. `[batch, n_pos, d_model]` to `[batch][n_readouts]`
pub(super) fn read(final_normed: &Tensor, readouts: &[Readout]) -> Result<Vec<Vec<f32>>> {
    let mut all = vec![Vec::with_capacity(readouts.len()); final_normed.dim(0)?];
    for readout in readouts {
        let at_pos = final_normed.narrow(1, readout.pos, 1)?.squeeze(1)?.contiguous()?;
        let values = at_pos.matmul(&readout.direction.unsqueeze(1)?)?.squeeze(1)?;
        check_values(|| format!("what a target's direction reads at position {}", readout.pos), &values)?;
        let values = values.to_vec1::<f32>()?;
        all.iter_mut().zip(values).for_each(|(row, value)| row.push(value));
    }
    Ok(all)
}
