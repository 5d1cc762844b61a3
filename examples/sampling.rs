//! What the choice of rows does to a graph: influence and scores from rows chosen best-first and from a sampled sweep,
//! against those of all rows. The figures and the picture of `docs/sampling.md`.
//!
//!     circuitscope trace "The capital of France is" --max-features all --no-json --slug france
//!     cargo run --release --example sampling -- graphs/france.safetensors --svg sampling.svg

use std::fmt::Write;
use std::path::{Path, PathBuf};

use circuitscope::export::read_raw;
use circuitscope::graph::{
    AttributionGraph, EdgeRows, FeatureId, NodeLayout, PartialRows, SampleSettings, Scores, Start, influence,
    next_features, partial_influence, sampled_influence, scores,
};

const SAMPLED_ROWS: [usize; 6] = [100, 200, 400, 600, 1000, 1500];
const BEST_FIRST_ROWS: [usize; 8] = [100, 200, 400, 600, 1000, 1500, 4000, 7500];

/// Features chosen between two looks at the influence, as `trace` has it with its default batch size.
const UPDATE_INTERVAL: usize = 4 * 512;

/// The features that the comparison is about: those of most influence in the exact graph.
const N_TOP: usize = 500;

type AnyError = Box<dyn std::error::Error>;

/// One way to choose rows, against all rows.
struct Outcome {
    n_rows: usize,
    scores: Scores,
    /// Share of the exact strongest features that are among the strongest here.
    found: f64,
    /// Median of |influence - exact| / exact over the exact strongest features.
    median_error: f64,
    /// Of a sampled sweep.
    stated: Option<Stated>,
}

/// How well the stated uncertainties describe the true errors.
struct Stated {
    scores: Scores,
    /// Shares of the exact strongest features whose error is at most one, at most two of the stated.
    within_one: f64,
    within_two: f64,
    /// Median of stated / exact over the same features.
    median: f64,
}

struct Curves {
    name: String,
    exact: Scores,
    best_first: Vec<Outcome>,
    sampled: Vec<Outcome>,
}

fn main() -> Result<(), AnyError> {
    let mut svg: Option<PathBuf> = None;
    let mut graphs: Vec<PathBuf> = Vec::new();
    let mut draws = 0u64;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--svg" => svg = Some(arguments.next().ok_or("--svg needs a file")?.into()),
            "--draws" => draws = arguments.next().ok_or("--draws needs a number")?.parse()?,
            _ => graphs.push(argument.into()),
        }
    }
    if graphs.is_empty() {
        return Err("usage: sampling RAW_GRAPH... [--svg FILE] [--draws N]".into());
    }
    let mut all = Vec::new();
    for path in &graphs {
        all.push(compare(path, draws)?);
    }
    if let Some(path) = svg {
        std::fs::write(&path, picture(&all)?)?;
        println!("wrote {}", path.display());
    }
    Ok(())
}

fn compare(path: &Path, draws: u64) -> Result<Curves, AnyError> {
    let graph = read_raw(path)?;
    if !graph.unselected_effect.is_empty() {
        return Err(format!("{}: trace it with `--max-features all`", path.display()).into());
    }
    let layout = graph.layout();
    let weights = &graph.target_probabilities;
    let exact = influence(&graph.edge_rows, layout, weights);
    let exact_scores = scores(layout, &exact, weights);
    let exact_features = &exact.nodes[layout.features()];
    let weight: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let passed = exact_features.iter().sum::<f64>() / weight;
    println!(
        "\n### \"{}\"\n\n{} tokens, {} active features, {passed:.2} features passed in the mean, {} features carry 0.8\n",
        graph.meta.prompt,
        layout.n_pos(),
        layout.n_features(),
        n_features_of(&exact.nodes, layout, 0.8),
    );
    println!(
        "| rows | which | replacement | completeness | top {N_TOP} | median error | stated | within 1x | within 2x |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    println!(
        "| {} | all | {:.4} | {:.4} | | | | | |",
        layout.n_features(),
        exact_scores.replacement,
        exact_scores.completeness
    );
    let mut curves =
        Curves { name: graph.meta.prompt.clone(), exact: exact_scores, best_first: vec![], sampled: vec![] };
    let steps = chosen_best_first(&graph, BEST_FIRST_ROWS[BEST_FIRST_ROWS.len() - 1]);
    for n_rows in BEST_FIRST_ROWS.into_iter().filter(|&n| n < layout.n_features()) {
        let outcome = best_first(&graph, &steps, n_rows, exact_features)?;
        println!("{}", line("best-first", &outcome));
        curves.best_first.push(outcome);
    }
    for n_rows in SAMPLED_ROWS.into_iter().filter(|&n| n < layout.n_features()) {
        let settings = SampleSettings::for_rows(n_rows, weights);
        let outcome = sampled(&graph, settings, exact_features)?;
        println!("{}", line("sampled", &outcome));
        curves.sampled.push(outcome);
        if draws > 0 {
            println!("{}", over_draws(&graph, settings, draws, exact_features, exact_scores)?);
        }
    }
    Ok(curves)
}

fn line(which: &str, outcome: &Outcome) -> String {
    let Outcome { n_rows, scores, found, median_error, stated } = outcome;
    let plus_minus = |of: fn(&Scores) -> f64| match stated {
        Some(stated) => format!("{:.4} ± {:.4}", of(scores), of(&stated.scores)),
        None => format!("{:.4}", of(scores)),
    };
    let stated = stated.as_ref().map_or(" | |".to_owned(), |s| {
        format!("{:.3} | {:.0} % | {:.0} %", s.median, 100.0 * s.within_one, 100.0 * s.within_two)
    });
    format!(
        "| {n_rows} | {which} | {} | {} | {:.1} % | {median_error:.3} | {stated} |",
        plus_minus(|s| s.replacement),
        plus_minus(|s| s.completeness),
        100.0 * found,
    )
}

/// Numbers of the strongest features, of all features.
fn strongest(influence: &[f64]) -> Vec<usize> {
    next_features(influence, &vec![false; influence.len()], N_TOP)
}

fn outcome(n_rows: usize, scores: Scores, estimate: &[f64], exact: &[f64]) -> Outcome {
    let top = strongest(exact);
    let here: std::collections::HashSet<usize> = strongest(estimate).into_iter().collect();
    let found = top.iter().filter(|feature| here.contains(feature)).count() as f64 / top.len() as f64;
    let errors = top.iter().map(|&feature| (estimate[feature] - exact[feature]).abs() / exact[feature]).collect();
    Outcome { n_rows, scores, found, median_error: median(errors), stated: None }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

fn sampled(graph: &AttributionGraph, settings: SampleSettings, exact: &[f64]) -> Result<Outcome, AnyError> {
    let layout = graph.layout();
    let sampled = sampled_influence(&graph.edge_rows, layout, &graph.target_probabilities, settings)?;
    let mut outcome = outcome(sampled.visited.len(), sampled.scores, &sampled.nodes[layout.features()], exact);
    let top = strongest(exact);
    let within = |factor: f64| {
        let is_within =
            |&&f: &&usize| (sampled.nodes[f] - exact[f]).abs() <= factor * sampled.uncertainty[f] + 1e-9 * exact[f];
        top.iter().filter(is_within).count() as f64 / top.len() as f64
    };
    outcome.stated = Some(Stated {
        scores: sampled.score_uncertainty,
        within_one: within(1.0),
        within_two: within(2.0),
        median: median(top.iter().map(|&f| sampled.uncertainty[f] / exact[f]).collect()),
    });
    Ok(outcome)
}

/// Mean and spread over independent starts: whether the estimate is unbiased, and how far one of them may be off.
fn over_draws(
    graph: &AttributionGraph,
    settings: SampleSettings,
    draws: u64,
    exact: &[f64],
    exact_scores: Scores,
) -> Result<String, AnyError> {
    let mut of_draws = Vec::new();
    for seed in 0..draws {
        of_draws.push(sampled(graph, SampleSettings { start: Start::Seed(seed), ..settings }, exact)?);
    }
    let n = draws as f64;
    let mean = |of: &dyn Fn(&Outcome) -> f64| of_draws.iter().map(of).sum::<f64>() / n;
    let root = |of: &dyn Fn(&Outcome) -> f64| mean(&|o| of(o) * of(o)).sqrt();
    let stated = |o: &Outcome| o.stated.as_ref().map_or(Scores { replacement: 0.0, completeness: 0.0 }, |s| s.scores);
    let within = |factor: fn(&Stated) -> f64| mean(&|o| o.stated.as_ref().map_or(0.0, factor));
    Ok(format!(
        "| {:.0} | {draws} starts | {:.4}, off by {:.4}, said {:.4} | {:.4}, off by {:.4}, said {:.4} | {:.1} % | {:.3} | {:.3} | {:.0} % | {:.0} % |",
        mean(&|o| o.n_rows as f64),
        mean(&|o| o.scores.replacement),
        root(&|o| o.scores.replacement - exact_scores.replacement),
        root(&|o| stated(o).replacement),
        mean(&|o| o.scores.completeness),
        root(&|o| o.scores.completeness - exact_scores.completeness),
        root(&|o| stated(o).completeness),
        100.0 * mean(&|o| o.found),
        mean(&|o| o.median_error),
        within(|s| s.median),
        100.0 * within(|s| s.within_one),
        100.0 * within(|s| s.within_two),
    ))
}

/// Features in the order in which `trace --max-features` would choose them.
fn chosen_best_first(graph: &AttributionGraph, limit: usize) -> Vec<usize> {
    let layout = graph.layout();
    let n_columns = layout.targets().start;
    let limit = limit.min(layout.n_features());
    let mut values: Vec<f32> = Vec::with_capacity((layout.n_targets() + limit) * n_columns);
    let targets = layout.n_features()..layout.n_rows();
    targets.for_each(|row| values.extend_from_slice(&graph.row(row)[..n_columns]));
    let (mut visited, mut is_visited) = (Vec::new(), vec![false; layout.n_features()]);
    while visited.len() < limit {
        let partial = partial_influence(&PartialRows {
            values: &values,
            stride: n_columns,
            n_columns,
            n_active: layout.n_features(),
            weights: &graph.target_probabilities,
            visited: &visited,
        });
        for feature in next_features(&partial, &is_visited, UPDATE_INTERVAL.min(limit - visited.len())) {
            is_visited[feature] = true;
            visited.push(feature);
            values.extend_from_slice(&graph.row(feature)[..n_columns]);
        }
    }
    visited
}

/// What a graph of the first `n_rows` of the `chosen` features says.
fn best_first(graph: &AttributionGraph, chosen: &[usize], n_rows: usize, exact: &[f64]) -> Result<Outcome, AnyError> {
    let layout = graph.layout();
    let mut selected = chosen[..n_rows].to_vec();
    selected.sort_unstable();
    let features: Vec<FeatureId> = selected.iter().map(|&feature| layout.feature_ids()[feature]).collect();
    let narrow = NodeLayout::new(features, layout.n_layers(), layout.n_pos(), layout.n_targets())?;
    let mut values = Vec::with_capacity(narrow.n_rows() * narrow.n_nodes());
    for row in selected.iter().copied().chain(layout.n_features()..layout.n_rows()) {
        let effects = graph.row(row);
        values.extend(selected.iter().map(|&column| effects[column]));
        values.extend_from_slice(&effects[layout.n_features()..]);
    }
    let rows = EdgeRows::from_vec(values, narrow.n_rows(), narrow.n_nodes())?;
    let weights = &graph.target_probabilities;
    let influence = influence(&rows, &narrow, weights);
    let mut estimate = vec![0.0; layout.n_features()];
    selected.iter().zip(&influence.nodes).for_each(|(&feature, &found)| estimate[feature] = found);
    Ok(outcome(n_rows, scores(&narrow, &influence, weights), &estimate, exact))
}

/// Features among the nodes that carry `share` of all influence.
fn n_features_of(influence: &[f64], layout: &NodeLayout, share: f64) -> usize {
    let order = next_features(influence, &vec![false; influence.len()], influence.len());
    let total: f64 = influence.iter().sum();
    let mut sum = 0.0;
    let mut n_kept = 0;
    for node in order {
        if sum >= share * total {
            break;
        }
        sum += influence[node];
        n_kept += usize::from(node < layout.n_features());
    }
    n_kept
}

/// Where one panel of the picture is, and what it shows.
struct Panel {
    left: f64,
    title: &'static str,
    /// Values at the bottom and at the top.
    range: (f64, f64),
    /// Lines to read values from, with their names.
    ticks: &'static [(f64, &'static str)],
}

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 400.0;
const PANEL: (f64, f64) = (400.0, 290.0);
const TOP: f64 = 50.0;
const ROW_TICKS: [f64; 7] = [100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0];
const BEST_FIRST: &str = "#c2410c";
const SAMPLED: &str = "#1d4ed8";

impl Panel {
    fn x(&self, n_rows: f64) -> f64 {
        let (low, high) = (80f64.ln(), ROW_TICKS[ROW_TICKS.len() - 1].ln());
        self.left + PANEL.0 * (n_rows.max(80.0).ln() - low) / (high - low)
    }

    fn y(&self, value: f64) -> f64 {
        TOP + PANEL.1 * (1.0 - (value.clamp(self.range.0, self.range.1) - self.range.0) / (self.range.1 - self.range.0))
    }

    fn frame(&self, svg: &mut String) -> std::fmt::Result {
        let (left, right, bottom) = (self.left, self.left + PANEL.0, TOP + PANEL.1);
        writeln!(svg, "<text x=\"{left}\" y=\"{}\" font-weight=\"bold\">{}</text>", TOP - 14.0, self.title)?;
        for &(value, name) in self.ticks {
            let y = self.y(value);
            let colour = if value == 0.0 { "#111" } else { "#ddd" };
            writeln!(svg, "<path d=\"M{left} {y:.1}H{right}\" stroke=\"{colour}\"/>")?;
            writeln!(svg, "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{name}</text>", left - 6.0, y + 4.0)?;
        }
        for n_rows in ROW_TICKS {
            let x = self.x(n_rows);
            writeln!(svg, "<path d=\"M{x:.1} {bottom}v5\" stroke=\"#111\"/>")?;
            writeln!(svg, "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{n_rows}</text>", bottom + 19.0)?;
        }
        let middle = left + PANEL.0 / 2.0;
        writeln!(
            svg,
            "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">feature rows computed</text>",
            bottom + 38.0
        )
    }

    fn curve(&self, svg: &mut String, colour: &str, points: impl Iterator<Item = (f64, f64)>) -> std::fmt::Result {
        let points: Vec<(f64, f64)> = points.map(|(n_rows, value)| (self.x(n_rows), self.y(value))).collect();
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1} {y:.1}")).collect();
        writeln!(svg, "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>", path.join("L"))?;
        points
            .iter()
            .try_for_each(|(x, y)| writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>"))
    }
}

/// Bias of the replacement score, and strongest features found, against the number of rows.
fn picture(all: &[Curves]) -> Result<String, std::fmt::Error> {
    let score = Panel {
        left: 70.0,
        title: "replacement score, minus that of all rows",
        range: (-0.6, 0.1),
        ticks: &[
            (0.0, "0"),
            (-0.1, "−0.1"),
            (-0.2, "−0.2"),
            (-0.3, "−0.3"),
            (-0.4, "−0.4"),
            (-0.5, "−0.5"),
            (-0.6, "−0.6"),
            (0.1, "0.1"),
        ],
    };
    let found = Panel {
        left: 560.0,
        title: "of the 500 strongest features, found",
        range: (0.0, 1.0),
        ticks: &[(0.0, "0"), (0.2, "20 %"), (0.4, "40 %"), (0.6, "60 %"), (0.8, "80 %"), (1.0, "100 %")],
    };
    let mut svg = String::new();
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"DejaVu Sans, sans-serif\" font-size=\"12\">"
    )?;
    writeln!(svg, "<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>")?;
    score.frame(&mut svg)?;
    found.frame(&mut svg)?;
    for curves in all {
        writeln!(svg, "<!-- {} -->", curves.name.replace("--", "- -"))?;
        for (outcomes, colour) in [(&curves.best_first, BEST_FIRST), (&curves.sampled, SAMPLED)] {
            let bias = |o: &Outcome| (o.n_rows as f64, o.scores.replacement - curves.exact.replacement);
            score.curve(&mut svg, colour, outcomes.iter().map(bias))?;
            found.curve(&mut svg, colour, outcomes.iter().map(|o| (o.n_rows as f64, o.found)))?;
        }
    }
    for (at, (name, colour)) in [("best-first", BEST_FIRST), ("sampled sweep", SAMPLED)].into_iter().enumerate() {
        let (x, y) = (320.0, 230.0 + 22.0 * at as f64);
        writeln!(svg, "<path d=\"M{x} {y}h26\" stroke=\"{colour}\" stroke-width=\"2\"/>")?;
        writeln!(svg, "<text x=\"{}\" y=\"{}\">{name}</text>", x + 32.0, y + 4.0)?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}
