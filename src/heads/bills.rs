//! The bill of a target: what each head gives to it, whatever the head read.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::attribution::{Target, batch_limits, target_batches};
use crate::error::Result;
use crate::graph::Head;
use crate::job::Job;
use crate::model::{Activations, ForwardOptions, HookPoint};
use crate::ops::frozen_attention::Queries;
use crate::replacement::{LinearModel, Replacement};

/// What a head gives to a target: `⟨gradient at resid_mid, what the head wrote⟩`, biases of its values included.
///
/// With a target of the unembedding and no layer above, this is direct logit attribution. Bills of different layers may
/// not be added up: what passes two heads is on both bills.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bill {
    /// The head.
    pub head: Head,
    /// In the units of the target's value.
    pub amount: f32,
}

/// Bills of every target, for every head below it, by layer and head.
///
/// # Errors
/// Those of [`crate::model::Model::forward`] and of the tensor operations; [`crate::Error::Cancelled`].
pub fn bills(replacement: &Replacement, linear: &LinearModel, targets: &[Target], job: &Job) -> Result<Vec<Vec<Bill>>> {
    let written = written(replacement, linear, job)?;
    let n_heads = replacement.model.config.n_heads;
    let limits = batch_limits(linear.final_normed.device(), 1);
    let batches = target_batches(linear, targets, limits)?;
    let of_batch = |batch: crate::attribution::Batch| -> Result<Vec<(usize, Vec<Bill>)>> {
        let mut all: Vec<(usize, Vec<Bill>)> =
            batch.plan.members.iter().map(|&(number, _)| (number, Vec::new())).collect();
        linear.pull_back_seeing_heads(&batch.to_targets(), &mut |_, _, _| Ok(()), &mut |at| {
            job.check()?;
            let grad: Vec<Vec<f32>> = at.grad_z.to_device(&Device::Cpu)?.to_vec2()?;
            let rows: Vec<(usize, usize)> = match at.queries {
                Queries::Own => at.ragged.positions().iter().copied().enumerate().collect(),
                Queries::All => (0..at.ragged.n_segments())
                    .flat_map(|pos| (0..at.ragged.count(pos)).map(move |t| (t, pos)))
                    .collect(),
            };
            let d_head = written[at.layer][0].len() / n_heads;
            let mut sums = vec![0f64; all.len() * n_heads];
            for ((target, pos), grad) in rows.into_iter().zip(&grad) {
                for head in 0..n_heads {
                    let range = head * d_head..(head + 1) * d_head;
                    let pairs = grad[range.clone()].iter().zip(&written[at.layer][pos][range]);
                    sums[target * n_heads + head] += pairs.map(|(a, b)| f64::from(a * b)).sum::<f64>();
                }
            }
            for ((_, bills), sums) in all.iter_mut().zip(sums.chunks_exact(n_heads)) {
                bills.extend(sums.iter().enumerate().map(|(head, &sum)| Bill {
                    head: Head { layer: at.layer as u32, head: head as u32 },
                    amount: sum as f32,
                }));
            }
            Ok(())
        })?;
        Ok(all)
    };
    let done: Vec<Vec<(usize, Vec<Bill>)>> =
        batches.into_par_iter().with_max_len(1).map(of_batch).collect::<Result<_>>()?;
    let mut all = vec![Vec::new(); targets.len()];
    for (number, mut bills) in done.into_iter().flatten() {
        bills.sort_by_key(|bill| bill.head);
        all[number] = bills;
    }
    Ok(all)
}

/// What every head wrote, before `W_O` and its gains: scaled by the norm after attention, where there is one.
/// `[n_layers][n_pos][n_heads · d_head]`
fn written(replacement: &Replacement, linear: &LinearModel, job: &Job) -> Result<Vec<Vec<Vec<f32>>>> {
    let n_layers = replacement.model.config.n_layers;
    let points = (0..n_layers).flat_map(|layer| [HookPoint::AttnZ(layer), HookPoint::Ln1PostScale(layer)]);
    let mut kept = Activations::at(points);
    replacement.model.forward(&[linear.tokens.clone()], &mut kept, ForwardOptions::of(job))?;
    let of_layer = |layer: usize| -> Result<Vec<Vec<f32>>> {
        let z: Tensor = kept.need(HookPoint::AttnZ(layer))?.squeeze(0)?.flatten_from(1)?;
        let z = match kept.get(HookPoint::Ln1PostScale(layer)) {
            Some(scale) => z.broadcast_div(&scale.squeeze(0)?)?,
            None => z,
        };
        Ok(z.to_device(&Device::Cpu)?.to_vec2()?)
    };
    (0..n_layers).map(of_layer).collect()
}
