//! What every head does on random tokens that come twice.

use std::fmt::Write;

use serde::Serialize;

use crate::Result;
use crate::heads::{HEAD_SCORES, HeadScore, HeadScoreOptions};
use crate::job::Job;
use crate::picture::HeatMap;

use super::super::summary::{Align, write_table};
use super::{HeadsArgs, HeadsFormat, ScoreKind, print_data, print_json, print_text};

/// One head as JSON has it.
#[derive(Debug, Serialize)]
struct HeadJson {
    layer: u32,
    head: u32,
    induction: f32,
    duplicate: f32,
    previous: f32,
    first: f32,
    copying: f32,
}

/// What `--format json` prints.
#[derive(Debug, Serialize)]
struct Report<'a> {
    model: &'a str,
    n_sequences: usize,
    length: usize,
    seed: u64,
    heads: Vec<HeadJson>,
}

/// What a score means, as the table says it.
const MEANINGS: [&str; 5] = [
    "looks from a token that came before to what followed it then",
    "looks from a token that came before to that token",
    "looks at the token before",
    "looks at the first position",
    "writes what it reads: eigenvalues of W_E W_V W_O W_U, positive part of all",
];

pub(super) fn run(args: &HeadsArgs) -> Result<()> {
    let model = args.setup.open_model()?;
    let options = HeadScoreOptions { n_sequences: args.sequences, length: args.length, seed: args.seed };
    let scores = model.head_scores(&options, &Job::default())?;
    match args.format {
        HeadsFormat::Text => print_text(&text(&scores, &options, args.top))?,
        HeadsFormat::Csv => print_data(&csv(&scores))?,
        HeadsFormat::Json => {
            let heads = scores.iter().map(|score| HeadJson {
                layer: score.head.layer,
                head: score.head.head,
                induction: score.induction,
                duplicate: score.duplicate,
                previous: score.previous,
                first: score.first,
                copying: score.copying,
            });
            let HeadScoreOptions { n_sequences, length, seed } = options;
            print_json(&Report { model: &model.source, n_sequences, length, seed, heads: heads.collect() })?;
        }
    }
    args.draw(|| map(&scores, args.kind))
}

fn text(scores: &[HeadScore], options: &HeadScoreOptions, top: usize) -> String {
    let mut text = format!(
        "mean attention on {} sequences of {} random tokens that come twice; the {} first heads of each kind\n",
        options.n_sequences,
        options.length,
        top.min(scores.len())
    );
    for (kind, (name, meaning)) in HEAD_SCORES.iter().zip(MEANINGS).enumerate() {
        let mut order: Vec<&HeadScore> = scores.iter().collect();
        order.sort_by(|a, b| b.all()[kind].total_cmp(&a.all()[kind]).then(a.head.cmp(&b.head)));
        let _ = writeln!(text, "\n{name}: {meaning}");
        // Five heads a line, so that a kind is two lines.
        let cells: Vec<String> = order
            .iter()
            .take(top)
            .map(|score| format!("{:<6} {:.3}", score.head.to_string(), score.all()[kind]))
            .collect();
        let rows = cells.chunks(5).map(|line| {
            let mut line = line.to_vec();
            line.resize(5, String::new());
            line
        });
        write_table(&mut text, &[Align::Left; 5], Vec::new(), rows);
    }
    text
}

fn csv(scores: &[HeadScore]) -> String {
    let mut text = format!("layer,head,{}\n", HEAD_SCORES.join(","));
    for score in scores {
        let values = score.all().map(|value| value.to_string()).join(",");
        let _ = writeln!(text, "{},{},{values}", score.head.layer, score.head.head);
    }
    text
}

fn map(scores: &[HeadScore], kind: ScoreKind) -> HeatMap {
    let kind = match kind {
        ScoreKind::Induction => 0,
        ScoreKind::Duplicate => 1,
        ScoreKind::Previous => 2,
        ScoreKind::First => 3,
        ScoreKind::Copying => 4,
    };
    let n_heads = scores.iter().map(|score| score.head.head + 1).max().unwrap_or(0);
    let n_layers = scores.iter().map(|score| score.head.layer + 1).max().unwrap_or(0);
    HeatMap {
        title: format!("Heads: {}", HEAD_SCORES[kind]),
        quantity: format!("mean attention on random tokens that come twice: {}", MEANINGS[kind]),
        rows: (0..n_layers).map(|layer| format!("layer {layer}")).collect(),
        columns: (0..n_heads).map(|head| head.to_string()).collect(),
        values: scores.iter().map(|score| f64::from(score.all()[kind])).collect(),
    }
}
