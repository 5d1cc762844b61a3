//! Arithmetic on rows. Everything here is inlined into functions that [`wide!`](wide) compiles for the widest vectors that
//! the processor has; sums are taken in one order, whatever the number of threads.

/// Values that are added side by side.
const LANES: usize = 64;

/// A function of one tuple, compiled for the widest vectors. Its body stands in a method that is always inlined: where one is
/// not, as in a closure, each `mul_add` is a call into the system's library.
macro_rules! wide_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$life:lifetime>($args:pat => $types:ty) -> $out:ty $body:block) => {
        $(#[$meta])*
        $vis fn $name<$life>(args: $types) -> $out {
            struct Run<$life>($types);
            impl<$life> pulp::WithSimd for Run<$life> {
                type Output = $out;

                #[inline(always)]
                fn with_simd<S: pulp::Simd>(self, _: S) -> $out {
                    let $args = self.0;
                    $body
                }
            }
            pulp::Arch::new().dispatch(Run(args))
        }
    };
}
pub(crate) use wide_fn as wide;

/// `out += factor · row`
#[inline(always)]
pub(crate) fn add_scaled(out: &mut [f32], factor: f32, row: &[f32]) {
    for (out, &value) in out.iter_mut().zip(row) {
        *out = value.mul_add(factor, *out);
    }
}

/// `⟨a, b⟩`
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let ((chunks_a, rest_a), (chunks_b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in chunks_a.iter().zip(chunks_b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum = a.mul_add(*b, *sum);
        }
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        let (low, high) = sums.split_at_mut(width);
        low.iter_mut().zip(high).for_each(|(low, high)| *low += *high);
    }
    rest_a.iter().zip(rest_b).fold(sums[0], |sum, (a, b)| a.mul_add(*b, sum))
}

/// The largest value, −∞ of none; NaN is passed over.
#[inline(always)]
pub(crate) fn largest(row: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (most, &value) in most.iter_mut().zip(chunk) {
            *most = if value > *most { value } else { *most };
        }
    }
    most.iter().chain(rest).fold(f32::NEG_INFINITY, |most, &value| if value > most { value } else { most })
}

/// The sum of all values.
#[inline(always)]
pub(crate) fn sum(row: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (chunks, rest) = row.as_chunks::<LANES>();
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, value)| *sum += value);
    }
    rest.iter().fold(sums.iter().sum(), |sum, value| sum + value)
}

/// e to the power of `x`, within 2 units in the last place; the least normal number where that is smaller, and the largest
/// power of two times a little where it is larger than f32 holds. NaN stays NaN.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Powers of two from 2^-126 to 2^127: none of them denormal.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    /// Added to a small number, it leaves the nearest integer in the lowest bits.
    const ROUNDER: f32 = 12_582_912.0;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    // ln 2 in two parts, the first exact in few bits (Cody and Waite 1980).
    let rest = n.mul_add(2.121_944_4e-4, n.mul_add(-355.0 / 512.0, x));
    // Cephes, expf.
    let series = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let factor = series.iter().fold(1.987_569_1e-4_f32, |sum, &term| sum.mul_add(rest, term));
    let of_rest = factor.mul_add(rest * rest, rest) + 1.0;
    of_rest * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_added_and_multiplied_at_any_length() {
        for n in [0, 1, 15, 64, 100, 576] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11).cos()).collect();
            let slow: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(dot(&a, &b)) - slow).abs() < 1e-4, "{n}");
            let mut sum = a.clone();
            add_scaled(&mut sum, -2.0, &b);
            assert!(sum.iter().zip(&a).zip(&b).all(|((s, a), b)| (s - (a - 2.0 * b)).abs() < 1e-6));
        }
    }

    #[test]
    fn powers_of_e_are_right_to_two_units_in_the_last_place() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let (fast, slow) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((fast / slow - 1.0).abs() < 2.4e-7, "{x}: {fast} {slow}");
            x += 0.001_7;
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 1.3e-38 && exp(-1e30) < 1.3e-38 && exp(1e30) > 2e38 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_largest_values_are_found_at_any_length() {
        for n in [0, 1, 63, 64, 65, 300] {
            let row: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin() - 2.0).collect();
            let slow: f64 = row.iter().map(|&value| f64::from(value)).sum();
            assert!((f64::from(sum(&row)) - slow).abs() < 1e-3);
            assert_eq!(largest(&row), row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}
