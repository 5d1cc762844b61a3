//! The CUDA side of the operations, and the one place that asks for the feature `cuda`: with it `enabled.rs` stands
//! behind these names, without it `disabled.rs`, where a GPU is an error that says how to get one. Everything else is
//! the same code in every build; what differs is which [`Gpu`](super::gpu::Gpu) a `CudaDevice` is.

#[cfg_attr(feature = "cuda", path = "enabled.rs")]
#[cfg_attr(not(feature = "cuda"), path = "disabled.rs")]
mod side;

pub use candle_core::{CudaDevice, CudaStorage};
pub use side::{BUILT, Buffer, Copier, Copying, DeviceValue, arg, is_out_of_memory, limits, name, open, storage};

use candle_core::{Result, Storage, Tensor, bail};

use super::gpu::Arg;

/// As [`arg`], for a tensor that lives as long as the launch is prepared.
pub fn tensor_arg(op: &str, tensor: &Tensor) -> Result<Arg> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => arg(op, storage, layout),
        _ => bail!("{op}: an operand is not on the GPU"),
    }
}
