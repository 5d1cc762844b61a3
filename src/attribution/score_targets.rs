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
use crate::model::{Activations, HookPoint, Hooks, Layer, ScoreSides};
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

/// What follows the score in labels and settings: nothing, ` versus 5`, ` versus its rivals`.
impl fmt::Display for Versus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Versus::Nothing => Ok(()),
            Versus::Key(key) => write!(f, " versus {key}"),
            Versus::Rivals => f.write_str(" versus its rivals"),
        }
    }
}

impl Versus {
    /// Reads what [`Display`](fmt::Display) writes, with or without the space before it; `None` for any other text.
    pub fn parse(text: &str) -> Option<Versus> {
        match text.trim_start() {
            "" => Some(Versus::Nothing),
            "versus its rivals" => Some(Versus::Rivals),
            text => text.strip_prefix("versus ")?.parse().ok().map(Versus::Key),
        }
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

/// A score with all norms held, and the sum of scores that a target is made of.
#[derive(Clone, Debug)]
pub struct FrozenScore {
    /// Which score.
    pub score: Score,
    /// What it is compared with.
    pub versus: Versus,
    /// Queries and keys of the head.
    pub sides: ScoreSides,
    /// The score of every key before softcap and softmax, where the query sees it. `[n_pos]`
    pub scores: Vec<Option<f64>>,
    /// Weight of every key's score in the value. `[n_pos]`
    pub weights: Vec<f64>,
    /// What no source has a part in: a sink's share among the rivals.
    pub constant: f64,
    /// `Σ weights · scores + constant`
    pub value: f64,
}

impl FrozenScore {
    /// Runs the prompt up to the score's layer.
    ///
    /// # Errors
    /// Those of [`score_sides`]; [`Error::NoSuchPosition`], [`Error::KeyNotSeen`] for a key that the query may not see,
    /// [`Error::NoRivals`], [`Error::SameKey`].
    pub fn new(replacement: &Replacement, tokens: &[u32], score: Score, versus: Versus, job: &Job) -> Result<Self> {
        let n_pos = tokens.len();
        let Score { layer, head, query, key } = score;
        for pos in [query, key] {
            if pos >= n_pos {
                return Err(Error::NoSuchPosition { pos, n_pos });
            }
        }
        let sides = score_sides(replacement, tokens, layer, head, job)?;
        let scores = sides.scores(query)?;
        let seen = |key: usize| match scores.get(key).copied().flatten() {
            Some(score) => Ok(score),
            None if key >= n_pos => Err(Error::NoSuchPosition { pos: key, n_pos }),
            None => Err(Error::KeyNotSeen { score: score.to_string(), query, key, window: sides.window }),
        };
        seen(key)?;
        let (mut weights, mut constant) = (vec![0f64; n_pos], 0f64);
        match versus {
            Versus::Nothing => weights[key] = 1.0,
            Versus::Key(other) if other == key => {
                return Err(Error::SameKey { score: score.to_string(), key });
            }
            Versus::Key(other) => {
                seen(other)?;
                weights[key] = 1.0;
                weights[other] = -1.0;
            }
            Versus::Rivals => {
                let pattern = sides.pattern(&scores);
                let others = 1.0 - pattern[key];
                for (pos, score) in scores.iter().enumerate() {
                    let Some(score) = score else { continue };
                    let share = if pos == key { 1.0 } else { -pattern[pos] / others };
                    weights[pos] = share * sides.capped(*score).1;
                }
                if others <= 0.0 || !weights.iter().all(|weight| weight.is_finite()) {
                    return Err(Error::NoRivals { score: score.to_string() });
                }
                // A sink takes its share, and no source has a part in it.
                if let Some(sink) = sides.sink {
                    let of_keys: f64 = pattern.iter().enumerate().filter(|(k, _)| *k != key).map(|(_, p)| p).sum();
                    constant = -f64::from(sink) * (others - of_keys).max(0.0) / others;
                }
            }
        }
        let value = constant + (0..n_pos).map(|k| weights[k] * scores[k].unwrap_or(0.0)).sum::<f64>();
        Ok(FrozenScore { score, versus, sides, scores, weights, constant, value })
    }

    /// What the keys are, each by its weight, with the factor on products: the value is its product with the query, and
    /// [`FrozenScore::constant`]. `[d_head]`
    ///
    /// # Errors
    /// Those of the tensor operations.
    pub fn weighted_key(&self) -> Result<Tensor> {
        let weights: Vec<f32> = self.weights.iter().map(|weight| (weight * self.sides.scale) as f32).collect();
        let weights = Tensor::from_vec(weights, (1, self.weights.len()), self.sides.key.vecs.device())?;
        Ok(weights.matmul(&self.sides.key.vecs)?.squeeze(0)?)
    }

    /// The positions whose keys have a weight, with it.
    pub fn keys(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.weights.iter().copied().enumerate().filter(|(_, weight)| *weight != 0.0)
    }
}

/// The query side and the key side of a score, as targets.
///
/// # Errors
/// Those of [`FrozenScore::new`].
pub(super) fn score_targets(
    replacement: &Replacement,
    linear: &LinearModel,
    score: Score,
    versus: Versus,
) -> Result<[Target; 2]> {
    let frozen = FrozenScore::new(replacement, &linear.tokens, score, versus, &Job::default())?;
    let (sides, layer, query) = (&frozen.sides, score.layer, score.query);
    let target = |side: &str, pos: usize, gradients: Vec<(usize, Tensor)>, constant: f64| -> Result<Target> {
        let d_model = linear.final_normed.dim(1)?;
        let zero = Tensor::zeros(d_model, linear.final_normed.dtype(), linear.final_normed.device())?;
        let mut rows = vec![zero; pos + 1];
        for (pos, gradient) in gradients {
            rows[pos] = gradient;
        }
        Ok(Target {
            label: format!("attention {score}{versus}, {side}"),
            token_id: None,
            pos,
            weight: 1.0,
            kind: TargetKind::AttentionInput {
                layer,
                gradients: Tensor::stack(&rows, 0)?,
                constant: constant as f32,
                value: frozen.value as f32,
            },
        })
    };
    // Query side: one position, all keys in one weight.
    let (gradient, own) = sides.query.pull_back(query, &frozen.weighted_key()?)?;
    let query_side = target("query side", query, vec![(query, gradient)], frozen.constant + f64::from(own))?;
    // Key side: every key with a weight.
    let on_key = (sides.query.vecs.get(query)? * sides.scale)?;
    let (mut gradients, mut own_constants) = (Vec::new(), frozen.constant);
    for (pos, weight) in frozen.keys() {
        let (gradient, own) = sides.key.pull_back(pos, &(&on_key * weight)?)?;
        gradients.push((pos, gradient));
        own_constants += f64::from(own);
    }
    let last = gradients.last().map_or(score.key, |(pos, _)| *pos);
    let key_side = target("key side", last, gradients, own_constants)?;
    Ok([query_side, key_side])
}
