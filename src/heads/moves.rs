//! One edge in full: its flow through every head, and between which positions each head moves it.

use candle_core::Device;

use super::flows::{FlowOptions, head_flows};
use crate::attribution::{Target, batch_limits, feature_batches, target_batches};
use crate::error::{Error, Result};
use crate::graph::{EdgeHeads, Head, NodeId};
use crate::job::Job;
use crate::ops::frozen_attention::Queries;
use crate::replacement::{LinearModel, PushUp};

/// What a head moves from one position to another, of an edge's effect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Move {
    /// The head.
    pub head: Head,
    /// Where it reads: the key.
    pub from: usize,
    /// Where it writes: the query.
    pub to: usize,
    /// In the units of the edge. All moves of a head add up to its flow.
    pub flow: f32,
}

/// An edge, and every flow of it.
#[derive(Clone, Debug)]
pub struct EdgeInFull {
    /// The edge with all of its heads named.
    pub heads: EdgeHeads,
    /// `P[q, k] · ⟨W_Oᵀ G[q], W_V X[k]⟩` of every head and pair of positions where it is not zero, by head.
    pub moves: Vec<Move>,
}

/// Splits one edge by heads, hops and positions; `targets` are those of the graph, in its order.
///
/// # Cost
/// One sweep up, two down with `max_hops` more, and `n_pos² · n_layers · n_heads · d_head` operations.
///
/// # Errors
/// As [`head_flows`].
pub fn edge_in_full(
    linear: &LinearModel,
    targets: &[Target],
    (target, source): (NodeId, NodeId),
    max_hops: usize,
    job: &Job,
) -> Result<EdgeInFull> {
    let push = PushUp::new(linear)?;
    let sizes = push.sizes();
    let options = FlowOptions { strongest: push.n_layers() * sizes.n_heads, max_hops, ..FlowOptions::default() };
    let heads = head_flows(linear, targets, &[(target, source)], &options, job)?.remove(0);

    let origin = super::flows::origin(linear, source)?;
    let pos = push.position(origin);
    let mut values: Vec<Vec<f32>> = vec![Vec::new(); push.n_layers()];
    push.push(pos, &[origin], push.n_layers(), &mut |layer, of_layer, _| {
        values[layer] = of_layer.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?;
        Ok(())
    })?;
    let limits = batch_limits(linear.final_normed.device(), 1);
    let batches = match target {
        NodeId::Target { index } => match targets.get(index as usize) {
            Some(target) => target_batches(linear, std::slice::from_ref(target), limits)?,
            None => Vec::new(),
        },
        _ => feature_batches(linear, &[super::flows::feature(linear, target)?], limits)?,
    };
    let Some(batch) = batches.into_iter().next() else {
        return Err(Error::UnknownNode { id: target.to_string(), near: Vec::new() });
    };
    let (width, kv_width) = (sizes.n_heads * sizes.d_head, sizes.n_kv_heads * sizes.d_head);
    let mut moves = Vec::new();
    linear.pull_back_seeing_heads(&batch.to_targets(), &mut |_, _, _| Ok(()), &mut |at| {
        job.check()?;
        let values = &values[at.layer];
        if values.is_empty() {
            return Ok(());
        }
        let grad: Vec<f32> = at.grad_z.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?;
        let pattern: Vec<Vec<Vec<f32>>> = linear.pattern(at.layer).dense()?.to_device(&Device::Cpu)?.to_vec3()?;
        // One target: a row for every position, or its own alone.
        let first = match at.queries {
            Queries::Own => at.ragged.n_segments() - 1,
            Queries::All => 0,
        };
        for head in 0..sizes.n_heads {
            let kv = head / (sizes.n_heads / sizes.n_kv_heads);
            for to in first.max(pos)..at.ragged.n_segments() {
                let grad = &grad[(to - first) * width + head * sizes.d_head..][..sizes.d_head];
                for from in pos..=to {
                    let value = &values[(from - pos) * kv_width + kv * sizes.d_head..][..sizes.d_head];
                    let product: f32 = grad.iter().zip(value).map(|(a, b)| a * b).sum();
                    let flow = pattern[head][to][from] * product;
                    if flow != 0.0 {
                        let head = Head { layer: at.layer as u32, head: head as u32 };
                        moves.push(Move { head, from, to, flow });
                    }
                }
            }
        }
        Ok(())
    })?;
    moves.sort_by_key(|at| (at.head, at.to, at.from));
    Ok(EdgeInFull { heads, moves })
}
