//! circuit-tracer's JSON of one feature, in bins and in files of its own.

use serde::{Deserialize, Serialize};

use super::super::dashboard::{Dashboard, Example, N_INTERVALS, WINDOW_AFTER, WINDOW_BEFORE};
use super::super::files::FeatureSet;
use super::super::histogram::Histogram;
use super::super::pushes::{Push, Pushes};
use super::foreign::{Foreign, ForeignExample};
use super::vocabulary::escaped;

/// Bins of the linear histogram that pages draw.
const N_LINEAR_BINS: usize = 100;

/// What the strongest examples are called.
const TOP: &str = "Top activations";

#[derive(Debug, Serialize)]
struct Written<'a> {
    transcoder_id: &'a str,
    index: usize,
    examples_quantiles: Vec<WrittenQuantile>,
    top_logits: Vec<String>,
    bottom_logits: Vec<String>,
    act_min: f32,
    act_max: f32,
    quantile_values: Vec<f32>,
    histogram: Vec<u32>,
    activation_frequency: f64,
}

#[derive(Debug, Serialize)]
struct WrittenQuantile {
    quantile_name: String,
    examples: Vec<WrittenExample>,
}

#[derive(Debug, Serialize)]
struct WrittenExample {
    tokens_acts_list: Vec<f32>,
    train_token_ind: usize,
    is_repeated_datapoint: bool,
    tokens: Vec<String>,
}

/// One feature as circuit-tracer's page reads it.
pub(super) fn feature_json(
    set: &FeatureSet,
    feature: usize,
    dashboard: &Dashboard,
    pushes: &Pushes,
) -> serde_json::Result<Vec<u8>> {
    let store = set.tokens();
    let token = |id: u32| escaped(&store.bytes(id));
    let example = |example: &Example, is_repeated: bool| {
        let window = set.window(example, WINDOW_BEFORE, WINDOW_AFTER);
        WrittenExample {
            tokens: window.tokens.iter().map(|&id| token(id)).collect(),
            tokens_acts_list: window.activations,
            train_token_ind: window.at,
            is_repeated_datapoint: is_repeated,
        }
    };
    let mut quantiles = Vec::new();
    let mut add = |quantile_name: String, examples: Vec<WrittenExample>| {
        if !examples.is_empty() {
            quantiles.push(WrittenQuantile { quantile_name, examples });
        }
    };
    add(TOP.to_owned(), dashboard.top().map(|e| example(e, false)).collect());
    for interval in (1..=N_INTERVALS).rev() {
        // What was shown among the strongest is faint the second time.
        let samples = dashboard.samples(interval).map(|e| example(e, e.groups.is_top())).collect();
        add(format!("Subsample interval {interval}"), samples);
    }
    let logits = |list: &[Push]| list.iter().map(|push| token(push.token)).collect();
    let min = dashboard.min.min(0.0);
    serde_json::to_vec(&Written {
        transcoder_id: &set.manifest().subject.scan,
        index: feature,
        examples_quantiles: quantiles,
        top_logits: logits(&pushes.top),
        bottom_logits: logits(&pushes.bottom),
        act_min: min,
        act_max: dashboard.max,
        quantile_values: match dashboard.is_dead() {
            true => Vec::new(),
            false => (0..=100).map(|percent| dashboard.quantile(f64::from(percent) / 100.0)).collect(),
        },
        histogram: linear_histogram(&dashboard.histogram, min, dashboard.max, N_LINEAR_BINS),
        activation_frequency: f64::from(dashboard.count) / set.manifest().text.n_positions.max(1) as f64,
    })
}

/// A histogram of equal bins from `min` to `max`, each bin of the logarithmic one spread evenly over what it covers; the
/// counts add up to the same. Empty where there is nothing to count.
pub(super) fn linear_histogram(histogram: &Histogram, min: f32, max: f32, n_bins: usize) -> Vec<u32> {
    if histogram.counts.is_empty() || max <= min {
        return Vec::new();
    }
    let bins: Vec<(f64, f64, f64)> = histogram
        .bins()
        .map(|(start, end, n)| (f64::from(start.max(min).min(max)), f64::from(end.min(max)), f64::from(n)))
        .collect();
    let below = |edge: f64| -> f64 {
        let share = |start: f64, end: f64| match end > start {
            true => ((edge - start) / (end - start)).clamp(0.0, 1.0),
            false => f64::from(u8::from(edge >= end)),
        };
        bins.iter().map(|&(start, end, n)| n * share(start, end)).sum()
    };
    let width = f64::from(max - min) / n_bins as f64;
    let total: f64 = bins.iter().map(|bin| bin.2).sum();
    let edge = |i: usize| if i == n_bins { total } else { below(f64::from(min) + width * i as f64).round() };
    // What bin 0 holds below `min` is in the first.
    let cumulative: Vec<f64> = (0..=n_bins).map(|i| if i == 0 { 0.0 } else { edge(i) }).collect();
    cumulative.windows(2).map(|ends| (ends[1] - ends[0]).max(0.0) as u32).collect()
}

#[derive(Debug, Deserialize)]
struct Read {
    #[serde(default)]
    index: Option<u64>,
    examples_quantiles: Vec<ReadQuantile>,
    #[serde(default)]
    top_logits: Option<Vec<String>>,
    #[serde(default)]
    bottom_logits: Option<Vec<String>>,
    #[serde(default)]
    act_min: Option<f32>,
    #[serde(default)]
    act_max: Option<f32>,
    #[serde(default)]
    histogram: Option<Vec<f64>>,
    #[serde(default)]
    activation_frequency: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct ReadQuantile {
    #[serde(default)]
    quantile_name: String,
    examples: Vec<ReadExample>,
}

#[derive(Debug, Deserialize)]
struct ReadExample {
    tokens_acts_list: Vec<f32>,
    #[serde(default, alias = "train_token_index")]
    train_token_ind: Option<usize>,
    tokens: Vec<String>,
}

/// Reads one feature; `index` is what it must say it is, where it says so.
///
/// # Errors
/// What is wrong with it, in words.
pub(super) fn parse(json: &[u8], index: usize) -> Result<Foreign, String> {
    let read: Read = serde_json::from_slice(json).map_err(|e| e.to_string())?;
    if let Some(found) = read.index.filter(|&found| found != index as u64) {
        return Err(format!("it says that it is feature {found}"));
    }
    let mut foreign = Foreign {
        top: read.top_logits.unwrap_or_default(),
        bottom: read.bottom_logits.unwrap_or_default(),
        max: read.act_max,
        frequency: read.activation_frequency.filter(|f| (0.0..=1.0).contains(f)),
        ..Default::default()
    };
    for quantile in read.examples_quantiles {
        let is_top = quantile.quantile_name.to_ascii_lowercase().starts_with("top");
        for example in quantile.examples {
            let (tokens, values) = (example.tokens, example.tokens_acts_list);
            foreign.examples.push(ForeignExample::new(tokens, values, example.train_token_ind, Some(is_top))?);
        }
    }
    let (min, max) = (read.act_min.unwrap_or(0.0), read.act_max.unwrap_or(0.0));
    if let Some(histogram) = read.histogram.filter(|bins| !bins.is_empty() && min.is_finite() && max > min) {
        let width = (max - min) / histogram.len() as f32;
        let bin = |(i, &n): (usize, &f64)| (min + width * i as f32, min + width * (i + 1) as f32, n);
        foreign.histogram = histogram.iter().enumerate().map(bin).collect();
    }
    Ok(foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_histogram_counts_every_activation_where_it_is() {
        let mut histogram = Histogram::default();
        let values: Vec<f32> = (1..=1000).map(|i| i as f32 / 100.0).collect();
        values.iter().for_each(|&value| histogram.add(value));
        let linear = linear_histogram(&histogram, 0.0, 10.0, 100);
        assert_eq!((linear.len(), linear.iter().sum::<u32>()), (100, 1000));
        // Evenly spread values stay so, to the width of a logarithmic bin.
        assert!(linear.iter().skip(10).all(|&n| (8..=12).contains(&n)), "{linear:?}");
        assert!(linear_histogram(&Histogram::default(), 0.0, 0.0, 100).is_empty());
        let mut one = Histogram::default();
        one.add(3.0);
        assert_eq!(linear_histogram(&one, 0.0, 3.0, 4).iter().sum::<u32>(), 1);
    }

    #[test]
    fn older_files_without_ranges_are_read() {
        let json = br#"{"index":7,"examples_quantiles":[{"quantile_name":"Top","examples":[{"tokens":["a"," b"],
            "tokens_acts_list":[0,1.5],"train_token_index":1}]}]}"#;
        let foreign = parse(json, 7).unwrap();
        assert_eq!((foreign.examples[0].at, foreign.examples[0].is_top), (1, Some(true)));
        assert!(parse(json, 8).unwrap_err().contains("feature 7"));
        assert!(parse(b"{}", 0).is_err());
    }
}
