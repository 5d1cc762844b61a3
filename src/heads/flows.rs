//! Flows: which part of an edge goes through which head, `flow(j, h) = ⟨G_j, A_{j,h} X_j⟩`.
//!
//! `X_j` is what the source gives to the residual stream before layer j, `G_j` the gradient of the target after the
//! attention of layer j, `A_{j,h}` the frozen head. Sources are pushed up once and their values kept; targets are
//! pulled back in batches, and where a batch passes the heads of a layer, one product a head gives all pairs.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::values::{Group, follow, groups};
use crate::attribution::{Batch, Target, batch_limits, feature_batches, target_batches};
use crate::error::{Error, Result};
use crate::graph::{EdgeHeads, FeatureId, Head, HeadFlow, NodeId};
use crate::job::Job;
use crate::ops::frozen_attention::Queries;
use crate::ops::{HeadSizes, SourceVecs, frozen_attention, frozen_attention_own, head_products};
use crate::replacement::{AtHeads, LinearModel, Origin, Place, PushUp, Sources};

/// What is found out about every edge.
#[derive(Clone, Copy, Debug)]
pub struct FlowOptions {
    /// How many heads of each edge are named; the rest is one number.
    pub strongest: usize,
    /// Paths of this many hops or more are one part. 0: hops are not counted.
    pub max_hops: usize,
    /// Bytes of values that are held at once.
    pub value_bytes: usize,
}

impl Default for FlowOptions {
    fn default() -> Self {
        Self { strongest: 8, max_hops: 4, value_bytes: 512 << 20 }
    }
}

/// One end of an edge, found in the linear model.
struct Ends {
    /// Number of the edge.
    edge: usize,
    group: usize,
    slot: usize,
}

/// The phase in which edges are split, as [`Job`] hears of it.
pub const HEADS_PHASE: &str = "heads";

/// Splits edges by the heads that they pass and by their number of hops.
///
/// `targets` are those of the graph, in its order; edges go from a feature, an error or a token to a feature or a target.
///
/// # Cost
/// The sources of the edges are pushed up and their targets pulled back once, and `max_hops` times more where hops are
/// counted; besides `2 · n_sources · n_targets · n_pos · n_heads · d_head` operations a layer.
///
/// # Errors
/// [`Error::UnknownNode`] for ends that the prompt has not; those of the tensor operations; [`Error::Cancelled`].
pub fn head_flows(
    linear: &LinearModel,
    targets: &[Target],
    edges: &[(NodeId, NodeId)],
    options: &FlowOptions,
    job: &Job,
) -> Result<Vec<EdgeHeads>> {
    let push = PushUp::new(linear)?;
    let (n_layers, sizes) = (push.n_layers(), push.sizes());
    let mut sources: Vec<Origin> = edges.iter().map(|&(_, source)| origin(linear, source)).collect::<Result<_>>()?;
    let of_edge = sources.clone();
    push.sort(&mut sources);
    sources.dedup();
    let mut all_groups = groups(&push, &sources);
    let mut place = HashMap::new();
    for (number, group) in all_groups.iter().enumerate() {
        place.extend(group.origins.iter().enumerate().map(|(slot, &origin)| (origin, (number, slot))));
    }
    // Edges by their target: a feature's number, or a target's.
    let mut to_features: BTreeMap<usize, Vec<Ends>> = BTreeMap::new();
    let mut to_targets: BTreeMap<usize, Vec<Ends>> = BTreeMap::new();
    for (edge, (&(target, _), origin)) in edges.iter().zip(&of_edge).enumerate() {
        let (group, slot) = place[origin];
        let ends = Ends { edge, group, slot };
        match target {
            NodeId::Feature { .. } => to_features.entry(feature(linear, target)?).or_default().push(ends),
            NodeId::Target { index } if (index as usize) < targets.len() => {
                to_targets.entry(index as usize).or_default().push(ends);
            }
            _ => return Err(no_such_node(target)),
        }
    }
    let limits = batch_limits(linear.final_normed.device(), 1);
    let wanted: Vec<usize> = to_features.keys().copied().collect();
    let mut batches: Vec<(Batch, &BTreeMap<usize, Vec<Ends>>)> = Vec::new();
    let chosen: Vec<Target> = to_targets.keys().map(|&number| targets[number].clone()).collect();
    let chosen_edges: BTreeMap<usize, Vec<Ends>> = to_targets.into_values().enumerate().collect();
    batches.extend(target_batches(linear, &chosen, limits)?.into_iter().map(|batch| (batch, &chosen_edges)));
    batches.extend(feature_batches(linear, &wanted, limits)?.into_iter().map(|batch| (batch, &to_features)));

    let mut found: Vec<EdgeHeads> = edges
        .iter()
        .map(|&(target, source)| EdgeHeads {
            target,
            source,
            effect: 0.0,
            strongest: Vec::new(),
            rest: 0.0,
            hops: Vec::new(),
        })
        .collect();
    let by_hops = HopSources::new(linear, &all_groups)?;
    let n_pos = linear.final_normed.dim(0)?;
    let n_steps = 2 * batches.len();
    let mut done = 0;
    // As many groups at once as there is room for; with room for all, every batch is pulled back once.
    let mut first = 0;
    while first < all_groups.len() {
        let mut end = first;
        let mut n_bytes = 0;
        while end < all_groups.len() {
            n_bytes += 4 * all_groups[end].n_values(n_pos, sizes.n_kv_heads * sizes.d_head, n_layers);
            if end > first && n_bytes > options.value_bytes {
                break;
            }
            end += 1;
        }
        follow(&push, &mut all_groups[first..end], n_layers, job)?;
        let part = Part { linear, groups: &all_groups, range: first..end, sizes, n_named: options.strongest };
        let flows: Vec<Vec<(usize, Strongest)>> = batches
            .par_iter()
            .with_max_len(1)
            .map(|(batch, edges)| part.flows_of(batch, edges, job))
            .collect::<Result<_>>()?;
        for (edge, strongest) in flows.into_iter().flatten() {
            (found[edge].strongest, found[edge].rest) = strongest.finish();
        }
        all_groups[first..end].iter_mut().for_each(|group| group.values = Vec::new());
        done = (done + batches.len()).min(batches.len());
        job.report(HEADS_PHASE, done, n_steps);
        first = end;
    }
    // Without hops to count, one more pull-back still gives the effects.
    let hops: Vec<Vec<(usize, Vec<f32>)>> = batches
        .par_iter()
        .with_max_len(1)
        .map(|(batch, edges)| by_hops.hops_of(linear, batch, edges, options.max_hops, job))
        .collect::<Result<_>>()?;
    for (edge, hops) in hops.into_iter().flatten() {
        found[edge].effect = hops.iter().sum();
        found[edge].hops = if options.max_hops > 0 { hops } else { Vec::new() };
    }
    job.report(HEADS_PHASE, n_steps, n_steps);
    Ok(found)
}

fn no_such_node(node: NodeId) -> Error {
    Error::UnknownNode { id: node.to_string(), near: Vec::new() }
}

/// The number of an active feature.
pub(super) fn feature(linear: &LinearModel, node: NodeId) -> Result<usize> {
    let NodeId::Feature { layer, pos, feature } = node else { return Err(no_such_node(node)) };
    let id = FeatureId { layer, pos, feature };
    let all = &linear.features.all;
    let key = |f: &crate::replacement::ActiveFeature| FeatureId {
        layer: f.layer as u32,
        pos: f.pos as u32,
        feature: f.feature as u32,
    };
    all.binary_search_by_key(&id, key).map_err(|_| no_such_node(node))
}

pub(super) fn origin(linear: &LinearModel, node: NodeId) -> Result<Origin> {
    let n_pos = linear.tokens.len();
    match node {
        NodeId::Feature { .. } => Ok(Origin::Feature(feature(linear, node)?)),
        NodeId::Error { layer, pos } if (layer as usize) < linear.mlp_sources.len() && (pos as usize) < n_pos => {
            Ok(Origin::Error { layer: layer as usize, pos: pos as usize })
        }
        NodeId::Token { pos } if (pos as usize) < n_pos => Ok(Origin::Token { pos: pos as usize }),
        _ => Err(no_such_node(node)),
    }
}

/// The largest flows of one edge, while layers go by.
#[derive(Debug)]
struct Strongest {
    named: Vec<HeadFlow>,
    n_named: usize,
    rest: f32,
    /// Once all places are taken: which of the named flows is the smallest, and its size. Almost every other flow is
    /// smaller.
    smallest: Option<(usize, f32)>,
}

impl Strongest {
    fn new(n_named: usize) -> Self {
        Self { named: Vec::new(), n_named, rest: 0.0, smallest: (n_named == 0).then_some((0, f32::INFINITY)) }
    }

    fn add(&mut self, flow: HeadFlow) {
        match self.smallest {
            Some((_, size)) if flow.flow.abs() <= size => {
                self.rest += flow.flow;
                return;
            }
            Some((at, _)) => {
                self.rest += self.named[at].flow;
                self.named[at] = flow;
            }
            None if flow.flow == 0.0 => return,
            None => self.named.push(flow),
        }
        if self.named.len() == self.n_named {
            let sizes = self.named.iter().map(|flow| flow.flow.abs()).enumerate();
            self.smallest = sizes.min_by(|a, b| a.1.total_cmp(&b.1));
        }
    }

    fn finish(mut self) -> (Vec<HeadFlow>, f32) {
        self.named.sort_by(|a, b| b.flow.abs().total_cmp(&a.flow.abs()).then(a.head.cmp(&b.head)));
        (self.named, self.rest)
    }
}

/// Groups whose values are there.
struct Part<'a> {
    linear: &'a LinearModel,
    groups: &'a [Group],
    range: std::ops::Range<usize>,
    sizes: HeadSizes,
    n_named: usize,
}

impl Part<'_> {
    /// Flows of the edges to a batch's targets.
    fn flows_of(
        &self,
        batch: &Batch,
        edges: &BTreeMap<usize, Vec<Ends>>,
        job: &Job,
    ) -> Result<Vec<(usize, Strongest)>> {
        // For every group, which edges of the batch come from it: (target in the batch, slot, place in `all`).
        let mut all: Vec<(usize, Strongest)> = Vec::new();
        let mut by_group: Vec<Vec<(usize, usize, usize)>> = vec![Vec::new(); self.range.len()];
        for (target, (number, _)) in batch.plan.members.iter().enumerate() {
            for ends in edges.get(number).into_iter().flatten().filter(|ends| self.range.contains(&ends.group)) {
                by_group[ends.group - self.range.start].push((target, ends.slot, all.len()));
                all.push((ends.edge, Strongest::new(self.n_named)));
            }
        }
        self.linear.pull_back_seeing_heads(&batch.to_targets(), &mut |_, _, _| Ok(()), &mut |at| {
            job.check()?;
            let grad_v = self.grad_values(&at)?;
            for (group, edges) in self.groups[self.range.clone()].iter().zip(&by_group) {
                let n_there = group.n_there[at.layer];
                if edges.is_empty() || n_there == 0 {
                    continue;
                }
                let values = &group.values[at.layer];
                let products = head_products(&grad_v, values, group.pos, n_there, self.sizes, at.ragged)?;
                if products.is_empty() {
                    continue;
                }
                let n_targets = at.ragged.count(group.pos);
                for &(target, slot, place) in edges {
                    if target >= n_targets || slot >= n_there {
                        continue;
                    }
                    for head in 0..self.sizes.n_heads {
                        let flow = products[(head * n_targets + target) * n_there + slot];
                        all[place].1.add(HeadFlow { head: Head { layer: at.layer as u32, head: head as u32 }, flow });
                    }
                }
            }
            Ok(())
        })?;
        Ok(all)
    }

    /// What the values of each query head get, no sum over the heads that share them. `[n_rows, n_heads · d_head]`
    fn grad_values(&self, at: &AtHeads) -> Result<Vec<f32>> {
        let pattern = self.linear.pattern(at.layer).tensor();
        let grad = match at.queries {
            Queries::All => frozen_attention(at.grad_z, pattern, self.sizes.n_heads, at.ragged)?,
            Queries::Own => frozen_attention_own(at.grad_z, pattern, self.sizes.n_heads, at.ragged)?,
        };
        Ok(grad.flatten_all()?.to_device(&Device::Cpu)?.to_vec1()?)
    }
}

/// The sources of edges where they are added, with their places among the groups.
struct HopSources {
    at: HashMap<Place, (Sources, Vec<(usize, usize)>)>,
}

impl HopSources {
    fn new(linear: &LinearModel, groups: &[Group]) -> Result<Self> {
        let mut place = HashMap::new();
        for (number, group) in groups.iter().enumerate() {
            place.extend(group.origins.iter().enumerate().map(|(slot, &origin)| (origin, (number, slot))));
        }
        let chosen = |sources: &Sources| -> Result<(Sources, Vec<(usize, usize)>)> {
            let mut starts = vec![0];
            let (mut rows, mut origins, mut places) = (Vec::new(), Vec::new(), Vec::new());
            for pos in 0..linear.tokens.len() {
                for at in sources.vecs.starts[pos]..sources.vecs.starts[pos + 1] {
                    if let Some(&found) = place.get(&sources.origins[at]) {
                        rows.push(at as u32);
                        origins.push(sources.origins[at]);
                        places.push(found);
                    }
                }
                starts.push(rows.len());
            }
            let n = rows.len();
            let vecs = match n {
                0 => Tensor::zeros((0, linear.final_normed.dim(1)?), linear.final_normed.dtype(), &Device::Cpu)?,
                _ => sources.vecs.select(&rows)?,
            };
            Ok((Sources { vecs: SourceVecs::new(vecs, starts.into()), origins }, places))
        };
        let mut at = HashMap::new();
        for (layer, sources) in linear.mlp_sources.iter().enumerate() {
            at.insert(Place::Output { layer }, chosen(sources)?);
        }
        at.insert(Place::Embedding, chosen(&linear.embed_sources)?);
        Ok(Self { at })
    }

    /// Parts of each edge to a batch's targets by their number of hops.
    fn hops_of(
        &self,
        linear: &LinearModel,
        batch: &Batch,
        edges: &BTreeMap<usize, Vec<Ends>>,
        max_hops: usize,
        job: &Job,
    ) -> Result<Vec<(usize, Vec<f32>)>> {
        // Edges by their source.
        let mut all: Vec<(usize, Vec<f32>)> = Vec::new();
        let mut by_source: HashMap<(usize, usize), Vec<(usize, usize)>> = HashMap::new();
        for (target, (number, _)) in batch.plan.members.iter().enumerate() {
            for ends in edges.get(number).into_iter().flatten() {
                by_source.entry((ends.group, ends.slot)).or_default().push((target, all.len()));
                all.push((ends.edge, vec![0.0; max_hops + 1]));
            }
        }
        linear.pull_back_by_hops(&batch.to_targets(), max_hops, &mut |place, hops, grad, ragged| {
            job.check()?;
            let (sources, places) = &self.at[&place];
            if sources.origins.is_empty() {
                return Ok(());
            }
            let effects: Vec<Vec<f32>> = sources.effects(grad, ragged)?.to_device(&Device::Cpu)?.t()?.to_vec2()?;
            for (source, effects) in places.iter().zip(&effects) {
                for &(target, place) in by_source.get(source).into_iter().flatten() {
                    all[place].1[hops] += effects[target];
                }
            }
            Ok(())
        })?;
        Ok(all)
    }
}
