//! Interventions on SmolLM2-135M, 6 positions: what they cost in plain forward passes.
//!
//! Goals: a free intervention at most 1.2 plain passes, a sweep of 16 alternatives at most 4, generation under
//! intervention at least 70 % of the plain rate. Prints one table; run with
//! `CIRCUITSCOPE_SMOLLM2_GGUF=... CIRCUITSCOPE_SHARED=... cargo bench --bench intervene`.

use std::path::PathBuf;
use std::time::Instant;

use candle_core::Device;
use circuitscope::Result;
use circuitscope::intervene::{Alternative, Change, FeatureSpec, GenerateOptions, Intervention, Mode, Original};
use circuitscope::job::Job;
use circuitscope::model::ForwardOptions;
use circuitscope::replacement::Replacement;
use circuitscope::weights::{Folder, ModelFiles};

const PROMPT: &str = "The capital of France is";
const N_RUNS: usize = 15;
const N_TOKENS: usize = 24;

/// Median of several runs, in seconds.
fn median_secs(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    run()?;
    let mut times = Vec::with_capacity(N_RUNS);
    for _ in 0..N_RUNS {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(times[N_RUNS / 2])
}

fn bench(model: &str, transcoders: &str) -> Result<()> {
    let replacement = Replacement::open(ModelFiles::open(model)?, &Folder::open(transcoders)?, &Device::Cpu)?;
    let tokens = replacement.tokenizer.encode_prompt(PROMPT)?;
    println!("{PROMPT:?}, {} positions, median of {N_RUNS}; weights in memory", tokens.len());
    replacement.model.keep_layers()?;
    let job = Job::default();
    let original = Original::run(&replacement, &tokens, &job)?;
    let plain = median_secs(|| {
        let pass = replacement.model.forward(std::slice::from_ref(&tokens), &mut (), ForwardOptions::default())?;
        replacement.model.last_logits(&pass).map(drop)
    })?;
    println!("{:<44}{:>9.1} ms", "plain forward pass", plain * 1e3);
    let report = |name: &str, secs: f64, goal: f64| {
        println!("{name:<44}{:>9.1} ms{:>8.2} passes (goal: at most {goal})", secs * 1e3, secs / plain);
    };

    // The strongest feature of each of three layers, from the lowest, which leaves the most to recompute.
    let strongest = |layer: usize| -> Option<Intervention> {
        let of_layer = original.features.all.iter().filter(|f| f.layer == layer);
        let feature = of_layer.max_by(|a, b| a.value.total_cmp(&b.value))?;
        let spec: FeatureSpec = format!("{layer}_{}_{}..", feature.feature, feature.pos).parse().ok()?;
        Some(spec.changed(Change::Scale(-1.0)))
    };
    for layer in [0, 15] {
        let change: Vec<Intervention> = strongest(layer).into_iter().collect();
        let secs = median_secs(|| original.intervene(std::slice::from_ref(&change), &Mode::Free, &job).map(drop))?;
        report(&format!("free intervention, layer {layer}"), secs, 1.2);
    }
    for layer in [0, 15] {
        let alternative = |i: usize| Alternative {
            name: i.to_string(),
            value: None,
            interventions: strongest(layer)
                .map(|s| Intervention { change: Change::Set(i as f32), ..s })
                .into_iter()
                .collect(),
            heads: Vec::new(),
        };
        let alternatives: Vec<Alternative> = (0..16).map(alternative).collect();
        let secs = median_secs(|| original.sweep(&alternatives, &Mode::Free, &Default::default(), &job).map(drop))?;
        report(&format!("sweep of 16, layer {layer}"), secs, 4.0);
    }

    let options = GenerateOptions { n_tokens: N_TOKENS, ..Default::default() };
    let rate = |changes: &[Intervention], mode: &Mode, options: &GenerateOptions| -> Result<f64> {
        let mut best = 0f64;
        for _ in 0..3 {
            let start = Instant::now();
            let generated = original.generate(changes, mode, options, &job)?;
            best = best.max(generated.len() as f64 / start.elapsed().as_secs_f64());
        }
        Ok(best)
    };
    let plain_rate = rate(&[], &Mode::Free, &options)?;
    println!("{:<44}{plain_rate:>9.1} tokens/s", "plain generation");
    let changes: Vec<Intervention> = [0, 10, 20].into_iter().filter_map(strongest).collect();
    for (name, mode, keep_frozen, goal) in [
        ("generation, three open-ended changes", Mode::Free, false, "(goal: at least 70 %)"),
        ("  attention frozen in the prompt", Mode::FrozenAttention, false, "(goal: at least 70 %)"),
        ("  attention frozen throughout", Mode::FrozenAttention, true, "(two models run)"),
    ] {
        let rate = rate(&changes, &mode, &GenerateOptions { keep_frozen, ..options.clone() })?;
        println!("{name:<44}{rate:>9.1} tokens/s{:>6.0} % of plain {goal}", rate / plain_rate * 100.0);
    }
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
