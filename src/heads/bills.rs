//! The bill of a target: what each head gives to it, whatever the head read.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::attribution::{Target, batch_limits, target_batches};
use crate::error::{Error, Result};
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
    let rows = head_rows(replacement, linear, targets, None, job)?;
    Ok(rows.iter().map(HeadRow::bills).collect())
}

/// Heads as sources of one target: what each gives to it from every position.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadRow {
    /// The heads below the target, by layer and head.
    pub heads: Vec<Head>,
    /// Position by position, in the units of the target's value. `[n_below, n_pos]`
    pub amounts: Vec<f32>,
    /// Positions of the prompt.
    pub n_pos: usize,
}

impl HeadRow {
    /// What a head gives from a position.
    pub fn amount(&self, head: usize, pos: usize) -> f32 {
        self.amounts[head * self.n_pos + pos]
    }

    /// Summed over positions.
    pub fn bills(&self) -> Vec<Bill> {
        let sums = self.amounts.chunks_exact(self.n_pos.max(1));
        let sums = sums.map(|of_head| of_head.iter().map(|&amount| f64::from(amount)).sum::<f64>() as f32);
        self.heads.iter().zip(sums).map(|(&head, amount)| Bill { head, amount }).collect()
    }
}

/// Heads as sources of every target: `⟨gradient at resid_mid, what the head wrote⟩` for every position that it wrote at.
///
/// With `other`, tokens of another prompt, it is `⟨gradient, what the head wrote there − what it wrote here⟩`: path
/// patching from every head at once, with everything between the head and the target held (Wang et al. 2022, in the
/// frozen model). Of a target that is a side of an attention score it is path patching to a query or a key.
///
/// # Errors
/// As [`bills`]; [`crate::Error::PromptLengths`] for a prompt of another length.
pub fn head_rows(
    replacement: &Replacement,
    linear: &LinearModel,
    targets: &[Target],
    other: Option<&[u32]>,
    job: &Job,
) -> Result<Vec<HeadRow>> {
    let (here, n_layers) = (kept_reads(replacement, &linear.tokens, job)?, replacement.model.config.n_layers);
    let mut written = scaled_reads(&here, &here, n_layers)?;
    if let Some(other) = other {
        if other.len() != linear.tokens.len() {
            let (here, there) = (linear.tokens.len(), other.len());
            let other = format!("{:?}", replacement.tokenizer.decode(other));
            return Err(Error::PromptLengths { here, there, other });
        }
        let there = scaled_reads(&kept_reads(replacement, other, job)?, &here, n_layers)?;
        for (here, there) in written.iter_mut().flatten().zip(there.into_iter().flatten()) {
            here.iter_mut().zip(there).for_each(|(here, there)| *here = there - *here);
        }
    }
    let (n_heads, n_pos) = (replacement.model.config.n_heads, linear.tokens.len());
    let limits = batch_limits(linear.final_normed.device(), 1);
    let batches = target_batches(linear, targets, limits)?;
    let of_batch = |batch: crate::attribution::Batch| -> Result<Vec<(usize, HeadRow)>> {
        let empty = HeadRow { heads: Vec::new(), amounts: Vec::new(), n_pos };
        let mut all: Vec<(usize, HeadRow)> =
            batch.plan.members.iter().map(|&(number, _)| (number, empty.clone())).collect();
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
            let mut sums = vec![0f32; all.len() * n_heads * n_pos];
            for ((target, pos), grad) in rows.into_iter().zip(&grad) {
                for head in 0..n_heads {
                    let range = head * d_head..(head + 1) * d_head;
                    let pairs = grad[range.clone()].iter().zip(&written[at.layer][pos][range]);
                    let sum = pairs.map(|(a, b)| f64::from(a * b)).sum::<f64>();
                    sums[(target * n_heads + head) * n_pos + pos] = sum as f32;
                }
            }
            for ((_, row), sums) in all.iter_mut().zip(sums.chunks_exact(n_heads * n_pos)) {
                // From the top down: layers come in front.
                row.heads.splice(0..0, (0..n_heads as u32).map(|head| Head { layer: at.layer as u32, head }));
                row.amounts.splice(0..0, sums.iter().copied());
            }
            Ok(())
        })?;
        Ok(all)
    };
    let done: Vec<Vec<(usize, HeadRow)>> =
        batches.into_par_iter().with_max_len(1).map(of_batch).collect::<Result<_>>()?;
    let mut all = vec![HeadRow { heads: Vec::new(), amounts: Vec::new(), n_pos }; targets.len()];
    for (number, row) in done.into_iter().flatten() {
        all[number] = row;
    }
    Ok(all)
}

/// What every head read on `tokens`, before `W_O` and its gains.
fn kept_reads(replacement: &Replacement, tokens: &[u32], job: &Job) -> Result<Activations> {
    let n_layers = replacement.model.config.n_layers;
    let points = (0..n_layers).flat_map(|layer| [HookPoint::AttnZ(layer), HookPoint::Ln1PostScale(layer)]);
    let mut kept = Activations::at(points);
    replacement.model.forward(&[tokens.to_vec()], &mut kept, ForwardOptions::of(job))?;
    Ok(kept)
}

/// Reads of `of`, scaled by the norm after attention, where there is one, as it is in the run `here`.
/// `[n_layers][n_pos][n_heads · d_head]`
fn scaled_reads(of: &Activations, here: &Activations, n_layers: usize) -> Result<Vec<Vec<Vec<f32>>>> {
    let of_layer = |layer: usize| -> Result<Vec<Vec<f32>>> {
        let z: Tensor = of.need(HookPoint::AttnZ(layer))?.squeeze(0)?.flatten_from(1)?;
        let z = match here.get(HookPoint::Ln1PostScale(layer)) {
            Some(scale) => z.broadcast_div(&scale.squeeze(0)?)?,
            None => z,
        };
        Ok(z.to_device(&Device::Cpu)?.to_vec2()?)
    };
    (0..n_layers).map(of_layer).collect()
}
