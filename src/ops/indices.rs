//! Lists of indices that kernels read.

use std::ops::Deref;
use std::sync::OnceLock;

use candle_core::{CudaDevice, Result};

use super::cuda;
use super::gpu::{Arg, Gpu};

/// Indices on the host; on a device from their first use there on, so that they are copied but once.
#[derive(Clone, Debug, Default)]
pub struct Indices {
    values: Vec<usize>,
    on_device: OnceLock<cuda::Buffer<u32>>,
}

impl From<Vec<usize>> for Indices {
    fn from(values: Vec<usize>) -> Self {
        Self { values, on_device: OnceLock::new() }
    }
}

impl Deref for Indices {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.values
    }
}

impl Indices {
    /// As 32 bits each. `[n]`
    pub fn to_u32(&self) -> Vec<u32> {
        self.values.iter().map(|&v| v as u32).collect()
    }

    /// The argument of a kernel: `[n]` u32 in the device's memory.
    pub(super) fn arg(&self, device: &CudaDevice) -> Result<Arg> {
        if let Some(on_device) = self.on_device.get() {
            return Ok(device.arg(on_device));
        }
        let uploaded = device.upload(&self.to_u32())?;
        Ok(device.arg(self.on_device.get_or_init(|| uploaded)))
    }
}
