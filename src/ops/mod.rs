//! `ops`: the device seam. The hot operations of the row phase as candle custom operations, each with a CPU side;
//! other devices are added here and nowhere else.
//!
//! All of them work on gradients of a batch of targets in the ragged layout of [`TargetBlocks`]. On the CPU each runs on
//! the calling thread: batches run in parallel, not the inside of one.

mod blocks;
mod edge_rows;
mod frozen_attention;
mod matmul;
mod norm_pullback;

pub use blocks::TargetBlocks;
pub use edge_rows::{SourceStarts, edge_rows};
pub use frozen_attention::{frozen_attention, frozen_attention_own};
pub use matmul::{matmul, matmul_add};
pub use norm_pullback::{NormFactors, norm_pullback};

use candle_core::{CpuStorage, Layout, Result, bail};

/// The contiguous f32 values behind an operand, or an error that names the operation.
fn f32_slice<'a>(op: &str, storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(values) = storage else { bail!("{op}: expected f32 values") };
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&values[start..end]),
        None => bail!("{op}: expected a contiguous operand, got strides {:?}", layout.stride()),
    }
}
