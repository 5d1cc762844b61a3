//! A training step against the one dense product in it: layers of SmolLM2-135M's width, one thread.
//!
//! The share is the product's time over the step's: what sparse decoding, gradients and the optimiser leave of the machine's
//! matrix product.

use std::hint::black_box;
use std::time::Instant;

use circuitscope::train::Rehearsal;

const D_MODEL: usize = 576;
const N_TOKENS: usize = 2048;
const L0: f64 = 32.0;
const N_LAYERS: usize = 2;
const ROUNDS: usize = 7;

fn seconds(mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    run();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    println!(
        "{N_LAYERS} layers of width {D_MODEL}, {N_TOKENS} tokens a step, {L0} active features, one thread, medians of {ROUNDS}"
    );
    for (n_features, rounds) in [(2048, false), (2048, true), (8192, false), (8192, true)] {
        let mut rehearsal = Rehearsal::new(N_LAYERS, D_MODEL, n_features, L0, N_TOKENS, rounds);
        let kind = if rounds { "bf16 where there is" } else { "f32" };
        pool.install(|| {
            rehearsal.step();
            // In turns, so that what else the machine does falls on both.
            let (steps, products): (Vec<f64>, Vec<f64>) = (0..ROUNDS)
                .map(|_| (seconds(|| rehearsal.step()), seconds(|| _ = black_box(rehearsal.products()))))
                .unzip();
            let (step, product) = (median(steps), median(products));
            let flops = 2.0 * (N_LAYERS * N_TOKENS * D_MODEL * n_features) as f64;
            println!(
                "{n_features:>6} features, {kind}: step {:.1} ms, the product in f32 {:.1} ms ({:.0} GFLOP/s), {:.0} % of the step; {:.0} tokens/s a \
                 layer",
                1e3 * step,
                1e3 * product,
                1e-9 * flops / product,
                100.0 * product / step,
                (N_LAYERS * N_TOKENS) as f64 / step
            );
        });
    }
}
