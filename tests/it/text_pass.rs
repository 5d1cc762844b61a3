//! The pass over much text against the forward pass of everything else: every family, every point, sequences of unequal
//! length, in f32 and rounded.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use circuitscope::job::{CancelToken, Job};
use circuitscope::model::{Activations, HookPoint, MlpKind, Model, TextPass, TextVisitor};
use circuitscope::weights::ModelFiles;
use circuitscope::{Error, Result};

use crate::reference::{Case, cases};
use crate::support::device;

fn models() -> Vec<(String, Model)> {
    let all = cases();
    let folders: BTreeSet<_> = all.iter().map(Case::root).collect();
    let open = |root: &std::path::Path| {
        let files = ModelFiles::open(root.join("model").to_str().unwrap()).unwrap();
        (root.display().to_string(), Model::open(&files.config, files.checkpoint, &device()).unwrap())
    };
    folders.iter().map(|root| open(root)).collect()
}

fn points(n_layers: usize) -> Vec<HookPoint> {
    let of_layer = |l| {
        use HookPoint::*;
        [ResidMid(l), Ln2Normalized(l), MlpIn(l), MlpOut(l), HookMlpOut(l)]
    };
    (0..n_layers).flat_map(of_layer).collect()
}

/// Keeps the rows of every sequence.
#[derive(Default)]
struct Kept {
    wanted: Vec<HookPoint>,
    lengths: Vec<usize>,
    /// `[n, d_model]` of every sequence at every point
    rows: BTreeMap<(HookPoint, usize), Vec<f32>>,
}

impl Kept {
    fn of(model: &Model, sequences: &[Vec<u32>]) -> Self {
        Self {
            wanted: points(model.config.n_layers),
            lengths: sequences.iter().map(Vec::len).collect(),
            rows: BTreeMap::new(),
        }
    }
}

impl TextVisitor for Kept {
    fn wants(&self, point: HookPoint) -> bool {
        self.wanted.contains(&point)
    }

    fn see(&mut self, point: HookPoint, rows: Vec<f32>, sequences: Range<usize>) -> Result<()> {
        let d_model = rows.len() / self.lengths[sequences.clone()].iter().sum::<usize>();
        let mut left = &rows[..];
        for sequence in sequences {
            let (own, rest) = left.split_at(self.lengths[sequence] * d_model);
            assert!(self.rows.insert((point, sequence), own.to_vec()).is_none(), "each is shown once");
            left = rest;
        }
        assert!(left.is_empty());
        Ok(())
    }
}

/// Sequences from one token to as many as the model takes, more than one group of rows together.
fn sequences(model: &Model) -> Vec<Vec<u32>> {
    let n_ctx = model.config.n_ctx;
    let lengths = [1, 7, n_ctx.min(150), 64, 3, n_ctx.min(65), n_ctx.min(200), 2];
    let token = |s: usize, i: usize| ((7 + 31 * s + 13 * i + 5 * s * i) % model.config.d_vocab) as u32;
    lengths.iter().enumerate().map(|(s, &n)| (0..n.min(n_ctx)).map(|i| token(s, i)).collect()).collect()
}

fn run(pass: &TextPass, model: &Model, sequences: &[Vec<u32>]) -> Kept {
    let mut kept = Kept::of(model, sequences);
    let borrowed: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    pass.run(model.config.n_layers - 1, &borrowed, &mut kept, &Job::default()).unwrap();
    assert_eq!(kept.rows.len(), kept.wanted.len() * sequences.len());
    kept
}

/// The largest difference of two slices, by the root mean square of the second.
fn difference(actual: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(actual.len(), expected.len());
    let square: f64 = expected.iter().map(|&e| f64::from(e).powi(2)).sum();
    let size = (square / expected.len() as f64).sqrt().max(1e-6);
    actual.iter().zip(expected).map(|(&a, &e)| (f64::from(a) - f64::from(e)).abs() / size).fold(0.0, f64::max)
}

#[test]
fn a_text_pass_computes_what_the_forward_pass_computes_in_every_family() {
    for (name, model) in models() {
        let sequences = sequences(&model);
        let pass = TextPass::new(&model);
        let kept = run(&pass, &model, &sequences);
        for (index, tokens) in sequences.iter().enumerate() {
            let mut slow = Activations::at(points(model.config.n_layers));
            model
                .forward_through(model.config.n_layers - 1, std::slice::from_ref(tokens), &mut slow, &Job::default())
                .unwrap();
            for point in points(model.config.n_layers) {
                let expected = slow.need(point).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let difference = difference(&kept.rows[&(point, index)], &expected);
                assert!(difference < 2e-4, "{name}, {point}, sequence {index}: {difference}");
            }
        }
        // Layers that are kept are the same layers, and whatever else is in the text, a sequence computes its own.
        let keeping = TextPass::new(&model).keeping();
        run(&keeping, &model, &sequences[..2]);
        let alone = run(&keeping, &model, &sequences[2..3]);
        for point in points(model.config.n_layers) {
            assert!(difference(&alone.rows[&(point, 0)], &kept.rows[&(point, 2)]) < 1e-4, "{name}, {point}");
        }
    }
}

#[test]
fn a_rounded_text_pass_differs_by_rounding_alone() {
    for (name, model) in models() {
        let sequences = sequences(&model);
        let exact = run(&TextPass::new(&model), &model, &sequences);
        let rounded = run(&TextPass::new(&model).keeping().rounding(), &model, &sequences);
        for (key, rows) in &rounded.rows {
            let expected = &exact.rows[key];
            let error: f64 = rows.iter().zip(expected).map(|(&a, &e)| f64::from(a - e).powi(2)).sum();
            let size: f64 = expected.iter().map(|&e| f64::from(e).powi(2)).sum();
            // Of a token whose embedding is zero, everything may be.
            let relative = (error / size.max(1e-12)).sqrt();
            // Rounding may choose other experts.
            let bound = if matches!(model.config.mlp, MlpKind::Experts { .. }) { 0.2 } else { 0.03 };
            assert!(relative < bound, "{name}, {key:?}: {relative}");
        }
    }
}

#[test]
fn any_number_of_threads_computes_the_same_bits() {
    let (name, model) = models().swap_remove(0);
    let sequences = sequences(&model);
    let with = |n| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        pool.install(|| run(&TextPass::new(&model), &model, &sequences)).rows
    };
    assert_eq!(with(1), with(3), "{name}");
}

#[test]
fn what_cannot_be_run_is_refused_and_a_cancelled_pass_ends() {
    let (_, model) = models().swap_remove(0);
    let pass = TextPass::new(&model);
    let mut none = Kept::default();
    let d_vocab = model.config.d_vocab as u32;
    let mut refused = |last_layer: usize, tokens: &[u32]| {
        pass.run(last_layer, &[&[1], tokens], &mut none, &Job::default()).unwrap_err()
    };
    assert!(matches!(refused(0, &[]), Error::EmptyPrompt));
    assert!(matches!(refused(0, &[d_vocab]), Error::TokenOutOfRange { .. }));
    assert!(matches!(refused(0, &vec![1; model.config.n_ctx + 1]), Error::PromptTooLong { .. }));
    assert!(matches!(refused(model.config.n_layers, &[1]), Error::NoSuchLayer { .. }));
    let cancelled = CancelToken::default();
    cancelled.cancel();
    let job = Job::default().with_cancel(cancelled);
    assert!(matches!(pass.run(0, &[&[1]], &mut none, &job).unwrap_err(), Error::Cancelled));
}
