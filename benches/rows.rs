//! The row phase against the machine: useful GFLOP/s as a share of the gemm speed of the same run, and rows a second.
//!
//!     cargo bench --bench rows
//!
//! Models are random, in the shape of SmolLM2-135M. With CIRCUITSCOPE_SMOLLM2_GGUF and CIRCUITSCOPE_SMOLLM2_TRANSCODERS
//! set, the real model is measured too.

#[path = "../examples/synthesize/synthetic.rs"]
#[allow(dead_code)]
mod synthetic;

use std::error::Error;
use std::time::Instant;

use candle_core::{Device, Tensor};
use circuitscope::attribution::{AttributionOptions, RowChoice, attribute};
use circuitscope::job::Job;
use circuitscope::ops::open_cuda;
use circuitscope::replacement::{LinearModel, Replacement};
use circuitscope::weights::{Folder, ModelFiles};
use synthetic::{Shape, write_model, write_transcoders};

/// Measurements of one setting, of which the best counts: others on the machine only ever slow it down.
const REPEATS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    // `cargo test --benches` runs benches as tests, to see that they work.
    let is_test = std::env::args().any(|argument| argument == "--test");
    let settings: &[(usize, f64)] = match is_test {
        true => &[(6, 400.0)],
        false => &[(6, 4000.0), (6, 15000.0), (16, 4000.0), (16, 15000.0), (64, 4000.0), (64, 15000.0)],
    };
    let folder = tempfile::tempdir()?;
    let shape = Shape::named("smollm2-135m").ok_or("no such shape")?;
    write_model(&shape, &folder.path().join("model"))?;
    println!(
        "{:>9} {:>9} {:>8} {:>9} {:>13} {:>13} {:>7}",
        "positions", "features", "seconds", "rows/s", "GFLOP/s", "gemm", "share"
    );
    for &(n_pos, n_features) in settings {
        let l0 = n_features / (shape.n_layers * (n_pos - 1)) as f64;
        let transcoders = folder.path().join(format!("transcoders-{n_pos}-{n_features}"));
        write_transcoders(&shape, l0, &transcoders)?;
        let model = folder.path().join("model");
        let replacement = open(&model.display().to_string(), &transcoders.display().to_string())?;
        let tokens: Vec<u32> = (0..n_pos as u32).map(|i| (i * 7919) % shape.d_vocab as u32).collect();
        measure(&replacement, &tokens)?;
        std::fs::remove_dir_all(&transcoders)?;
    }
    let real = ["CIRCUITSCOPE_SMOLLM2_GGUF", "CIRCUITSCOPE_SMOLLM2_TRANSCODERS"].map(std::env::var);
    if let [Ok(model), Ok(transcoders)] = real {
        println!("SmolLM2-135M-Instruct, \"The capital of France is\":");
        let replacement = open(&model, &transcoders)?;
        let tokens = replacement.tokenizer.encode_prompt("The capital of France is")?;
        measure(&replacement, &tokens)?;
    }
    Ok(())
}

/// The CPU; with CIRCUITSCOPE_DEVICE=cuda the first GPU.
fn device() -> candle_core::Result<Device> {
    match std::env::var("CIRCUITSCOPE_DEVICE").as_deref() {
        Ok("cuda") => open_cuda(0),
        _ => Ok(Device::Cpu),
    }
}

fn open(model: &str, transcoders: &str) -> Result<Replacement, Box<dyn Error>> {
    Ok(Replacement::open(ModelFiles::open(model)?, &Folder::open(transcoders)?, &device()?)?)
}

/// Prints one line: row phase and gemm, measured in turn.
fn measure(replacement: &Replacement, tokens: &[u32]) -> Result<(), Box<dyn Error>> {
    let linear = replacement.linearize(tokens, &Job::default())?;
    let options = AttributionOptions { rows: RowChoice::All, ..Default::default() };
    let gflop = useful_flop(replacement, &linear) / 1e9;
    let (mut secs, mut gemm, mut n_rows) = (f64::INFINITY, 0f64, 0);
    for _ in 0..REPEATS {
        gemm = gemm.max(gemm_gflops(replacement.model.config.d_model)?);
        let found = attribute(replacement, &linear, "", &options, &Job::default())?;
        secs = secs.min(found.elapsed_secs.rows);
        n_rows = found.n_rows;
    }
    let (gflops, rows_per_sec) = (gflop / secs, n_rows as f64 / secs);
    println!(
        "{:>9} {:>9} {secs:>8.2} {rows_per_sec:>9.0} {gflops:>13.1} {gemm:>13.1} {:>6.0}%",
        tokens.len(),
        linear.features.len(),
        100.0 * gflops / gemm
    );
    Ok(())
}

/// Operations that the rows need and no more: for each target, at its own layer `W_O` at its position alone and `W_V`
/// at positions up to its own; at lower layers both at all of these; the pattern products between them; a dot product
/// for every source that it can see.
fn useful_flop(replacement: &Replacement, linear: &LinearModel) -> f64 {
    let config = &replacement.model.config;
    let (d, d_q) = (config.d_model as f64, (config.n_heads * config.d_head) as f64);
    let d_kv = (config.n_kv_heads * config.d_head) as f64;
    let n_pos = linear.tokens.len();
    // Sources of layers below l at positions up to c.
    let mut below = vec![vec![0f64; n_pos]; config.n_layers + 1];
    for layer in 0..config.n_layers {
        // Sources are sorted by position, so those up to one are those before the next.
        let up_to = &linear.mlp_sources[layer].vecs.starts[1..];
        below[layer + 1] = below[layer].iter().zip(up_to).map(|(below, &here)| below + here as f64).collect();
    }
    let row = |own_layer: Option<usize>, pos: usize| -> f64 {
        let n = (pos + 1) as f64;
        let layers = own_layer.unwrap_or(config.n_layers);
        let full = 2.0 * n * (d * d_q + d * d_kv) + n * (n + 1.0) * d_q;
        let own = own_layer.map_or(0.0, |_| 2.0 * d * d_q + 2.0 * n * d * d_kv + 2.0 * n * d_q);
        layers as f64 * full + own + 2.0 * d * (below[layers][pos] + n)
    };
    let n_targets = AttributionOptions::default().max_logits as f64;
    linear.features.all.iter().map(|f| row(Some(f.layer), f.pos)).sum::<f64>() + n_targets * row(None, n_pos - 1)
}

/// Speed of `[4096, d] × [d, d]` in GFLOP/s.
fn gemm_gflops(d: usize) -> Result<f64, Box<dyn Error>> {
    let device = device()?;
    let a = Tensor::rand(-1f32, 1f32, (4096, d), &device)?;
    let b = Tensor::rand(-1f32, 1f32, (d, d), &device)?;
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = Instant::now();
        let product = a.matmul(&b)?;
        device.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
        std::hint::black_box(product);
    }
    Ok(2.0 * 4096.0 * (d * d) as f64 / best / 1e9)
}
