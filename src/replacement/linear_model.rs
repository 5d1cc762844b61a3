//! The frozen, linear model of one prompt (definitions 1 and 2): active features, the vectors of all sources, and
//! what the pull-back multiplies by.

use candle_core::{Device, Tensor};

use super::run::{LinearWeights, Run};
use super::sources::{Origin, Sources, SourcesBuilder};
use super::{OpenPositions, Replacement};
use crate::error::{Error, ErrorContext, Result};
use crate::job::Job;
use crate::model::{Activations, HookPoint, NormKind, QUERY_BLOCK, split_heads};
use crate::ops::{CausalPattern, ClosedKeys, NormFactors};
use crate::transcoder::{EncodedLayer, EncoderRows, InputHook, OutputHook};

/// One active feature.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActiveFeature {
    /// The layer whose MLP the transcoder reads.
    pub layer: usize,
    /// Position in the prompt.
    pub pos: usize,
    /// Index among the features of the layer.
    pub feature: usize,
    /// Its activation, which for every activation function here equals its pre-activation.
    pub value: f32,
    /// Its encoder bias, the part of `value` that no source gives.
    pub b_enc: f32,
}

/// The active features of a prompt, sorted by (layer, position, feature).
#[derive(Clone, Debug, Default)]
pub struct ActiveFeatures {
    /// Every one of them. `[n_active]`
    pub all: Vec<ActiveFeature>,
    /// First feature of each layer, and their number. `[n_layers + 1]`
    pub layer_starts: Vec<usize>,
    /// Encoder rows of each layer's active features. `[n_layers]` of `[n_active_there]`
    pub encoder_vecs: Vec<EncoderRows>,
}

impl ActiveFeatures {
    /// Number of active features.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether no feature is active.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// The features of one layer, with their indices.
    pub fn of_layer(&self, layer: usize) -> impl ExactSizeIterator<Item = (usize, &ActiveFeature)> {
        let range = self.layer_starts[layer]..self.layer_starts[layer + 1];
        range.clone().zip(&self.all[range])
    }
}

/// What the pull-back through one layer multiplies by.
#[derive(Clone, Debug)]
pub(super) struct FrozenLayer {
    /// The pattern of open positions, with the scale of the norm before attention at its keys and of the norm after it at
    /// its queries. `[n_heads, n_open, n_open]`
    pub pattern: CausalPattern,
    /// What open positions read at closed ones, where there are any.
    pub closed: Option<ClosedKeys>,
    /// `W_V`, with the gain and the centring of the norm before it. `[n_kv_heads · d_head, d_model]`
    pub w_v: Tensor,
    /// `W_O`, with the gain and the centring of the norm after it, where there is one. `[d_model, n_heads · d_head]`
    pub w_o: Tensor,
    /// From the input hook down to `resid_mid`; `None` where they are the same.
    pub input_norm: Option<NormFactors>,
    /// What the MLP's norm adds at the input hook, if the hook comes after it. `[d_model]`
    pub input_bias: Option<Tensor>,
    /// From the residual stream down to the output hook; `None` where they are the same.
    pub output_norm: Option<NormFactors>,
    /// `[d_model, d_model]`
    pub w_skip: Option<Tensor>,
}

/// The frozen, linear model of one prompt. A clone shares its tensors.
///
/// Where positions are closed, all but tokens, features and `final_normed` goes by the places of open positions
/// ([`OpenPositions::place`]): sources, norms, patterns, and the gradients of a pull-back.
#[derive(Clone, Debug)]
pub struct LinearModel {
    /// The prompt's token ids. `[n_pos]`
    pub tokens: Vec<u32>,
    /// Which positions carry gradient.
    pub positions: OpenPositions,
    /// The active features of the open positions.
    pub features: ActiveFeatures,
    /// Features, errors and constants at each layer's output hook. `[n_layers]`
    pub mlp_sources: Vec<Sources>,
    /// What biases make attention add to the residual stream. `[n_layers]`
    pub attn_constants: Vec<Option<Sources>>,
    /// Tokens and position embeddings.
    pub embed_sources: Sources,
    /// The tensors at the input hooks. `[n_layers]` of `[n_open, d_model]`
    pub hook_in: Vec<Tensor>,
    /// The output of the final norm. `[n_pos, d_model]`
    pub final_normed: Tensor,
    /// What the final norm adds (LayerNorm). `[d_model]`
    pub final_bias: Option<Tensor>,
    pub(super) final_norm: NormFactors,
    pub(super) layers: Vec<FrozenLayer>,
    pub(super) n_kv_heads: usize,
}

impl LinearModel {
    /// The frozen pattern of a layer, as the pull-back multiplies by it. `[n_heads, n_open, n_open]`
    pub(crate) fn pattern(&self, layer: usize) -> &CausalPattern {
        &self.layers[layer].pattern
    }

    /// Multiplies what each head of a layer reads by a factor; 0 takes the head out of the frozen model. Biases of the
    /// layer stay as they are.
    ///
    /// # Errors
    /// [`Error::HookShape`] where there is not one factor a head; those of the tensor operations.
    pub fn scale_heads(&mut self, layer: usize, factors: &[f32]) -> Result<()> {
        let n_layers = self.layers.len();
        let frozen = self.layers.get_mut(layer).ok_or(Error::NoSuchLayer { layer, n_layers })?;
        let n_heads = frozen.pattern.n_heads()?;
        if factors.len() != n_heads {
            let (point, expected) = (HookPoint::AttnPattern(layer).to_string(), vec![n_heads]);
            return Err(Error::HookShape { point, expected, actual: vec![factors.len()] });
        }
        self.positions.check_all("taking out heads")?;
        frozen.pattern = frozen.pattern.scaled(factors)?;
        Ok(())
    }

    /// What the norm before the MLP adds at the input hook of a layer, if it does. `[d_model]`
    pub(crate) fn input_bias(&self, layer: usize) -> Option<&Tensor> {
        self.layers[layer].input_bias.as_ref()
    }
}

/// Sources of a layer share vectors where so many are of one feature, in the mean: of few, a product of vectors side by side
/// is quicker.
pub(super) const SHARED_FROM: usize = 2;

/// The decoder rows of the features of a layer that are active anywhere.
#[derive(Default)]
struct Decoders {
    /// Ascending.
    features: Vec<usize>,
    /// `[features.len(), n_written, d_model]`
    values: Vec<f32>,
}

fn to_vec(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

impl Replacement {
    /// Runs the model on a prompt and makes it linear: one forward pass, then encoders, active decoder rows, errors.
    ///
    /// # Errors
    /// Those of [`crate::model::Model::check_tokens`], of reading, and of the tensor operations;
    /// [`crate::Error::Cancelled`].
    pub fn linearize(&self, tokens: &[u32], job: &Job) -> Result<LinearModel> {
        // Patterns of a long prompt are computed layer by layer, when they are packed.
        let (run, weights) = match self.model.device().is_cpu() && tokens.len() > QUERY_BLOCK {
            true => self.run_without_patterns(tokens, tokens.len(), job)?,
            false => self.run_with_weights(tokens, job)?,
        };
        self.linearize_run(tokens, run, weights, &OpenPositions::all(tokens.len()), job)
    }

    /// As [`Replacement::linearize`], with some positions closed.
    ///
    /// # Errors
    /// As [`Replacement::linearize`]; [`crate::Error::NeedsAllOpen`] on a GPU.
    pub fn linearize_open(&self, tokens: &[u32], positions: &OpenPositions, job: &Job) -> Result<LinearModel> {
        if positions.is_all() {
            return self.linearize(tokens, job);
        }
        let (run, weights) = self.run_without_patterns(tokens, positions.open().len(), job)?;
        self.linearize_run(tokens, run, weights, positions, job)
    }

    /// As [`Replacement::linearize_open`], from a run of the same tokens. With closed positions it may lack the patterns.
    ///
    /// # Errors
    /// Those of reading and of the tensor operations; [`crate::Error::Cancelled`]; [`crate::Error::NeedsAllOpen`].
    pub(crate) fn linearize_run(
        &self,
        tokens: &[u32],
        run: Run,
        weights: Vec<LinearWeights>,
        positions: &OpenPositions,
        job: &Job,
    ) -> Result<LinearModel> {
        if !self.model.device().is_cpu() {
            positions.check_all("a GPU")?;
        }
        let Run { pass, mut activations } = run;
        let n_excluded = self.n_excluded(tokens);
        let features = self.active_features_at(&activations, n_excluded, positions, job)?;
        self.check_sources(&features, positions.open().len())?;
        let mlp_sources = self.mlp_sources(&features, &activations, &weights, n_excluded, positions, job)?;
        let n_layers = weights.len();
        let hook_in = (0..n_layers).map(|l| positions.rows_of(activations.need(self.input_point(l))?));
        let hook_in = hook_in.collect::<Result<_>>()?;
        // Layer by layer, each let go before the next: weights and patterns exist once, not twice.
        let (mut attn_constants, mut layers) = (Vec::with_capacity(n_layers), Vec::with_capacity(n_layers));
        for (layer, weights) in weights.into_iter().enumerate() {
            job.check()?;
            let pattern = self.open_pattern(layer, positions, &mut activations)?;
            attn_constants.push(self.attn_constant(layer, &weights, &pattern, positions, &activations)?);
            layers.push(self.freeze(layer, weights, pattern, positions, &activations)?);
        }
        let final_norm = self.model.final_norm()?;
        let final_scale = positions.select(activations.need(HookPoint::LnFinalScale)?, 1)?;
        Ok(LinearModel {
            tokens: tokens.to_vec(),
            positions: positions.clone(),
            features,
            mlp_sources,
            attn_constants,
            embed_sources: self.embed_sources(tokens, positions)?,
            hook_in,
            final_normed: pass.final_normed.squeeze(0)?,
            final_norm: self.factors(&final_norm.gain, &final_scale)?,
            final_bias: final_norm.bias,
            layers,
            n_kv_heads: self.model.config.n_kv_heads,
        })
    }

    /// The linear model of a run without features, sources and layers.
    pub(super) fn shell(&self, tokens: &[u32], run: &Run) -> Result<LinearModel> {
        let activations = &run.activations;
        let final_norm = self.model.final_norm()?;
        let hook_in = (0..self.model.config.n_layers).map(|l| Ok(activations.need(self.input_point(l))?.squeeze(0)?));
        let nothing = || SourcesBuilder::new(self.model.config.d_model).build(&Device::Cpu);
        Ok(LinearModel {
            tokens: tokens.to_vec(),
            positions: OpenPositions::all(tokens.len()),
            features: ActiveFeatures::default(),
            mlp_sources: Vec::new(),
            attn_constants: Vec::new(),
            embed_sources: nothing()?,
            hook_in: hook_in.collect::<Result<_>>()?,
            final_normed: run.pass.final_normed.squeeze(0)?,
            final_norm: self.factors(&final_norm.gain, activations.need(HookPoint::LnFinalScale)?)?,
            final_bias: final_norm.bias,
            layers: Vec::new(),
            n_kv_heads: self.model.config.n_kv_heads,
        })
    }

    /// The patterns of the open queries of a layer, which the run lets go of. `[1, n_heads, n_open, n_pos]`
    fn open_pattern(&self, layer: usize, positions: &OpenPositions, kept: &mut Activations) -> Result<Tensor> {
        match kept.take(HookPoint::AttnPattern(layer)) {
            Ok(pattern) => positions.select(&pattern, 2),
            Err(_) => self.model.patterns_of(layer, kept.need(HookPoint::ResidPre(layer))?, positions.open()),
        }
    }

    /// Encodes what a run of one prompt kept at the input hooks.
    ///
    /// # Errors
    /// Those of reading and of the tensor operations; [`crate::Error::Cancelled`].
    pub fn active_features(&self, kept: &Activations, n_excluded: usize, job: &Job) -> Result<ActiveFeatures> {
        let n_pos = kept.need(self.input_point(0))?.dim(1)?;
        self.active_features_at(kept, n_excluded, &OpenPositions::all(n_pos), job)
    }

    fn active_features_at(
        &self,
        kept: &Activations,
        n_excluded: usize,
        positions: &OpenPositions,
        job: &Job,
    ) -> Result<ActiveFeatures> {
        let n_layers = self.model.config.n_layers;
        let mut features = ActiveFeatures { layer_starts: vec![0], ..Default::default() };
        let n_excluded = positions.open().partition_point(|&pos| pos < n_excluded);
        for layer in 0..n_layers {
            job.check()?;
            let n_active = features.layer_starts.windows(2).map(|two| two[1] - two[0]).max();
            self.check_encoder(n_active.unwrap_or(0), layer, positions.open().len())?;
            let transcoder = &self.transcoders.layers[layer];
            let input = positions.rows_of(kept.need(self.input_point(layer))?)?;
            let encoded = transcoder.encode(&input, n_excluded);
            let EncodedLayer { active, encoder_vecs } = encoded.context(|| format!("cannot encode layer {layer}"))?;
            for (&pos, candidates) in positions.open().iter().zip(&active) {
                features.all.extend(candidates.iter().map(|c| ActiveFeature {
                    layer,
                    pos,
                    feature: c.feature as usize,
                    value: c.value,
                    b_enc: transcoder.b_enc(c.feature as usize),
                }));
            }
            features.layer_starts.push(features.all.len());
            features.encoder_vecs.push(encoder_vecs);
            job.report("encoders", layer + 1, n_layers);
        }
        Ok(features)
    }

    /// What a norm multiplies by, from what it divides by.
    fn factors(&self, gain: &Tensor, scale: &Tensor) -> Result<NormFactors> {
        Ok(NormFactors::new(gain, &scale.recip()?, self.model.config.norm == NormKind::Layer)?)
    }

    /// `pattern` `[1, n_heads, n_open, n_pos]`
    pub(super) fn freeze(
        &self,
        layer: usize,
        weights: LinearWeights,
        pattern: Tensor,
        positions: &OpenPositions,
        kept: &Activations,
    ) -> Result<FrozenLayer> {
        let at_open = |point: HookPoint| positions.select(kept.need(point)?, 1);
        let (mlp_norm, mlp_scale) = (&weights.mlp_norm, at_open(HookPoint::Ln2Scale(layer))?);
        let (input_norm, input_bias) = match self.transcoders.input_hook {
            InputHook::ResidMid => (None, None),
            InputHook::Normalized => (Some(self.factors(&mlp_norm.gain.ones_like()?, &mlp_scale)?), None),
            InputHook::MlpIn => (Some(self.factors(&mlp_norm.gain, &mlp_scale)?), mlp_norm.bias.clone()),
        };
        let output_norm = match (&weights.post_mlp_norm, self.transcoders.output_hook) {
            (Some(norm), OutputHook::MlpOut) => {
                Some(self.factors(&norm.gain, &at_open(HookPoint::Ln2PostScale(layer))?)?)
            }
            (None, _) | (_, OutputHook::HookMlpOut) => None,
        };
        // Scales differ by position and gains by dimension, so one folds into the pattern and the other into weights:
        // the pull-back through attention is then three products, and no pass over the gradient for its norms.
        let at_keys = kept.need(HookPoint::Ln1Scale(layer))?.recip()?.squeeze(0)?.t()?;
        let mut pattern = pattern.squeeze(0)?.broadcast_mul(&at_keys)?;
        let mut w_o = weights.vo.o.weight.clone();
        if let Some(norm) = &weights.post_attn_norm {
            let scale = at_open(HookPoint::Ln1PostScale(layer))?;
            pattern = pattern.broadcast_mul(&scale.recip()?.squeeze(0)?)?;
            // Post-norms are RMSNorms in every family that has them, so gain and centring need no order here.
            w_o = norm.fold(&w_o.t()?)?.t()?.contiguous()?;
        }
        let w_v = weights.attn_norm.fold(&weights.vo.v.weight)?;
        let closed = match positions.is_all() {
            true => None,
            false => {
                let index = positions.closed_index(pattern.device())?;
                let resid = kept.need(HookPoint::ResidPre(layer))?.squeeze(0)?.index_select(&index, 0)?;
                let values = resid.matmul(&w_v.t()?)?;
                let of_closed = pattern.index_select(&index, 2)?;
                pattern = positions.select(&pattern, 2)?;
                Some(ClosedKeys::new(positions.open_before_closed(), &of_closed, values)?)
            }
        };
        Ok(FrozenLayer {
            pattern: CausalPattern::new(pattern)?,
            closed,
            w_v,
            w_o,
            input_norm,
            input_bias,
            output_norm,
            w_skip: self.transcoders.layers[layer].w_skip().cloned(),
        })
    }

    /// Features, errors and constants at every layer's output hook.
    fn mlp_sources(
        &self,
        features: &ActiveFeatures,
        kept: &Activations,
        weights: &[LinearWeights],
        n_excluded: usize,
        positions: &OpenPositions,
        job: &Job,
    ) -> Result<Vec<Sources>> {
        let cpu = Device::Cpu;
        let n_layers = self.model.config.n_layers;
        // Decoder rows of the layers that still write, unscaled: `[n_active_there, n_written, d_model]` each.
        let mut decoders: Vec<Decoders> = Vec::new();
        let mut all = Vec::with_capacity(n_layers);
        for layer in 0..n_layers {
            job.check()?;
            let mut wanted: Vec<usize> = features.of_layer(layer).map(|(_, f)| f.feature).collect();
            wanted.sort_unstable();
            wanted.dedup();
            let rows = self.transcoders.layers[layer].decoder_vecs(&wanted, &cpu);
            let values = to_vec(&rows.context(|| format!("cannot read the decoder of layer {layer}"))?)?;
            decoders.push(Decoders { features: wanted, values });
            let mlp_bias = weights[layer].mlp_norm.bias.as_ref();
            all.push(self.sources_of_layer(layer, features, &decoders, kept, mlp_bias, n_excluded, positions)?);
            if self.transcoders.n_written(layer) == 1 {
                decoders[layer] = Decoders::default();
            }
        }
        Ok(all)
    }

    #[allow(clippy::too_many_arguments)]
    fn sources_of_layer(
        &self,
        layer: usize,
        features: &ActiveFeatures,
        decoders: &[Decoders],
        kept: &Activations,
        mlp_norm_bias: Option<&Tensor>,
        n_excluded: usize,
        positions: &OpenPositions,
    ) -> Result<Sources> {
        let d = self.model.config.d_model;
        let transcoder = &self.transcoders.layers[layer];
        let input = positions.rows_of(kept.need(self.input_point(layer))?)?;
        let output = to_vec(&positions.rows_of(kept.need(self.output_point(layer))?)?)?;
        let skip = transcoder.skip(&input)?.map(|skip| to_vec(&skip)).transpose()?;
        // The skip connection's share of the norm's bias is constant; the rest of it carries gradient.
        let input_bias = match self.transcoders.input_hook {
            InputHook::MlpIn => mlp_norm_bias,
            InputHook::ResidMid | InputHook::Normalized => None,
        };
        let skip_constant = match input_bias {
            Some(bias) => transcoder.skip(&bias.unsqueeze(0)?)?.map(|skip| to_vec(&skip)).transpose()?,
            None => None,
        };
        let b_dec = to_vec(transcoder.b_dec())?;
        // Features that write here, by the place of their position: of this layer, or for a cross-layer transcoder of all
        // layers up to it.
        let mut at_place: Vec<Vec<(usize, usize)>> = vec![Vec::new(); positions.open().len()];
        let mut table = Vec::new();
        for from in 0..=layer {
            let n_written = self.transcoders.n_written(from);
            if layer - from >= n_written {
                continue;
            }
            let first_row = table.len() / d;
            for rows in decoders[from].values.chunks_exact(n_written * d) {
                table.extend_from_slice(&rows[(layer - from) * d..][..d]);
            }
            for (index, feature) in features.of_layer(from) {
                let row = decoders[from].features.partition_point(|&other| other < feature.feature);
                at_place[positions.need(feature.pos)?].push((index, first_row + row));
            }
        }
        let n_features: usize = at_place.iter().map(Vec::len).sum();
        let n_sources = n_features + 2 * at_place.len();
        let is_shared = self.model.device().is_cpu() && n_features > SHARED_FROM * (table.len() / d);
        let mut builder = match is_shared {
            true => SourcesBuilder::sharing(d, table.clone(), n_sources),
            false => SourcesBuilder::with_capacity(d, n_sources),
        };
        let only_bias = is_shared.then(|| builder.add_row(&b_dec));
        for (place, (&pos, at)) in positions.open().iter().zip(&at_place).enumerate() {
            let here = |values: &'_ [f32]| values[place * d..(place + 1) * d].to_vec();
            let add = |sum: &mut [f32], other: &[f32], sign: f32| {
                sum.iter_mut().zip(other).for_each(|(s, o)| *s += sign * o);
            };
            let mut constant;
            if pos < n_excluded {
                // All that the MLP writes here, but for what the skip connection passes on.
                constant = here(&output);
                if let Some(skip) = &skip {
                    add(&mut constant, &here(skip), -1.0);
                }
            } else {
                let mut reconstruction = vec![0f32; d];
                for &(index, row) in at {
                    let value = features.all[index].value;
                    builder.push_scaled(
                        Origin::Feature(index),
                        (row, &table[row * d..][..d]),
                        value,
                        &mut reconstruction,
                    );
                }
                add(&mut reconstruction, &b_dec, 1.0);
                if let Some(skip) = &skip {
                    add(&mut reconstruction, &here(skip), 1.0);
                }
                let mut error = here(&output);
                add(&mut error, &reconstruction, -1.0);
                builder.push(Origin::Error { layer, pos }, &error);
                constant = b_dec.clone();
            }
            if let Some(skip_constant) = &skip_constant {
                add(&mut constant, skip_constant, 1.0);
            }
            match only_bias {
                Some(row) if pos >= n_excluded && skip_constant.is_none() => builder.push_row(Origin::Constant, row),
                _ => builder.push(Origin::Constant, &constant),
            }
            builder.end_position();
        }
        builder.build(self.model.device())
    }

    /// What biases alone make attention add: `W_O · (pattern · (W_V · b_norm + b_V)) + b_O` at every position, after
    /// the post-norm where there is one.
    /// `pattern` `[1, n_heads, n_open, n_pos]`
    fn attn_constant(
        &self,
        layer: usize,
        weights: &LinearWeights,
        pattern: &Tensor,
        positions: &OpenPositions,
        kept: &Activations,
    ) -> Result<Option<Sources>> {
        let (v, o) = (&weights.vo.v, &weights.vo.o);
        if weights.attn_norm.bias.is_none() && v.bias.is_none() && o.bias.is_none() {
            return Ok(None);
        }
        let (_, _, _, n_pos) = pattern.dims4()?;
        let (d, d_head) = (self.model.config.d_model, self.model.config.d_head);
        let norm_bias = match &weights.attn_norm.bias {
            Some(bias) => bias.clone(),
            None => weights.attn_norm.gain.zeros_like()?,
        };
        let v_constant = v.forward(&norm_bias.reshape((1, 1, d))?)?;
        let v_constant = v_constant.broadcast_as((1, n_pos, v_constant.dim(2)?))?.contiguous()?;
        let mut out = weights.vo.write(&weights.vo.read(pattern, &split_heads(&v_constant, d_head)?)?)?;
        if let Some(norm) = &weights.post_attn_norm {
            out = norm.apply(&out, &positions.select(kept.need(HookPoint::Ln1PostScale(layer))?, 1)?)?;
        }
        let mut builder = SourcesBuilder::new(d);
        for vec in to_vec(&out)?.chunks_exact(d) {
            builder.push(Origin::Constant, vec);
            builder.end_position();
        }
        builder.build(self.model.device()).map(Some)
    }

    pub(super) fn embed_sources(&self, tokens: &[u32], positions: &OpenPositions) -> Result<Sources> {
        let d = self.model.config.d_model;
        let embedded = to_vec(&self.model.embed(tokens)?)?;
        let learned = self.model.position_embeddings(0, tokens.len())?.map(|p| to_vec(&p)).transpose()?;
        let mut builder = SourcesBuilder::new(d);
        for &pos in positions.open() {
            builder.push(Origin::Token { pos }, &embedded[pos * d..(pos + 1) * d]);
            if let Some(learned) = &learned {
                builder.push(Origin::Constant, &learned[pos * d..(pos + 1) * d]);
            }
            builder.end_position();
        }
        builder.build(self.model.device())
    }
}
