//! The base model by itself: no transcoders anywhere. Logits, hook points against a literal twin, ragged batches, the
//! cache, and early ends.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use circuitscope::Error;
use circuitscope::job::{CancelToken, Job};
use circuitscope::model::{Activations, ForwardOptions, HookPoint, Hooks, KvCache, Linear, Mlp, Model, Norm, NormKind};
use circuitscope::weights::ModelFiles;

use crate::reference::{Case, cases};
use crate::support::{close, device, fixture};

fn open(folder: &std::path::Path) -> Model {
    let files = ModelFiles::open(folder.to_str().unwrap()).unwrap();
    Model::open(&files.config, files.checkpoint, &device()).unwrap()
}

/// One model of each folder of reference cases.
fn models() -> Vec<(String, Model)> {
    let all = cases();
    let folders: BTreeSet<_> = all.iter().map(Case::root).collect();
    let models: Vec<_> = folders.iter().map(|root| (root.display().to_string(), open(&root.join("model")))).collect();
    assert!(models.len() >= 6, "the repository holds models of six kinds: {}", models.len());
    models
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[track_caller]
fn assert_close(actual: &[f32], expected: &[f32], tolerance: f64, name: &str) {
    assert_eq!(actual.len(), expected.len(), "{name}");
    for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        if a != e {
            close(f64::from(a), f64::from(e), tolerance, tolerance, &format!("{name} at {i}"));
        }
    }
}

/// `n` tokens of a model's vocabulary, different for every seed.
fn tokens(model: &Model, seed: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((7 + 31 * seed + 13 * i + 5 * seed * i) % model.config.d_vocab) as u32).collect()
}

#[test]
fn the_model_alone_gives_the_reference_logits() {
    let mut n_checked = 0;
    for case in cases().iter() {
        let model = open(&case.root().join("model"));
        let tokens: Vec<u32> = case.i64s("input_tokens").iter().map(|&t| t as u32).collect();
        let pass = model.forward(&[tokens], &mut (), ForwardOptions::default()).unwrap();
        let logits = values(&model.last_logits(&pass).unwrap());
        assert_close(&logits, &case.f32s("logits"), 1e-4, &case.name);
        n_checked += 1;
    }
    assert!(n_checked >= 7, "{n_checked} cases");
}

/// A pass of one sequence written out element by element in f64, for RMSNorm, gated MLPs and rotary embeddings: what
/// stands at every hook point.
struct Twin<'a> {
    model: &'a Model,
    n: usize,
    at: BTreeMap<HookPoint, Vec<f64>>,
}

fn f64s(tensor: &Tensor) -> Vec<f64> {
    values(tensor).into_iter().map(f64::from).collect()
}

impl Twin<'_> {
    fn keep(&mut self, point: HookPoint, values: &[f64]) {
        self.at.insert(point, values.to_vec());
    }

    /// `scale` and `normalized` of an RMSNorm, and its output.
    fn norm(&self, norm: &Norm, x: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        assert!(norm.kind == NormKind::Rms && norm.bias.is_none());
        let gain = f64s(&norm.gain);
        let (mut scales, mut normalized, mut out) = (Vec::new(), Vec::new(), Vec::new());
        for row in x.chunks(gain.len()) {
            let scale = (row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64 + norm.eps).sqrt();
            scales.push(scale);
            normalized.extend(row.iter().map(|v| v / scale));
            out.extend(row.iter().zip(&gain).map(|(v, g)| v / scale * g));
        }
        (scales, normalized, out)
    }

    fn linear(&self, linear: &Linear, x: &[f64]) -> Vec<f64> {
        let (d_out, d_in) = linear.weight.dims2().unwrap();
        let (w, bias) = (f64s(&linear.weight), linear.bias.as_ref().map(f64s));
        let mut out = Vec::new();
        for row in x.chunks(d_in) {
            for o in 0..d_out {
                let product: f64 = row.iter().zip(&w[o * d_in..(o + 1) * d_in]).map(|(a, b)| a * b).sum();
                out.push(product + bias.as_ref().map_or(0.0, |b| b[o]));
            }
        }
        out
    }

    fn rotate(&self, x: &mut [f64], n_heads: usize, inv_freq: &[f64]) {
        let d = self.model.config.d_head;
        for pos in 0..self.n {
            for head in 0..n_heads {
                let head = &mut x[(pos * n_heads + head) * d..][..d];
                for (i, freq) in inv_freq.iter().enumerate() {
                    let (sin, cos) = (pos as f64 * freq).sin_cos();
                    let (a, b) = (head[i], head[i + d / 2]);
                    head[i] = a * cos - b * sin;
                    head[i + d / 2] = b * cos + a * sin;
                }
            }
        }
    }

    fn attention(&mut self, l: usize, x: &[f64]) -> Vec<f64> {
        let (config, layer, n) = (&self.model.config, self.model.layer(l).unwrap(), self.n);
        let (heads, kv, d) = (config.n_heads, config.n_kv_heads, config.d_head);
        let (mut q, mut k) = (self.linear(&layer.qk.q, x), self.linear(&layer.qk.k, x));
        let v = self.linear(&layer.vo.v, x);
        let rope = &config.ropes[config.layers[l].rope.unwrap()];
        assert!(layer.qk.q_norm.is_none() && layer.qk.sinks.is_none() && rope.attention_factor == 1.0);
        self.rotate(&mut q, heads, &rope.inv_freq);
        self.rotate(&mut k, kv, &rope.inv_freq);
        let (mut scores, mut pattern) = (Vec::new(), Vec::new());
        let mut z = vec![0f64; n * heads * d];
        for h in 0..heads {
            let kv_head = h / (heads / kv);
            for i in 0..n {
                let score = |j: usize| {
                    let window = config.layers[l].window.unwrap_or(usize::MAX);
                    if j > i || i - j >= window {
                        return f64::NEG_INFINITY;
                    }
                    let (q, k) = (&q[(i * heads + h) * d..][..d], &k[(j * kv + kv_head) * d..][..d]);
                    let s = q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * config.attn_scale;
                    config.attn_softcap.map_or(s, |cap| (s / cap).tanh() * cap)
                };
                let row: Vec<f64> = (0..n).map(score).collect();
                let sum: f64 = row.iter().map(|s| s.exp()).sum();
                for (j, s) in row.iter().enumerate() {
                    let p = s.exp() / sum;
                    pattern.push(p);
                    for e in 0..d {
                        z[(i * heads + h) * d + e] += p * v[(j * kv + kv_head) * d + e];
                    }
                }
                scores.extend(row);
            }
        }
        self.keep(HookPoint::AttnV(l), &v);
        self.keep(HookPoint::AttnScores(l), &scores);
        self.keep(HookPoint::AttnPattern(l), &pattern);
        self.keep(HookPoint::AttnZ(l), &z);
        self.linear(&layer.vo.o, &z)
    }

    fn mlp(&self, mlp: &Mlp, x: &[f64]) -> Vec<f64> {
        let Mlp::Gated { gate, up, down, .. } = mlp else { panic!("a gated MLP") };
        // GELU, tanh approximation.
        let gelu = |v: f64| 0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044715 * v.powi(3))).tanh());
        let (gate, up) = (self.linear(gate, x), self.linear(up, x));
        let gated: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| gelu(*g) * u).collect();
        self.linear(down, &gated)
    }

    fn run(&mut self, tokens: &[u32]) {
        use HookPoint::*;
        let add = |a: &[f64], b: &[f64]| -> Vec<f64> { a.iter().zip(b).map(|(a, b)| a + b).collect() };
        let mut resid = f64s(&self.model.embed(tokens).unwrap());
        self.keep(Embed, &resid);
        for l in 0..self.model.config.n_layers {
            let layer = self.model.layer(l).unwrap();
            self.keep(ResidPre(l), &resid);
            let (scale, normalized, x) = self.norm(&layer.attn_norm, &resid);
            self.keep(Ln1Scale(l), &scale);
            self.keep(Ln1Normalized(l), &normalized);
            let written = self.attention(l, &x);
            let (scale, _, attn_out) = self.norm(layer.post_attn_norm.as_ref().unwrap(), &written);
            self.keep(Ln1PostScale(l), &scale);
            self.keep(AttnOut(l), &attn_out);
            let resid_mid = add(&resid, &attn_out);
            self.keep(ResidMid(l), &resid_mid);
            let (scale, normalized, x) = self.norm(&layer.mlp_norm, &resid_mid);
            self.keep(Ln2Scale(l), &scale);
            self.keep(Ln2Normalized(l), &normalized);
            self.keep(MlpIn(l), &x);
            let written = self.mlp(&layer.mlp, &x);
            self.keep(MlpOut(l), &written);
            let (scale, _, mlp_out) = self.norm(layer.post_mlp_norm.as_ref().unwrap(), &written);
            self.keep(Ln2PostScale(l), &scale);
            self.keep(HookMlpOut(l), &mlp_out);
            resid = add(&resid_mid, &mlp_out);
            self.keep(ResidPost(l), &resid);
        }
        let (scale, normalized, _) = self.norm(&self.model.final_norm().unwrap(), &resid);
        self.keep(LnFinalScale, &scale);
        self.keep(LnFinalNormalized, &normalized);
    }
}

#[test]
fn every_hook_point_holds_what_the_literal_computation_gives() {
    let model = open(&fixture("reference/gemma2_jumprelu/model"));
    let tokens = tokens(&model, 3, 9);
    let mut twin = Twin { model: &model, n: tokens.len(), at: BTreeMap::new() };
    twin.run(&tokens);
    let points = || HookPoint::all(model.config.n_layers).filter(|&point| point != HookPoint::PosEmbed);
    let mut kept = Activations::at(points());
    model.forward(&[tokens], &mut kept, ForwardOptions::default()).unwrap();
    for point in points() {
        let (actual, expected) = (values(kept.need(point).unwrap()), &twin.at[&point]);
        let largest = expected.iter().filter(|v| v.is_finite()).fold(0f64, |m, v| m.max(v.abs()));
        assert!(largest > 0.0, "{point}");
        assert_eq!(actual.len(), expected.len(), "{point}");
        for (i, (&a, &e)) in actual.iter().zip(expected).enumerate() {
            if e.is_finite() {
                close(f64::from(a), e, 2e-5 * largest, 1e-4, &format!("{point} at {i}"));
            } else {
                assert_eq!(f64::from(a), e, "{point} at {i}");
            }
        }
    }
}

/// Replaces the tensor at one point.
struct Replace<F>(HookPoint, F);

impl<F: FnMut(&Tensor) -> Tensor> Hooks for Replace<F> {
    fn wants(&self, point: HookPoint) -> bool {
        point == self.0
    }

    fn see(&mut self, _: HookPoint, tensor: &Tensor) -> circuitscope::Result<Option<Tensor>> {
        Ok(Some((self.1)(tensor)))
    }
}

/// Gives the tensor at one point, and fails when it is asked to see any other.
struct Give(HookPoint, Tensor);

impl Hooks for Give {
    fn wants(&self, point: HookPoint) -> bool {
        point == self.0
    }

    fn give(&mut self, _: HookPoint) -> circuitscope::Result<Option<Tensor>> {
        Ok(Some(self.1.clone()))
    }

    fn see(&mut self, point: HookPoint, _: &Tensor) -> circuitscope::Result<Option<Tensor>> {
        assert_eq!(point, self.0);
        Ok(None)
    }
}

#[test]
fn a_replaced_tensor_takes_effect_at_every_hook_point_that_a_pass_comes_by() {
    for folder in ["gemma2_jumprelu", "gpt2_relu"] {
        let model = open(&fixture(&format!("reference/{folder}/model")));
        let prompt = [tokens(&model, 1, 6)];
        let run = |hooks: &mut dyn Hooks| model.forward(&prompt, hooks, ForwardOptions::default()).unwrap();
        let n_layers = model.config.n_layers;
        let mut kept = Activations::at(HookPoint::all(n_layers));
        let plain = values(&run(&mut kept).final_normed);
        let visited: Vec<HookPoint> = HookPoint::all(n_layers).filter(|&point| kept.get(point).is_some()).collect();
        // Gemma has no position embeddings, GPT-2 no norms behind attention and MLP.
        let n_expected = if folder == "gpt2_relu" { 4 + 15 * n_layers } else { 3 + 17 * n_layers };
        assert_eq!(visited.len(), n_expected, "{folder}");
        for point in visited {
            let tensor = kept.need(point).unwrap();
            let same = values(&run(&mut Replace(point, |tensor: &Tensor| tensor.copy().unwrap())).final_normed);
            assert_eq!(same, plain, "{folder}: {point} replaced by itself");
            let given = values(&run(&mut Give(point, tensor.clone())).final_normed);
            assert_eq!(given, plain, "{folder}: {point} given as it is");
            // Neither a factor nor a shift, which the norms above would take away again.
            let changed = run(&mut Replace(point, |tensor: &Tensor| match point {
                HookPoint::AttnScores(_) => tensor.relu().unwrap(),
                _ => tensor.sqr().unwrap(),
            }));
            assert_ne!(values(&changed.final_normed), plain, "{folder}: {point} replaced");
            let wrong = &mut Replace(point, |tensor: &Tensor| tensor.unsqueeze(0).unwrap());
            let error = model.forward(&prompt, wrong, ForwardOptions::default()).unwrap_err();
            assert!(matches!(&error, Error::HookShape { point: at, .. } if *at == point.to_string()), "{error}");
        }
    }
}

#[test]
fn the_residual_stream_of_another_prompt_makes_its_logits() {
    for (name, model) in models() {
        let (one, other) = ([tokens(&model, 1, 6)], [tokens(&model, 2, 6)]);
        let n_layers = model.config.n_layers;
        let stream = |l| [HookPoint::ResidPre(l), HookPoint::ResidPost(l)];
        let mut kept = Activations::at((0..n_layers).flat_map(stream));
        let expected = model.forward(&other, &mut kept, ForwardOptions::default()).unwrap();
        for point in (0..n_layers).flat_map(stream) {
            let hooks = &mut Replace(point, |_: &Tensor| kept.need(point).unwrap().clone());
            let pass = model.forward(&one, hooks, ForwardOptions::default()).unwrap();
            assert_eq!(values(&pass.final_normed), values(&expected.final_normed), "{name}: {point}");
        }
    }
}

/// The output of the final norm at the real positions of each sequence of a pass.
fn real(pass: &circuitscope::model::Pass) -> Vec<Vec<f32>> {
    let of = |(b, &n): (usize, &usize)| values(&pass.final_normed.get(b).unwrap().narrow(0, 0, n).unwrap());
    pass.lengths.iter().enumerate().map(of).collect()
}

/// Sums over padded keys are grouped in another way than sums over real ones alone: f32 rounding of those.
const ROUNDING: f64 = 2e-5;

#[test]
fn a_ragged_batch_gives_what_each_sequence_gives_alone() {
    for (name, model) in models() {
        let batch: Vec<Vec<u32>> = [7, 1, 12, 4].iter().enumerate().map(|(i, &n)| tokens(&model, i, n)).collect();
        let pass = model.forward(&batch, &mut (), ForwardOptions::default()).unwrap();
        let logits = model.last_logits(&pass).unwrap();
        for (b, (tokens, together)) in batch.iter().zip(real(&pass)).enumerate() {
            let alone = model.forward(std::slice::from_ref(tokens), &mut (), ForwardOptions::default()).unwrap();
            assert_close(&together, &real(&alone)[0], ROUNDING, &format!("{name}: sequence {b}"));
            let expected = values(&model.last_logits(&alone).unwrap());
            assert_close(&values(&logits.get(b).unwrap()), &expected, ROUNDING, &format!("{name}: logits {b}"));
        }
    }
}

#[test]
fn a_ragged_batch_with_a_cache_gives_what_each_sequence_gives_alone() {
    for (name, model) in models() {
        let job = Job::default();
        let whole: Vec<Vec<u32>> = [9, 4, 12].iter().enumerate().map(|(i, &n)| tokens(&model, i, n)).collect();
        let expected: Vec<Vec<f32>> = whole
            .iter()
            .map(|tokens| {
                let pass = model.forward(std::slice::from_ref(tokens), &mut (), ForwardOptions::default()).unwrap();
                real(&pass).remove(0)
            })
            .collect();
        // Three ragged steps; the sequences are of another length after each.
        let steps = [[0..5, 0..1, 0..3], [5..6, 1..3, 3..9], [6..9, 3..4, 9..12]];
        let mut cache = KvCache::new(model.config.n_layers);
        let mut found: Vec<Vec<f32>> = vec![Vec::new(); whole.len()];
        for step in &steps {
            let tokens: Vec<Vec<u32>> = whole.iter().zip(step).map(|(t, range)| t[range.clone()].to_vec()).collect();
            let pass = model.forward(&tokens, &mut (), ForwardOptions::continuing(&mut cache, &job)).unwrap();
            found.iter_mut().zip(real(&pass)).for_each(|(all, new)| all.extend(new));
            assert_eq!(cache.lengths(), step.iter().map(|range| range.end).collect::<Vec<_>>());
        }
        for (b, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert_close(found, expected, ROUNDING, &format!("{name}: sequence {b}"));
        }
    }
}

#[test]
fn token_by_token_with_a_cache_is_the_whole_pass() {
    for (name, model) in models() {
        let job = Job::default();
        let whole = tokens(&model, 4, 10);
        let pass = model.forward(std::slice::from_ref(&whole), &mut (), ForwardOptions::default()).unwrap();
        let mut cache = KvCache::new(model.config.n_layers);
        let mut found = Vec::new();
        for &token in &whole {
            let options = ForwardOptions::continuing(&mut cache, &job);
            found.extend(real(&model.forward(&[vec![token]], &mut (), options).unwrap()).remove(0));
        }
        assert_close(&found, &real(&pass)[0], ROUNDING, &name);
    }
}

#[test]
fn an_early_end_and_a_late_start_are_parts_of_the_whole_pass() {
    for (name, model) in models() {
        let prompt = [tokens(&model, 5, 8), tokens(&model, 6, 8)];
        let n_layers = model.config.n_layers;
        let mut kept = Activations::at(HookPoint::all(n_layers));
        let whole = model.forward(&prompt, &mut kept, ForwardOptions::default()).unwrap();
        for l in 0..n_layers {
            let mut seen = Activations::at(HookPoint::all(n_layers));
            let resid = model.forward_through(l, &prompt, &mut seen, &Job::default()).unwrap();
            assert_eq!(values(&resid), values(kept.need(HookPoint::ResidPost(l)).unwrap()), "{name}: through {l}");
            let above = HookPoint::all(n_layers).filter(|&p| seen.get(p).is_some() && p.layer().unwrap_or(0) > l);
            assert_eq!(above.count(), 0, "{name}: layers above {l} ran");
            assert!(seen.get(HookPoint::LnFinalScale).is_none(), "{name}");

            let resid_pre = kept.need(HookPoint::ResidPre(l)).unwrap().clone();
            let pass = model.forward_from(l, resid_pre, &mut (), ForwardOptions::default()).unwrap();
            assert_eq!(values(&pass.final_normed), values(&whole.final_normed), "{name}: from {l}");
        }
        let outside = model.forward_through(n_layers, &prompt, &mut (), &Job::default()).unwrap_err();
        assert!(matches!(outside, Error::NoSuchLayer { .. }), "{outside}");
        let resid = whole.resid_final.clone();
        let outside = model.forward_from(n_layers + 1, resid, &mut (), ForwardOptions::default()).unwrap_err();
        assert!(matches!(outside, Error::NoSuchLayer { .. }), "{outside}");
    }
}

#[test]
fn batches_that_do_not_fit_are_refused() {
    let model = open(&fixture("reference/llama_relu/model"));
    let run = |tokens: &[Vec<u32>]| model.forward(tokens, &mut (), ForwardOptions::default()).unwrap_err();
    assert!(matches!(run(&[]), Error::EmptyPrompt));
    assert!(matches!(run(&[vec![1], vec![]]), Error::EmptyPrompt));
    assert!(matches!(run(&[vec![1], vec![u32::MAX]]), Error::TokenOutOfRange { .. }));
    let n_ctx = model.config.n_ctx;
    assert!(matches!(run(&[vec![1; n_ctx + 1]]), Error::PromptTooLong { .. }));

    let job = Job::default();
    let mut cache = KvCache::new(model.config.n_layers);
    model.forward(&[vec![1, 2], vec![3]], &mut (), ForwardOptions::continuing(&mut cache, &job)).unwrap();
    let error = model.forward(&[vec![1]], &mut (), ForwardOptions::continuing(&mut cache, &job)).unwrap_err();
    assert_eq!(error.to_string(), "the cache of keys and values holds 2 sequences, but the pass needs 1");
    let long = [vec![1; n_ctx - 1], vec![1]];
    let error = model.forward(&long, &mut (), ForwardOptions::continuing(&mut cache, &job)).unwrap_err();
    assert!(matches!(error, Error::PromptTooLong { n_pos, .. } if n_pos == n_ctx + 1), "{error}");
}

#[test]
fn a_cancelled_pass_ends_at_the_next_layer_and_leaves_its_cache_as_it_was() {
    let model = open(&fixture("reference/llama_relu/model"));
    let mut cache = KvCache::new(model.config.n_layers);
    let whole = tokens(&model, 2, 6);
    let options = ForwardOptions::continuing(&mut cache, &Job::default());
    model.forward(&[whole[..4].to_vec()], &mut (), options).unwrap();

    let token = CancelToken::default();
    let (cancel, told) = (token.clone(), std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0)));
    let n_told = told.clone();
    let job = Job::default().with_cancel(token).with_progress(move |progress| {
        assert_eq!(progress.phase, "layers");
        n_told.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // From another thread, as a server would.
        std::thread::scope(|scope| scope.spawn(|| cancel.cancel()).join().unwrap());
    });
    let rest = [whole[4..].to_vec()];
    let error = model.forward(&rest, &mut (), ForwardOptions::continuing(&mut cache, &job)).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(told.load(std::sync::atomic::Ordering::Relaxed), 1, "one layer ran");
    assert_eq!(cache.lengths(), [4]);

    let options = ForwardOptions::continuing(&mut cache, &Job::default());
    let continued = model.forward(&rest, &mut (), options).unwrap();
    let expected = model.forward(&[whole], &mut (), ForwardOptions::default()).unwrap();
    let d_model = model.config.d_model;
    assert_close(&real(&continued)[0], &real(&expected)[0][4 * d_model..], ROUNDING, "after a cancelled pass");
}
