//! What is followed through changed runs beside the one target: tokens, differences of tokens, directions.

use candle_core::Tensor;
use serde::Serialize;

use super::compare::TokenChange;
use super::original::Original;
use crate::error::{Error, Result};

/// Something whose value at the last position is followed.
#[derive(Clone, Debug, PartialEq)]
pub enum Followed {
    /// A token's logit.
    Token(u32),
    /// The first token's logit less the second's.
    TokenDiff(u32, u32),
    /// What the output of the final norm has along a direction, used as it is. `[d_model]`
    Direction {
        /// Finite values. `[d_model]`
        vec: Vec<f32>,
        /// What results call it.
        label: String,
    },
}

/// Its value before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FollowedChange {
    /// The token, in quotes; `" A" - " B"`; or the direction's label.
    pub label: String,
    /// In the original run.
    pub before: f64,
    /// In the changed run.
    pub after: f64,
    /// Probability and rank, of a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<TokenChange>,
}

/// Where a run ends: what the final norm gives at the last position, and the logits.
#[derive(Clone, Copy, Debug)]
pub(super) struct End<'a> {
    /// `[d_model]`
    pub final_normed: &'a [f32],
    /// `[d_vocab]`
    pub logits: &'a [f32],
}

impl Followed {
    /// # Errors
    /// A token outside the vocabulary; a direction that is not `d_model` finite values.
    pub(super) fn check(&self, d_model: usize, d_vocab: usize) -> Result<()> {
        let token = |token: u32| match (token as usize) < d_vocab {
            true => Ok(()),
            false => Err(Error::TokenOutOfRange { token, d_vocab }),
        };
        match self {
            Followed::Token(a) => token(*a),
            Followed::TokenDiff(a, b) => token(*a).and(token(*b)),
            Followed::Direction { vec, label } if vec.len() != d_model || vec.iter().any(|v| !v.is_finite()) => {
                Err(Error::Direction { label: label.clone(), n_values: vec.len(), d_model })
            }
            Followed::Direction { .. } => Ok(()),
        }
    }

    /// Its value where a run ends.
    pub(super) fn value(&self, end: End) -> f64 {
        let logit = |token: u32| f64::from(end.logits[token as usize]);
        match self {
            Followed::Token(token) => logit(*token),
            Followed::TokenDiff(first, second) => logit(*first) - logit(*second),
            Followed::Direction { vec, .. } => {
                vec.iter().zip(end.final_normed).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            }
        }
    }

    /// What results call it.
    pub(super) fn label(&self, original: &Original) -> String {
        let text = |token: u32| original.replacement.tokenizer.token(token);
        match self {
            Followed::Token(token) => format!("{:?}", text(*token)),
            Followed::TokenDiff(first, second) => format!("{:?} - {:?}", text(*first), text(*second)),
            Followed::Direction { label, .. } => label.clone(),
        }
    }
}

/// The last position of every alternative. `[batch, n_pos, d_model]` to `[batch][d_model]`
pub(super) fn last_rows(final_normed: &Tensor) -> Result<Vec<Vec<f32>>> {
    let (_, n_pos, _) = final_normed.dims3()?;
    Ok(final_normed.narrow(1, n_pos - 1, 1)?.squeeze(1)?.to_device(&candle_core::Device::Cpu)?.to_vec2()?)
}
