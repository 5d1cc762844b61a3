//! Products in bf16: operands rounded to 16 bits, sums in f32. On processors with AVX512-BF16, twice as fast as products in
//! f32; elsewhere [`PackedWeight::new`] gives nothing, and products stay in f32.
//!
//! Training runs in it: the model's pass and the encoder's product are most of its work. Graphs never do.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use half::bf16;
use rayon::prelude::*;

use super::f32_slice;

/// Outputs that are computed together: two of the widest vectors.
const COLUMNS: usize = 32;

/// Rows that are computed together: with [`COLUMNS`], 24 of 32 registers.
const ROWS: usize = 12;

/// Rows whose 16-bit form is in a core's cache.
const TILE_ROWS: usize = 10 * ROWS;

/// A weight in the order in which the product reads it.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    d_out: usize,
    d_in: usize,
    /// Pairs of neighbouring inputs. `[⌈d_out / 32⌉, ⌈d_in / 2⌉, 32]`
    panels: Vec<u32>,
}

/// Two values as bf16 in one number, the first in the lower half.
#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    u32::from(bf16::from_f32(low).to_bits()) | u32::from(bf16::from_f32(high).to_bits()) << 16
}

/// A row as pairs; an odd one ends with a zero.
fn pairs_of(row: &[f32], into: &mut Vec<u32>) {
    let (pairs, rest) = row.as_chunks::<2>();
    into.extend(pairs.iter().map(|[low, high]| pair(*low, *high)));
    into.extend(rest.iter().map(|&last| pair(last, 0.0)));
}

/// Whether this processor has such products.
#[cfg(target_arch = "x86_64")]
fn is_supported() -> bool {
    std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bf16")
}

#[cfg(not(target_arch = "x86_64"))]
fn is_supported() -> bool {
    false
}

impl PackedWeight {
    /// Packs a weight; `None` where products in bf16 would not be faster.
    ///
    /// # Shapes
    /// `weight` `[d_out, d_in]`, row-major.
    ///
    /// # Panics
    /// Another length.
    pub fn new(weight: &[f32], d_out: usize, d_in: usize) -> Option<Self> {
        assert_eq!(weight.len(), d_out * d_in);
        is_supported().then(|| Self::pack(weight, d_out, d_in))
    }

    fn pack(weight: &[f32], d_out: usize, d_in: usize) -> Self {
        let n_pairs = d_in.div_ceil(2);
        let mut panels = vec![0u32; d_out.div_ceil(COLUMNS) * n_pairs * COLUMNS];
        let mut row_pairs = Vec::with_capacity(n_pairs);
        for (panel, rows) in panels.chunks_mut(n_pairs * COLUMNS).zip(weight.chunks(COLUMNS * d_in)) {
            for (column, row) in rows.chunks(d_in).enumerate() {
                row_pairs.clear();
                pairs_of(row, &mut row_pairs);
                panel[column..].iter_mut().step_by(COLUMNS).zip(&row_pairs).for_each(|(into, &pair)| *into = pair);
            }
        }
        Self { d_out, d_in, panels }
    }

    /// `out = x · wᵀ` on the calling thread.
    ///
    /// # Shapes
    /// `x` `[n, d_in]`, `out` `[n, d_out]`, row-major.
    ///
    /// # Panics
    /// Other lengths.
    pub fn product(&self, out: &mut [f32], x: &[f32]) {
        let (d_in, d_out) = (self.d_in, self.d_out);
        let n_rows = x.len() / d_in;
        assert!(x.len() == n_rows * d_in && out.len() == n_rows * d_out);
        let n_pairs = d_in.div_ceil(2);
        let mut pairs = Vec::with_capacity(TILE_ROWS.min(n_rows) * n_pairs);
        for (x, out) in x.chunks(TILE_ROWS * d_in).zip(out.chunks_mut(TILE_ROWS * d_out)) {
            pairs.clear();
            x.chunks(d_in).for_each(|row| pairs_of(row, &mut pairs));
            for (at, panel) in self.panels.chunks(n_pairs * COLUMNS).enumerate() {
                let columns = at * COLUMNS..(at * COLUMNS + COLUMNS).min(d_out);
                for (rows, out) in pairs.chunks(ROWS * n_pairs).zip(out.chunks_mut(ROWS * d_out)) {
                    block(out, d_out, columns.clone(), rows, panel, n_pairs);
                }
            }
        }
    }

    /// `x · wᵀ`, rows in parallel.
    ///
    /// # Shapes
    /// `x` `[n, d_in]`, f32, contiguous; returns `[n, d_out]`.
    ///
    /// # Errors
    /// Shapes that do not fit.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(&Product(self))
    }
}

/// Up to [`ROWS`] rows of the columns of one panel. `out` begins with the first of the rows, which are `d_out` long.
#[cfg(target_arch = "x86_64")]
fn block(out: &mut [f32], d_out: usize, columns: std::ops::Range<usize>, rows: &[u32], panel: &[u32], n_pairs: usize) {
    let n_rows = rows.len() / n_pairs;
    assert!(rows.len() == n_rows * n_pairs && panel.len() == n_pairs * COLUMNS && n_rows <= ROWS);
    assert!(out.len() >= n_rows * d_out && columns.end <= d_out && columns.len() <= COLUMNS && n_rows > 0);
    // SAFETY: weights are packed only where the processor has these instructions; the lengths that the kernels read and
    // write are those just checked.
    unsafe {
        match n_rows {
            ROWS => x86::block::<ROWS>(out, d_out, columns, rows, panel, n_pairs),
            _ => {
                for row in 0..n_rows {
                    let (out, rows) = (&mut out[row * d_out..], &rows[row * n_pairs..]);
                    x86::block::<1>(out, d_out, columns.clone(), rows, panel, n_pairs);
                }
            }
        }
    }
}

/// Weights are not packed elsewhere.
#[cfg(not(target_arch = "x86_64"))]
fn block(_: &mut [f32], _: usize, _: std::ops::Range<usize>, _: &[u32], _: &[u32], _: usize) {}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_mask_storeu_ps, _mm512_set1_epi32,
        _mm512_setzero_ps,
    };

    use super::COLUMNS;

    /// `R` rows of up to 32 columns.
    ///
    /// # Safety
    /// The processor has avx512f and avx512bf16; `rows` holds `R · n_pairs` numbers, `panel` `n_pairs · 32`; `out` holds `R` rows
    /// of `d_out`, the last as far as `columns.end`; there are at most 32 columns.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) unsafe fn block<const R: usize>(
        out: &mut [f32],
        d_out: usize,
        columns: std::ops::Range<usize>,
        rows: &[u32],
        panel: &[u32],
        n_pairs: usize,
    ) {
        let as_bf16 = |pairs: __m512i| -> __m512bh {
            // SAFETY: both are 512 bits without a rule of their own.
            unsafe { std::mem::transmute(pairs) }
        };
        let mut sums = [[_mm512_setzero_ps(); 2]; R];
        for at in 0..n_pairs {
            // SAFETY: `at` is below `n_pairs`, so that both loads lie within the panel, as the caller promises.
            let (low, high) = unsafe {
                let from = panel.as_ptr().add(at * COLUMNS);
                (as_bf16(_mm512_loadu_si512(from.cast())), as_bf16(_mm512_loadu_si512(from.add(16).cast())))
            };
            for (row, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `row` is below `R` and `at` below `n_pairs`.
                let value = unsafe { *rows.get_unchecked(row * n_pairs + at) };
                let value = as_bf16(_mm512_set1_epi32(value as i32));
                sums[0] = _mm512_dpbf16_ps(sums[0], value, low);
                sums[1] = _mm512_dpbf16_ps(sums[1], value, high);
            }
        }
        let mask = |n: usize| if n >= 16 { u16::MAX } else { (1u16 << n) - 1 };
        let n_columns = columns.len();
        for (row, sums) in sums.into_iter().enumerate() {
            // SAFETY: the masks keep what is stored within the columns of the row.
            unsafe {
                let to = out.as_mut_ptr().add(row * d_out + columns.start);
                _mm512_mask_storeu_ps(to, mask(n_columns), sums[0]);
                if n_columns > 16 {
                    _mm512_mask_storeu_ps(to.add(16), mask(n_columns - 16), sums[1]);
                }
            }
        }
    }
}

struct Product<'a>(&'a PackedWeight);

const NAME: &str = "bf16 product";

impl CustomOp1 for Product<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let PackedWeight { d_in, d_out, .. } = *self.0;
        let (n_rows, width) = layout.shape().dims2()?;
        if width != d_in {
            bail!("{NAME}: {:?} times {:?}", layout.shape(), (d_out, d_in));
        }
        let x = f32_slice(NAME, storage, layout)?;
        let mut out = vec![0f32; n_rows * d_out];
        let tiles = out.par_chunks_mut(TILE_ROWS * d_out).zip(x.par_chunks(TILE_ROWS * d_in));
        tiles.for_each(|(out, x)| self.0.product(out, x));
        Ok((CpuStorage::F32(out), Shape::from((n_rows, d_out))))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn products_of_rounded_numbers_are_those_in_f64_at_any_size() {
        if !is_supported() {
            return;
        }
        let value = |i: usize, step: f32| (i as f32 * step).sin() * 3.0;
        for (n_rows, d_in, d_out) in [(1, 1, 1), (3, 7, 5), (12, 64, 32), (13, 65, 33), (130, 48, 100), (25, 576, 70)] {
            let x: Vec<f32> = (0..n_rows * d_in).map(|i| value(i, 0.37)).collect();
            let w: Vec<f32> = (0..d_out * d_in).map(|i| value(i, 0.11)).collect();
            let packed = PackedWeight::new(&w, d_out, d_in).unwrap();
            let x_tensor = Tensor::from_slice(&x, (n_rows, d_in), &Device::Cpu).unwrap();
            let product = packed.apply(&x_tensor).unwrap().to_vec2::<f32>().unwrap();
            let rounded = |value: f32| f64::from(bf16::from_f32(value).to_f32());
            for (row, product) in product.iter().enumerate() {
                for (column, product) in product.iter().enumerate() {
                    let pairs = x[row * d_in..][..d_in].iter().zip(&w[column * d_in..][..d_in]);
                    let (sum, size) = pairs.fold((0.0, 0.0), |(sum, size), (&x, &w)| {
                        let term = rounded(x) * rounded(w);
                        (sum + term, size + term.abs())
                    });
                    assert!((f64::from(*product) - sum).abs() <= 1e-5 * (1.0 + size), "{product} {sum}");
                }
            }
        }
    }
}
