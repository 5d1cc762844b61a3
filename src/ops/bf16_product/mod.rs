//! Products in bf16: operands rounded to 16 bits, sums in f32. Processors with matrix tiles (AMX) do four to eight times as
//! much of it as of f32, those with AVX512-BF16 up to twice as much; elsewhere [`PackedWeight::new`] gives nothing, and
//! products stay in f32.
//!
//! Training runs in it: the model's pass and the encoder's product are most of its work. Graphs never do.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx512;

use std::sync::OnceLock;

use half::bf16;

/// Outputs of a panel: they are computed together.
const COLUMNS: usize = 32;

/// Columns of a tile, and its rows: numbers of 32 bits, each a pair of values.
const SIDE: usize = 16;

/// Numbers of a tile.
const TILE: usize = SIDE * SIDE;

/// Rows whose 16-bit form is in a core's cache. A multiple of what either kernel computes together.
const BLOCK_ROWS: usize = 192;

/// Instructions that multiply pairs of bf16.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kernel {
    /// Tiles of 16 by 16.
    Amx,
    /// Vectors of 16.
    Avx512,
}

impl Kernel {
    /// The fastest that this processor has and this system lets programs use.
    fn best() -> Option<Self> {
        static BEST: OnceLock<Option<Kernel>> = OnceLock::new();
        *BEST.get_or_init(|| Self::supported().first().copied())
    }

    /// All that can be used here, the fastest first.
    #[cfg(target_arch = "x86_64")]
    fn supported() -> Vec<Self> {
        let vectors =
            std::arch::is_x86_feature_detected!("avx512f") && std::arch::is_x86_feature_detected!("avx512bf16");
        let mut all = Vec::new();
        // Rows are rounded with vectors, whatever multiplies them.
        if vectors && amx::is_supported() {
            all.push(Self::Amx);
        }
        if vectors {
            all.push(Self::Avx512);
        }
        all
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn supported() -> Vec<Self> {
        Vec::new()
    }
}

/// A weight in the order in which products read it.
#[derive(Clone, Debug)]
pub struct PackedWeight {
    d_out: usize,
    d_in: usize,
    kernel: Kernel,
    /// Tiles of 16 pairs of neighbouring inputs by 16 outputs, of a panel two beside each other, all of one panel after
    /// another; zeros where there is no such input or output. `[⌈d_out / 32⌉, ⌈d_in / 32⌉, 2, 16, 16]`
    panels: Vec<u32>,
}

/// Rows in bf16, as products read them. Kept from one product to the next, so that its memory is.
#[derive(Clone, Debug, Default)]
pub struct RoundedRows {
    n_rows: usize,
    d_in: usize,
    /// Numbers from one row to the next.
    stride: usize,
    /// Pairs of neighbouring values, then zeros; rows of zeros at the end. `[rows, stride]`
    pairs: Vec<u32>,
}

impl RoundedRows {
    /// Rounds rows of any number.
    ///
    /// # Shapes
    /// `x` `[n_rows, d_in]`, row-major.
    ///
    /// # Panics
    /// Another length.
    fn fill(&mut self, x: &[f32], d_in: usize) {
        assert!(d_in > 0 && x.len().is_multiple_of(d_in), "{} values in rows of {d_in}", x.len());
        (self.n_rows, self.d_in) = (x.len() / d_in, d_in);
        // An odd number of tiles: rows would be read from the same few lines of the cache otherwise.
        self.stride = (d_in.div_ceil(2 * SIDE) | 1) * SIDE;
        self.pairs.resize(self.n_rows.next_multiple_of(COLUMNS) * self.stride, 0);
        for (row, into) in x.chunks(d_in).zip(self.pairs.chunks_mut(self.stride)) {
            round_row(row, into);
        }
        self.pairs[self.n_rows * self.stride..].fill(0);
    }
}

/// Two values as bf16 in one number, the first in the lower half.
#[inline(always)]
fn pair(low: f32, high: f32) -> u32 {
    u32::from(bf16::from_f32(low).to_bits()) | u32::from(bf16::from_f32(high).to_bits()) << 16
}

/// A row as pairs, an odd one's last with a zero; zeros after it.
fn round_row(row: &[f32], into: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    let n_done = avx512::round(row, into);
    #[cfg(not(target_arch = "x86_64"))]
    let n_done = 0;
    let (pairs, rest) = row[2 * n_done..].as_chunks::<2>();
    let mut left = into[n_done..].iter_mut();
    for (&[low, high], into) in pairs.iter().zip(&mut left) {
        *into = pair(low, high);
    }
    if let (Some(&last), Some(into)) = (rest.first(), left.next()) {
        *into = pair(last, 0.0);
    }
    left.for_each(|into| *into = 0);
}

impl PackedWeight {
    /// Whether products in bf16 are faster here than in f32.
    pub fn is_supported() -> bool {
        Kernel::best().is_some()
    }

    /// Packs a weight; `None` where products in bf16 would not be faster.
    ///
    /// # Shapes
    /// `weight` `[d_out, d_in]`, row-major.
    ///
    /// # Panics
    /// Another length.
    pub fn new(weight: &[f32], d_out: usize, d_in: usize) -> Option<Self> {
        assert_eq!(weight.len(), d_out * d_in);
        Kernel::best().map(|kernel| Self::pack(weight, d_out, d_in, kernel))
    }

    fn pack(weight: &[f32], d_out: usize, d_in: usize, kernel: Kernel) -> Self {
        let n_tiles = d_in.div_ceil(2 * SIDE);
        let mut panels = vec![0u32; d_out.div_ceil(COLUMNS) * n_tiles * 2 * TILE];
        let mut pairs = vec![0u32; n_tiles * SIDE];
        for (panel, rows) in panels.chunks_mut(n_tiles * 2 * TILE).zip(weight.chunks(COLUMNS * d_in)) {
            for (column, row) in rows.chunks(d_in).enumerate() {
                round_row(row, &mut pairs);
                let (half, column) = (column / SIDE, column % SIDE);
                for (tiles, pairs) in panel.chunks_mut(2 * TILE).zip(pairs.chunks(SIDE)) {
                    let tile = &mut tiles[half * TILE..][..TILE];
                    pairs.iter().enumerate().for_each(|(at, &pair)| tile[at * SIDE + column] = pair);
                }
            }
        }
        Self { d_out, d_in, kernel, panels }
    }

    /// `out = x · wᵀ` on the calling thread.
    ///
    /// # Shapes
    /// `x` `[n, d_in]`, `out` `[n, d_out]`, row-major.
    ///
    /// # Panics
    /// Other lengths.
    pub fn product(&self, out: &mut [f32], x: &[f32]) {
        self.product_with(out, x, &mut RoundedRows::default());
    }

    /// As [`PackedWeight::product`], in memory that is kept from one product to the next.
    ///
    /// # Panics
    /// As [`PackedWeight::product`].
    pub fn product_with(&self, out: &mut [f32], x: &[f32], rounded: &mut RoundedRows) {
        assert_eq!(out.len() * self.d_in, x.len() * self.d_out);
        for (x, out) in x.chunks(BLOCK_ROWS * self.d_in).zip(out.chunks_mut(BLOCK_ROWS * self.d_out)) {
            rounded.fill(x, self.d_in);
            self.product_of(out, rounded);
        }
    }

    /// As [`PackedWeight::product`], of rows that are rounded already; fast for a few hundred of them.
    ///
    /// # Shapes
    /// `x` `[n, d_in]`, `out` `[n, d_out]`, row-major.
    ///
    /// # Panics
    /// Other lengths.
    fn product_of(&self, out: &mut [f32], x: &RoundedRows) {
        assert_eq!((out.len(), x.d_in), (x.n_rows * self.d_out, self.d_in));
        let n_tiles = self.d_in.div_ceil(2 * SIDE);
        for (at, panel) in self.panels.chunks(n_tiles * 2 * TILE).enumerate() {
            let columns = at * COLUMNS..(at * COLUMNS + COLUMNS).min(self.d_out);
            #[cfg(target_arch = "x86_64")]
            match self.kernel {
                Kernel::Amx => amx::panel(out, self.d_out, columns, x, panel),
                Kernel::Avx512 => avx512::panel(out, self.d_out, columns, x, panel),
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = (columns, panel, self.kernel); // Weights are not packed elsewhere.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The product of rounded numbers and the size of its terms, in f64.
    fn slow(x: &[f32], w: &[f32]) -> (f64, f64) {
        let rounded = |value: f32| f64::from(bf16::from_f32(value).to_f32());
        x.iter().zip(w).fold((0.0, 0.0), |(sum, size), (&x, &w)| {
            let term = rounded(x) * rounded(w);
            (sum + term, size + term.abs())
        })
    }

    #[test]
    fn products_of_rounded_numbers_are_those_in_f64_at_any_size_with_every_kernel() {
        let value = |i: usize, step: f32| (i as f32 * step).sin() * 3.0;
        let sizes = [(1, 1, 1), (3, 7, 5), (12, 64, 32), (13, 65, 33), (130, 48, 100), (25, 576, 70), (200, 33, 16)];
        for kernel in Kernel::supported() {
            for (n_rows, d_in, d_out) in sizes {
                let x: Vec<f32> = (0..n_rows * d_in).map(|i| value(i, 0.37)).collect();
                let w: Vec<f32> = (0..d_out * d_in).map(|i| value(i, 0.11)).collect();
                let packed = PackedWeight::pack(&w, d_out, d_in, kernel);
                let mut product = vec![0f32; n_rows * d_out];
                packed.product(&mut product, &x);
                for (row, product) in product.chunks(d_out).enumerate() {
                    for (column, product) in product.iter().enumerate() {
                        let (sum, size) = slow(&x[row * d_in..][..d_in], &w[column * d_in..][..d_in]);
                        let close = (f64::from(*product) - sum).abs() <= 1e-5 * (1.0 + size);
                        assert!(close, "{kernel:?}, {:?}: {product} {sum}", (n_rows, d_in, d_out));
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_are_rounded_one_after_another_are_not_mixed_up() {
        let Some(kernel) = Kernel::best() else { return };
        let w: Vec<f32> = (0..40 * 50).map(|i| (i as f32 * 0.3).sin()).collect();
        let packed = PackedWeight::pack(&w, 40, 50, kernel);
        let mut rounded = RoundedRows::default();
        for n_rows in [70, 3, 33] {
            let x: Vec<f32> = (0..n_rows * 50).map(|i| (i as f32 * 0.7).cos()).collect();
            rounded.fill(&x, 50);
            let (mut out, mut alone) = (vec![0f32; n_rows * 40], vec![0f32; n_rows * 40]);
            packed.product_of(&mut out, &rounded);
            packed.product(&mut alone, &x);
            assert_eq!(out, alone);
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_of_two_the_even_one_and_keeps_what_is_not_finite() {
        if Kernel::best().is_none() {
            return;
        }
        let mut values =
            vec![1.0, -2.5, 0.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 3e38, f32::INFINITY, f32::NEG_INFINITY];
        values.extend((0..91).map(|i| (i as f32 * 0.37).sin() * 1e3));
        let mut into = vec![7u32; 80];
        round_row(&values, &mut into);
        let halves: Vec<u16> = into.iter().flat_map(|pair| [*pair as u16, (*pair >> 16) as u16]).collect();
        for (at, half) in halves.iter().enumerate() {
            assert_eq!(*half, values.get(at).map_or(0, |&value| bf16::from_f32(value).to_bits()), "{at}");
        }
        round_row(&[f32::NAN; 32], &mut into);
        assert!(bf16::from_bits(into[0] as u16).is_nan());
    }
}
