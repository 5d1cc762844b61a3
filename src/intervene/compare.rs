//! A changed run beside the original: tokens, features, distance.

use std::collections::BTreeSet;

use serde::Serialize;

use super::followed::{End, Followed, FollowedChange};
use super::original::{Original, Outcome};
use super::read_out::GroupChange;
use crate::error::{Error, Result};
use crate::graph::FeatureId;

/// How the next token's distribution and the features changed.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Of the changed distribution from the original one, in nats: Σ p·ln(p/q), p the original.
    pub kl_divergence: f64,
    /// The token that is followed: the likeliest of the original run, or [`CompareOptions::target`].
    pub target: TokenChange,
    /// The likeliest tokens before and after, by the larger of both probabilities.
    pub tokens: Vec<TokenChange>,
    /// What else was followed: [`CompareOptions::followed`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub followed: Vec<FollowedChange>,
    /// The groups that were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<GroupChange>,
    /// What is compared of features.
    pub measure: Measure,
    /// The features whose measure changed most.
    pub features: Vec<FeatureChange>,
}

/// What is compared of features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Measure {
    /// Activations: what features give to the model. 0 for one that is off.
    #[default]
    Activation,
    /// Pre-activations: what direct effects change, also where that switches a feature off.
    PreActivation,
}

/// One token, before and after. Ranks start at 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenChange {
    /// Vocabulary id.
    pub token_id: u32,
    /// The token's text.
    pub text: String,
    /// In 0..=1.
    pub probability_before: f64,
    /// In 0..=1.
    pub probability_after: f64,
    /// Among all tokens.
    pub rank_before: usize,
    /// Among all tokens.
    pub rank_after: usize,
    /// Logit after less logit before.
    pub logit_change: f64,
}

/// One feature of the original run, before and after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeatureChange {
    /// The feature and its position.
    #[serde(flatten)]
    pub id: FeatureId,
    /// What the label file says about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Its activation in the original run, which is its pre-activation too.
    pub before: f32,
    /// Its [`Measure`] in the changed run, as that computes it.
    pub after: f32,
    /// Its pre-activation in the changed run: how far a feature is off.
    pub pre_activation: f32,
}

/// What a comparison shows.
#[derive(Clone, Debug)]
pub struct CompareOptions {
    /// The token whose fate is followed; `None`: the likeliest one of the original run.
    pub target: Option<u32>,
    /// Tokens and features listed.
    pub top: usize,
    /// Only these features; `None`: all that are active in the original run.
    pub features: Option<BTreeSet<FeatureId>>,
    /// What else is followed.
    pub followed: Vec<Followed>,
    /// What is compared of features.
    pub measure: Measure,
}

impl Default for CompareOptions {
    fn default() -> Self {
        Self { target: None, top: 10, features: None, followed: Vec::new(), measure: Measure::default() }
    }
}

impl Original<'_> {
    /// Compares a changed run with this one.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`] for a target that is no token.
    pub fn compare(&self, outcome: &Outcome, options: &CompareOptions) -> Result<Comparison> {
        let (before, after) = (Distribution::new(&self.logits), Distribution::new(&outcome.logits));
        let target = self.target(options)?;
        let change = |token: u32| TokenChange {
            token_id: token,
            text: self.replacement.tokenizer.token(token),
            probability_before: before.probability(token),
            probability_after: after.probability(token),
            rank_before: rank(&self.logits, token),
            rank_after: rank(&outcome.logits, token),
            logit_change: f64::from(outcome.logits[token as usize]) - f64::from(self.logits[token as usize]),
        };
        let top: BTreeSet<u32> =
            largest(&self.logits, options.top).into_iter().chain(largest(&outcome.logits, options.top)).collect();
        let mut tokens: Vec<TokenChange> = top.into_iter().map(change).collect();
        let weight = |t: &TokenChange| t.probability_before.max(t.probability_after);
        tokens.sort_by(|a, b| weight(b).total_cmp(&weight(a)).then(a.token_id.cmp(&b.token_id)));
        let (end_before, end_after) = (self.end()?, &outcome.final_normed);
        let follow = |followed: &Followed| -> Result<FollowedChange> {
            followed.check(end_before.len(), self.logits.len())?;
            Ok(FollowedChange {
                label: followed.label(self),
                before: followed.value(End { final_normed: &end_before, logits: &self.logits }),
                after: followed.value(End { final_normed: end_after, logits: &outcome.logits }),
                token: if let Followed::Token(token) = followed { Some(change(*token)) } else { None },
            })
        };
        Ok(Comparison {
            followed: options.followed.iter().map(follow).collect::<Result<_>>()?,
            groups: outcome.groups.clone(),
            measure: options.measure,
            kl_divergence: before.kl_divergence(&after),
            target: change(target),
            tokens,
            features: self.feature_changes(outcome, options),
        })
    }

    /// The token that is followed.
    ///
    /// # Errors
    /// [`Error::TokenOutOfRange`]
    pub(super) fn target(&self, options: &CompareOptions) -> Result<u32> {
        let d_vocab = self.logits.len();
        match options.target {
            Some(token) if token as usize >= d_vocab => Err(Error::TokenOutOfRange { token, d_vocab }),
            Some(token) => Ok(token),
            None => Ok(largest(&self.logits, 1).first().copied().unwrap_or(0)),
        }
    }

    fn feature_changes(&self, outcome: &Outcome, options: &CompareOptions) -> Vec<FeatureChange> {
        let mut changes: Vec<FeatureChange> = Vec::new();
        let after = outcome.activations.iter().zip(&outcome.pre_activations);
        for (feature, (&activation, &pre_activation)) in self.features.all.iter().zip(after) {
            let after = match options.measure {
                Measure::Activation => activation,
                Measure::PreActivation => pre_activation,
            };
            let id =
                FeatureId { layer: feature.layer as u32, pos: feature.pos as u32, feature: feature.feature as u32 };
            if after != feature.value && options.features.as_ref().is_none_or(|wanted| wanted.contains(&id)) {
                changes.push(FeatureChange { id, label: None, before: feature.value, after, pre_activation });
            }
        }
        let size = |change: &FeatureChange| (change.after - change.before).abs();
        changes.sort_by(|a, b| size(b).total_cmp(&size(a)).then(a.id.cmp(&b.id)));
        changes.truncate(options.top);
        for change in &mut changes {
            change.label =
                self.replacement.transcoders.labels.get(change.id.layer, change.id.feature).map(str::to_owned);
        }
        changes
    }
}

/// The next token's distribution, as log-probabilities in f64.
#[derive(Debug)]
pub(crate) struct Distribution {
    log_probabilities: Vec<f64>,
}

impl Distribution {
    pub fn new(logits: &[f32]) -> Self {
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&l| f64::from(l - top).exp()).sum();
        let log_sum = f64::from(top) + sum.ln();
        Self { log_probabilities: logits.iter().map(|&l| f64::from(l) - log_sum).collect() }
    }

    pub fn log_probability(&self, token: u32) -> f64 {
        self.log_probabilities[token as usize]
    }

    pub fn probability(&self, token: u32) -> f64 {
        self.log_probabilities[token as usize].exp()
    }

    /// Σ p·ln(p/q) with p this distribution; never below 0, which rounding may give.
    pub fn kl_divergence(&self, other: &Distribution) -> f64 {
        let terms = self.log_probabilities.iter().zip(&other.log_probabilities);
        terms.map(|(p, q)| p.exp() * (p - q)).sum::<f64>().max(0.0)
    }
}

/// The `n` largest logits' tokens, largest first; of equal ones the lower id.
pub(super) fn largest(logits: &[f32], n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    let descending = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    if n < order.len() {
        order.select_nth_unstable_by(n, descending);
        order.truncate(n);
    }
    order.sort_unstable_by(descending);
    order
}

/// 1 for the likeliest token.
pub(super) fn rank(logits: &[f32], token: u32) -> usize {
    let own = logits[token as usize];
    1 + logits.iter().enumerate().filter(|&(i, &l)| l > own || (l == own && i < token as usize)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_divergence_is_zero_for_the_same_and_as_computed_by_hand() {
        let p = Distribution::new(&[0.0, 1.0, 2.0]);
        assert_eq!(p.kl_divergence(&p), 0.0);
        let (a, b) = (Distribution::new(&[0.0, 0.0]), Distribution::new(&[3.0f32.ln(), 0.0]));
        let expected = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((a.kl_divergence(&b) - expected).abs() < 1e-7);
    }

    #[test]
    fn ranks_and_largest_agree() {
        let logits = [0.5, 2.0, 2.0, -1.0];
        let order = largest(&logits, 4);
        assert_eq!(order, [1, 2, 0, 3]);
        for (place, &token) in order.iter().enumerate() {
            assert_eq!(rank(&logits, token), place + 1);
        }
    }
}
