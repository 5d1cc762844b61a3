//! Histograms of activations: four bins to each doubling, the same for every feature, so that they can be added.

/// Bins of the scale: bin 0 is below [`SMALLEST`], negative values included; then four a doubling.
pub const N_BINS: usize = 256;

/// Lower edge of bin 1.
pub const SMALLEST: f32 = 1.0 / 65536.0;

/// Mantissa bits that tell the bins of a doubling apart: its edges are 1, 1.25, 1.5 and 1.75 times a power of two.
const BIN_BITS: u32 = 2;

/// The same for [`step_of`]: two steps a doubling.
const STEP_BITS: u32 = 1;

/// Exponent of [`SMALLEST`] as floats store it.
const SMALLEST_EXPONENT: u32 = 127 - 16;

/// Which bin or step, from the bits of a float: no logarithm, so that every machine agrees.
fn scale(value: f32, bits: u32) -> u32 {
    if value < SMALLEST {
        return 0;
    }
    1 + (value.to_bits() >> (23 - bits)) - (SMALLEST_EXPONENT << bits)
}

/// The bin of an activation.
pub fn bin_of(value: f32) -> u8 {
    scale(value, BIN_BITS).min(N_BINS as u32 - 1) as u8
}

/// The step of an activation: the coarser scale that the intervals of sampled examples are made of.
pub(super) fn step_of(value: f32) -> u8 {
    scale(value, STEP_BITS).min(N_BINS as u32 - 1) as u8
}

fn lower_edge(place: u32, bits: u32) -> f32 {
    if place == 0 { 0.0 } else { f32::from_bits((place - 1 + (SMALLEST_EXPONENT << bits)) << (23 - bits)) }
}

/// Where a bin begins; bin 0 is said to begin at 0.
pub fn bin_start(bin: usize) -> f32 {
    lower_edge(bin as u32, BIN_BITS)
}

/// Where a step begins.
pub(super) fn step_start(step: u8) -> f32 {
    lower_edge(step.into(), STEP_BITS)
}

/// How many activations fell into each bin, from the first bin with any to the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// The bin of `counts[0]`.
    pub first_bin: u8,
    /// Activations in each bin.
    pub counts: Vec<u32>,
}

impl Histogram {
    /// Counts one more activation.
    pub fn add(&mut self, value: f32) {
        self.add_to(bin_of(value), 1);
    }

    /// Counts `n` more activations of a bin.
    pub(super) fn add_to(&mut self, bin: u8, n: u32) {
        if self.counts.is_empty() {
            self.first_bin = bin;
        }
        if bin < self.first_bin {
            let more = usize::from(self.first_bin - bin);
            self.counts.splice(0..0, std::iter::repeat_n(0, more));
            self.first_bin = bin;
        }
        let at = usize::from(bin - self.first_bin);
        if at >= self.counts.len() {
            self.counts.resize(at + 1, 0);
        }
        self.counts[at] = self.counts[at].saturating_add(n);
    }

    /// Counts what another histogram counted.
    pub fn merge(&mut self, other: &Histogram) {
        // Inclusive, for the last bin has no successor.
        for (&n, bin) in other.counts.iter().zip(other.first_bin..=u8::MAX) {
            if n > 0 {
                self.add_to(bin, n);
            }
        }
    }

    /// (start, end, count) of each bin.
    pub fn bins(&self) -> impl Iterator<Item = (f32, f32, u32)> + '_ {
        let bins = usize::from(self.first_bin)..;
        bins.zip(&self.counts).map(|(bin, &n)| (bin_start(bin), bin_start(bin + 1), n))
    }

    /// The share of the activations that lies below a value, to the width of a bin: as if values were spread evenly in the
    /// bin that it is in, within `min..=max`. 0 where there are none.
    pub fn share_below(&self, value: f32, min: f32, max: f32) -> f64 {
        let total: f64 = self.counts.iter().map(|&n| f64::from(n)).sum();
        let below = self.bins().map(|(start, end, n)| {
            let (start, end) = (f64::from(start.max(min).min(max)), f64::from(end.min(max)));
            let value = f64::from(value);
            let part = if value >= end { 1.0 } else { (value - start) / (end - start) };
            f64::from(n) * part.clamp(0.0, 1.0)
        });
        if total > 0.0 { below.sum::<f64>() / total } else { 0.0 }
    }

    /// The activation below which a share of the activations lies, to the width of a bin: between the edges of its bin
    /// as if values were spread evenly there, and within `min..=max`. 0 where there are none.
    pub fn quantile(&self, share: f64, min: f32, max: f32) -> f32 {
        let total: f64 = self.counts.iter().map(|&n| f64::from(n)).sum();
        let mut left = share.clamp(0.0, 1.0) * total;
        for (start, end, n) in self.bins() {
            let n = f64::from(n);
            if n > 0.0 && left <= n {
                let (start, end) = (f64::from(start.max(min).min(max)), f64::from(end.min(max)));
                return (start + (end - start) * left / n) as f32;
            }
            left -= n;
        }
        if self.counts.is_empty() { 0.0 } else { max }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bin_holds_what_lies_between_its_edges() {
        for value in [SMALLEST, 1e-4, 0.3, 0.99999, 1.0, 1.2499, 1.25, 3.0, 700.0, 6e4, 1e9] {
            let bin = usize::from(bin_of(value));
            assert!(bin_start(bin) <= value && value < bin_start(bin + 1), "{value} in bin {bin}");
            let step = step_of(value);
            assert!(step_start(step) <= value && value < step_start(step + 1), "{value} in step {step}");
        }
        assert_eq!([bin_of(0.0), bin_of(-3.0), bin_of(1e-9), bin_of(f32::MAX)], [0, 0, 0, 255]);
        assert_eq!(bin_of(2.0) - bin_of(1.0), 4);
    }

    #[test]
    fn the_last_bin_is_merged_too() {
        let mut last = Histogram { first_bin: 255, counts: vec![3] };
        last.merge(&last.clone());
        assert_eq!(last, Histogram { first_bin: 255, counts: vec![6] });
    }

    #[test]
    fn histograms_add_up_in_any_order() {
        let values = [3.0f32, 0.1, 17.0, 3.1, -1.0, 0.0001, 900.0];
        let of = |values: &[f32]| {
            let mut histogram = Histogram::default();
            values.iter().for_each(|&value| histogram.add(value));
            histogram
        };
        let whole = of(&values);
        assert_eq!(whole.counts.iter().sum::<u32>(), 7);
        let reversed: Vec<f32> = values.iter().rev().copied().collect();
        assert_eq!(of(&reversed), whole);
        for cut in 0..values.len() {
            let mut merged = of(&values[cut..]);
            merged.merge(&of(&values[..cut]));
            assert_eq!(merged, whole, "cut at {cut}");
        }
    }
}
