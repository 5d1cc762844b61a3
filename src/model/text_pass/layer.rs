//! One layer, as rows go through it.

use candle_core::{Device, Tensor};

use super::Share;
use super::attention::attend;
use super::steps::{RowNorm, activate, add_bias, add_rows};
use crate::error::Result;
use crate::model::config::Activation;
use crate::model::hook_point::HookPoint;
use crate::model::{Experts, Layer, Linear, Mlp, Model, Norm};
use crate::ops::{PackedWeight, RoundedRows, product_with_transpose};

/// Rows that go through the MLP at once: what is between its products stays in a core's cache.
const MLP_ROWS: usize = 192;

/// Memory that a thread keeps from one share to the next.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// What the products of a block of rows read.
    rounded: RoundedRows,
    /// A norm's output. `[rows, d_model]`
    normed: Vec<f32>,
    /// The same before gain and bias, where that is wanted.
    normalized: Vec<f32>,
    qkv: Vec<f32>,
    z: Vec<f32>,
    /// What attention or the MLP writes. `[rows, d_model]`
    written: Vec<f32>,
    /// Before and after the MLP's nonlinearity, of a block of rows.
    hidden: (Vec<f32>, Vec<f32>),
    /// Of one head of one sequence. `[n_pos, d_head]`
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
    pub(super) value: Vec<f32>,
    /// Of a block of queries. `[n_queries, n_keys]`
    pub(super) scores: Vec<f32>,
    /// `[n_queries, d_head]`
    pub(super) read: Vec<f32>,
}

/// `y = x · Wᵀ + b`, of several maps with the same input beside each other.
#[derive(Debug)]
struct Map {
    weight: Weight,
    /// `[d_out]`, or empty
    bias: Vec<f32>,
    d_in: usize,
    d_out: usize,
}

#[derive(Debug)]
enum Weight {
    /// `[d_out, d_in]`
    Exact(Vec<f32>),
    Rounded(PackedWeight),
}

impl Map {
    fn new(parts: &[&Linear], rounds: bool) -> Result<Self> {
        let d_in = parts.first().map_or(Ok(0), |part| part.weight.dim(1))?;
        let weight = parts.iter().map(|part| values(&part.weight)).collect::<Result<Vec<_>>>()?.concat();
        let d_out = weight.len() / d_in.max(1);
        let bias = match parts.iter().any(|part| part.bias.is_some()) {
            false => Vec::new(),
            true => {
                let of = |part: &&Linear| match &part.bias {
                    Some(bias) => values(bias),
                    None => Ok(vec![0.0; part.weight.dim(0)?]),
                };
                parts.iter().map(of).collect::<Result<Vec<_>>>()?.concat()
            }
        };
        let packed = if rounds { PackedWeight::new(&weight, d_out, d_in) } else { None };
        Ok(Self { weight: packed.map_or(Weight::Exact(weight), Weight::Rounded), bias, d_in, d_out })
    }

    /// `[n, d_in]` to `[n, d_out]`
    fn apply(&self, out: &mut [f32], x: &[f32], rounded: &mut RoundedRows) {
        let n = x.len() / self.d_in;
        match &self.weight {
            Weight::Exact(weight) => product_with_transpose(out, x, weight, (n, self.d_in, self.d_out)),
            Weight::Rounded(packed) => packed.product_with(out, x, rounded),
        }
        if !self.bias.is_empty() {
            add_bias((out, &self.bias));
        }
    }
}

fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?)
}

impl RowNorm {
    fn new(norm: &Norm) -> Result<Self> {
        let bias = norm.bias.as_ref().map_or(Ok(Vec::new()), values)?;
        Ok(Self { kind: norm.kind, eps: norm.eps as f32, gain: values(&norm.gain)?, bias })
    }

    fn of(norm: &Option<Norm>) -> Result<Option<Self>> {
        norm.as_ref().map(Self::new).transpose()
    }
}

/// What attention needs to know.
#[derive(Debug)]
pub(super) struct Heads {
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub d_head: usize,
    /// Of the scores, before they are capped.
    pub scale: f32,
    pub softcap: Option<f32>,
    /// How many positions a query sees, its own included.
    pub window: Option<usize>,
    /// `[n_heads]`, or empty
    pub sinks: Vec<f32>,
    /// Which rotary embedding.
    pub rope: Option<usize>,
    q_norm: Option<RowNorm>,
    k_norm: Option<RowNorm>,
}

impl Heads {
    /// Numbers of a row of queries, keys and values.
    pub(super) fn width(&self) -> usize {
        (self.n_heads + 2 * self.n_kv_heads) * self.d_head
    }

    /// Norms every head's query and key, where the family does that.
    fn norm(&self, qkv: &mut [f32]) {
        let (Some(q_norm), Some(k_norm)) = (&self.q_norm, &self.k_norm) else { return };
        for head in 0..self.n_heads + self.n_kv_heads {
            let norm = if head < self.n_heads { q_norm } else { k_norm };
            norm.apply_in_place(&mut qkv[head * self.d_head..], self.width());
        }
    }
}

/// What an MLP is here.
#[derive(Debug)]
enum RowMlp {
    /// Of a gated one, gate and linear part are one map.
    Dense { up: Map, gated: bool, activation: Activation, down: Map },
    /// Experts are read as they are chosen.
    Experts(Experts),
}

impl RowMlp {
    fn new(mlp: &Mlp, rounds: bool) -> Result<Self> {
        Ok(match mlp {
            Mlp::Gated { gate, up, down, activation } => Self::Dense {
                up: Map::new(&[gate, up], rounds)?,
                gated: true,
                activation: *activation,
                down: Map::new(&[down], rounds)?,
            },
            Mlp::Plain { up, down, activation } => Self::Dense {
                up: Map::new(&[up], rounds)?,
                gated: false,
                activation: *activation,
                down: Map::new(&[down], rounds)?,
            },
            Mlp::Experts(experts) => Self::Experts(experts.clone()),
        })
    }

    /// `[n, d_model]` to the same
    fn apply(&self, scratch: &mut Scratch) -> Result<()> {
        let Scratch { normed, written, hidden, rounded, .. } = scratch;
        match self {
            Self::Dense { up, gated, activation, down } => {
                written.resize(normed.len(), 0.0);
                let rows = normed.chunks(MLP_ROWS * up.d_in).zip(written.chunks_mut(MLP_ROWS * down.d_out));
                for (x, written) in rows {
                    let n = x.len() / up.d_in;
                    hidden.0.resize(n * up.d_out, 0.0);
                    up.apply(&mut hidden.0, x, rounded);
                    hidden.1.resize(n * down.d_in, 0.0);
                    activate(*activation, &mut hidden.1, &hidden.0, down.d_in, *gated);
                    down.apply(written, &hidden.1, rounded);
                }
            }
            Self::Experts(experts) => {
                let d_model = experts.router.weight.dim(1)?;
                let x = Tensor::from_slice(normed, (normed.len() / d_model, d_model), &Device::Cpu)?;
                *written = values(&experts.forward(&x.to_device(experts.router.weight.device())?)?)?;
            }
        }
        Ok(())
    }
}

/// Cosines and sines of a rotary embedding. `[n_pos, d_head / 2]` each
pub(super) type Angles = (Vec<f32>, Vec<f32>);

/// The weights of a layer, in the order in which rows meet them.
#[derive(Debug)]
pub(super) struct RowLayer {
    attn_norm: RowNorm,
    qkv: Map,
    heads: Heads,
    o: Map,
    post_attn_norm: Option<RowNorm>,
    mlp_norm: RowNorm,
    mlp: RowMlp,
    post_mlp_norm: Option<RowNorm>,
}

impl RowLayer {
    pub(super) fn new(model: &Model, index: usize, rounds: bool) -> Result<Self> {
        let (config, of_layer) = (&model.config, model.config.layers[index]);
        let layer = model.layer(index)?;
        let Layer { attn_norm, qk, vo, post_attn_norm, mlp_norm, mlp, post_mlp_norm } = &*layer;
        let heads = Heads {
            n_heads: config.n_heads,
            n_kv_heads: config.n_kv_heads,
            d_head: config.d_head,
            scale: config.attn_scale as f32,
            softcap: config.attn_softcap.map(|cap| cap as f32),
            window: of_layer.window,
            sinks: qk.sinks.as_ref().map_or(Ok(Vec::new()), values)?,
            rope: of_layer.rope,
            q_norm: RowNorm::of(&qk.q_norm)?,
            k_norm: RowNorm::of(&qk.k_norm)?,
        };
        Ok(Self {
            attn_norm: RowNorm::new(attn_norm)?,
            qkv: Map::new(&[&qk.q, &qk.k, &vo.v], rounds)?,
            heads,
            o: Map::new(&[&vo.o], rounds)?,
            post_attn_norm: RowNorm::of(post_attn_norm)?,
            mlp_norm: RowNorm::new(mlp_norm)?,
            mlp: RowMlp::new(mlp, rounds)?,
            post_mlp_norm: RowNorm::of(post_mlp_norm)?,
        })
    }

    /// Takes rows through layer `index`; whether all of them are finite behind it. `angles`: of every rotary embedding of
    /// the model.
    pub(super) fn run(&self, index: usize, mut share: Share, angles: &[Angles], scratch: &mut Scratch) -> Result<bool> {
        let n_values = share.resid.len();
        scratch.normed.resize(n_values, 0.0);
        self.attn_norm.apply(&mut scratch.normed, share.resid, &mut []);
        let (width, z_width) = (self.heads.width(), self.o.d_in);
        scratch.qkv.resize(n_values / self.qkv.d_in * width, 0.0);
        self.qkv.apply(&mut scratch.qkv, &scratch.normed, &mut scratch.rounded);
        self.heads.norm(&mut scratch.qkv);
        let (qkv, mut z) = (std::mem::take(&mut scratch.qkv), std::mem::take(&mut scratch.z));
        z.resize(qkv.len() / width * z_width, 0.0);
        let mut start = 0;
        for &length in share.lengths {
            let end = start + length;
            let of_rope = self.heads.rope.map(|rope| &angles[rope]);
            attend(
                &self.heads,
                &mut z[start * z_width..end * z_width],
                &qkv[start * width..end * width],
                of_rope,
                scratch,
            );
            start = end;
        }
        scratch.written.resize(n_values, 0.0);
        self.o.apply(&mut scratch.written, &z, &mut scratch.rounded);
        (scratch.qkv, scratch.z) = (qkv, z);
        if let Some(norm) = &self.post_attn_norm {
            norm.apply_in_place(&mut scratch.written, norm.gain.len());
        }
        add_rows((&mut *share.resid, &scratch.written));
        share.show_resid(HookPoint::ResidMid(index));

        let normalized = HookPoint::Ln2Normalized(index);
        scratch.normalized.resize(if share.wants(normalized) { n_values } else { 0 }, 0.0);
        self.mlp_norm.apply(&mut scratch.normed, share.resid, &mut scratch.normalized);
        share.show(normalized, &scratch.normalized);
        share.show(HookPoint::MlpIn(index), &scratch.normed);
        self.mlp.apply(scratch)?;
        share.show(HookPoint::MlpOut(index), &scratch.written);
        if let Some(norm) = &self.post_mlp_norm {
            norm.apply_in_place(&mut scratch.written, norm.gain.len());
        }
        share.show(HookPoint::HookMlpOut(index), &scratch.written);
        Ok(add_rows((&mut *share.resid, &scratch.written)))
    }
}
