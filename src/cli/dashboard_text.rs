//! A feature's dashboard as text, and single examples of what features are active on.

use std::fmt::Write;

use super::summary::{Align, cut, percent, token_at, write_table};
use super::terminal::{color_on_stdout, columns};
use crate::circuits::NodeExample;
use crate::features::{
    FeatureReport, N_INTERVALS, ReportExample, ReportFeature, ReportHere, ReportPush, ReportToken, ReportWeights,
};
use crate::text::{quoted, shortened, terminal};

/// Columns of an example before its text.
const VALUE_COLUMNS: usize = 10;

/// Columns that the example of a node is indented by.
const BELOW_COLUMNS: usize = 8;

/// Columns of an example's text before its own token, at most.
const BEFORE_COLUMNS: usize = 42;

/// Columns of the longest bar of the histogram.
const BAR_COLUMNS: usize = 40;

/// Longer tokens are cut in tables.
const TOKEN_COLUMNS: usize = 18;

/// Backgrounds of tokens by activation, weak to strong: colours of the 256 that terminals have.
const SHADES: [u8; 5] = [230, 229, 222, 215, 208];

/// How much of a feature is shown.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShownParts {
    /// Strongest examples.
    pub examples: usize,
    /// Examples of each interval of the activation.
    pub per_interval: usize,
    /// Rows of the tables of tokens, and of what it reads and feeds.
    pub rows: usize,
    pub has_histogram: bool,
}

impl Default for ShownParts {
    fn default() -> Self {
        Self { examples: 8, per_interval: 2, rows: 10, has_histogram: true }
    }
}

/// A feature as it is printed, coloured where stdout is.
pub(super) fn dashboard_text(report: &FeatureReport, shown: &ShownParts) -> String {
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
        "activation  mean {:.3}, median {:.2}, 99 % < {:.2}, at most {:.3}",
        report.mean, report.median, report.quantile_99, report.max
    );
    if let Some(weights) = &report.weights {
        write_pushes(&mut text, ["pushes up", "pushes down"], [&weights.top, &weights.bottom]);
    }
    report.here.iter().for_each(|here| write_here(&mut text, here));
    if let Some(weights) = &report.weights {
        write_neighbors(&mut text, weights, shown.rows);
    }
    write_tokens(&mut text, report, shown.rows);
    if shown.has_histogram {
        write_histogram(&mut text, report);
    }
    let color = color_on_stdout();
    text.push_str("\nstrongest examples\n");
    let top: Vec<&ReportExample> =
        report.examples.iter().filter(|example| example.is_top).take(shown.examples).collect();
    write_examples(&mut text, &top, report.max, color);
    for interval in (1..=N_INTERVALS).rev() {
        let samples = report.examples.iter().filter(|example| example.interval == Some(interval));
        let samples: Vec<&ReportExample> = samples.take(shown.per_interval).collect();
        if !samples.is_empty() {
            let _ = writeln!(text, "\nsampled from interval {interval} of {N_INTERVALS}");
            write_examples(&mut text, &samples, report.max, color);
        }
    }
    text
}

/// The feature at a position of a prompt.
fn write_here(text: &mut String, here: &ReportHere) {
    let _ = writeln!(
        text,
        "{:<12}activation {:.3} at {}, above {:.0} % of those on the text",
        "here",
        here.activation,
        token_at(&here.text, here.pos as u32),
        (100.0 * here.share_below).floor()
    );
    let names = ["up", "down"].map(|way| format!("{way} at @{}", here.at));
    write_pushes(text, [&names[0], &names[1]], [&here.top, &here.bottom]);
}

/// Logits that are raised and lowered, as many as fit a line each.
fn write_pushes(text: &mut String, names: [&str; 2], lists: [&Vec<ReportPush>; 2]) {
    for (name, list) in names.into_iter().zip(lists) {
        let mut line = format!("{name:<11} ");
        for (i, push) in list.iter().enumerate() {
            let shown = format!("{} {:.2}", short(&push.text), push.value);
            let gap = if i == 0 { "" } else { ", " };
            if line.chars().count() + gap.len() + shown.chars().count() > columns() {
                break;
            }
            line.push_str(gap);
            line.push_str(&shown);
        }
        let _ = writeln!(text, "{line}");
    }
}

/// The features that it reads and feeds, in tables.
fn write_neighbors(text: &mut String, weights: &ReportWeights, n: usize) {
    for (name, list) in [("reads", &weights.reads), ("feeds", &weights.feeds)] {
        let Some(list) = list else { continue };
        let _ = writeln!(text, "\n{name}, by weights");
        if list.is_empty() {
            text.push_str("  no feature: there is no such layer\n");
        }
        let label = |f: &ReportFeature| f.label.as_deref().map(cut).unwrap_or_default();
        let rows = list.iter().take(n).map(|f| vec![f.feature.clone(), format!("{:.3}", f.weight), label(f)]);
        write_table(text, &[Align::Left, Align::Right, Align::Left], Vec::new(), rows);
    }
}

/// A token in quotes, cut where it is long.
fn short(token: &str) -> String {
    shortened(&quoted(token), TOKEN_COLUMNS)
}

fn write_tokens(text: &mut String, report: &FeatureReport, n: usize) {
    let sampled = match u64::from(report.count) > u64::from(report.n_sampled) {
        true => format!(" (of {} sampled activations)", report.n_sampled),
        false => String::new(),
    };
    let _ = writeln!(text, "\ntokens{sampled}");
    let token = |token: &ReportToken| short(&token.text);
    let n = report.tokens.len().max(report.before.len()).min(n);
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
    let lines: Vec<ExampleLine> = examples
        .iter()
        .map(|e| ExampleLine { value: e.value, tokens: &e.tokens, activations: &e.activations, at: e.at })
        .collect();
    let column = lines.iter().map(ExampleLine::columns_before).max().unwrap_or(0);
    lines.iter().for_each(|line| write_example(text, line, column, columns(), max, color));
}

/// A place where a feature is active.
struct ExampleLine<'a> {
    value: f32,
    tokens: &'a [String],
    /// Of each token; empty where they are not coloured.
    activations: &'a [f32],
    at: usize,
}

impl ExampleLine<'_> {
    /// Columns of the text before its own token, as many as are shown.
    fn columns_before(&self) -> usize {
        let all: usize = self.tokens[..self.at].iter().map(|token| terminal(token).chars().count()).sum();
        all.min(BEFORE_COLUMNS)
    }
}

/// The example of a node, in one line below it.
pub(super) fn example_below(example: &NodeExample) -> String {
    let mut text = " ".repeat(BELOW_COLUMNS);
    let line = ExampleLine { value: example.value, tokens: &example.tokens, activations: &[], at: example.at };
    let width = columns() - BELOW_COLUMNS;
    write_example(&mut text, &line, line.columns_before(), width, example.value, false);
    text
}

/// One line of so many columns: the activation, and the text with the example's own token, at a column of the text, marked.
fn write_example(text: &mut String, example: &ExampleLine, column: usize, width: usize, max: f32, color: bool) {
    let marks = if color { 0 } else { 2 };
    let width = width - VALUE_COLUMNS - marks;
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
        let activation = example.activations.get(i).copied().unwrap_or_default();
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
