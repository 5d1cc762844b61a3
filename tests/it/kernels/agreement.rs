//! Every kernel against its CPU side, on random shapes and on the edges of its thread blocks and warps.

use candle_core::{Device, Result, Tensor, bail};
use circuitscope::graph::{PARTIAL_ROW_SUM_CLAMP, PartialRows, next_features, partial_influence};
use circuitscope::ops::edge_rows::EdgeRowsArgs;
use circuitscope::ops::encode_active;
use circuitscope::ops::frozen_attention::{FrozenAttentionArgs, Queries};
use circuitscope::ops::gpu::{Arg, Gpu};
use circuitscope::ops::influence::{RowSums, RowsSoFar, SweptRows};
use circuitscope::ops::norm_pullback::NormPullbackArgs;
use circuitscope::ops::{self, Activity, Indices, NormFactors, RaggedBatch, SourceVecs};

use super::on_cpu::{self, Build, OnCpu};
use crate::transpose::Random;

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// How the errors of cases begin whose kernel and CPU side differ.
pub const WRONG_RESULT: &str = "the kernel disagrees";

fn check_close(actual: &[f32], expected: &[f32], what: &str) -> Result<()> {
    check_equal(actual.len(), expected.len(), what)?;
    let differ = |(a, e): &(&f32, &f32)| a.is_nan() != e.is_nan() || (**a - **e).abs() > 2e-5 + 2e-5 * e.abs();
    let bad: Vec<_> = actual.iter().zip(expected).enumerate().filter(|(_, pair)| differ(pair)).take(5).collect();
    if !bad.is_empty() {
        bail!("{WRONG_RESULT}: {what}: (index, (kernel, CPU)) {bad:?}");
    }
    Ok(())
}

fn check_equal<T: PartialEq + std::fmt::Debug>(actual: T, expected: T, what: &str) -> Result<()> {
    if actual != expected {
        bail!("{WRONG_RESULT}: {what}: {actual:?}, the CPU {expected:?}");
    }
    Ok(())
}

/// Runs a case on the CPU's copy of the kernels, compiled in each way.
fn for_each_build(case: impl Fn(&OnCpu, Build)) {
    if on_cpu::available() {
        for build in Build::ALL {
            case(&OnCpu::new(&on_cpu::program(build)), build);
        }
    }
}

/// Positions of a batch's targets, descending: none, one, all alike, unequal, many.
fn batches(random: &mut Random) -> Vec<Vec<usize>> {
    let unequal = |random: &mut Random, n: usize, n_pos: usize| {
        let mut positions: Vec<usize> = (0..n).map(|_| random.below(n_pos)).collect();
        positions.sort_unstable_by(|a, b| b.cmp(a));
        positions
    };
    vec![vec![], vec![0], vec![2; 33], unequal(random, 5, 9), unequal(random, 70, 4), unequal(random, 3, 40)]
}

pub fn edge_rows_case(
    gpu: &OnCpu,
    random: &mut Random,
    positions: Vec<usize>,
    width: usize,
    most: usize,
) -> Result<()> {
    let ragged = RaggedBatch::new(positions);
    let mut starts = vec![0];
    for p in 0..ragged.n_segments() {
        // One position is full, others have fewer sources or none.
        let n = if p == ragged.n_segments() / 2 { most } else { random.below(most + 1) };
        starts.push(starts[p] + n);
    }
    let n_sources = starts[ragged.n_segments()];
    let (grad, vecs) = (random.vec(ragged.n_rows() * width), random.vec(n_sources * width));
    let starts: Indices = starts.into();
    let sources = SourceVecs::new(tensor(&vecs, &[n_sources, width]), starts.clone());
    let expected = ops::edge_rows(&tensor(&grad, &[ragged.n_rows(), width]), &sources, &ragged)?;
    // Columns in reverse, behind two that must stay as they are, in rows that hold something already.
    let row_stride = n_sources + 2;
    let columns: Vec<u32> = (0..n_sources as u32).rev().map(|column| column + 2).collect();
    let before = random.vec(ragged.n_targets() * row_stride);
    let rows = gpu.upload(&before)?;
    let args = EdgeRowsArgs {
        rows: gpu.arg::<f32>(&rows),
        row_stride,
        grad: gpu.input(&grad),
        vecs: gpu.input(&vecs),
        columns: gpu.input(&columns),
        segment_starts: gpu.input(&ragged.starts().to_u32()),
        source_starts: gpu.input(&starts.to_u32()),
        width,
    };
    // SAFETY: each buffer was made above, as large as its field says.
    unsafe { ops::edge_rows::launch(gpu, &args, &ragged, &starts)? };
    let rows: Vec<f32> = gpu.download(&rows)?;
    let expected: Vec<Vec<f32>> = expected.to_vec2()?;
    let mut sums = before;
    for (t, effects) in expected.iter().enumerate() {
        for (s, effect) in effects.iter().enumerate() {
            sums[t * row_stride + columns[s] as usize] += effect;
        }
    }
    check_close(&rows, &sums, &format!("edge_rows, width {width}, at most {most} sources"))?;
    Ok(())
}

#[test]
fn edge_rows_kernel_agrees_with_its_cpu_side() {
    for_each_build(|gpu, build| {
        let mut random = Random::new(1);
        for positions in batches(&mut random) {
            // Sources at the edges of a thread block of 64, widths at those of a slice of 32.
            let shapes: &[(usize, usize)] = match build {
                Build::Plain => &[(1, 1), (33, 64), (32, 65), (31, 0), (64, 130)],
                _ => &[(33, 65)],
            };
            for &(width, most) in shapes {
                edge_rows_case(gpu, &mut random, positions.clone(), width, most).unwrap();
            }
        }
    });
}

pub fn attention_case(
    gpu: &OnCpu,
    random: &mut Random,
    positions: Vec<usize>,
    [n_heads, n_kv_heads, d_head]: [usize; 3],
) -> Result<()> {
    let ragged = RaggedBatch::new(positions);
    let n_pos = ragged.n_segments() + 1;
    // Above the diagonal stands what must never be read.
    let mut pattern = random.vec(n_heads * n_pos * n_pos);
    for (i, weight) in pattern.iter_mut().enumerate() {
        if i % n_pos > i / n_pos % n_pos {
            *weight = f32::NAN;
        }
    }
    for queries in [Queries::All, Queries::Own] {
        let n_rows = if queries == Queries::Own { ragged.n_targets() } else { ragged.n_rows() };
        let grad_z = random.vec(n_rows * n_heads * d_head);
        let on_cpu = if queries == Queries::Own { ops::frozen_attention_own } else { ops::frozen_attention };
        let expected = on_cpu(
            &tensor(&grad_z, &[n_rows, n_heads * d_head]),
            &tensor(&pattern, &[n_heads, n_pos, n_pos]),
            n_kv_heads,
            &ragged,
        )?;
        let out = gpu.upload(&vec![f32::NAN; ragged.n_rows() * n_kv_heads * d_head])?;
        let args = FrozenAttentionArgs {
            out: gpu.arg::<f32>(&out),
            grad_z: gpu.input(&grad_z),
            pattern: gpu.input(&pattern),
            segment_starts: gpu.input(&ragged.starts().to_u32()),
            positions: gpu.input(&ragged.positions().to_u32()),
            n_pos,
            n_heads,
            n_kv_heads,
            d_head,
            queries,
        };
        // SAFETY: each buffer was made above, as large as its field says.
        unsafe { ops::frozen_attention::launch(gpu, &args, &ragged)? };
        let what = format!("frozen_attention {queries:?}, heads {n_heads} {n_kv_heads}, d_head {d_head}");
        check_close(&gpu.download::<f32>(&out)?, &flat(&expected), &what)?;
    }
    Ok(())
}

#[test]
fn frozen_attention_kernels_agree_with_their_cpu_side() {
    for_each_build(|gpu, build| {
        let mut random = Random::new(2);
        for positions in batches(&mut random) {
            let shapes: &[[usize; 3]] = match build {
                Build::Plain => &[[1, 1, 1], [6, 2, 16], [4, 4, 64], [2, 1, 65]],
                _ => &[[4, 2, 17]],
            };
            for &shape in shapes {
                attention_case(gpu, &mut random, positions.clone(), shape).unwrap();
            }
        }
    });
}

pub fn norm_case(gpu: &OnCpu, random: &mut Random, positions: Vec<usize>, width: usize) -> Result<()> {
    let ragged = RaggedBatch::new(positions);
    let (n_rows, n_pos) = (ragged.n_rows(), ragged.n_segments() + 1);
    let (grad, residual) = (random.vec(n_rows * width), random.vec(n_rows * width));
    let [gain, post_gain] = [random.vec(width), random.vec(width)];
    let [scale, post_scale] = [random.vec(n_pos), random.vec(n_pos)];
    let factors = |gain: &[f32], scale: &[f32], centred| {
        NormFactors::new(&tensor(gain, &[width]), &tensor(scale, &[n_pos]), centred)
    };
    let [grad_t, residual_t] = [&grad, &residual].map(|values| tensor(values, &[n_rows, width]));
    let row_positions: Vec<u32> = ragged.row_positions().map(|p| p as u32).collect();
    for (has_norm, centred, has_residual, has_post) in [
        (true, false, false, false),
        (true, true, true, false),
        (true, true, true, true),
        (false, false, true, true),
        (false, false, true, false),
    ] {
        let expected = match (has_norm, has_residual) {
            (true, with) => {
                ops::norm_pullback(&grad_t, with.then_some(&residual_t), &factors(&gain, &scale, centred)?, &ragged)?
            }
            (false, _) => (&grad_t + &residual_t)?,
        };
        let [out, post_out] = [0, 1].map(|_| gpu.upload(&vec![f32::NAN; n_rows * width]).unwrap());
        let args = NormPullbackArgs {
            out: gpu.arg::<f32>(&out),
            post_out: if has_post { gpu.arg::<f32>(&post_out) } else { Arg::Null },
            grad: gpu.input(&grad),
            residual: if has_residual { gpu.input(&residual) } else { Arg::Null },
            norm: if has_norm { [gpu.input(&gain), gpu.input(&scale)] } else { [Arg::Null; 2] },
            post: if has_post { [gpu.input(&post_gain), gpu.input(&post_scale)] } else { [Arg::Null; 2] },
            row_positions: gpu.input(&row_positions),
            width,
            centred,
        };
        // SAFETY: each buffer was made above, as large as its field says.
        unsafe { ops::norm_pullback::launch(gpu, &args, &ragged)? };
        let what = format!("norm_pullback, width {width}, centred {centred}, residual {has_residual}");
        check_close(&gpu.download::<f32>(&out)?, &flat(&expected), &what)?;
        if has_post {
            let post = ops::norm_pullback(&expected, None, &factors(&post_gain, &post_scale, false)?, &ragged)?;
            check_close(&gpu.download::<f32>(&post_out)?, &flat(&post), &format!("{what}, post-norm"))?;
        }
    }
    Ok(())
}

#[test]
fn norm_pullback_kernel_agrees_with_its_cpu_side() {
    for_each_build(|gpu, build| {
        let mut random = Random::new(3);
        for positions in batches(&mut random) {
            let widths: &[usize] = if build == Build::Plain { &[1, 31, 32, 33, 100] } else { &[33] };
            for &width in widths {
                norm_case(gpu, &mut random, positions.clone(), width).unwrap();
            }
        }
    });
}

/// Pre-activations with ties, zeros of both signs and whole runs of equal values.
fn with_ties(random: &mut Random, n: usize) -> Vec<f32> {
    (0..n).map(|_| if random.below(2) == 0 { random.next() } else { (random.below(5) as f32 - 2.0) / 2.0 }).collect()
}

pub fn encode_case(gpu: &OnCpu, random: &mut Random, n_pos: usize, n_features: usize) -> Result<()> {
    let products = with_ties(random, n_pos * n_features);
    let bias = with_ties(random, n_features);
    let threshold = with_ties(random, n_features);
    let top = [0, 1, 3, n_features / 2, n_features, n_features + 7].map(|k| Activity::TopK { k });
    for activity in [Activity::Relu, Activity::JumpRelu { threshold: &threshold }].into_iter().chain(top) {
        let expected = ops::encode_active(&tensor(&products, &[n_pos, n_features]), &bias, activity)?;
        // SAFETY: the products are as large as positions and features say.
        let actual = unsafe { encode_active::launch(gpu, gpu.input(&products), n_pos, &bias, activity)? };
        check_equal(actual, expected, &format!("{n_pos} positions, {n_features} features, {activity:?}"))?;
    }
    Ok(())
}

#[test]
fn encode_active_kernels_agree_with_their_cpu_side_bit_for_bit() {
    for_each_build(|gpu, build| {
        let mut random = Random::new(4);
        let shapes: &[(usize, usize)] = match build {
            Build::Plain => &[(0, 5), (3, 0), (1, 1), (2, 255), (1, 256), (3, 1024), (2, 1025), (20, 3)],
            _ => &[(2, 1030)],
        };
        for &(n_pos, n_features) in shapes {
            encode_case(gpu, &mut random, n_pos, n_features).unwrap();
        }
    });
}

pub fn influence_case(gpu: &OnCpu, random: &mut Random, layers: &[usize], n_targets: usize) -> Result<()> {
    let layer_starts: Vec<usize> = std::iter::once(0)
        .chain(layers.iter().scan(0, |n, layer| {
            Some({
                *n += layer;
                *n
            })
        }))
        .collect();
    let n_active = layer_starts[layers.len()];
    let (n_columns, row_stride) = (n_active + 7, n_active + 12);
    let weights: Vec<f32> = (0..n_targets).map(|_| random.next().abs()).collect();
    // Every third feature has been visited; rows see lower layers, errors and tokens.
    let visited: Vec<usize> = (0..n_active).step_by(3).rev().collect();
    let mut rows = random.vec((n_targets + visited.len()) * row_stride);
    for (i, &feature) in visited.iter().enumerate() {
        let layer = layer_starts.partition_point(|&start| start <= feature) - 1;
        rows[(n_targets + i) * row_stride..][layer_starts[layer]..n_active].fill(0.0);
    }
    // A row of zeros has no influence to pass on.
    if let Some(row) = rows.chunks_exact_mut(row_stride).last() {
        row.fill(0.0);
    }
    let mut is_visited = vec![false; n_active];
    visited.iter().for_each(|&feature| is_visited[feature] = true);
    let expected = partial_influence(&PartialRows {
        values: &rows,
        stride: row_stride,
        n_columns,
        n_active,
        weights: &weights,
        visited: &visited,
    });
    let buffer = gpu.input(&rows);
    let mut sums = RowSums::new(gpu, n_targets + visited.len())?;
    let all_targets: Vec<(usize, f32)> = weights.iter().copied().enumerate().collect();
    let all_visited: Vec<(usize, usize)> = visited.iter().enumerate().map(|(i, &f)| (n_targets + i, f)).collect();
    let n_open = n_active - visited.len();
    for count in [0, 1, n_open / 2, n_open, n_open + 3] {
        let so_far = RowsSoFar {
            rows: buffer,
            row_stride,
            n_columns,
            layer_starts: &layer_starts,
            row_sum_clamp: PARTIAL_ROW_SUM_CLAMP as f32,
            targets: &all_targets,
            visited: &all_visited,
        };
        // SAFETY: the rows were made above, numbered in order; there is room for a sum a row.
        let selected = unsafe { ops::influence::launch(gpu, &so_far, &mut sums, count)? };
        let expected = next_features(&expected, &is_visited, count);
        check_equal(selected, expected, &format!("{count} of {n_open} in {layers:?}"))?;
    }
    Ok(())
}

pub fn swept_case(gpu: &OnCpu, random: &mut Random, n_rows: usize, n_columns: usize, n_vectors: usize) -> Result<()> {
    let (row_stride, row_sum_clamp) = (n_columns + 5, 1e-10);
    let mut rows = random.vec(n_rows * row_stride);
    // A row of zeros has nothing to pass on.
    rows[..row_stride].fill(0.0);
    let weights: Vec<Vec<f64>> =
        (0..n_vectors).map(|_| random.vec(n_rows).into_iter().map(f64::from).collect()).collect();
    let vectors: Vec<_> = (0..n_vectors).map(|_| gpu.zeros::<f64>(n_columns)).collect::<Result<_>>()?;
    let buffer = gpu.input(&rows);
    let mut expected = vec![vec![0.0; n_columns]; n_vectors];
    // Twice: what is added comes to what is there.
    for _ in 0..2 {
        let swept = SweptRows { rows: buffer, n_rows, row_stride, n_columns, row_sum_clamp };
        // SAFETY: rows and vectors were made above with these sizes.
        unsafe { ops::influence::add_rows(gpu, swept, &vectors, &weights)? };
        for (vector, weights) in expected.iter_mut().zip(&weights) {
            for (row, weight) in rows.chunks_exact(row_stride).zip(weights) {
                let sum: f64 = row[..n_columns].iter().map(|value| f64::from(value.abs())).sum();
                let share = weight / sum.max(f64::from(row_sum_clamp));
                vector.iter_mut().zip(row).for_each(|(total, value)| *total += share * f64::from(value.abs()));
            }
        }
    }
    for (vector, expected) in vectors.iter().zip(&expected) {
        let found: Vec<f64> = gpu.download(vector)?;
        let far = found.iter().zip(expected).filter(|(found, expected)| (*found - *expected).abs() > 1e-12).count();
        check_equal((found.len(), far), (n_columns, 0), &format!("{n_rows} rows of {n_columns} columns"))?;
        let part = n_columns / 3..n_columns;
        check_equal(gpu.download_part::<f64>(vector, part.clone())?, found[part].to_vec(), "a part")?;
    }
    Ok(())
}

#[test]
fn swept_rows_are_added_as_the_cpu_side_adds_them() {
    for_each_build(|gpu, build| {
        let mut random = Random::new(8);
        let shapes: &[(usize, usize, usize)] = match build {
            Build::Plain => &[(1, 1, 1), (1, 31, 9), (9, 33, 9), (70, 300, 2)],
            _ => &[(11, 45, 2)],
        };
        for &(n_rows, n_columns, n_vectors) in shapes {
            swept_case(gpu, &mut random, n_rows, n_columns, n_vectors).unwrap();
        }
    });
}

#[test]
fn influence_kernels_choose_the_features_that_the_cpu_side_chooses() {
    for_each_build(|gpu, build| {
        let mut random = Random::new(5);
        let shapes: &[(&[usize], usize)] = match build {
            Build::Plain => &[(&[0], 1), (&[1], 1), (&[3, 0, 5, 40], 2), (&[31, 33, 200, 64], 10)],
            _ => &[(&[20, 45], 2)],
        };
        for (layers, n_targets) in shapes {
            influence_case(gpu, &mut random, layers, *n_targets).unwrap();
        }
    });
}

#[test]
fn the_same_launch_gives_the_same_bits() {
    if !on_cpu::available() {
        return;
    }
    let program = on_cpu::program(Build::Plain);
    let run = || -> Vec<Vec<f32>> {
        let (gpu, mut random) = (OnCpu::new(&program), Random::new(6));
        let (z, bias) = (random.vec(3 * 1100), random.vec(1100));
        // SAFETY: an input of 3 x 1100 values, and as many biases as features.
        let found = unsafe { encode_active::launch(&gpu, gpu.input(&z), 3, &bias, Activity::TopK { k: 40 }) }.unwrap();
        let sums = gpu.zeros::<f64>(3).unwrap();
        let kernel = ops::gpu::Kernel { file: "influence", name: "row_abs_sums", n_threads: 256 };
        let args = vec![gpu.arg::<f64>(&sums), gpu.input(&z), Arg::U32(0), Arg::U32(1100), Arg::U32(1090)];
        // SAFETY: three sums, three rows of 1100 values.
        unsafe { gpu.launch(&ops::gpu::Launch { kernel, grid: [3, 1, 1], args }) }.unwrap();
        let sums: Vec<f64> = gpu.download(&sums).unwrap();
        let halves =
            sums.iter().flat_map(|s| [f32::from_bits((s.to_bits() >> 32) as u32), f32::from_bits(s.to_bits() as u32)]);
        vec![found.values, halves.collect()]
    };
    let bits = |all: Vec<Vec<f32>>| -> Vec<Vec<u32>> {
        all.into_iter().map(|values| values.into_iter().map(f32::to_bits).collect()).collect()
    };
    assert_eq!(bits(run()), bits(run()));
}
