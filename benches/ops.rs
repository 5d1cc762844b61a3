//! The operations of the row phase one by one, on one thread, in GFLOP/s at SmolLM2-135M's shape.
//!
//!     cargo bench --bench ops

use std::error::Error;
use std::time::Instant;

use candle_core::{Device, Tensor};
use circuitscope::ops::{SourceVecs, TargetBlocks, add_product, edge_rows, frozen_attention, matmul};

const D_MODEL: usize = 576;
const N_HEADS: usize = 9;
const N_KV_HEADS: usize = 3;
const D_HEAD: usize = 64;

/// Gradient rows of a batch, about as many as attribution takes at a time.
const N_ROWS: usize = 512;

fn main() -> Result<(), Box<dyn Error>> {
    println!("{:<18} {:>9} {:>9} {:>10}", "operation", "positions", "us", "GFLOP/s");
    for n_pos in [6, 16, 64] {
        let per_pos = (N_ROWS / (n_pos * (n_pos + 1) / 2)).max(1);
        let mut positions: Vec<usize> = (1..n_pos).rev().flat_map(|p| std::iter::repeat_n(p, per_pos)).collect();
        while positions.iter().map(|p| p + 1).sum::<usize>() > N_ROWS {
            positions.remove(positions.len() / 2);
        }
        let blocks = TargetBlocks::new(positions);
        let n_rows = blocks.n_rows();
        let random = |shape: (usize, usize)| Tensor::rand(-1f32, 1f32, shape, &Device::Cpu);
        let grad = random((n_rows, D_MODEL))?;
        let (w_o, w_v) = (random((D_MODEL, N_HEADS * D_HEAD))?, random((N_KV_HEADS * D_HEAD, D_MODEL))?);
        let (z, v) = (random((n_rows, N_HEADS * D_HEAD))?, random((n_rows, N_KV_HEADS * D_HEAD))?);
        let pattern = Tensor::rand(0f32, 1f32, (N_HEADS, n_pos, n_pos), &Device::Cpu)?;
        let sources_per_pos = 15;
        let vecs = random((sources_per_pos * n_pos, D_MODEL))?;
        let starts: Vec<usize> = (0..=n_pos).map(|p| p * sources_per_pos).collect();
        let sources = SourceVecs { vecs, scales: None, starts: starts.into() };

        let dense = 2.0 * (n_rows * D_MODEL) as f64;
        report("matmul W_O", n_pos, dense * (N_HEADS * D_HEAD) as f64, || matmul(&grad, &w_o).map(drop))?;
        report("add_product W_V", n_pos, dense * (N_KV_HEADS * D_HEAD) as f64, || {
            add_product(grad.clone(), &v, &w_v, None, &blocks).map(drop)
        })?;
        let pairs: usize = blocks.positions().iter().map(|&p| (p + 1) * (p + 2) / 2).sum();
        report("frozen_attention", n_pos, 2.0 * (pairs * N_HEADS * D_HEAD) as f64, || {
            frozen_attention(&z, &pattern, N_KV_HEADS, &blocks).map(drop)
        })?;
        report("edge_rows", n_pos, dense * sources_per_pos as f64, || edge_rows(&grad, &sources, &blocks).map(drop))?;
    }
    Ok(())
}

/// Prints the best time of many.
fn report(
    name: &str,
    n_pos: usize,
    flop: f64,
    mut run: impl FnMut() -> candle_core::Result<()>,
) -> Result<(), Box<dyn Error>> {
    let mut best = f64::INFINITY;
    for _ in 0..50 {
        let start = Instant::now();
        run()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    println!("{name:<18} {n_pos:>9} {:>9.0} {:>10.1}", best * 1e6, flop / best / 1e9);
    Ok(())
}
