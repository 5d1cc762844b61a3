//! The step against slow, literal twins: its gradients against finite differences of the loss written out, what it finds
//! against what was planted.

use super::fold::{calibrate, fold};
use super::init::{begin, unit_rows};
use super::layer::Layer;
use super::options::Precision;
use super::schedule;
use super::select::{Active, Choice, choose};
use super::step::{LayerBatch, StepSettings, step};
use crate::intervene::Random;

/// A parameter of a layer, by name and index.
#[derive(Clone, Copy, Debug)]
enum Parameter {
    WEnc(usize),
    BEnc(usize),
    WDec(usize),
    BDec(usize),
    WSkip(usize),
}

impl Parameter {
    fn of(self, layer: &mut Layer) -> &mut f32 {
        match self {
            Parameter::WEnc(i) => &mut layer.w_enc[i],
            Parameter::BEnc(i) => &mut layer.b_enc[i],
            Parameter::WDec(i) => &mut layer.w_dec[i],
            Parameter::BDec(i) => &mut layer.b_dec[i],
            Parameter::WSkip(i) => &mut layer.w_skip[i],
        }
    }

    /// The gradient that the first step saw: a tenth of it is what the first moments hold then.
    fn gradient(self, layer: &Layer) -> f64 {
        let moments = &layer.moments;
        let first = match self {
            Parameter::WEnc(i) => moments.w_enc.first[i],
            Parameter::BEnc(i) => moments.b_enc.first[i],
            Parameter::WDec(i) => moments.w_dec.first[i],
            Parameter::BDec(i) => moments.b_dec.first[i],
            Parameter::WSkip(i) => moments.w_skip.first[i],
        };
        f64::from(first) / 0.1
    }
}

fn noise(n: usize, scale: f32, random: &mut Random) -> Vec<f32> {
    (0..n).map(|_| scale * (2.0 * random.next_unit() as f32 - 1.0)).collect()
}

fn random_layer(d: usize, n_features: usize, n_written: usize, has_skip: bool, random: &mut Random) -> Layer {
    let mut layer = Layer::new(d, n_features, n_written, has_skip);
    layer.w_enc = unit_rows(n_features, d, random);
    layer.w_dec = noise(layer.w_dec.len(), 0.5, random);
    layer.b_enc = noise(n_features, 0.2, random);
    layer.b_dec = noise(d, 0.3, random);
    layer.w_skip = noise(layer.w_skip.len(), 0.2, random);
    layer.measure_decoder();
    layer
}

/// The loss of all layers, in f64, with the pairs of token and feature that are active held.
fn slow_loss(layers: &[Layer], batch: &[LayerBatch], active: &[Active], sparsity: &[f64]) -> f64 {
    let d = layers[0].d_model;
    let n_tokens = batch[0].x.len() / d;
    let activation = |source: usize, token: usize, feature: usize| {
        let row = &layers[source].w_enc[feature * d..][..d];
        let x = &batch[source].x[token * d..][..d];
        x.iter().zip(row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>()
            + f64::from(layers[source].b_enc[feature])
    };
    let mut loss = 0.0;
    for target in 0..layers.len() {
        for token in 0..n_tokens {
            let mut out: Vec<f64> = layers[target].b_dec.iter().map(|&b| f64::from(b)).collect();
            if !layers[target].w_skip.is_empty() {
                for (i, out) in out.iter_mut().enumerate() {
                    let row = &layers[target].w_skip[i * d..][..d];
                    let x = &batch[target].x[token * d..][..d];
                    *out += x.iter().zip(row).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
                }
            }
            for source in 0..=target {
                let written = target - source;
                if written >= layers[source].n_written {
                    continue;
                }
                for &feature in active[source].of(token).0 {
                    let a = activation(source, token, feature as usize);
                    let row = layers[source].dec_row(feature as usize, written);
                    out.iter_mut().zip(row).for_each(|(out, &w)| *out += a * f64::from(w));
                }
            }
            let y = &batch[target].y[token * d..][..d];
            loss += out.iter().zip(y).map(|(out, &y)| (out - f64::from(y)).powi(2)).sum::<f64>() / n_tokens as f64;
        }
        let layer = &layers[target];
        for token in 0..n_tokens {
            for &feature in active[target].of(token).0 {
                let width = layer.n_written * d;
                let row = &layer.w_dec[feature as usize * width..][..width];
                let norm = row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
                loss += sparsity[target] * activation(target, token, feature as usize) * norm / n_tokens as f64;
            }
        }
    }
    loss
}

fn check_gradients(n_written: &[usize], has_skip: bool, choice: Choice) {
    let (d, n_features, n_tokens) = (6, 10, 7);
    let mut random = Random(11);
    let mut layers: Vec<Layer> =
        n_written.iter().map(|&n| random_layer(d, n_features, n, has_skip, &mut random)).collect();
    if choice == Choice::Positive {
        layers.iter_mut().for_each(|layer| layer.sparsity = 0.3);
    }
    let batch: Vec<LayerBatch> = (0..layers.len())
        .map(|_| LayerBatch { x: noise(n_tokens * d, 1.5, &mut random), y: noise(n_tokens * d, 1.5, &mut random) })
        .collect();
    let settings = StepSettings {
        step: 1,
        lr: 1e-3,
        choice,
        l0: 3.0,
        learns_thresholds: false,
        n_tokens: n_tokens as i64,
        dead_window: 1_000_000,
    };
    let active: Vec<Active> =
        layers.iter().zip(&batch).map(|(layer, batch)| choose(layer, &batch.x, choice).0).collect();
    let before = layers.clone();
    step(&mut layers, &batch, &settings);
    let sparsity: Vec<f64> = layers.iter().map(|layer| f64::from(layer.sparsity)).collect();
    for index in 0..layers.len() {
        let sizes = [layers[index].w_enc.len(), n_features, layers[index].w_dec.len(), d, layers[index].w_skip.len()];
        let all = (0..sizes[0]).map(Parameter::WEnc);
        let all = all.chain((0..sizes[1]).map(Parameter::BEnc)).chain((0..sizes[2]).map(Parameter::WDec));
        let all = all.chain((0..sizes[3]).map(Parameter::BDec)).chain((0..sizes[4]).map(Parameter::WSkip));
        for parameter in all {
            let mut moved = before.clone();
            let mut loss_at = |delta: f32| {
                let value = parameter.of(&mut moved[index]);
                let kept = *value;
                *value += delta;
                let exact = f64::from(*value) - f64::from(kept);
                let loss = slow_loss(&moved, &batch, &active, &sparsity);
                *parameter.of(&mut moved[index]) = kept;
                (loss, exact)
            };
            let ((above, up), (below, down)) = (loss_at(1e-3), loss_at(-1e-3));
            let expected = (above - below) / (up - down);
            let found = parameter.gradient(&layers[index]);
            assert!(
                (found - expected).abs() <= 1e-5 * (1.0 + expected.abs()) * 10.0,
                "{parameter:?} of layer {index}: {found}, by differences {expected}"
            );
        }
    }
}

#[test]
fn gradients_are_those_of_the_loss_written_out() {
    check_gradients(&[1, 1], false, Choice::OfBatch(20));
    check_gradients(&[1], true, Choice::OfToken(3));
    check_gradients(&[1], false, Choice::Positive);
}

#[test]
fn gradients_of_cross_layer_transcoders_go_through_every_layer_written_to() {
    check_gradients(&[3, 2, 1], false, Choice::OfBatch(20));
    check_gradients(&[2, 1], false, Choice::Positive);
}

#[test]
fn a_planted_dictionary_is_found() {
    let (d, n_planted, n_tokens, active) = (32, 48, 512, 3);
    let mut random = Random(5);
    let (read, written) = (unit_rows(n_planted, d, &mut random), unit_rows(n_planted, d, &mut random));
    let mut draw = move || {
        let mut batch = LayerBatch { x: vec![0.0; n_tokens * d], y: vec![0.0; n_tokens * d] };
        let all: Vec<usize> = (0..n_planted).collect();
        for token in 0..n_tokens {
            for feature in random.draw(&all, active) {
                let code = 1.0 + random.next_unit() as f32;
                for i in 0..d {
                    batch.x[token * d + i] += code * read[feature * d + i];
                    batch.y[token * d + i] += code * written[feature * d + i];
                }
            }
        }
        batch
    };
    let n_features = 96;
    let mut layer = Layer::new(d, n_features, 1, false);
    let first = draw();
    begin(&mut layer, &first, &|x| Ok(x.clone()), 12.0, &mut Random(1)).unwrap();
    let mut layers = [layer];
    let n_steps = 1500u32;
    for at in 1..=n_steps {
        let done = f64::from(at) / f64::from(n_steps);
        let settings = StepSettings {
            step: at,
            lr: 3e-3 * schedule::step_size(at, done),
            choice: Choice::OfBatch((schedule::wanted_l0(active as f64, done) * n_tokens as f64) as usize),
            l0: active as f64,
            learns_thresholds: schedule::learns_thresholds(done),
            n_tokens: i64::from(at) * n_tokens as i64,
            dead_window: 20_000,
        };
        step(&mut layers, &[draw()], &settings);
    }
    let mut random = Random(5);
    let (_, written) = (unit_rows(n_planted, d, &mut random), unit_rows(n_planted, d, &mut random));
    let cosine = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-9)
    };
    let best =
        written.chunks(d).map(|row| layers[0].w_dec.chunks(d).map(|found| cosine(row, found)).fold(f32::MIN, f32::max));
    let mean = best.sum::<f32>() / n_planted as f32;
    assert!(mean > 0.95, "mean of the largest cosines: {mean}");
}

#[test]
fn folded_weights_compute_what_the_scaled_ones_do_and_as_many_features_are_active_as_were_wanted() {
    let (d, n_features, n_tokens) = (16, 40, 400);
    let mut random = Random(2);
    let mut layers: Vec<Layer> = [2, 1].map(|n| random_layer(d, n_features, n, false, &mut random)).into();
    for (layer, scales) in layers.iter_mut().zip([(3.0, 0.25), (0.5, 7.0)]) {
        (layer.scale_in, layer.scale_out) = scales;
        layer.mean_floor = 0.1;
    }
    let raw: Vec<LayerBatch> = (0..2)
        .map(|_| LayerBatch { x: noise(n_tokens * d, 2.0, &mut random), y: noise(n_tokens * d, 2.0, &mut random) })
        .collect();
    for unit_decoders in [false, true] {
        let mut folded: Vec<_> = (0..2).map(|layer| fold(&layers, layer, unit_decoders, Precision::F32)).collect();
        for (source, raw) in raw.iter().enumerate() {
            let layer = &layers[source];
            for (token, x) in raw.x.chunks(d).enumerate().take(20) {
                for feature in 0..n_features {
                    let z = |w: &[f32], b: f32, scale: f32| {
                        x.iter().zip(&w[feature * d..]).map(|(x, w)| scale * x * w).sum::<f32>() + b
                    };
                    let scaled = z(&layer.w_enc, layer.b_enc[feature], layer.scale_in);
                    let unscaled = z(&folded[source].w_enc, folded[source].b_enc[feature], 1.0);
                    for written in 0..layer.n_written {
                        let own = layer.dec_row(feature, written);
                        let width = layer.n_written * d;
                        let other = &folded[source].w_dec[feature * width + written * d..][..d];
                        let scale_out = layers[source + written].scale_out;
                        let same = own.iter().zip(other).all(|(own, other)| {
                            (scaled * own / scale_out - unscaled * other).abs()
                                < 1e-4 * (1.0 + scaled.abs() / scale_out)
                        });
                        assert!(same, "token {token}, feature {feature}");
                    }
                }
            }
            calibrate(&mut folded[source], raw, 5.0);
            let active = raw.x.chunks(d).map(|x| {
                let is_active = |&feature: &usize| {
                    let row = &folded[source].w_enc[feature * d..][..d];
                    let z = x.iter().zip(row).map(|(x, w)| x * w).sum::<f32>() + folded[source].b_enc[feature];
                    z > folded[source].threshold[feature]
                };
                (0..n_features).filter(is_active).count()
            });
            let l0 = active.sum::<usize>() as f64 / n_tokens as f64;
            assert!((l0 - 5.0).abs() < 0.01 * 5.0, "{l0}");
        }
    }
}
