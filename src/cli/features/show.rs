//! `circuitscope features show`.

use std::fmt::Write;

use clap::Args;

use super::import::provenance_text;
use crate::Result;
use crate::cli::setup::{GraphSource, SetupArgs};
use crate::cli::summary::{Align, cut, percent, write_table};
use crate::cli::terminal::color_on_stdout;
use crate::cli::{Format, print_data, print_json};
use crate::features::{
    FeatureId, FeatureReport, FeatureSet, N_INTERVALS, ReportExample, ReportFeature, ReportToken, ReportWeights,
    report, report_weights,
};
use crate::text::{quoted, shortened, terminal};

/// Columns of a terminal.
const COLUMNS: usize = 80;

/// Columns of an example before its text.
const VALUE_COLUMNS: usize = 10;

/// Columns of an example's text before its own token, at most.
const BEFORE_COLUMNS: usize = 42;

/// Logits and features that weights are shown of.
const N_WEIGHTS: usize = 10;

/// Columns of the longest bar of the histogram.
const BAR_COLUMNS: usize = 40;

/// Longer tokens are cut in tables.
const TOKEN_COLUMNS: usize = 18;

/// Backgrounds of tokens by activation, weak to strong: colours of the 256 that terminals have.
const SHADES: [u8; 5] = [230, 229, 222, 215, 208];

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// The folder of features, or the one of the transcoders that it is in; `atlas` for those of the embedded model
    folder: String,
    /// The feature, LAYER_FEATURE
    feature: FeatureId,
    /// Strongest examples that are shown
    #[arg(long, value_name = "N", default_value_t = 8)]
    examples: usize,
    /// Sampled examples that are shown of each interval of the activation
    #[arg(long, value_name = "N", default_value_t = 2)]
    per_interval: usize,
    /// Show which features of earlier layers it reads and of later layers it feeds, by weights
    #[arg(long)]
    weights: bool,
    #[command(flatten)]
    setup: SetupArgs,
    /// How to print
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

/// Shows a feature.
///
/// # Errors
/// A folder that cannot be read, a feature that does not exist.
pub(super) fn run(args: &ShowArgs) -> Result<()> {
    let set = FeatureSet::open_named(&args.folder)?;
    let mut report = report(&set, args.feature)?;
    report.weights = weights(args, &set)?;
    match args.format {
        Format::Json => print_json(&report),
        Format::Text => {
            if let Some(imported) = &set.manifest().imported {
                args.setup.note(&format!("from {}", provenance_text(imported)));
            }
            print_data(&report_text(&report, args))
        }
    }
}

/// What weights say. The model that features were collected with may be elsewhere: then the rest is shown without it, unless
/// it was asked for.
fn weights(args: &ShowArgs, set: &FeatureSet) -> Result<Option<ReportWeights>> {
    let opened = args.setup.open_with(None, Some(&GraphSource::of_features(set)));
    let found =
        opened.and_then(|tracer| report_weights(tracer.replacement(), set, args.feature, N_WEIGHTS, args.weights));
    match found {
        Err(error) if !args.weights && !args.setup.is_given() => {
            args.setup.note(&format!("what it pushes needs the model: {error}"));
            Ok(None)
        }
        found => found.map(Some),
    }
}

fn report_text(report: &FeatureReport, args: &ShowArgs) -> String {
    let mut text = String::new();
    let label = report.label.as_deref().map(|label| format!("  {}", cut(label))).unwrap_or_default();
    let _ = writeln!(text, "feature {}{label}", report.feature);
    if let Some(score) = &report.label_score {
        let _ = writeln!(
            text,
            "label       precision {:.2}, recall {:.2}, F1 {:.2} on held-out text",
            score.precision, score.recall, score.f1
        );
    }
    let share = f64::from(report.count) / report.n_positions.max(1) as f64;
    let (count, positions) = (thousands(report.count.into()), thousands(report.n_positions));
    let _ = writeln!(
        text,
        "active on   {count} of {positions} positions ({}), in {} sequences",
        frequency(share),
        thousands(report.n_sequences.into())
    );
    if report.count == 0 {
        text.push_str("            never, so there is nothing to show; a longer text may have it\n");
        return text;
    }
    let _ = writeln!(
        text,
        "activation  mean {:.3}, median {:.2}, 99 % below {:.2}, largest {:.3}",
        report.mean, report.median, report.quantile_99, report.max
    );
    if let Some(weights) = &report.weights {
        write_weights(&mut text, weights);
    }
    write_tokens(&mut text, report);
    write_histogram(&mut text, report);
    let color = color_on_stdout();
    text.push_str("\nstrongest examples\n");
    let top: Vec<&ReportExample> =
        report.examples.iter().filter(|example| example.is_top).take(args.examples).collect();
    write_examples(&mut text, &top, report.max, color);
    for interval in (1..=N_INTERVALS).rev() {
        let samples = report.examples.iter().filter(|example| example.interval == Some(interval));
        let samples: Vec<&ReportExample> = samples.take(args.per_interval).collect();
        if !samples.is_empty() {
            let _ = writeln!(text, "\nsampled from interval {interval} of {N_INTERVALS}");
            write_examples(&mut text, &samples, report.max, color);
        }
    }
    text
}

/// Logits in two lines each, features in tables.
fn write_weights(text: &mut String, weights: &ReportWeights) {
    for (name, list) in [("pushes up", &weights.top), ("pushes down", &weights.bottom)] {
        let mut line = format!("{name:<12}");
        for push in list {
            let shown = format!("{} {:.2}", short(&push.text), push.value);
            let gap = if line.chars().count() == 12 { "" } else { ", " };
            if line.chars().count() + gap.len() + shown.chars().count() > COLUMNS {
                break;
            }
            line.push_str(gap);
            line.push_str(&shown);
        }
        let _ = writeln!(text, "{line}");
    }
    for (name, list) in [("reads", &weights.reads), ("feeds", &weights.feeds)] {
        let Some(list) = list else { continue };
        let _ = writeln!(text, "\n{name}, by weights");
        if list.is_empty() {
            text.push_str("  no feature: there is no such layer\n");
        }
        let label = |f: &ReportFeature| f.label.as_deref().map(cut).unwrap_or_default();
        let rows = list.iter().map(|f| vec![f.feature.clone(), format!("{:.3}", f.weight), label(f)]);
        write_table(text, &[Align::Left, Align::Right, Align::Left], Vec::new(), rows);
    }
}

/// A token in quotes, cut where it is long.
fn short(token: &str) -> String {
    shortened(&quoted(token), TOKEN_COLUMNS)
}

fn write_tokens(text: &mut String, report: &FeatureReport) {
    let sampled = match u64::from(report.count) > u64::from(report.n_sampled) {
        true => format!(" (of {} sampled activations)", report.n_sampled),
        false => String::new(),
    };
    let _ = writeln!(text, "\ntokens{sampled}");
    let token = |token: &ReportToken| short(&token.text);
    let n = report.tokens.len().max(report.before.len());
    let cells = |list: &[ReportToken], i: usize| -> [String; 3] {
        list.get(i).map_or_else(Default::default, |t| [percent(t.share), format!("{:.3}", t.mean), token(t)])
    };
    let rows = (0..n).map(|i| {
        let ([share, mean, on], [share_before, _, before]) = (cells(&report.tokens, i), cells(&report.before, i));
        vec![share, mean, on, share_before, before]
    });
    let aligns = [Align::Right, Align::Right, Align::Left, Align::Right, Align::Left];
    write_table(text, &aligns, ["share", "mean", "on", "share", "after"].map(str::to_owned).to_vec(), rows);
}

fn write_histogram(text: &mut String, report: &FeatureReport) {
    text.push_str("\nactivations\n");
    // Two bins a row: half of a doubling.
    let rows: Vec<(f32, f32, u32)> = report
        .histogram
        .chunks(2)
        .map(|bins| (bins[0].start, bins[bins.len() - 1].end, bins.iter().map(|bin| bin.count).sum()))
        .collect();
    let most = rows.iter().map(|&(_, _, n)| n).max().unwrap_or(1).max(1);
    let rows = rows.iter().map(|&(start, end, n)| {
        let eighths = (n as usize * 8 * BAR_COLUMNS).div_ceil(most as usize);
        let part = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'][eighths % 8];
        let bar: String = std::iter::repeat_n('█', eighths / 8).chain([part]).collect();
        vec![number(start), "to".to_owned(), number(end), thousands(n.into()), bar]
    });
    let aligns = [Align::Right, Align::Left, Align::Right, Align::Right, Align::Left];
    write_table(text, &aligns, Vec::new(), rows);
}

/// An activation in four or so columns.
fn number(value: f32) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 1.0 || value == 0.0 => format!("{value:.2}"),
        value => format!("{value:.4}"),
    }
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

fn frequency(share: f64) -> String {
    let percent = 100.0 * share;
    if percent >= 0.1 || share == 0.0 { format!("{percent:.1} %") } else { format!("{percent:.4} %") }
}

/// Examples one below the other, their own tokens too.
fn write_examples(text: &mut String, examples: &[&ReportExample], max: f32, color: bool) {
    let before = |example: &ReportExample| -> usize {
        example.tokens[..example.at].iter().map(|token| terminal(token).chars().count()).sum()
    };
    let column = examples.iter().map(|example| before(example)).max().unwrap_or(0).min(BEFORE_COLUMNS);
    examples.iter().for_each(|example| write_example(text, example, column, max, color));
}

/// One line: the activation, and the text with the example's own token, at a column of the text, marked.
fn write_example(text: &mut String, example: &ReportExample, column: usize, max: f32, color: bool) {
    let marks = if color { 0 } else { 2 };
    let width = COLUMNS - VALUE_COLUMNS - marks;
    let shown: Vec<String> = example.tokens.iter().map(|token| terminal(token)).collect();
    let len = |i: usize| shown[i].chars().count();
    let own = len(example.at).min(width);
    // Tokens that fit, from the example's own outwards; one that does not fit whole is cut at its far end.
    let column = column.min(width - own);
    let mut left = column;
    let mut pieces: Vec<(usize, String)> = vec![(example.at, shown[example.at].chars().take(width).collect())];
    for i in (0..example.at).rev() {
        if left == 0 {
            break;
        }
        let skipped = len(i).saturating_sub(left);
        left -= len(i) - skipped;
        pieces.insert(0, (i, shown[i].chars().skip(skipped).collect()));
    }
    let mut right = width - own - column;
    for (i, token) in shown.iter().enumerate().skip(example.at + 1) {
        if right == 0 {
            break;
        }
        let taken: String = token.chars().take(right).collect();
        right -= taken.chars().count();
        pieces.push((i, taken));
    }
    let _ = write!(text, "{:>width$.3}  {:left$}", example.value, "", width = VALUE_COLUMNS - 2);
    for (i, piece) in pieces {
        let activation = example.activations[i];
        let is_own = i == example.at;
        match color {
            true if activation > 0.0 => {
                let shade = (activation / max.max(f32::MIN_POSITIVE) * SHADES.len() as f32) as usize;
                let shade = SHADES[shade.min(SHADES.len() - 1)];
                let bold = if is_own { "1;" } else { "" };
                let _ = write!(text, "\x1b[{bold}38;5;16;48;5;{shade}m{piece}\x1b[0m");
            }
            false if is_own => {
                let _ = write!(text, "«{piece}»");
            }
            _ => text.push_str(&piece),
        }
    }
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}
