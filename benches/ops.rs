//! The operations of the row phase one by one, in GFLOP/s and GB/s: on the CPU on one thread, at SmolLM2-135M's shape;
//! with CIRCUITSCOPE_DEVICE=cuda on a GPU, at three models' shapes, beside what the card can do at most.
//!
//!     cargo bench --bench ops

use std::error::Error;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use circuitscope::graph::{PARTIAL_ROW_SUM_CLAMP, PartialRows, next_features, partial_influence};
use circuitscope::ops::{
    Activity, NormFactors, RaggedBatch, RowShape, RowsOnDevice, SourceVecs, add_product, device_limits, device_name,
    edge_rows, encode_active, frozen_attention, gradient_rows, matmul, norm_pullback, open_cuda,
};

/// Sizes of a model.
struct Shape {
    name: &'static str,
    d_model: usize,
    n_heads: usize,
    n_kv_heads: usize,
    d_head: usize,
}

const SMOLLM2: Shape = Shape { name: "SmolLM2-135M", d_model: 576, n_heads: 9, n_kv_heads: 3, d_head: 64 };
const GEMMA2: Shape = Shape { name: "Gemma-2-2B", d_model: 2304, n_heads: 8, n_kv_heads: 4, d_head: 256 };
const LLAMA31: Shape = Shape { name: "Llama-3.1-8B", d_model: 4096, n_heads: 32, n_kv_heads: 8, d_head: 128 };

/// Sources a position and layer.
const SOURCES_PER_POS: usize = 15;

/// Features that are encoded at once.
const N_FEATURES: usize = 4096;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let device = match std::env::var("CIRCUITSCOPE_DEVICE").as_deref() {
        Ok("cuda") => open_cuda(0)?,
        _ => Device::Cpu,
    };
    println!("{}", device_name(&device)?);
    if let Some(limits) = device_limits(&device)? {
        println!("at most {:.0} GFLOP/s in f32, {:.0} GB/s", limits.gflop_per_sec, limits.gb_per_sec);
    }
    println!("{:<14} {:<18} {:>9} {:>9} {:>10} {:>9}", "shape", "operation", "positions", "us", "GFLOP/s", "GB/s");
    let (shapes, lengths): (&[Shape], &[usize]) = match device.is_cpu() {
        true => (&[SMOLLM2], &[6, 16, 64]),
        false => (&[SMOLLM2, GEMMA2, LLAMA31], &[64, 512]),
    };
    for shape in shapes {
        for &n_pos in lengths {
            bench(shape, n_pos, &device)?;
        }
    }
    bench_influence(&device)
}

/// Prints the best time of many.
fn report(
    device: &Device,
    [shape, name]: [&str; 2],
    n_pos: usize,
    (flop, n_values): (f64, usize),
    mut run: impl FnMut() -> candle_core::Result<()>,
) -> Outcome<()> {
    let mut best = f64::INFINITY;
    for _ in 0..50 {
        let start = Instant::now();
        run()?;
        device.synchronize()?;
        best = best.min(start.elapsed().as_secs_f64());
    }
    let (gflop, gb) = (flop / best / 1e9, 4.0 * n_values as f64 / best / 1e9);
    println!("{shape:<14} {name:<18} {n_pos:>9} {:>9.0} {gflop:>10.1} {gb:>9.1}", best * 1e6);
    Ok(())
}

/// The choice of the next features, from 2,000 rows of 16,000 features in 16 layers.
fn bench_influence(device: &Device) -> Outcome<()> {
    let (n_rows, n_active) = (2000, 16_000);
    let layer_starts: Vec<usize> = (0..=16).map(|layer| layer * n_active / 16).collect();
    let visited: Vec<usize> = (0..n_rows - 1).map(|i| i * 8).collect();
    let rows = Tensor::rand(-1f32, 1f32, (n_rows, n_active), device)?;
    let (flop, n_values) = (4.0 * (n_rows * n_active) as f64, n_rows * n_active * 3 / 2);
    let shape = RowShape {
        capacity: n_rows,
        n_columns: n_active,
        row_stride: n_active,
        layer_starts: &layer_starts,
        row_sum_clamp: PARTIAL_ROW_SUM_CLAMP as f32,
    };
    match RowsOnDevice::new(device, shape)? {
        Some(mut on_device) => {
            on_device.push_targets(&rows.narrow(0, 0, 1)?, &[1.0])?;
            on_device.push_features(&rows.narrow(0, 1, n_rows - 1)?, &visited)?;
            report(device, ["", "influence"], 0, (flop, n_values), || on_device.next_features(2048).map(drop))
        }
        None => {
            let values: Vec<f32> = rows.flatten_all()?.to_vec1()?;
            let mut is_visited = vec![false; n_active];
            visited.iter().for_each(|&feature| is_visited[feature] = true);
            let (weights, visited) = (&[1.0], visited.as_slice());
            let rows =
                PartialRows { values: &values, stride: n_active, n_columns: n_active, n_active, weights, visited };
            report(device, ["", "influence"], 0, (flop, n_values), || {
                std::hint::black_box(next_features(&partial_influence(&rows), &is_visited, 2048));
                Ok(())
            })
        }
    }
}

/// Positions of targets, descending, that fill a batch.
fn batch(n_pos: usize, device: &Device) -> RaggedBatch {
    let n_rows = if device.is_cpu() { 512 } else { gradient_rows(device) };
    let per_pos = (n_rows / (n_pos * (n_pos + 1) / 2)).max(1);
    let mut positions: Vec<usize> = (1..n_pos).rev().flat_map(|p| std::iter::repeat_n(p, per_pos)).collect();
    while positions.iter().map(|p| p + 1).sum::<usize>() > n_rows {
        positions.remove(positions.len() / 2);
    }
    RaggedBatch::new(positions)
}

fn bench(shape: &Shape, n_pos: usize, device: &Device) -> Outcome<()> {
    let &Shape { d_model, n_heads, n_kv_heads, d_head, .. } = shape;
    let ragged = batch(n_pos, device);
    let n_rows = ragged.n_rows();
    let random = |shape: (usize, usize)| Tensor::rand(-1f32, 1f32, shape, device);
    let grad = random((n_rows, d_model))?;
    let (w_o, w_v) = (random((d_model, n_heads * d_head))?, random((n_kv_heads * d_head, d_model))?);
    let (z, v) = (random((n_rows, n_heads * d_head))?, random((n_rows, n_kv_heads * d_head))?);
    let pattern = Tensor::rand(0f32, 1f32, (n_heads, n_pos, n_pos), device)?;
    let starts: Vec<usize> = (0..=n_pos).map(|p| p * SOURCES_PER_POS).collect();
    let vecs = random((SOURCES_PER_POS * n_pos, d_model))?;
    let sources = SourceVecs::new(vecs, starts.into());
    let factors = NormFactors::new(&Tensor::ones(d_model, DType::F32, device)?, &random((n_pos, 1))?, false)?;
    let products = random((n_pos, N_FEATURES))?;
    let bias = vec![-0.9; N_FEATURES];

    let report = |name: &str, flop: f64, n_values: usize, run: &mut dyn FnMut() -> candle_core::Result<()>| {
        report(device, [shape.name, name], n_pos, (flop, n_values), run)
    };
    let dense = 2.0 * (n_rows * d_model) as f64;
    let (z_width, v_width) = (n_heads * d_head, n_kv_heads * d_head);
    report("matmul W_O", dense * z_width as f64, n_rows * (d_model + z_width) + d_model * z_width, &mut || {
        matmul(&grad, &w_o).map(drop)
    })?;
    report(
        "add_product W_V",
        dense * v_width as f64,
        n_rows * (2 * d_model + v_width) + d_model * v_width,
        &mut || add_product(grad.clone(), &v, &w_v, None, &ragged).map(drop),
    )?;
    let pairs: usize = ragged.positions().iter().map(|&p| (p + 1) * (p + 2) / 2).sum();
    let attention_values = n_rows * (z_width + v_width) + pattern.elem_count();
    report("frozen_attention", 2.0 * (pairs * z_width) as f64, attention_values, &mut || {
        frozen_attention(&z, &pattern, n_kv_heads, &ragged).map(drop)
    })?;
    let n_effects = ragged.n_targets() * SOURCES_PER_POS * n_pos;
    let n_vec_values = SOURCES_PER_POS * n_pos * d_model;
    let flop = dense * SOURCES_PER_POS as f64;
    report("edge_rows", flop, n_rows * d_model + n_vec_values + n_effects, &mut || {
        edge_rows(&grad, &sources, &ragged).map(drop)
    })?;
    report("norm_pullback", 3.0 * grad.elem_count() as f64, 3 * grad.elem_count(), &mut || {
        norm_pullback(&grad, Some(&grad), &factors, &ragged).map(drop)
    })?;
    report("encode_active", products.elem_count() as f64, 2 * products.elem_count(), &mut || {
        encode_active(&products, &bias, Activity::Relu).map(drop)
    })?;
    report("encode_active TopK", products.elem_count() as f64, 6 * products.elem_count(), &mut || {
        encode_active(&products, &bias, Activity::TopK { k: 64 }).map(drop)
    })?;
    Ok(())
}
