//! Attention scores as targets: why a head looked there.
//!
//! With all norms frozen a score is `scale · ⟨query, key⟩`, and both sides are affine in the residual stream. What each
//! source gives to the query, times the whole key, is one linear target; what it gives to the key, times the whole
//! query, another. Both have the score as their value.

use std::fmt;
use std::str::FromStr;

use candle_core::Tensor;

use super::targets::{Target, TargetKind};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::model::{Activations, HookPoint, Hooks, Layer, ScoreSide, ScoreSides};
use crate::replacement::{LinearModel, Replacement};

/// A score that a user asks about: head, query and key position. As text `18.6@18:7`: layer 18, head 6, from 18 to 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Score {
    /// The layer of the attention.
    pub layer: usize,
    /// The head's number there.
    pub head: usize,
    /// The position that looks.
    pub query: usize,
    /// The position that it looks at.
    pub key: usize,
}

/// What a score is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versus {
    /// Nothing: the score before softcap and softmax.
    #[default]
    Nothing,
    /// The score of another key: the difference.
    Key(usize),
    /// All other keys, each by its share of the attention that this key does not get. The target's gradient is that of
    /// the log-odds `log P / (1 − P)` of the attention, softcap included.
    Rivals,
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}@{}:{}", self.layer, self.head, self.query, self.key)
    }
}

impl FromStr for Score {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || Error::Spec { text: text.into(), expected: "LAYER.HEAD@QUERY:KEY, as in 18.6@18:7" };
        let (head, positions) = text.split_once('@').ok_or_else(wrong)?;
        let (layer, head) = head.split_once('.').ok_or_else(wrong)?;
        let (query, key) = positions.split_once(':').ok_or_else(wrong)?;
        let number = |text: &str| text.parse::<usize>().map_err(|_| wrong());
        Ok(Score { layer: number(layer)?, head: number(head)?, query: number(query)?, key: number(key)? })
    }
}

/// Keeps the weights of one layer, and the residual stream before it.
struct KeepLayer {
    layer: usize,
    weights: Option<Layer>,
    resid_pre: Activations,
}

impl Hooks for KeepLayer {
    fn wants(&self, point: HookPoint) -> bool {
        self.resid_pre.wants(point)
    }

    fn see(&mut self, point: HookPoint, tensor: &Tensor) -> Result<Option<Tensor>> {
        self.resid_pre.see(point, tensor)
    }

    fn weights(&mut self, layer: usize, weights: &Layer) {
        if layer == self.layer {
            self.weights = Some(weights.clone());
        }
    }
}

/// The sides of a head's scores on a prompt.
///
/// # Errors
/// [`Error::NoSuchLayer`], [`Error::NoSuchHead`]; those of [`crate::model::Model::forward`].
pub fn score_sides(
    replacement: &Replacement,
    tokens: &[u32],
    layer: usize,
    head: usize,
    job: &Job,
) -> Result<ScoreSides> {
    let config = &replacement.model.config;
    if layer >= config.n_layers {
        return Err(Error::NoSuchLayer { layer, n_layers: config.n_layers });
    }
    if head >= config.n_heads {
        return Err(Error::NoSuchHead { layer, head, n_heads: config.n_heads });
    }
    let mut kept = KeepLayer { layer, weights: None, resid_pre: Activations::at([HookPoint::ResidPre(layer)]) };
    replacement.model.forward_through(layer, &[tokens.to_vec()], &mut kept, job)?;
    let resid_pre = kept.resid_pre.need(HookPoint::ResidPre(layer))?.squeeze(0)?;
    let weights = kept.weights.ok_or_else(|| Error::NotKept { point: format!("the weights of layer {layer}") })?;
    weights.score_sides(config, layer, head, &resid_pre)
}

/// The query side and the key side of a score, as targets.
///
/// # Errors
/// Those of [`score_sides`]; [`Error::NoSuchPosition`], [`Error::KeyNotSeen`] for a key that the query may not see.
pub(super) fn score_targets(
    replacement: &Replacement,
    linear: &LinearModel,
    score: Score,
    versus: Versus,
) -> Result<[Target; 2]> {
    let n_pos = linear.tokens.len();
    let Score { layer, head, query, key } = score;
    for pos in [query, key] {
        if pos >= n_pos {
            return Err(Error::NoSuchPosition { pos, n_pos });
        }
    }
    let sides = score_sides(replacement, &linear.tokens, layer, head, &Job::default())?;
    let scores = sides.scores(query)?;
    let seen = |key: usize| match scores.get(key).copied().flatten() {
        Some(score) => Ok(score),
        None if key >= n_pos => Err(Error::NoSuchPosition { pos: key, n_pos }),
        None => Err(Error::KeyNotSeen { score: score.to_string(), query, key, window: sides.window }),
    };
    seen(key)?;
    // The target is a weighted sum of scores.
    let (mut weights, mut constant) = (vec![0f64; n_pos], 0f64);
    let versus_text = match versus {
        Versus::Nothing => {
            weights[key] = 1.0;
            String::new()
        }
        Versus::Key(other) => {
            seen(other)?;
            weights[key] += 1.0;
            weights[other] -= 1.0;
            format!(" versus {other}")
        }
        Versus::Rivals => {
            let pattern = sides.pattern(&scores);
            let others = 1.0 - pattern[key];
            for (pos, score) in scores.iter().enumerate() {
                let Some(score) = score else { continue };
                let share = if pos == key { 1.0 } else { -pattern[pos] / others };
                weights[pos] = share * sides.capped(*score).1;
            }
            if !weights.iter().all(|weight| weight.is_finite()) {
                return Err(Error::NoRivals { score: score.to_string() });
            }
            // A sink takes its share, and no source has a part in it.
            if let Some(sink) = sides.sink {
                let share = others - pattern.iter().enumerate().filter(|(k, _)| *k != key).map(|(_, p)| p).sum::<f64>();
                constant = -f64::from(sink) * share.max(0.0) / others;
            }
            " versus its rivals".into()
        }
    };
    let value: f64 = constant + (0..n_pos).map(|k| weights[k] * scores[k].unwrap_or(0.0)).sum::<f64>();
    let target = |side: &str, pos: usize, gradients: Vec<(usize, Tensor)>, constant: f64| -> Result<Target> {
        let d_model = linear.final_normed.dim(1)?;
        let zero = Tensor::zeros(d_model, linear.final_normed.dtype(), linear.final_normed.device())?;
        let mut rows = vec![zero; pos + 1];
        for (pos, gradient) in gradients {
            rows[pos] = gradient;
        }
        Ok(Target {
            label: format!("attention {score}{versus_text}, {side}"),
            token_id: None,
            pos,
            weight: 1.0,
            kind: TargetKind::AttentionInput {
                layer,
                gradients: Tensor::stack(&rows, 0)?,
                constant: constant as f32,
                value: value as f32,
            },
        })
    };
    // Query side: one position, all keys in one weight.
    let key_weights: Vec<f32> = weights.iter().map(|weight| (weight * sides.scale) as f32).collect();
    let key_weights = Tensor::from_vec(key_weights, (1, n_pos), sides.key.vecs.device())?;
    let on_query = key_weights.matmul(&sides.key.vecs)?.squeeze(0)?;
    let (gradient, own) = sides.query.pull_back(query, &on_query)?;
    let query_side = target("query side", query, vec![(query, gradient)], constant + f64::from(own))?;
    // Key side: every key with a weight.
    let on_key = (sides.query.vecs.get(query)? * sides.scale)?;
    let key_side: &ScoreSide = &sides.key;
    let (mut gradients, mut own_constants) = (Vec::new(), constant);
    for (pos, &weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
        let (gradient, own) = key_side.pull_back(pos, &(&on_key * weight)?)?;
        gradients.push((pos, gradient));
        own_constants += f64::from(own);
    }
    let last = gradients.last().map_or(key, |(pos, _)| *pos);
    let key_side = target("key side", last, gradients, own_constants)?;
    Ok([query_side, key_side])
}
