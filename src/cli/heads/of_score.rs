//! Where heads look in a prompt, and what one of their scores is made of.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use crate::graph::NodeId;
use crate::heads::{HeadPattern, PairTable};
use crate::job::Job;
use crate::picture::HeatMap;
use crate::text::terminal;
use crate::tracer::{ExplainedScore, TokenizedPrompt, Tracer};
use crate::weights::Tokenizer;
use crate::{Error, Result};

use super::super::summary::{Align, cut, percent, token_at, write_table};
use super::{HeadsArgs, HeadsFormat, parse_score, print_json, print_text};

/// Keys that a line shows of what a position looks at.
const MAX_KEYS: usize = 4;

/// Larger tables than this do not fit a terminal: their positions are listed by their sums.
const MAX_COLUMNS: usize = 8;

/// The group of the constants.
const BIASES: usize = 3;

/// Groups of features by label, besides the fixed ones.
const MAX_LABELS: usize = 6;

fn tokens(tokenizer: &Tokenizer, prompt: &TokenizedPrompt) -> Vec<String> {
    prompt.tokens.iter().map(|&token| tokenizer.token(token)).collect()
}

#[derive(Debug, Serialize)]
struct PatternJson {
    layer: u32,
    head: u32,
    /// Row by row: the query's attention to every key.
    attention: Vec<Vec<f32>>,
}

#[derive(Debug, Serialize)]
struct PatternsJson {
    prompt: String,
    prompt_tokens: Vec<String>,
    patterns: Vec<PatternJson>,
}

pub(super) fn run_patterns(args: &HeadsArgs, prompt: &str) -> Result<()> {
    let heads = args.heads()?;
    if args.picture.is_some() && heads.len() > 1 {
        return Err(Error::Contradiction { first: "--picture", second: "several heads: it shows one" });
    }
    let model = args.setup.open_model()?;
    let (prompt, patterns) = model.head_patterns(prompt, &heads, &Job::default())?;
    let tokens = tokens(&model.tokenizer, &prompt);
    if args.format == HeadsFormat::Json {
        let json = |pattern: &HeadPattern| PatternJson {
            layer: pattern.head.layer,
            head: pattern.head.head,
            attention: pattern.attention.clone(),
        };
        let patterns = patterns.iter().map(json).collect();
        print_json(&PatternsJson { prompt: prompt.text.clone(), prompt_tokens: tokens.clone(), patterns })?;
    } else {
        let mut text = String::new();
        for pattern in &patterns {
            write_pattern(&mut text, pattern, &tokens);
        }
        print_text(&text)?;
    }
    let map = |pattern: &HeadPattern| {
        // The first query above, as text is read; rows are listed from below.
        let values = pattern.attention.iter().rev().flatten().map(|&p| f64::from(p)).collect();
        HeatMap {
            title: format!("Where head {} looks", pattern.head),
            quantity: "attention of every token (row) to those before it (column)".into(),
            rows: tokens.iter().rev().cloned().collect(),
            columns: tokens.clone(),
            values,
        }
    };
    match patterns.first() {
        Some(first) => args.draw(|| map(first)),
        None => Ok(()),
    }
}

fn write_pattern(text: &mut String, pattern: &HeadPattern, tokens: &[String]) {
    let _ =
        writeln!(text, "{}head {}: what each token looks at", if text.is_empty() { "" } else { "\n" }, pattern.head);
    let rows = pattern.attention.iter().enumerate().map(|(query, attention)| {
        let mut keys: Vec<(usize, f32)> = attention.iter().copied().enumerate().filter(|(_, p)| *p >= 0.005).collect();
        keys.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let keys = keys.iter().take(MAX_KEYS).map(|&(key, p)| format!("{} {p:.2}", token_at(&tokens[key], key as u32)));
        vec![token_at(&tokens[query], query as u32), keys.collect::<Vec<_>>().join("  ")]
    });
    write_table(text, &[Align::Left, Align::Left], vec!["token".into(), "looks at".into()], rows);
}

/// One cell of a table.
#[derive(Debug, Serialize)]
struct CellJson {
    query: String,
    key: String,
    amount: f64,
}

/// What `--format json` prints of a score.
#[derive(Debug, Serialize)]
struct ScoreJson {
    prompt: String,
    prompt_tokens: Vec<String>,
    score: String,
    value: f64,
    /// What all pairs and constants add up to.
    pairs_add_up_to: f64,
    n_sources: usize,
    sum_of_sizes: f64,
    /// By source position, constants last: row by row, the query's position first. `[n_pos + 1][n_pos + 1]`
    by_position: Vec<Vec<f64>>,
    by_group: Vec<CellJson>,
    largest_group_pairs: Vec<CellJson>,
}

/// A score with its tables.
struct Tables {
    explained: ExplainedScore,
    value: f64,
    sum_of_sizes: f64,
    by_position: PairTable,
    groups: Vec<String>,
    by_group: PairTable,
    /// The groups of the largest cell, of which the pairs are.
    largest: (usize, usize),
    pairs: Vec<(String, String, f32)>,
}

pub(super) fn run_score(args: &HeadsArgs, prompt: &str, score: &str) -> Result<()> {
    let score = parse_score(score)?;
    let tracer = args.setup.open(None)?;
    let (prompt, explained) = tracer.score_pairs(prompt, score, args.versus(), &Job::default())?;
    let tokens = tokens(tracer.tokenizer(), &prompt);
    let tables = Tables::new(&tracer, explained, tokens.len(), args.top)?;
    let name = format!("{}{}", tables.explained.frozen.score, tables.explained.frozen.versus);
    if args.format == HeadsFormat::Json {
        let rows = |table: &PairTable| {
            (0..table.n_groups).map(|q| (0..table.n_groups).map(|k| table.amount(q, k)).collect()).collect()
        };
        let n = tables.by_group.n_groups;
        let cells = (0..n).flat_map(|q| (0..n).map(move |k| (q, k))).map(|(q, k)| CellJson {
            query: tables.groups[q].clone(),
            key: tables.groups[k].clone(),
            amount: tables.by_group.amount(q, k),
        });
        let pairs = tables.pairs.iter();
        let pairs = pairs.map(|(query, key, amount)| CellJson {
            query: query.clone(),
            key: key.clone(),
            amount: f64::from(*amount),
        });
        print_json(&ScoreJson {
            prompt: prompt.text.clone(),
            prompt_tokens: tokens.clone(),
            score: name.clone(),
            value: tables.explained.frozen.value,
            pairs_add_up_to: tables.value,
            n_sources: tables.explained.pairs.sources.len(),
            sum_of_sizes: tables.sum_of_sizes,
            by_position: rows(&tables.by_position),
            by_group: cells.collect(),
            largest_group_pairs: pairs.collect(),
        })?;
    } else {
        print_text(&score_text(&name, &tables, &tokens, args.top))?;
    }
    args.draw(|| {
        let n = tables.by_position.n_groups;
        let labels: Vec<String> = tokens.iter().cloned().chain(["biases".to_owned()]).collect();
        HeatMap {
            title: format!("What the score {name} is made of"),
            quantity: "sources of the query by position (rows) times sources of the key (columns)".into(),
            rows: labels.iter().rev().cloned().collect(),
            columns: labels,
            values: (0..n)
                .rev()
                .flat_map(|q| (0..n).map(move |k| (q, k)))
                .map(|(q, k)| tables.by_position.amount(q, k))
                .collect(),
        }
    })
}

impl Tables {
    fn new(tracer: &Tracer, explained: ExplainedScore, n_pos: usize, top: usize) -> Result<Self> {
        let pairs = &explained.pairs;
        let by_position: Vec<usize> =
            pairs.sources.iter().map(|source| source.and_then(NodeId::pos).map_or(n_pos, |pos| pos as usize)).collect();
        let by_position = pairs.by_group(&by_position, n_pos + 1)?;
        // Features by label, of those labels that give most; the rest by kind.
        let label = |source: &Option<NodeId>| match source {
            Some(NodeId::Feature { layer, feature, .. }) => {
                tracer.replacement().transcoders.labels.get(*layer, *feature).map(cut)
            }
            _ => None,
        };
        let mut labels: BTreeMap<String, usize> = BTreeMap::new();
        for source in &pairs.sources {
            if let Some(label) = label(source) {
                let next = labels.len();
                labels.entry(label).or_insert(next);
            }
        }
        let of_label: Vec<usize> =
            pairs.sources.iter().map(|source| label(source).map_or(labels.len(), |label| labels[&label])).collect();
        let sums = pairs.by_group(&of_label, labels.len() + 1)?;
        let mut strongest: Vec<(&String, usize)> = labels.iter().map(|(label, &at)| (label, at)).collect();
        let size = |at: usize| sums.of_query(at).abs().max(sums.of_key(at).abs());
        strongest.sort_by(|a, b| size(b.1).total_cmp(&size(a.1)).then(a.0.cmp(b.0)));
        strongest.truncate(MAX_LABELS);
        let mut groups: Vec<String> =
            ["tokens", "errors", if strongest.is_empty() { "features" } else { "other features" }, "biases"]
                .map(str::to_owned)
                .to_vec();
        groups.extend(strongest.iter().map(|(label, _)| (*label).clone()));
        let group_of: Vec<usize> = pairs
            .sources
            .iter()
            .zip(&of_label)
            .map(|(source, of_label)| match source {
                Some(NodeId::Token { .. }) => 0,
                Some(NodeId::Error { .. }) => 1,
                None => BIASES,
                _ => strongest.iter().position(|(_, at)| at == of_label).map_or(2, |place| 4 + place),
            })
            .collect();
        let by_group = pairs.by_group(&group_of, groups.len())?;
        // Biases have but one pair with each other.
        let cells = (0..groups.len()).flat_map(|q| (0..groups.len()).map(move |k| (q, k)));
        let largest = cells
            .filter(|&cell| cell != (BIASES, BIASES))
            .max_by(|a, b| by_group.amount(a.0, a.1).abs().total_cmp(&by_group.amount(b.0, b.1).abs()))
            .unwrap_or((0, 0));
        let name = |at: usize| pairs.sources[at].map_or_else(|| "biases".to_owned(), |node| node.to_string());
        let strongest_pairs = pairs.strongest(top, |query, key| (group_of[query], group_of[key]) == largest)?;
        let strongest_pairs =
            strongest_pairs.iter().map(|pair| (name(pair.query), name(pair.key), pair.amount)).collect();
        let (value, sum_of_sizes) = (pairs.value()?, pairs.sum_of_sizes()?);
        Ok(Tables { value, sum_of_sizes, by_position, groups, by_group, largest, pairs: strongest_pairs, explained })
    }
}

fn score_text(name: &str, tables: &Tables, tokens: &[String], top: usize) -> String {
    let frozen = &tables.explained.frozen;
    let n_sources = tables.explained.pairs.sources.len();
    let at = |pos: usize| token_at(&tokens[pos], pos as u32);
    let mut text = format!(
        "score       {name}: {} looks at {}, {:+.4}\n",
        at(frozen.score.query),
        at(frozen.score.key),
        frozen.value
    );
    let pattern = frozen.sides.pattern(&frozen.scores);
    let _ = writeln!(text, "attention   {:.3}", pattern[frozen.score.key]);
    let ratio = if tables.sum_of_sizes > 0.0 { frozen.value.abs() / tables.sum_of_sizes } else { 0.0 };
    let _ = writeln!(
        text,
        "pairs       {n_sources} sources of either side; pairs and constants add up to {:+.4},\n            \
         their sizes to {:.1}: {:.2} % does not cancel",
        tables.value,
        tables.sum_of_sizes,
        100.0 * ratio
    );
    let n = tables.by_position.n_groups;
    let of_position = |pos: usize| if pos == tokens.len() { "biases".to_owned() } else { at(pos) };
    for (side, sums) in [
        ("query", (0..n).map(|p| tables.by_position.of_query(p)).collect::<Vec<_>>()),
        ("key", (0..n).map(|p| tables.by_position.of_key(p)).collect()),
    ] {
        let _ = writeln!(text, "\nwhat the {side} is made of, by position of the sources");
        write_sums(&mut text, sums.into_iter().enumerate().map(|(pos, sum)| (of_position(pos), sum)).collect(), top);
    }
    text.push_str("\nposition × position: sources of the query, then of the key\n");
    write_cells(&mut text, &tables.by_position, &(0..n).map(of_position).collect::<Vec<_>>(), top);
    text.push_str("\ngroup × group\n");
    let groups: Vec<String> = tables.groups.iter().map(|group| terminal(group)).collect();
    write_cells(&mut text, &tables.by_group, &groups, top);
    let (query, key) = tables.largest;
    let _ = writeln!(text, "\nlargest pairs of {} and {}", groups[query], groups[key]);
    let rows =
        tables.pairs.iter().map(|(query, key, amount)| vec![format!("{amount:+.4}"), query.clone(), key.clone()]);
    write_table(
        &mut text,
        &[Align::Right, Align::Left, Align::Left],
        ["amount", "query", "key"].map(str::to_owned).to_vec(),
        rows,
    );
    text
}

fn write_sums(text: &mut String, mut sums: Vec<(String, f64)>, top: usize) {
    sums.retain(|(_, sum)| *sum != 0.0);
    sums.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    let rows = sums.iter().take(top).map(|(name, sum)| vec![format!("{sum:+.2}"), name.clone()]);
    write_table(text, &[Align::Right, Align::Left], Vec::new(), rows);
}

/// The whole table where it fits, else its largest cells.
fn write_cells(text: &mut String, table: &PairTable, names: &[String], top: usize) {
    let shown: Vec<usize> = (0..table.n_groups)
        .filter(|&at| (0..table.n_groups).any(|other| table.amount(at, other) != 0.0 || table.amount(other, at) != 0.0))
        .collect();
    if shown.len() <= MAX_COLUMNS && names.iter().all(|name| name.chars().count() <= 14) {
        let header = std::iter::once(String::new()).chain(shown.iter().map(|&at| names[at].clone())).collect();
        let rows = shown.iter().map(|&query| {
            let cells = shown.iter().map(|&key| format!("{:+.2}", table.amount(query, key)));
            std::iter::once(names[query].clone()).chain(cells).collect()
        });
        let aligns: Vec<Align> = std::iter::once(Align::Left).chain(shown.iter().map(|_| Align::Right)).collect();
        write_table(text, &aligns, header, rows);
        return;
    }
    let mut cells: Vec<(usize, usize)> = shown.iter().flat_map(|&q| shown.iter().map(move |&k| (q, k))).collect();
    cells.retain(|&(q, k)| table.amount(q, k) != 0.0);
    cells.sort_by(|a, b| table.amount(b.0, b.1).abs().total_cmp(&table.amount(a.0, a.1).abs()).then(a.cmp(b)));
    let all: f64 = cells.iter().map(|&(q, k)| table.amount(q, k).abs()).sum();
    let rows = cells.iter().take(top).map(|&(q, k)| {
        let amount = table.amount(q, k);
        vec![
            format!("{amount:+.2}"),
            percent(amount.abs() / all.max(f64::MIN_POSITIVE)),
            names[q].clone(),
            names[k].clone(),
        ]
    });
    let header = ["amount", "of all sizes", "query", "key"].map(str::to_owned).to_vec();
    write_table(text, &[Align::Right, Align::Right, Align::Left, Align::Left], header, rows);
}
