//! Figures as text.

use std::fmt::Write;

use crate::cli::summary::{Align, write_table};
use crate::evaluate::{
    AblationQuality, Divergence, FREQUENCY_EDGES, GraphQuality, LayerQuality, Layers, Quality, Replaced, Spread,
    Substituted,
};
use crate::text::terminal;

/// Characters of the longest bar.
const BAR: usize = 40;

/// Everything that was measured, at most 80 columns wide.
pub(super) fn quality_text(quality: &Quality) -> String {
    let mut text = String::new();
    write_head(&mut text, quality);
    write_layers(&mut text, &quality.reconstruction);
    write_frequencies(&mut text, &quality.reconstruction);
    if let Some(replaced) = &quality.replaced {
        write_replaced(&mut text, replaced);
    }
    if let Some(graphs) = &quality.graphs {
        write_graphs(&mut text, graphs);
    }
    if let Some(ablations) = &quality.ablations {
        write_ablations(&mut text, ablations);
    }
    text
}

fn write_head(text: &mut String, quality: &Quality) {
    let (subject, read) = (&quality.subject, &quality.text);
    let n_features: usize = subject.n_features.iter().sum();
    let kind = if subject.kind == "cross_layer" { "cross-layer" } else { "per-layer" };
    let part = if quality.options.text.all_text { "" } else { "held-out " };
    let _ = writeln!(
        text,
        "{} with {}: {kind}, {} layers, {n_features} features\n\
         {}: {} tokens of {} {part}documents, {} sequences\n\
         measured at {} positions: the first of each sequence has no features",
        terminal(&subject.model),
        terminal(&subject.scan),
        subject.n_features.len(),
        terminal(&read.files.join(", ")),
        read.n_tokens,
        read.n_documents,
        read.n_sequences,
        read.n_positions,
    );
}

fn percent(part: usize, whole: usize) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

fn optional(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3}"))
}

fn write_layers(text: &mut String, layers: &Layers) {
    text.push_str(
        "\nreconstruction: FVU is the part of the MLP's variance that features miss, L0 how\n\
         many are active at a position, with 5, 50 and 95 % quantiles; dense: active at\n\
         more than a tenth of the positions\n",
    );
    let header = ["layer", "FVU", "cosine", "norm", "L0", "5 %", "50 %", "95 %", "dead", "dense"];
    let of_layer = |layer: &LayerQuality| {
        let [low, _, middle, _, high] = layer.l0_quantiles;
        vec![
            layer.layer.to_string(),
            optional(layer.fvu),
            format!("{:.3}", layer.cosine),
            format!("{:.3}", layer.norm_ratio),
            format!("{:.1}", layer.l0),
            low.to_string(),
            middle.to_string(),
            high.to_string(),
            percent(layer.n_dead, layer.n_features),
            percent(layer.n_dense, layer.n_features),
        ]
    };
    let mean = vec![
        "mean".to_owned(),
        optional(layers.mean_fvu),
        format!("{:.3}", layers.mean_cosine),
        format!("{:.3}", layers.mean_norm_ratio),
        format!("{:.1}", layers.mean_l0),
        String::new(),
        String::new(),
        String::new(),
        format!("{:.1} %", 100.0 * layers.dead_share),
        format!("{:.1} %", 100.0 * layers.dense_share),
    ];
    let rows = layers.layers.iter().map(of_layer).chain([mean]);
    write_table(text, &[Align::Right; 10], header.map(str::to_owned).to_vec(), rows);
    let _ = writeln!(text, "pooled FVU {}: of all layers as one", optional(layers.pooled_fvu));
    if layers.mean_fvu.is_some_and(|fvu| fvu >= 1.0) {
        text.push_str("features do worse than a constant: is this set of another model?\n");
    }
}

fn write_frequencies(text: &mut String, layers: &Layers) {
    let _ = writeln!(text, "\nfeatures by the part of the {} positions at which they are active", layers.n_positions);
    let mut bins = [0u64; FREQUENCY_EDGES.len()];
    for layer in &layers.layers {
        bins.iter_mut().zip(layer.frequencies).for_each(|(sum, n)| *sum += n);
    }
    let n_dead: usize = layers.layers.iter().map(|layer| layer.n_dead).sum();
    let largest = bins.iter().copied().chain([n_dead as u64]).max().unwrap_or(0).max(1);
    let bar = |n: u64| "#".repeat((n * BAR as u64).div_ceil(largest) as usize);
    let first = bins.iter().position(|&n| n > 0).unwrap_or(bins.len());
    let end = bins.iter().rposition(|&n| n > 0).map_or(first, |last| last + 1);
    let from = |bin: usize| format!("from {}", short(FREQUENCY_EDGES[bin]));
    let dead = vec!["never".to_owned(), n_dead.to_string(), bar(n_dead as u64)];
    let rows = (first..end).map(|bin| vec![from(bin), bins[bin].to_string(), bar(bins[bin])]);
    write_table(text, &[Align::Left, Align::Right, Align::Left], Vec::new(), [dead].into_iter().chain(rows));
}

/// A frequency in two digits: `0.0032`, `0.1`.
fn short(frequency: f64) -> String {
    let digits = (-frequency.log10()).ceil().max(0.0) as usize + 1;
    let text = format!("{frequency:.digits$}");
    text.trim_end_matches('0').to_owned()
}

fn write_replaced(text: &mut String, replaced: &Replaced) {
    text.push_str(
        "\nMLPs replaced by their features, nothing else held; cross-entropy CE and KL in\n\
         nats. Top 1: the likeliest token is the original's. Score: 1 is the original, 0\n\
         is zero (or the mean output) in their place\n",
    );
    let header = ["layer", "CE", "KL", "top 1", "CE zero", "CE mean", "score", "to mean", "KL score"];
    let row = |name: String, of: &Substituted| {
        let Divergence { cross_entropy, kl, agreement } = of.features;
        vec![
            name,
            format!("{cross_entropy:.3}"),
            format!("{kl:.3}"),
            format!("{:.1} %", 100.0 * agreement),
            format!("{:.3}", of.zero.cross_entropy),
            format!("{:.3}", of.mean.cross_entropy),
            optional(of.ce_score),
            optional(of.ce_score_mean),
            optional(of.kl_score),
        ]
    };
    let mut original = vec![String::new(); header.len()];
    let (name, cross_entropy) = match &replaced.all_layers {
        Some(_) => ("none", replaced.cross_entropy),
        None => ("none", replaced.layer_cross_entropy),
    };
    (original[0], original[1]) = (name.to_owned(), format!("{cross_entropy:.3}"));
    let alone = replaced.one_layer.iter().enumerate().map(|(layer, of)| row(layer.to_string(), of));
    let all = replaced.all_layers.iter().map(|of| row("all".to_owned(), of));
    let rows = [original].into_iter().chain(all).chain(alone);
    write_table(text, &[Align::Right; 9], header.map(str::to_owned).to_vec(), rows);
    let (all, alone) = (replaced.n_positions, replaced.n_layer_positions);
    let _ = match (all, alone) {
        (all, 0) => writeln!(text, "at {all} positions"),
        (0, alone) => writeln!(text, "at {alone} positions"),
        _ => writeln!(
            text,
            "none and all at {all} positions; one layer at the first {alone}, where none: {:.3}",
            replaced.layer_cross_entropy
        ),
    };
}

fn write_graphs(text: &mut String, graphs: &GraphQuality) {
    let n_tokens = range(graphs.prompts.iter().map(|prompt| prompt.n_tokens));
    let _ = writeln!(text, "\ngraphs of {} prompts of {n_tokens} tokens", graphs.prompts.len());
    let header = ["score", "mean", "lower quartile", "median", "upper quartile"].map(str::to_owned).to_vec();
    let row = |name: &str, spread: &Spread| {
        let values = [spread.mean, spread.lower_quartile, spread.median, spread.upper_quartile];
        [name.to_owned()].into_iter().chain(values.map(|value| format!("{value:.3}"))).collect()
    };
    let rows = [row("replacement", &graphs.replacement), row("completeness", &graphs.completeness)];
    let aligns = [Align::Left, Align::Right, Align::Right, Align::Right, Align::Right];
    write_table(text, &aligns, header, rows.into_iter());
}

fn write_ablations(text: &mut String, ablations: &AblationQuality) {
    let n_ablated: usize = ablations.prompts.iter().map(|prompt| prompt.n_ablated).sum();
    let _ = writeln!(
        text,
        "\ninfluence against ablation, {n_ablated} features of {} prompts:\n  \
         Spearman's correlation {}, with attention frozen {}",
        ablations.prompts.len(),
        optional(ablations.free),
        optional(ablations.frozen_attention)
    );
}

/// `32`, or `9 to 32`.
fn range(values: impl Iterator<Item = usize> + Clone) -> String {
    match (values.clone().min().unwrap_or(0), values.max().unwrap_or(0)) {
        (low, high) if low == high => low.to_string(),
        (low, high) => format!("{low} to {high}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequencies_are_short() {
        let all: Vec<String> = FREQUENCY_EDGES.iter().map(|&edge| short(edge)).collect();
        assert_eq!(all[..4], ["0.000001", "0.0000032", "0.00001", "0.000032"]);
        assert_eq!(all[10..], ["0.1", "0.32"]);
    }
}
