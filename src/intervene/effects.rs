//! Direct effects, measured: sources are added once more under full constraint, and what changes is read off. This is
//! what the edges of a graph claim to be (the acceptance test of definitions 9).

use candle_core::Tensor;

use super::change::{Change, Intervention, Mode, Positions};
use super::original::{Original, repeat};
use crate::error::Result;
use crate::graph::NodeId;
use crate::job::Job;
use crate::model::{Activations, ForwardOptions, HookPoint, Hooks, check_values};
use crate::replacement::{LinearModel, Origin, Sources};

/// Sources that go through the model as one batch, at most.
const BATCH: usize = 32;

/// What is read off a run.
#[derive(Clone, Debug)]
pub enum Readout {
    /// A direction that the unembedding reads, at one position.
    FinalNorm {
        /// Position in the prompt.
        pos: usize,
        /// `[d_model]`
        direction: Tensor,
    },
    /// Directions that a layer's attention reads, at the first positions: the sum of all.
    ResidPre {
        /// The layer of the attention.
        layer: usize,
        /// `[n_read, d_model]`
        directions: Tensor,
    },
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
        let before = read_all(&self.run.pass.final_normed, &self.run.activations, readouts)?.remove(0);
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
                // Features and contexts are doubled by hooks.
                NodeId::Feature { .. } | NodeId::Context { .. } | NodeId::Target { .. } => {}
            }
        }
        let embedded = Tensor::from_vec(embedded, (sources.len(), n_pos, d_model), self.run.pass.resid_final.device())?;
        let resid_pre = (repeat(self.run.activations.need(HookPoint::ResidPre(0))?, sources.len())? + embedded)?;
        let n_layers = self.replacement.model.config.n_layers;
        let points = (0..n_layers).map(|layer| self.replacement.input_point(layer));
        let mut activations = Activations::at(points.chain(readouts.iter().filter_map(Readout::point)));
        let mut closed = HoldClosed::new(&linear.positions.closed(), sources, self)?;
        let hooks = &mut (&mut edit, (self.hold(&Mode::Direct), (&mut closed, &mut activations)));
        let options = ForwardOptions::of(job);
        let pass = self.replacement.model.forward_from(0, resid_pre, hooks, options)?;
        let features = self.pre_activations(&activations, 0, sources.len())?;
        let readouts = read_all(&pass.final_normed, &activations, readouts)?;
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

/// Holds the residual stream at closed positions to the original run, so that nothing passes through it; with a context
/// among the sources, to twice that for it.
struct HoldClosed<'a> {
    original: &'a Activations,
    /// 1 at open positions. `[1, n_pos, 1]`; `None` where all are
    open: Option<Tensor>,
    /// How many times the original stands at closed positions. `[n_sources, n_pos, 1]`
    times: Tensor,
}

impl<'a> HoldClosed<'a> {
    fn new(closed: &[usize], sources: &[NodeId], original: &'a Original) -> Result<Self> {
        let (n_pos, n_sources) = (original.n_pos(), sources.len());
        let mut open = vec![1f32; n_pos];
        closed.iter().for_each(|&pos| open[pos] = 0.0);
        let mut times = vec![0f32; n_sources * n_pos];
        for (source, times) in sources.iter().zip(times.chunks_exact_mut(n_pos)) {
            closed.iter().for_each(|&pos| times[pos] = 1.0);
            if let NodeId::Context { pos } = *source {
                times[pos as usize] = 2.0;
            }
        }
        let device = original.run.pass.resid_final.device();
        Ok(Self {
            original: &original.run.activations,
            open: (!closed.is_empty()).then(|| Tensor::from_vec(open, (1, n_pos, 1), device)).transpose()?,
            times: Tensor::from_vec(times, (n_sources, n_pos, 1), device)?,
        })
    }
}

impl Hooks for HoldClosed<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        self.open.is_some() && matches!(point, HookPoint::ResidPre(_))
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        let Some(open) = &self.open else { return Ok(None) };
        let held = self.times.broadcast_mul(self.original.need(point)?)?;
        Ok(Some((tensor.broadcast_mul(open)? + held)?))
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

impl Readout {
    /// What a run has to keep for it, beside its end.
    fn point(&self) -> Option<HookPoint> {
        match self {
            Readout::FinalNorm { .. } => None,
            Readout::ResidPre { layer, .. } => Some(HookPoint::ResidPre(*layer)),
        }
    }
}

/// Readouts of every alternative, of what the final norm gives and of what was kept. `[batch][n_readouts]`
fn read_all(final_normed: &Tensor, activations: &Activations, readouts: &[Readout]) -> Result<Vec<Vec<f32>>> {
    let mut all = vec![Vec::with_capacity(readouts.len()); final_normed.dim(0)?];
    for readout in readouts {
        let values = match readout {
            Readout::FinalNorm { pos, direction } => read(final_normed, *pos, direction)?,
            Readout::ResidPre { layer, directions } => {
                read_positions(activations.need(HookPoint::ResidPre(*layer))?, directions)?
            }
        };
        all.iter_mut().zip(values).for_each(|(row, value)| row.push(value));
    }
    Ok(all)
}

/// What a direction reads at a position, of every alternative. `[batch, n_pos, d_model]` and `[d_model]` to `[batch]`
pub(super) fn read(tensor: &Tensor, pos: usize, direction: &Tensor) -> Result<Vec<f32>> {
    let at_pos = tensor.narrow(1, pos, 1)?.squeeze(1)?.contiguous()?;
    let values = at_pos.matmul(&direction.unsqueeze(1)?)?.squeeze(1)?;
    check_values(|| format!("what a target's direction reads at position {pos}"), &values)?;
    Ok(values.to_vec1()?)
}

/// What directions read at the first positions, summed. `[batch, n_pos, d_model]` and `[n_read, d_model]` to `[batch]`
pub(super) fn read_positions(tensor: &Tensor, directions: &Tensor) -> Result<Vec<f32>> {
    let read = tensor.narrow(1, 0, directions.dim(0)?)?.broadcast_mul(directions)?;
    let values = read.flatten_from(1)?.sum(1)?;
    check_values(|| "what a side of an attention score reads".into(), &values)?;
    Ok(values.to_vec1()?)
}
