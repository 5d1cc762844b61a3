//! Targets: what the graph explains (definitions 4 and 5).

use std::collections::HashSet;

use candle_core::Tensor;

use super::AttributionOptions;
use super::score_targets::{Score, Versus, score_targets};
use crate::error::{Error, Result};
use crate::graph::AttributionGraph;
use crate::replacement::{LinearModel, Replacement};

/// What a user can ask to have explained.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetRequest {
    /// The most probable tokens.
    SalientLogits,
    /// One vocabulary token.
    Token(u32),
    /// The difference of two tokens' logits.
    TokenDiff(u32, u32),
    /// The pre-activation of a feature.
    Feature {
        /// The layer whose MLP the transcoder reads.
        layer: usize,
        /// Index among the features of the layer.
        feature: usize,
        /// Position in the prompt.
        pos: usize,
    },
    /// An attention score: its query side and its key side, two targets.
    Score {
        /// The score.
        score: Score,
        /// What it is compared with.
        versus: Versus,
    },
    /// Any direction that the unembedding's input can have, used as it is. `[d_model]`
    Direction {
        /// Finite values. `[d_model]`
        vec: Vec<f32>,
        /// What the graph calls it.
        label: String,
    },
}

/// One text a request, by which settings are recorded and read again ([`TargetRequest::parse`]).
impl std::fmt::Display for TargetRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TargetRequest::SalientLogits => f.write_str("likeliest"),
            TargetRequest::Token(token) => write!(f, "token {token}"),
            TargetRequest::TokenDiff(first, second) => write!(f, "difference {first} {second}"),
            TargetRequest::Feature { layer, feature, pos } => write!(f, "feature {layer}_{feature}_{pos}"),
            TargetRequest::Score { score, versus } => write!(f, "attention {score}{versus}"),
            TargetRequest::Direction { vec, label } => {
                write!(f, "direction {}", vec.len())?;
                vec.iter().try_for_each(|value| write!(f, " {value}"))?;
                write!(f, " {label}")
            }
        }
    }
}

impl TargetRequest {
    /// Reads what [`Display`](std::fmt::Display) writes; `None` for any other text.
    pub fn parse(text: &str) -> Option<TargetRequest> {
        let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
        match kind {
            "likeliest" => Some(TargetRequest::SalientLogits),
            "token" => rest.parse().ok().map(TargetRequest::Token),
            "difference" => {
                let (first, second) = rest.split_once(' ')?;
                Some(TargetRequest::TokenDiff(first.parse().ok()?, second.parse().ok()?))
            }
            "feature" => {
                let mut parts = rest.split('_').map(|part| part.parse().ok());
                let [layer, feature, pos] = [parts.next()??, parts.next()??, parts.next()??];
                parts.next().is_none().then_some(TargetRequest::Feature { layer, feature, pos })
            }
            "attention" => {
                let (score, versus) = rest.split_once(' ').unwrap_or((rest, ""));
                Some(TargetRequest::Score { score: score.parse().ok()?, versus: Versus::parse(versus)? })
            }
            "direction" => {
                let (n_values, mut rest) = rest.split_once(' ')?;
                let mut vec: Vec<f32> = Vec::new();
                for _ in 0..n_values.parse::<usize>().ok()? {
                    let (value, after) = rest.split_once(' ')?;
                    vec.push(value.parse().ok()?);
                    rest = after;
                }
                Some(TargetRequest::Direction { vec, label: rest.to_owned() })
            }
            _ => None,
        }
    }
}

/// Requests that lead to the targets of a graph, as far as its ids and labels tell; a direction of zeros stands for what
/// they do not.
pub(super) fn requests_of(graph: &AttributionGraph, d_model: usize) -> Vec<TargetRequest> {
    let request = |(&id, label): (&i64, &String)| match (u32::try_from(id), TargetRequest::parse(label)) {
        (Ok(token), _) => TargetRequest::Token(token),
        (Err(_), Some(feature @ TargetRequest::Feature { .. })) => feature,
        _ => TargetRequest::Direction { vec: vec![0.0; d_model], label: label.clone() },
    };
    graph.target_ids.iter().zip(&graph.meta.target_labels).map(request).collect()
}

/// Where a target's gradient is put, and which.
#[derive(Clone, Debug)]
pub enum TargetKind {
    /// On the output of the final norm. `[d_model]`
    Direction(Tensor),
    /// The encoder row of a feature, on its layer's input hook. `encoder_vec` `[d_model]`
    Feature {
        /// The layer whose MLP the transcoder reads.
        layer: usize,
        /// Index among the features of the layer.
        feature: usize,
        /// What the feature looks for. `[d_model]`
        encoder_vec: Tensor,
        /// The feature's bias, part of the bias effect.
        b_enc: f32,
    },
    /// On what the attention of a layer reads: the residual stream before it, at every position up to the target's.
    AttentionInput {
        /// The layer of the attention.
        layer: usize,
        /// `[pos + 1, d_model]`
        gradients: Tensor,
        /// What biases give, part of the bias effect.
        constant: f32,
        /// The value of the target.
        value: f32,
    },
}

/// One target node.
#[derive(Clone, Debug)]
pub struct Target {
    /// A token's text, or what else the graph calls the target.
    pub label: String,
    /// Vocabulary id of a token; `None` for other targets.
    pub token_id: Option<u32>,
    /// Position in the prompt.
    pub pos: usize,
    /// Weight in the influence (definitions 5): a token's probability, else 1.
    pub weight: f32,
    /// What is pulled back.
    pub kind: TargetKind,
}

/// Targets, and the model's own logits at the last position.
#[derive(Debug)]
pub struct Chosen {
    /// In the order of the graph's target nodes.
    pub targets: Vec<Target>,
    /// `[d_vocab]`
    pub logits: Vec<f32>,
}

/// Finds the targets that `options` ask for.
///
/// A token's direction is `W_U[v] − mean(W_U)`, its weight its raw probability. Other targets have weight 1. What is
/// requested twice is one target.
///
/// # Errors
/// [`Error::NoSuchPosition`], [`Error::NoSuchFeature`], [`Error::TokenOutOfRange`], a direction of a wrong length; of a
/// score also [`Error::NoSuchLayer`], [`Error::NoSuchHead`], [`Error::KeyNotSeen`], [`Error::NoRivals`],
/// [`Error::SameKey`].
pub fn choose_targets(replacement: &Replacement, linear: &LinearModel, options: &AttributionOptions) -> Result<Chosen> {
    let (n_pos, d_model) = linear.final_normed.dims2()?;
    let check_pos = |pos: usize| if pos < n_pos { Ok(pos) } else { Err(Error::NoSuchPosition { pos, n_pos }) };
    let pos = check_pos(options.position.unwrap_or(n_pos - 1))?;
    let rows = Tensor::cat(&[linear.final_normed.narrow(0, n_pos - 1, 1)?, linear.final_normed.narrow(0, pos, 1)?], 0)?;
    let (logits, mean_row) = replacement.model.logits_and_mean_row(&rows)?;
    let mut logits = logits.to_vec2::<f32>()?;
    let at_pos = logits.pop().unwrap_or_default();
    let logits = logits.pop().unwrap_or_default();
    let probabilities = softmax(&at_pos);

    let salient = [TargetRequest::SalientLogits];
    let requests = if options.targets.is_empty() { &salient[..] } else { &options.targets[..] };
    let mut targets: Vec<Target> = Vec::new();
    for (at, request) in requests.iter().enumerate() {
        // What is asked for twice is explained once.
        if requests[..at].contains(request) {
            continue;
        }
        match request {
            TargetRequest::SalientLogits => {
                let tokens = salient_tokens(&probabilities, options.max_logits, options.logit_prob);
                targets.extend(token_targets(replacement, &mean_row, &tokens, &probabilities, pos)?);
            }
            TargetRequest::Token(token) => {
                targets.extend(token_targets(replacement, &mean_row, &[*token], &probabilities, pos)?);
            }
            TargetRequest::TokenDiff(first, second) if first == second => {
                let token = replacement.tokenizer.token(*first);
                let text = format!("{token:?} - {token:?}");
                return Err(Error::Spec { text, expected: "two different tokens" });
            }
            TargetRequest::TokenDiff(first, second) => {
                let rows = replacement.model.unembedding_rows(&[*first, *second])?;
                let direction = (rows.get(0)? - rows.get(1)?)?;
                let text = |token: u32| replacement.tokenizer.token(token);
                targets.push(Target {
                    label: format!("{:?} - {:?}", text(*first), text(*second)),
                    token_id: None,
                    pos,
                    weight: 1.0,
                    kind: TargetKind::Direction(direction),
                });
            }
            TargetRequest::Feature { layer, feature, pos } => {
                replacement.transcoders.check_feature(*layer, *feature)?;
                let transcoder = &replacement.transcoders.layers[*layer];
                let encoder_vec = transcoder.encoder_row(*feature, linear.final_normed.device())?;
                let b_enc = transcoder.b_enc(*feature);
                targets.push(Target {
                    label: format!("feature {layer}_{feature}_{pos}"),
                    token_id: None,
                    pos: check_pos(*pos)?,
                    weight: 1.0,
                    kind: TargetKind::Feature { layer: *layer, feature: *feature, encoder_vec, b_enc },
                });
            }
            TargetRequest::Score { score, versus } => {
                targets.extend(score_targets(replacement, linear, *score, *versus)?);
            }
            TargetRequest::Direction { vec, label } => {
                if vec.len() != d_model || vec.iter().any(|v| !v.is_finite()) {
                    return Err(Error::Direction { label: label.clone(), n_values: vec.len(), d_model });
                }
                let direction = Tensor::from_slice(vec, d_model, linear.final_normed.device())?;
                targets.push(Target {
                    label: label.clone(),
                    token_id: None,
                    pos,
                    weight: 1.0,
                    kind: TargetKind::Direction(direction),
                });
            }
        }
    }
    // A token that is among the likeliest anyway is one node.
    let mut seen = HashSet::new();
    targets.retain(|target| target.token_id.is_none_or(|token| seen.insert((token, target.pos))));
    Ok(Chosen { targets, logits })
}

fn token_targets(
    replacement: &Replacement,
    mean_row: &Tensor,
    tokens: &[u32],
    probabilities: &[f32],
    pos: usize,
) -> Result<Vec<Target>> {
    let directions = replacement.model.unembedding_rows(tokens)?.broadcast_sub(mean_row)?;
    let target = |(i, &token): (usize, &u32)| -> Result<Target> {
        Ok(Target {
            label: replacement.tokenizer.token(token),
            token_id: Some(token),
            pos,
            weight: probabilities[token as usize],
            kind: TargetKind::Direction(directions.get(i)?),
        })
    };
    tokens.iter().enumerate().map(target).collect()
}

/// Softmax in f64, rounded once.
pub(crate) fn softmax(logits: &[f32]) -> Vec<f32> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exps: Vec<f64> = logits.iter().map(|&l| f64::from(l - top).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.into_iter().map(|e| (e / sum) as f32).collect()
}

/// The `max_logits` most probable tokens, cut after the first at which the probabilities add up to `logit_prob`.
fn salient_tokens(probabilities: &[f32], max_logits: usize, logit_prob: f64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..probabilities.len() as u32).collect();
    let by_probability =
        |a: &u32, b: &u32| probabilities[*b as usize].total_cmp(&probabilities[*a as usize]).then(a.cmp(b));
    let n = max_logits.min(order.len());
    if n < order.len() {
        order.select_nth_unstable_by(n, by_probability);
        order.truncate(n);
    }
    order.sort_unstable_by(by_probability);
    let mut sum = 0f64;
    let reached = order.iter().position(|&token| {
        sum += f64::from(probabilities[token as usize]);
        sum >= logit_prob
    });
    order.truncate(reached.map_or(n, |i| i + 1));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_are_written() {
        for request in [
            TargetRequest::SalientLogits,
            TargetRequest::Token(7),
            TargetRequest::TokenDiff(7, 0),
            TargetRequest::Feature { layer: 3, feature: 955, pos: 8 },
            TargetRequest::Direction { vec: vec![0.1, -3e-9, 1.0], label: "1 2 and more".into() },
            TargetRequest::Score { score: "18.6@18:7".parse().unwrap(), versus: Versus::Nothing },
            TargetRequest::Score { score: "0.0@1:0".parse().unwrap(), versus: Versus::Key(5) },
            TargetRequest::Score { score: "0.0@1:0".parse().unwrap(), versus: Versus::Rivals },
        ] {
            assert_eq!(TargetRequest::parse(&request.to_string()), Some(request));
        }
        for text in [
            "attention 18.6",
            "attention 18.6@1:0 against 3",
            "attention 1.2@3:1 versus x",
            "",
            "tokens 7",
            "token x",
            "difference 1",
            "feature 1_2",
            "feature 1_2_3_4",
            "direction 3 1 2 a",
        ] {
            assert_eq!(TargetRequest::parse(text), None, "{text}");
        }
    }

    #[test]
    fn salient_tokens_stop_once_the_probability_is_reached() {
        let p = [0.1, 0.5, 0.05, 0.3, 0.05];
        assert_eq!(salient_tokens(&p, 10, 0.8), [1, 3]);
        assert_eq!(salient_tokens(&p, 10, 0.81), [1, 3, 0]);
        assert_eq!(salient_tokens(&p, 2, 0.95), [1, 3]);
        assert_eq!(salient_tokens(&p, 10, 1.0).len(), 5);
        assert_eq!(salient_tokens(&p, 10, 0.0), [1]);
    }
}
