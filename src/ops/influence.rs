//! Influence of the active features from the rows computed so far, and the features to compute next, where the rows
//! are in a device's memory. The CPU side is `graph::partial_influence` and `graph::next_features`.

use candle_core::{Result, bail};

use super::gpu::{Arg, Gpu, Kernel, Launch};

const SUMS: Kernel = Kernel { file: "influence", name: "row_abs_sums", n_threads: 256 };
const SWEEP: Kernel = Kernel { file: "influence", name: "influence_sweep", n_threads: 256 };
const SELECT: Kernel = Kernel { file: "influence", name: "influence_select", n_threads: 256 };

/// Columns that one thread block of the sweep adds up.
const SWEEP_COLUMNS: usize = 32;

/// Rows computed so far, in device memory.
#[derive(Clone, Debug)]
pub struct RowsSoFar<'a> {
    /// `[n_rows, row_stride]` f32
    pub rows: Arg,
    pub row_stride: usize,
    /// Columns of a row that count: the active features, then errors, then tokens.
    pub n_columns: usize,
    /// First active feature of each layer, and their number. `[n_layers + 1]`
    pub layer_starts: &'a [usize],
    /// The smallest sum of absolute values that a row is divided by (definitions 6, order of work).
    pub row_sum_clamp: f32,
    /// Row and weight of each target.
    pub targets: &'a [(usize, f32)],
    /// Row and index of each visited feature.
    pub visited: &'a [(usize, usize)],
}

/// Sums of the rows' absolute values, kept between looks at the influence. `[capacity]`
#[derive(Debug)]
pub struct RowSums<B> {
    sums: B,
    n_done: usize,
}

impl<B> RowSums<B> {
    /// Room for the sums of `capacity` rows.
    ///
    /// # Errors
    /// Those of the device.
    pub fn new<G: Gpu<Buffer<f64> = B>>(gpu: &G, capacity: usize) -> Result<Self> {
        Ok(Self { sums: gpu.zeros::<f64>(capacity)?, n_done: 0 })
    }
}

/// Rows that a sampled sweep adds, in device memory.
#[derive(Clone, Copy, Debug)]
pub struct SweptRows {
    /// `[n_rows, row_stride]` f32
    pub rows: Arg,
    pub n_rows: usize,
    pub row_stride: usize,
    /// Columns of a row that count: the active features, then errors, then tokens.
    pub n_columns: usize,
    /// The smallest sum of absolute values that a row is divided by.
    pub row_sum_clamp: f32,
}

/// Adds `weights[v][r]·|rows[r, s]|/Σ_s |rows[r, s]|` over all rows to each of `vectors`. The CPU side is
/// `graph::SweepVectors::add` on the host. `vectors` `[n_vectors][n_columns]`, `weights` `[n_vectors][n_rows]`
///
/// # Safety
/// `swept.rows` is a buffer of `n_rows` x `row_stride` f32 values, each of `vectors` one of `n_columns` values at least.
///
/// # Cost
/// One pass over the rows for their sums, and one for each vector.
///
/// # Errors
/// Numbers of weights that do not fit; those of the device.
pub unsafe fn add_rows<G: Gpu>(
    gpu: &G,
    swept: SweptRows,
    vectors: &[G::Buffer<f64>],
    weights: &[Vec<f64>],
) -> Result<()> {
    let SweptRows { rows, n_rows, row_stride, n_columns, row_sum_clamp } = swept;
    if n_columns > row_stride || weights.len() != vectors.len() || weights.iter().any(|of| of.len() != n_rows) {
        bail!("influence: {n_columns} of {row_stride} columns, weights for {n_rows} rows in {} vectors", vectors.len());
    }
    let sums = gpu.zeros::<f64>(n_rows)?;
    let args = vec![gpu.arg(&sums), rows, Arg::size(0)?, Arg::size(row_stride)?, Arg::size(n_columns)?];
    // SAFETY: all rows, as many as there are sums.
    unsafe { gpu.launch(&Launch { kernel: SUMS, grid: [n_rows, 1, 1], args })? };
    let row_of: Vec<u32> = (0..n_rows as u32).collect();
    let row_of = gpu.upload(&row_of)?;
    for (vector, weights) in vectors.iter().zip(weights) {
        let weights = gpu.upload(weights)?;
        let args = vec![
            gpu.arg(vector),
            gpu.arg(&weights),
            rows,
            gpu.arg(&sums),
            gpu.arg(&row_of),
            gpu.arg(&row_of),
            Arg::size(0)?,
            Arg::size(n_rows)?,
            Arg::size(row_stride)?,
            Arg::size(n_columns)?,
            Arg::F32(row_sum_clamp),
        ];
        // SAFETY: every row is within both lists and has a weight; the weights are not what is written.
        unsafe { gpu.launch(&Launch { kernel: SWEEP, grid: [n_columns.div_ceil(SWEEP_COLUMNS), 1, 1], args })? };
    }
    Ok(())
}

/// The `count` most influential features that are not visited, strongest first; equals go by index. `[<= count]`
///
/// # Safety
/// `so_far.rows` is a buffer of `row_stride` f32 values for each target and visited feature, whose rows are
/// `0..targets.len() + visited.len()`; `sums` has room for as many.
///
/// # Cost
/// One pass over the rows of the features below each row, one more over rows that are new.
///
/// # Errors
/// Those of the device.
pub unsafe fn launch<G: Gpu>(
    gpu: &G,
    so_far: &RowsSoFar,
    sums: &mut RowSums<G::Buffer<f64>>,
    count: usize,
) -> Result<Vec<usize>> {
    let RowsSoFar { rows, row_stride, n_columns, layer_starts, row_sum_clamp, targets, visited } = *so_far;
    let n_active = layer_starts.last().copied().unwrap_or(0);
    let n_rows = targets.len() + visited.len();
    if n_active == 0 || count == 0 {
        return Ok(Vec::new());
    }
    let args = vec![gpu.arg(&sums.sums), rows, Arg::size(sums.n_done)?, Arg::size(row_stride)?, Arg::size(n_columns)?];
    // SAFETY: the rows that are new, all within `rows` and `sums`.
    unsafe { gpu.launch(&Launch { kernel: SUMS, grid: [n_rows - sums.n_done, 1, 1], args })? };
    sums.n_done = n_rows;

    // Targets first; then visited features by layer from the top down, each layer one sweep: by then their own
    // influence is complete.
    let mut order: Vec<(usize, usize)> = visited.to_vec();
    order.sort_unstable_by_key(|&(_, feature)| std::cmp::Reverse(feature));
    let row_of: Vec<u32> = targets.iter().map(|t| t.0).chain(order.iter().map(|v| v.0)).map(|r| r as u32).collect();
    let nodes: Vec<u32> = (0..targets.len()).chain(order.iter().map(|v| v.1)).map(|n| n as u32).collect();
    let (row_of, nodes) = (gpu.upload(&row_of)?, gpu.upload(&nodes)?);
    let weights: Vec<f64> = targets.iter().map(|t| f64::from(t.1)).collect();
    let weights = gpu.upload(&weights)?;
    let influence = gpu.zeros::<f64>(n_active)?;
    let sweep = |of_node: Arg, from: usize, to: usize, n_seen: usize| -> Result<()> {
        if from == to {
            return Ok(());
        }
        let args = vec![
            gpu.arg(&influence),
            of_node,
            rows,
            gpu.arg(&sums.sums),
            gpu.arg(&row_of),
            gpu.arg(&nodes),
            Arg::size(from)?,
            Arg::size(to)?,
            Arg::size(row_stride)?,
            Arg::size(n_seen)?,
            Arg::F32(row_sum_clamp),
        ];
        // SAFETY: `from..to` is within both lists, `n_seen` within a row; the sweep reads the influence of columns at
        // `n_seen` or above and writes those below.
        unsafe { gpu.launch(&Launch { kernel: SWEEP, grid: [n_seen.div_ceil(SWEEP_COLUMNS), 1, 1], args }) }
    };
    sweep(gpu.arg(&weights), 0, targets.len(), n_active)?;
    let mut from = targets.len();
    for &start in layer_starts[..layer_starts.len() - 1].iter().rev() {
        let to = targets.len() + order.partition_point(|&(_, feature)| feature >= start);
        sweep(gpu.arg(&influence), from, to, start)?;
        from = to;
    }

    let mut is_visited = vec![0u32; n_active];
    visited.iter().for_each(|&(_, feature)| is_visited[feature] = 1);
    let count = count.min(n_active - visited.len());
    let is_visited = gpu.upload(&is_visited)?;
    let (selected, n_selected) = (gpu.zeros::<u32>(count)?, gpu.zeros::<u32>(1)?);
    let args = vec![
        gpu.arg(&selected),
        gpu.arg(&n_selected),
        gpu.arg(&influence),
        gpu.arg(&is_visited),
        Arg::size(n_active)?,
        Arg::size(count)?,
    ];
    if count > 0 {
        // SAFETY: `count` places, as many as are selected.
        unsafe { gpu.launch(&Launch { kernel: SELECT, grid: [1, 1, 1], args })? };
    }
    let n_selected = gpu.download(&n_selected)?[0] as usize;
    let influence = gpu.download(&influence)?;
    let mut selected: Vec<usize> = gpu.download(&selected)?[..n_selected].iter().map(|&s| s as usize).collect();
    selected.sort_unstable_by(|&a, &b| influence[b].total_cmp(&influence[a]).then(a.cmp(&b)));
    Ok(selected)
}
