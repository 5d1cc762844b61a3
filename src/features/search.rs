//! Finding features: by what they are called, by the tokens they are active on, and by a text.

use rayon::prelude::*;
use serde::Serialize;

use super::files::FeatureSet;
use super::manifest::Subject;
use super::report::FeatureId;
use crate::error::{Error, ErrorContext, Result};
use crate::job::Job;
use crate::model::{Activations, ForwardOptions};
use crate::replacement::Replacement;

/// What a label that holds the query in one piece counts; one that holds all its words counts half of it. Tokens count
/// with the share of activations on them, so at most 1.
const WHOLE_LABEL: f64 = 3.0;

/// What is searched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SearchBy {
    /// What features are called.
    pub label: bool,
    /// The tokens they are active on.
    pub tokens: bool,
}

/// A feature that was found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// Its name, `LAYER_FEATURE`.
    pub feature: String,
    /// How well it fits, for sorting.
    pub score: f64,
    /// What it is called.
    pub label: Option<String>,
    /// The tokens it is active on most often.
    pub tokens: Vec<String>,
    /// Share of its activations on tokens of the query.
    pub share: f64,
    /// Positions where it is active.
    pub count: u32,
}

/// Features that fit a query, best first: words of their labels, and the tokens they are active on, whatever their case
/// and the spaces around them.
///
/// # Errors
/// [`Error::Spec`] for a query without words.
pub fn search(set: &FeatureSet, query: &str, by: SearchBy, n: usize) -> Result<Vec<Found>> {
    let query = query.trim().to_lowercase();
    let words: Vec<&str> = query.split_whitespace().collect();
    if words.is_empty() {
        return Err(Error::Spec { text: query, expected: "a word or more to search for" });
    }
    let store = set.tokens();
    let is_wanted: Vec<bool> = (0..store.d_vocab() as u32)
        .map(|token| {
            let text = store.text(token).trim().to_lowercase();
            text == query || words.contains(&text.as_str())
        })
        .collect();
    let ids = (0..set.n_layers()).flat_map(|layer| (0..set.n_features(layer)).map(move |feature| (layer, feature)));
    let ids: Vec<(usize, usize)> = ids.collect();
    let scored = ids.par_iter().map(|&(layer, feature)| -> Result<Option<(f64, f64, FeatureId)>> {
        let label = set.labels().get(layer as u32, feature as u32).filter(|_| by.label).map(str::to_lowercase);
        let of_label = match label {
            Some(label) if label.contains(&query) => WHOLE_LABEL,
            Some(label) if words.iter().all(|word| label.contains(word)) => WHOLE_LABEL / 2.0,
            _ => 0.0,
        };
        let mut share = 0.0;
        if by.tokens {
            let n_sampled = set.n_sampled(layer, feature)?.max(1);
            let counts = set.tokens_of(layer, feature)?;
            let wanted = counts.iter().filter(|count| is_wanted.get(count.token as usize) == Some(&true));
            share = f64::from(wanted.map(|count| count.count).sum::<u32>()) / f64::from(n_sampled);
        }
        let score = of_label + share;
        Ok((score > 0.0).then_some((score, share, FeatureId { layer, feature })))
    });
    let mut scored: Vec<(f64, f64, FeatureId)> = scored.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(&b.2)));
    scored.truncate(n);
    scored.into_iter().map(|(score, share, id)| found(set, id, score, share)).collect()
}

fn found(set: &FeatureSet, id: FeatureId, score: f64, share: f64) -> Result<Found> {
    let tokens = set.tokens_of(id.layer, id.feature)?;
    Ok(Found {
        feature: id.to_string(),
        score,
        label: set.labels().get(id.layer as u32, id.feature as u32).map(str::to_owned),
        tokens: tokens.iter().map(|count| set.tokens().text(count.token)).collect(),
        share,
        count: set.count_and_max(id.layer, id.feature)?.0,
    })
}

/// A feature that is active on a token of a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ActiveHere {
    /// Position in the text, its first token included.
    pub pos: usize,
    /// The token there.
    pub token: String,
    /// The feature, `LAYER_FEATURE`.
    pub feature: String,
    /// Its activation there.
    pub value: f32,
    /// That as a share of its largest activation on the text that was collected; 0 where it was never active.
    pub share_of_max: f64,
    /// What it is called.
    pub label: Option<String>,
    /// The tokens it is active on most often.
    pub tokens: Vec<String>,
}

/// Features that are active on a text, at every token the `n` whose activation is the largest share of their maximum:
/// position by position, strongest first.
///
/// # Errors
/// [`Error::FeaturesMismatch`] for features of another model or set; those of the model.
pub fn active_on(
    replacement: &Replacement,
    set: &FeatureSet,
    text: &str,
    n: usize,
    job: &Job,
) -> Result<Vec<ActiveHere>> {
    set.manifest().subject.check_same(&Subject::of(replacement)?, set.folder().spec())?;
    let tokens = replacement.tokenizer.encode_prompt(text)?;
    let n_layers = replacement.model.config.n_layers;
    let mut kept = Activations::at((0..n_layers).map(|layer| replacement.input_point(layer)));
    replacement.model.forward(std::slice::from_ref(&tokens), &mut kept, ForwardOptions::of(job))?;
    let mut at: Vec<Vec<(f64, f32, FeatureId)>> = vec![Vec::new(); tokens.len()];
    for layer in 0..n_layers {
        let input = kept.need(replacement.input_point(layer))?.squeeze(0)?;
        let active = replacement.transcoders.layers[layer].active(&input);
        for (found, active) in at.iter_mut().zip(active.context(|| format!("cannot encode layer {layer}"))?) {
            for candidate in active {
                let (feature, value) = (candidate.feature as usize, candidate.value);
                let (_, max) = set.count_and_max(layer, feature)?;
                let share = if max > 0.0 { f64::from(value) / f64::from(max) } else { 0.0 };
                found.push((share, value, FeatureId { layer, feature }));
            }
        }
    }
    let mut all = Vec::new();
    let texts = set.tokens().texts(tokens.iter().copied());
    for (pos, found) in at.iter_mut().enumerate().skip(replacement.n_excluded(&tokens)) {
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(&b.2)));
        for &(share_of_max, value, id) in found.iter().take(n) {
            let tokens = set.tokens_of(id.layer, id.feature)?;
            all.push(ActiveHere {
                pos,
                token: texts[pos].clone(),
                feature: id.to_string(),
                value,
                share_of_max,
                label: set.labels().get(id.layer as u32, id.feature as u32).map(str::to_owned),
                tokens: tokens.iter().map(|count| set.tokens().text(count.token)).collect(),
            });
        }
    }
    Ok(all)
}
