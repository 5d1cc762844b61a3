//! Neuronpedia's JSON of one feature: a line with its examples and names, or lines of each.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::super::dashboard::{Dashboard, Example, Groups, WINDOW_AFTER, WINDOW_BEFORE, interval_edges};
use super::super::files::FeatureSet;
use super::super::pushes::{Push, Pushes};
use super::circuit_tracer::linear_histogram;
use super::foreign::{Foreign, ForeignExample};

/// Bins of its histograms.
const N_BINS: usize = 50;

/// What this program calls the origin of its names.
const TYPE_NAME: &str = "circuitscope";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    model_id: &'a str,
    layer: String,
    index: String,
    source_set_name: &'a str,
    max_act_approx: f32,
    #[serde(rename = "frac_nonzero")]
    frac_nonzero: f64,
    #[serde(rename = "pos_str")]
    pos_str: Vec<String>,
    #[serde(rename = "pos_values")]
    pos_values: Vec<f32>,
    #[serde(rename = "neg_str")]
    neg_str: Vec<String>,
    #[serde(rename = "neg_values")]
    neg_values: Vec<f32>,
    #[serde(rename = "freq_hist_data_bar_heights")]
    bar_heights: Vec<u32>,
    #[serde(rename = "freq_hist_data_bar_values")]
    bar_values: Vec<f32>,
    activations: Vec<WrittenActivation>,
    explanations: Vec<WrittenExplanation>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenActivation {
    tokens: Vec<String>,
    values: Vec<f32>,
    max_value: f32,
    max_value_token_index: usize,
    min_value: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    bin_min: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bin_max: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bin_contains: Option<f64>,
    qualifying_token_index: usize,
    data_source: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WrittenExplanation {
    description: String,
    type_name: &'static str,
    explanation_model_name: Option<String>,
    scores: Vec<Value>,
}

/// What lines of a set have in common.
#[derive(Clone, Debug)]
pub(super) struct SetNames {
    pub model: String,
    /// The set, as a word.
    pub set: String,
}

impl SetNames {
    /// The name of a layer's source.
    pub(super) fn source(&self, layer: usize) -> String {
        format!("{layer}-{}", self.set)
    }
}

/// One feature as a line, without its end.
pub(super) fn feature_line(
    set: &FeatureSet,
    names: &SetNames,
    (layer, feature): (usize, usize),
    dashboard: &Dashboard,
    pushes: &Pushes,
) -> serde_json::Result<Vec<u8>> {
    let store = set.tokens();
    let texts = |list: &[Push]| list.iter().map(|push| store.text(push.token)).collect();
    let values = |list: &[Push]| list.iter().map(|push| push.value).collect();
    let min = dashboard.min.min(0.0);
    let width = (dashboard.max - min) / N_BINS as f32;
    let bar_heights = linear_histogram(&dashboard.histogram, min, dashboard.max, N_BINS);
    let activation = |example: &Example| {
        let window = set.window(example, WINDOW_BEFORE, WINDOW_AFTER);
        let (strongest, max) = window
            .activations
            .iter()
            .copied()
            .enumerate()
            .reduce(|a, b| if b.1 > a.1 { b } else { a })
            .unwrap_or((window.at, example.value));
        let interval = (!example.groups.is_top()).then(|| interval_of(example.groups, dashboard)).flatten();
        WrittenActivation {
            max_value: max,
            max_value_token_index: strongest,
            min_value: window.activations.iter().copied().fold(f32::INFINITY, f32::min).min(max),
            bin_min: interval.map(|bin| bin.0),
            bin_max: interval.map(|bin| bin.1),
            bin_contains: interval.map(|bin| bin.2),
            qualifying_token_index: window.at,
            data_source: format!("document {}", window.document),
            tokens: window.texts,
            values: window.activations,
        }
    };
    serde_json::to_vec(&Written {
        model_id: &names.model,
        layer: names.source(layer),
        index: feature.to_string(),
        source_set_name: &names.set,
        max_act_approx: dashboard.max,
        frac_nonzero: f64::from(dashboard.count) / set.manifest().text.n_positions.max(1) as f64,
        pos_str: texts(&pushes.top),
        pos_values: values(&pushes.top),
        neg_str: texts(&pushes.bottom),
        neg_values: values(&pushes.bottom),
        bar_values: (0..bar_heights.len()).map(|i| min + width * (i as f32 + 0.5)).collect(),
        bar_heights,
        activations: dashboard.examples.iter().map(activation).collect(),
        explanations: set
            .labels()
            .get(layer as u32, feature as u32)
            .map(|label| WrittenExplanation {
                description: label.to_owned(),
                type_name: TYPE_NAME,
                explanation_model_name: None,
                scores: Vec::new(),
            })
            .into_iter()
            .collect(),
    })
}

/// Where the interval of a sample begins and ends, and the share of activations in it.
fn interval_of(groups: Groups, dashboard: &Dashboard) -> Option<(f32, f32, f64)> {
    let interval = groups.interval()?;
    let (start, end) = interval_edges(dashboard.max, interval);
    let inside = |(low, high, n): (f32, f32, u32)| if low >= start && high <= end { f64::from(n) } else { 0.0 };
    let n: f64 = dashboard.histogram.bins().map(inside).sum();
    Some((start, end, n / f64::from(dashboard.count.max(1))))
}

/// What a line is about.
#[derive(Debug)]
pub(super) struct Line {
    pub layer: usize,
    pub index: usize,
    pub foreign: Foreign,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Read {
    layer: Value,
    index: Value,
    #[serde(default)]
    max_act_approx: Option<f32>,
    #[serde(default, rename = "frac_nonzero")]
    frac_nonzero: Option<f64>,
    #[serde(default, rename = "pos_str")]
    pos_str: Option<Vec<String>>,
    #[serde(default, rename = "neg_str")]
    neg_str: Option<Vec<String>>,
    #[serde(default, rename = "freq_hist_data_bar_heights")]
    bar_heights: Option<Vec<f64>>,
    #[serde(default, rename = "freq_hist_data_bar_values")]
    bar_values: Option<Vec<f32>>,
    #[serde(default)]
    activations: Option<Vec<ReadActivation>>,
    #[serde(default)]
    explanations: Option<Vec<ReadExplanation>>,
    // A line of its own for an example.
    #[serde(default)]
    tokens: Option<Vec<String>>,
    #[serde(default)]
    values: Option<Vec<f32>>,
    #[serde(default)]
    qualifying_token_index: Option<usize>,
    #[serde(default)]
    max_value_token_index: Option<usize>,
    // A line of its own for an explanation.
    #[serde(default)]
    description: Option<String>,
    #[serde(default)]
    type_name: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadActivation {
    tokens: Vec<String>,
    values: Vec<f32>,
    #[serde(default)]
    qualifying_token_index: Option<usize>,
    #[serde(default)]
    max_value_token_index: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReadExplanation {
    description: String,
    #[serde(default)]
    type_name: Option<String>,
}

impl ReadExplanation {
    fn ranked(self) -> (u8, String) {
        (preference(self.type_name.as_deref()), self.description)
    }
}

/// How much a kind of explanation is preferred, lower first: as on Neuronpedia's graphs.
pub(super) fn preference(type_name: Option<&str>) -> u8 {
    match type_name {
        Some("np_max-act-logits") => 0,
        Some("np_max-act") => 1,
        _ => 2,
    }
}

/// The layer of `19-gemmascope-transcoder-16k`, `19` or 19.
pub(super) fn layer_number(layer: &str) -> Option<usize> {
    layer.split('-').next()?.trim().parse().ok()
}

/// Reads a line: a feature, an example or an explanation of one.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse(line: &str) -> Result<Line, String> {
    let read: Read = serde_json::from_str(line).map_err(|e| e.to_string())?;
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let layer = layer_number(&text(&read.layer)).ok_or_else(|| format!("`layer` is {}", read.layer))?;
    let index = text(&read.index).parse().map_err(|_| format!("`index` is {}", read.index))?;
    let mut foreign = Foreign {
        top: read.pos_str.unwrap_or_default(),
        bottom: read.neg_str.unwrap_or_default(),
        max: read.max_act_approx.filter(|max| max.is_finite()),
        frequency: read.frac_nonzero.filter(|f| (0.0..=1.0).contains(f)),
        ..Default::default()
    };
    let (heights, centres) = (read.bar_heights.unwrap_or_default(), read.bar_values.unwrap_or_default());
    if heights.len() == centres.len() && centres.len() > 1 {
        let half = (centres[1] - centres[0]) / 2.0;
        let bin = |(&n, &centre): (&f64, &f32)| (centre - half, centre + half, n);
        foreign.histogram = heights.iter().zip(&centres).map(bin).collect();
    }
    let own = read.tokens.zip(read.values).map(|(tokens, values)| ReadActivation {
        tokens,
        values,
        qualifying_token_index: read.qualifying_token_index,
        max_value_token_index: read.max_value_token_index,
    });
    for activation in read.activations.into_iter().flatten().chain(own) {
        let at = activation.qualifying_token_index.or(activation.max_value_token_index);
        // Older files have examples without one.
        let at = at.filter(|&at| at < activation.tokens.len());
        foreign.examples.push(ForeignExample::new(activation.tokens, activation.values, at, None)?);
    }
    let own = read.description.map(|description| ReadExplanation { description, type_name: read.type_name });
    let explanations = read.explanations.into_iter().flatten().chain(own);
    // Of equally preferred ones the first.
    foreign.label = explanations.map(ReadExplanation::ranked).min_by_key(|(rank, _)| *rank);
    Ok(Line { layer, index, foreign })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_features_examples_and_explanations_are_read() {
        let feature = parse(
            r#"{"modelId":"m","layer":"3-set","index":"7","maxActApprox":2.5,"frac_nonzero":0.01,"pos_str":["a"],
            "freq_hist_data_bar_heights":[3,1],"freq_hist_data_bar_values":[0.5,1.5],
            "activations":[{"tokens":["x","y"],"values":[0,2.5],"maxValueTokenIndex":1}],
            "explanations":[{"description":"other","typeName":"x"},{"description":"best","typeName":"np_max-act"}]}"#,
        )
        .unwrap();
        assert_eq!((feature.layer, feature.index), (3, 7));
        assert_eq!(feature.foreign.label, Some((1, "best".into())));
        assert_eq!(feature.foreign.histogram, [(0.0, 1.0, 3.0), (1.0, 2.0, 1.0)]);
        assert_eq!(feature.foreign.examples[0].at, 1);
        let example = parse(r#"{"layer":3,"index":7,"tokens":["x"],"values":[1]}"#).unwrap();
        assert_eq!(example.foreign.examples.len(), 1);
        let explanation = parse(r#"{"layer":"3","index":7,"description":"text"}"#).unwrap();
        assert_eq!(explanation.foreign.label, Some((2, "text".into())));
        for (line, part) in [
            ("{}", "layer"),
            (r#"{"layer":"x-1","index":1}"#, "layer"),
            (r#"{"layer":1,"index":-1}"#, "index"),
            (r#"{"layer":1,"index":1,"tokens":["a"],"values":[]}"#, "1 tokens and 0 activations"),
        ] {
            assert!(parse(line).unwrap_err().contains(part), "{line}");
        }
    }
}
