//! Eigenvalues of small real matrices, by the QR algorithm (Golub and Van Loan 2013, sections 7.4 and 7.5).

/// Iterations for one eigenvalue; a few are usual.
const MAX_ITERATIONS: usize = 60;

/// The eigenvalues of a square matrix, row by row, as real and imaginary parts, in no order. Where an eigenvalue is not
/// found in many iterations, which has never been seen, its diagonal entry stands in its place.
///
/// # Cost
/// Some `25 · n³` operations.
pub(super) fn eigenvalues(mut a: Vec<f64>, n: usize) -> Vec<(f64, f64)> {
    assert_eq!(a.len(), n * n, "the matrix is square");
    to_hessenberg(&mut a, n);
    let mut found = Vec::with_capacity(n);
    // The part that is left: rows and columns 0..end.
    let mut end = n;
    let mut iterations = 0;
    while end > 0 {
        let last = end - 1;
        let at = |i: usize, j: usize| i * n + j;
        let start = first_of_block(&mut a, n, last);
        if start == last || (start + 1 < last && iterations > MAX_ITERATIONS) {
            found.push((a[at(last, last)], 0.0));
            (end, iterations) = (last, 0);
        } else if start + 1 == last {
            found.extend(of_two(a[at(start, start)], a[at(start, last)], a[at(last, start)], a[at(last, last)]));
            (end, iterations) = (start, 0);
        } else {
            iterations += 1;
            francis_step(&mut a, n, start, last, iterations);
        }
    }
    found
}

/// Householder reflections that leave zeros below the first subdiagonal.
fn to_hessenberg(a: &mut [f64], n: usize) {
    for k in 0..n.saturating_sub(2) {
        let mut v: Vec<f64> = (k + 1..n).map(|i| a[i * n + k]).collect();
        reflect(&mut v, |v| {
            for j in k..n {
                let dot: f64 = v.iter().enumerate().map(|(i, v)| v * a[(k + 1 + i) * n + j]).sum();
                v.iter().enumerate().for_each(|(i, v)| a[(k + 1 + i) * n + j] -= 2.0 * dot * v);
            }
            for row in 0..n {
                let dot: f64 = v.iter().enumerate().map(|(j, v)| v * a[row * n + k + 1 + j]).sum();
                v.iter().enumerate().for_each(|(j, v)| a[row * n + k + 1 + j] -= 2.0 * dot * v);
            }
        });
    }
}

/// Makes of `x` the unit vector whose reflection takes it to the first axis, and calls `apply` with it; not for zero.
fn reflect(x: &mut [f64], apply: impl FnOnce(&[f64])) {
    let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt();
    if norm == 0.0 {
        return;
    }
    x[0] += norm.copysign(x[0]);
    let norm = x.iter().map(|v| v * v).sum::<f64>().sqrt();
    x.iter_mut().for_each(|v| *v /= norm);
    apply(x);
}

/// The first row of the unreduced block that ends with row `last`; negligible subdiagonal entries become zero.
fn first_of_block(a: &mut [f64], n: usize, last: usize) -> usize {
    for i in (1..=last).rev() {
        let scale = a[(i - 1) * n + i - 1].abs() + a[i * n + i].abs();
        let scale = if scale > 0.0 { scale } else { 1.0 };
        if a[i * n + i - 1].abs() <= f64::EPSILON * scale {
            a[i * n + i - 1] = 0.0;
            return i;
        }
    }
    0
}

/// The eigenvalues of `[[a, b], [c, d]]`.
fn of_two(a: f64, b: f64, c: f64, d: f64) -> [(f64, f64); 2] {
    let (half, product) = ((a + d) / 2.0, a * d - b * c);
    let discriminant = half * half - product;
    if discriminant < 0.0 {
        let im = (-discriminant).sqrt();
        return [(half, im), (half, -im)];
    }
    // The larger one by sum, the other by product, so that nothing cancels.
    let large = half + discriminant.sqrt().copysign(half);
    let small = if large == 0.0 { 0.0 } else { product / large };
    [(large, 0.0), (small, 0.0)]
}

/// One double-shift step on rows and columns `start..=last`.
fn francis_step(a: &mut [f64], n: usize, start: usize, last: usize, iterations: usize) {
    let at = |i: usize, j: usize| i * n + j;
    let m = last - 1;
    let (mut sum, mut product) =
        (a[at(m, m)] + a[at(last, last)], a[at(m, m)] * a[at(last, last)] - a[at(m, last)] * a[at(last, m)]);
    // A shift that is no eigenvalue breaks a circle.
    if iterations % 10 == 0 {
        let size = a[at(last, m)].abs() + a[at(m, m - 1)].abs();
        (sum, product) = (1.5 * size, size * size);
    }
    let h = |i: usize, j: usize| a[at(start + i, start + j)];
    let mut x = h(0, 0) * h(0, 0) + h(0, 1) * h(1, 0) - sum * h(0, 0) + product;
    let mut y = h(1, 0) * (h(0, 0) + h(1, 1) - sum);
    let mut z = h(1, 0) * h(2, 1);
    for k in start..last {
        let n_rows = if k + 2 <= last { 3 } else { 2 };
        let mut v = vec![x, y, z];
        v.truncate(n_rows);
        reflect(&mut v, |v| {
            for j in k.saturating_sub(1).max(start)..=last {
                let dot: f64 = v.iter().enumerate().map(|(i, v)| v * a[at(k + i, j)]).sum();
                v.iter().enumerate().for_each(|(i, v)| a[at(k + i, j)] -= 2.0 * dot * v);
            }
            for row in start..=(k + 3).min(last) {
                let dot: f64 = v.iter().enumerate().map(|(j, v)| v * a[at(row, k + j)]).sum();
                v.iter().enumerate().for_each(|(j, v)| a[at(row, k + j)] -= 2.0 * dot * v);
            }
        });
        x = a[at((k + 1).min(last), k)];
        y = a[at((k + 2).min(last), k)];
        z = if k + 3 <= last { a[at(k + 3, k)] } else { 0.0 };
    }
    // What the reflections have made zero but for rounding.
    for i in start + 2..=last {
        a[at(i, i - 2)] = 0.0;
        if i >= start + 3 {
            a[at(i, i - 3)] = 0.0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::eigenvalues;

    /// Sorted, so that lists can be compared.
    fn sorted(mut values: Vec<(f64, f64)>) -> Vec<(f64, f64)> {
        values.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        values
    }

    #[test]
    fn eigenvalues_of_known_matrices_are_found() {
        let close = |found: Vec<(f64, f64)>, expected: &[(f64, f64)]| {
            for (a, b) in sorted(found.clone()).iter().zip(expected) {
                assert!((a.0 - b.0).abs() < 1e-9 && (a.1 - b.1).abs() < 1e-9, "{found:?}, not {expected:?}");
            }
        };
        close(eigenvalues(vec![2.0], 1), &[(2.0, 0.0)]);
        close(eigenvalues(vec![0.0, -1.0, 1.0, 0.0], 2), &[(0.0, -1.0), (0.0, 1.0)]);
        close(
            eigenvalues(vec![2.0, 0.0, 0.0, 5.0, 3.0, 0.0, -1.0, 4.0, 7.0], 3),
            &[(2.0, 0.0), (3.0, 0.0), (7.0, 0.0)],
        );
        // A cyclic shift of four: the fourth roots of 1.
        let shift = [0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        close(eigenvalues(shift.to_vec(), 4), &[(-1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (1.0, 0.0)]);
    }

    /// Their sum is the trace, the sum of their squares that of the square, of their cubes that of the cube.
    #[test]
    fn powers_of_eigenvalues_add_up_to_traces() {
        let mut state = 7u64;
        for n in [3, 8, 33, 64] {
            let mut random = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as f64 / f64::from(1u32 << 31) - 0.5
            };
            let a: Vec<f64> = (0..n * n).map(|_| random()).collect();
            let times = |x: &[f64], y: &[f64]| -> Vec<f64> {
                let entry = |i: usize, j: usize| (0..n).map(|k| x[i * n + k] * y[k * n + j]).sum();
                (0..n * n).map(|at| entry(at / n, at % n)).collect()
            };
            let trace = |x: &[f64]| (0..n).map(|i| x[i * n + i]).sum::<f64>();
            let found = eigenvalues(a.clone(), n);
            assert_eq!(found.len(), n);
            let square = times(&a, &a);
            let cube = times(&square, &a);
            let sum = |power: i32| -> f64 {
                found.iter().map(|&(re, im)| re.hypot(im).powi(power) * (f64::from(power) * im.atan2(re)).cos()).sum()
            };
            let size = found.iter().map(|&(re, im)| re.hypot(im)).fold(1.0, f64::max).powi(3) * n as f64;
            for (power, expected) in [(1, trace(&a)), (2, trace(&square)), (3, trace(&cube))] {
                assert!((sum(power) - expected).abs() < 1e-8 * size, "{n}: power {power}: {} {expected}", sum(power));
            }
        }
    }
}
