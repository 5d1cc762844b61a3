//! Random numbers: the same for a seed on every machine.

/// SplitMix64: portable, of full period, and sound from any seed; one number a token needs no more. Source: Steele, Lea
/// and Flood 2014, "Fast splittable pseudorandom number generators"; constants as in `java.util.SplittableRandom`.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in 0..1, in steps of 2^-53.
    pub fn next_unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// `n` of `all`, each at most once, in random order.
    pub fn draw<T: Copy>(&mut self, all: &[T], n: usize) -> Vec<T> {
        let mut rest = all.to_vec();
        let n = n.min(rest.len());
        for i in 0..n {
            let j = i + (self.next() % (rest.len() - i) as u64) as usize;
            rest.swap(i, j);
        }
        rest.truncate(n);
        rest
    }
}
