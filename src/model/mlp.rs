//! The MLP of a layer: gated, plain, or a mixture of experts.

use candle_core::{D, Tensor};

use super::config::Activation;
use super::linear::Linear;
use crate::error::Result;
use crate::weights::Checkpoint;

/// GPT-OSS clamps the gate from above and the linear part on both sides at this value.
const SWIGLU_LIMIT: f64 = 7.0;
/// GPT-OSS's gate is `x · sigmoid(1.702 x)`.
const SWIGLU_ALPHA: f64 = 1.702;

/// The MLP of one layer, weights in f32.
#[derive(Clone, Debug)]
pub enum Mlp {
    /// `down(act(gate(x)) ⊙ up(x))`
    Gated {
        /// `[d_mlp, d_model]`
        gate: Linear,
        /// `[d_mlp, d_model]`
        up: Linear,
        /// `[d_model, d_mlp]`
        down: Linear,
        /// The nonlinearity.
        activation: Activation,
    },
    /// `down(act(up(x)))`
    Plain {
        /// `[d_mlp, d_model]`
        up: Linear,
        /// `[d_model, d_mlp]`
        down: Linear,
        /// The nonlinearity.
        activation: Activation,
    },
    /// Softmax over the largest router logits, one gated MLP an expert.
    Experts(Experts),
}

/// A mixture of experts; each expert's weights are read from the checkpoint when a position chose it.
#[derive(Clone, Debug)]
pub struct Experts {
    /// Scores of the experts. `[n_experts, d_model]`
    pub router: Linear,
    /// Where the experts' weights are.
    pub checkpoint: Checkpoint,
    /// Name of the experts' tensors up to `gate_up_proj`.
    pub prefix: String,
    /// Experts that a position uses.
    pub top_k: usize,
}

impl Activation {
    /// Applies the nonlinearity, element by element.
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Activation::Silu => x.silu()?,
            Activation::GeluTanh => x.gelu()?,
            Activation::GeluErf => x.gelu_erf()?,
            Activation::Relu => x.relu()?,
        })
    }
}

impl Mlp {
    /// The MLP's output, before any post-norm. `[.., d_model]` to `[.., d_model]`
    ///
    /// # Errors
    /// Those of the tensor operations and of reading experts.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            Mlp::Gated { gate, up, down, activation } => {
                down.forward(&(activation.apply(&gate.forward(x)?)? * up.forward(x)?)?)
            }
            Mlp::Plain { up, down, activation } => down.forward(&activation.apply(&up.forward(x)?)?),
            Mlp::Experts(experts) => experts.forward(x),
        }
    }
}

impl Experts {
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let d_model = x.dim(D::Minus1)?;
        let flat = x.reshape(((), d_model))?;
        let scores = self.router.forward(&flat)?.to_vec2::<f32>()?;
        // For each expert, the positions that chose it and with what weight.
        let mut chosen: Vec<Vec<(u32, f32)>> = vec![Vec::new(); scores.first().map_or(0, Vec::len)];
        for (row, scores) in scores.iter().enumerate() {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            order.truncate(self.top_k);
            let top = order.iter().map(|&e| scores[e]).fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = order.iter().map(|&e| (scores[e] - top).exp()).sum();
            for expert in order {
                chosen[expert].push((row as u32, (scores[expert] - top).exp() / sum));
            }
        }
        let mut out = flat.zeros_like()?;
        for (expert, rows) in chosen.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
            let (index, weight): (Vec<u32>, Vec<f32>) = rows.into_iter().unzip();
            let n = index.len();
            let index = Tensor::from_vec(index, n, x.device())?;
            let weight = Tensor::from_vec(weight, (n, 1), x.device())?;
            let y = self.expert(expert, &flat.index_select(&index, 0)?)?;
            out = out.index_add(&index, &y.broadcast_mul(&weight)?, 0)?;
        }
        Ok(out.reshape(x.shape())?)
    }

    /// One expert on the rows that chose it. `[n, d_model]` to `[n, d_model]`
    fn expert(&self, expert: usize, x: &Tensor) -> Result<Tensor> {
        let one = |name: &str| -> Result<Tensor> {
            let tensor = self.checkpoint.rows(&format!("{}{name}", self.prefix), expert..expert + 1)?;
            Ok(tensor.squeeze(0)?.to_device(x.device())?)
        };
        // Gate and linear part are interleaved in the last dimension. `[d_model, 2 d_mlp]`
        let gate_up = x.matmul(&one("gate_up_proj")?)?.broadcast_add(&one("gate_up_proj_bias")?)?;
        let pairs = gate_up.reshape((x.dim(0)?, (), 2))?;
        let gate = pairs.narrow(2, 0, 1)?.squeeze(2)?.contiguous()?.minimum(SWIGLU_LIMIT)?;
        let up = pairs.narrow(2, 1, 1)?.squeeze(2)?.contiguous()?.clamp(-SWIGLU_LIMIT, SWIGLU_LIMIT)?;
        let gated = (&gate * candle_nn::ops::sigmoid(&(&gate * SWIGLU_ALPHA)?)?)?;
        let y = ((up + 1.0)? * gated)?;
        Ok(y.matmul(&one("down_proj")?)?.broadcast_add(&one("down_proj_bias")?)?)
    }
}
