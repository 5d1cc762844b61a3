//! The vectors that a sampled sweep adds rows to: on the host here, wherever rows are computed elsewhere.

use std::ops::Range;
use std::sync::OnceLock;

use rayon::prelude::*;

use super::NodeLayout;
use super::influence::{ROW_SUM_CLAMP, add_abs_scaled, row_abs_sums};
use super::sweep::BLOCK_ROWS;
use crate::{Error, Result};

/// Sign patterns that the uncertainty comes from: with 8, it is itself known to about a quarter.
pub(super) const N_PATTERNS: usize = 8;

/// Values of rows that are held at once, unless a block of rows has more.
const HELD_VALUES: usize = 1 << 25;

/// Columns that one task adds up.
const SEGMENT_COLUMNS: usize = 1 << 12;

/// Where rows come from: computed on demand, or read.
pub trait RowSource: Sync {
    /// Calls `each` once for every one of `rows`, with its place in `rows` and its effects, in any order and from any
    /// thread. `rows` are row numbers of the layout, all of one layer or all of targets, ascending. Effects:
    /// [features, errors, tokens] at least, zero outside of the row's source ranges.
    ///
    /// # Errors
    /// Those of computing or reading the rows.
    fn rows(&self, rows: &[usize], each: &(dyn Fn(usize, &[f32]) + Sync)) -> Result<()>;
}

/// A row that a sweep adds.
#[derive(Debug, Clone, Copy)]
pub struct Visit {
    /// Its number in the layout.
    pub row: usize,
    /// What it passes on in each vector.
    pub weights: [f64; N_PATTERNS + 1],
}

/// The vectors of a sweep: influence, then how far it might be off, under each pattern of signs.
pub trait SweepVectors {
    /// Adds `weights[v]·|A[t,s]|/Σ_s |A[t,s]|` to each vector v, for the row t of every one of `visits`, which are all of one
    /// layer or all of targets, ascending.
    ///
    /// # Errors
    /// Those of computing or reading the rows.
    fn add(&mut self, visits: &[Visit]) -> Result<()>;

    /// What some features have so far. `[n_vectors][features.len()]`
    ///
    /// # Errors
    /// Those of the device.
    fn values(&self, features: Range<usize>) -> Result<Vec<Vec<f64>>>;

    /// What all have so far, with what was passed on to errors, where the host holds it.
    /// `[n_vectors][features, errors, tokens]`, `[n_vectors]`
    fn held(&self) -> Option<(&[Vec<f64>], &[f64])>;

    /// Puts what [`SweepVectors::held`] gave in place of zeros.
    ///
    /// # Errors
    /// [`Error::NeedsCpu`] where the host does not hold it.
    fn restore(&mut self, vectors: Vec<Vec<f64>>, to_errors: Vec<f64>) -> Result<()>;

    /// What all have in the end; no more is added after that.
    ///
    /// # Errors
    /// Those of the device.
    fn finish(&mut self) -> Result<SweptVectors>;
}

/// What the vectors of a sweep have in the end.
#[derive(Debug)]
pub struct SweptVectors {
    /// Influence. [features, errors, tokens].
    pub nodes: Vec<f64>,
    /// How far it might be off. [n_patterns][features, errors, tokens].
    pub noise: Vec<Vec<f64>>,
    /// What was passed on to errors, in each vector. `[n_vectors]`.
    pub to_errors: Vec<f64>,
}

/// The vectors in memory, with rows from a source.
pub struct HostVectors<'a> {
    source: &'a dyn RowSource,
    layout: &'a NodeLayout,
    vectors: Vec<Vec<f64>>,
    to_errors: Vec<f64>,
}

impl<'a> HostVectors<'a> {
    /// Vectors of zeros.
    pub fn new(source: &'a dyn RowSource, layout: &'a NodeLayout, n_vectors: usize) -> Self {
        let vectors = (0..n_vectors).map(|_| vec![0.0; layout.targets().start]).collect();
        Self { source, layout, vectors, to_errors: vec![0.0; n_vectors] }
    }

    fn add_held(&mut self, visits: &[Visit], block_of: impl Fn(&Visit) -> usize + Sync) -> Result<()> {
        let layout = self.layout;
        let n_columns = layout.targets().start;
        let slots: Vec<OnceLock<Box<[f32]>>> = visits.iter().map(|_| OnceLock::new()).collect();
        let rows: Vec<usize> = visits.iter().map(|visit| visit.row).collect();
        self.source.rows(&rows, &|place, effects| {
            // A second call for a row brings the same values.
            let _ = slots[place].set(effects[..n_columns].into());
        })?;
        let effects: Vec<&[f32]> = slots.iter().map(|slot| slot.get().map_or(&[][..], |row| row)).collect();
        if let Some(place) = effects.iter().position(|row| row.is_empty() && n_columns > 0) {
            return Err(Error::GraphShape {
                name: "rows of a source",
                expected: vec![n_columns],
                actual: vec![rows[place], 0],
            });
        }
        let abs_sums = visits.par_iter().zip(&effects).map(|(visit, effects)| row_abs_sums(layout, visit.row, effects));
        let abs_sums: Vec<(f64, f64)> = abs_sums.collect();
        for (visit, sums) in visits.iter().zip(&abs_sums) {
            let error_share = sums.1 / sums.0.max(ROW_SUM_CLAMP);
            self.to_errors.iter_mut().zip(visit.weights).for_each(|(sum, weight)| *sum += weight * error_share);
        }
        let places: Vec<usize> = (0..visits.len()).collect();
        for (number, vector) in self.vectors.iter_mut().enumerate() {
            vector.par_chunks_mut(SEGMENT_COLUMNS).enumerate().for_each(|(segment, totals)| {
                let first = segment * SEGMENT_COLUMNS;
                let mut block_sums = vec![0.0f64; totals.len()];
                for block in places.chunk_by(|&a, &b| block_of(&visits[a]) == block_of(&visits[b])) {
                    // Sums of blocks are added, as `influence` does; a single row is its own sum.
                    let is_single = block.len() == 1;
                    for &place in block {
                        let share = visits[place].weights[number] / abs_sums[place].0.max(ROW_SUM_CLAMP);
                        if share == 0.0 {
                            continue;
                        }
                        let sums = if is_single { &mut *totals } else { &mut block_sums };
                        for range in layout.source_ranges(visits[place].row) {
                            let (start, end) = (range.start.max(first), range.end.min(first + sums.len()));
                            if start < end {
                                add_abs_scaled(
                                    &mut sums[start - first..end - first],
                                    &effects[place][start..end],
                                    share,
                                );
                            }
                        }
                    }
                    if !is_single {
                        totals.iter_mut().zip(&block_sums).for_each(|(total, sum)| *total += sum);
                        block_sums.fill(0.0);
                    }
                }
            });
        }
        Ok(())
    }
}

impl SweepVectors for HostVectors<'_> {
    /// Gets the rows some blocks at a time.
    fn add(&mut self, visits: &[Visit]) -> Result<()> {
        let layout = self.layout;
        let n_held = (HELD_VALUES / layout.targets().start.max(1)).max(BLOCK_ROWS);
        let Some(first) = visits.first().map(|visit| visit.row) else { return Ok(()) };
        let first = match first.checked_sub(layout.n_features()) {
            Some(_) => layout.n_features(),
            None => layout.features_of_layer(layout.feature_ids()[first].layer as usize).start,
        };
        let block_of = |visit: &Visit| (visit.row - first) / BLOCK_ROWS;
        let mut rest = visits;
        while !rest.is_empty() {
            // Whole blocks, so that the order of additions does not depend on how many rows are held.
            let mut n = rest.len().min(n_held);
            while n < rest.len() && n > 1 && block_of(&rest[n]) == block_of(&rest[n - 1]) {
                n -= 1;
            }
            let (held, later) = rest.split_at(n);
            self.add_held(held, block_of)?;
            rest = later;
        }
        Ok(())
    }

    fn values(&self, features: Range<usize>) -> Result<Vec<Vec<f64>>> {
        Ok(self.vectors.iter().map(|vector| vector[features.clone()].to_vec()).collect())
    }

    fn held(&self) -> Option<(&[Vec<f64>], &[f64])> {
        Some((&self.vectors, &self.to_errors))
    }

    fn restore(&mut self, vectors: Vec<Vec<f64>>, to_errors: Vec<f64>) -> Result<()> {
        (self.vectors, self.to_errors) = (vectors, to_errors);
        Ok(())
    }

    fn finish(&mut self) -> Result<SweptVectors> {
        let mut vectors = std::mem::take(&mut self.vectors).into_iter();
        let nodes = vectors.next().unwrap_or_default();
        Ok(SweptVectors { nodes, noise: vectors.collect(), to_errors: std::mem::take(&mut self.to_errors) })
    }
}
