//! Which device computes.

use candle_core::{Device, Result};

/// Opens GPU `ordinal` and checks that it runs this program's kernels.
///
/// # Errors
/// A build without CUDA, which says how to get one; no such GPU; a driver or GPU too old for the kernels.
pub fn open_cuda(ordinal: usize) -> Result<Device> {
    #[cfg(feature = "cuda")]
    return super::cuda::open(ordinal);
    #[cfg(not(feature = "cuda"))]
    candle_core::bail!("GPU {ordinal} needs a build with CUDA: cargo build --release --features cuda")
}

/// Whether this build can use GPUs.
pub fn built_with_cuda() -> bool {
    cfg!(feature = "cuda")
}

/// What a device is called: `cpu`, or a GPU's number and name.
pub fn device_name(device: &Device) -> String {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => {
            let candle_core::DeviceLocation::Cuda { gpu_id } = device.location() else { return "cuda".into() };
            let name = super::cuda::name(cuda).unwrap_or_else(|_| "unknown GPU".into());
            format!("cuda:{gpu_id} ({name})")
        }
        _ => "cpu".into(),
    }
}

/// Gradient rows (targets × positions up to theirs) that a batch should have. On the CPU enough for full speed of the
/// products, but few enough that a batch's buffers stay in one core's cache; a GPU needs many more to be busy.
pub fn gradient_rows(device: &Device) -> usize {
    match device {
        Device::Cpu => 768,
        _ => 32_768,
    }
}

/// Values of the rows that one batch computes. On the CPU they are where they stay; a GPU holds them, and the host their
/// copy, for two batches at a time: 256 MiB each.
pub fn row_values(device: &Device) -> usize {
    match device {
        Device::Cpu => usize::MAX,
        _ => 64 << 20,
    }
}

/// Values of a streamed matrix that are held at once. On the CPU 16 MiB, which the caches help with; a GPU is kept
/// busy by larger blocks.
pub fn block_values(device: &Device) -> usize {
    match device {
        Device::Cpu => 4 << 20,
        _ => 64 << 20,
    }
}

/// What a device can do at most, as its driver says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeviceLimits {
    /// Memory bandwidth, 10⁹ bytes a second.
    pub gb_per_sec: f64,
    /// f32 multiply-adds without tensor cores, each 2 operations; 10⁹ a second.
    pub gflop_per_sec: f64,
}

/// The limits of a GPU; `None` for the CPU.
///
/// # Errors
/// Those of the device.
pub fn device_limits(device: &Device) -> Result<Option<DeviceLimits>> {
    match device {
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => super::cuda::limits(cuda).map(Some),
        _ => Ok(None),
    }
}
