//! One feature in words and numbers, for printing.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::dashboard::{Example, TokenCount};
use super::files::FeatureSet;
use super::labels::{ScoredLabel, score_of};
use super::manifest::Subject;
use super::pushes::{FeatureAt, Push, pushes, pushes_here};
use super::virtual_weights::{VirtualWeight, VirtualWeights};
use crate::error::{Error, Result};
use crate::job::Job;
use crate::replacement::{LinearModel, Replacement};

/// Which feature: `LAYER_FEATURE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FeatureId {
    /// Its layer.
    pub layer: usize,
    /// Its index in the layer.
    pub feature: usize,
}

impl fmt::Display for FeatureId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}", self.layer, self.feature)
    }
}

impl FromStr for FeatureId {
    type Err = Error;

    /// `29_189`, or `29/189`.
    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once(['_', '/']).and_then(|(layer, feature)| {
            Some(FeatureId { layer: layer.parse().ok()?, feature: feature.parse().ok()? })
        });
        parsed.ok_or_else(|| Error::Spec { text: text.to_owned(), expected: "a feature such as 29_189, LAYER_FEATURE" })
    }
}

/// One feature.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeatureReport {
    /// Its name, `LAYER_FEATURE`.
    pub feature: String,
    /// What it is called, if it has a label.
    pub label: Option<String>,
    /// Positions where it is active.
    pub count: u32,
    /// Positions that were looked at.
    pub n_positions: u64,
    /// Sequences that have such a position.
    pub n_sequences: u32,
    /// Mean of its activations.
    pub mean: f32,
    /// Median of its activations, to the width of a bin.
    pub median: f32,
    /// What 99 % of its activations are below, to the width of a bin.
    pub quantile_99: f32,
    /// The smallest.
    pub min: f32,
    /// The largest.
    pub max: f32,
    /// Activations that the tokens were counted on.
    pub n_sampled: u32,
    /// Tokens it is active on.
    pub tokens: Vec<ReportToken>,
    /// Tokens before those.
    pub before: Vec<ReportToken>,
    /// How many activations are in which range.
    pub histogram: Vec<ReportBin>,
    /// Strongest first.
    pub examples: Vec<ReportExample>,
    /// How good the label is, where it was made from the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_score: Option<ScoredLabel>,
    /// What weights say, where the model was at hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<ReportWeights>,
    /// What it does at places of a prompt, where one was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub here: Vec<ReportHere>,
}

/// A feature at one position of a prompt.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportHere {
    /// The position.
    pub pos: usize,
    /// The token there.
    pub text: String,
    /// The feature's activation.
    pub activation: f32,
    /// The share of its activations on the collected text that is below that, to the width of a bin.
    pub share_below: f64,
    /// The position whose logits these are.
    pub at: usize,
    /// The logits it raises most there, directly; largest first.
    pub top: Vec<ReportPush>,
    /// Those it lowers most, lowest first.
    pub bottom: Vec<ReportPush>,
}

/// What a feature pushes, and which features it reads and feeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportWeights {
    /// The logits it raises most, largest first.
    pub top: Vec<ReportPush>,
    /// Those it lowers most, lowest first.
    pub bottom: Vec<ReportPush>,
    /// Features of earlier layers that it reads most, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reads: Option<Vec<ReportFeature>>,
    /// Features of later layers that read it most, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feeds: Option<Vec<ReportFeature>>,
}

/// What a feature does at a position of a prompt: the `n` logits at the position `at` that it raises and lowers most,
/// directly. Nothing where it is not active.
///
/// # Errors
/// [`Error::FeaturesMismatch`] for features of another model or set; those of the model.
pub fn report_here(
    replacement: &Replacement,
    set: &FeatureSet,
    linear: &LinearModel,
    feature: FeatureAt,
    at: usize,
    n: usize,
) -> Result<Option<ReportHere>> {
    set.manifest().subject.check_same(&Subject::of(replacement)?, set.folder().spec())?;
    let Some((activation, pushed)) = pushes_here(replacement, linear, feature, at, n)? else { return Ok(None) };
    Ok(Some(ReportHere {
        pos: feature.pos,
        text: linear.tokens.get(feature.pos).map(|&token| set.tokens().text(token)).unwrap_or_default(),
        activation,
        share_below: set.dashboard(feature.id.layer, feature.id.feature)?.share_below(activation),
        at,
        top: named(set, &pushed.top),
        bottom: named(set, &pushed.bottom),
    }))
}

fn named(set: &FeatureSet, pushes: &[Push]) -> Vec<ReportPush> {
    let of = |p: &Push| ReportPush { token: p.token, text: set.tokens().text(p.token), value: p.value };
    pushes.iter().map(of).collect()
}

/// A logit that a feature pushes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportPush {
    /// The token's id.
    pub token: u32,
    /// Its text.
    pub text: String,
    /// See [`Push`](super::Push).
    pub value: f32,
}

/// A feature that another one reads or feeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportFeature {
    /// `LAYER_FEATURE`
    pub feature: String,
    /// What it is called.
    pub label: Option<String>,
    /// See [`VirtualWeight`](super::VirtualWeight).
    pub weight: f32,
}

/// What weights say of a feature: the `n` logits it raises and lowers most, and, with `neighbors`, the `n` features that
/// it reads and feeds most.
///
/// # Errors
/// [`Error::FeaturesMismatch`] for features of another model or set; those of the model.
pub fn report_weights(
    replacement: &Replacement,
    set: &FeatureSet,
    id: FeatureId,
    n: usize,
    neighbors: bool,
) -> Result<ReportWeights> {
    set.manifest().subject.check_same(&Subject::of(replacement)?, set.folder().spec())?;
    let pushed = pushes(replacement, id.layer, &[id.feature], n)?.pop().unwrap_or_default();
    let (top, bottom) = (named(set, &pushed.top), named(set, &pushed.bottom));
    if !neighbors || set.tokens().is_empty() {
        return Ok(ReportWeights { top, bottom, reads: None, feeds: None });
    }
    let tokens: Vec<u32> = set.tokens().sequence(0).map(|at| set.tokens().token(at)).collect();
    let weights = VirtualWeights::new(replacement, &tokens, &Job::default())?;
    let features = |list: Vec<VirtualWeight>| -> Option<Vec<ReportFeature>> {
        let label = |id: FeatureId| set.labels().get(id.layer as u32, id.feature as u32).map(str::to_owned);
        let of = |w: VirtualWeight| ReportFeature { feature: w.id.to_string(), label: label(w.id), weight: w.weight };
        Some(list.into_iter().map(of).collect())
    };
    let (reads, feeds) = (features(weights.reads(id, n)?), features(weights.feeds(id, n)?));
    Ok(ReportWeights { top, bottom, reads, feeds })
}

/// A token that a feature is active on, or after.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportToken {
    /// Its id.
    pub token: u32,
    /// Its text.
    pub text: String,
    /// Times, of the sampled activations.
    pub count: u32,
    /// That as a share of them.
    pub share: f64,
    /// Mean activation.
    pub mean: f32,
}

/// A bin of the histogram.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportBin {
    /// Where it begins.
    pub start: f32,
    /// Where it ends.
    pub end: f32,
    /// Activations in it.
    pub count: u32,
}

/// An example with the tokens around it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ReportExample {
    /// The activation.
    pub value: f32,
    /// Whether it is one of the strongest.
    pub is_top: bool,
    /// The interval, 1 to 5, that it is a sample of.
    pub interval: Option<usize>,
    /// Position in the token store.
    pub position: u32,
    /// The document, from 0, over all files.
    pub document: u32,
    /// Which of the tokens is the example's own.
    pub at: usize,
    /// Texts of the tokens.
    pub tokens: Vec<String>,
    /// The feature's activation on each.
    pub activations: Vec<f32>,
}

/// What is known of a feature, for printing.
///
/// # Errors
/// Those of [`FeatureSet::dashboard`].
pub fn report(set: &FeatureSet, id: FeatureId) -> Result<FeatureReport> {
    let dashboard = set.dashboard(id.layer, id.feature)?;
    let tokens = |counts: &[TokenCount]| -> Vec<ReportToken> {
        let of = |count: &TokenCount| ReportToken {
            token: count.token,
            text: set.tokens().text(count.token),
            count: count.count,
            share: dashboard.share(count),
            mean: count.mean,
        };
        counts.iter().map(of).collect()
    };
    let example = |example: &Example| {
        let window = set.window(example, usize::MAX, usize::MAX);
        ReportExample {
            value: example.value,
            is_top: example.groups.is_top(),
            interval: example.groups.interval(),
            position: example.position,
            document: window.document,
            at: window.at,
            tokens: window.texts,
            activations: window.activations,
        }
    };
    Ok(FeatureReport {
        feature: id.to_string(),
        label: set.labels().get(id.layer as u32, id.feature as u32).map(str::to_owned),
        count: dashboard.count,
        n_positions: set.manifest().text.n_positions,
        n_sequences: dashboard.n_sequences,
        mean: dashboard.mean,
        median: dashboard.quantile(0.5),
        quantile_99: dashboard.quantile(0.99),
        min: dashboard.min,
        max: dashboard.max,
        n_sampled: dashboard.n_sampled,
        tokens: tokens(&dashboard.tokens),
        before: tokens(&dashboard.before),
        histogram: dashboard.histogram.bins().map(|(start, end, count)| ReportBin { start, end, count }).collect(),
        examples: dashboard.examples.iter().map(example).collect(),
        label_score: score_of(set, id)?,
        weights: None,
        here: Vec::new(),
    })
}
