//! Sources followed upwards: what each of them gives to the residual stream before every layer.

use std::collections::HashMap;

use candle_core::Tensor;

use super::linear_model::LinearModel;
use super::sources::{Origin, Sources};
use crate::error::Result;
use crate::ops::{HeadSizes, add_transposed_product, matmul, matmul_transposed};

/// The frozen model as it is applied forwards: as [`LinearModel::push_forward`], arranged for many sources at once.
#[derive(Debug)]
pub struct PushUp<'a> {
    linear: &'a LinearModel,
    n_heads: usize,
    d_head: usize,
}

/// Called before each layer's attention with the values that its heads read of the sources so far: of the first
/// `n_sources` origins, `[n_pos - pos, n_sources, n_kv_heads · d_head]`, and with what they give to the residual stream
/// there, `[n_pos - pos, n_sources, d_model]`, which is changed in place afterwards: who keeps it needs a copy.
pub type SeeValues<'a> = &'a mut dyn FnMut(usize, &Tensor, &Tensor) -> Result<()>;

/// The layer from whose attention on a source is there.
fn first_layer(linear: &LinearModel, origin: Origin) -> usize {
    match origin {
        Origin::Feature(index) => linear.features.all[index].layer + 1,
        Origin::Error { layer, .. } => layer + 1,
        Origin::Token { .. } | Origin::Constant => 0,
    }
}

/// The position of a source.
fn position(linear: &LinearModel, origin: Origin) -> usize {
    match origin {
        Origin::Feature(index) => linear.features.all[index].pos,
        Origin::Error { pos, .. } | Origin::Token { pos } => pos,
        Origin::Constant => 0,
    }
}

impl<'a> PushUp<'a> {
    /// Of a frozen model.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn new(linear: &'a LinearModel) -> Result<Self> {
        let (n_heads, d_head) = match linear.layers.first() {
            Some(layer) => (layer.pattern.n_heads()?, layer.w_v.dim(0)? / linear.n_kv_heads),
            None => (0, 0),
        };
        Ok(Self { linear, n_heads, d_head })
    }

    /// Layers of the model.
    pub fn n_layers(&self) -> usize {
        self.linear.layers.len()
    }

    /// Sizes of its heads.
    pub fn sizes(&self) -> HeadSizes {
        HeadSizes { n_heads: self.n_heads, n_kv_heads: self.linear.n_kv_heads, d_head: self.d_head }
    }

    /// Sorts origins as [`PushUp::push`] needs them: by position, then by the layer from which on they are there. Equal
    /// ones are neighbours then.
    pub fn sort(&self, origins: &mut [Origin]) {
        origins.sort_by_key(|&origin| (position(self.linear, origin), first_layer(self.linear, origin), origin));
    }

    /// The position of a source.
    pub fn position(&self, origin: Origin) -> usize {
        position(self.linear, origin)
    }

    /// How many of sorted origins are there at each layer's attention. `[n_layers]`
    pub fn n_there(&self, origins: &[Origin]) -> Vec<usize> {
        let there = |layer| origins.partition_point(|&origin| first_layer(self.linear, origin) <= layer);
        (0..self.n_layers()).map(there).collect()
    }

    /// Follows sources at one position, sorted by [`PushUp::sort`], through the layers below `end`.
    ///
    /// # Errors
    /// Those of the tensor operations and of `see`.
    pub fn push(&self, pos: usize, origins: &[Origin], end: usize, see: SeeValues) -> Result<()> {
        let linear = self.linear;
        let (n_pos, d_model) = linear.final_normed.dims2()?;
        let n = n_pos - pos;
        let n_there = self.n_there(origins);
        let slots: HashMap<Origin, usize> = origins.iter().enumerate().map(|(slot, &origin)| (origin, slot)).collect();
        let mut resid = Tensor::zeros((n, 0, d_model), linear.final_normed.dtype(), linear.final_normed.device())?;
        for (layer, &n_here) in n_there.iter().enumerate().take(end) {
            let sources = match layer {
                0 => &linear.embed_sources,
                above => &linear.mlp_sources[above - 1],
            };
            resid = grown(resid, n_here)?;
            if let Some(added) = self.added(sources, pos, &slots, n_here)? {
                let added = match layer.checked_sub(1).and_then(|below| linear.layers[below].output_norm.as_ref()) {
                    // The vectors are all at the first position.
                    Some(factors) => factors.push_forward_from(&added, pos)?,
                    None => added,
                };
                let first = (resid.narrow(0, 0, 1)? + added)?;
                resid = if n > 1 { Tensor::cat(&[first, resid.narrow(0, 1, n - 1)?], 0)? } else { first };
            }
            if n_here == 0 {
                continue;
            }
            let frozen = &linear.layers[layer];
            let n_rows = n * n_here;
            let shape = resid.shape().clone();
            let rows = resid.reshape((n_rows, d_model))?;
            let values =
                matmul_transposed(&rows, &frozen.w_v)?.reshape((n, n_here, linear.n_kv_heads * self.d_head))?;
            see(layer, &values, &resid)?;
            let resid_mid = add_transposed_product(rows, &self.read(layer, pos, &values)?, &frozen.w_o)?;
            resid = match &frozen.w_skip {
                None => resid_mid.reshape(&shape)?,
                Some(w_skip) => {
                    let resid_mid = resid_mid.reshape(&shape)?;
                    let input = match &frozen.input_norm {
                        Some(factors) => factors.push_forward_from(&resid_mid, pos)?,
                        None => resid_mid.clone(),
                    };
                    let skip =
                        matmul_transposed(&input.reshape((n_rows, d_model))?.contiguous()?, &w_skip.contiguous()?)?;
                    let skip = skip.reshape(&shape)?;
                    let skip = match &frozen.output_norm {
                        Some(factors) => factors.push_forward_from(&skip, pos)?,
                        None => skip,
                    };
                    (resid_mid + skip)?
                }
            };
        }
        Ok(())
    }

    /// The vectors that a place adds to the first `n_there` sources, if it adds any. `[1, n_there, d_model]`
    fn added(
        &self,
        place: &Sources,
        pos: usize,
        slots: &HashMap<Origin, usize>,
        n_there: usize,
    ) -> Result<Option<Tensor>> {
        let (start, end) = (place.vecs.starts[pos], place.vecs.starts[pos + 1]);
        let found: Vec<(u32, u32)> =
            (start..end).filter_map(|at| slots.get(&place.origins[at]).map(|&slot| (at as u32, slot as u32))).collect();
        if found.is_empty() {
            return Ok(None);
        }
        let like = &self.linear.final_normed;
        let zeros = Tensor::zeros((n_there, like.dim(1)?), like.dtype(), like.device())?;
        let (from, to): (Vec<u32>, Vec<u32>) = found.into_iter().unzip();
        let index = |list: Vec<u32>| {
            let n = list.len();
            Tensor::from_vec(list, n, like.device())
        };
        let added = zeros.index_add(&index(to)?, &place.vecs.select(&from)?, 0)?;
        Ok(Some(added.unsqueeze(0)?))
    }

    /// What the heads of a layer read: `pattern · values`. `[n, n_sources, n_kv_heads · d_head]` to
    /// `[n · n_sources, n_heads · d_head]`
    fn read(&self, layer: usize, pos: usize, values: &Tensor) -> Result<Tensor> {
        let (n, n_sources, _) = values.dims3()?;
        let (n_kv, d_head) = (self.linear.n_kv_heads, self.d_head);
        // Heads first and positions next, so that each head is one product over positions.
        let values = values.reshape((n, n_sources, n_kv, d_head))?.permute((2, 0, 1, 3))?.contiguous()?;
        let values = values.reshape((n_kv, n, n_sources * d_head))?;
        let pattern = self.linear.layers[layer].pattern.dense_from(pos)?;
        let group = self.n_heads / n_kv;
        let read = (0..self.n_heads).map(|head| Ok(matmul(&pattern.get(head)?, &values.get(head / group)?)?));
        let read =
            Tensor::stack(&read.collect::<Result<Vec<_>>>()?, 0)?.reshape((self.n_heads, n, n_sources, d_head))?;
        Ok(read.permute((1, 2, 0, 3))?.reshape((n * n_sources, self.n_heads * d_head))?.contiguous()?)
    }
}

/// `resid` with zeros for sources that come in here. `[n, n_sources, d_model]`
fn grown(resid: Tensor, n_sources: usize) -> Result<Tensor> {
    let (n, before, d_model) = resid.dims3()?;
    if before == n_sources {
        return Ok(resid);
    }
    let new = Tensor::zeros((n, n_sources - before, d_model), resid.dtype(), resid.device())?;
    Ok(if before == 0 { new } else { Tensor::cat(&[resid, new], 1)? })
}
