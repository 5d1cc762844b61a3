//! From pre-activations to active features: bias, activation and compaction.

use candle_core::backend::BackendStorage;
use candle_core::{Result, Storage, Tensor, bail};
use rayon::prelude::*;

use super::gpu::{Arg, Gpu, Kernel, Launch};
use super::{cuda, f32_slice};

/// Features that one thread block of the kernels counts or writes.
const TILE_FEATURES: usize = 1024;

const CUT: Kernel = Kernel { file: "encode_active", name: "encode_cut", n_threads: 256 };
const COUNT: Kernel = Kernel { file: "encode_active", name: "encode_count", n_threads: 256 };
const SCAN: Kernel = Kernel { file: "encode_active", name: "encode_scan", n_threads: 256 };
const WRITE: Kernel = Kernel { file: "encode_active", name: "encode_write", n_threads: 256 };

/// Which pre-activations are active.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activity<'a> {
    /// Those above 0.
    Relu,
    /// Those strictly above their feature's threshold, but for exact zeros. `[n_features]`
    JumpRelu { threshold: &'a [f32] },
    /// The `k` largest of a position; of equal ones the lower features.
    TopK { k: usize },
}

/// Activations without the zeros, sorted by position and feature.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SparseActivations {
    /// `[n_active]`
    pub positions: Vec<u32>,
    /// Columns of the products. `[n_active]`
    pub features: Vec<u32>,
    /// Bias included. `[n_active]`
    pub values: Vec<f32>,
}

/// The active ones among `products + bias`, without a dense copy of the activations.
///
/// # Shapes
/// `products` `[n_pos, n_features]`, f32, contiguous; `bias` `[n_features]`.
///
/// # Errors
/// Shapes that do not fit.
pub fn encode_active(products: &Tensor, bias: &[f32], activity: Activity) -> Result<SparseActivations> {
    let (n_pos, n_features) = products.dims2()?;
    let n_thresholds = match activity {
        Activity::JumpRelu { threshold } => threshold.len(),
        Activity::Relu | Activity::TopK { .. } => n_features,
    };
    if bias.len() != n_features || n_thresholds != n_features {
        bail!("encode_active: {:?} with {} biases, {n_thresholds} thresholds", products.shape(), bias.len());
    }
    let (storage, layout) = products.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(on_cpu(f32_slice("encode_active", storage, layout)?, n_pos, bias, activity)),
        Storage::Cuda(storage) => {
            let products = cuda::arg("encode_active", storage, layout)?;
            // SAFETY: the operand's own size.
            unsafe { launch(storage.device(), products, n_pos, bias, activity) }
        }
        _ => bail!("encode_active: no side for {:?}", products.device()),
    }
}

/// The CPU side: positions in parallel.
fn on_cpu(products: &[f32], n_pos: usize, bias: &[f32], activity: Activity) -> SparseActivations {
    let found: Vec<Vec<(u32, f32)>> = products
        .par_chunks_exact(bias.len().max(1))
        .map(|products| {
            let all = products.iter().zip(bias).zip(0u32..).map(|((z, b), feature)| (feature, z + b));
            match activity {
                Activity::Relu => all.filter(|&(_, value)| value > 0.0).collect(),
                // A negative threshold lets negative values through; exact zeros are inactive all the same.
                Activity::JumpRelu { threshold } => {
                    all.filter(|&(feature, value)| value > threshold[feature as usize] && value != 0.0).collect()
                }
                Activity::TopK { k } => {
                    let mut found: Vec<(u32, f32)> = all.collect();
                    keep_largest(&mut found, k);
                    found.sort_unstable_by_key(|&(feature, _)| feature);
                    found
                }
            }
        })
        .collect();
    debug_assert!(bias.is_empty() || found.len() == n_pos);
    let mut active = SparseActivations::default();
    for (pos, found) in found.into_iter().enumerate() {
        active.positions.extend(std::iter::repeat_n(pos as u32, found.len()));
        active.features.extend(found.iter().map(|f| f.0));
        active.values.extend(found.iter().map(|f| f.1));
    }
    active
}

/// Keeps the `k` largest values; of equal ones, the lower features.
pub fn keep_largest(found: &mut Vec<(u32, f32)>, k: usize) {
    if found.len() <= k {
        return;
    }
    if k > 0 {
        found.select_nth_unstable_by(k - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    }
    found.truncate(k);
}

/// Finds the active ones among `products`, `[n_pos, n_features]` f32, to which `bias`, `[n_features]`, is still to be
/// added.
///
/// # Safety
/// `products` is a buffer of `n_pos · n_features` f32 values.
///
/// # Errors
/// Those of the device.
pub unsafe fn launch<G: Gpu>(
    gpu: &G,
    products: Arg,
    n_pos: usize,
    bias: &[f32],
    activity: Activity,
) -> Result<SparseActivations> {
    let n_features = bias.len();
    if n_pos == 0 || n_features == 0 || activity == (Activity::TopK { k: 0 }) {
        return Ok(SparseActivations::default());
    }
    let n_tiles = n_features.div_ceil(TILE_FEATURES);
    let bias = gpu.upload(bias)?;
    let threshold = match activity {
        Activity::JumpRelu { threshold } => Some(gpu.upload(threshold)?),
        Activity::Relu | Activity::TopK { .. } => None,
    };
    let (mode, cuts) = match activity {
        Activity::Relu => (0, None),
        Activity::JumpRelu { .. } => (1, None),
        Activity::TopK { k } => {
            let cuts = (gpu.zeros::<u32>(n_pos)?, gpu.zeros::<u32>(n_pos)?);
            let args = vec![
                gpu.arg(&cuts.0),
                gpu.arg(&cuts.1),
                products,
                gpu.arg(&bias),
                Arg::size(n_features)?,
                Arg::size(k.min(n_features))?,
            ];
            // SAFETY: a cut a position; the caller vouches for `products`.
            unsafe { gpu.launch(&Launch { kernel: CUT, grid: [n_pos, 1, 1], args })? };
            (2, Some(cuts))
        }
    };
    let cut_args = cuts.as_ref().map_or([Arg::Null; 2], |(keys, features)| [gpu.arg(keys), gpu.arg(features)]);
    let mut inputs = vec![products, gpu.arg(&bias), threshold.as_ref().map_or(Arg::Null, |t| gpu.arg(t))];
    inputs.extend(cut_args);
    inputs.extend([Arg::size(n_features)?, Arg::U32(mode)]);

    let n_counts = n_pos * n_tiles;
    let counts = gpu.zeros::<u32>(n_counts)?;
    let args = [&[gpu.arg(&counts)], inputs.as_slice()].concat();
    // SAFETY: a count a position and tile; inputs as above.
    unsafe { gpu.launch(&Launch { kernel: COUNT, grid: [n_tiles, n_pos, 1], args })? };

    let starts = gpu.zeros::<u32>(n_counts + 1)?;
    let args = vec![gpu.arg(&starts), gpu.arg(&counts), Arg::size(n_counts)?];
    // SAFETY: one start more than counts.
    unsafe { gpu.launch(&Launch { kernel: SCAN, grid: [1, 1, 1], args })? };

    let n_active = gpu.download(&starts)?[n_counts] as usize;
    if n_active == 0 {
        return Ok(SparseActivations::default());
    }
    let (positions, features) = (gpu.zeros::<u32>(n_active)?, gpu.zeros::<u32>(n_active)?);
    let values = gpu.zeros::<f32>(n_active)?;
    let outputs = [gpu.arg(&positions), gpu.arg(&features), gpu.arg(&values), gpu.arg(&starts)];
    let args = [&outputs, inputs.as_slice()].concat();
    // SAFETY: as many places as the scan has counted.
    unsafe { gpu.launch(&Launch { kernel: WRITE, grid: [n_tiles, n_pos, 1], args })? };
    Ok(SparseActivations {
        positions: gpu.download(&positions)?,
        features: gpu.download(&features)?,
        values: gpu.download(&values)?,
    })
}
