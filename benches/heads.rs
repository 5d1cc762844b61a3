//! Heads of SmolLM2-135M's edges, 6 positions: against the trace that found the edges.
//!
//! Goals: heads of all kept edges in at most the time of the trace; one edge in at most 30 ms with the model open; the
//! graph of a score in at most the time of that of a logit. Prints one table; run with
//! `CIRCUITSCOPE_SMOLLM2_GGUF=... CIRCUITSCOPE_SHARED=... cargo bench --bench heads`.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;
use circuitscope::Result;
use circuitscope::attribution::{AttributionOptions, RowChoice, TargetRequest, Versus, attribute};
use circuitscope::heads::{FlowOptions, HeadScoreOptions, bills, edge_in_full, head_flows, head_scores};
use circuitscope::job::Job;
use circuitscope::prune::{PruneSettings, prune};
use circuitscope::replacement::Replacement;
use circuitscope::weights::{Folder, ModelFiles};

const PROMPT: &str = "The capital of France is";

/// The best of several runs, in seconds: other programs only ever add to it.
fn best_secs(n_runs: usize, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut best = f64::INFINITY;
    for _ in 0..n_runs {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn bench(model: &str, transcoders: &str) -> Result<()> {
    let replacement = Replacement::open(ModelFiles::open(model)?, &Folder::open(transcoders)?, &Device::Cpu)?;
    let tokens = replacement.tokenizer.encode_prompt(PROMPT)?;
    let job = Job::default();
    let options = AttributionOptions { rows: RowChoice::All, ..Default::default() };
    let trace = |options: &AttributionOptions| -> Result<_> {
        let linear = replacement.linearize(&tokens, &job)?;
        let found = attribute(&replacement, &linear, PROMPT, options, &job)?;
        let circuit = prune(&found.graph, &found.influence, &PruneSettings::default())?.circuit(&found.graph)?;
        Ok((linear, found, circuit))
    };
    let (linear, found, circuit) = trace(&options)?;
    let edges = circuit.edge_ids();
    println!(
        "{PROMPT:?}, {} positions, {} nodes, {} edges; best of 5",
        tokens.len(),
        circuit.graph().node_count(),
        edges.len()
    );
    let report = |name: &str, secs: f64, goal: &str| println!("{name:<44}{:>10.1} ms  {goal}", secs * 1e3);

    let whole = best_secs(5, || trace(&options).map(drop))?;
    report("trace: linear model, all rows, pruned", whole, "");
    let heads = best_secs(5, || head_flows(&linear, &found.targets, &edges, &FlowOptions::default(), &job).map(drop))?;
    report("heads of all kept edges", heads, &format!("{:.2} of the trace (goal: at most 1)", heads / whole));
    let without_hops = FlowOptions { max_hops: 0, ..FlowOptions::default() };
    let flows = best_secs(5, || head_flows(&linear, &found.targets, &edges, &without_hops, &job).map(drop))?;
    report("  without hops", flows, "");
    let edge = edges[edges.len() / 2];
    let one = best_secs(9, || edge_in_full(&linear, &found.targets, edge, 4, &job).map(drop))?;
    report("one edge in full", one, "(goal: at most 30 ms)");
    let of_targets = best_secs(9, || bills(&replacement, &linear, &found.targets, &job).map(drop))?;
    report("bills of all targets", of_targets, "");

    let last = tokens.len() - 1;
    let score = TargetRequest::Score { score: format!("18.6@{last}:{}", last - 1).parse()?, versus: Versus::Nothing };
    let of_score = AttributionOptions { targets: vec![score], ..options.clone() };
    let graph = |options: &AttributionOptions| -> Result<f64> {
        best_secs(5, || attribute(&replacement, &linear, PROMPT, options, &job).map(drop))
    };
    let (of_logit, of_score) = (graph(&options)?, graph(&of_score)?);
    report("graph of a logit, linear model at hand", of_logit, "");
    let goal = format!("{:.2} of it (goal: at most 1)", of_score / of_logit);
    report("graph of a score, linear model at hand", of_score, &goal);
    let random = HeadScoreOptions::default();
    let scores = best_secs(2, || head_scores(&replacement.model, &replacement.tokenizer, &random, &job).map(drop))?;
    report("scores of all heads, 8 sequences", scores, "");
    Ok(())
}

fn main() -> Result<()> {
    let gguf = std::env::var_os("CIRCUITSCOPE_SMOLLM2_GGUF").map(PathBuf::from);
    let shared = std::env::var_os("CIRCUITSCOPE_SHARED").map(PathBuf::from);
    let shared = shared.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared"));
    let transcoders = shared.join("smollm2/transcoders");
    match gguf {
        Some(gguf) if gguf.exists() && transcoders.is_dir() => {
            bench(&gguf.to_string_lossy(), &transcoders.to_string_lossy())
        }
        _ => {
            println!(
                "skipped: CIRCUITSCOPE_SMOLLM2_GGUF and CIRCUITSCOPE_SHARED must name the model and its transcoders"
            );
            Ok(())
        }
    }
}
