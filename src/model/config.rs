//! The description of a base model as data: one decoder covers every family. What a family's `config.json` says is
//! read in `families`.

use serde_json::Value;

use super::rope::Rope;
use crate::error::{Error, Result};

/// How a norm divides: by the root mean square, or by the standard deviation after centring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm.
    Rms,
    /// LayerNorm.
    Layer,
}

/// The nonlinearity of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x · sigmoid(x).
    Silu,
    /// GELU in its tanh approximation (`gelu_pytorch_tanh`, `gelu_new`).
    GeluTanh,
    /// GELU by the error function.
    GeluErf,
    /// x where x > 0, else 0.
    Relu,
}

/// The shape of the block between `resid_mid` and the MLP's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum MlpKind {
    /// `down(act(gate(x)) * up(x))`
    Gated,
    /// `down(act(up(x)))`
    Plain,
    /// GPT-OSS: softmax over the `top_k` largest router logits; clamped SwiGLU experts.
    Experts {
        /// Experts of a layer.
        n_experts: usize,
        /// Experts that a position uses.
        top_k: usize,
    },
}

/// How tensors are named and laid out in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// `layers.{l}.self_attn.q_proj.weight`, linear weights `[out, in]`.
    Llama,
    /// `h.{l}.attn.c_attn.weight`, one tensor for q, k and v, linear weights `[in, out]`.
    Gpt2,
}

/// What differs between the layers of one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerConfig {
    /// Sliding window: a query sees the last `window` positions, itself included. `None`: all.
    pub window: Option<usize>,
    /// Index into [`ModelConfig::ropes`]; `None`: no rotary embedding.
    pub rope: Option<usize>,
}

/// A decoder, described.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// The `model_type` this came from, for messages and metadata only.
    pub model_type: String,
    /// Layers.
    pub n_layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Tokens of the vocabulary.
    pub d_vocab: usize,
    /// Query heads of a layer.
    pub n_heads: usize,
    /// Key and value heads of a layer; each serves `n_heads / n_kv_heads` query heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub d_head: usize,
    /// Width of the MLP's hidden layer; of one expert's, in a mixture.
    pub d_mlp: usize,
    /// The longest prompt, in positions.
    pub n_ctx: usize,
    /// How every norm divides.
    pub norm: NormKind,
    /// ε of every norm.
    pub norm_eps: f64,
    /// The checkpoint stores gain − 1 (Gemma).
    pub gain_plus_one: bool,
    /// Norms on what attention and MLP write, before it is added (Gemma).
    pub post_norms: bool,
    /// RMS norms on every head's query and key.
    pub qk_norm: bool,
    /// Factor on the query-key products, before the softcap.
    pub attn_scale: f64,
    /// Query-key products are bent to `cap · tanh(x / cap)` (Gemma 2).
    pub attn_softcap: Option<f64>,
    /// Logits are bent the same way.
    pub final_softcap: Option<f64>,
    /// Queries, keys and values have biases.
    pub qkv_bias: bool,
    /// The attention's output has a bias.
    pub o_bias: bool,
    /// The MLP's linear maps have biases.
    pub mlp_bias: bool,
    /// A learned logit per head that takes attention away from every position (GPT-OSS).
    pub sinks: bool,
    /// The nonlinearity of the MLP.
    pub activation: Activation,
    /// What the MLP is made of.
    pub mlp: MlpKind,
    /// Learned position embeddings are added to the token embeddings (GPT-2).
    pub learned_positions: bool,
    /// Factor on the token embeddings (Gemma: √d_model).
    pub embed_scale: f64,
    /// The unembedding is the embedding.
    pub tied: bool,
    /// How tensors are named in the checkpoint.
    pub naming: Naming,
    /// Rotary embeddings, each once; [`LayerConfig::rope`] chooses.
    pub ropes: Vec<Rope>,
    /// One entry a layer.
    pub layers: Vec<LayerConfig>,
}

impl ModelConfig {
    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::UnknownFamily`] for a `model_type` that is not in [`super::FAMILIES`], [`Error::Config`] for a key that is
    /// missing, has a wrong type, or asks for something that is not supported.
    pub fn from_json(json: &Value) -> Result<Self> {
        super::bounds::check_keys(json)?;
        super::families::describe(json)?.check()
    }

    fn check(self) -> Result<Self> {
        for (key, value) in [
            ("num_hidden_layers", self.n_layers),
            ("hidden_size", self.d_model),
            ("vocab_size", self.d_vocab),
            ("num_attention_heads", self.n_heads),
            ("num_key_value_heads", self.n_kv_heads),
            ("head_dim", self.d_head),
        ] {
            if value == 0 {
                return Err(Error::Config { key: key.into(), problem: "is 0".into() });
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            return Err(Error::Config {
                key: "num_key_value_heads".into(),
                problem: format!("{} does not divide num_attention_heads {}", self.n_kv_heads, self.n_heads),
            });
        }
        if !self.d_head.is_multiple_of(2) && !self.ropes.is_empty() {
            return Err(Error::Config { key: "head_dim".into(), problem: format!("{} is odd", self.d_head) });
        }
        super::bounds::check_config(&self)?;
        Ok(self)
    }
}
