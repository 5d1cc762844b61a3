//! The one sweep that influence is computed with (definitions 6), over rows of whatever form.
//!
//! A graph is acyclic: when its rows are visited from the targets down, the influence of a row's node is complete before
//! the row hands it on, so that one visit of every row is the whole series `w + w·N + w·N² + …`. Edge rows, rows that are
//! still being computed, links and subgraphs differ only in how a row hands on: normalised by which sum, to which nodes.
//! (`ops::influence` is the same sweep on a device. Collapsed circuits can have cycles and repeat until nothing changes.)

use rayon::prelude::*;

/// Rows that one task hands on by itself. What these blocks add is added in order, so that the result is the same for any
/// number of threads.
pub(super) const BLOCK_ROWS: usize = 64;

/// Lets every row hand the influence of its node on to the nodes that feed it.
///
/// `influence`, `[n_nodes]`, begins with the weights of the targets. `rows` are pairs of a node and what its row is known
/// by, whatever a node feeds before the node. `pass_on(row, influence of its node, influence)` adds the parts of the sources.
///
/// # Cost
/// That of the rows.
pub(crate) fn propagate<R>(
    influence: &mut [f64],
    rows: impl IntoIterator<Item = (usize, R)>,
    mut pass_on: impl FnMut(R, f64, &mut [f64]),
) {
    for (node, row) in rows {
        let passed = influence[node];
        pass_on(row, passed, influence);
    }
}

/// As [`propagate`], in parallel: `steps` are lists of rows that do not feed each other. `pass_on` adds to a buffer of its
/// own and has `scratch` for the rows of one block; what it returns goes to `done`, in the order of the rows.
pub(crate) fn propagate_steps<R: Copy + Sync, S, T: Send>(
    influence: &mut [f64],
    steps: impl IntoIterator<Item = Vec<(usize, R)>>,
    scratch: impl Fn() -> S + Sync,
    pass_on: impl Fn(R, f64, &mut [f64], &mut S) -> T + Sync,
    mut done: impl FnMut(R, T),
) {
    for rows in steps {
        let blocks: Vec<(Vec<f64>, Vec<T>)> = rows
            .par_chunks(BLOCK_ROWS)
            .map(|block| {
                let (mut sums, mut scratch) = (vec![0.0; influence.len()], scratch());
                let pass_on = |&(node, row): &(usize, R)| pass_on(row, influence[node], &mut sums, &mut scratch);
                let results = block.iter().map(pass_on).collect();
                (sums, results)
            })
            .collect();
        for (block, (sums, results)) in rows.chunks(BLOCK_ROWS).zip(blocks) {
            influence.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
            block.iter().zip(results).for_each(|(&(_, row), result)| done(row, result));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The series itself, power by power, over a dense matrix. `[n * n]`, target-major.
    fn series(shares: &[f64], weights: &[f64]) -> Vec<f64> {
        let n = weights.len();
        let (mut power, mut total) = (weights.to_vec(), weights.to_vec());
        while power.iter().any(|&p| p != 0.0) {
            power = (0..n).map(|s| (0..n).map(|t| power[t] * shares[t * n + s]).sum()).collect();
            total.iter_mut().zip(&power).for_each(|(total, power)| *total += power);
        }
        total
    }

    #[test]
    fn one_visit_of_every_row_is_the_whole_series() {
        // Node i is fed by lower ones only; nodes of one step, here three, are not fed by each other.
        let n = 201;
        let step_of = |node: usize| node / 3;
        let share = |t: usize, s: usize| {
            if step_of(s) < step_of(t) { ((t * 31 + s * 17) % 7) as f64 / (6 * t.max(1)) as f64 } else { 0.0 }
        };
        let shares: Vec<f64> = (0..n * n).map(|at| share(at / n, at % n)).collect();
        let mut weights = vec![0.0; n];
        weights[n - 3..].copy_from_slice(&[0.5, 0.25, 0.125]);
        let expected = series(&shares, &weights);
        let pass_on = |row: usize, passed: f64, influence: &mut [f64]| {
            (0..row).for_each(|source| influence[source] += passed * share(row, source));
        };
        let mut swept = weights.clone();
        propagate(&mut swept, (0..n).rev().map(|row| (row, row)), pass_on);
        let mut in_steps = weights.clone();
        let steps = (0..n / 3).rev().map(|step| (3 * step..3 * step + 3).map(|row| (row, row)).collect());
        let mut visited = Vec::new();
        let in_parallel = |row, passed, sums: &mut [f64], _: &mut ()| {
            pass_on(row, passed, sums);
            passed
        };
        propagate_steps(&mut in_steps, steps, || (), in_parallel, |row, passed| visited.push((row, passed)));
        assert_eq!(visited.len(), n);
        assert!(expected[0] > 0.0);
        for node in 0..n {
            assert!((swept[node] - expected[node]).abs() <= 1e-12 * expected[node], "node {node}");
            assert!((in_steps[node] - expected[node]).abs() <= 1e-12 * expected[node], "node {node} in steps");
        }
        assert!(
            visited.iter().all(|&(row, passed)| passed == in_steps[row]),
            "influence is complete when it is handed on"
        );
    }
}
