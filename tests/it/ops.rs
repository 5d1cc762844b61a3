//! The operations of the row phase against slow, obvious twins, on random ragged batches.

use candle_core::Tensor;
use circuitscope::ops::{
    ActiveBlock, Activity, NormFactors, SourceVecs, TargetBlocks, edge_rows, encode_active, frozen_attention,
    norm_pullback,
};
use proptest::prelude::*;

use crate::support::device;
use crate::transpose::Random;

fn tensor(values: Vec<f32>, shape: &[usize]) -> Tensor {
    Tensor::from_vec(values, shape, &device()).unwrap()
}

fn sources(vecs: Vec<f32>, width: usize, starts: Vec<usize>) -> SourceVecs {
    SourceVecs { vecs: tensor(vecs, &[starts[starts.len() - 1], width]), scales: None, starts: starts.into() }
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
        let blocks = TargetBlocks::new(positions.clone());
        let n_pos = blocks.n_blocks();
        let mut starts = vec![0];
        counts.iter().take(n_pos).for_each(|count| starts.push(starts[starts.len() - 1] + count));
        let n_sources = starts[n_pos];
        prop_assume!(n_sources > 0 || device().is_cpu());
        let grad = random.vec(blocks.n_rows() * width);
        let vecs = random.vec(n_sources * width);
        let mut expected = vec![0f32; positions.len() * n_sources];
        for (t, p) in cells(&positions) {
            let grad = &grad[row(&positions, p, t) * width..][..width];
            for s in starts[p]..starts[p + 1] {
                expected[t * n_sources + s] = grad.iter().zip(&vecs[s * width..]).map(|(a, b)| a * b).sum();
            }
        }
        let actual = edge_rows(&tensor(grad, &[blocks.n_rows(), width]), &sources(vecs, width, starts), &blocks);
        assert_close(&actual.unwrap(), &expected, "edge_rows");
    }

    #[test]
    fn frozen_attention_is_the_transpose_of_the_pattern(
        positions in positions(), n_kv_heads in 1usize..4, n_rep in 1usize..4, d_head in 1usize..90, extra in 0usize..3,
        seed: u64,
    ) {
        let mut random = Random::new(seed);
        let blocks = TargetBlocks::new(positions.clone());
        let (n_heads, n_pos) = (n_kv_heads * n_rep, blocks.n_blocks() + extra);
        let grad = random.vec(blocks.n_rows() * n_heads * d_head);
        let pattern = random.vec(n_heads * n_pos * n_pos);
        let mut expected = vec![0f32; blocks.n_rows() * n_kv_heads * d_head];
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
        let grad = tensor(grad, &[blocks.n_rows(), n_heads * d_head]);
        let pattern = tensor(pattern, &[n_heads, n_pos, n_pos]);
        let actual = frozen_attention(&grad, &pattern, n_kv_heads, &blocks).unwrap();
        assert_close(&actual, &expected, "frozen_attention");
    }

    #[test]
    fn norm_pullback_is_the_transpose_of_the_norm(
        positions in positions(), width in 1usize..40, extra in 0usize..3, centred: bool, residual: bool, seed: u64,
    ) {
        let mut random = Random::new(seed);
        let blocks = TargetBlocks::new(positions.clone());
        let n_pos = blocks.n_blocks() + extra;
        let (gain, scale) = (random.vec(width), random.vec(n_pos));
        let factors = NormFactors::new(&tensor(gain.clone(), &[width]), &tensor(scale.clone(), &[n_pos, 1]), centred);
        let factors = factors.unwrap();
        let grad = random.vec(blocks.n_rows() * width);
        let base = random.vec(blocks.n_rows() * width);
        let mut expected = vec![0f32; blocks.n_rows() * width];
        for (t, p) in cells(&positions) {
            let at = row(&positions, p, t) * width;
            let scaled: Vec<f32> = (0..width).map(|i| grad[at + i] * gain[i] * scale[p]).collect();
            let mean = if centred { scaled.iter().sum::<f32>() / width as f32 } else { 0.0 };
            for i in 0..width {
                expected[at + i] = scaled[i] - mean + if residual { base[at + i] } else { 0.0 };
            }
        }
        let shape = [blocks.n_rows(), width];
        let base = tensor(base, &shape);
        let actual = norm_pullback(&tensor(grad, &shape), residual.then_some(&base), &factors, &blocks).unwrap();
        assert_close(&actual, &expected, "norm_pullback");
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let blocks = TargetBlocks::new(vec![1, 0]);
    let grad = tensor(vec![0.0; 3 * 4], &[3, 4]);
    let short = tensor(vec![0.0; 2 * 4], &[2, 4]);
    assert!(edge_rows(&grad, &sources(vec![0.0; 5], 5, vec![0, 1, 1]), &blocks).is_err());
    assert!(edge_rows(&short, &sources(vec![0.0; 4], 4, vec![0, 1, 1]), &blocks).is_err());
    assert!(edge_rows(&grad, &sources(vec![0.0; 4], 4, vec![0, 1]), &blocks).is_err());
    assert!(frozen_attention(&grad, &tensor(vec![0.0; 3 * 4], &[3, 2, 2]), 1, &blocks).is_err());
    assert!(frozen_attention(&grad, &tensor(vec![0.0; 2], &[2, 1, 1]), 1, &blocks).is_err());
    let factors = NormFactors::new(&tensor(vec![1.0; 4], &[4]), &tensor(vec![1.0], &[1, 1]), false).unwrap();
    assert!(norm_pullback(&grad, None, &factors, &blocks).is_err());
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
            let mut expected = ActiveBlock::default();
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
