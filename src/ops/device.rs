//! Which device computes.

use candle_core::{Device, DeviceLocation, Error, Result};

use super::cuda;

/// Opens GPU `ordinal` and checks that it runs this program's kernels.
///
/// # Errors
/// A build without CUDA, which says how to get one; no such GPU; a driver or GPU too old for the kernels.
pub fn open_cuda(ordinal: usize) -> Result<Device> {
    cuda::open(ordinal)
}

/// Whether this build can use GPUs.
pub fn built_with_cuda() -> bool {
    cuda::BUILT
}

/// What a device is called: `cpu`, or a GPU's number and name.
///
/// # Errors
/// Those of the device.
pub fn device_name(device: &Device) -> Result<String> {
    match (device, device.location()) {
        (Device::Cuda(gpu), DeviceLocation::Cuda { gpu_id }) => Ok(format!("cuda:{gpu_id} ({})", cuda::name(gpu)?)),
        _ => Ok("cpu".into()),
    }
}

/// Whether an error says that a device has too little free memory; every other one is a fault of the device or of the
/// program.
pub fn is_out_of_memory(error: &Error) -> bool {
    cuda::is_out_of_memory(error)
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
/// busy by larger chunks.
pub fn chunk_values(device: &Device) -> usize {
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
        Device::Cuda(gpu) => cuda::limits(gpu).map(Some),
        _ => Ok(None),
    }
}
