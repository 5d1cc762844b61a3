//! Pairs of sources behind an attention score: what each gives to the query times what each gives to the key.
//!
//! `score = Σ_{s,s'} scale · ⟨Q_s, K_s'⟩ + constant`, where a "source" is also the constants' part of either side. The
//! matrix of pairs has no more than d_head independent rows, and is made only where it is shown.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::attribution::FrozenScore;
use crate::error::Result;
use crate::graph::NodeId;
use crate::job::Job;
use crate::model::ScoreSide;
use crate::replacement::{LinearModel, Origin, TargetBatch, TargetSite};

/// Query sources whose pairs are made at once.
const CHUNK: usize = 512;

/// What every source gives to the query and to the key of a score. Of a contrast or of rivals the key is the weighted
/// sum of keys.
#[derive(Clone, Debug)]
pub struct ScorePairs {
    /// The sources; `None`: the constants. `[n_sources]`
    pub sources: Vec<Option<NodeId>>,
    /// What no pair gives: a sink's share among rivals.
    pub constant: f64,
    /// What each gives to the query, times the factor on products. `[n_sources, d_head]`
    query: Tensor,
    /// What each gives to the key. `[n_sources, d_head]`
    key: Tensor,
}

/// One pair of sources.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pair {
    /// Of the query: index into [`ScorePairs::sources`].
    pub query: usize,
    /// Of the key, likewise.
    pub key: usize,
    /// What the two give to the score together.
    pub amount: f32,
}

/// Sums of pairs by groups of sources.
#[derive(Clone, Debug, PartialEq)]
pub struct PairTable {
    /// Groups of either side.
    pub n_groups: usize,
    /// Row by row: the query's group, then the key's. `[n_groups · n_groups]`
    pub amounts: Vec<f64>,
}

impl PairTable {
    /// What the groups give together.
    pub fn amount(&self, query: usize, key: usize) -> f64 {
        self.amounts[query * self.n_groups + key]
    }

    /// What a group of the query gives with all keys.
    pub fn of_query(&self, query: usize) -> f64 {
        (0..self.n_groups).map(|key| self.amount(query, key)).sum()
    }

    /// What a group of the key gives with all of the query.
    pub fn of_key(&self, key: usize) -> f64 {
        (0..self.n_groups).map(|query| self.amount(query, key)).sum()
    }
}

impl ScorePairs {
    /// Pulls the d_head dimensions of either side back to the sources.
    ///
    /// # Cost
    /// As 2 · d_head rows of an attribution graph.
    ///
    /// # Errors
    /// Those of the tensor operations; [`crate::Error::Cancelled`].
    pub fn new(linear: &LinearModel, frozen: &FrozenScore, job: &Job) -> Result<Self> {
        let (layer, query) = (frozen.score.layer, frozen.score.query);
        let sides = &frozen.sides;
        let index = Index::new(linear);
        let of_query = index.vecs(linear, layer, &sides.query, &[(query, sides.scale)], job)?;
        let keys: Vec<(usize, f64)> = frozen.keys().collect();
        let of_key = index.vecs(linear, layer, &sides.key, &keys, job)?;
        let d_head = sides.query.vecs.dim(1)?;
        // What neither side has a part of is in no pair.
        let has = |vecs: &[f32], source: usize| vecs[source * d_head..][..d_head].iter().any(|&v| v != 0.0);
        let n = index.sources.len();
        let kept: Vec<usize> = (0..n).filter(|&s| has(&of_query, s) || has(&of_key, s)).collect();
        let chosen = |vecs: &[f32]| -> Result<Tensor> {
            let values: Vec<f32> = kept.iter().flat_map(|&s| vecs[s * d_head..][..d_head].iter().copied()).collect();
            Ok(Tensor::from_vec(values, (kept.len(), d_head), &Device::Cpu)?)
        };
        let (query, key) = (chosen(&of_query)?, chosen(&of_key)?);
        let sources = kept.iter().map(|&s| index.sources[s]).collect();
        Ok(Self { sources, constant: frozen.constant, query, key })
    }

    /// The score, as all pairs and the constant add up to it.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn value(&self) -> Result<f64> {
        let one_group = vec![0; self.sources.len()];
        Ok(self.by_group(&one_group, 1)?.amount(0, 0) + self.constant)
    }

    /// `Σ |pair|` over all pairs: how much cancels to leave the score.
    ///
    /// # Cost
    /// `2 · n_sources² · d_head` operations.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn sum_of_sizes(&self) -> Result<f64> {
        let sums = self.chunks(|_, pairs| pairs.iter().map(|pair| f64::from(pair.abs())).sum::<f64>())?;
        Ok(sums.into_iter().sum())
    }

    /// Pairs by group of their sources: `group_of` has a number below `n_groups` for every source.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn by_group(&self, group_of: &[usize], n_groups: usize) -> Result<PairTable> {
        let d_head = self.query.dim(1)?;
        let sums = |vecs: &Tensor| -> Result<Vec<f64>> {
            let mut sums = vec![0f64; n_groups * d_head];
            let values: Vec<f32> = vecs.flatten_all()?.to_vec1()?;
            for (vec, &group) in values.chunks_exact(d_head).zip(group_of) {
                sums[group * d_head..][..d_head].iter_mut().zip(vec).for_each(|(sum, &v)| *sum += f64::from(v));
            }
            Ok(sums)
        };
        let (query, key) = (sums(&self.query)?, sums(&self.key)?);
        let dot = |q: usize, k: usize| -> f64 {
            query[q * d_head..][..d_head].iter().zip(&key[k * d_head..][..d_head]).map(|(a, b)| a * b).sum()
        };
        let amounts = (0..n_groups).flat_map(|q| (0..n_groups).map(move |k| (q, k))).map(|(q, k)| dot(q, k)).collect();
        Ok(PairTable { n_groups, amounts })
    }

    /// The largest pairs, by size, of those that `is_wanted(query source, key source)`.
    ///
    /// # Cost
    /// As [`ScorePairs::sum_of_sizes`].
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn strongest(&self, count: usize, is_wanted: impl Fn(usize, usize) -> bool + Sync) -> Result<Vec<Pair>> {
        let n = self.sources.len();
        let by_size = |a: &Pair, b: &Pair| {
            b.amount.abs().total_cmp(&a.amount.abs()).then((a.query, a.key).cmp(&(b.query, b.key)))
        };
        let of_chunk = |first: usize, pairs: &[f32]| -> Vec<Pair> {
            let pairs =
                pairs.iter().enumerate().map(|(at, &amount)| Pair { query: first + at / n, key: at % n, amount });
            let mut pairs: Vec<Pair> =
                pairs.filter(|pair| pair.amount != 0.0 && is_wanted(pair.query, pair.key)).collect();
            if pairs.len() > count && count > 0 {
                pairs.select_nth_unstable_by(count - 1, by_size);
            }
            pairs.truncate(count);
            pairs
        };
        let mut all: Vec<Pair> = self.chunks(of_chunk)?.into_iter().flatten().collect();
        all.sort_by(by_size);
        all.truncate(count);
        Ok(all)
    }

    /// Calls `of_chunk` with the first query source of a chunk and its pairs with all keys, row by row.
    fn chunks<T: Send>(&self, of_chunk: impl Fn(usize, &[f32]) -> T + Sync) -> Result<Vec<T>> {
        let n = self.sources.len();
        let keys = self.key.t()?.contiguous()?;
        let starts: Vec<usize> = (0..n).step_by(CHUNK).collect();
        let run = |&start: &usize| -> Result<T> {
            let pairs = self.query.narrow(0, start, CHUNK.min(n - start))?.contiguous()?.matmul(&keys)?;
            Ok(of_chunk(start, &pairs.flatten_all()?.to_vec1::<f32>()?))
        };
        starts.par_iter().with_max_len(1).map(run).collect()
    }
}

/// Numbers for all sources of a prompt.
struct Index {
    sources: Vec<Option<NodeId>>,
    n_features: usize,
    n_layers: usize,
    n_pos: usize,
}

impl Index {
    /// Features, errors, tokens, and last the constants.
    fn new(linear: &LinearModel) -> Self {
        let (n_layers, n_pos) = (linear.mlp_sources.len(), linear.tokens.len());
        let features = linear.features.all.iter().map(|f| NodeId::Feature {
            layer: f.layer as u32,
            pos: f.pos as u32,
            feature: f.feature as u32,
        });
        let positions = || 0..n_pos as u32;
        let errors = (0..n_layers as u32).flat_map(|layer| positions().map(move |pos| NodeId::Error { layer, pos }));
        let tokens = positions().map(|pos| NodeId::Token { pos });
        let sources = features.chain(errors).chain(tokens).map(Some).chain([None]).collect();
        Self { sources, n_features: linear.features.len(), n_layers, n_pos }
    }

    fn number(&self, origin: Origin) -> usize {
        match origin {
            Origin::Feature(index) => index,
            Origin::Error { layer, pos } => self.n_features + layer * self.n_pos + pos,
            Origin::Token { pos } => self.n_features + self.n_layers * self.n_pos + pos,
            Origin::Constant => self.sources.len() - 1,
        }
    }

    /// What every source gives to one side, summed over positions by their weight. `[n_sources, d_head]`
    fn vecs(
        &self,
        linear: &LinearModel,
        layer: usize,
        side: &ScoreSide,
        positions: &[(usize, f64)],
        job: &Job,
    ) -> Result<Vec<f32>> {
        let device = linear.final_normed.device();
        let d_head = side.vecs.dim(1)?;
        let d_model = linear.final_normed.dim(1)?;
        let mut vecs = vec![0f32; self.sources.len() * d_head];
        let Some(&(last, _)) = positions.last() else { return Ok(vecs) };
        let dimensions = Tensor::eye(d_head, linear.final_normed.dtype(), device)?;
        let zeros = Tensor::zeros((d_head, d_model), linear.final_normed.dtype(), device)?;
        let mut gradients = vec![zeros; last + 1];
        for &(pos, weight) in positions {
            let (gradient, constants) = side.pull_back_rows(pos, &(&dimensions * weight)?)?;
            gradients[pos] = gradient;
            let own = &mut vecs[(self.sources.len() - 1) * d_head..];
            own.iter_mut().zip(constants.to_vec1::<f32>()?).for_each(|(sum, constant)| *sum += constant);
        }
        // All targets are at the last position, so that every position has all of them.
        let gradients = Tensor::cat(&gradients, 0)?;
        let batch =
            TargetBatch { site: TargetSite::AttentionInput { layer }, positions: vec![last; d_head], gradients };
        linear.pull_back(&batch, &mut |sources, grad, ragged| {
            job.check()?;
            // A row for every source, a column for every dimension.
            let effects = sources.effects(grad, ragged)?.to_device(&Device::Cpu)?.t()?.to_vec2::<f32>()?;
            for (&origin, effects) in sources.origins.iter().zip(effects) {
                let at = self.number(origin) * d_head;
                vecs[at..at + d_head].iter_mut().zip(effects).for_each(|(sum, effect)| *sum += effect);
            }
            Ok(())
        })?;
        Ok(vecs)
    }
}
