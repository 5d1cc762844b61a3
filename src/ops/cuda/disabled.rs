//! The CUDA side of a build without the feature `cuda`: the items of `enabled.rs`, none of which can do anything. No
//! `Device::Cuda` exists in such a build, so [`open`] is the one that is ever called.

use std::marker::PhantomData;
use std::ops::Range;

use candle_core::{CudaDevice, CudaStorage, Device, Error, Layout, Result, Tensor, bail};

use super::super::device::DeviceLimits;
use super::super::gpu::{Arg, Element, Gpu, Launch};

/// Whether this build can use GPUs.
pub const BUILT: bool = false;

/// What a device's memory can hold.
pub trait DeviceValue {}

impl<T> DeviceValue for T {}

/// Device memory.
pub type Buffer<T> = PhantomData<T>;

fn without_cuda<T>() -> Result<T> {
    bail!("GPUs need a build with CUDA: cargo build --release --features cuda")
}

impl Gpu for CudaDevice {
    type Buffer<T: Element> = Buffer<T>;

    fn zeros<T: Element>(&self, _: usize) -> Result<Buffer<T>> {
        without_cuda()
    }

    fn upload<T: Element>(&self, _: &[T]) -> Result<Buffer<T>> {
        without_cuda()
    }

    fn download<T: Element>(&self, _: &Buffer<T>) -> Result<Vec<T>> {
        without_cuda()
    }

    fn download_part<T: Element>(&self, _: &Buffer<T>, _: Range<usize>) -> Result<Vec<T>> {
        without_cuda()
    }

    fn arg<T: Element>(&self, _: &Buffer<T>) -> Arg {
        Arg::Null
    }

    unsafe fn launch(&self, _: &Launch) -> Result<()> {
        without_cuda()
    }
}

/// The argument for a contiguous operand.
pub fn arg(_: &str, _: &CudaStorage, _: &Layout) -> Result<Arg> {
    without_cuda()
}

/// A result as candle holds it.
pub fn storage(_: Buffer<f32>, _: &CudaDevice) -> CudaStorage {
    CudaStorage
}

/// Opens a GPU.
pub fn open(ordinal: usize) -> Result<Device> {
    bail!("GPU {ordinal} needs a build with CUDA: cargo build --release --features cuda")
}

/// The name of a GPU.
pub fn name(_: &CudaDevice) -> Result<String> {
    without_cuda()
}

/// What a GPU can do at most.
pub fn limits(_: &CudaDevice) -> Result<DeviceLimits> {
    without_cuda()
}

/// Whether an error says that a device has too little free memory.
pub fn is_out_of_memory(_: &Error) -> bool {
    false
}

/// Copies rows to the host.
#[derive(Debug)]
pub struct Copier;

/// A copy under way.
#[derive(Debug)]
pub struct Copying;

impl Copier {
    /// A stream of its own beside that of a device.
    pub fn new(_: &CudaDevice) -> Result<Self> {
        without_cuda()
    }

    /// Starts to copy rows.
    pub fn start(&self, _: Tensor) -> Result<Copying> {
        without_cuda()
    }

    /// Waits for a copy and shows its values.
    pub fn finish(&self, _: Copying, _: impl FnOnce(&[f32])) -> Result<()> {
        without_cuda()
    }
}
