//! The operations of the row phase against slow, obvious twins, on random ragged batches.

use std::path::Path;
use std::process::{Command, Output};

use candle_core::Tensor;
use circuitscope::export::read_raw;
use circuitscope::ops::{
    Activity, NormFactors, RaggedBatch, RowShape, RowsOnDevice, SourceVecs, SparseActivations, device_name, edge_rows,
    encode_active, frozen_attention, is_out_of_memory, norm_pullback, open_cuda,
};
use proptest::prelude::*;

use crate::support::{device, fixture};
use crate::transpose::Random;

fn tensor(values: Vec<f32>, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values, shape, &device()).unwrap()
}

fn sources(vecs: Vec<f32>, width: usize, starts: Vec<usize>) -> SourceVecs {
    SourceVecs::new(tensor(vecs, &[starts[starts.len() - 1], width]), starts.into())
}

fn assert_close(actual: &Tensor, expected: &[f32], name: &str) {
    let actual: Vec<f32> = actual.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(actual.len(), expected.len(), "{name}: size");
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((a - e).abs() <= 1e-5 + 1e-5 * e.abs(), "{name}: {a} is not {e} at {i}");
    }
}

/// Descending positions of 0 to 20 targets, some far apart; of one at least on GPUs, which have no empty memory.
fn positions() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0usize..12, usize::from(!device().is_cpu())..20).prop_map(|mut positions| {
        positions.sort_unstable_by(|a, b| b.cmp(a));
        positions
    })
}

/// Row of target `t` at position `p` in the ragged layout, looked up from scratch.
fn row(positions: &[usize], p: usize, t: usize) -> usize {
    let reaches = |p: usize| positions.iter().filter(|&&own| own >= p).count();
    (0..p).map(reaches).sum::<usize>() + t
}

/// All (target, position) pairs of a batch that exist.
fn cells(positions: &[usize]) -> impl Iterator<Item = (usize, usize)> {
    positions.iter().enumerate().flat_map(|(t, &last)| (0..=last).map(move |p| (t, p)))
}

/// Whether a pre-activation is active, decided from the whole row.
fn is_active(row: &[f32], feature: usize, activity: Activity) -> bool {
    let value = row[feature];
    match activity {
        Activity::Relu => value > 0.0,
        Activity::JumpRelu { threshold } => value > threshold[feature] && value != 0.0,
        Activity::TopK { k } => {
            let before = |other: usize| row[other] > value || (row[other] == value && other < feature);
            (0..row.len()).filter(|&other| before(other)).count() < k
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn edge_rows_are_dot_products_up_to_the_target(
        positions in positions(), counts in prop::collection::vec(0usize..6, 12), width in 1usize..40, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let ragged = RaggedBatch::new(positions.clone());
        let n_pos = ragged.n_segments();
        let mut starts = vec![0];
        counts.iter().take(n_pos).for_each(|count| starts.push(starts[starts.len() - 1] + count));
        let n_sources = starts[n_pos];
        prop_assume!(n_sources > 0 || device().is_cpu());
        let grad = random.vec(ragged.n_rows() * width);
        let vecs = random.vec(n_sources * width);
        let mut expected = vec![0f32; positions.len() * n_sources];
        for (t, p) in cells(&positions) {
            let grad = &grad[row(&positions, p, t) * width..][..width];
            for s in starts[p]..starts[p + 1] {
                expected[t * n_sources + s] = grad.iter().zip(&vecs[s * width..]).map(|(a, b)| a * b).sum();
            }
        }
        let actual = edge_rows(&tensor(grad, &[ragged.n_rows(), width]), &sources(vecs, width, starts), &ragged);
        assert_close(&actual.unwrap(), &expected, "edge_rows");
    }

    #[test]
    fn frozen_attention_is_the_transpose_of_the_pattern(
        positions in positions(), n_kv_heads in 1usize..4, n_rep in 1usize..4, d_head in 1usize..90, extra in 0usize..3,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let ragged = RaggedBatch::new(positions.clone());
        let (n_heads, n_pos) = (n_kv_heads * n_rep, ragged.n_segments() + extra);
        let grad = random.vec(ragged.n_rows() * n_heads * d_head);
        let pattern = random.vec(n_heads * n_pos * n_pos);
        let mut expected = vec![0f32; ragged.n_rows() * n_kv_heads * d_head];
        for (t, key) in cells(&positions) {
            for q in key..=positions[t] {
                for h in 0..n_heads {
                    for j in 0..d_head {
                        expected[(row(&positions, key, t) * n_kv_heads + h / n_rep) * d_head + j] +=
                            pattern[(h * n_pos + q) * n_pos + key]
                                * grad[(row(&positions, q, t) * n_heads + h) * d_head + j];
                    }
                }
            }
        }
        let grad = tensor(grad, &[ragged.n_rows(), n_heads * d_head]);
        let pattern = tensor(pattern, &[n_heads, n_pos, n_pos]);
        let actual = frozen_attention(&grad, &pattern, n_kv_heads, &ragged).unwrap();
        assert_close(&actual, &expected, "frozen_attention");
    }

    #[test]
    fn norm_pullback_is_the_transpose_of_the_norm(
        positions in positions(), width in 1usize..40, extra in 0usize..3, centred: bool, residual: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let ragged = RaggedBatch::new(positions.clone());
        let n_pos = ragged.n_segments() + extra;
        let (gain, scale) = (random.vec(width), random.vec(n_pos));
        let factors = NormFactors::new(&tensor(gain.clone(), &[width]), &tensor(scale.clone(), &[n_pos, 1]), centred);
        let factors = factors.unwrap();
        let grad = random.vec(ragged.n_rows() * width);
        let base = random.vec(ragged.n_rows() * width);
        let mut expected = vec![0f32; ragged.n_rows() * width];
        for (t, p) in cells(&positions) {
            let at = row(&positions, p, t) * width;
            let scaled: Vec<f32> = (0..width).map(|i| grad[at + i] * gain[i] * scale[p]).collect();
            let mean = if centred { scaled.iter().sum::<f32>() / width as f32 } else { 0.0 };
            for i in 0..width {
                expected[at + i] = scaled[i] - mean + if residual { base[at + i] } else { 0.0 };
            }
        }
        let shape = [ragged.n_rows(), width];
        let base = tensor(base, &shape);
        let actual = norm_pullback(&tensor(grad, &shape), residual.then_some(&base), &factors, &ragged).unwrap();
        assert_close(&actual, &expected, "norm_pullback");
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let ragged = RaggedBatch::new(vec![1, 0]);
    let grad = tensor(vec![0.0; 3 * 4], &[3, 4]);
    let short = tensor(vec![0.0; 2 * 4], &[2, 4]);
    assert!(edge_rows(&grad, &sources(vec![0.0; 5], 5, vec![0, 1, 1]), &ragged).is_err());
    assert!(edge_rows(&short, &sources(vec![0.0; 4], 4, vec![0, 1, 1]), &ragged).is_err());
    assert!(edge_rows(&grad, &sources(vec![0.0; 4], 4, vec![0, 1]), &ragged).is_err());
    assert!(frozen_attention(&grad, &tensor(vec![0.0; 3 * 4], &[3, 2, 2]), 1, &ragged).is_err());
    assert!(frozen_attention(&grad, &tensor(vec![0.0; 2], &[2, 1, 1]), 1, &ragged).is_err());
    let factors = NormFactors::new(&tensor(vec![1.0; 4], &[4]), &tensor(vec![1.0], &[1, 1]), false).unwrap();
    assert!(norm_pullback(&grad, None, &factors, &ragged).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn active_features_are_those_that_the_activation_lets_through(
        n_pos in 1usize..5, n_features in 1usize..60, k in 0usize..70, seed: u64,
    ) {
        let mut random = Random::new(seed);
        // Coarse values, so that some are equal and some are zero.
        let mut values = |n: usize| -> Vec<f32> { (0..n).map(|_| random.below(9) as f32 / 4.0 - 1.0).collect() };
        let (products, bias, threshold) = (values(n_pos * n_features), values(n_features), values(n_features));
        for activity in [Activity::Relu, Activity::JumpRelu { threshold: &threshold }, Activity::TopK { k }] {
            let found = encode_active(&tensor(products.clone(), &[n_pos, n_features]), &bias, activity).unwrap();
            let mut expected = SparseActivations::default();
            for (pos, row) in products.chunks_exact(n_features).enumerate() {
                let row: Vec<f32> = row.iter().zip(&bias).map(|(z, b)| z + b).collect();
                for feature in (0..n_features).filter(|&feature| is_active(&row, feature, activity)) {
                    expected.positions.push(pos as u32);
                    expected.features.push(feature as u32);
                    expected.values.push(row[feature]);
                }
            }
            prop_assert_eq!(&found, &expected, "{:?}", activity);
        }
    }
}

#[test]
fn too_little_device_memory_is_told_from_other_device_errors() {
    let rows = |capacity: usize| {
        let (row_stride, row_sum_clamp) = (1 << 20, 1e-8);
        let shape = RowShape { capacity, n_columns: row_stride, row_stride, layer_starts: &[0, 9], row_sum_clamp };
        RowsOnDevice::new(&device(), shape)
    };
    let no_such_device = open_cuda(1000).unwrap_err();
    assert!(!is_out_of_memory(&no_such_device), "{no_such_device}");
    if device().is_cpu() {
        assert!(rows(1).unwrap().is_none(), "rows are on the host anyway");
        return;
    }
    assert!(rows(1).unwrap().is_some());
    // 16 TiB
    let no_room = rows(1 << 22).unwrap_err();
    assert!(is_out_of_memory(&no_room), "{no_room}");
}

/// Runs `trace` on a GPU, whose stand-in may refuse allocations of so many bytes with a status of the driver.
fn trace_on_gpu(folder: &Path, out: &str, refuse: Option<(usize, u32)>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_circuitscope"));
    let reference = fixture("reference/llama_relu");
    command.current_dir(folder).args(["trace", "He went", "--max-features", "5", "--device", "cuda"]);
    command.args(["--format", "json", "--slug", "graph", "--out-dir", out]);
    command.arg("--model").arg(reference.join("model")).arg("--transcoders").arg(reference.join("transcoders"));
    if let Some((n_bytes, status)) = refuse {
        command.env("CIRCUITSCOPE_ON_CPU_REFUSE", format!("{n_bytes}:{status}"));
    }
    command.output().unwrap()
}

#[test]
fn only_too_little_memory_lets_the_host_choose_the_features() {
    if !device_name(&device()).unwrap().contains("a stand-in on the CPU") {
        // Only the stand-in for the driver refuses what it is told to.
        return;
    }
    const OUT_OF_MEMORY: u32 = 2;
    const ECC_UNCORRECTABLE: u32 = 214;
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let bytes = |out: &str| std::fs::read(at.join(out).join("graph.safetensors")).unwrap();
    assert!(trace_on_gpu(at, "on_gpu", None).status.success());
    let graph = read_raw(&at.join("on_gpu/graph.safetensors")).unwrap();
    // The rows so far: one a target and selected feature; columns for all nodes, also without a row, and the biases.
    let (layout, n_active) = (graph.layout(), graph.active_features.len());
    let row_stride = layout.n_nodes() - layout.n_features() + n_active + layout.n_pos();
    let n_bytes = layout.n_rows() * row_stride * size_of::<f32>();
    assert!(n_active > 5, "there is something to choose");

    let short = trace_on_gpu(at, "on_host", Some((n_bytes, OUT_OF_MEMORY)));
    let said = String::from_utf8(short.stderr).unwrap();
    assert!(short.status.success() && said.contains("too little GPU memory"), "{said}");
    assert_eq!(bytes("on_host"), bytes("on_gpu"));

    let broken = trace_on_gpu(at, "broken", Some((n_bytes, ECC_UNCORRECTABLE)));
    assert!(!broken.status.success(), "another error of the device is one");
    assert!(String::from_utf8(broken.stderr).unwrap().contains("error: "));
    assert!(!at.join("broken/graph.safetensors").exists());
}
