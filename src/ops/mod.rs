//! `ops`: the device seam. The hot operations of the row phase, each with a CPU side and a kernel in
//! `kernels/`; no other room asks which device it is on, but to choose sizes. Which GPU there is, if any, is chosen in
//! `cuda` alone.
//!
//! Most work on gradients of a batch of targets in the ragged layout of [`RaggedBatch`]. On the CPU each runs on the
//! calling thread: batches run in parallel, not the inside of one.
//!
//! The code that prepares launches is there in every build ([`gpu::Gpu`]): tests run it, and the kernels' own source,
//! on the CPU.

mod batch_rows;
mod bf16_product;
mod causal_pattern;
mod closed_effects;
mod cuda;
mod device;
pub mod edge_rows;
pub mod encode_active;
pub mod frozen_attention;
pub mod gpu;
mod head_products;
mod indices;
pub mod influence;
mod matmul;
pub mod norm_pullback;
mod ragged_batch;
pub(crate) mod rows;
mod rows_on_device;
mod source_vecs;
mod swept_on_device;

pub use batch_rows::{BatchRows, HostRow, PendingRows, RowCollector, bias_columns};
pub use bf16_product::{PackedWeight, RoundedRows};
pub use causal_pattern::CausalPattern;
pub use closed_effects::{ClosedKeys, closed_effects};
pub use device::{
    DeviceLimits, built_with_cuda, chunk_values, device_limits, device_name, gradient_rows, is_out_of_memory,
    open_cuda, row_values,
};
pub use edge_rows::edge_rows;
pub use encode_active::{Activity, SparseActivations, encode_active, keep_largest};
pub use frozen_attention::{frozen_attention, frozen_attention_own};
pub use head_products::{HeadSizes, head_products};
pub use indices::Indices;
pub use matmul::{add_product, add_transposed_product, matmul, matmul_transposed};
pub(crate) use matmul::{product, product_with_transpose, transpose_product};
pub use norm_pullback::{NormFactors, norm_pullback};
pub use ragged_batch::RaggedBatch;
pub use rows_on_device::{RowShape, RowsOnDevice};
pub use source_vecs::SourceVecs;
pub use swept_on_device::SweptOnDevice;

use candle_core::{CpuStorage, Layout, Result, bail};

/// The contiguous f32 values of an operand, or an error that names the operation.
fn f32_slice<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("{op}: expected f32 values") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("{op}: expected a contiguous operand, got strides {:?}", layout.stride()),
    }
}
