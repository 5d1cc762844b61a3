//! `ops`: the device seam. The hot operations of the row phase, each with a CPU side and, with the feature `cuda`, a
//! kernel in `kernels/`; no other room asks which device it is on, but to choose sizes.
//!
//! Most work on gradients of a batch of targets in the ragged layout of [`TargetBlocks`]. On the CPU each runs on the
//! calling thread: batches run in parallel, not the inside of one.
//!
//! The code that prepares launches is there in every build ([`gpu::Gpu`]): tests run it, and the kernels' own source,
//! on the CPU.

mod batch_rows;
mod blocks;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
pub mod edge_rows;
pub mod encode_active;
pub mod frozen_attention;
pub mod gpu;
mod indices;
pub mod influence;
mod matmul;
pub mod norm_pullback;
mod partial_influence;

pub use batch_rows::{BatchRows, HostRow, RowCollector, Unlanded, bias_columns};
pub use blocks::TargetBlocks;
pub use device::{
    DeviceLimits, block_values, built_with_cuda, device_limits, device_name, gradient_rows, open_cuda, row_values,
};
pub use edge_rows::{SourceVecs, edge_rows};
pub use encode_active::{ActiveBlock, Activity, encode_active, keep_largest};
pub use frozen_attention::{frozen_attention, frozen_attention_own};
pub use indices::Indices;
pub use matmul::{add_product, matmul};
pub use norm_pullback::{NormFactors, norm_pullback};
pub use partial_influence::{RowShape, RowsOnDevice};

use candle_core::{CpuStorage, Layout, Result, bail};

/// The contiguous f32 values behind an operand, or an error that names the operation.
fn f32_slice<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("{op}: expected f32 values") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("{op}: expected a contiguous operand, got strides {:?}", layout.stride()),
    }
}
