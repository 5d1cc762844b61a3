//! Many alternatives in one batch: a feature's value moved along a range, or named plans side by side.

use std::str::FromStr;

use serde::Serialize;

use super::change::{Change, FeatureSpec, Intervention, Mode};
use super::compare::{CompareOptions, Distribution, largest, rank};
use super::followed::{End, Followed};
use super::head_change::{HeadEdits, HeadIntervention};
use super::original::Original;
use crate::error::{Error, Result};
use crate::job::Job;

/// Alternatives that go through the model together, at most: more would cost memory and gain nothing.
const BATCH: usize = 32;

/// Points of one sweep, at most.
const MAX_POINTS: usize = 10_000;

/// A feature whose value is moved along a range.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweep {
    /// The feature, and where.
    pub feature: FeatureSpec,
    /// What it is set to, one point a value.
    pub values: Vec<f32>,
}

impl FromStr for Sweep {
    type Err = Error;

    /// `L_F_P=A..B/STEP`, where B is included if the steps meet it: `5_123_4=-10..10/2`.
    fn from_str(text: &str) -> Result<Self> {
        let (feature, values) = named_values(text)?;
        Ok(Sweep { feature: feature.parse()?, values })
    }
}

/// `NAME=A..B/STEP` taken apart: the name, and every value of the range.
///
/// # Errors
/// A range that is none, or has none or too many points.
pub fn named_values(text: &str) -> Result<(&str, Vec<f32>)> {
    let bad = || Error::Spec { text: text.to_owned(), expected: "NAME=START..END/STEP, such as 5_123_4=-10..10/2" };
    let (name, range) = text.rsplit_once('=').ok_or_else(bad)?;
    let (range, step) = range.rsplit_once('/').ok_or_else(bad)?;
    let (start, end) = range.split_once("..").ok_or_else(bad)?;
    let number = |text: &str| text.parse::<f64>().ok().filter(|n| n.is_finite()).ok_or_else(bad);
    let (start, end, step) = (number(start)?, number(end)?, number(step)?);
    let n_steps = ((end - start) / step + 1e-9).floor();
    if step <= 0.0 || n_steps < 0.0 || n_steps >= MAX_POINTS as f64 {
        let expected = "a sweep of 1 to 10000 points: START..END/STEP with START at most END and STEP above 0";
        return Err(Error::Spec { text: text.to_owned(), expected });
    }
    let values = (0..=n_steps as usize).map(|i| (start + i as f64 * step) as f32).collect();
    Ok((name, values))
}

impl Sweep {
    /// One alternative a value, each with the interventions of `base` as well.
    pub fn alternatives(&self, base: &[Intervention]) -> Vec<Alternative> {
        let alternative = |&value: &f32| Alternative {
            name: format!("{}={value}", self.feature),
            value: Some(value),
            interventions: base.iter().copied().chain([self.feature.changed(Change::Set(value))]).collect(),
            heads: Vec::new(),
        };
        self.values.iter().map(alternative).collect()
    }
}

/// One way to change the prompt's run.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// What the results call it.
    pub name: String,
    /// What a sweep sets its feature to.
    pub value: Option<f32>,
    /// All changes of features in the run.
    pub interventions: Vec<Intervention>,
    /// Changes of heads, after those of all runs ([`Original::change_heads`]).
    pub heads: Vec<HeadIntervention>,
}

/// What one alternative leads to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SweepPoint {
    /// The alternative's name.
    pub name: String,
    /// What the sweep set its feature to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<f32>,
    /// Probability of the followed token, in 0..=1.
    pub target_probability: f64,
    /// Its logit.
    pub target_logit: f32,
    /// Its rank among all tokens, from 1.
    pub target_rank: usize,
    /// Of the changed distribution from the original one, in nats.
    pub kl_divergence: f64,
    /// The likeliest token's text.
    pub top_token: String,
    /// Its probability, in 0..=1.
    pub top_probability: f64,
    /// Values of what else is followed, in the order of [`SweepResult::followed`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub followed: Vec<f64>,
}

/// A sweep's results.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SweepResult {
    /// The token that was followed.
    pub target_id: u32,
    /// Its text.
    pub target: String,
    /// Without any intervention.
    pub original_probability: f64,
    /// What else was followed ([`CompareOptions::followed`]): its name, and its value in the original run.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub followed: Vec<(String, f64)>,
    /// One an alternative, in their order.
    pub points: Vec<SweepPoint>,
}

impl Original<'_> {
    /// Runs alternatives as one batch (in parts, where there are very many) and follows one token through them.
    ///
    /// # Errors
    /// As [`Original::intervene`]; [`Error::TokenOutOfRange`] for a target that is no token.
    pub fn sweep(
        &self,
        alternatives: &[Alternative],
        mode: &Mode,
        options: &CompareOptions,
        job: &Job,
    ) -> Result<SweepResult> {
        let target = self.target(options)?;
        let before = Distribution::new(&self.logits);
        let end_before = self.end()?;
        let followed = |followed: &Followed| -> Result<(String, f64)> {
            followed.check(end_before.len(), self.logits.len())?;
            let end = End { final_normed: &end_before, logits: &self.logits };
            Ok((followed.label(self), followed.value(end)))
        };
        let followed = options.followed.iter().map(followed).collect::<Result<_>>()?;
        let mut points = Vec::with_capacity(alternatives.len());
        for part in alternatives.chunks(BATCH) {
            let interventions: Vec<Vec<Intervention>> = part.iter().map(|a| a.interventions.clone()).collect();
            let own = part.iter().enumerate();
            let own = own.flat_map(|(at, alternative)| alternative.heads.iter().map(move |change| (Some(at), change)));
            let heads = self.heads().and(HeadEdits::new(self.replacement, &self.tokens, own, job)?);
            for (alternative, (logits, final_normed)) in
                part.iter().zip(self.changed_ends(&interventions, &heads, mode, job)?)
            {
                let end = End { final_normed: &final_normed, logits: &logits };
                let after = Distribution::new(&logits);
                let top = largest(&logits, 1).first().copied().unwrap_or(0);
                points.push(SweepPoint {
                    name: alternative.name.clone(),
                    value: alternative.value,
                    target_probability: after.probability(target),
                    target_logit: logits[target as usize],
                    target_rank: rank(&logits, target),
                    kl_divergence: before.kl_divergence(&after),
                    top_token: self.replacement.tokenizer.token(top),
                    top_probability: after.probability(top),
                    followed: options.followed.iter().map(|followed| followed.value(end)).collect(),
                });
            }
            job.report("alternatives", points.len(), alternatives.len());
        }
        Ok(SweepResult {
            target_id: target,
            target: self.replacement.tokenizer.token(target),
            original_probability: before.probability(target),
            followed,
            points,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sweep_includes_the_end_that_its_steps_meet() {
        let sweep: Sweep = "5_123_4=-10..10/2".parse().unwrap();
        assert_eq!(sweep.values.len(), 11);
        assert_eq!((sweep.values[0], sweep.values[10]), (-10.0, 10.0));
        assert_eq!("0_1_2..=0..1/0.1".parse::<Sweep>().unwrap().values.len(), 11);
        assert_eq!("0_1_2=0..1/0.3".parse::<Sweep>().unwrap().values, [0.0, 0.3, 0.6, 0.9]);
    }

    #[test]
    fn bad_sweeps_are_refused() {
        for text in
            ["5_1_2", "5_1_2=1", "5_1_2=1..2", "5_1_2=2..1/1", "5_1_2=0..1/0", "5_1_2=0..1/-1", "5_1_2=0..1e9/1"]
        {
            assert!(text.parse::<Sweep>().is_err(), "{text}");
        }
    }
}
