//! Products of bf16 with vectors, and rounding to it.

use std::arch::x86_64::{
    __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_storeu_ps, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_si512,
};
use std::ops::Range;

use super::{COLUMNS, Kernel, RoundedRows, SIDE, TILE};

/// Rows that are computed together: with the columns of a panel, 24 of 32 registers.
const ROWS: usize = 12;

fn as_bf16(pairs: __m512i) -> __m512bh {
    // SAFETY: both are 512 bits without a rule of their own.
    unsafe { std::mem::transmute(pairs) }
}

/// Rounds as much of a row as vectors of 32 hold; gives the number of pairs, 0 where the processor has no such instruction.
///
/// # Panics
/// `into` shorter than the row's pairs.
pub(super) fn round(row: &[f32], into: &mut [u32]) -> usize {
    assert!(into.len() >= row.len().div_ceil(2));
    if Kernel::best().is_none() {
        return 0;
    }
    // SAFETY: a kernel was found, so that the processor has these instructions; whole vectors of the row are read, and
    // half as many numbers written, which the row's pairs are at least.
    unsafe { round_vectors(row, into) }
}

/// # Safety
/// The processor has avx512f and avx512bf16, and `into` room for a number of every two values.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn round_vectors(row: &[f32], into: &mut [u32]) -> usize {
    let n = row.len() / (2 * SIDE);
    for at in 0..n {
        // SAFETY: `at` is below the number of whole vectors, which both slices hold.
        unsafe {
            let from = row.as_ptr().add(at * 2 * SIDE);
            let pairs = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from.add(SIDE)), _mm512_loadu_ps(from));
            _mm512_storeu_si512(
                into.as_mut_ptr().add(at * SIDE).cast(),
                std::mem::transmute::<__m512bh, __m512i>(pairs),
            );
        }
    }
    n * SIDE
}

/// All rows times the columns of one panel.
///
/// # Shapes
/// `out` `[n_rows, d_out]`, `panel` `[tiles of d_in, 2, 16, 16]`.
///
/// # Panics
/// Other lengths.
pub(super) fn panel(out: &mut [f32], d_out: usize, columns: Range<usize>, x: &RoundedRows, panel: &[u32]) {
    let n_pairs = panel.len() / COLUMNS;
    assert!(Kernel::best().is_some() && panel.len() == n_pairs * COLUMNS && n_pairs.is_multiple_of(SIDE));
    assert!(n_pairs <= x.stride && x.pairs.len() >= x.n_rows * x.stride && out.len() == x.n_rows * d_out);
    assert!(columns.end <= d_out && columns.len() <= COLUMNS && !columns.is_empty());
    let rows = x.pairs.chunks(ROWS * x.stride).zip(out.chunks_mut(ROWS * d_out));
    for (rows, out) in rows {
        // SAFETY: a kernel was found; the lengths that the kernel reads and writes are those just checked.
        unsafe {
            match out.len() / d_out {
                ROWS => block::<ROWS>(out, d_out, columns.clone(), rows, x.stride, panel),
                n_rows => {
                    for row in 0..n_rows {
                        let (out, rows) = (&mut out[row * d_out..], &rows[row * x.stride..]);
                        block::<1>(out, d_out, columns.clone(), rows, x.stride, panel);
                    }
                }
            }
        }
    }
}

/// `R` rows of up to 32 columns.
///
/// # Safety
/// The processor has avx512f and avx512bf16; `panel` holds 32 numbers a pair, whole tiles of 16 pairs; `rows` holds `R` rows
/// of `stride` numbers, at least as many as pairs, the last as far as these; `out` holds `R` rows of `d_out`, the last as far
/// as `columns.end`; there are at most 32 columns.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn block<const R: usize>(
    out: &mut [f32],
    d_out: usize,
    columns: Range<usize>,
    rows: &[u32],
    stride: usize,
    panel: &[u32],
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    for at in 0..panel.len() / COLUMNS {
        // SAFETY: `at` is below the number of pairs, so that both loads lie within their tiles, as the caller promises.
        let (low, high) = unsafe {
            let from = panel.as_ptr().add(at / SIDE * 2 * TILE + at % SIDE * SIDE);
            (as_bf16(_mm512_loadu_si512(from.cast())), as_bf16(_mm512_loadu_si512(from.add(TILE).cast())))
        };
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `row` is below `R` and `at` below the number of pairs.
            let value = unsafe { *rows.get_unchecked(row * stride + at) };
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
