//! Labels of features from what they are active on, each with a score: how well it says, on text that it was not made
//! from, where the feature is active.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::collect::active_on_rows;
use super::exchange::read_names;
use super::files::FeatureSet;
use super::label_rules::{Found, best, f1, n_common};
use super::label_text::{Key, LabelText, View};
use super::label_words::{parts_named, tokens_named};
use super::manifest::Subject;
use super::pushes::pushes;
use super::report::FeatureId;
use crate::error::{Error, Result};
use crate::export::replace_file;
use crate::job::Job;
use crate::labels::Labels;
use crate::model::{HookPoint, TextPass, TextVisitor};
use crate::replacement::Replacement;

/// The phase of a [`Job`] that counts the tokens labels are made from.
pub const LABELS_PHASE: &str = "label tokens";

/// Beside `feature_labels.json`: how good each label is.
pub const SCORES_FILE: &str = "label_scores.json";

/// Tokens that a feature pushes, for "says".
const N_PUSHED: usize = 10;

/// How to label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelOptions {
    /// Tokens of the collected text that go through the model again: one half is learnt from, the other scored on.
    pub max_tokens: usize,
    /// Labels of a lower F1 say "mixed".
    pub min_f1: f64,
}

impl Default for LabelOptions {
    fn default() -> Self {
        Self { max_tokens: 200_000, min_f1: 0.3 }
    }
}

/// A label and how good it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScoredLabel {
    /// What the feature is called.
    pub label: String,
    /// Of the positions that the label names, the share where the feature is active.
    pub precision: f64,
    /// Of the positions where it is active, the share that the label names.
    pub recall: f64,
    /// Their harmonic mean.
    pub f1: f64,
    /// Positions of the scored text where the feature is active.
    pub n_active: usize,
    /// Whether the label is good enough to be one: "mixed" is not.
    pub is_clear: bool,
}

/// Labels features: runs a part of their text again, looks on one half for what best says where each is active, and scores
/// that on the other half. By `LAYER_FEATURE`; features that are too rare there have none. The same features give the
/// same labels.
///
/// # Errors
/// [`Error::FeaturesMismatch`] for features of another model or set; those of the model; [`Error::Cancelled`].
pub fn label_features(
    replacement: &Replacement,
    set: &FeatureSet,
    options: &LabelOptions,
    job: &Job,
) -> Result<BTreeMap<FeatureId, ScoredLabel>> {
    Ok(Labelled::new(replacement, set, options, job)?.labels)
}

/// Labels, and the text that they were made from and scored on.
pub(super) struct Labelled {
    pub labels: BTreeMap<FeatureId, ScoredLabel>,
    pub text: LabelText,
    /// Where each feature is active, ascending. `[n_layers][n_features]`
    pub active: Vec<Vec<Vec<u32>>>,
}

impl Labelled {
    pub(super) fn new(replacement: &Replacement, set: &FeatureSet, options: &LabelOptions, job: &Job) -> Result<Self> {
        set.manifest().subject.check_same(&Subject::of(replacement)?, set.folder().spec())?;
        let text = LabelText::new(set, options.max_tokens, |tokens| replacement.n_excluded(tokens));
        let active = active_positions(replacement, set, &text, job)?;
        let mut labels = BTreeMap::new();
        for (layer, active) in active.iter().enumerate() {
            job.check()?;
            let found: Vec<Option<Found>> = active.par_iter().map(|active| best(&text, active)).collect();
            // Only what stands before a word can say it.
            let is_next = |found: &Option<Found>| {
                found.as_ref().is_some_and(|found| found.parts.iter().any(|(view, _)| *view == View::Next))
            };
            let before: Vec<usize> = (0..found.len()).filter(|&feature| is_next(&found[feature])).collect();
            let pushed = pushes(replacement, layer, &before, N_PUSHED)?;
            let pushed: HashMap<usize, Vec<u32>> = before
                .into_iter()
                .zip(pushed)
                .map(|(feature, pushes)| (feature, pushes.top.iter().map(|push| push.token).collect()))
                .collect();
            for (feature, found) in found.into_iter().enumerate() {
                let Some(found) = found else { continue };
                let is_clear = found.f1() >= options.min_f1;
                let label = match (is_clear, found.is_everywhere()) {
                    (_, true) => "almost everywhere".to_owned(),
                    (true, false) => {
                        parts_named(set.tokens(), &text, &found.parts, pushed.get(&feature).map(Vec::as_slice))
                    }
                    (false, false) => {
                        let tokens = set.tokens_of(layer, feature)?;
                        format!("mixed: {}", tokens_named(set.tokens(), tokens.iter().map(|count| count.token), 2))
                    }
                };
                let (precision, recall, f1) = (found.precision(), found.recall(), found.f1());
                let n_active = found.n_active;
                labels.insert(
                    FeatureId { layer, feature },
                    ScoredLabel { label, precision, recall, f1, n_active, is_clear },
                );
            }
        }
        Ok(Self { labels, text, active })
    }

    /// How well conditions say where a feature is active: on the half that labels are scored on.
    pub(super) fn score(
        &self,
        id: FeatureId,
        label: String,
        conditions: &[(View, Vec<Key>)],
        min_f1: f64,
    ) -> ScoredLabel {
        let active = &self.active[id.layer][id.feature];
        let scored = &active[self.text.n_learnt_of(active)..];
        let mut named: Vec<u32> =
            conditions.iter().flat_map(|(view, keys)| self.text.positions_of_any(*view, keys)).collect();
        named.sort_unstable();
        named.dedup();
        let named = &named[self.text.n_learnt_of(&named)..];
        let n_both = n_common(named, scored);
        let f1 = f1(n_both, named.len(), scored.len(), 0);
        ScoredLabel {
            label,
            precision: n_both as f64 / named.len().max(1) as f64,
            recall: n_both as f64 / scored.len().max(1) as f64,
            f1,
            n_active: scored.len(),
            is_clear: f1 >= min_f1,
        }
    }
}

/// Writes `feature_labels.json`, which commands that name features read, and the scores beside it.
///
/// # Errors
/// The files cannot be written.
pub fn write_labels(folder: &Path, labels: &BTreeMap<FeatureId, ScoredLabel>) -> Result<()> {
    let names = labels.iter().map(|(id, label)| (*id, label.label.clone())).collect();
    let scores: BTreeMap<String, &ScoredLabel> = labels.iter().map(|(id, label)| (id.to_string(), label)).collect();
    write_json(&folder.join(SCORES_FILE), &scores)?;
    write_names(folder, &names)
}

/// Writes `feature_labels.json` alone.
pub(super) fn write_names(folder: &Path, names: &BTreeMap<FeatureId, String>) -> Result<()> {
    let names: BTreeMap<String, &str> = names.iter().map(|(id, label)| (id.to_string(), label.as_str())).collect();
    write_json(&folder.join(Labels::FILE), &names)
}

/// Adds names from files to those in `folder`, over those that are there; of several files the last says most. How many
/// were read, and how many there are.
///
/// # Errors
/// Those of [`read_names`](super::read_names) and of writing.
pub fn import_labels(set: &FeatureSet, files: &[PathBuf], folder: &Path) -> Result<(usize, usize)> {
    let mut read = BTreeMap::new();
    for file in files {
        read.extend(read_names(file, &set.manifest().subject.n_features)?);
    }
    let path = folder.join(Labels::FILE);
    let before = if path.is_file() { Labels::read(&path)? } else { Labels::default() };
    let id = |(layer, feature): (u32, u32)| FeatureId { layer: layer as usize, feature: feature as usize };
    let mut names: BTreeMap<FeatureId, String> =
        before.iter().map(|(numbers, label)| (id(numbers), label.to_owned())).collect();
    let n_read = read.len();
    names.extend(read);
    write_names(folder, &names)?;
    Ok((n_read, names.len()))
}

/// How good the label of a feature is: of the one that it has, where [`write_labels`] wrote it.
///
/// # Errors
/// A file of scores that is damaged.
pub(super) fn score_of(set: &FeatureSet, id: FeatureId) -> Result<Option<ScoredLabel>> {
    let Some(mut scores) = set.folder().read_json(SCORES_FILE)? else { return Ok(None) };
    let Some(score) = scores.get_mut(id.to_string()).map(serde_json::Value::take) else { return Ok(None) };
    let damaged = |e: serde_json::Error| Error::Damaged {
        file: set.folder().shown(SCORES_FILE),
        format: "label",
        reason: format!("feature {id}: {e}"),
    };
    let score: ScoredLabel = serde_json::from_value(score).map_err(damaged)?;
    let label = set.labels().get(id.layer as u32, id.feature as u32);
    Ok(Some(score).filter(|score| label == Some(score.label.as_str())))
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let failed = |e: serde_json::Error| Error::Io { doing: "cannot write", path: path.to_owned(), source: e.into() };
    let json = serde_json::to_vec_pretty(value).map_err(failed)?;
    replace_file(path, |writer| std::io::Write::write_all(writer, &json))
}

/// Where each feature is active, ascending. `[n_layers][n_features]`
fn active_positions(
    replacement: &Replacement,
    set: &FeatureSet,
    text: &LabelText,
    job: &Job,
) -> Result<Vec<Vec<Vec<u32>>>> {
    let sequences: Vec<&[u32]> = text.starts.windows(2).map(|ends| &text.tokens[ends[0]..ends[1]]).collect();
    let mut active: Vec<Vec<Vec<u32>>> =
        (0..set.n_layers()).map(|layer| vec![Vec::new(); set.n_features(layer)]).collect();
    let pass = TextPass::new(&replacement.model).keeping_if_it_fits();
    let mut observer = Observer { replacement, text, active: &mut active, job };
    pass.run(set.n_layers() - 1, &sequences, &mut observer, job)?;
    active.par_iter_mut().flatten().for_each(|positions| positions.sort_unstable());
    Ok(active)
}

/// Encodes what transcoders read, and keeps where features are active.
struct Observer<'a> {
    replacement: &'a Replacement,
    text: &'a LabelText,
    active: &'a mut [Vec<Vec<u32>>],
    job: &'a Job,
}

impl TextVisitor for Observer<'_> {
    fn wants(&self, point: HookPoint) -> bool {
        point.layer().is_some_and(|layer| self.replacement.input_point(layer) == point)
    }

    fn see(&mut self, point: HookPoint, rows: Vec<f32>, sequences: Range<usize>) -> Result<()> {
        let Some(layer) = point.layer() else { return Ok(()) };
        let first = self.text.starts[sequences.start];
        for (row, active) in active_on_rows(self.replacement, layer, rows)?.iter().enumerate() {
            if self.text.is_counted(first + row) {
                active.iter().for_each(|c| self.active[layer][c.feature as usize].push((first + row) as u32));
            }
        }
        if layer + 1 == self.active.len() {
            self.job.report(LABELS_PHASE, self.text.starts[sequences.end], self.text.tokens.len());
        }
        Ok(())
    }
}
