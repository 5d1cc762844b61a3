//! The steps between products, on rows.

use super::layer::Angles;
use crate::model::config::{Activation, NormKind};
use crate::ops::rows::{dot, exp, largest, sum, wide};

/// A norm.
#[derive(Clone, Debug)]
pub(super) struct RowNorm {
    pub kind: NormKind,
    pub eps: f32,
    /// `[width]`
    pub gain: Vec<f32>,
    /// `[width]`, or empty
    pub bias: Vec<f32>,
}

impl RowNorm {
    /// Norms rows into others; `normalized`, where it is not empty, gets them before gain and bias.
    ///
    /// # Shapes
    /// `x` and `out` `[n, width]`, `normalized` that or empty.
    pub(super) fn apply(&self, out: &mut [f32], x: &[f32], normalized: &mut [f32]) {
        norm_rows((self, out, x, normalized));
    }

    /// Norms rows that lie `stride` apart, in place.
    pub(super) fn apply_in_place(&self, rows: &mut [f32], stride: usize) {
        norm_in_place((self, rows, stride));
    }
}

#[inline(always)]
fn centre_and_factor(norm: &RowNorm, x: &[f32]) -> (f32, f32) {
    let n = x.len() as f32;
    let centre = match norm.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => sum(x) / n,
    };
    let mean_square = match norm.kind {
        NormKind::Rms => dot(x, x) / n,
        NormKind::Layer => {
            // Of what is centred: the difference of two large sums would lose what is small.
            let mut squares = [0f32; 16];
            let (chunks, rest) = x.as_chunks::<16>();
            for chunk in chunks {
                for (square, value) in squares.iter_mut().zip(chunk) {
                    *square = (value - centre).mul_add(value - centre, *square);
                }
            }
            (rest.iter().fold(squares.iter().sum::<f32>(), |s, v| s + (v - centre) * (v - centre))) / n
        }
    };
    (centre, 1.0 / (mean_square + norm.eps).sqrt())
}

#[inline(always)]
fn gained(norm: &RowNorm, row: &mut [f32]) {
    row.iter_mut().zip(&norm.gain).for_each(|(value, gain)| *value *= gain);
    row.iter_mut().zip(&norm.bias).for_each(|(value, bias)| *value += bias);
}

wide! {
    fn norm_rows<'a>(
        (norm, out, x, normalized) =>
            (&'a RowNorm, &'a mut [f32], &'a [f32], &'a mut [f32])
    ) -> () {
        let width = norm.gain.len();
        let mut normalized = normalized.chunks_mut(width);
        for (out, x) in out.chunks_mut(width).zip(x.chunks(width)) {
            let (centre, factor) = centre_and_factor(norm, x);
            out.iter_mut().zip(x).for_each(|(out, value)| *out = (value - centre) * factor);
            if let Some(normalized) = normalized.next() {
                normalized.copy_from_slice(out);
            }
            gained(norm, out);
        }
    }
}

wide! {
    fn norm_in_place<'a>((norm, rows, stride) => (&'a RowNorm, &'a mut [f32], usize)) -> () {
        for row in rows.chunks_mut(stride) {
            let row = &mut row[..norm.gain.len()];
            let (centre, factor) = centre_and_factor(norm, row);
            row.iter_mut().for_each(|value| *value = (*value - centre) * factor);
            gained(norm, row);
        }
    }
}

wide! {
    /// `rows += bias` of every row.
    pub(super) fn add_bias<'a>((rows, bias) => (&'a mut [f32], &'a [f32])) -> () {
        for row in rows.chunks_mut(bias.len().max(1)) {
            row.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
        }
    }
}

wide! {
    /// `sum += rows`; whether the sum of all values is finite, as it is of none if one is not.
    pub(super) fn add_rows<'a>((sum_of_both, rows) => (&'a mut [f32], &'a [f32])) -> bool {
        sum_of_both.iter_mut().zip(rows).for_each(|(sum, value)| *sum += value);
        sum(sum_of_both).is_finite()
    }
}

/// The nonlinearity on each value of `x`, times those of `factor` where it is not empty.
///
/// # Shapes
/// `out`, `x` `[n, width]`, rows `stride` apart in `x`; with factors they follow the values of their row in `x`.
pub(super) fn activate(activation: Activation, out: &mut [f32], x: &[f32], width: usize, gated: bool) {
    match activation {
        Activation::Silu => silu((out, x, width, gated)),
        Activation::GeluTanh => gelu_tanh((out, x, width, gated)),
        Activation::GeluErf => gelu_erf((out, x, width, gated)),
        Activation::Relu => relu((out, x, width, gated)),
    }
}

#[inline(always)]
fn each(out: &mut [f32], x: &[f32], width: usize, gated: bool, f: impl Fn(f32) -> f32) {
    let stride = if gated { 2 * width } else { width };
    for (out, x) in out.chunks_mut(width).zip(x.chunks(stride)) {
        let (x, factor) = x.split_at(width);
        match gated {
            true => out.iter_mut().zip(x).zip(factor).for_each(|((out, &x), factor)| *out = f(x) * factor),
            false => out.iter_mut().zip(x).for_each(|(out, &x)| *out = f(x)),
        }
    }
}

#[inline(always)]
fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

wide! {
    fn silu<'a>((out, x, width, gated) => (&'a mut [f32], &'a [f32], usize, bool)) -> () {
        each(out, x, width, gated, #[inline(always)] |x| x * sigmoid(x));
    }
}

wide! {
    fn gelu_tanh<'a>((out, x, width, gated) => (&'a mut [f32], &'a [f32], usize, bool)) -> () {
        // (1 + tanh y) / 2 = sigmoid(2 y)
        const TWICE_ROOT: f32 = 1.595_769; // 2 √(2/π)
        each(out, x, width, gated, #[inline(always)] |x| x * sigmoid(TWICE_ROOT * (0.044_715 * x * x).mul_add(x, x)));
    }
}

wide! {
    fn gelu_erf<'a>((out, x, width, gated) => (&'a mut [f32], &'a [f32], usize, bool)) -> () {
        let half = |x: f32| candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2) + 1.0;
        each(out, x, width, gated, #[inline(always)] |x| 0.5 * x * half(x));
    }
}

wide! {
    fn relu<'a>((out, x, width, gated) => (&'a mut [f32], &'a [f32], usize, bool)) -> () {
        each(out, x, width, gated, #[inline(always)] |x| if x > 0.0 { x } else { 0.0 });
    }
}

/// What becomes of scores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Softmax {
    pub scale: f32,
    pub cap: Option<f32>,
    /// A score that takes its share and gives nothing.
    pub sink: Option<f32>,
}

wide! {
    /// Scores of a query to its pattern: of the keys `seen`; all others get 0.
    pub(super) fn softmax<'a>(
        (row, seen, softmax) =>
            (&'a mut [f32], std::ops::Range<usize>, &'a Softmax)
    ) -> () {
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
        let row = &mut row[seen];
        row.iter_mut().for_each(|score| *score *= softmax.scale);
        if let Some(cap) = softmax.cap {
            // tanh y = 1 − 2 / (e^(2y) + 1)
            row.iter_mut().for_each(|score| *score = cap * (1.0 - 2.0 / (exp(2.0 * *score / cap) + 1.0)));
        }
        let top = softmax.sink.map_or(f32::NEG_INFINITY, |sink| sink).max(largest(row));
        row.iter_mut().for_each(|score| *score = exp(*score - top));
        let total = sum(row) + softmax.sink.map_or(0.0, |sink| exp(sink - top));
        let factor = 1.0 / total;
        row.iter_mut().for_each(|score| *score *= factor);
    }
}

wide! {
    /// Copies the rows of a head, rotated where there are angles: cosines and sines of every position, half a head wide each.
    ///
    /// # Shapes
    /// `out` `[n_pos, d_head]`, `from` rows `stride` apart, `angles` `[n_pos, d_head / 2]` twice.
    pub(super) fn rotated<'a>(
        (out, from, stride, d_head, angles) =>
            (&'a mut [f32], &'a [f32], usize, usize, Option<&'a Angles>)
    ) -> () {
        let half = d_head / 2;
        for (pos, (out, from)) in out.chunks_mut(d_head).zip(from.chunks(stride)).enumerate() {
            let from = &from[..d_head];
            let Some((cos, sin)) = angles else {
                out.copy_from_slice(from);
                continue;
            };
            let (cos, sin) = (&cos[pos * half..][..half], &sin[pos * half..][..half]);
            let ((first, second), (low, high)) = (out.split_at_mut(half), from.split_at(half));
            for i in 0..half {
                first[i] = low[i] * cos[i] - high[i] * sin[i];
                second[i] = high[i] * cos[i] + low[i] * sin[i];
            }
        }
    }
}
