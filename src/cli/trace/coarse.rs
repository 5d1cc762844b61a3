//! `trace --coarse`: where to look first in a long prompt.

use std::fmt::Write;
use std::io::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use super::super::summary::{Align, percent, plural, write_table};
use super::super::{Format, note, print_json, print_text};
use super::TraceArgs;
use crate::Result;
use crate::attribution::{CoarseMap, CoarseSpan, OpenChoice, TargetMap, requested};
use crate::circuits::automatic_names;
use crate::export::replace_file;
use crate::job::Job;
use crate::picture::{HeatMap, heat_map};
use crate::prune::PruneSettings;
use crate::replacement::spans;
use crate::text::{Cells, csv_cell, quoted, shortened, shortened_middle};
use crate::tracer::{TokenizedPrompt, Tracer};

/// Blocks of layers and spans of tokens that fit 80 columns and a screen.
const SIZE: (usize, usize) = (6, 20);

/// Strongest positions that are named of each span.
const N_STRONGEST: usize = 3;

/// Positions that it is proposed to open: a graph of these takes seconds.
const N_TO_OPEN: usize = 32;

const MAX_PROMPT_CHARS: usize = 400;

/// Targets that a picture names.
const N_NAMED: usize = 3;

const MAX_SPAN_CHARS: usize = 15;

/// Shares below this are not shown: half of the last digit.
const FAINT: f64 = 0.0005;

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report {
    prompt: String,
    n_tokens: usize,
    /// What is explained.
    targets: Vec<String>,
    /// Layers `[first, end)` of each block.
    layers: Vec<[usize; 2]>,
    spans: Vec<SpanReport>,
    /// The strongest positions, as `--open-positions` takes them.
    open_positions: String,
    /// What they give of all.
    open_share: f64,
    files: Vec<PathBuf>,
}

#[derive(Debug, Serialize)]
struct SpanReport {
    positions: [usize; 2],
    text: String,
    features: Vec<f64>,
    errors: Vec<f64>,
    tokens: f64,
    share: f64,
    strongest: Vec<PositionReport>,
}

#[derive(Debug, Serialize)]
struct PositionReport {
    position: usize,
    token: String,
    share: f64,
}

/// Prints, draws and writes the map of a prompt.
///
/// # Errors
/// Targets that do not fit the model, those of the forward pass, files that cannot be written.
pub(super) fn run(args: &TraceArgs, tracer: &Tracer, prompt: TokenizedPrompt, job: &Job) -> Result<()> {
    let options = args.options(tracer)?;
    let name = args.slug.clone().unwrap_or_else(|| {
        let meta = requested(tracer.replacement(), &prompt.tokens, &options);
        let (plain, with_digits) = automatic_names(&meta, &prompt.text, &PruneSettings::default());
        plain.unwrap_or(with_digits)
    });
    let text = prompt.text.clone();
    let tokens: Vec<String> = tracer.token_texts(&prompt.tokens);
    let map = tracer.map_with(prompt, &options, job)?;
    let report = report(&map, &map.coarse(SIZE.0, SIZE.1, N_STRONGEST), &text, &tokens);

    let path = |ending: &str| args.out_dir.join(format!("{name}.map.{ending}"));
    let report = Report { files: vec![path("svg"), path("csv")], ..report };
    let drawn = heat_map(&picture(&report))?;
    replace_file(&report.files[0], |file| file.write_all(drawn.as_bytes()))?;
    let table = table(&map, &tokens);
    replace_file(&report.files[1], |file| file.write_all(table.as_bytes()))?;
    match args.format {
        Format::Text => print_text(&shown(&report))?,
        Format::Json => print_json(&report)?,
    }
    if !args.setup.quiet {
        report.files.iter().for_each(|file| note(&format!("wrote {}", file.display())));
    }
    Ok(())
}

fn report(map: &TargetMap, coarse: &CoarseMap, prompt: &str, tokens: &[String]) -> Report {
    let open = map.strongest(N_TO_OPEN);
    let shares = map.positions();
    let span = |span: &CoarseSpan| SpanReport {
        positions: span.positions,
        text: tokens[span.positions[0]..span.positions[1]].concat(),
        features: span.features.clone(),
        errors: span.errors.clone(),
        tokens: span.tokens,
        share: span.share(),
        strongest: span
            .strongest
            .iter()
            .map(|&(position, share)| PositionReport { position, token: tokens[position].clone(), share })
            .collect(),
    };
    Report {
        prompt: prompt.to_owned(),
        n_tokens: tokens.len(),
        targets: map.targets.clone(),
        layers: coarse.layers.clone(),
        spans: coarse.spans.iter().map(span).collect(),
        open_share: open.iter().map(|&pos| shares[pos]).sum(),
        open_positions: OpenChoice::Spans(spans(&open)).to_string(),
        files: Vec::new(),
    }
}

/// `3..7`, or `3` alone.
fn range([first, end]: [usize; 2]) -> String {
    if first + 1 == end { first.to_string() } else { format!("{first}..{end}") }
}

/// Tenths of a percent, as percent.
fn share(value: f64) -> String {
    if value < FAINT { ".".to_owned() } else { format!("{:.1}", value * 100.0) }
}

fn shown(report: &Report) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{:<12}{}", "prompt", shortened_middle(&quoted(&report.prompt), MAX_PROMPT_CHARS));
    let targets: Vec<String> = report.targets.iter().map(|target| quoted(target)).collect();
    let _ = writeln!(text, "{:<12}{}", "explained", targets.join("  "));
    let n_tokens = plural(report.n_tokens, "token");
    let _ = writeln!(text, "{:<12}{n_tokens}, percent of all |direct effects|; features by layers", "map");
    let mut header = vec!["positions".to_owned(), "text".to_owned()];
    header.extend(report.layers.iter().map(|&[first, end]| match end - first {
        1 => first.to_string(),
        _ => format!("{first}-{}", end - 1),
    }));
    header.extend(["errors", "token", "all"].map(str::to_owned));
    let aligns: Vec<Align> =
        (0..header.len()).map(|column| if column < 2 { Align::Left } else { Align::Right }).collect();
    let row = |name: String, text: String, spans: &[SpanReport]| {
        let sum = |of: &dyn Fn(&SpanReport) -> f64| share(spans.iter().map(of).sum());
        let mut row = vec![name, text];
        row.extend((0..report.layers.len()).map(|block| sum(&|span| span.features[block])));
        row.extend([sum(&|span| span.errors.iter().sum()), sum(&|span| span.tokens), sum(&|span| span.share)]);
        row
    };
    let rows = report.spans.iter().map(|span| {
        let text = shortened(&quoted(&span.text), MAX_SPAN_CHARS);
        row(range(span.positions), text, std::slice::from_ref(span))
    });
    let all = row("all".to_owned(), String::new(), &report.spans);
    write_table(&mut text, &aligns, header, rows.chain([all]));

    text.push_str("\nstrongest positions of each span\n");
    let lines = report.spans.iter().filter(|span| span.share >= FAINT).map(|span| {
        let of = |at: &PositionReport| format!("{}@{} {}", quoted(&at.token), at.position, percent(at.share));
        let strongest = span.strongest.iter().filter(|at| at.share >= FAINT).map(of).collect::<Vec<_>>();
        vec![range(span.positions), strongest.join("  ")]
    });
    let lines: Vec<Vec<String>> = lines.filter(|line| !line[1].is_empty()).collect();
    write_table(&mut text, &[Align::Left, Align::Left], Vec::new(), lines.into_iter());
    let n_open = plural(report.n_tokens.min(N_TO_OPEN), "position");
    let _ = writeln!(
        text,
        "\nthe strongest {n_open} give {} of it; to trace what is there:\n  --open-positions {}",
        percent(report.open_share),
        report.open_positions
    );
    text
}

fn picture(report: &Report) -> HeatMap {
    let block = |&[first, end]: &[usize; 2]| match end - first {
        1 => format!("layer {first}"),
        _ => format!("layers {first}-{}", end - 1),
    };
    let by_block =
        |block: usize| report.spans.iter().map(move |span| 100.0 * (span.features[block] + span.errors[block]));
    let label = |span: &SpanReport| format!("{} {}", range(span.positions), span.text.trim_start());
    let named: Vec<String> = report.targets.iter().take(N_NAMED).map(|target| quoted(target)).collect();
    let more = match report.targets.len().saturating_sub(N_NAMED) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    HeatMap {
        title: format!("What {} give to {}{more} directly", plural(report.n_tokens, "token"), named.join(", ")),
        quantity: "percent of all |direct effects|, of features and errors together".to_owned(),
        rows: std::iter::once("tokens".to_owned()).chain(report.layers.iter().map(block)).collect(),
        columns: report.spans.iter().map(label).collect(),
        values: report
            .spans
            .iter()
            .map(|span| 100.0 * span.tokens)
            .chain((0..report.layers.len()).flat_map(by_block))
            .collect(),
    }
}

/// The whole map, position by position: features and errors of all layers, and the token.
fn table(map: &TargetMap, tokens: &[String]) -> String {
    let mut out = String::from("position,token,layer,features,errors,token_itself\n");
    for (pos, token) in tokens.iter().enumerate() {
        let token = csv_cell(token, Cells::Spreadsheet);
        let _ = writeln!(out, "{pos},{token},,,,{}", map.tokens[pos]);
        for layer in 0..map.n_layers {
            let at = layer * map.n_pos + pos;
            let _ = writeln!(out, "{pos},{token},{layer},{},{},", map.features[at], map.errors[at]);
        }
    }
    out
}
