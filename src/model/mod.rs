//! `model`: the base model, one decoder described by data ([`ModelConfig`]). It knows nothing of features.
//!
//! In: a checkpoint with Hugging Face names, and tokens. Out: the residual stream, logits, and whatever [`Hooks`] ask
//! for on the way ([`Model::forward`], the one loop over layers).

mod attention;
mod bounds;
mod config;
mod families;
mod finite;
mod forward;
mod hook_point;
mod hooks;
mod kv_cache;
mod linear;
mod mlp;
mod norm;
mod rope;
mod score_sides;
mod text_pass;
mod vocabulary;

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{Device, Tensor};

pub use attention::{QueryKey, ValueOutput};
pub(crate) use attention::{join_heads, split_heads};
pub use config::{Activation, LayerConfig, MlpKind, ModelConfig, Naming, NormKind};
pub use families::FAMILIES;
pub(crate) use finite::check_values;
pub(crate) use forward::QUERY_BLOCK;
pub use forward::{ForwardOptions, Pass};
pub use hook_point::HookPoint;
pub use hooks::{Activations, Hold, Hooks};
pub use kv_cache::KvCache;
pub use linear::Linear;
pub use mlp::{Experts, Mlp};
pub use norm::Norm;
pub use rope::Rope;
pub use score_sides::{ScoreSide, ScoreSides};
pub use text_pass::{TextPass, TextVisitor};

use crate::error::{Error, ErrorContext, Result};
use crate::weights::Checkpoint;

/// A base model: its description and its checkpoint. Weights are read when they are used.
#[derive(Debug)]
pub struct Model {
    /// What kind of decoder it is.
    pub config: ModelConfig,
    checkpoint: Checkpoint,
    /// What precedes `embed_tokens`, `layers` and `norm` (or `wte`, `h` and `ln_f`) in tensor names; `weights` has made
    /// the names of other checkpoints the same.
    prefix: &'static str,
    device: Device,
    /// Layers kept in memory, for generation; empty unless [`Model::keep_layers`] was called.
    kept: Mutex<Vec<Option<Arc<Layer>>>>,
    /// The unembedding, block by block, kept with the layers.
    kept_unembedding: OnceLock<Vec<Tensor>>,
    /// The mean row of the unembedding, once it was needed: the whole vocabulary is read for it.
    mean_row: OnceLock<Tensor>,
}

/// The weights of one layer, in f32.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The norm before attention.
    pub attn_norm: Norm,
    /// What shapes the attention pattern.
    pub qk: QueryKey,
    /// What the pattern moves.
    pub vo: ValueOutput,
    /// The norm after attention, where the family has one (Gemma 2 and 3).
    pub post_attn_norm: Option<Norm>,
    /// The norm before the MLP.
    pub mlp_norm: Norm,
    /// The MLP.
    pub mlp: Mlp,
    /// The norm after the MLP, where the family has one.
    pub post_mlp_norm: Option<Norm>,
}

impl Model {
    /// Opens a model: finds its tensors and checks the embedding's shape; reads no other weights.
    ///
    /// # Errors
    /// Those of [`ModelConfig::from_json`]; [`Error::MissingTensor`] when the checkpoint has no embedding.
    pub fn open(config: &serde_json::Value, checkpoint: Checkpoint, device: &Device) -> Result<Self> {
        let config = ModelConfig::from_json(config).context(|| "cannot use the base model's config".into())?;
        let (embedding, prefix) = match config.naming {
            Naming::Llama => ("embed_tokens.weight", "model."),
            Naming::Gpt2 => ("wte.weight", "transformer."),
        };
        let name = format!("{prefix}{embedding}");
        let (actual, expected) = (checkpoint.shape(&name)?, vec![config.d_vocab, config.d_model]);
        if actual != expected {
            return Err(Error::Shape { file: checkpoint.file_of(&name), tensor: name, actual, expected });
        }
        bounds::check_layers(&config, &checkpoint, prefix)?;
        let kept = Mutex::new(vec![None; config.n_layers]);
        let kept_unembedding = OnceLock::new();
        let (device, mean_row) = (device.clone(), OnceLock::new());
        Ok(Self { prefix, config, checkpoint, device, kept, kept_unembedding, mean_row })
    }

    /// The device that computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Reads layer `layer`, or returns it from memory after [`Model::keep_layers`].
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], [`Error::NotFinite`], with the layer named around them.
    pub fn layer(&self, layer: usize) -> Result<Arc<Layer>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner)[layer].clone();
        match kept {
            Some(kept) => Ok(kept),
            None => {
                Ok(Arc::new(self.read_layer(layer).context(|| format!("cannot load layer {layer} of the base model"))?))
            }
        }
    }

    /// Keeps all layers and the unembedding in memory from now on: for generation and verification, which
    /// run many passes.
    ///
    /// # Errors
    /// Those of [`Model::layer`].
    pub fn keep_layers(&self) -> Result<()> {
        for index in 0..self.config.n_layers {
            let layer = self.layer(index)?;
            self.kept.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(layer);
        }
        if self.kept_unembedding.get().is_none() {
            let blocks = self.unembedding_chunks().collect::<Result<Vec<Tensor>>>()?;
            // Another thread may have kept the same.
            let _ = self.kept_unembedding.set(blocks);
        }
        Ok(())
    }

    /// Bytes of all layers in f32: what keeping them takes. Experts are read as they are chosen.
    pub fn layer_bytes(&self) -> u64 {
        let c = &self.config;
        let attention = 2 * (c.n_heads + c.n_kv_heads) * c.d_head * c.d_model;
        let mlp = match c.mlp {
            MlpKind::Gated => 3 * c.d_mlp * c.d_model,
            MlpKind::Plain => 2 * c.d_mlp * c.d_model,
            MlpKind::Experts { n_experts, .. } => n_experts * c.d_model,
        };
        4 * (c.n_layers * (attention + mlp)) as u64
    }

    /// A hash of the weights ([`Checkpoint::fingerprint`]).
    ///
    /// # Errors
    /// Those of reading.
    pub fn fingerprint(&self) -> Result<u64> {
        self.checkpoint.fingerprint()
    }

    fn read_layer(&self, layer: usize) -> Result<Layer> {
        match self.config.naming {
            Naming::Llama => self.read_llama_layer(&format!("{}layers.{layer}.", self.prefix)),
            Naming::Gpt2 => self.read_gpt2_layer(&format!("{}h.{layer}.", self.prefix)),
        }
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.checkpoint.tensor(name, shape)?.to_device(&self.device)?)
    }

    fn norm(&self, name: &str, width: usize) -> Result<Norm> {
        let mut gain = self.tensor(&format!("{name}.weight"), &[width])?;
        if self.config.gain_plus_one {
            gain = (gain + 1.0)?;
        }
        let bias = match self.config.norm {
            NormKind::Rms => None,
            NormKind::Layer => Some(self.tensor(&format!("{name}.bias"), &[width])?),
        };
        Ok(Norm { kind: self.config.norm, eps: self.config.norm_eps, gain, bias })
    }

    fn linear(&self, name: &str, d_out: usize, d_in: usize, bias: bool) -> Result<Linear> {
        let weight = self.tensor(&format!("{name}.weight"), &[d_out, d_in])?;
        let bias = bias.then(|| self.tensor(&format!("{name}.bias"), &[d_out])).transpose()?;
        Ok(Linear { weight, bias })
    }

    fn read_llama_layer(&self, at: &str) -> Result<Layer> {
        let c = &self.config;
        let (d, d_q, d_kv) = (c.d_model, c.n_heads * c.d_head, c.n_kv_heads * c.d_head);
        let attn = |name: &str| format!("{at}self_attn.{name}");
        let head_norm = |name: &str| c.qk_norm.then(|| self.norm(&attn(name), c.d_head)).transpose();
        let qk = QueryKey {
            q: self.linear(&attn("q_proj"), d_q, d, c.qkv_bias)?,
            k: self.linear(&attn("k_proj"), d_kv, d, c.qkv_bias)?,
            q_norm: head_norm("q_norm")?,
            k_norm: head_norm("k_norm")?,
            sinks: c.sinks.then(|| self.tensor(&attn("sinks"), &[c.n_heads])).transpose()?,
        };
        let vo = ValueOutput {
            v: self.linear(&attn("v_proj"), d_kv, d, c.qkv_bias)?,
            o: self.linear(&attn("o_proj"), d, d_q, c.o_bias)?,
        };
        let mlp_at = |name: &str| format!("{at}mlp.{name}");
        let mlp = match c.mlp {
            MlpKind::Gated => Mlp::Gated {
                gate: self.linear(&mlp_at("gate_proj"), c.d_mlp, d, c.mlp_bias)?,
                up: self.linear(&mlp_at("up_proj"), c.d_mlp, d, c.mlp_bias)?,
                down: self.linear(&mlp_at("down_proj"), d, c.d_mlp, c.mlp_bias)?,
                activation: c.activation,
            },
            MlpKind::Plain => Mlp::Plain {
                up: self.linear(&mlp_at("up_proj"), c.d_mlp, d, c.mlp_bias)?,
                down: self.linear(&mlp_at("down_proj"), d, c.d_mlp, c.mlp_bias)?,
                activation: c.activation,
            },
            MlpKind::Experts { n_experts, top_k } => {
                let prefix = mlp_at("experts.");
                for (name, expected) in [
                    ("gate_up_proj", vec![n_experts, d, 2 * c.d_mlp]),
                    ("gate_up_proj_bias", vec![n_experts, 2 * c.d_mlp]),
                    ("down_proj", vec![n_experts, c.d_mlp, d]),
                    ("down_proj_bias", vec![n_experts, d]),
                ] {
                    let tensor = format!("{prefix}{name}");
                    let actual = self.checkpoint.shape(&tensor)?;
                    if actual != expected {
                        return Err(Error::Shape { file: self.checkpoint.file_of(&tensor), tensor, actual, expected });
                    }
                }
                let router = self.linear(&mlp_at("router"), n_experts, d, true)?;
                Mlp::Experts(Experts { router, checkpoint: self.checkpoint.clone(), prefix, top_k })
            }
        };
        // With post-norms, `post_attention_layernorm` is one of them; without, it is the MLP's own norm.
        let mlp_norm = if c.post_norms { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        let post_norm = |name: &str| c.post_norms.then(|| self.norm(&format!("{at}{name}"), d)).transpose();
        Ok(Layer {
            attn_norm: self.norm(&format!("{at}input_layernorm"), d)?,
            qk,
            vo,
            post_attn_norm: post_norm("post_attention_layernorm")?,
            mlp_norm: self.norm(&format!("{at}{mlp_norm}"), d)?,
            mlp,
            post_mlp_norm: post_norm("post_feedforward_layernorm")?,
        })
    }

    fn read_gpt2_layer(&self, at: &str) -> Result<Layer> {
        let c = &self.config;
        let d = c.d_model;
        // GPT-2 stores linear weights as [in, out].
        let transposed = |name: &str, d_out: usize, d_in: usize| -> Result<Linear> {
            let weight = self.tensor(&format!("{at}{name}.weight"), &[d_in, d_out])?.t()?.contiguous()?;
            Ok(Linear { weight, bias: Some(self.tensor(&format!("{at}{name}.bias"), &[d_out])?) })
        };
        let qkv = transposed("attn.c_attn", 3 * d, d)?;
        let third = |i: usize| -> Result<Linear> {
            // A copy: a view would keep all three parts in memory while only W_V is needed.
            let weight = qkv.weight.narrow(0, i * d, d)?.copy()?;
            let bias = qkv.bias.as_ref().map(|b| b.narrow(0, i * d, d)?.copy()).transpose()?;
            Ok(Linear { weight, bias })
        };
        Ok(Layer {
            attn_norm: self.norm(&format!("{at}ln_1"), d)?,
            qk: QueryKey { q: third(0)?, k: third(1)?, q_norm: None, k_norm: None, sinks: None },
            vo: ValueOutput { v: third(2)?, o: transposed("attn.c_proj", d, d)? },
            post_attn_norm: None,
            mlp_norm: self.norm(&format!("{at}ln_2"), d)?,
            mlp: Mlp::Plain {
                up: transposed("mlp.c_fc", c.d_mlp, d)?,
                down: transposed("mlp.c_proj", d, c.d_mlp)?,
                activation: c.activation,
            },
            post_mlp_norm: None,
        })
    }

    /// The norm before the unembedding.
    ///
    /// # Errors
    /// Those of [`Model::layer`].
    pub fn final_norm(&self) -> Result<Norm> {
        let name = match self.config.naming {
            Naming::Llama => "norm",
            Naming::Gpt2 => "ln_f",
        };
        self.norm(&format!("{}{name}", self.prefix), self.config.d_model)
    }
}
